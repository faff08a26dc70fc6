"""PixelDP against the exact radius of the Gaussian, its mechanism's own definition, and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import laplace, norm
from torch import Tensor, nn

from robustlab.defenses import pixeldp, pixeldp_radius, renyi_radius
from robustlab.defenses.certified.smoothing.pixeldp import _affine, _cut, _of_matrix
from robustlab.defenses.certified.smoothing.votes import count_votes
from tests.unit.test_randomized_smoothing import plane


@pytest.mark.parametrize(("p", "radius"), [(0.6, 0.059), (0.8, 0.235), (0.9, 0.390), (0.99, 0.555), (0.9999, 0.570)])
def test_known_values(p: float, radius: float) -> None:
    """The authors' bound with p₂ = 1 − p₁; it saturates, since their mechanism asks for ε ≤ 1."""
    one = torch.tensor(p).double()
    assert float(pixeldp_radius(one, 1 - one)) == pytest.approx(radius, abs=6e-4)


def test_order_of_the_three_bounds() -> None:
    """PixelDP ≤ Cohen for all (p₁, p₂), and ≤ Rényi where p₁ ≥ ½; below ½ it need not be."""
    p1, p2 = torch.meshgrid(torch.linspace(0.01, 1 - 1e-6, 60).double(), torch.logspace(-12, -0.31, 60).double(),
                            indexing="ij")  # fmt: skip
    legal = (p1 > p2) & (p1 + p2 <= 1)
    p1, p2 = p1[legal], p2[legal]
    cohen = 0.5 * torch.as_tensor(norm.ppf(p1.numpy()) - norm.ppf(p2.numpy()))
    renyi, found = renyi_radius(p1, p2), pixeldp_radius(p1, p2)
    assert bool((found <= cohen + 1e-12).all())
    assert bool((found <= renyi + 1e-12)[p1 >= 0.5].all()) and not bool((found <= renyi)[p1 < 0.5].all())
    assert pixeldp_radius(torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.5])).tolist() == [0.0, 0.0]
    assert pixeldp_radius(torch.tensor([0.3]), torch.tensor([0.4]), mechanism="laplace").tolist() == [0.0]


def test_laplace_is_exact_in_one_dimension() -> None:
    """Moving Laplace noise of scale b by L changes any probability by at most e^{L/b}: two of them reach p₁/p₂."""
    one, two = torch.tensor([0.7, 0.9, 0.99]).double(), torch.tensor([0.2, 0.1, 0.004]).double()
    length, scale = pixeldp_radius(one, two, mechanism="laplace"), 1 / math.sqrt(2)
    torch.testing.assert_close(one * (-length / scale).exp(), two * (length / scale).exp())


@pytest.mark.parametrize(
    ("mechanism", "norm_", "d"), [("gaussian", "l2", 3), ("laplace", "l1", 1), ("laplace", "l2", 1)]
)
def test_no_radius_of_a_plane_is_broken(mechanism: str, norm_: str, d: int) -> None:
    model, _, x = plane(d)
    found = pixeldp(model, x, sigma=0.2, mechanism=mechanism, norm=norm_, n=4000)  # type: ignore[arg-type]
    distance = torch.linspace(0.02, 0.6, 12, dtype=torch.float64)
    assert bool((found.radius <= distance).all()) and int(found.verified.sum()) > 5
    assert found.norm == norm_ and found.method == "pixeldp"
    if mechanism == "laplace":
        p = torch.as_tensor(laplace.cdf(distance.numpy(), scale=0.2 / math.sqrt(2)))
        assert bool(((found.counts.amax(dim=1) / 4000 - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all())


def convolved() -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model, torch.rand(4, 1, 5, 5, generator=generator, dtype=torch.float64)


def test_noise_behind_a_layer() -> None:
    """Without nonlinearity before it, noise behind the identity is noise at the input; radii go with 1/sensitivity."""
    model, _, x = plane()
    inside = nn.Sequential(nn.Identity(), model)
    outer, inner = (pixeldp(inside, x, sigma=0.3, layer=layer) for layer in (None, "0"))
    assert torch.equal(outer.counts, inner.counts)
    torch.testing.assert_close(outer.radius, inner.radius)
    double = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(3))
    half = pixeldp(nn.Sequential(double, model), x, sigma=0.6, layer=double)
    torch.testing.assert_close(half.radius, outer.radius)


def test_the_sensitivity_is_that_of_the_layer() -> None:
    """Brute force over directions: no image is longer, and the corner, or power iteration, reaches it."""
    model, x = convolved()
    out, matrix = _affine(model[:1], x)
    assert torch.equal(out, model[0](x).detach())
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(20_000, 25, generator=generator, dtype=torch.float64)
    ends = torch.eye(25, dtype=torch.float64)
    top = delta[:1]
    for _ in range(200):
        top = top @ matrix @ matrix.T
        top = top / top.norm()
    for norm_, mechanism, p, q, corner in (("l2", "gaussian", 2, 2, top), ("l1", "gaussian", 1, 2, ends),
                                           ("l1", "laplace", 1, 1, ends)):  # fmt: skip
        told = _of_matrix(matrix, mechanism, norm_)  # type: ignore[arg-type]
        unit = torch.cat([delta, corner])
        unit = unit / unit.norm(p=p, dim=1, keepdim=True)
        found = float((unit @ matrix).norm(p=q, dim=1).amax())
        assert found <= told * (1 + 1e-9) and found == pytest.approx(told, rel=1e-6)


def test_noise_is_added_to_what_comes_before() -> None:
    model, x = convolved()
    before, behind = _cut(model, "0")
    torch.testing.assert_close(behind(before(x)), model(x))
    found = pixeldp(model, x, sigma=0.5, n=300, layer="0")
    assert torch.equal(found.counts, count_votes(model[1:], model[0](x).detach(), sigma=0.5, n=300, part=1))


def test_what_is_refused() -> None:
    model, x = convolved()
    for changes, message in (
        ({"layer": "1"}, "^layer: want it and those before it affine"), ({"layer": nn.ReLU()}, "^layer: want a child"),
        ({"mechanism": "uniform"}, "^mechanism: want"), ({"norm": "linf"}, "^norm: want"),
        ({"layer": "0", "mechanism": "laplace"}, "^norm: want 'l1'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pixeldp(model, x, sigma=0.3, **changes)  # type: ignore[arg-type]
    all_active = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(25, 3)).double()
    with pytest.raises(ValueError, match=r"^layer: want it and those before it affine"):
        pixeldp(all_active, x, sigma=0.3, layer="1")  # it is, on inputs above 0


class Steep(nn.Module):
    """Affine below 1.5, where all points that one tries may lie, and a hundred times steeper above."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 100 * (x - 1.5).relu()


class Around(nn.Module):
    """The input goes around the layer, too, so that what comes behind it is not all that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x) + 10 * x, -x], dim=1)


class AroundAll(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(super().forward(x) + 10 * x)


class Bent(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_layer_that_only_looks_affine_is_refused() -> None:
    """Its matrix at the points that are tried would certify .57 where the class changes at .14."""
    x = torch.tensor([[1.4]])
    with pytest.raises(ValueError, match=r"^layer: want it and those before it affine .* got Steep"):
        pixeldp(nn.Sequential(Steep(), nn.Linear(1, 2)), x, sigma=1.0, layer="0")
    with pytest.raises(ValueError, match=r"^layer: want it and those before it affine .* got Steep"):
        pixeldp(nn.Sequential(Steep(), nn.Linear(1, 2)), x, sigma=1.0, layer="1")
    with pytest.raises(ValueError, match=r"^layer: want it and those before it affine .* got Bent"):
        pixeldp(nn.Sequential(Bent(1, 1), nn.Linear(1, 2)), x, sigma=1.0, layer="0")
    for model in (Around(), AroundAll(nn.Linear(1, 2))):
        with pytest.raises(ValueError, match=r"^model: want a Sequential .* got Around"):
            pixeldp(model, x, sigma=1.0, layer="0")
