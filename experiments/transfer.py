"""Chapter 11: whose adversarial examples fool whom, when nothing is shared, and when something is.

All attacks take ten signed steps with momentum in the maximum norm, where nothing else is said. Networks are small ones
of Fashion-MNIST on two halves of the training images that share none, named by kind and half; ``cnn_a2`` has the data
of ``cnn_a`` and the initial weights of ``cnn_b``. Each seed parts the data anew and trains all nine networks anew.
Rates are of 200 test images that all nine read rightly, drawn anew for each seed. Six parts.

*Pairs*: each network's examples shown to each; cosine of their gradients, how far the surrogate's signs point along the
target's gradient, and what this predicts: the target attacked directly in the radius times that number. *Ensembles*:
all sets of the four networks of half a against those of half b; a label other than the true one, or a drawn label. Of
single surrogates also as many gradients as four together ask. *Options*: momentum, diversity and translation.
*Substitute*: 100 images of half a, and labels from what was trained on half b, a forest too; the Jacobian's
augmentation against as many labels of jittered or of other real images, against as many images with their true labels
and no query, and against random signs. *Training*: a small CNN on half b, trained on its own step or on an ensemble's,
under transfer and under white-box PGD. *Hands*: the pairs again, of color photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments import nets
from experiments.record import Experiment
from robustlab import data, defenses, models
from robustlab.attacker.victim import Victim, predict
from robustlab.attacks import ensemble_transfer, pgd, substitute
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate
from robustlab.training.fit import fit
from robustlab.zoo.recipes import HALVED, HALVED_HANDS
from robustlab.zoo.training import half_of

SEEDS, RADII, TARGETED_RADII, IMAGES = (0, 1, 2), (0.05, 0.1), (0.1, 0.2), 200
CLOTHES = ("cnn_a", "cnn_a2", "mlp_a", "resnet_a", "adv_a", "cnn_b", "mlp_b", "resnet_b", "adv_b")
HANDS, HAND_RADII = ("cnn_a", "resnet_a", "cnn_b", "resnet_b"), (0.02, 0.03)
SETS = tuple("+".join(chosen) for k in (1, 2, 3, 4) for chosen in combinations(HALVED, k))
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {}, "MI 0.5": {"momentum": 0.5}, "MI 1": {"momentum": 1.0}, "DI 0.5": {"diversity": 0.5, "smallest": 0.8},
    "DI 1": {"diversity": 1.0, "smallest": 0.8}, "TI 3": {"translation": 3}, "TI 7": {"translation": 7},
    "all three": {"momentum": 1.0, "diversity": 0.5, "smallest": 0.8, "translation": 3},
}  # fmt: skip
ORACLES, FIRST = ("cnn_b", "adv_b", "forest"), 100
WAYS = ("augmented", "jittered", "real", "true labels")
ROUNDS, DOUBLINGS, FRESH, JUMP = (1, 3, 6), 2, 400, 0.1
TRAININGS = ("natural", "own", "ensemble", "adversarial")


@cache
def network(name: str, seed: int, family: str = "fashion") -> nn.Module:
    return nets.load(f"{family}_half_{name}" + (f"-{seed}" if seed else ""))[0].requires_grad_(False)


def shuffled(family: str, seed: int) -> tuple[Tensor, Tensor]:
    """The test images of a family in the order of a seed."""
    have = data.load("fashion" if family == "fashion" else "sign_digits32")
    order = torch.randperm(len(have.x_test), generator=torch.Generator().manual_seed(seed))
    return have.x_test[order], have.y_test[order]


@cache
def images(seed: int, family: str = "fashion") -> tuple[Tensor, Tensor]:
    """Test images that all networks of the seed read rightly."""
    x, y = shuffled(family, seed)
    names = CLOTHES if family == "fashion" else HANDS
    right = torch.stack([predict(network(name, seed, family), x) == y for name in names]).all(dim=0)
    return x[right][:IMAGES], y[right][:IMAGES]


def drawn(y: Tensor, seed: int) -> Tensor:
    """A label other than y for each image."""
    return (y + torch.randint(1, 10, y.shape, generator=torch.Generator().manual_seed(seed))) % 10


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the classification loss, flat."""
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)[0].flatten(1)


def along(from_s: Tensor, of_t: Tensor) -> Tensor:
    """⟨sign ∇_s, ∇_t⟩ / ‖∇_t‖₁ for each image: 1 where the signs agree."""
    return (from_s.sign() * of_t).sum(dim=1) / of_t.abs().sum(dim=1).clamp_min(1e-12)


def pairs(eps: float, seed: int, family: str = "fashion") -> Mapping[str, Any]:
    """Rates of all pairs "surrogate > target", and numbers of each in the same order."""
    x, y = images(seed, family)
    each = {name: network(name, seed, family) for name in (CLOTHES if family == "fashion" else HANDS)}
    slopes = {name: slope(model, x, y) for name, model in each.items()}
    told: dict[str, Any] = {}
    cosine, share, foreseen = [], [], []
    for s, source in each.items():
        x_adv = ensemble_transfer(always_right(y), x, y, surrogates=[source], eps=eps, momentum=1.0).x_adv
        for t, judge in each.items():
            told[f"{s} > {t}"] = Rate.of(predict(judge, x_adv) != y)
            part = along(slopes[s], slopes[t])
            alone = pgd(judge, x, y, eps=(eps * part).clamp_min(0), steps=10, init=torch.zeros_like(x))
            cosine.append(round(float(torch.cosine_similarity(slopes[s], slopes[t]).mean()), 3))
            share.append(round(float(part.mean()), 3))
            foreseen.append(round(float(alone.success.double().mean()), 3))
    noise = eps * Noise(seed, torch.arange(len(x))).sign(0, x.shape[1:])
    for t, judge in each.items():
        told[f"random signs > {t}"] = Rate.of(predict(judge, (x + noise).clamp(0, 1)) != y)
    return {**told, "cosine": cosine, "along": share, "foreseen": foreseen}


def always_right(y: Tensor) -> Victim:
    """A victim that says the true labels of these images, so that each is worked on and its last point returned."""
    return Victim(lambda points: y[: len(points)], access="hard")


def shown(members: str, goal: str, eps: float, seed: int, **options: Any) -> Mapping[str, Any]:
    """Rates of the networks of half b under what networks of half a make."""
    x, y = images(seed)
    own = [network(f"{kind}_a", seed) for kind in members.split("+")]
    target = drawn(y, seed) if goal == "targeted" else None
    x_adv = ensemble_transfer(always_right(y), x, y, surrogates=own, eps=eps, target=target, **options).x_adv
    here = torch.stack([predict(model, x_adv) for model in own])
    told = {"all surrogates": Rate.of((here != y if target is None else here == target).all(dim=0))}
    for kind in HALVED:
        said = predict(network(f"{kind}_b", seed), x_adv)
        told[f"{kind}_b"] = Rate.of(said != y if target is None else said == target)
    return told


def ensembles(members: str, goal: str, eps: float, steps: int, seed: int) -> Mapping[str, Any]:
    return shown(members, goal, eps, seed, steps=steps, momentum=1.0)


def options(members: str, goal: str, eps: float, option: str, seed: int) -> Mapping[str, Any]:
    return shown(members, goal, eps, seed, **OPTIONS[option])


@cache
def oracle(name: str, seed: int) -> Victim:
    """What tells labels: a network, or what scikit-learn makes of half b."""
    if name != "forest":
        return Victim(network(name, seed), access="hard")
    from sklearn.ensemble import RandomForestClassifier

    x, y = half_of(data.load("fashion"), "b", seed)
    model = RandomForestClassifier(100, random_state=seed)
    model.fit(x.flatten(1).numpy(), y.numpy())
    return Victim(lambda points: torch.from_numpy(model.predict(points.flatten(1).numpy())), access="hard")


def bought(oracle_of: str, way: str, rounds: int, seed: int) -> Mapping[str, Any]:
    """A substitute from labels: how many, how often it agrees, and whom it fools."""
    victim, (x, y) = oracle(oracle_of, seed), shuffled("fashion", seed)
    mine, truth = half_of(data.load("fashion"), "a", seed)
    labels = FIRST * 2 ** min(rounds - 1, DOUBLINGS) + FRESH * max(0, rounds - 1 - DOUBLINGS)
    passes = sum(FIRST * 2 ** min(r, DOUBLINGS) + FRESH * max(0, r - DOUBLINGS) for r in range(rounds))
    pool: Tensor | None = mine[:FIRST]
    how: dict[str, Any] = {"rounds": rounds, "epochs": 10}
    if way != "augmented":
        how = {"rounds": 1, "epochs": round(10 * passes / labels)}
    if way == "real":
        pool = mine[:labels]
    if way == "true labels":
        pool, how["known"] = None, (mine[:labels], truth[:labels])
    if way == "jittered":
        copies = mine[:FIRST].repeat(labels // FIRST, 1, 1, 1)
        signs = JUMP * Noise(seed, torch.arange(len(copies))).sign(0, mine.shape[1:])
        signs[:FIRST] = 0
        pool = (copies + signs).clamp(0, 1)
    net = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.286, std=0.353, seed=100 + seed)
    made = substitute(
        victim, x[:1], pool=pool, net=net, doublings=DOUBLINGS, fresh=FRESH, shift=JUMP, eps=0.1, seed=seed, **how
    )
    said = labels_of(victim, x[:500])
    right = (said == y[:500]).nonzero().flatten()[:IMAGES]
    x, y, noise = x[right], y[right], Noise(seed, right).sign(1, x.shape[1:])
    agree = predict(made.net, shuffled("fashion", seed)[0][:500]) == said
    told: dict[str, Any] = {"labels": made.bought, "agree": Rate.of(agree)}
    for eps in RADII:
        x_adv = ensemble_transfer(always_right(y), x, y, surrogates=[made.net], eps=eps, momentum=1.0).x_adv
        told[f"fooled at {eps}"] = Rate.of(labels_of(victim, x_adv) != y)
        told[f"random signs at {eps}"] = Rate.of(labels_of(victim, (x + eps * noise).clamp(0, 1)) != y)
    return told


def labels_of(victim: Victim, points: Tensor) -> Tensor:
    """What an oracle says."""
    with torch.no_grad():
        said = torch.as_tensor(victim.model(points))
    return said.argmax(dim=1) if said.ndim == 2 else said


@cache
def trained(kind: str, eps: float, seed: int) -> nn.Module:
    """A small CNN of half b; the frozen networks are of half b, too."""
    if kind in ("natural", "adversarial"):
        return network("cnn_b" if kind == "natural" else "adv_b", seed)
    model = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.286, std=0.353, seed=200 + seed)
    sources = [model] if kind == "own" else [network(f"{name}_b", seed) for name in ("mlp", "resnet")]
    objective = defenses.ensemble_adversarial_training(surrogates=sources, eps=eps, random_step=0.0)
    fit(model, half_of(data.load("fashion"), "b", seed), epochs=8, lr=5e-3, seed=seed, objective=objective)
    return model.eval().requires_grad_(False)


def training(kind: str, eps: float, seed: int) -> Mapping[str, Any]:
    """Accuracy of a training, clean, under what half a makes, and under white-box PGD."""
    model, (x, y) = trained(kind, eps, seed), shuffled("fashion", seed)
    x, y = x[:IMAGES], y[:IMAGES]
    told = {"clean": Rate.of(predict(model, x) == y)}
    for members in (*HALVED, "+".join(HALVED)):
        own = [network(f"{name}_a", seed) for name in members.split("+")]
        x_adv = ensemble_transfer(always_right(y), x, y, surrogates=own, eps=eps, momentum=1.0).x_adv
        told[f"from {members}"] = Rate.of(predict(model, x_adv) == y)
    told["white box"] = Rate.of(~pgd(model, x, y, eps=eps, steps=20).success)
    return told


PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "pairs": pairs, "ensembles": ensembles, "options": options, "substitute": bought, "training": training,
}  # fmt: skip


def measure(part: str, **case: Any) -> Mapping[str, Any]:
    """One row."""
    return PARTS[part](**case)


EXPERIMENT = Experiment(
    name="transfer",
    question="Whose adversarial examples fool whom, when nothing is shared, and when something is?",
    cases=[
        *({"part": "pairs", "eps": eps, "seed": seed} for eps in RADII for seed in SEEDS),
        *({"part": "pairs", "family": "sign", "eps": eps, "seed": seed} for eps in HAND_RADII for seed in SEEDS),
        *(
            {"part": "ensembles", "members": members, "goal": goal, "eps": eps, "steps": steps, "seed": seed}
            for goal, radii in (("untargeted", RADII), ("targeted", TARGETED_RADII))
            for eps in radii
            for members, steps in (
                *((members, 10) for members in SETS),
                *((kind, 40) for kind in HALVED if eps == radii[1]),
            )
            for seed in SEEDS
        ),
        *(
            {"part": "options", "members": members, "goal": goal, "eps": eps, "option": option, "seed": seed}
            for goal, eps in (("untargeted", 0.1), ("targeted", 0.2))
            for members in ("cnn", SETS[-1])
            for option in OPTIONS
            for seed in SEEDS
        ),
        *(
            {"part": "substitute", "oracle_of": name, "way": way, "rounds": rounds, "seed": seed}
            for name in ORACLES
            for way, rounds in (*((WAYS[0], r) for r in ROUNDS), *((way, ROUNDS[-1]) for way in WAYS[1:]))
            for seed in SEEDS
        ),
        *(
            {"part": "training", "kind": kind, "eps": eps, "seed": seed}
            for eps in RADII
            for kind in TRAININGS
            for seed in SEEDS
        ),
    ],
    measure=measure,
    n={"seeds of data, networks and images": len(SEEDS), "images per rate": IMAGES},
    seeds=SEEDS,
    data=["fashion", "sign_digits32"],
    nets=[
        f"{name}{again}"
        for again in ("", "-1", "-2")
        for name in (
            *(f"fashion_half_{name}" for name in CLOTHES),
            *(f"sign_half_{kind}_{half}" for half in "ab" for kind in HALVED_HANDS),
        )
    ],
    tolerance={"cosine": 0.02, "along": 0.02, "foreseen": 0.04, "labels": 0},
)

if __name__ == "__main__":
    EXPERIMENT.main()
