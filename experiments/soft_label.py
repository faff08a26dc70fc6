"""Chapter 09: success against queries for the attacks that see scores, what priors save, and what rounded scores cost.

All methods have the same budget of queries for each image, and stop there; a query is a row that the network was asked
about, the clean and the final one included. Their settings were chosen on 20 training images of each network, among
three to nine for each method, and are common to the networks; ADMM alone, whose weights have the unit of a slope,
has its own on each. The curves count images for which a point within ε had been found by so many queries. Attacks that
minimize a length do not say when that was, so they run once with each budget; a longer run starts as the shorter one.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import attacks, data
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim, predict
from robustlab.intervals import Rate

IMAGES, BUDGET, ENDLESS = 20, 2000, 10**6
GRID = (25, 50, 100, 200, 500, 1000, BUDGET)
FEWER = (100, 500, BUDGET)  # budgets of attacks that run once with each
RADIUS = {
    "fashion_cnn_adv": {"linf": 0.15, "l2": 2.0},
    "sign_cnn": {"linf": 0.05, "l2": 1.5},
    "fashion_cnn": {"linf": 0.05},
}
SMALL = {"mnist_mlp": 0.2, "fashion_mlp": 0.1, "mnist_cnn": 0.15}  # networks and their ε in ℓ∞
FEW, ZOO_STEPS = 4, 500  # images and steps of ZOO where it runs to its end
DIGITS, HEARD = (8, 2, 1), 500  # decimals of the scores that are told; queries of these runs
PAIR = ("fashion_cnn_adv", "sign_cnn")
LINF = ("nes", "bandits", "square", "query_reduction", "zo_svrg", "zo_signsgd", "zo_ngd")
SHORTEST = ("zoo", "autozoom", "zo_admm")  # minimize a length
L2 = ("nes", "bandits", "square", "query_reduction", "zo_svrg", "zo_signsgd", *SHORTEST)
OWN = {("zo_admm", "sign_cnn"): {"gamma": 3.0, "rho": 300.0, "alpha": 20.0}}
HALF = 1000  # queries of the sweeps
PIXELS, PAIRS = (1, 2, 4, 7, 14), (3, 10, 30, 100)  # a tile's side; antithetic pairs of NES in a round


@cache
def scene(net: str, draw: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and 20 of the test images that it reads correctly, others at each draw."""
    model = nets.load(net)[0]
    have = data.load("sign_digits32" if net.startswith("sign") else "fashion")
    right = (predict(model, have.x_test) == have.y_test).nonzero().flatten()
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    chosen = right[order[IMAGES * draw : IMAGES * (draw + 1)]]
    return model, have.x_test[chosen], have.y_test[chosen]


def settings(method: str, norm: str, eps: float, side: int, channels: int) -> dict[str, Any]:
    """What each method runs with, on all networks."""
    inf, d = norm == "linf", channels * side**2
    return {
        "nes": {"steps": ENDLESS, "q": 10},  # α = ε/5
        "bandits": {"steps": ENDLESS},
        "square": {"queries": BUDGET, "rescale": True},
        "query_reduction": {"steps": ENDLESS, "size": 32, "step_size": eps / 2.5},
        "zo_svrg": {"steps": ENDLESS, "step_size": eps / 5},
        "zo_signsgd": {"steps": ENDLESS, "step_size": eps / (10 if inf else 10 * d**0.5)},
        "zo_ngd": {"steps": ENDLESS, "lr": 30.0, "damping": 300.0},
        "zoo": {
            "steps": ENDLESS,
            "search_steps": 1,
            "batch": 16,
            "lr": 0.05,
            "c": 1.0,
            "abort_early": False,
            "tanh": False,
        },
        "autozoom": {"steps": ENDLESS, "lr": 0.005},
        "zo_admm": {"steps": ENDLESS},
    }[method]


def attacked(method: str, net: str, norm: str, draw: int, budget: int, **other: Any) -> AttackResult:
    """One attack with a budget."""
    model, x, y = scene(net, draw)
    eps = RADIUS[net][norm]
    how = settings(method, norm, eps, x.shape[2], x.shape[1]) | OWN.get((method, net), {}) | other
    if method not in SHORTEST:
        how["eps"] = eps
    victim = Victim(model, access="soft", budget=budget)
    result: AttackResult = getattr(attacks, method)(victim, x, y, norm=norm, seed=draw, **how)
    assert int(result.queries.max()) <= budget
    return result


def curve(method: str, net: str, norm: str, draw: int) -> dict[str, Any]:
    """The share fooled within ε by each number of queries."""
    if method not in SHORTEST:
        return told(attacked(method, net, norm, draw, BUDGET))
    shares = {}
    for budget in FEWER:
        try:
            near = attacked(method, net, norm, draw, budget).radius(norm) <= RADIUS[net][norm]
        except ValueError as error:  # not enough for one round
            assert "budget" in str(error)
            near = torch.zeros(IMAGES, dtype=torch.bool)
        shares[str(budget)] = Rate.of(near)
    return shares


def told(result: AttackResult, limit: int = BUDGET) -> dict[str, Any]:
    """The curve of an attack that stops at its first success, and the queries that it took."""
    spent = torch.where(result.success, result.first_success, ENDLESS).double()
    shares = {str(budget): Rate.of(spent <= budget) for budget in GRID if budget <= limit}
    won = spent[result.success]
    mean = round(float(won.mean()), 1) if len(won) else 0.0
    return shares | {"median": float(spent.clamp_max(limit).median()), "mean of successes": mean}


def swept(knob: str, value: int, net: str, draw: int) -> dict[str, Any]:
    """Bandits with tiles of so many pixels per side, or NES with so many pairs in a round, in ℓ∞."""
    if knob == "pixels":
        side = scene(net, draw)[1].shape[2]
        return told(attacked("bandits", net, "linf", draw, HALF, tiles=round(side / value)), HALF)
    return told(attacked("nes", net, "linf", draw, HALF, q=value), HALF)


class Rounded(nn.Module):
    """A network that tells its probabilities in so many decimals."""

    def __init__(self, model: nn.Module, digits: int) -> None:
        super().__init__()
        self.model, self.scale = model, 10**digits

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = (self.model(x).softmax(dim=1).double() * self.scale).round() / self.scale
        return told


def rounded(attack: str, digits: int, net: str, draw: int) -> dict[str, Any]:
    """The share fooled in ℓ∞ where scores are rounded; "nes, wide" differences over a twentieth of the box."""
    model, x, y = scene(net, draw)
    victim = Victim(Rounded(model, digits), access="soft", output="probs", budget=HEARD)
    eps, wide = RADIUS[net]["linf"], {"sigma": 0.05} if attack == "nes, wide" else {}
    if attack == "square":
        result = attacks.square(victim, x, y, eps=eps, queries=HEARD, rescale=True, seed=draw)
    else:
        result = attacks.nes(victim, x, y, eps=eps, q=10, steps=ENDLESS, seed=draw, **wide)
    return {"fooled": Rate.of(result.success)}


@cache
def small(net: str, draw: int, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of gray images, and a few that it reads correctly."""
    model = nets.load(net)[0]
    have = data.load("mnist5k" if net.startswith("mnist") else "fashion")
    right = (predict(model, have.x_test) == have.y_test).nonzero().flatten()[images * draw : images * (draw + 1)]
    return model, have.x_test[right], have.y_test[right]


def distance(net: str, draw: int) -> dict[str, Any]:
    """Mean ℓ2 of C&W, and of ZOO with the same objective from scores alone; queries until ZOO and AutoZOOM succeed."""
    victim, x, y = small(net, draw, FEW)
    same = {"c": 3.0, "search_steps": 1}
    white = attacks.cw(victim, x, y, steps=200, lr=0.05, **same)
    asked = attacks.zoo(victim, x, y, steps=ZOO_STEPS, lr=0.1, **same)
    low = attacks.autozoom(Victim(victim, access="soft", budget=2000), x, y, steps=ENDLESS, lr=0.1, c=3.0)
    both, first = white.success & asked.success, asked.success & low.success
    return {
        "cw": Rate.of(white.success), "zoo": Rate.of(asked.success), "autozoom": Rate.of(low.success),
        "ratio": _mean(asked.distances["l2"][both] / white.distances["l2"][both]),
        "zoo first": _mean(asked.first_success[first]), "autozoom first": _mean(low.first_success[first]),
    }  # fmt: skip


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 3) if len(values) else 0.0


def reduced(net: str, draw: int) -> dict[str, Any]:
    """Ten steps of finite differences: every pixel apart, or in random groups of eight; what each asks for."""
    victim, x, y = small(net, draw, 15)
    found = {}
    for reduction in ("none", "groups"):
        result = attacks.query_reduction(victim, x, y, eps=SMALL[net], reduction=reduction)
        found |= {reduction: Rate.of(result.success), f"{reduction} asked": _mean(result.queries)}
    return found


def paired(net: str, draw: int) -> dict[str, Any]:
    """ZO-signSGD by 20 one-sided differences a round, or by 10 central ones."""
    eps = RADIUS[net]["linf"]
    results = {
        name: attacked("zo_signsgd", net, "linf", draw, HALF, step_size=eps / 10, **how)
        for name, how in (("one-sided", {"q": 20}), ("pairs", {"q": 10, "pairs": True}))
    }
    return {name: Rate.of(result.success) for name, result in results.items()}


def measure(what: str, **case: Any) -> dict[str, Any]:
    """One row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "curve": curve, "sweep": swept, "rounded": rounded, "distance": distance, "reduced": reduced,
            "paired": paired,
        }[what](**case)  # fmt: skip


EXPERIMENT = Experiment(
    name="soft_label",
    question="How many queries do the attacks on scores need, what do priors save, and what does rounding cost them?",
    cases=[
        *(
            {"what": "curve", "method": method, "net": net, "norm": norm, "draw": draw}
            for norm, methods in (("linf", LINF), ("l2", L2))
            for method in methods
            for net in PAIR
            for draw in range(3)
        ),
        *(
            {"what": "sweep", "knob": knob, "value": value, "net": net, "draw": draw}
            for knob, values in (("pixels", PIXELS), ("pairs", PAIRS))
            for value in values
            for net in RADIUS
            for draw in range(3)
        ),
        *(
            {"what": "rounded", "attack": attack, "digits": digits, "net": net, "draw": draw}
            for attack in ("nes", "nes, wide", "square")
            for digits in DIGITS
            for net in RADIUS
            for draw in range(3)
        ),
        *(
            {"what": what, "net": net, "draw": draw}
            for what, names in (("distance", SMALL), ("reduced", SMALL), ("paired", RADIUS))
            for net in names
            for draw in range(3)
        ),
    ],
    measure=measure,
    n={"networks": 2, "networks of sweeps and rounding": 3, "draws": 3, "images of each": IMAGES, "queries": BUDGET},
    seeds=[0, 1, 2],
    data=["fashion", "mnist5k", "sign_digits32"],
    nets=sorted({*RADIUS, *SMALL}),
    tolerance={
        "median": 300,
        "mean of successes": 150,
        "ratio": 0.1,
        "zoo first": 3000,
        "autozoom first": 150,
        "none asked": 1500,
        "groups asked": 200,
    },  # rounding may let a row succeed rounds later
)

if __name__ == "__main__":
    EXPERIMENT.main()
