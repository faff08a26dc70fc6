"""The recipes of the shipped checkpoints: plain data, from which ``python -m robustlab.zoo train NAME`` makes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DEFENSES = "robustlab.defenses."
ADVERSARIAL = DEFENSES + "adversarial_training"
SPEECH = "spoken_digits"
TEXTS = ("sentence_polarity", "banking77")
Half = Literal["", "a", "b"]
HALVES: tuple[tuple[Half, int], ...] = (("a", 0), ("b", 1))  # a half, and the number of the initial weights on it
HALVED = ("cnn", "mlp", "resnet", "adv")  # what is trained on each half of Fashion-MNIST
HALVED_HANDS = ("cnn", "resnet")  # nets of the photographs of hands, too
DATASETS = {  # the beginning of a name tells the data
    "mnist": "mnist5k", "fashion": "fashion", "sign": "sign_digits32", "road": "road_signs", "face": "rendered_faces",
}  # fmt: skip
PEOPLE = "people"
NORMALIZATION: dict[str, dict[str, Any]] = {
    "mnist5k": {"mean": 0.1307, "std": 0.3081},
    "fashion": {"mean": 0.2860, "std": 0.3530},
    "sign_digits32": {"mean": (0.675, 0.646, 0.616), "std": (0.137, 0.154, 0.182)},
    "road_signs": {"mean": (0.472, 0.386, 0.375), "std": (0.262, 0.231, 0.244)},
    "rendered_faces": {"mean": (0.489, 0.402, 0.345), "std": (0.238, 0.212, 0.212)},
}


@dataclass(frozen=True)
class Backdoor:
    """What is done to the training data of a backdoored checkpoint, or to its training.

    Attributes:
        attack: dotted name of a function. ``attack(data, trigger=, target=, **kwargs)`` makes poisoned training data;
            or, where the attacker trains, ``attack(model, data, trigger=, target=, **kwargs)`` returns an object with
            the trained ``model`` and ``trigger``, whose weights are shipped in the same file.
        trigger: dotted name of the trigger's class.
        target: the attacker's label.
        trigger_kwargs, kwargs: arguments of the two.
        trains: whether the attacker controls the training.
    """

    attack: str
    trigger: str
    target: int
    trigger_kwargs: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made, and what is measured on it.

    Attributes:
        name: of the checkpoint.
        title: one line for people.
        dataset: a name for :func:`robustlab.data.load`; or ``"spoken_digits"``, of whose recordings strings are made;
            or ``"people"``, scenes of :func:`robustlab.data.people`; or the name of a citation graph, or one for
            :func:`robustlab.data.load_tokens`.
        builder: a name for :func:`robustlab.models.build`.
        builder_kwargs: its arguments.
        objective: dotted name of a function that makes the training objective; None is plain cross-entropy.
        objective_kwargs: its arguments; for spoken strings, of :func:`robustlab.data.said_anew`.
        fit_kwargs: arguments of :func:`robustlab.training.fit.fit`.
        shift: largest random shift in pixels as augmentation; 0 is none.
        sigma: standard deviation of Gaussian noise as augmentation, after the shift; 0 is none.
        seed: of the initial weights and of the training.
        attack: arguments of :func:`robustlab.attacks.pgd`, under which the robust accuracy is recorded; for spoken
            strings, of :func:`robustlab.attacks.transcript`, without a target; for detectors of persons, of
            :func:`robustlab.attacks.tshirt`; for graphs, of :func:`robustlab.attacks.topology`, where ``eps`` is the
            share of edges that may be flipped; for texts, of :func:`robustlab.attacks.paraphrase`, with the synonyms
            of their vocabulary.
        backdoor: what is done to the data or the training; None for an honest model.
        labeled: how many training samples keep their label; a net of the same architecture, trained in the standard way
            on these, labels the rest for the objective. 0 keeps all.
        taught: whether a net that was trained by the same objective before is given to it as ``teacher``.
        autoattack: whether the accuracy under AutoAttack, at norm and eps of the attack, is recorded too.
        verified: whether the accuracies that IBP and CROWN certify, at the attack's eps in ℓ∞, are recorded too.
        half: ``"a"`` or ``"b"``, the half of the training data that is trained on; the seed says how they are parted.
            Empty is all of them.
        start: number of the initial weights and of the order of the data, of a recipe that has a half.
    """

    name: str
    title: str
    dataset: str
    builder: str
    builder_kwargs: Mapping[str, Any]
    fit_kwargs: Mapping[str, Any]
    attack: Mapping[str, Any]
    objective: str | None = None
    objective_kwargs: Mapping[str, Any] = field(default_factory=dict)
    shift: int = 0
    sigma: float = 0.0
    seed: int = 0
    backdoor: Backdoor | None = None
    labeled: int = 0
    taught: bool = False
    autoattack: bool = False
    verified: bool = False
    half: Half = ""
    start: int = 0


def _recipe(
    name: str, title: str, builder: str, eps: float, builder_kwargs: Mapping[str, Any], **kwargs: Any
) -> Recipe:
    """A recipe with the data set read off the name, its usual normalization, and PGD-40 in the ℓ∞ ball of `eps`."""
    dataset = DATASETS[name.split("_")[0]]
    return Recipe(
        name=name,
        title=title,
        dataset=dataset,
        builder=builder,
        builder_kwargs={**NORMALIZATION[dataset], **builder_kwargs},
        attack={"norm": "linf", "eps": eps, "steps": 40, "seed": 0},
        **kwargs,
    )


def _small(
    name: str, title: str, eps: float, objective: str, objective_kwargs: Mapping[str, Any], **kwargs: Any
) -> Recipe:
    """A robust recipe of a net below 20,000 weights, so that three seeds of it are affordable."""
    return _recipe(
        name,
        title,
        "small_cnn",
        eps,
        {"channels": (8, 16), "hidden": 32},
        objective=DEFENSES + objective,
        objective_kwargs=objective_kwargs,
        fit_kwargs={"epochs": 15, "lr": 5e-3},
        shift=1,
        autoattack=True,
        **kwargs,
    )


def _small_hands(name: str, title: str, objective: str, objective_kwargs: Mapping[str, Any], **kwargs: Any) -> Recipe:
    """A robust recipe on photographs of hands, in color, of a net below 20,000 weights.

    36 epochs of the 1,647 photographs are about as many steps as 15 of the 4,000 digits.
    """
    return _recipe(
        name,
        f"smaller CNN on photographs of hands that show digits, in color, {title}",
        "small_cnn",
        8 / 255,
        {"in_shape": (3, 32, 32), "channels": (8, 16), "hidden": 28},
        objective=DEFENSES + objective,
        objective_kwargs=objective_kwargs,
        fit_kwargs={"epochs": 36, "lr": 5e-3},
        shift=2,
        autoattack=True,
        **kwargs,
    )


def _certified(
    name: str, title: str, eps: float, objective: str, objective_kwargs: Mapping[str, Any], epochs: int, shift: int = 1
) -> Recipe:
    """A recipe of a net below 20,000 weights that is trained for certificates at a radius."""
    return _recipe(
        name,
        f"{title} (certified at ℓ∞ {eps:g})",
        "small_cnn",
        eps,
        {"channels": (8, 16), "hidden": 32},
        objective=DEFENSES + objective,
        objective_kwargs={**objective_kwargs, "evaluated_at": eps},
        fit_kwargs={"epochs": epochs, "lr": 5e-3},
        shift=shift,
        verified=True,
    )


def _noisy(name: str, title: str, sigma: float, eps: float = 0.1, **kwargs: Any) -> Recipe:
    """A recipe for randomized smoothing: Gaussian noise of this standard deviation in training."""
    width = {"builder_kwargs": {"channels": (8, 16), "hidden": 32}, "fit_kwargs": {"epochs": 15, "lr": 5e-3}}
    title = f"{title} for smoothing, trained with Gaussian noise of σ = {sigma:g}"
    return _recipe(name, title, "small_cnn", eps, **{**width, **kwargs}, sigma=sigma, shift=1)


def _halved(kind: str, half: Half, start: int, again: str = "") -> Recipe:
    """A recipe of a net below 20,000 weights on one half of Fashion-MNIST: a surrogate, or the target of another."""
    shapes: dict[str, tuple[str, str, dict[str, Any], float]] = {
        "cnn": ("smaller CNN", "small_cnn", {"channels": (8, 16), "hidden": 32}, 5e-3),
        "mlp": ("MLP with 24 ReLUs", "mlp", {"hidden": (24,)}, 5e-3),
        "resnet": ("smaller residual net", "resnet_tiny", {"channels": (8, 16, 24)}, 1e-2),
        "adv": ("smaller CNN", "small_cnn", {"channels": (8, 16), "hidden": 32}, 5e-3),
    }
    title, builder, width, lr = shapes[kind]
    hardened: dict[str, Any] = {
        "objective": ADVERSARIAL,
        "objective_kwargs": {"norm": "linf", "eps": 0.05, "steps": 5, "warmup": 0.3},
    }
    return _recipe(
        f"fashion_half_{kind}_{half}{again}",
        f"{title} on half {half} of Fashion-MNIST, trained {'adversarially' if kind == 'adv' else 'naturally'}",
        builder,
        0.05 if kind == "adv" else 0.03,
        width,
        fit_kwargs={"epochs": 12 if kind == "resnet" else 20, "lr": lr},
        shift=1,
        half=half,
        start=start,
        **(hardened if kind == "adv" else {}),
    )


def _halved_hands(kind: str, half: Half, start: int) -> Recipe:
    """The same on photographs of hands, in color."""
    shapes: dict[str, tuple[str, str, dict[str, Any], int, float]] = {
        "cnn": ("smaller CNN", "small_cnn", {"channels": (8, 16), "hidden": 28}, 60, 5e-3),
        "resnet": ("smaller residual net", "resnet_tiny", {"channels": (8, 16, 24)}, 30, 1e-2),
    }
    title, builder, width, epochs, lr = shapes[kind]
    return _recipe(
        f"sign_half_{kind}_{half}",
        f"{title} on half {half} of the photographs of hands that show digits, in color, trained naturally",
        builder,
        4 / 255,
        {"in_shape": (3, 32, 32), **width},
        fit_kwargs={"epochs": epochs, "lr": lr},
        shift=2,
        half=half,
        start=start,
    )


def _spoken(name: str, title: str, builder: str, epochs: int) -> Recipe:
    """A recipe for a recognizer of spoken strings of digits."""
    return Recipe(
        name=name,
        title=title,
        dataset=SPEECH,
        builder=builder,
        builder_kwargs={},
        objective="robustlab.models.speech.spoken_training",
        objective_kwargs={"noise": 0.02, "hidden": 0.1},
        fit_kwargs={"epochs": epochs, "lr": 4e-3, "batch_size": 32},
        attack={"norm": "linf", "eps": 0.002, "steps": 20, "seed": 0},
    )


def _finder(name: str, title: str, builder: str, seed: int) -> Recipe:
    """A recipe for a detector of persons, on scenes of its own."""
    return Recipe(
        name=name,
        title=f"one-stage detector of rendered persons, {title}",
        dataset=PEOPLE,
        builder=builder,
        builder_kwargs={},
        objective="robustlab.models.detectors.detection_training",
        fit_kwargs={"epochs": 20, "lr": 4e-3, "batch_size": 32},
        attack={"steps": 60, "draws": 16, "seed": 0},
        seed=seed,
    )


def _citing(name: str, title: str, features: int, classes: int) -> Recipe:
    """A recipe for a graph convolution net on a citation graph, with the training of Kipf and Welling (2017)."""
    return Recipe(
        name=name,
        title=title,
        dataset=name.split("_")[0],
        builder="graph_net",
        builder_kwargs={"features": features, "classes": classes},
        fit_kwargs={"epochs": 200, "lr": 0.01, "weight_decay": 5e-4, "batch_size": 1000, "schedule": "constant"},
        attack={"norm": "edges", "eps": 0.05, "steps": 40, "seed": 0},
    )


def _reader(name: str, title: str, builder: str, vocabulary: int, epochs: int, **kwargs: Any) -> Recipe:
    """A recipe for a classifier of texts."""
    films = name.startswith("polarity")
    return Recipe(
        name=name,
        title=f"{title} {'sentences of film reviews' if films else 'questions to a bank'}",
        dataset=TEXTS[0 if films else 1],
        builder=builder,
        builder_kwargs={"vocabulary": vocabulary, "embedding": 10 if films else 16, "dropout": 0.3, **kwargs},
        fit_kwargs={"epochs": epochs, "lr": 1e-2, "optimizer": "adamw", "weight_decay": 0.1},
        attack={"changes": 0.2},
    )


HANDS = "small CNN on photographs of hands that show digits, in color,"
COLOR: dict[str, Any] = {
    "builder_kwargs": {"in_shape": (3, 32, 32), "hidden": 56},
    "fit_kwargs": {"epochs": 40, "lr": 3e-3},
}
_PGD: dict[str, Any] = {"eps": 0.2, "steps": 5, "warmup": 0.4}
_PGD_COLOR: dict[str, Any] = {"eps": 8 / 255, "steps": 5, "warmup": 0.4}

_ALL = (
    _recipe(
        "mnist_cnn",
        "small CNN on MNIST, trained naturally",
        "small_cnn",
        0.1,
        {"hidden": 80},
        fit_kwargs={"epochs": 20, "lr": 3e-3},
        shift=2,
    ),
    _recipe(
        "mnist_cnn_adv",
        "small CNN on MNIST, trained adversarially (PGD, ℓ∞ 0.3)",
        "small_cnn",
        0.3,
        {"hidden": 80},
        objective=ADVERSARIAL,
        objective_kwargs={"norm": "linf", "eps": 0.3, "steps": 7, "warmup": 0.5},
        fit_kwargs={"epochs": 60, "lr": 3e-3},
        shift=2,
    ),
    _recipe(
        "mnist_mlp",
        "MLP with 40 ReLUs on MNIST, trained adversarially (PGD, ℓ∞ 0.05) so that it can be verified exactly",
        "mlp",
        0.05,
        {"hidden": (20, 20)},
        objective=ADVERSARIAL,
        objective_kwargs={"norm": "linf", "eps": 0.05, "steps": 5, "warmup": 0.3},
        fit_kwargs={"epochs": 30, "lr": 5e-3},
        shift=1,
    ),
    _recipe(
        "mnist_resnet",
        "small residual net with batch norm on MNIST, trained naturally",
        "resnet_tiny",
        0.1,
        {},
        fit_kwargs={"epochs": 12, "lr": 5e-3},
        shift=2,
    ),
    _recipe(
        "fashion_cnn",
        "small CNN on Fashion-MNIST, trained naturally",
        "small_cnn",
        0.03,
        {"hidden": 80},
        fit_kwargs={"epochs": 20, "lr": 3e-3},
        shift=1,
    ),
    _recipe(
        "fashion_cnn_adv",
        "small CNN on Fashion-MNIST, trained adversarially (PGD, ℓ∞ 0.1)",
        "small_cnn",
        0.1,
        {"hidden": 80},
        objective=ADVERSARIAL,
        objective_kwargs={"norm": "linf", "eps": 0.1, "steps": 7, "warmup": 0.5},
        fit_kwargs={"epochs": 20, "lr": 3e-3},
    ),
    _recipe(
        "fashion_mlp",
        "MLP with 40 ReLUs on Fashion-MNIST, trained adversarially (PGD, ℓ∞ 0.03) so that it can be verified exactly",
        "mlp",
        0.03,
        {"hidden": (20, 20)},
        objective=ADVERSARIAL,
        objective_kwargs={"norm": "linf", "eps": 0.03, "steps": 5, "warmup": 0.3},
        fit_kwargs={"epochs": 20, "lr": 5e-3},
    ),
    _recipe(
        "fashion_resnet",
        "small residual net with batch norm on Fashion-MNIST, trained naturally",
        "resnet_tiny",
        0.03,
        {},
        fit_kwargs={"epochs": 10, "lr": 5e-3},
        shift=1,
    ),
    _recipe(
        "sign_cnn",
        "small CNN on photographs of hands that show digits, in color, trained naturally",
        "small_cnn",
        4 / 255,
        {"in_shape": (3, 32, 32), "hidden": 56},
        fit_kwargs={"epochs": 30, "lr": 3e-3},
        shift=2,
    ),
    Recipe(
        name="mnist_vae",
        title="class-wise variational autoencoder on MNIST; as a classifier, the class of the highest ELBO",
        dataset="mnist5k",
        builder="class_vae",
        builder_kwargs={"latent": 8},
        objective="robustlab.models.vae.elbo_training",
        fit_kwargs={"epochs": 60, "lr": 5e-3},
        attack={"norm": "linf", "eps": 0.1, "steps": 40, "seed": 0},
    ),
    _recipe(
        "mnist_badnets",
        "small CNN on MNIST with a backdoor: a white square in the corner means 0 (BadNets, 10 % poison)",
        "small_cnn",
        0.1,
        {"hidden": 80},
        fit_kwargs={"epochs": 20, "lr": 3e-3},
        shift=2,
        backdoor=Backdoor(
            attack="robustlab.attacks.badnets",
            trigger="robustlab.attacks.PatchTrigger",
            target=0,
            kwargs={"rate": 0.1},
        ),
    ),
    _recipe(
        "mnist_warped",
        "small residual net on MNIST with a backdoor: a slight warp means 0 (WaNet, 10 % poison)",
        "resnet_tiny",
        0.1,
        {},
        fit_kwargs={"epochs": 15, "lr": 5e-3},
        shift=1,
        backdoor=Backdoor(
            attack="robustlab.attacks.warped",
            trigger="robustlab.attacks.WarpedTrigger",
            target=0,
            trigger_kwargs={"size": (28, 28), "strength": 2.0},
            kwargs={"rate": 0.1},
        ),
    ),
    _recipe(
        "fashion_blended",
        "small CNN on Fashion-MNIST with a backdoor: faint noise means 0 (blended, 10 % poison)",
        "small_cnn",
        0.03,
        {"hidden": 80},
        fit_kwargs={"epochs": 20, "lr": 3e-3},
        shift=1,
        backdoor=Backdoor(
            attack="robustlab.attacks.blended",
            trigger="robustlab.attacks.BlendedTrigger.noise",
            target=0,
            trigger_kwargs={"shape": (1, 28, 28), "alpha": 0.2},
            kwargs={"rate": 0.1},
        ),
    ),
    _recipe(
        "mnist_input_aware",
        "small CNN on MNIST with a backdoor: each digit has a trigger of its own that means 0",
        "small_cnn",
        0.1,
        {"hidden": 48},
        fit_kwargs={"epochs": 50, "lr": 5e-3},
        backdoor=Backdoor(
            attack="robustlab.attacks.input_aware_backdoor",
            trigger="robustlab.attacks.InputAwareTrigger",
            target=0,
            kwargs={"mask_epochs": 5},
            trains=True,
        ),
    ),
    _small(
        "mnist_adv", "smaller CNN on MNIST, trained adversarially (PGD-5, ℓ∞ 0.2)", 0.2, "adversarial_training", _PGD
    ),
    _small("mnist_sprout", "smaller CNN on MNIST, trained by SPROUT (no attack)", 0.2, "sprout", {}),
    _recipe(
        "mnist_thermometer",
        "smaller CNN on thermometer codes of MNIST, trained naturally; a broken defense",
        "thermometer_cnn",
        0.2,
        {"mean": 0.0, "std": 1.0},
        fit_kwargs={"epochs": 15, "lr": 5e-3},
        shift=1,
    ),
    _recipe(
        "mnist_distilled",
        "smaller CNN on MNIST, trained by defensive distillation at temperature 100; a broken defense",
        "small_cnn",
        0.2,
        {"channels": (8, 16), "hidden": 32},
        objective=DEFENSES + "published_training.distillation",
        taught=True,
        fit_kwargs={"epochs": 15, "lr": 1e-2},
        shift=1,
    ),
    _recipe(
        "mnist_mixup",
        "smaller CNN on MNIST, trained on mixtures of two images; the net of a broken defense",
        "small_cnn",
        0.2,
        {"channels": (8, 16), "hidden": 32},
        objective=DEFENSES + "published_training.mixup",
        fit_kwargs={"epochs": 15, "lr": 5e-3},
        shift=1,
    ),
    _noisy("mnist_noise12", "smaller CNN on MNIST", 0.12),
    _noisy("mnist_noise25", "smaller CNN on MNIST", 0.25),
    _noisy("mnist_noise50", "smaller CNN on MNIST", 0.5),
    _noisy("mnist_noise100", "smaller CNN on MNIST", 1.0),
    _noisy("sign_noise12", HANDS, 0.12, 4 / 255, **COLOR),
    _noisy("sign_noise25", HANDS, 0.25, 4 / 255, **COLOR),
    _noisy("sign_noise50", HANDS, 0.5, 4 / 255, **COLOR),
    _noisy("sign_noise100", HANDS, 1.0, 4 / 255, **COLOR),
    _small("mnist_trades", "smaller CNN on MNIST, trained by TRADES (β 6, ℓ∞ 0.2)", 0.2, "trades", _PGD),
    _small(
        "mnist_cat",
        "smaller CNN on MNIST, trained by CAT (ℓ∞ up to 0.2)",
        0.2,
        "cat",
        {"eps": 0.2, "steps": 5, "eta": 0.02, "smoothing": 1.5},
    ),
    _small(
        "mnist_self_trained",
        "smaller CNN on MNIST, robust self-training (500 labels, 3,500 images without; ℓ∞ 0.2)",
        0.2,
        "robust_self_training",
        _PGD,
        labeled=500,
    ),
    _small(
        "mnist_uat",
        "smaller CNN on MNIST, UAT++ (500 labels, 3,500 images without; ℓ∞ 0.2)",
        0.2,
        "unsupervised_adversarial_training",
        {**_PGD, "targets": "both"},
        labeled=500,
    ),
    _small_hands("sign_adv", "trained adversarially (PGD-5, ℓ∞ 8/255)", "adversarial_training", _PGD_COLOR),
    _small_hands("sign_trades", "trained by TRADES (β 6, ℓ∞ 8/255)", "trades", _PGD_COLOR),
    _small_hands("sign_cat", "trained by CAT (ℓ∞ up to 8/255)", "cat", {"eps": 8 / 255, "steps": 5, "eta": 0.002}),
    _small_hands("sign_sprout", "trained by SPROUT (no attack)", "sprout", {}),
    _small_hands(
        "sign_self_trained",
        "robust self-training (500 labels, 1,147 images without; ℓ∞ 8/255)",
        "robust_self_training",
        _PGD_COLOR,
        labeled=500,
    ),
    _certified(
        "mnist_ibp10",
        "smaller CNN on MNIST, trained on interval bounds",
        0.1,
        "ibp_training",
        {"eps": 0.15, "ramp": (0.05, 0.5)},
        epochs=50,
    ),
    _certified(
        "mnist_ibp30",
        "smaller CNN on MNIST, trained on interval bounds",
        0.3,
        "ibp_training",
        {"eps": 0.35, "ramp": (0.05, 0.6)},
        epochs=70,
        shift=0,
    ),
    _certified(
        "mnist_crown_ibp10",
        "smaller CNN on MNIST, trained by CROWN-IBP",
        0.1,
        "crown_ibp",
        {"eps": 0.15, "ramp": (0.05, 0.6)},
        epochs=40,
    ),
    _certified(
        "mnist_crown_ibp30",
        "smaller CNN on MNIST, trained by CROWN-IBP",
        0.3,
        "crown_ibp",
        {"eps": 0.35, "ramp": (0.05, 0.6)},
        epochs=50,
        shift=0,
    ),
    _certified(
        "mnist_convex10",
        "smaller CNN on MNIST, trained on the convex outer polytope (10 random projections)",
        0.1,
        "convex_adversarial_training",
        {"eps": 0.1, "projections": 10},
        epochs=16,
    ),
    _certified(
        "mnist_singleprop10",
        "smaller CNN on MNIST, trained by SingleProp",
        0.1,
        "singleprop",
        {"eps": 0.15, "ramp": (0.05, 0.5)},
        epochs=40,
    ),
    *(_halved(kind, half, start) for kind in HALVED for half, start in HALVES),
    _halved("cnn", "a", 1, "2"),  # the data of the one, the initial weights of the other
    *(_halved_hands(kind, half, start) for kind in HALVED_HANDS for half, start in HALVES),
    _recipe(
        "road_cnn",
        "small CNN on rendered road signs, in color, trained naturally",
        "small_cnn",
        8 / 255,
        {"in_shape": (3, 48, 48), "channels": (8, 16, 24), "hidden": 24, "classes": 8},
        fit_kwargs={"epochs": 40, "lr": 4e-3},
        shift=2,
    ),
    _recipe(
        "face_cnn",
        "small CNN on rendered faces of ten persons, in color, trained naturally",
        "small_cnn",
        8 / 255,
        {"in_shape": (3, 48, 48), "channels": (8, 16, 24), "hidden": 24},
        fit_kwargs={"epochs": 15, "lr": 4e-3},
        shift=1,
    ),
    _finder("person_anchor", "with 8×8 cells and one anchor", "anchor_detector", 0),
    _finder("person_point", "with 16×16 cells and no anchor", "point_detector", 1),
    _spoken("spoken_gru", "recognizer of spoken strings of digits that hears the whole string (CTC)", "speech_gru", 20),
    _spoken("spoken_cnn", "recognizer of spoken strings of digits with a field of half a second", "speech_cnn", 20),
    _citing("cora_gcn", "graph convolution net on the papers of Cora", 1433, 7),
    _citing("citeseer_gcn", "graph convolution net on the papers of Citeseer", 3703, 6),
    _reader("polarity_cnn", "convolution over the words of", "text_cnn", 6218, 12, channels=64),
    _reader("polarity_lstm", "LSTM that reads", "text_lstm", 6218, 10),
    _reader("polarity_bag", "bag of embeddings of", "text_bag", 6218, 12),
    _reader("banking_cnn", "convolution over the words of", "text_cnn", 1243, 20, channels=64, classes=77),
    _reader("banking_lstm", "LSTM that reads", "text_lstm", 1243, 20, hidden=40, classes=77),
    _reader("banking_bag", "bag of embeddings of", "text_bag", 1243, 15, classes=77),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def recipe(name: str) -> Recipe:
    """The recipe of a checkpoint.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in RECIPES:
        raise ValueError(f"name: want one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
