"""Batch norm's running statistics, estimated again: after a change of the weights the old ones are wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustlab.models.modes import evaluating


def estimate_again(model: nn.Module, x: Tensor, batch_size: int = 500) -> None:
    """Replace the running statistics of each batch norm in `model`, in place, by those of x.

        mean, variance = the averages over batches of equal size of the batch's mean and (unbiased) variance

    Args:
        model: changed in its buffers only. Its mode and the momenta of its layers are put back.
        x: inputs (N, ...), at least 2. Where N > batch_size is no multiple of it, the remainder is left out.
        batch_size: samples in one forward; with all of x in one, the statistics are exactly those of x.

    Source:
        Garipov et al. (2018), appendix on recomputing statistics along a curve.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    size = min(batch_size, len(x))
    try:
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain average over batches
                layer.train()
            for part in x[: len(x) // size * size].split(size):
                model(part)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
