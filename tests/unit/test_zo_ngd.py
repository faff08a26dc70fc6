"""ZO-NGD beyond the shared suite: its step by dense matrices from the answers that it heard, and what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import square, zo_ngd
from tests.suite.cases import noise_box
from tests.suite.models import mlp
from tests.suite.test_success import Recording
from tests.unit.test_zoo_attack import walled

D = 6


@pytest.mark.parametrize("targeted", [False, True])
def test_a_step_is_the_dense_natural_gradient_of_what_was_heard(targeted: bool) -> None:
    """Both gradients are rebuilt from the points asked about; (ŝ ŝᵀ + λI)⁻¹ ĝ is solved with the d × d matrix."""
    model, x, y = walled((D,))
    seen, lr, damping, mu, q = Recording(model), 1e-3, 0.7, 1e-4, 9
    goal = {"target": (y + 1) % 3} if targeted else {}
    label = goal.get("target", y)
    result = zo_ngd(
        Victim(seen, access="soft"), x, y, eps=0.3, steps=1, q=q, lr=lr, damping=damping, mu=mu, loss="margin", **goal
    )
    clean, base, probes, last = seen.points
    assert [len(part) for part in seen.points] == [1, 1, q, 1] and result.queries.tolist() == [q + 3]
    torch.testing.assert_close(base, clean)
    u = (probes - base) / mu
    assert 0.3 < float(u.std()) < 2, "not Gaussian directions times μ"

    def margin(z: Tensor) -> Tensor:
        rival = z.scatter(1, label.expand(len(z), 1), -torch.inf).amax(dim=1)
        return (z[:, int(label)] - rival) * (-1 if targeted else 1)

    def likelihood(z: Tensor) -> Tensor:
        return F.log_softmax(z, dim=1)[:, int(label)]

    with torch.no_grad():
        grad, score = (
            ((f(model(probes)) - f(model(base))) / mu) @ u / q for f in (margin, likelihood)
        )  # fmt: skip
    fisher = torch.outer(score, score) + damping * torch.eye(D, dtype=x.dtype)
    torch.testing.assert_close((last - base)[0], -lr * torch.linalg.solve(fisher, grad), rtol=1e-5, atol=1e-12)


def test_lengths_are_in_widths_of_the_box() -> None:
    """The same attack on images in 0 … 255."""
    net, x = mlp((D,), 3), noise_box(6, (D,), torch.float64)
    y = net(x).argmax(dim=1)
    run = {"steps": 6, "q": 8}
    small = zo_ngd(net, x, y, eps=0.1, **run)
    large = zo_ngd(Victim(lambda z: net(z / 255), bounds=(0.0, 255.0), access="soft"), 255 * x, y, eps=25.5, **run)
    assert torch.equal(small.success, large.success) and torch.equal(small.queries, large.queries)
    torch.testing.assert_close(large.x_adv / 255, small.x_adv, rtol=0, atol=1e-6)


def test_finds_what_random_search_finds() -> None:
    """On images whose pixels are all at an end of the box, where clipped probes would drown the slope."""
    net, x = mlp((1, 8, 8), 3), noise_box(10, (1, 8, 8), torch.float64).round()
    y = net(x).argmax(dim=1)
    won = zo_ngd(net, x, y, eps=0.25, steps=40, q=15).success
    assert int(won.sum()) >= int(square(net, x, y, eps=0.25, queries=40).success.sum()) > 0
    assert int(won.sum()) >= 7


def test_bad_input() -> None:
    net, x = mlp((D,), 3), torch.rand(2, D, dtype=torch.float64)
    for wrong, name in (
        ({"norm": "l2"}, "norm"), ({"q": 0}, "q"), ({"damping": 0.0}, "damping"), ({"mu": -1.0}, "mu"),
        ({"lr": 0.0}, "lr"), ({"steps": 0}, "steps"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            zo_ngd(net, x, eps=0.1, **wrong)
    with pytest.raises(ValueError, match=r"^budget: want at least 14,"):
        zo_ngd(Victim(net, access="soft", budget=13), x, eps=0.1, q=10)
