"""Search spaces: what each map is, and gradients in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustlab.attacker.estimators import coordinates
from robustlab.attacks.softlabel.spaces import Components, Decoded, Groups, Resized, Space
from robustlab.geometry.keyed import Noise
from tests.suite.cases import noise_box

generator = torch.Generator().manual_seed(0)


def space(name: str) -> Space:
    x = noise_box(6, (2, 6, 4), torch.float64)
    if name in ("bilinear", "tiled"):
        return Resized(3, 2, x, name)  # type: ignore[arg-type]
    if name == "decoder":
        layer = torch.nn.Linear(4, 48, bias=False).double()
        return Decoded(lambda z: layer(z).reshape(-1, 2, 6, 4), (4,))
    return Components(x, 4) if name == "components" else Groups(Noise(0, torch.arange(3)), 0, 7, x[:3])


@pytest.mark.parametrize("name", ["bilinear", "tiled", "decoder", "components", "groups"])
def test_gradient_in_a_search_space(name: str) -> None:
    """It is Aᵀg, by autograd through an explicit matrix of the space: its images of the unit vectors."""
    low = space(name)
    size = math.prod(low.shape)
    unit = torch.eye(size, dtype=torch.float64).reshape(1, size, *low.shape).expand(3, -1, *low.shape)
    matrix = low(unit).flatten(2)
    assert matrix.shape == (3, size, 48) and not matrix.requires_grad
    assert int(torch.linalg.matrix_rank(matrix[0])) == size
    g = torch.randn(48, generator=generator, dtype=torch.float64)
    z = torch.randn(3, *low.shape, generator=generator, dtype=torch.float64)
    found = coordinates(lambda points: low(points).flatten(2) @ g, z).slope
    torch.testing.assert_close(found, matrix @ g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("small", "large"), [((3, 2), (6, 4)), ((5, 4), (11, 4)), ((1, 3), (5, 7)), ((4, 4), (4, 4))])
def test_bilinear_images_are_those_of_torch(small: tuple[int, int], large: tuple[int, int]) -> None:
    z = torch.randn(2, 3, 2, *small, generator=generator, dtype=torch.float64)
    want = torch.nn.functional.interpolate(z.flatten(0, 1), large, mode="bilinear", align_corners=False)
    for dtype in (torch.float64, torch.float32):
        made = Resized(*small, torch.zeros(1, 2, *large, dtype=dtype))(z.to(dtype))
        assert made.shape == (2, 3, 2, *large) and made.dtype == dtype
        torch.testing.assert_close(made.flatten(0, 1), want.to(dtype))
    assert Resized(*small, torch.zeros(1, 2, *large))(z[:0].float()).shape == (0, 3, 2, *large)


def test_what_the_spaces_are() -> None:
    z = torch.randn(2, 3, 2, 3, 2, generator=generator, dtype=torch.float64)
    tiles = space("tiled")(z)
    assert torch.equal(tiles, z.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))
    flat = space("bilinear")(torch.ones_like(z))
    torch.testing.assert_close(flat, torch.ones_like(flat))
    x = noise_box(6, (2, 6, 4), torch.float64)
    rows = x.flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    top = torch.as_tensor(vectors[:, np.argsort(values)[::-1][:4]].copy())
    basis = Components(x, 4).basis
    torch.testing.assert_close(basis.T @ basis, top @ top.T)
    groups = Groups(Noise(0, torch.arange(3)), 0, 7, x[:3])
    assert groups.shape == (7,)
    assert all(row.bincount().tolist() == [7] * 6 + [6] for row in groups.group)
    assert not torch.equal(groups.group[0], groups.group[1])


def test_bad_input() -> None:
    pictures = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"^height: want"):
        Resized(5, 2, pictures)
    with pytest.raises(ValueError, match=r"^mode: want"):
        Resized(2, 2, pictures, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^r: want"):
        Components(pictures, 2)
    with pytest.raises(ValueError, match=r"^size: want"):
        Groups(Noise(0, torch.arange(2)), 0, 0, pictures)
