"""Where to ask next: the expected improvement under a Gaussian process fitted to all that was heard.

For a function h = f + ρ/2 ‖· − center‖² of which f is known at some points, and the quadratic everywhere. The process
for f is scikit-learn's, an optional dependency; SciPy climbs to the largest expected improvement. This file works in
NumPy's float64, sample by sample, as both libraries do.

Source: Jones, Schonlau and Welch, "Efficient global optimization of expensive black-box functions" (1998), for the
expected improvement; Ament et al., "Unexpected improvements to expected improvement" (2023), for its logarithm.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TRIED, _CLIMBED = 64, 2
"""Points whose improvement is looked at for each sample; how many of them are climbed from."""
_JITTER = 1e-6  # on the diagonal of the process's matrix: points are asked about again and again near an optimum
_ROOT5 = math.sqrt(5.0)


def most_promising(
    points: Tensor, values: Tensor, center: Tensor, rho: float, starts: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """argmax EI in a box for each sample, (n, d) in float64.

    Args:
        points: where f was heard, (n, m, d).
        values: f there, (n, m).
        center, rho: of the quadratic, (n, d) and ρ > 0.
        starts: (n, p, d), around 0; they are moved to the best point heard, which is one itself, as is the center.
        low, high: the box, (n, d).
    """
    found = []
    rows = (part.double().cpu().numpy() for part in (points, values, center, starts, low, high))
    for sample in zip(*rows, strict=True):
        heard, f, middle, tries, least, most = map(_coarse, sample)
        search = Improvement(Process(heard, f), middle, rho, f)
        near = heard[np.argmin(search.objective(heard, f))]
        found.append(search.largest(np.vstack([near, middle, near + tries]), least, most))
    return torch.as_tensor(np.stack(found))


def _coarse(values: Array) -> Array:
    """To 2⁻³⁰ of the largest: the model's own rounding, which depends on its batch, must not steer what is asked.

    The climbs, to the likeliest ℓ and to the largest EI, would enlarge it by many orders of magnitude.
    """
    place = 2.0 ** max(math.frexp(float(np.abs(values).max(initial=0.0)))[1] - 30, -1000)
    found: Array = np.round(values / place) * place
    return found


class Process:
    """A Gaussian process with a Matérn kernel (ν = 5/2), fitted by scikit-learn to values (m,) at points (m, d).

    ``scale`` is ℓ, ``weight`` is c, in units of the values' own variance; ``spread`` is its root.
    """

    def __init__(self, points: Array, values: Array) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern

        self.points, self.mean, self.spread = points, float(values.mean()), float(values.std()) or 1.0
        typical = float(np.sqrt(np.square(points - points.mean(axis=0)).sum(axis=1).mean())) or 1.0
        kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(typical, (1e-2 * typical, 1e3 * typical), nu=2.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # c or ℓ at an end, as where all values are 0
            fitted = GaussianProcessRegressor(kernel, alpha=_JITTER).fit(points, (values - self.mean) / self.spread)
        self.weight, self.scale = np.exp(fitted.kernel_.theta)
        self.factor, self.dual = fitted.L_, fitted.alpha_

    def at(self, points: Array) -> tuple[Array, Array]:
        """Mean and deviation (p,) at points (p, d)."""
        from scipy.linalg import solve_triangular
        from scipy.spatial.distance import cdist

        kernel, _ = self._kernel(cdist(points, self.points) / self.scale)
        half = solve_triangular(self.factor, kernel.T, lower=True, check_finite=False)
        variance = np.maximum(self.weight - np.square(half).sum(axis=0), _JITTER * self.weight)
        return self.mean + self.spread * (kernel @ self.dual), self.spread * np.sqrt(variance)

    def slopes(self, point: Array) -> tuple[float, float, Array, Array]:
        """Mean and deviation at one point (d,), and the gradients (d,) of both."""
        from scipy.linalg import cho_solve
        from scipy.spatial.distance import cdist

        kernel, slope = self._kernel(cdist(point[None], self.points)[0] / self.scale)
        weights = cho_solve((self.factor, True), kernel, check_finite=False)
        deviation = math.sqrt(max(self.weight - kernel @ weights, _JITTER * self.weight))

        def gradient(w: Array) -> Array:
            """Of Σ w_i k(point, point_i), by ∇k = k′(r)/r · (point − point_i)/ℓ²."""
            w = w * slope / self.scale**2
            found: Array = w.sum() * point - w @ self.points
            return found

        rise, fall = self.spread * gradient(self.dual), -self.spread / deviation * gradient(weights)
        return self.mean + self.spread * float(kernel @ self.dual), self.spread * deviation, rise, fall

    def _kernel(self, r: Array) -> tuple[Array, Array]:
        """k, and k′(r)/r."""
        fading = self.weight * np.exp(-_ROOT5 * r)
        return (1 + _ROOT5 * r + 5 / 3 * r * r) * fading, -5 / 3 * (1 + _ROOT5 * r) * fading


class Improvement:
    """log EI of h = f + ρ/2 ‖· − center‖² on the smallest of h so far, f being a :class:`Process`."""

    def __init__(self, process: Process, center: Array, rho: float, values: Array) -> None:
        self.process, self.center, self.rho = process, center, rho
        self.least = float(self.objective(process.points, values).min())

    def objective(self, points: Array, f: Array) -> Array:
        away: Array = np.square(points - self.center).sum(axis=1)
        return f + self.rho / 2 * away

    def log(self, points: Array) -> Array:
        """(p,) at points (p, d)."""
        mean, deviation = self.process.at(points)
        found: Array = np.log(deviation) + _log_gain((self.least - self.objective(points, mean)) / deviation)[0]
        return found

    def __call__(self, point: Array) -> tuple[float, Array]:
        """−log EI at one point (d,), and its gradient."""
        mean, deviation, of_mean, of_deviation = self.process.slopes(point)
        away = point - self.center
        v = (self.least - mean - self.rho / 2 * (away @ away)) / deviation
        gain, rise = (float(part) for part in _log_gain(np.array(v)))
        slope = of_deviation - rise * (of_mean + self.rho * away + v * of_deviation)
        return -math.log(deviation) - gain, -slope / deviation

    def largest(self, starts: Array, low: Array, high: Array) -> Array:
        """argmax EI in a box: L-BFGS-B from the most promising of the starts (p, d)."""
        from scipy.optimize import minimize

        starts = np.clip(starts, low, high)
        order = np.argsort(-self.log(starts), kind="stable")[:_CLIMBED]
        how = {"jac": True, "method": "L-BFGS-B", "bounds": np.c_[low, high], "options": {"maxiter": 50}}
        tops = np.clip([minimize(self, starts[i], **how).x for i in order], low, high)
        return tops[int(np.argmax(self.log(tops)))]


def _log_gain(v: Array) -> tuple[Array, Array]:
    """log(φ(v) + v Φ(v)), which is EI in units of s, and its derivative, to full accuracy also where EI is tiny.

    With the scaled complementary error function, v Φ(v)/φ(v) = v √(π/2) erfcx(−v/√2); far below 0 the sum with 1
    cancels, and is 1/v² − 3/v⁴ there.
    """
    from scipy.special import erfcx

    v = np.maximum(v, -1e75)
    low = np.minimum(v, 5.0)
    tail = np.sqrt(np.pi / 2) * erfcx(-low / np.sqrt(2))  # Φ/φ
    square = np.square(np.minimum(low, -300.0))
    part = np.where(low < -300.0, 1 / square - 3 / np.square(square), 1 + low * tail)
    near = -np.square(low) / 2 - np.log(2 * np.pi) / 2 + np.log(part)
    high = np.maximum(v, 5.0)  # there φ(v) + v Φ(v) is v but for 5e-8
    return np.where(v > 5.0, np.log(high), near), np.where(v > 5.0, 1 / high, tail / part)
