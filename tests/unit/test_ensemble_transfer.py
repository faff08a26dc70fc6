"""Transfer from an ensemble: the loss and the step on linear models, each option by its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.composition import Mixture, gradient_through
from robustlab.attacker.victim import Victim
from robustlab.attacks import ensemble_transfer
from robustlab.attacks.transfer.ensemble_transfer import shrunk
from tests.suite.models import Affine, mlp

WIDE = (-50.0, 50.0)
IMAGE = (2, 6, 6)


def images(n: int = 5, seed: int = 0, shape: tuple[int, ...] = IMAGE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *shape, generator=generator, dtype=torch.float64)


def nets(count: int = 3, shape: tuple[int, ...] = IMAGE) -> list[nn.Module]:
    return [mlp(shape, 4, torch.float64, seed) for seed in range(1, count + 1)]


def loss_of(models: list[nn.Module], weights: list[float], x: Tensor, label: Tensor) -> Tensor:
    """−log Σ_k α_k f_k(x)_label, from its definition."""
    return -torch.log(sum(w * m(x).softmax(1) for w, m in zip(weights, models, strict=True)).gather(1, label[:, None]))


def slope(models: list[nn.Module], weights: list[float], x: Tensor, label: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(loss_of(models, weights, leaf, label).sum(), leaf)[0]


def hopeless(x: Tensor, label: int = 0) -> nn.Module:
    """A victim that says one label whatever it is shown, so that every point is worked on and returned."""
    weight = torch.zeros(4, x[0].numel(), dtype=x.dtype)
    return Affine(weight, F.one_hot(torch.tensor(label), 4).to(x))


@pytest.mark.parametrize("target", [None, 2])
def test_one_step_goes_down_the_loss(target: int | None) -> None:
    x, models, weights = images(), nets(), [0.5, 0.3, 0.2]
    y = torch.zeros(len(x), dtype=torch.int64)
    result = ensemble_transfer(
        hopeless(x), x, y, surrogates=models, weights=weights, eps=0.05, steps=1, target=target, trace=True
    )
    label, sign = (y, 1.0) if target is None else (torch.full_like(y, target), -1.0)
    grad = slope(models, weights, x, label)
    torch.testing.assert_close(result.x_adv, x + sign * 0.05 * grad.sign(), rtol=0, atol=1e-12)
    assert result.trace is not None
    want = -sign * loss_of(models, weights, x, label)[:, 0]
    torch.testing.assert_close(result.trace["loss"][0], want.detach(), rtol=1e-9, atol=1e-12)


def test_two_linear_surrogates_closed_form() -> None:
    """∇ −log Σ α_k σ(m_k) = −Σ_k α_k σ(m_k)(1 − σ(m_k))·w_k / Σ_k α_k σ(m_k), with m_k the margins of two classes."""
    generator = torch.Generator().manual_seed(1)
    normals = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    models: list[nn.Module] = [Affine(torch.stack([0 * w, w]), torch.zeros(2).double()) for w in normals]
    x = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    alpha = torch.tensor([0.8, 0.2]).double()
    p = torch.sigmoid(x @ normals.T)
    toward = (alpha * p * (1 - p)) @ normals / (p @ alpha)[:, None]
    stuck = Affine(torch.zeros(2, 7).double(), torch.tensor([1.0, 0.0]).double())
    y = torch.zeros(6, dtype=torch.int64)
    result = ensemble_transfer(
        Victim(stuck, bounds=WIDE), x, y, surrogates=[Victim(m, bounds=WIDE) for m in models], weights=[0.8, 0.2],
        norm="l2", eps=0.3, steps=1, target=1,
    )  # fmt: skip
    want = 0.3 * toward / toward.norm(dim=1, keepdim=True)
    torch.testing.assert_close(result.x_adv - x, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", [None, 2])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("join", ["logits", "losses"])
def test_joined_by_logits_or_losses(join: Any, loss: Any, target: int | None) -> None:
    """One step goes down the loss of the mean of logits, or the mean of the losses, by their definitions."""
    x, models, weights = images(), nets(), torch.tensor([0.5, 0.3, 0.2]).double()
    y = torch.full((len(x),), 1)
    label, sense = (y, -1.0) if target is None else (torch.full_like(y, target), 1.0)

    only = F.one_hot(label, 4)

    def g(z: Tensor) -> Tensor:
        rest = z.logsumexp(dim=1) if loss == "ce" else z.masked_fill(only.bool(), -torch.inf).amax(dim=1)
        return sense * (rest - z[:, int(label[0])])

    if loss == "margin":  # the margin is 0 where the goal is met: it is met nowhere
        models = [nn.Sequential(m, Affine(torch.eye(4).double(), only[0] * -9.0 * sense)) for m in models]
    leaf = x.clone().requires_grad_(True)
    each = torch.stack([m(leaf) for m in models])
    value = g(torch.einsum("j,jnk->nk", weights, each)) if join == "logits" else weights @ torch.stack([*map(g, each)])
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    result = ensemble_transfer(
        hopeless(x, 1), x, y, surrogates=models, weights=weights.tolist(), join=join, loss=loss, norm="l2", eps=0.05,
        steps=1, target=target, trace=True,
    )  # fmt: skip
    want = 0.05 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(result.x_adv, x - want, rtol=0, atol=1e-9)
    assert result.trace is not None
    torch.testing.assert_close(result.trace["loss"][0], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("join", ["logits", "losses"])
def test_a_surrogate_without_weight_plays_no_part(join: Any) -> None:
    """Also where its logits are infinite; labels that no surrogate has are an error by name."""
    x, (own, other) = images(3), nets(2)
    masked = nn.Sequential(other, Affine(torch.eye(4).double(), torch.tensor([-torch.inf, 0, 0, 0]).double()))
    y = torch.zeros(3, dtype=torch.int64)
    alone = ensemble_transfer(hopeless(x), x, y, surrogates=[own], eps=0.1).x_adv
    both = ensemble_transfer(hopeless(x), x, y, surrogates=[own, masked], weights=[1, 0], join=join, eps=0.1).x_adv
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-12)
    wide = Affine(torch.zeros(6, 72).double(), torch.zeros(6).double())
    with pytest.raises(ValueError, match=r"^target: want labels"):
        ensemble_transfer(wide, x, y, surrogates=[own, other], join=join, eps=0.1, target=5)


def test_momentum_adds_up_gradients_of_length_one() -> None:
    x, models, weights = images(3), nets(2), [0.5, 0.5]
    y = torch.zeros(3, dtype=torch.int64)
    points, along = x, torch.zeros_like(x)
    for _ in range(3):
        grad = slope(models, weights, points, y)
        along = 0.9 * along + grad / grad.flatten(1).abs().sum(dim=1)[:, None, None, None]
        points = points + 0.02 * along / along.flatten(1).norm(dim=1)[:, None, None, None]
    with_it, without = (
        ensemble_transfer(
            hopeless(x), x, y, surrogates=models, norm="l2", eps=1.0, steps=3, step_size=0.02, momentum=momentum
        ).x_adv
        for momentum in (0.9, 0.0)
    )
    torch.testing.assert_close(with_it, points, rtol=0, atol=1e-9)
    assert float((with_it - without).abs().max()) > 1e-5


def test_translation_is_the_mean_over_shifted_images() -> None:
    """On a linear model: Σ_ij k_ij ∇J(x shifted by i, j), of weights that are a Gaussian's and add up to one."""
    shape, side = (1, 11, 11), 5
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(4, *shape, dtype=torch.float64)
    weight[:, :, 3:8, 3:8] = torch.randn(4, 1, 5, 5, generator=generator, dtype=torch.float64)
    model = Affine(weight.flatten(1), torch.zeros(4).double())
    x = images(2, shape=shape)
    y = torch.zeros(2, dtype=torch.int64)
    at = torch.arange(side) - side // 2
    k = torch.distributions.Normal(0.0, (side - 1) / 6).log_prob(at.double()).softmax(dim=0)
    # One gradient for all shifts, as the probabilities are those of x: what the paper assumes.
    grad = slope([model], [1.0], x, y)
    mean = sum(k[i] * k[j] * grad.roll((int(at[i]), int(at[j])), dims=(2, 3)) for i in range(side) for j in range(side))
    assert isinstance(mean, Tensor)
    result = ensemble_transfer(hopeless(x), x, y, surrogates=[model], norm="l2", eps=0.3, steps=1, translation=side)
    want = 0.3 * mean / mean.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(result.x_adv - x, want, rtol=1e-6, atol=1e-9)


def test_a_shrunk_plane_is_a_plane_of_that_slope() -> None:
    """Bilinear interpolation is exact on a·row + b·column: values, place and the zeros around are known."""
    n = 12
    rows, columns = torch.meshgrid(torch.arange(n).double(), torch.arange(n).double(), indexing="ij")
    plane = (2.0 + 0.3 * rows + 0.7 * columns)[None, None].expand(3, 1, n, n)
    scale, down, right = (torch.tensor(v).double() for v in ([1.0, 0.5, 0.75], [0.3, 0.0, 1.0], [0.9, 1.0, 0.5]))
    out = shrunk(plane, scale, down, right)
    torch.testing.assert_close(out[0], plane[0], rtol=1e-9, atol=1e-9)
    for i in (1, 2):
        top, left = (1 - scale[i]) * down[i] * n, (1 - scale[i]) * right[i] * n  # places of the small image, in pixels
        row, column = ((at + 0.5 - start) / scale[i] - 0.5 for at, start in ((rows, top), (columns, left)))
        inside = (row >= 0) & (row <= n - 1) & (column >= 0) & (column <= n - 1)
        torch.testing.assert_close(out[i, 0][inside], (2.0 + 0.3 * row + 0.7 * column)[inside])
        outside = (row < -1) | (row > n) | (column < -1) | (column > n)
        assert int(inside.sum()) >= 16 and bool((out[i, 0][outside] == 0).all()) and bool(outside.any())


def test_diversity_is_drawn_for_each_sample_and_step() -> None:
    """With probability one no point is that of the plain attack; a sample's draws do not depend on its batch."""
    x, models = images(6), nets(2)
    y = torch.zeros(6, dtype=torch.int64)
    arguments: dict[str, Any] = {"norm": "l2", "eps": 0.5, "steps": 4, "smallest": 0.5, "momentum": 1.0}
    plain, half, always = (
        ensemble_transfer(hopeless(x), x, y, surrogates=models, diversity=p, **arguments).x_adv for p in (0.0, 0.5, 1.0)
    )
    assert bool(((plain - always).abs().flatten(1).amax(dim=1) > 1e-4).all())
    assert not torch.equal(half, always) and not torch.equal(half, plain)
    for i in (0, 4):
        one = slice(i, i + 1)
        alone = ensemble_transfer(
            hopeless(x), x[one], y[one], surrogates=models, diversity=0.5, ids=torch.tensor([i]), **arguments
        )
        torch.testing.assert_close(alone.x_adv, half[one], rtol=0, atol=1e-9)


def test_each_step_draws_anew() -> None:
    """A linear surrogate of two classes has one direction: steps turn since their views differ."""
    x, weight = images(3), torch.zeros(2, 72, dtype=torch.float64)
    weight[1] = torch.randn(72, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments: dict[str, Any] = {"surrogates": [Affine(weight, weight[:, 0] * 0)], "norm": "l2", "eps": 1.0}
    y = torch.zeros(3, dtype=torch.int64)
    for diversity, turns in ((0.0, False), (1.0, True)):
        one, two = (
            ensemble_transfer(
                hopeless(x), x, y, steps=k, step_size=0.01, diversity=diversity, smallest=0.5, **arguments
            ).x_adv
            for k in (1, 2)
        )
        cosine = torch.cosine_similarity((one - x).flatten(1), (two - one).flatten(1))
        assert bool(((cosine < 0.99) == turns).all())


def test_gradient_through_a_view_is_that_of_the_composition() -> None:
    """Also where the view leaves the box: what is clipped has no slope, what is at an end has its own."""
    model, x = nets(1)[0], images(3)
    label = torch.zeros(3, dtype=torch.int64)
    x[0, 0, 0, :3] = torch.tensor([0.0, 0.5, 0.9]).double()  # an end stays, the others pass the upper end below

    def loss(logits: Tensor, *_: Any) -> Tensor:
        return logits.square().sum(dim=1)

    with Victim(model).session(x, label) as session:
        answer = gradient_through(session, session.everyone(), x, lambda v: 2.5 * v, loss)
    seen = (2.5 * x).clamp(0, 1).requires_grad_(True)
    (want,) = torch.autograd.grad(loss(model(seen)).sum(), seen)
    torch.testing.assert_close(answer.grad, 2.5 * want * (2.5 * x <= 1), rtol=1e-9, atol=1e-12)
    assert float(answer.grad[0, 0, 0, 0]) != 0 and bool((answer.grad[0, 0, 0, 1:3] == 0).all())


def test_the_victim_is_asked_twice_and_tells_labels() -> None:
    x, models = images(5), nets(2)
    asked: list[int] = []

    def labels(points: Tensor) -> Tensor:
        asked.append(len(points))
        with torch.no_grad():
            return models[0](points).argmax(dim=1)

    y = labels(x)
    y[0] = (y[0] + 1) % 4  # is fooled already
    asked.clear()
    result = ensemble_transfer(Victim(labels, access="hard", budget=2), x, y, surrogates=models, eps=0.2)
    assert asked == [5, 4]
    assert result.queries.tolist() == [1, 2, 2, 2, 2] and not bool(result.gradients.any())
    assert bool(result.success[0]) and torch.equal(result.x_adv[0], x[0])
    assert torch.equal(result.success, labels(result.x_adv) != y)


def test_what_fools_a_surrogate_is_still_worked_on() -> None:
    """The label of the victim is another than the surrogate's: the goal is the victim's."""
    x, models = images(4), nets(1)
    with torch.no_grad():
        y = (models[0](x).argmax(dim=1) + 1) % 4
    victim = Affine(torch.zeros(4, 72).double(), torch.zeros(4).double())
    with torch.no_grad():
        victim.bias[y[0]] = 1.0
    same = y == y[0]
    result = ensemble_transfer(victim, x[same], surrogates=models, eps=0.1, steps=2)
    assert bool((result.distances["linf"] > 0.05).all())


def test_a_mixture_of_probabilities_and_logits() -> None:
    """A surrogate may speak in probabilities; the mixture is the weighted sum."""
    x, (first, second) = images(3), nets(2)
    spoken = Victim(nn.Sequential(second, nn.Softmax(dim=1)), output="probs")
    with torch.no_grad():
        want = 0.25 * first(x).softmax(1) + 0.75 * second(x).softmax(1)
        torch.testing.assert_close(Mixture([first, spoken], [0.25, 0.75])(x).exp(), want)
        torch.testing.assert_close(Mixture([first, second], [1.0, 0.0])(x).exp(), first(x).softmax(1))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("surrogates", [], TypeError), ("surrogates", 3, TypeError), ("surrogates", [lambda x: x], TypeError),
        ("surrogates", [mlp(IMAGE, 4), mlp(IMAGE, 3)], ValueError), ("weights", [0.5, 0.4], ValueError),
        ("weights", [1.0], ValueError), ("weights", [2.0, -1.0], ValueError), ("norm", "l1", ValueError),
        ("steps", 0, ValueError), ("momentum", -1.0, ValueError), ("diversity", 1.1, ValueError),
        ("smallest", 0.0, ValueError), ("translation", 4, ValueError), ("translation", 0, ValueError),
        ("join", "votes", ValueError),
    ],
)  # fmt: skip
def test_bad_arguments(name: str, value: Any, error: type[Exception]) -> None:
    x = images(2)
    given = {"surrogates": nets(2), "eps": 0.1, name: value}
    with pytest.raises(error, match=rf"^{name}: "):
        ensemble_transfer(hopeless(x), x, **given)


def test_views_want_images() -> None:
    x = torch.rand(2, 5, dtype=torch.float64)
    for option in ({"diversity": 0.5}, {"translation": 3}):
        with pytest.raises(ValueError, match=r"^x: "):
            ensemble_transfer(mlp((5,), 3), x, surrogates=[mlp((5,), 3)], eps=0.1, **option)
