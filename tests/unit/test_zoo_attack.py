"""ZOO beyond the shared suite: its iterates by autograd, its optimum, the spaces and the chances of its coordinates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import zoo
from robustlab.attacks.softlabel.zoo import _chances
from tests.suite.cases import noise_box
from tests.suite.models import Then, mlp
from tests.suite.oracles import affine_problem, free_optimum
from tests.suite.test_success import Recording

CPU = torch.device("cpu")
WIDE = (-3.0, 3.0)


def walled(shape: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor]:
    """A net that nobody fools, a sample with room on all sides, and its label."""
    base, x = mlp(shape, 3), 0.3 + 0.4 * noise_box(1, shape, torch.float64)
    y = base(x).argmax(dim=1)
    return Then(base, lambda z: z + 50.0 * F.one_hot(y, 3)), x, y


def asked(model: nn.Module, x: Tensor, y: Tensor, **more: object) -> list[Tensor]:
    """What it asks, question by question, the clean check left out."""
    seen = Recording(model)
    result = zoo(Victim(seen, access="soft"), x, y, search_steps=1, abort_early=False, **more)  # type: ignore[arg-type]
    assert int(result.queries.sum()) == sum(map(len, seen.points)) and not bool(result.success.any())
    return seen.points[1:]


@pytest.mark.parametrize("solver", ["adam", "newton"])
@pytest.mark.parametrize("tanh", [True, False])
def test_steps_are_those_of_the_solver_on_autograds_gradient(solver: str, tanh: bool) -> None:
    """With all coordinates in a batch: Adam of PyTorch, or Newton with the diagonal of autograd's Hessian."""
    model, x, y = walled((6,))
    model.requires_grad_(False)
    w0 = torch.atanh(0.999999 * (2 * x - 1)) if tanh else x
    w = w0.clone().requires_grad_(True)

    def point() -> Tensor:
        return (torch.tanh(w) + 1) / 2 if tanh else w

    def objective() -> Tensor:
        z = model(point())[0]
        rival = z.index_fill(0, y, -torch.inf).max()
        return (point() - x).square().sum() + 3.0 * (z[y[0]] - rival)

    adam, want = torch.optim.Adam([w], lr=0.05), list[Tensor]()
    for _ in range(5):
        want.append(point().detach().clone())
        if solver == "adam":
            adam.zero_grad()
            objective().backward()
            adam.step()
        else:
            (slope,) = torch.autograd.grad(objective(), w, create_graph=True)
            bend = torch.stack([torch.autograd.grad(s, w, retain_graph=True)[0][0, i] for i, s in enumerate(slope[0])])
            with torch.no_grad():
                w -= 0.05 * slope / torch.where(bend > 0, bend, 1.0)
    points = asked(model, x, y, steps=4, batch=6, lr=0.05, c=3.0, solver=solver, tanh=tanh)
    assert [len(part) for part in points] == [1, 12] * 4 + [1]
    torch.testing.assert_close(
        torch.cat(points[::2]), torch.cat(want), rtol=0, atol=2e-5 if solver == "newton" else 1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "lr"), [("adam", 0.03), ("newton", 0.1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimum_of_an_affine_model(solver: str, lr: float, dtype: torch.dtype) -> None:
    """Never below it, and within 0.5 % of it in the median; a popular library ends half as far again."""
    model, x, y = affine_problem(2, 6, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, "l2")
    victim = Victim(model.to(dtype), bounds=WIDE, access="soft")
    result = zoo(victim, x.to(dtype), y, steps=120, search_steps=8, batch=8, c=0.1, solver=solver, lr=lr)
    ratio = result.radius("l2").double() / best
    assert bool((ratio >= 1 - 1e-5).all()) and float(ratio.median()) <= 1.005, ratio


def test_what_a_step_costs() -> None:
    """2B + 1 evaluations, all counted; with one for the last point of a run."""
    model, x, y = walled((40,))
    assert [len(part) for part in asked(model, x, y, steps=3, batch=16)] == [1, 32] * 3 + [1]
    least = 2 + 1 + 32 + 1
    with pytest.raises(ValueError, match=rf"^budget: want at least {least}, "):
        zoo(Victim(model, access="soft", budget=least - 1), x, y, batch=16)
    assert zoo(Victim(model, access="soft", budget=least), x, y, batch=16).queries.tolist() == [least - 1]


def test_no_coordinate_twice_in_a_batch() -> None:
    model, x, y = walled((40,))
    points = asked(model, x, y, steps=6, batch=16, tanh=False)
    drawn = [
        ((probes[:16] - here).abs() > 0).nonzero()[:, 1]
        for here, probes in zip(points[:-1:2], points[1::2], strict=True)
    ]
    assert all(len(places.unique()) == 16 for places in drawn) and len(torch.cat(drawn).unique()) > 30


def test_hierarchical_attack_space() -> None:
    """In each stage a question is x plus a bilinear image; the change of size moves nothing but the space."""
    model, x, y = walled((2, 8, 6))
    points = asked(model, x, y, steps=4, batch=999, tanh=False, sizes=(2, 4), switches=(2,), lr=0.01)
    small, large = 2 * 2 * 2, 2 * 4 * 3  # the width is in proportion: 1.5 is taken for 2
    assert [len(part) for part in points] == [1, 2 * small] * 2 + [1, 2 * large] * 2 + [1]
    for part, size in zip(points[:-1], [(2, 2)] * 4 + [(4, 3)] * 4, strict=True):
        unit = torch.eye(2 * size[0] * size[1], dtype=x.dtype).reshape(-1, 2, *size)
        basis = F.interpolate(unit, (8, 6), mode="bilinear", align_corners=False).flatten(1).T
        if part is not points[4]:  # there, what the first stage has found, made larger
            delta = (part - x).flatten(1).T
            assert float((basis @ torch.linalg.lstsq(basis, delta).solution - delta).abs().max()) < 1e-9
    assert float((points[4] - points[2]).abs().max()) < 0.05 and bool((points[4] != x).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_importance_sampling_refreshes(channels: int) -> None:
    """One coordinate moves; from then on the coordinates of its region are drawn, and no others."""
    model, x, y = walled((channels, 8, 8))
    run = {"steps": 12, "batch": 1, "tanh": False, "region": 4}
    for refresh, regions in ((1, 1), (None, 5)):
        points = asked(model, x, y, refresh=refresh, **run)
        drawn = [
            ((probes[:1] - here).abs() > 0).nonzero()[0]
            for here, probes in zip(points[:-1:2], points[1::2], strict=True)
        ]
        seen = {(int(c), int(i) // 4, int(j) // 4) for _, c, i, j in drawn}
        assert len(seen) == regions if refresh else len(seen) >= 3


def test_chances_are_the_largest_change_of_the_region() -> None:
    """Each channel and region by itself, those cut off at the border too; equal where nothing has changed."""
    z = noise_box(2, (2, 5, 7), torch.float64) - 0.5
    z[1] = 0
    ours = _chances(z, 3).reshape(z.shape)
    for c in range(2):
        for i in range(5):
            for j in range(7):
                block = z[0, c, i // 3 * 3 : i // 3 * 3 + 3, j // 3 * 3 : j // 3 * 3 + 3]
                assert float(ours[0, c, i, j]) == float(block.abs().max())
    assert bool((ours[1] == 1).all())


def test_bad_input() -> None:
    net, flat, image = mlp((2, 8, 6), 3), torch.rand(2, 6), torch.rand(2, 2, 8, 6, dtype=torch.float64)
    for wrong, name in (
        ({"sizes": (2, 4)}, "switches"), ({"switches": (2,)}, "switches"),
        ({"sizes": (2, 4), "switches": (0,)}, "switches"),
        ({"sizes": (9,)}, "sizes"), ({"solver": "sgd"}, "solver"), ({"h": 0.0}, "h"), ({"refresh": 0}, "refresh"),
        ({"batch": 0}, "batch"), ({"c": -1.0}, "c"), ({"norm": "linf"}, "norm"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            zoo(net, image, **wrong)
    for images_only in ({"sizes": (2,)}, {"refresh": 5}):
        with pytest.raises(ValueError, match=r"^x: want images"):
            zoo(net, flat, **images_only)
    with pytest.raises(ValueError, match=r"^access: this attack needs 'soft'"):
        zoo(Victim(net, access="hard"), image)
