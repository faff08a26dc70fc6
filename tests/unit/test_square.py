"""Square Attack beyond the shared suite: what it asks, query by query, and how near it comes to the optimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import square
from robustlab.attacks.softlabel.square import _bumps, _share
from tests.suite.cases import noise_box
from tests.suite.models import Affine, Then, mlp
from tests.suite.oracles import free_optimum
from tests.suite.test_success import Recording

SHAPE = (3, 10, 8)
WIDE = (-50.0, 50.0)


def asked(norm: str, queries: int, bounds: tuple[float, float] = WIDE, **more: object) -> tuple[Tensor, Tensor, Tensor]:
    """x, the points asked about (the clean check and the final check left out), and the margin at each."""
    x = 0.3 + 0.4 * noise_box(1, SHAPE, torch.float64)
    base = mlp(SHAPE, 3)
    with torch.no_grad():
        y = base(x).argmax(1)
    wall = torch.zeros(3, dtype=torch.float64)
    wall[int(y)] = 500.0
    seen = Recording(Then(base, lambda z: z + wall))
    result = square(Victim(seen, bounds=bounds), x, y, norm=norm, eps=0.2, queries=queries, **more)  # type: ignore[arg-type]
    assert not bool(result.success) and result.queries.tolist() == [queries + 1] == [len(seen.points)]
    points = torch.cat(seen.points[1:])
    with torch.no_grad():
        z = base(points)
    margins = z[:, int(y)] - z.index_fill(1, y, -torch.inf).amax(1)
    torch.testing.assert_close(result.x_adv[0], points[margins.argmin()])  # the best of all that it has asked about
    return x, points, margins


def best_before(points: Tensor, margins: Tensor) -> Tensor:
    """For each point but the first, the best one asked about earlier."""
    return torch.stack([points[int(margins[: i + 1].argmin())] for i in range(len(points) - 1)])


def side_at(i: int, least: int) -> int:
    """The side that the paper's schedule gives at query i for p_init = 0.8; the authors' thresholds."""
    p = 0.8
    for threshold in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        p = p / 2 if i - 1 > threshold else p
    return min(max(round((p * 80) ** 0.5), least), 8)


def test_linf_starts_with_stripes() -> None:
    x, points, _ = asked("linf", 1)
    delta = (points - x)[0]
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.2))
    assert bool((delta.sign() == delta.sign()[:, :1]).all()), "constant down each column"
    assert len(delta.sign()[:, 0].unique(dim=1).T) > 1


def test_linf_changes_one_square_by_one_sign_a_channel() -> None:
    x, points, margins = asked("linf", 300)
    torch.testing.assert_close((points - x).abs(), torch.full_like(points, 0.2))
    last_row = last_column = False
    for i, (old, new) in enumerate(zip(best_before(points, margins), points[1:], strict=True), start=1):
        changed = (new - old).abs() > 1e-9
        for c in range(3):
            assert (new - x[0])[c][changed[c]].sign().unique().numel() <= 1
        places = changed.any(0).nonzero()
        if len(places):
            height, width = (places.amax(0) - places.amin(0) + 1).tolist()
            assert max(height, width) <= side_at(i, least=1)
            last_row |= int(places[:, 0].max()) == 9
            last_column |= int(places[:, 1].max()) == 7
    assert last_row and last_column


def test_l2_spends_all_of_its_budget_and_moves_two_windows() -> None:
    x, points, margins = asked("l2", 300)
    torch.testing.assert_close((points - x).flatten(1).norm(dim=1), torch.full((300,), 0.2, dtype=torch.float64))
    for i, (old, new) in enumerate(zip(best_before(points, margins), points[1:], strict=True), start=1):
        changed = (new - old).abs().amax(0) > 1e-9
        side = side_at(i, least=3) | 1
        assert int(changed.sum()) <= 2 * side * side, "outside the two windows nothing moves, as nothing is left over"
        emptied = ((new - x[0]).abs().amax(0) < 1e-12) & changed
        overlap_allows = int(emptied.sum()) <= side * side
        assert overlap_allows


def test_l2_takes_up_what_the_box_leaves() -> None:
    """With the box in the way δ is shorter than ε, never longer, and every point stays inside."""
    x, points, _ = asked("l2", 200, bounds=(0.25, 0.75))
    length = (points - x).flatten(1).norm(dim=1)
    assert bool((length <= 0.2 + 1e-12).all()) and bool((points >= 0.25).all()) and bool((points <= 0.75).all())


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 9])
def test_bumps_are_the_papers_sum(side: int) -> None:
    """Σ 1/(c + 1)² over the c ≥ distance from the center, one half against the other, of equal energy."""
    like = torch.zeros(1, dtype=torch.float64)
    ours, want = _bumps(side, like), torch.zeros(side, side, dtype=torch.float64)
    for first, rows, sign in ((0, side // 2, 1.0), (side // 2, side - side // 2, -1.0)):
        half = torch.zeros(rows, side, dtype=torch.float64)
        for r in range(rows):
            for s in range(side):
                distance = max(abs(r - rows // 2), abs(s - side // 2))
                half[r, s] = sum(1 / (c + 1) ** 2 for c in range(distance, max(rows // 2, side // 2) + 1))
        if rows:
            want[first : first + rows] = sign * half / half.norm()
    torch.testing.assert_close(ours, want / want.norm())


def test_schedule() -> None:
    plain = [_share(i, 10_000, 0.8, False) for i in (0, 11, 12, 51, 52, 202, 502, 1002, 2002, 4002, 6002, 8002)]
    assert plain == [0.8 / 2**k for k in (0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert _share(121, 1000, 0.8, True) == _share(1201, 10_000, 0.8, False) == 0.8 / 32


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_an_affine_model(norm: str) -> None:
    """In ℓ∞, where a vertex of the cube is best, it finds it; in ℓ2 it halves the √18 of a random direction."""
    generator = torch.Generator().manual_seed(0)
    model = Affine(torch.randn(2, 18, generator=generator, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    x = 0.2 * torch.randn(12, 2, 3, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    best = free_optimum(model, x.flatten(1), y, norm)
    gate = {"linf": 1.001, "l2": 2.1}[norm]
    victim = Victim(model, bounds=WIDE)
    above = square(victim, x, y, norm=norm, eps=gate * best, queries=600)
    below = square(victim, x, y, norm=norm, eps=0.999 * best, queries=600)
    assert bool(above.success.all()) and not bool(below.success.any())


def test_restarts_go_on_where_the_first_failed() -> None:
    model: nn.Module = mlp(SHAPE, 3)
    x = noise_box(30, SHAPE, torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    run = {"norm": "linf", "eps": 0.02, "queries": 20}
    one, three = square(model, x, y, **run), square(model, x, y, restarts=3, **run)  # type: ignore[arg-type]
    first = one.success
    assert torch.equal(three.x_adv[first], one.x_adv[first]) and torch.equal(three.queries[first], one.queries[first])
    assert int(three.success.sum()) > int(first.sum()) > 0
    assert bool((three.queries[~three.success] == 1 + 3 * 20).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_a_target_it_takes_the_cross_entropy(norm: str) -> None:
    """As the authors' code does; the margin without one."""
    model, x = mlp(SHAPE, 5), noise_box(6, SHAPE, torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    run = {"norm": norm, "eps": 0.05, "queries": 30}
    for target, named, other in (({"target": (y + 1) % 5}, "ce", "margin"), ({}, "margin", "ce")):
        plain, same, not_same = (
            square(model, x, y, **run, **target, **loss) for loss in ({}, {"loss": named}, {"loss": other})
        )
        assert torch.equal(plain.x_adv, same.x_adv) and not torch.equal(plain.x_adv, not_same.x_adv)


def test_bad_input() -> None:
    model, x = mlp((18,), 3), torch.rand(2, 18, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^x: want images"):
        square(model, x, eps=0.1)
    for p in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"^p_init: want"):
            square(mlp(SHAPE, 3), torch.rand(2, *SHAPE, dtype=torch.float64), eps=0.1, p_init=p)
