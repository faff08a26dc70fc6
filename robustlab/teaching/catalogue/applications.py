"""Section 4: applications, and robustness beyond classification and beyond inputs (chapters 27 to 32)."""

from __future__ import annotations

from robustlab.teaching.catalogue.row import Row

APPLICATIONS: tuple[Row, ...] = (
    # Chapter 27: explanations, privacy, ownership.
    Row(
        key="contrastive_explanations",
        title="Contrastive explanations",
        cite="dhurandhar2018",
        kind="application",
        chapter="27",
    ),
    Row(
        key="fawkes",
        title="Fawkes, cloaking of faces",
        cite="shan2020",
        kind="application",
        chapter="27",
    ),
    Row(
        key="radioactive_data",
        title="Radioactive data",
        cite="sablayrolles2020",
        kind="application",
        chapter="27",
    ),
    Row(
        key="gradsigns",
        title="GradSigns, a watermark in gradient signs",
        cite="aramoon2021",
        kind="application",
        chapter="27",
    ),
    Row(
        key="characteristic_examples",
        title="Characteristic examples",
        cite="wang2021c",
        kind="application",
        chapter="27",
    ),
    # Chapter 28: reprogramming.
    Row(
        key="bar",
        title="Black-box adversarial reprogramming (BAR)",
        cite="tsai2020",
        kind="application",
        chapter="28",
        access="soft",
    ),
    Row(
        key="voice2series",
        title="Voice2Series",
        cite="yang2021",
        kind="application",
        chapter="28",
    ),
    # Chapter 29: augmentation, synthesis, CAPTCHAs.
    Row(
        key="mine_augmentation",
        title="Unsupervised adversarial examples as augmentation",
        cite=("hsu2022", "belghazi2018"),
        kind="application",
        chapter="29",
    ),
    Row(
        key="robust_synthesis",
        title="Image synthesis with a robust classifier",
        cite="santurkar2019",
        kind="application",
        chapter="29",
    ),
    Row(
        key="text_captcha",
        title="Robust text CAPTCHAs",
        cite="shao2021",
        kind="application",
        chapter="29",
    ),
    # Chapter 30: beyond classification.
    Row(
        key="seq2sick",
        title="Seq2Sick",
        cite="cheng2020c",
        kind="attack",
        chapter="30",
        targeted=True,
        dims=(),
    ),
    Row(
        key="show_and_fool",
        title="Show-and-Fool",
        cite="chen2018a",
        kind="attack",
        chapter="30",
        targeted=True,
        min_norm=True,
        dims=(),
    ),
    # Chapter 31: perturbed weights.
    Row(
        key="weight_robustness",
        title="Margin bounds and training for perturbed weights",
        cite="tsai2021",
        kind="trainer",
        chapter="31",
    ),
    Row(
        key="weight_certificates",
        title="Certificates for perturbed weights",
        cite="weng2020",
        kind="verifier",
        chapter="31",
    ),
    Row(
        key="bit_error",
        title="Training for random bit errors",
        cite="stutz2020",
        kind="trainer",
        chapter="31",
    ),
    # Chapter 32: foundation models.
    Row(
        key="advcl",
        title="Adversarial contrastive learning (AdvCL)",
        cite="fan2021",
        kind="trainer",
        chapter="32",
    ),
    Row(
        key="r_maml",
        title="Robust meta-learning (R-MAML)",
        cite=("wang2021b", "finn2017"),
        kind="trainer",
        chapter="32",
    ),
)
