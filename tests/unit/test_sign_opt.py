"""Sign-OPT and OPT: their estimates against theory, their distances against exact optima, how they end."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustlab.attacker.live import Live
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import opt, sign_opt
from robustlab.attacks.hardlabel.opt import _differences
from robustlab.attacks.hardlabel.ray_search import RaySearch, unit_
from robustlab.attacks.hardlabel.sign_opt import _signs
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.oracles import affine_problem, free_optimum, solver_optimum
from tests.unit.test_boundary_search import OnlyThere
from tests.unit.test_hsja import mean_of_one, plane

CPU = torch.device("cpu")
WIDE = (-3.0, 3.0)
each = pytest.mark.parametrize("attack", [opt, sign_opt])


def estimates(n: int, d: int, estimate: Callable[[RaySearch, Live], Tensor]) -> tuple[Tensor, Tensor]:
    """n estimates (n, d) of ∇g at a direction θ towards a hyperplane, and the gradient: g(θ) = m/⟨w, θ⟩ on ‖θ‖ = 1."""
    model, w = plane(d)
    theta = torch.nn.functional.normalize(
        w + torch.randn(d, generator=torch.Generator().manual_seed(8)).double() / 9, dim=0
    )
    x = (-0.7 * w).expand(n, d).contiguous()
    with Victim(model, bounds=(-50.0, 50.0), access="hard").session(x, access="hard") as session:
        search = RaySearch(session, get_norm("l2"), seed=0)
        live = session.live(noise=session.noise(1))
        live.theta = theta.expand(n, d).contiguous()
        live.g = torch.full((n,), 0.7 / float(w @ theta), dtype=torch.float64)
        live.beta = torch.full((n,), 1e-4, dtype=torch.float64)
        found = estimate(search, live)
    slope = -0.7 / float(w @ theta) ** 2 * (w - (w @ theta) * theta)
    return found, slope


@pytest.mark.parametrize(("d", "k"), [(20, 100), (200, 50)])
def test_cosine_of_the_signs_is_that_of_theory(d: int, k: int) -> None:
    """Along the gradient k·c, across it √(k·(1 − c²)); it is told apart from θ by half of β, which shifts nothing."""
    found, slope = estimates(150, d, lambda search, live: _signs(search, live, 0, k))
    cosine = (found @ slope) / found.norm(dim=1) / slope.norm()
    c = mean_of_one(d)
    theory = k * c / math.sqrt((k * c) ** 2 + k * (1 - c * c))
    error = 4 * float(cosine.std()) / math.sqrt(len(cosine))
    assert abs(float(cosine.mean()) - theory) < error + 0.01, (float(cosine.mean()), theory)


def test_differences_are_unbiased() -> None:
    """d times their mean over many draws is the gradient on the sphere, within four standard errors."""
    d = 10

    def many(search: RaySearch, live: Live) -> Tensor:
        u = unit_(live.noise.quick_normal((2, 0), (4, d)).double())
        return _differences(search, live, u)[0]

    found, slope = estimates(1500, d, many)
    found = d * found
    error = 4 * found.std(dim=0) / math.sqrt(len(found))
    assert bool(((found.mean(dim=0) - slope).abs() < error + 2e-3).all())
    assert float(error.max()) < 0.25 * float(slope.norm())


@pytest.mark.slow
@each
@pytest.mark.parametrize("classes", [2, 5])
def test_within_two_percent_of_the_optimum_after_1200_queries(
    attack: Callable[..., AttackResult], classes: int
) -> None:
    model, x, y = affine_problem(classes, 8, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, "l2")
    x, y, best = (part[best < 1.9] for part in (x, y, best))
    ratio = attack(Victim(model, bounds=WIDE, access="hard", budget=1200), x, y).radius("l2") / best
    assert float(ratio.median()) <= 1.02 and bool((ratio >= 1 - 1e-9).all())


@pytest.mark.slow
@each
def test_within_six_percent_of_the_solver_where_the_box_is_active(attack: Callable[..., AttackResult]) -> None:
    model, x, _ = affine_problem(2, 12, 8, CPU, spread=1.0)
    x, box = x.sign() * x.abs() ** 0.25, (-1.0, 1.0)  # nearer to the corners
    with torch.no_grad():
        y = model(x).argmax(1)
    best, free = solver_optimum(model, x, y, "l2", box), free_optimum(model, x, y, "l2")
    assert int((best > 1.01 * free).sum()) >= 3, "the box is in nobody's way"
    far = (model.weight[1 - y] - model.weight[y]).sign().detach()
    ratio = attack(Victim(model, bounds=box, access="hard", budget=1200), x, y, init=far).radius("l2") / best
    assert float(ratio.median()) <= 1.06 and bool((ratio >= 1 - 1e-6).all())


@pytest.mark.slow
@each
def test_targeted_within_six_percent_of_the_solver(attack: Callable[..., AttackResult]) -> None:
    model, x, y = affine_problem(3, 6, 8, CPU, spread=1.0)
    target = (y + 1) % 3
    best = solver_optimum(model, x, y, "l2", WIDE, target)
    pool = 6 * noise_box(80, (8,), torch.float64) - 3
    with torch.no_grad():
        label = model(pool).argmax(1)
    victim = Victim(model, bounds=WIDE, access="hard", budget=1200)
    ratio = (attack(victim, x, y, target=target, pool=(pool, label)).radius("l2") / best)[best.isfinite()]
    assert float(ratio.median()) <= 1.06 and bool((ratio >= 1 - 1e-6).all())


def test_where_no_step_helps_sign_opt_ends_after_six_betas() -> None:
    """Each round: k signs, one step that fails, fifteen quartered ones; then α is 1 again and β a tenth."""
    x = 0.2 + 0.5 * noise_box(3, (8,), torch.float64)
    init = x + 0.1
    rounds = []
    for k in (5, 25):
        result = sign_opt(OnlyThere(init), x, torch.zeros(3, dtype=torch.int64), init=init, k=k, tries=1)
        assert len(result.queries.unique()) == 1 and bool(result.success.all())
        rounds.append(int(result.queries[0]))
    count = (rounds[1] - rounds[0]) / 20
    assert count in (5, 6)  # 1e-3/10⁵ may round to either side of 1e-8
    start = rounds[0] - count * (5 + 1 + 15) - 1 - 2
    assert 2 <= start <= 40, "the start's own search along its ray"
