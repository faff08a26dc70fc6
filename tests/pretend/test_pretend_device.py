"""The pretend device obeys CUDA's rules, and catches the bugs for which it is made.

Where PyTorch runs the same check for its ``meta`` device, which needs no hardware, that device is the oracle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from robustlab.attacker.few_channels import FewChannels
from tests.pretend import Gpu, pretend_cuda

CUDA, CPU, META = torch.device("cuda:0"), torch.device("cpu"), torch.device("meta")
MIXED = r"Expected all tensors to be on the same device.* cuda:0 and cpu"


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretend_cuda() as entered:
        yield entered


def points(*shape: int, requires_grad: bool = False) -> Tensor:
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape).to(CUDA).requires_grad_(requires_grad)


# What reports the device, and what is made on it ---------------------------------------------------------------------


def test_getters(gpu: Gpu) -> None:
    x, host = points(2, 3), torch.zeros(2)
    assert x.device == CUDA and x.is_cuda and not x.is_cpu and x.get_device() == 0 == torch.get_device(x)
    assert host.device == CPU and not host.is_cuda and host.is_cpu and host.get_device() == -1
    assert x.type() == "torch.cuda.FloatTensor" and host.type() == "torch.FloatTensor"
    assert "device='cuda:0'" in repr(x) and "cuda" not in repr(host)
    assert x.shape == (2, 3) and type(x.shape) is torch.Size and x.size(1) == 3


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), 0], ids=str)
def test_ways_to_name_it(gpu: Gpu, device: Any) -> None:
    assert torch.zeros(2, device=device).device == CUDA == torch.zeros(2).to(device).device
    assert torch.zeros(2).cuda().device == CUDA and torch.zeros(2, device=CUDA).cpu().device == CPU
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.zeros(2, device="cuda:1")


FACTORIES: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda d: torch.zeros(3, device=d),
    "full": lambda d: torch.full((2,), 3.0, device=d),
    "arange": lambda d: torch.arange(3, device=d),
    "eye": lambda d: torch.eye(3, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 3, device=d),
    "empty": lambda d: torch.empty(0, device=d),
    "randn": lambda d: torch.randn(3, device=d),
    "randperm": lambda d: torch.randperm(3, device=d),
    "tensor": lambda d: torch.tensor([1.0, 2.0], device=d),
    "as_tensor": lambda d: torch.as_tensor([1, 2], device=d),
    "as_tensor of an array": lambda d: torch.as_tensor(np.ones(2), dtype=torch.float32, device=d),
    "zeros_like": lambda d: torch.zeros_like(torch.ones(2), device=d),
    "new_ones": lambda d: torch.ones(2).new_ones(3, device=d),
    "new_tensor": lambda d: torch.ones(2).new_tensor([1.0], device=d),
    "to": lambda d: torch.ones(2).to(device=d, dtype=torch.float64),
    "to another": lambda d: torch.ones(2).to(torch.zeros(1, device=d)),
    "type_as": lambda d: torch.ones(2).type_as(torch.zeros(1, device=d)),
    "to, all in place": lambda d: torch.ones(2).to(d, torch.float64, False, True),
    "context": lambda d: _under(torch.device(d)),
    "parameter": lambda d: nn.Parameter(torch.zeros(2, device=d)),
    "sparse to dense": lambda d: torch.zeros(2, device=d).index_fill(0, torch.tensor([1], device=d), 2.0),
}


def _under(device: torch.device) -> Tensor:
    with device:
        return torch.zeros(2)


@pytest.mark.parametrize("name", FACTORIES)
def test_factories(gpu: Gpu, name: str) -> None:
    """On the device that is named; the same numbers on either."""
    torch.manual_seed(0)
    there, here = FACTORIES[name]("cuda"), FACTORIES[name]("cpu")
    assert (there.device, here.device) == (CUDA, CPU) and there.dtype == here.dtype
    if name != "randn" and name != "randperm":
        assert torch.equal(there.cpu(), here)


INHERITING: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: 2 * x + 1,
    "in place": lambda x: x.clone().mul_(2).add_(1.0),
    "view": lambda x: x[1:, None].transpose(0, 1).reshape(-1),
    "detach": lambda x: x.detach(),
    "reduction": lambda x: x.max(dim=0),
    "split": lambda x: x.split(1),
    "iteration": lambda x: list(x),
    "zeros_like": lambda x: torch.zeros_like(x),
    "new": lambda x: [x.new_zeros(2), x.new_full((1,), 2.0), x.new_tensor([1.0])],
    "cast": lambda x: [x.double(), x.to(torch.int64), x.type(torch.float16)],
    "tensor of a tensor": lambda x: [torch.as_tensor(x), torch.asarray(x), torch.as_tensor(x, dtype=torch.float64)],
    "contiguous": lambda x: x.T.contiguous(memory_format=torch.contiguous_format),
    "linear algebra": lambda x: torch.linalg.svd(x),
    "functional": lambda x: [F.softmax(x, 1), F.pad(x, (1, 1)), F.one_hot(x.long().abs(), 3)],
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "index": lambda x: [x[x > 0], x[[0, 1]], x[torch.tensor([1])], x[torch.tensor([True, False])]],
    "deepcopy": lambda x: copy.deepcopy(x),
    "stack": lambda x: torch.stack([x, x]),
    "data": lambda x: x.data,
}


@pytest.mark.parametrize("name", INHERITING)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_results_inherit_the_device(gpu: Gpu, name: str, mode: Any) -> None:
    with mode():
        found = INHERITING[name](points(2, 3))
    found = [found] if isinstance(found, Tensor) else list(found)
    assert found and all(t.device == CUDA for t in found)


def test_copies_share_no_memory(gpu: Gpu) -> None:
    host, array = torch.zeros(2), np.zeros(2)
    host.to(CUDA).add_(1)
    torch.as_tensor(array, device=CUDA).add_(1)
    there = points(2)
    there.cpu().add_(1)
    assert not host.any() and not array.any() and torch.equal(there, points(2))
    assert there.to(CUDA) is there and there.to("cuda", copy=True) is not there  # PyTorch does so within a device


# What may meet -------------------------------------------------------------------------------------------------------

TOGETHER: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "and": lambda a, b: (a > 0) & (b > 0),
    "or": lambda a, b: (a > 0) | (b > 0),
    "maximum": torch.maximum,
    "atan2": torch.atan2,
    "fmod": torch.fmod,
    "remainder": lambda a, b: a % b,
    "stack": lambda a, b: torch.stack(torch.broadcast_tensors(a, b)),
    "cat": lambda a, b: torch.cat([a.reshape(-1), b.reshape(-1)]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "mse": lambda a, b: F.mse_loss(*torch.broadcast_tensors(a, b)),
}


def outcome(run: Callable[[], Any]) -> str:
    try:
        run()
    except RuntimeError as error:
        assert "device" in str(error), error
        return "refused"
    return "allowed"


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), ()), ((), (3,)), ((), ())], ids=str)
@pytest.mark.parametrize("there_first", [True, False], ids=["gpu first", "cpu first"])
def test_two_devices_meet_as_meta_and_cpu_do(name: str, shapes: Any, there_first: bool) -> None:
    first, second = (torch.ones(shape) for shape in shapes)
    a, b = (first.to(META), second) if there_first else (first, second.to(META))
    wanted = outcome(lambda: TOGETHER[name](a, b))
    with pretend_cuda():
        a, b = (first.to(CUDA), second) if there_first else (first, second.to(CUDA))
        assert outcome(lambda: TOGETHER[name](a, b)) == wanted


def _into(target: Tensor, place: Any, value: Any) -> Tensor:
    target[place] = value
    return target


number, row, index, mask = torch.tensor(2.0), torch.ones(3), torch.tensor([0, 2]), torch.tensor([True, False, True])
ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "an index of the CPU": lambda x: x[index],
    "a mask of the CPU": lambda x: x[mask],
    "a number into a mask": lambda x: _into(x, x > 0, 1.0),
    "a number of the CPU into a mask of the CPU": lambda x: _into(x, mask, number),
    "a slice from the CPU, which is a copy": lambda x: _into(x, slice(0, 2), row[:2]),
    "copy_": lambda x: x.copy_(row),
    "fill_": lambda x: x.fill_(number),
    "masked_fill": lambda x: x.masked_fill(x > 0, number),
    "where with numbers": lambda x: torch.where(x > 0, number, x) + torch.where(x > 0, 1.0, 2.0),
    "in place with a number": lambda x: x.add_(number).mul_(number),
    "scatter a number": lambda x: x.scatter(0, index.to(CUDA), 1.0),
    "a number first": lambda x: number - x,
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "an index of the GPU into the CPU": lambda x: row[index.to(CUDA)],
    "a mask of the GPU into the CPU": lambda x: row[x > 0],
    "assigned into the CPU by a mask of the GPU": lambda x: _into(row.clone(), x > 0, 1.0),
    "values of the CPU into a mask": lambda x: _into(x, x >= 0, row[:2]),
    "values of the CPU at an index": lambda x: _into(x, index.to(CUDA), row[:2]),
    "masked_fill by a mask of the CPU": lambda x: x.masked_fill(mask, 0.0),
    "where by a mask of the CPU": lambda x: torch.where(mask, x, x),
    "gather": lambda x: x.gather(0, index),
    "scatter": lambda x: x.scatter(0, index, 1.0),
    "scatter values": lambda x: x.scatter(0, index.to(CUDA), row[:2]),
    "index_select": lambda x: x.index_select(0, index),
    "index_add_": lambda x: x.index_add_(0, index.to(CUDA), row[:2]),
    "index_copy_": lambda x: x.index_copy_(0, index, x[:2]),
    "index_fill": lambda x: x.index_fill(0, index, 1.0),
    "take_along_dim": lambda x: torch.take_along_dim(x, index, 0),
    "clamp by a number of the CPU": lambda x: x.clamp(number),
    "lerp by a number of the CPU": lambda x: torch.lerp(x, x, number),
    "a number of the GPU into one of the CPU": lambda x: number.clone().add_(x[0]),
    "out": lambda x: torch.add(x, 1, out=torch.empty(3)),
    "equal": lambda x: torch.equal(x, row),
    "searchsorted": lambda x: torch.searchsorted(x, row),
    "cross_entropy": lambda x: F.cross_entropy(x[None], torch.tensor([1])),
    "embedding": lambda x: F.embedding(index, x[:, None]),
    "set grad": lambda x: setattr(x.requires_grad_(), "grad", row),
    "scalars together": lambda x: torch.stack([x.sum(), number]),
    "matmul": lambda x: x @ row,
    "linear": lambda x: F.linear(x, row[None]),
    "conv": lambda x: F.conv1d(x[None, None], torch.ones(1, 1, 1)),
    "norm": lambda x: F.batch_norm(x[:, None], torch.zeros(1), torch.ones(1)),
    "allclose": lambda x: torch.allclose(x, row),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(gpu: Gpu, name: str) -> None:
    assert ALLOWED[name](points(3)).device == CUDA


@pytest.mark.parametrize("name", REFUSED)
def test_refused(gpu: Gpu, name: str) -> None:
    with pytest.raises(RuntimeError, match=r"same device|indices should be either on cpu|different device"):
        REFUSED[name](points(3))


def test_the_cpu_alone_is_as_ever(gpu: Gpu) -> None:
    assert torch.equal(row[mask] + number, torch.tensor([3.0, 3.0]))
    assert torch.zeros(3).index_put((index,), torch.tensor(1.0).to(CUDA)).device == CPU  # a number may go anywhere
    assert np.asarray(row).sum() == 3 and torch.from_numpy(np.ones(2)).device == CPU
    assert torch.zeros(3).copy_(points(3)).device == CPU


# NumPy and the host --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [lambda t: t.numpy(), np.asarray, np.sqrt], ids=["numpy", "asarray", "sqrt"])
def test_numpy_raises_what_torch_raises(gpu: Gpu, run: Callable[[Tensor], Any]) -> None:
    with pytest.raises(TypeError) as ours:
        run(points(3))
    with pytest.raises(TypeError) as theirs:
        torch.empty(3, device="meta").numpy()
    assert str(ours.value) == str(theirs.value).replace("meta", "cuda:0")
    assert isinstance(points(3).numpy(force=True), np.ndarray) and len(np.asarray(points(3).cpu())) == 3


def test_numbers_are_read_and_counted(gpu: Gpu) -> None:
    x = points(3)
    gpu.reset()
    assert float(x[2]) == 1.0 == x[2].item() and int(x.argmax()) == 2 and bool((x > 0).any())
    assert x.tolist() == [-1.0, 0.0, 1.0]
    assert sum(gpu.synchronisations.values()) == 5
    assert all(place.startswith("pretend/test_pretend_device.py:") for place in gpu.synchronisations)


WAITING: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
    "arithmetic": (0, lambda x: (x + 1).clamp(0, 1).sum()),
    "a number into a mask": (0, lambda x: _into(x, x > 0, 1.0)),
    "where": (0, lambda x: torch.where(x > 0, x, 0.0)),
    "an index": (0, lambda x: x[x.argsort()]),
    "a mask": (1, lambda x: x[x > 0]),
    "values into a mask": (1, lambda x: _into(x, x > 0, x.sum())),
    "nonzero": (1, lambda x: x.nonzero()),
    "any": (1, lambda x: bool((x > 0).any())),
    "if": (1, lambda x: 1 if x.sum() > 0 else 0),
    "equal": (1, lambda x: torch.equal(x, x)),
    "unique": (1, lambda x: x.unique()),
    "to the host": (1, lambda x: x.cpu()),
    "from the host": (1, lambda x: torch.tensor([1.0], device=x.device)),
    "an index from the host": (1, lambda x: x[[0, 1]]),
    "copied from the host": (1, lambda x: x.copy_(row)),
    "made there": (0, lambda x: torch.zeros(3, device=x.device)),
    "the host alone": (0, lambda x: float(row[row > 0].sum())),
}


@pytest.mark.parametrize("name", WAITING)
def test_synchronisations(gpu: Gpu, name: str) -> None:
    x = points(3)
    gpu.reset()
    wanted, run = WAITING[name]
    run(x)
    assert sum(gpu.synchronisations.values()) == wanted, gpu.synchronisations


def test_operations_are_counted_with_those_of_the_backward_pass(gpu: Gpu) -> None:
    x = points(3, requires_grad=True)
    gpu.reset()
    loss = (x * x).sum()
    assert gpu.operations == {"mul": 1, "sum": 1}
    torch.autograd.grad(loss, x)
    assert gpu.operations["mul"] == 3 and gpu.operations["add"] == 1  # twice g·x, summed


# Autograd ------------------------------------------------------------------------------------------------------------


def test_gradients_are_where_their_inputs_are(gpu: Gpu) -> None:
    x, host = points(3, requires_grad=True), torch.ones(3, requires_grad=True)
    loss = (x * host.to(CUDA)).square().sum().cpu() + host.sum()
    loss.backward()
    assert x.grad.device == CUDA and host.grad.device == CPU
    torch.testing.assert_close(host.grad, 2 * points(3).square().cpu() + 1)
    first = torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.device == second.device == CUDA
    (unused,) = torch.autograd.grad(x.sum(), points(2, requires_grad=True), allow_unused=True, materialize_grads=True)
    assert unused.device == CUDA


def test_hooks_and_functions_of_the_users(gpu: Gpu) -> None:
    seen = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(x, x.exp())
            return 2 * x, x.sum()

        @staticmethod
        def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            seen.extend([a.device, b.device, *(t.device for t in ctx.saved_tensors)])
            return 2 * a + b + torch.zeros(a.shape, device=a.device)

    x = points(3, requires_grad=True)
    x.register_hook(lambda g: seen.append(g.device) or g + torch.ones(3, device=g.device))
    Doubled.apply(x)[0].sum().backward()
    assert x.grad.device == CUDA and seen == [CUDA] * 5
    assert x.grad.tolist() == [3.0] * 3


def test_vmap_and_grad(gpu: Gpu) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(CUDA).eval(), points(5, 3)

    def loss(weights: Any, v: Tensor) -> Tensor:
        return functional_call(net, weights, (v[None],)).sum() * torch.ones((), device=v.device)

    slopes = vmap(grad(loss), (None, 0))(dict(net.named_parameters()), x)
    assert all(slope.device == CUDA and len(slope) == 5 for slope in slopes.values())


def test_under_the_librarys_own_mode(gpu: Gpu) -> None:
    """Its gradient of a convolution by product and fold is where the image is."""
    weight, x = torch.ones(2, 1, 3, 3), torch.rand(4, 1, 5, 5)
    plain = torch.autograd.grad(F.conv2d(x.requires_grad_(), weight).square().sum(), x)[0]
    there = x.detach().to(CUDA).requires_grad_()
    with FewChannels():
        (ours,) = torch.autograd.grad(F.conv2d(there, weight.to(CUDA)).square().sum(), there)
    assert ours.device == CUDA
    torch.testing.assert_close(ours.cpu(), plain)


# Modules, optimizers, random numbers ---------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(18, 3))


@pytest.mark.parametrize("move", [lambda m: m.to("cuda"), lambda m: m.cuda(), lambda m: m.to(device=CUDA, dtype=None)])
def test_modules_move(gpu: Gpu, move: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    model(torch.rand(2, 1, 5, 5)).sum().backward()
    parameter = model[0].weight
    assert move(model) is model and model[0].weight is parameter
    twin = copy.deepcopy(model)
    assert {p.grad.device for p in model.parameters()} == {CUDA}
    for m in (model, twin):
        assert {t.device for t in m.state_dict().values()} == {CUDA}
    twin.load_state_dict(network().state_dict())  # copied from the CPU
    assert {t.device for t in twin.state_dict().values()} == {CUDA}
    assert {t.device for t in twin.cpu().state_dict().values()} == {CPU}
    with torch.no_grad(), pytest.raises(RuntimeError, match=MIXED):
        twin(points(2, 1, 5, 5))


def test_recurrent_modules_move(gpu: Gpu) -> None:
    assert nn.GRU(2, 3).to(CUDA)(points(4, 1, 2))[0].device == CUDA


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizers(gpu: Gpu, name: str) -> None:
    """The steps that they take on the CPU."""
    torch.manual_seed(0)
    here = network().eval()
    there = copy.deepcopy(here).to(CUDA)
    x = torch.rand(2, 1, 5, 5)
    for model in (here, there):
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x.to(next(model.parameters()).device)).square().sum().backward()
            optimizer.step()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p)


def test_the_gpu_has_random_numbers_of_its_own(gpu: Gpu) -> None:
    torch.manual_seed(3)
    here, host = torch.randn(4), torch.get_rng_state()
    there, state = torch.randn(4, device=CUDA), torch.cuda.get_rng_state()
    dropped = F.dropout(points(100))
    assert torch.equal(torch.get_rng_state(), host), "the GPU drew from the CPU's generator"
    assert not torch.equal(torch.cuda.get_rng_state(), state) and torch.equal(there.cpu(), here)  # both were seeded
    torch.cuda.set_rng_state(state)
    assert torch.equal(F.dropout(points(100)), dropped)
    with torch.random.fork_rng(devices=[CUDA]):
        torch.manual_seed(0)
        torch.rand(3, device=CUDA)
    assert torch.equal(torch.get_rng_state(), host) and not torch.equal(torch.cuda.get_rng_state(), state)


def test_generators(gpu: Gpu) -> None:
    there, here = (torch.Generator(device).manual_seed(1) for device in ("cuda", "cpu"))
    assert (there.device, here.device) == (CUDA, CPU) and isinstance(there, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    assert torch.equal(torch.randn(3, generator=there, device=CUDA).cpu(), torch.randn(3, generator=here))
    assert torch.randn(3, generator=here).to(CUDA).device == CUDA
    for run in (
        lambda: torch.randn(3, generator=here, device=CUDA),
        lambda: torch.randn(3, generator=there),
        lambda: points(3).normal_(generator=here),
        lambda: torch.multinomial(points(3).abs(), 1, generator=here),
    ):
        with pytest.raises(RuntimeError, match=r"Expected a '\w+' device type for generator but found"):
            run()


# Planted bugs --------------------------------------------------------------------------------------------------------


class KeepsATensor(nn.Module):
    """Normalizes by a tensor that is no buffer, and so does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


class ForgetsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + torch.zeros(grad.shape)


BUGS: dict[str, Callable[[Tensor], Any]] = {
    "a factory without device=": lambda x: x + torch.zeros(x.shape),
    "rows without device=": lambda x: x[torch.arange(2), x.argmax(dim=1)].gather(0, torch.arange(2)),
    "a generator of the CPU": lambda x: torch.rand(3, device=x.device, generator=torch.Generator().manual_seed(0)),
    "noise of the CPU": lambda x: x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "numpy": lambda x: np.asarray(x).max(),
    "a list of numbers to numpy": lambda x: np.asarray(list(x[0])),
    "a mask of the CPU": lambda x: torch.where(torch.tensor([True, False, True]), x, 0.0),
    "values of the CPU into a mask": lambda x: _into(x, x > 0, torch.ones(int((x > 0).sum()))),
    "results kept on the CPU by a mask of the GPU": lambda x: _into(torch.zeros(2), x[:, 0] > 0, 1.0),
    "a module that keeps a plain tensor": lambda x: KeepsATensor().to(x.device)(x),
    "a model left behind": lambda x: nn.Linear(3, 2)(x),
    "numbers taken to the CPU": lambda x: torch.stack([torch.tensor(float(x.max())), x.min()]),
    "a tensor made in a backward pass": lambda x: ForgetsInBackward.apply(x.requires_grad_()).sum().backward(),
    "a tensor made in a hook": lambda x: _hooked(x.requires_grad_()).backward(),
    "a tensor made under vmap": lambda x: vmap(lambda v: v + torch.ones(3))(x),
    "one_hot of labels on the CPU": lambda x: x * F.one_hot(torch.tensor([0, 1]), 3),
    "labels on the CPU": lambda x: F.cross_entropy(x, torch.tensor([0, 1])),
    "an eye": lambda x: x @ torch.eye(3),
    "pinned": lambda x: x.pin_memory(),
}


def _hooked(x: Tensor) -> Tensor:
    y = 2 * x
    y.register_hook(lambda g: g * torch.ones(g.shape))
    return y.sum()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.1, -0.2]])
    if name != "pinned":
        BUGS[name](x.clone())  # it works on the CPU, where it was written
    with pretend_cuda(), pytest.raises((RuntimeError, TypeError), match=r"device|numpy|cpu|pin"):
        BUGS[name](x.to(CUDA))


def test_a_random_state_that_is_not_put_back_is_seen(gpu: Gpu) -> None:
    before = torch.cuda.get_rng_state()
    with torch.random.fork_rng(devices=[]):  # the bug: the GPU's state is not among those put back
        torch.rand(3, device=CUDA)
    assert not torch.equal(torch.cuda.get_rng_state(), before)


# Nothing is left behind ----------------------------------------------------------------------------------------------


def test_nothing_is_left_behind() -> None:
    names = ["is_available", "manual_seed", "get_rng_state", "device", "synchronize"]
    before = [getattr(torch.cuda, name) for name in names], torch.Generator, torch.accelerator.current_stream
    random = torch.get_rng_state()
    with pytest.raises(KeyError), pretend_cuda():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        x = points(3)
        raise KeyError
    after = [getattr(torch.cuda, name) for name in names], torch.Generator, torch.accelerator.current_stream
    assert before == after and not _get_current_function_mode_stack() and not _get_current_dispatch_mode_stack()
    assert x.device == CPU and x.numpy().shape == (3,) and torch.equal(torch.get_rng_state(), random)
    with pretend_cuda() as gpu:
        assert not gpu.operations and not gpu.synchronisations
