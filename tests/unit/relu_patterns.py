"""Brute force for tiny ReLU networks: one linear program for each pattern of active ReLUs."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from robustlab.verification.complete.query import Case


def tiny(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """A fully connected ReLU net in float64, with biases that leave many ReLUs open on [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layer = nn.Linear(n, m).double()
        layer.weight.data = torch.randn(m, n, generator=generator, dtype=torch.float64)
        layer.bias.data = -layer.weight.data.sum(dim=1) * 0.4 + 0.1 * torch.randn(m, generator=generator).double()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def box(n: int, seed: int, radius: float) -> tuple[Tensor, Tensor]:
    """A box inside [0, 1]ⁿ."""
    center = torch.rand(n, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
    return (center - radius).clamp(0, 1), (center + radius).clamp(0, 1)


def exact_minimum(net: nn.Sequential, case: Case) -> float:
    """min over the box of max over rows of C·f(x) + d."""
    from scipy.optimize import linprog

    linear = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]
    n, widths = len(case.low), [len(b) for _, b in linear[:-1]]
    best = np.inf
    ends = [*zip(case.low.tolist(), case.high.tolist(), strict=True), (None, None)]
    for pattern in itertools.product((0.0, 1.0), repeat=sum(widths)):
        slope, shift, rows, right, at = np.eye(n), np.zeros(n), [], [], 0
        for weight, bias in linear[:-1]:
            on = np.array(pattern[at : at + len(bias)])
            at += len(bias)
            slope, shift = weight @ slope, weight @ shift + bias
            rows.append(np.hstack([(1 - 2 * on)[:, None] * slope, np.zeros((len(on), 1))]))
            right.append(-(1 - 2 * on) * shift)
            slope, shift = on[:, None] * slope, on * shift
        weight, bias = linear[-1]
        slope, shift = weight @ slope, weight @ shift + bias
        C, d = case.C.numpy(), case.d.numpy()
        rows.append(np.hstack([C @ slope, -np.ones((len(d), 1))]))
        right.append(-(C @ shift + d))
        answer = linprog(np.eye(1, n + 1, n)[0], A_ub=np.vstack(rows), b_ub=np.concatenate(right), bounds=ends)
        if answer.status == 0:
            best = min(best, float(answer.fun))
    return best
