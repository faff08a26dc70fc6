"""A pretend GPU: tensors on the CPU that report ``cuda:0`` and obey CUDA's rules, on a machine without a GPU.

::

    with pretend_cuda() as gpu:
        model, x = net.to(gpu.device), points.to(gpu.device)
        result = attack(model, x, y.to(gpu.device))     # raises where a GPU would: devices mixed, .numpy(), ...
        gpu.synchronisations                            # where the host would have waited for the GPU, and how often

Three parts, each in a file of its own:

* ``tags.py``: which storages are on the pretend device. Views, ``.data``, parameters and what autograd has saved share
  their storage, so the tag is theirs too.
* ``functions.py``: what the user calls (a ``TorchFunctionMode``): getters such as ``.device``, factories with
  ``device=``, moves, ``.numpy()``, generators.
* ``operations.py``: what is computed (a ``TorchDispatchMode``), in the backward pass as well: results inherit the
  device, devices are not mixed, operations and synchronisations are counted. ``rules.py`` says what CUDA allows.

``context.py`` enters them and, for that time, replaces ``torch.cuda``'s functions and ``torch.Generator``.

What is not pretended: kernels (sums have the CPU's order, ``torch.autocast("cuda")`` changes nothing), memory, streams,
several GPUs, other threads than the one that entered.
"""

from tests.pretend.context import Gpu, pretend_cuda

__all__ = ["Gpu", "pretend_cuda"]
