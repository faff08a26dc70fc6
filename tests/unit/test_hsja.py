"""HopSkipJumpAttack: its estimate against theory, its distances against exact optima, its schedule as in the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustlab.attacker.live import Live
from robustlab.attacker.victim import Victim
from robustlab.attacks import hsja
from robustlab.attacks.hardlabel.boundary_search import Search
from robustlab.attacks.hardlabel.hsja import _normal
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, Counting
from tests.suite.oracles import affine_problem, free_optimum, solver_optimum
from tests.suite.test_success import Recording

CPU = torch.device("cpu")
WIDE = (-3.0, 3.0)


def plane(d: int, seed: int = 0) -> tuple[Affine, Tensor]:
    """Class 1 where ⟨w, x⟩ > 0, and w of length 1."""
    w = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w /= w.norm()
    return Affine(torch.stack([-w, w]), torch.zeros(2, dtype=torch.float64)), w


def estimates(
    n: int, d: int, evals: int, offset: float = 0.0, delta: float = 1.0, bounds: tuple[float, float] = (-50.0, 50.0)
) -> tuple[Tensor, Tensor]:
    """n estimates (n, d) of the normal, from points at ``offset`` from a hyperplane, and the true normal."""
    model, w = plane(d)
    x = (-1 * w).expand(n, d).contiguous()
    with Victim(model, bounds=bounds, access="hard").session(x, access="hard") as session:
        search = Search(session, get_norm("l2"), seed=0)
        live: Live = session.live(noise=session.noise(1))
        live.points = (offset * w).expand(n, d).contiguous()
        live.delta = torch.full((n,), delta, dtype=torch.float64)
        return _normal(search, live, 1, evals, uniform=False), w


def mean_of_one(d: int) -> float:
    """E|⟨u, w⟩| for u uniform on the unit sphere of R^d."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


@pytest.mark.parametrize(("d", "evals"), [(20, 100), (200, 50), (200, 400)])
def test_cosine_at_the_boundary_is_that_of_theory(d: int, evals: int) -> None:
    """Signs of B uniform directions: along w their sum is m·c, across it √(m·(1 − c²)), m = B − 1 with the baseline."""
    found, w = estimates(150, d, evals)
    cosine = (found @ w) / found.norm(dim=1)
    m, c = evals - 1, mean_of_one(d)
    theory = m * c / math.sqrt((m * c) ** 2 + m * (1 - c * c))
    error = 4 * float(cosine.std()) / math.sqrt(len(cosine))
    assert abs(float(cosine.mean()) - theory) < error + 0.004, (float(cosine.mean()), theory)
    assert error < 0.02


def test_baseline_helps_off_the_boundary_and_one_sided_labels_still_give_a_direction() -> None:
    """Near δ·c from it almost all labels are equal, beyond δ all: then the mean of the directions is left."""
    d, evals = 50, 200
    near, w = estimates(300, d, evals, offset=0.15)
    cosine = float(((near @ w) / near.norm(dim=1)).mean())
    noise = torch.randn(300, evals, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u = noise / noise.norm(dim=2, keepdim=True)
    phi = 2 * ((u @ w) + 0.15 > 0).double() - 1
    plain = torch.einsum("nb,nbd->nd", phi, u)
    assert cosine > float(((plain @ w) / plain.norm(dim=1)).mean()) + 0.05
    beyond, before = estimates(3, d, evals, offset=1.5)[0], estimates(3, d, evals, offset=-1.5)[0]
    torch.testing.assert_close(beyond, -before)
    assert bool((beyond.norm(dim=1) > 0.5 * math.sqrt(evals)).all())


def test_directions_that_are_clipped_away_leave_the_point_where_it_is() -> None:
    """In one dimension at the end of the box, half of the samples draw a direction that leads out of it."""
    x = torch.zeros(40, 1, dtype=torch.float64)
    model = Affine(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.0, -1 + 1e-12], dtype=torch.float64))
    seen = Counting(model)
    result = hsja(Victim(seen, access="hard"), x, init=torch.ones_like(x), init_evals=1, steps=6)
    assert bool(result.success.all()) and torch.equal(result.x_adv, torch.ones_like(x))
    assert seen.forwards == int(result.queries.sum())


def test_directions_count_as_they_were_asked_about() -> None:
    """In the corner of a box: Σ (φ_b − mean φ)·(z_b − x_t)/δ over the points z_b that the model saw."""
    model, w = plane(6)
    seen = Recording(model)
    x = torch.full((1, 6), 0.1, dtype=torch.float64)
    with Victim(seen, bounds=(0.0, 1.0), access="hard").session(x, access="hard") as session:
        live = session.live(noise=session.noise(1))
        live.points, live.delta = torch.zeros_like(x), torch.full((1,), 0.3, dtype=torch.float64)
        found = _normal(Search(session, get_norm("l2"), seed=0), live, 1, 30, uniform=False)
    z = seen.points[-1]
    phi = 2 * ((z @ w > 0) == (x[0] @ w <= 0)).double() - 1
    assert float(z.min()) == 0 and phi.unique().numel() == 2
    torch.testing.assert_close(found[0], ((phi - phi.mean())[:, None] * z / 0.3).sum(0))


# Distances -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 5])
def test_within_six_percent_of_the_optimum_after_3000_queries(norm: str, classes: int) -> None:
    model, x, y = affine_problem(classes, 30, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, norm)
    x, y, best = (part[best < 1.9] for part in (x, y, best))
    result = hsja(Victim(model, bounds=WIDE, access="hard", budget=3000), x, y, norm=norm)
    ratio = result.radius(norm) / best
    assert float(ratio.median()) <= 1.06 and bool((ratio >= 1 - 1e-9).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_within_six_percent_of_the_solver_where_the_box_is_active(norm: str) -> None:
    model, x, _ = affine_problem(2, 16, 8, CPU, spread=1.0)
    x, box = x.sign() * x.abs() ** 0.25, (-1.0, 1.0)  # nearer to the corners
    with torch.no_grad():
        y = model(x).argmax(1)
    best, free = solver_optimum(model, x, y, norm, box), free_optimum(model, x, y, norm)
    x, y, best, free = (part[best.isfinite()] for part in (x, y, best, free))
    assert int((best > 1.01 * free).sum()) >= 3, "the box is in nobody's way"
    result = hsja(Victim(model, bounds=box, access="hard", budget=3000), x, y, norm=norm, init=_far(model, y))
    ratio = result.radius(norm) / best
    assert float(ratio.median()) <= 1.06 and bool((ratio >= 1 - 1e-6).all())


def _far(model: Affine, y: Tensor) -> Tensor:
    """The corner of [−1, 1]^d at which two classes are farthest on the other side."""
    return (model.weight[1 - y] - model.weight[y]).sign().detach()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_targeted_within_six_percent_of_the_solver(norm: str) -> None:
    model, x, y = affine_problem(3, 9, 8, CPU, spread=1.0)
    target = (y + 1) % 3
    best = solver_optimum(model, x, y, norm, WIDE, target)
    pool = 6 * noise_box(80, (8,), torch.float64) - 3
    with torch.no_grad():
        label = model(pool).argmax(1)
    victim = Victim(model, bounds=WIDE, access="hard", budget=4000)
    result = hsja(victim, x, y, norm=norm, target=target, pool=(pool, label))
    ratio = (result.radius(norm) / best)[best.isfinite()]
    assert float(ratio.median()) <= 1.06 and bool((ratio >= 1 - 1e-6).all())


# The schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_directions_grow_with_the_root_of_the_round_and_are_as_long_as_the_paper_says(norm: str) -> None:
    """Told from the questions: 100·√t rows at δ_t from a point; δ_1 = 0.1·width, then √d·θ·dist or d·θ·dist."""
    d = 64
    model, w = plane(d)
    x = (-1.0 * w).unsqueeze(0)
    seen = Recording(model)
    init = 1.0 * w + 0.3 * torch.ones(d).double()
    hsja(Victim(seen, bounds=(-3.0, 3.0), access="hard"), x, norm=norm, steps=5, init=init[None])
    rounds = [points for points in seen.points if len(points) > 1]
    assert [len(points) for points in rounds] == [int(100 * math.sqrt(t)) for t in (1, 2, 3, 4, 5)]
    theta = 2.0 ** math.floor(math.log2(1 / d**1.5 if norm == "l2" else 1 / d**2))
    single, center, dist = [points for points in seen.points if len(points) == 1], None, 0.0
    for t, points in enumerate(rounds, start=1):
        at = next(i for i, p in enumerate(seen.points) if p is points)
        met = [p for p in seen.points[:at] if len(p) == 1 and float((p @ w)[0]) > 0]
        lengths = torch.stack([(points - p).norm(dim=1) for p in met]).std(dim=1)
        center = met[int(lengths.argmin())]
        delta = (points - center).norm(dim=1)
        torch.testing.assert_close(delta, delta[:1].expand_as(delta))
        if t == 1:
            torch.testing.assert_close(delta[0], torch.tensor(0.6, dtype=torch.float64))
        else:
            factor = math.sqrt(d) if norm == "l2" else d
            torch.testing.assert_close(delta[0], factor * theta * dist)
        jumps = [p for p in seen.points[at + 1 :] if float((p @ w)[0]) > 0]
        dist = get_norm(norm).length(jumps[0] - x)[0]  # the next bisection begins here
    assert len(single) > 20
