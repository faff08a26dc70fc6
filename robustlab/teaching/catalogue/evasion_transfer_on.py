"""Section 2.2, further ways in: transfer, universal, physical, text and graphs (chapters 11 to 14)."""

from __future__ import annotations

from robustlab.teaching.catalogue.row import Row

TRANSFER_ON: tuple[Row, ...] = (
    # Chapter 11: transfer.
    Row(
        key="ensemble_transfer",
        title="Transfer from an ensemble",
        cite="liu2017",
        kind="attack",
        folder="attacks/transfer",
        chapter="11",
        norms=("l2", "linf"),
        targeted=True,
        access="hard",
    ),
    Row(
        key="substitute",
        title="Substitute model by Jacobian augmentation",
        cite=("papernot2017", "papernot2016"),
        kind="attack",
        chapter="11",
        access="hard",
    ),
    # Chapter 12: universal.
    Row(
        key="uap",
        title="Universal adversarial perturbation",
        cite="moosavi2017",
        kind="universal",
        folder="attacks/universal",
        chapter="12",
        norms=("l2", "linf"),
        per_sample=False,
    ),
    Row(
        key="ensemble_adversarial_training",
        title="Ensemble adversarial training",
        cite="tramer2018",
        kind="trainer",
        folder="defenses/training",
        chapter="12",
    ),
    Row(
        key="minmax_universal",
        title="Min-max universal attack",
        cite="wang2021a",
        kind="universal",
        chapter="12",
        per_sample=False,
    ),
    # Chapter 13: physical.
    Row(
        key="rp2",
        title="Robust physical perturbations (RP2)",
        cite="eykholt2018",
        kind="physical",
        chapter="13",
        targeted=True,
        per_sample=False,
        dims=("image",),
    ),
    Row(
        key="eyeglasses",
        title="Adversarial eyeglasses",
        cite="sharif2016",
        kind="physical",
        chapter="13",
        targeted=True,
        per_sample=False,
        dims=("image",),
    ),
    Row(
        key="patch",
        title="Adversarial patch",
        cite="brown2017",
        kind="physical",
        chapter="13",
        targeted=True,
        per_sample=False,
        dims=("image",),
    ),
    Row(
        key="eot_3d",
        title="Adversarial texture over poses",
        cite="athalye2018synthesizing",
        kind="physical",
        chapter="13",
        targeted=True,
        per_sample=False,
        dims=("image",),
    ),
    Row(
        key="tshirt",
        title="Adversarial T-shirt",
        cite="xu2020b",
        kind="physical",
        chapter="13",
        per_sample=False,
        dims=("image",),
    ),
    # Chapter 14: text and graphs. The detector for audio is with the empirical defenses.
    Row(
        key="paraphrase",
        title="Paraphrasing attack on text",
        cite=("lei2019", "nemhauser1978"),
        kind="attack",
        chapter="14",
        also=("29",),
        dims=(),
    ),
    Row(
        key="topology",
        title="Topology attack and defense on graphs",
        cite="xu2019a",
        kind="attack",
        chapter="14",
        per_sample=False,
        dims=(),
    ),
)
