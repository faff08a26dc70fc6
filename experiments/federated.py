"""Chapter 05: what one or four malicious clients do to a model that many clients train together, and what stops them.

Clothes (2,000 pictures) and photographs of hands are divided among 16 clients by Dirichlet draws (α = 1), of whom
twelve take part in a round. The global model has had thirty honest rounds, the last ten and all that follow at a
smaller rate. *By round*: main and backdoor accuracy after each of ten rounds; the attack comes in the second, or from
the second on. *Rules*: the twelve updates of one round under an attack, merged by six aggregators. Those called
bounded know the server's bound; the four pool their data, send the same, and share γ; :mod:`experiments.bounded` lets
them come again. *Parts*: DBA's four clients with a bar of the trigger each, against one client with the whole trigger
(as many pixels) and four with the whole (as many clients), unscaled in each round; and one client with the whole,
scaled, once. *Chosen*: model poisoning for one chosen picture in each of eight rounds, and how sure the global model
then is of the wrong label. *Heterogeneity*: ten clients of a new model, two of them with poison, for fifteen rounds;
when the poison comes, and on whose data. *Hidden*: how often an update with poison is farther than an honest one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.record import Experiment
from robustlab import data, models
from robustlab.attacker.victim import predict
from robustlab.attacks import (
    FourBars,
    distributed_backdoor,
    evaluate_backdoor,
    heterogeneity,
    model_poisoning,
    model_replacement,
    watch_backdoor,
)
from robustlab.attacks.backdoor.trigger import stamped
from robustlab.attacks.federated.malicious_update import MixedBatches
from robustlab.defenses import coordinate_median, krum, multi_krum, norm_clipping, trimmed_mean
from robustlab.training.clients import Client, LocalTraining, Turn, local_update
from robustlab.training.federated import Federation, simulate
from robustlab.training.splits import dirichlet_split
from robustlab.training.updates import Delta
from robustlab.zoo.recipes import NORMALIZATION

SEEDS, MORE = (0, 1, 2), (0, 1, 2, 3, 4, 5)
SETS = {"clothes": ("fashion", 2000), "hands": ("sign_digits32", 1647)}
BARS = {"clothes": (4, 2), "hands": (6, 3)}  # size and gap, the paper's for digits and for color
CLIENTS, SELECTED, ALPHA, TARGET, TESTED = 16, 12, 1.0, 8, 400
LOCAL = LocalTraining(epochs=2, batch_size=32, lr=0.05)
LATE = LocalTraining(epochs=2, batch_size=32, lr=0.01)  # near convergence
POISON: dict[str, Any] = {"target": TARGET, "batch_size": 32, "per_batch": 10}
REPLACE: dict[str, Any] = {"epochs": 20, "lower_every": 8}
BEFORE, ROUNDS, FIRST = (20, 10), 10, 1

Pair = tuple[Tensor, Tensor]
Seen = dict[str, float]


@cache
def pictures(of: str) -> tuple[Pair, Pair]:
    """Training and test pictures."""
    name, n = SETS[of]
    have = data.load(name)
    return (have.x_train[:n], have.y_train[:n]), (have.x_test[:TESTED], have.y_test[:TESTED])


@cache
def chosen_pictures(of: str) -> Tensor:
    """Test pictures of other classes, of which no accuracy is taken."""
    have = data.load(SETS[of][0])
    x, y = have.x_test[TESTED:], have.y_test[TESTED:]
    return x[y != TARGET][:3]


def network(of: str, seed: int) -> nn.Module:
    """A small network that has seen nothing yet."""
    shape = tuple(pictures(of)[0][0].shape[1:])
    how: dict[str, Any] = {"in_shape": shape, "channels": (8, 16), "hidden": 32, "seed": seed}
    return models.build("small_cnn", **how, **NORMALIZATION[SETS[of][0]])


def trigger(of: str) -> FourBars:
    """The paper's four bars."""
    return FourBars(BARS[of][0], gap=BARS[of][1])


@cache
def divided(of: str, seed: int) -> list[Pair]:
    """Each client's own pictures."""
    x, y = pictures(of)[0]
    return [(x[own], y[own]) for own in dirichlet_split(y, CLIENTS, alpha=ALPHA, seed=seed, at_least=16)]


@cache
def converged(of: str, seed: int) -> nn.Module:
    """The global model after honest rounds, the last of them at a smaller rate."""
    team, model = [Client(own) for own in divided(of, seed)], network(of, seed)
    for rounds, honest in zip(BEFORE, (LOCAL, LATE), strict=True):
        model = simulate(model, team, rounds=rounds, selected=SELECTED, honest=honest, seed=seed).model
    return model.eval()


def attacked(
    of: str, seed: int, bad: Mapping[int, Any], when: Mapping[int, list[int]], rounds: int, **how: Any
) -> Federation[Seen]:
    """A run from the converged model in which clients of these numbers do something else in these rounds."""
    team = [Client(own, bad.get(i)) for i, own in enumerate(divided(of, seed))]
    told: dict[str, Any] = {"on_round": watch_backdoor(pictures(of)[1], trigger(of), TARGET)} | how
    run: Any = {"selected": SELECTED, "honest": LATE, "schedule": when, "seed": 100 + seed}
    return simulate(converged(of, seed), team, rounds=rounds, **run, **told)


def curves(run: Federation[Seen], goal: str = "backdoor") -> dict[str, list[float]]:
    """Accuracies after each round."""
    return {
        "main": [round(seen["main"], 3) for seen in run.monitor],
        "backdoor": [round(seen[goal], 3) for seen in run.monitor],
    }


def replacing(model: nn.Module, own: Pair, turn: Turn, /, *, of: str, **how: Any) -> Delta:
    """Model replacement; ``weight=1`` leaves the update as it is."""
    told = {"weight": turn.weight, "colluders": turn.colluders, "seed": turn.seed, "alpha": 0.7}
    return model_replacement(model, own, trigger=trigger(of), **POISON, **(REPLACE | told | how)).delta


def with_a_part(model: nn.Module, own: Pair, turn: Turn, /, *, of: str, part: int | None, once: bool) -> Delta:
    """DBA, or with ``part=None`` the whole trigger."""
    size, gap = BARS[of]
    told: dict[str, Any] = {"weight": turn.weight, "single_shot": once, "seed": turn.seed}
    told |= {"size": size, "gap": gap, "epochs": REPLACE["epochs"] if once else 10}
    return distributed_backdoor(model, own, part=part, **told, **POISON).delta


def for_chosen(model: nn.Module, own: Pair, turn: Turn, /, *, chosen: Tensor, strategy: Any) -> Delta:
    """Model poisoning for one chosen picture."""
    told: dict[str, Any] = {"weight": turn.weight, "reference": turn.previous, "seed": turn.seed, "batch_size": 32}
    return model_poisoning(model, own, chosen, target=TARGET, strategy=strategy, **told).delta


class Pooled:
    """Colluders who put their data together and send the same update, trained once per round."""

    def __init__(self, of: str, seed: int, team: range, **how: Any) -> None:
        parts = [divided(of, seed)[i] for i in team]
        self.data = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
        self.of, self.how, self.sent = of, how, dict[int, Delta]()

    def __call__(self, model: nn.Module, own: Pair, turn: Turn, /) -> Delta:
        """The same for all of them."""
        if turn.round not in self.sent:
            self.sent[turn.round] = replacing(model, self.data, turn, of=self.of, **self.how)
        return self.sent[turn.round]


def by_round(set: str, attack: str, seed: int) -> Mapping[str, Any]:
    """Main and backdoor accuracy after each round."""
    own_model: Any = partial(replacing, of=set)
    plans: dict[str, tuple[dict[int, Any], dict[int, list[int]]]] = {
        "none": ({}, {}),
        "unscaled": ({0: partial(own_model, weight=1.0, colluders=1)}, {FIRST: [0]}),
        "replacement": ({0: own_model}, {FIRST: [0]}),
        "unconstrained": ({0: partial(own_model, alpha=1.0)}, {FIRST: [0]}),
        "DBA": (
            {i: partial(with_a_part, of=set, part=i, once=True) for i in range(4)},
            {FIRST + i: [i] for i in range(4)},
        ),
    }
    bad, when = plans[attack]
    run = attacked(set, seed, bad, when, ROUNDS)
    if not when:
        return curves(run)
    place = run.selected[FIRST].index(0)
    honest = [norm for i, norm in enumerate(run.norms[FIRST]) if i != place]
    return curves(run) | {"sent": round(run.norms[FIRST][place], 2), "largest honest": round(max(honest), 2)}


def chosen(set: str, strategy: str, seed: int) -> Mapping[str, Any]:
    """Main accuracy, and the probability of the wrong label at one chosen picture."""
    x_t = chosen_pictures(set)[seed : seed + 1]
    x, y = pictures(set)[1]

    def sure(number: int, model: nn.Module) -> Seen:
        main = float((predict(model, x) == y).double().mean())
        return {"main": main, "chosen": float(model(x_t).softmax(dim=1)[0, TARGET])}

    bad = {0: partial(for_chosen, chosen=x_t, strategy=strategy)}
    run = attacked(set, seed, bad, {number: [0] for number in range(8)}, 8, on_round=sure)
    found = curves(run, "chosen")
    return {"main": found["main"], "probability": found["backdoor"], "sent": round(run.norms[0][0], 2)}


def parts(set: str, who: str, shots: str, seed: int) -> Mapping[str, Any]:
    """The trigger in four parts or whole; "once" by one client in the last round in which DBA comes once."""
    split, team = who == "a part each", 1 if who == "one client" else 4
    if shots == "once":
        shot = {0: partial(with_a_part, of=set, part=None, once=True)}
        return curves(attacked(set, seed, shot, {FIRST + 3: [0]}, ROUNDS))
    bad = {i: partial(with_a_part, of=set, part=i if split else None, once=False) for i in range(team)}
    when = {number: list(range(team)) for number in range(FIRST, 7)}
    return curves(attacked(set, seed, bad, when, 7))


def uneven(set: str, alpha: float, timing: str, whose: str, seed: int) -> Mapping[str, Any]:
    """A backdoor of two in ten clients of a new model, without scaling."""
    when: Any = {"timing": timing, "poison_on": whose, "share": 0.3, "rounds": 15, "local": LOCAL}
    test, key = pictures(set)[1], trigger(set)
    found = heterogeneity(
        pictures(set)[0], model=network(set, seed), test=test, target=TARGET, values=(alpha,), trigger=key, seed=seed,
        **when,
    )  # fmt: skip
    seen = {"main": found.main[0], "backdoor": found.backdoor[0]}
    return {"index": round(float(found.index[0]), 3)} | {
        name: [round(v, 3) for v in values.tolist()] for name, values in seen.items()
    }


def hidden(set: str, alpha: float, seed: int) -> Mapping[str, Any]:
    """How often an update with poison is farther than an honest one: from the median of all, and from 0."""
    x, y = pictures(set)[0]
    rows = dirichlet_split(y, 10, alpha=alpha, seed=seed, at_least=2)

    def poisoned(model: nn.Module, own: Pair, turn: Turn, /) -> Delta:
        if not bool((own[1] != TARGET).any()):
            return LOCAL(model, own, turn)
        objective = MixedBatches(stamped(trigger(set), own[0][own[1] != TARGET]), TARGET, share=0.3)
        return local_update(model, own, seed=turn.seed, objective=objective, **vars(LOCAL))

    sent: list[Tensor] = []

    def noting(updates: Tensor) -> Tensor:
        sent.append(updates)
        return updates.mean(dim=0)

    team = [Client((x[own], y[own]), poisoned if i < 2 else None) for i, own in enumerate(rows)]
    simulate(network(set, seed), team, rounds=8, honest=LOCAL, rule=noting, seed=seed)

    def farther(far: list[Tensor]) -> float:
        return round(float(torch.stack([(d[:2, None] > d[None, 2:]).double().mean() for d in far]).mean()), 3)

    last = sent[2:]
    return {
        "by distance": farther([(u - coordinate_median(u)).norm(dim=1) for u in last]),
        "by length": farther([u.norm(dim=1) for u in last]),
    }


@cache
def bound(of: str, seed: int) -> float:
    """The server's: the median length of honest updates to the converged model."""
    return float(torch.tensor(attacked(of, seed, {}, {}, 1).norms[0]).median())


def aggregators(of: str, seed: int) -> Mapping[str, Any]:
    """By name."""
    return {
        "mean": partial(torch.mean, dim=0),
        "Krum": partial(krum, f=4),
        "multi-Krum": partial(multi_krum, f=4),
        "median": coordinate_median,
        "trimmed mean": partial(trimmed_mean, f=4),
        "clipping": partial(norm_clipping, bound=bound(of, seed), sigma=0.002),
    }


def rules(set: str, attack: str, seed: int) -> Mapping[str, Any]:
    """One round under an attack, whose twelve updates each aggregator merges: main and backdoor accuracy after it."""
    S, x_t, four = bound(set, seed), chosen_pictures(set)[seed : seed + 1], range(4)
    plans: Mapping[str, dict[int, Any]] = {
        "none": {},
        "replacement": {0: partial(replacing, of=set)},
        "poisoning": {0: partial(for_chosen, chosen=x_t, strategy="boosting")},
        "DBA": {i: partial(with_a_part, of=set, part=i, once=False) for i in four},
        "bounded, one": {0: partial(replacing, of=set, bound=S)},
        "bounded, four": dict.fromkeys(four, Pooled(set, seed, four, bound=S)),
    }
    sent: list[Tensor] = []

    def noting(updates: Tensor) -> Tensor:
        sent.append(updates)
        return updates.mean(dim=0)

    attacked(set, seed, plans[attack], {0: list(plans[attack])}, 1, rule=noting)
    told: dict[str, Any] = {}
    for name, rule in aggregators(set, seed).items():
        new = moved(converged(set, seed), rule(sent[0]))
        report = evaluate_backdoor(new, pictures(set)[1], trigger(set), TARGET)
        told[f"{name}, main"] = report.clean_accuracy
        told[f"{name}, backdoor"] = report.attack_success
        if attack == "poisoning":
            told[f"{name}, chosen"] = round(float(new(x_t).softmax(dim=1)[0, TARGET]), 3)
    return told


@torch.no_grad()
def moved(model: nn.Module, by: Tensor) -> nn.Module:
    """A copy of the model, its parameters moved by a vector, of which they come first."""
    new, sizes = copy.deepcopy(model), [p.numel() for p in model.parameters()]
    for p, part in zip(new.parameters(), by[: sum(sizes)].split(sizes), strict=True):
        p.add_(part.reshape(p.shape).to(p))
    return new.requires_grad_(False)


PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "by round": by_round,
    "chosen": chosen,
    "parts": parts,
    "heterogeneity": uneven,
    "hidden": hidden,
    "rules": rules,
}
ATTACKS = ("none", "unscaled", "replacement", "unconstrained", "DBA")
WHO = ("a part each", "one client", "four clients")
ALPHAS = (100.0, 0.5, 0.1)
AGAINST = ("none", "replacement", "poisoning", "DBA", "bounded, one", "bounded, four")


def measure(part: str, **case: Any) -> Mapping[str, Any]:
    """One row."""
    return PARTS[part](**case)


def cases(
    part: str, sets: Iterable[str] = tuple(SETS), seeds: tuple[int, ...] = SEEDS, **varied: tuple[Any, ...]
) -> list[dict[str, Any]]:
    """All combinations."""
    rows: list[dict[str, Any]] = [{"part": part, "set": name} for name in sets]
    for key, values in (*varied.items(), ("seed", seeds)):
        rows = [{**row, key: value} for row in rows for value in values]
    return rows


EXPERIMENT = Experiment(
    name="federated",
    question="What do one or four malicious clients do to a model that many train, and what stops them?",
    cases=[
        *cases("by round", attack=ATTACKS),
        *cases("rules", attack=AGAINST),
        *cases("parts", who=WHO, shots=("each round",)),
        *cases("parts", who=("one client",), shots=("once",)),
        *cases("chosen", strategy=("boosting", "alternating")),
        *cases("heterogeneity", ("clothes",), MORE, alpha=ALPHAS, timing=("spread",), whose=("own",)),
        *cases("heterogeneity", ("clothes",), MORE, alpha=ALPHAS[::2], timing=("last",), whose=("own",)),
        *cases("heterogeneity", ("clothes",), MORE, alpha=ALPHAS[2:], timing=("spread",), whose=("even",)),
        *cases("hidden", ("clothes",), alpha=ALPHAS),
    ],
    measure=measure,
    n={"divisions": 3, "of uneven clients": 6, "test pictures": TESTED, "clients": CLIENTS, "in a round": SELECTED},
    seeds=MORE,
    data=["fashion", "sign_digits32"],
    # Thirty rounds and more of descent, rounded otherwise.
    tolerance={"main": 0.1, "backdoor": 0.35, "probability": 0.5, "sent": 4.0, "largest honest": 0.5, "index": 0.01,
               "by distance": 0.15, "by length": 0.15},
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
