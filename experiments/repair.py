"""Chapter 16: what detectors see and repairs leave, on three networks of each kind and three draws of clean images.

The networks are the recipes of the zoo at seeds 1, 2 and 3: four backdoors, and four kinds of honest networks. Some
rows are of the shipped network with the square, which the chapter computes again. From draw to draw Neural Cleanse and
the data-limited detector have other clean images, STRIP other images and overlays, the data-free detector other noise.
Filters of training data are tried on four poisoned training sets, and the networks trained on these are also the other
ends of curves.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data, fit, models
from robustlab.attacker.results import Detection
from robustlab.attacker.victim import predict
from robustlab.attacks import PatchTrigger, badnets, evaluate_backdoor
from robustlab.attacks.backdoor.poisoned_dataset import PoisonedDataset
from robustlab.data import Dataset
from robustlab.defenses import (
    activation_clustering,
    fine_pruning,
    fine_tuning,
    mode_connectivity,
    neural_cleanse,
    spectral_signatures,
    strip,
    tnd_data_free,
    tnd_data_limited,
    unlearn,
)
from robustlab.defenses.detection.spectral_signatures import spectral_scores
from robustlab.intervals import Rate
from robustlab.models.probing import penultimate

BACKDOORS = ("mnist_badnets", "fashion_blended", "mnist_warped", "mnist_input_aware")
HONEST = ("mnist_cnn", "fashion_cnn", "mnist_resnet", "mnist_mlp")
SEEDS = (1, 2, 3)
TAMPERED = [f"{name}-{seed}" for name in BACKDOORS for seed in SEEDS]
CLEAN = [f"{name}-{seed}" for name in HONEST for seed in SEEDS]
SHIPPED = "mnist_badnets"
COMPARED = [*TAMPERED, *(name for name in CLEAN if not name.startswith("mnist_mlp"))]
REMEDIES = ("none", "fine-tuning", "fine-pruning", "unlearning", "unlearning, harder", "curve to copy")
CLEANSE = {"steps": 80, "patience": 3}
LIMITED = {"steps": 30, "searches": 3}
UNLEARN = {
    "unlearning": {"epochs": 5},
    "unlearning, harder": {"epochs": 10, "lr": 3e-3, "share": 0.5},  # chosen on mnist_badnets and mnist_badnets-2
}
CORNERS = {  # target of a poisoned training set: where its square is
    7: "top-left",
    0: "bottom-right",
    3: "top-right",
    5: "bottom-left",
}
PLACES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)  # on a curve

Result = dict[str, Any]


def images(net: str) -> Dataset:
    """The data set that a network was trained on."""
    return data.load("mnist5k" if net.startswith("mnist") else "fashion")


@cache
def cleansed(net: str, draw: int) -> Detection[Any]:
    """Neural Cleanse on 15 images."""
    return neural_cleanse(nets.load(net)[0], images(net).x_test[15 * draw : 15 * draw + 15], **CLEANSE)


def cleanse(net: str, draw: int) -> Result:
    """Its index for each class, how many searches have converged, and how much of the mask to 0 is in the corner."""
    found = cleansed(net, draw)
    mask = found.details.masks[0, 0]
    inside = float(mask[24:27, 24:27].sum() / mask.sum())
    return {"index": rounded(found.scores), "converged": int(found.details.converged.sum()), "inside": round(inside, 3)}


def limited(net: str, draw: int) -> Result:
    """The data-limited statistic of each class, from one image of each."""
    part = slice(10 * draw, 10 * draw + 10)
    have = images(net)
    return {
        "cosine": rounded(tnd_data_limited(nets.load(net)[0], (have.x_test[part], have.y_test[part]), **LIMITED).scores)
    }


def free(net: str, draw: int) -> Result:
    """The data-free rise of each class's logit, for two weights of the masks."""
    model = nets.load(net)[0]
    rises = {weight: tnd_data_free(model, steps=50, sparsity=weight, seed=draw).scores for weight in (0.1, 0.01)}
    return {f"rise, {weight}": rounded(scores) for weight, scores in rises.items()}


def stripped(net: str, draw: int) -> Result:
    """The shares of triggered and of clean images that STRIP rejects, 200 of each, at 5 % by 200 others."""
    (model, trigger), have = nets.load(net), images(net)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(draw))
    held, new, over = (have.x_test[part] for part in order[:600].split(200))
    asked = torch.cat([new, stamped(trigger, new)])
    flagged = strip(model, asked, held, laid_over=over, overlays=10, rejection_rate=0.05).flagged
    return {"clean": Rate.of(flagged[:200]), "caught": Rate.of(flagged[200:])}


def judged(net: str) -> Result:
    """What is left of the patch that was unlearned, and of the attacker's trigger, after doses of unlearning."""
    (model, trigger), have, found = nets.load(net), images(net), cleansed(net, 0)
    x, y = have.x_test[500:1000], have.y_test[500:1000]
    x = x[y != 0]
    mask, pattern = found.details.masks[0], found.details.patterns[0]
    judges = {"patch": (1 - mask) * x + mask * pattern, "trigger": stamped(trigger, x)}
    result: Result = {}
    for dose, arguments in {"none": None, "one epoch": {"epochs": 1}, **UNLEARN}.items():
        after = model
        if arguments is not None:
            after = unlearn(model, (have.x_test[:500], have.y_test[:500]), found, **arguments).model
        result |= {f"{judge}, {dose}": Rate.of(predict(after, z) == 0) for judge, z in judges.items()}
    return result


def repaired(net: str, remedy: str) -> Result:
    """Clean accuracy, attack success without class 0, and accuracy with the trigger, on 500 images after a repair."""
    (model, trigger), have = nets.load(net), images(net)
    pair = (have.x_test[:500], have.y_test[:500])
    x, y = have.x_test[500:1000], have.y_test[500:1000]
    flagged = cleansed(net, 0).flagged.nonzero().flatten().tolist() if remedy in UNLEARN else []
    if remedy in UNLEARN and not flagged:
        return {"flagged": []}  # nothing to unlearn
    if remedy == "fine-tuning":
        model = fine_tuning(model, pair, epochs=10).model
    elif remedy == "fine-pruning":
        model = fine_pruning(model, pair, tolerance=0.1, epochs=10).model
    elif remedy in UNLEARN:
        model = unlearn(model, pair, cleansed(net, 0), **UNLEARN[remedy]).model
    elif remedy == "curve to copy":
        copied = fine_tuning(model, pair, epochs=10).model
        model = mode_connectivity(model, pair, other=copied, points=2, epochs=20).details.curve.at(0.5, pair[0])
    said = predict(model, stamped(trigger, x[y != 0]))
    rates = {
        "clean": Rate.of(predict(model, x) == y),
        "attack": Rate.of(said == 0),
        "triggered": Rate.of(said == y[y != 0]),
    }
    return rates | ({"flagged": flagged} if flagged else {})


@cache
def poisoned(target: int) -> PoisonedDataset:
    """4,000 digits, 3 % of them with a white square in a corner and the target's label."""
    trigger = PatchTrigger(position=CORNERS[target])
    return badnets(data.load("mnist5k"), target=target, rate=0.03, trigger=trigger)


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A network of the architecture of `mnist_badnets`."""
    model = models.build("small_cnn", hidden=80, mean=0.1307, std=0.3081, seed=seed)
    fit(model, (x, y), epochs=12, lr=3e-3, seed=seed)
    return model.eval()


@cache
def victim(target: int) -> nn.Module:
    """The network trained on a poisoned training set."""
    return trained(*poisoned(target).data, seed=0)


def filtered(target: int) -> Result:
    """What filters find in the class of the target, and what a fresh network has learned from the rest."""
    bad, net = poisoned(target), victim(target)
    (x, y), own = bad.data, bad.data[1] == target
    truth = bad.is_poison[own]
    features, share = penultimate(net, x[own]).double(), float(truth.double().mean())
    raw = (features @ torch.linalg.svd(features, full_matrices=False)[2][0]).square()
    shift = features[truth].mean(dim=0) - features[~truth].mean(dim=0)
    result: Result = {
        "centered": area(spectral_scores(features)[0], truth),
        "raw": area(raw, truth),
        "share": round(share, 3),
        "adds": round(share * (1 - share) * float(shift.square().sum()), 2),
        "honest": round(float(torch.linalg.norm(torch.cov(features[~truth].T), 2)), 2),
        "attack, none": evaluate_backdoor(net, data.load("mnist5k"), bad.trigger, target).attack_success,
    }
    flags = {
        "spectral": spectral_signatures(net, bad.data, rate=share).flagged,
        "clustering": activation_clustering(net, bad.data).flagged,
    }
    flags["chance"] = at_random(flags["spectral"], y)  # the same number of each class
    for name, flagged in flags.items():
        fresh = trained(x[~flagged], y[~flagged], seed=1)
        report = evaluate_backdoor(fresh, data.load("mnist5k"), bad.trigger, target)
        result |= {
            f"found, {name}": round(float(flagged[bad.is_poison].double().mean()), 3),
            f"lost, {name}": round(float(flagged[~bad.is_poison].double().mean()), 3),
            f"attack, {name}": report.attack_success,
            f"clean, {name}": report.clean_accuracy,
        }
    return result


def at_random(flagged: Tensor, y: Tensor) -> Tensor:
    """As many flags in each class, at random."""
    again = flagged.clone()
    order = torch.Generator().manual_seed(0)
    for k in y.unique().tolist():
        rows = (y == k).nonzero().flatten()
        again[rows] = flagged[rows][torch.randperm(len(rows), generator=order)]
    return again


def area(scores: Tensor, is_poison: Tensor) -> float:
    """The chance that poison outscores an honest sample."""
    return round(Detection(scores, scores > 0, 0.0).score(is_poison)["auroc"], 3)


def connected(net: str, target: int) -> Result:
    """Clean accuracy and both backdoors along a curve to a network with another backdoor, on 500 images, in shares."""
    (model, trigger), have = nets.load(net), images(net)
    known, test = (have.x_test[:500], have.y_test[:500]), (have.x_test[500:], have.y_test[500:])
    curve = mode_connectivity(model, known, other=victim(target), points=2, epochs=20).details.curve
    on_way = [curve.at(s, known[0]) for s in PLACES]
    first = [evaluate_backdoor(m, test, trigger, 0) for m in on_way]
    last = [evaluate_backdoor(m, test, poisoned(target).trigger, target) for m in on_way]
    rates = {
        "clean": [r.clean_accuracy for r in first],
        "first": [r.attack_success for r in first],
        "last": [r.attack_success for r in last],
    }
    shares = {name: [round(float(rate), 4) for rate in several] for name, several in rates.items()}
    return shares | {f"halfway, {name}": several[PLACES.index(0.5)] for name, several in shares.items()}


def stamped(trigger: nn.Module | None, x: Tensor) -> Tensor:
    """Images with the trigger."""
    assert trigger is not None
    with torch.no_grad():
        return trigger(x)


def rounded(scores: Tensor) -> list[float]:
    """As the table holds them."""
    return [round(score, 3) for score in scores.double().tolist()]


def measure(what: str, **case: Any) -> Result:
    """One row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that has not converged: the row says so
        return MEASURES[what](**case)


MEASURES = {
    "cleanse": cleanse, "limited": limited, "free": free, "strip": stripped, "repair": repaired, "filter": filtered,
    "curve": connected, "judge": judged,
}  # fmt: skip


EXPERIMENT = Experiment(
    name="repair",
    question="Which backdoors do detectors see, how often do they flag honest models, and what does a repair leave?",
    cases=[
        *({"what": "repair", "net": net, "remedy": remedy} for net in (SHIPPED, *TAMPERED) for remedy in REMEDIES),
        *({"what": what, "net": SHIPPED, "draw": 0} for what in ("cleanse", "strip", "limited", "free")),
        *({"what": "strip", "net": net, "draw": draw} for net in TAMPERED for draw in range(3)),
        *({"what": "cleanse", "net": net, "draw": 0} for net in CLEAN),
        *({"what": "cleanse", "net": net, "draw": draw} for draw in range(3) for net in TAMPERED),
        *({"what": "filter", "target": target} for target in CORNERS),
        *({"what": "curve", "net": net, "target": 7} for net in (SHIPPED, *TAMPERED[:3])),
        *({"what": "judge", "net": net} for net in (SHIPPED, *TAMPERED) if not net.startswith("mnist_warped")),
        *(
            {"what": what, "net": net, "draw": draw}
            for what in ("limited", "free")
            for draw in range(3)
            for net in COMPARED
        ),
    ],
    measure=measure,
    n={"networks of each backdoor": 3, "honest networks": 12, "draws": 3, "poisoned training sets": 4, "images": 500},
    seeds=[0, *SEEDS],
    data=["mnist5k", "fashion"],
    nets=sorted({SHIPPED, *TAMPERED, *CLEAN}),
    tolerance={
        "index": 0.5,
        "converged": 1,
        "inside": 0.1,
        "cosine": 0.1,
        "rise, 0.1": 1,
        "rise, 0.01": 1,
        # networks that are trained again
        "centered": 0.2,
        "raw": 0.2,
        "adds": 25,
        "honest": 25,
        "found, clustering": 0.1,
        "lost, clustering": 0.1,
        "found, spectral": 0.25,
        "lost, spectral": 0.05,
        "clean": 0.05,
        "first": 0.4,
        "last": 0.4,
        "halfway, clean": 0.03,
        "halfway, first": 0.15,
        "halfway, last": 0.15,
    },
)

if __name__ == "__main__":
    EXPERIMENT.main()
