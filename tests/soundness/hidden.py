"""Nets with a planted counterexample that attacks do not find: what no verifier may certify.

Where a net is robust, a verifier that claims too much is not found out by attacks. Here the truth is known: each
instance is a point x of label y and a point x′ of its ball that the net gives another label. The net is trained for two
ends at once, to make small, with margin = f_y − max_{j≠y} f_j,

    mean over the points p of the last W attacks of  max(0, M − margin(p))   +   mean of  max(0, m + margin(x′))

so that attacks of the kind it was trained against end where the label is right. The second sum moves few weights alone,
those of the units that answer near the counterexamples, and the first all others, or else both fight for each of them
and thousands of epochs are needed. The planted points lie near corners of their balls. Instances that the recipe's own
attacks find after all are left out of the file.

    python -m tests.soundness.hidden            trains all again and writes their files
    python -m tests.soundness.hidden mlp cnn    some of them

Source: the idea and the two objectives with their window of perturbations are those of Zhou et al., "SoundnessBench: A
soundness benchmark for neural network verifiers" (2024); nets, data and training here are our own.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustlab.attacker.losses import goal_margin

FOLDER = Path(__file__).parent / "nets"
EPS, CLASSES, PLANTED = 0.15, 3, 6
SURE, MARGIN, WINDOW, STARTS = 1.0, 0.2, 40, 4
STEP_SIZES = (0.1, 0.25, 0.5)
"""Of the attacks in training, in units of ε."""
JUDGES, RESTARTS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0), 10
"""Step sizes of the attacks that an instance must stand at the end, in units of ε, and how often each starts."""


@dataclass(frozen=True)
class Recipe:
    """How one net is made.

    Attributes:
        build: its architecture, with random weights.
        shape: of a sample.
        seed: of weights, points and attacks.
        epochs: of training, each one attack and one step.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    seed: int
    epochs: int = 400


@dataclass(frozen=True, eq=False)
class Hidden:
    """A net and its instances.

    Attributes:
        model: in float32, at rest.
        x, y: (N, *shape) in [0, 1] and their labels (N,).
        counterexample: (N, *shape), within ``EPS`` of x in ℓ∞ and in [0, 1], of another label.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    counterexample: Tensor


def dense(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Layers of these sizes."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def convolutional(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Two convolutions and two dense layers on images of 10 × 10."""
    maps = nn.Conv2d(1, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3, padding=1), activation()
    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(400, 32), activation(), nn.Linear(32, CLASSES))


LINE, IMAGE = (100,), (1, 10, 10)
RECIPES = {
    "mlp": Recipe(lambda: dense(100, 48, 48, CLASSES), LINE, 1),
    "mlp_2": Recipe(lambda: dense(100, 48, 48, CLASSES), LINE, 2),
    "one_hidden": Recipe(lambda: dense(100, 128, CLASSES), LINE, 3),
    "cnn": Recipe(convolutional, IMAGE, 4),
    "cnn_2": Recipe(convolutional, IMAGE, 5),
    "tanh": Recipe(lambda: dense(100, 48, 48, CLASSES, activation=nn.Tanh), LINE, 6),
}


def ascend(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int, step_size: float, by_margin: bool, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Signed gradient steps from a random point of each ball; the last points, and which labels fell on the way."""
    low, high = (x - EPS).clamp_min(0), (x + EPS).clamp_max(1)
    at = low + torch.rand(x.shape, generator=chance) * (high - low)
    fell = torch.zeros(len(x), dtype=torch.bool)
    for step in range(steps + 1):
        at.requires_grad_()
        logits = model(at)
        fell |= goal_margin(logits.detach(), y) > 0
        if step == steps:
            break
        loss = goal_margin(logits, y).sum() if by_margin else F.cross_entropy(logits, y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, at)
        at = torch.minimum(torch.maximum(at.detach() + step_size * EPS * slope.sign(), low), high)
    return at.detach(), fell


def instances(recipe: Recipe, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points far from each other, their labels, and for each a point near a corner of its ball."""
    shape = (PLANTED, *recipe.shape)
    sign, corner = (2.0 * (torch.rand(shape, generator=chance) < 0.5) - 1 for _ in range(2))
    x = 0.5 + 0.25 * sign + 0.05 * (torch.rand(shape, generator=chance) - 0.5)
    share = 0.98 + 0.02 * torch.rand(shape, generator=chance)
    y = torch.arange(PLANTED) % CLASSES
    return x, y, (x + 0.999 * EPS * corner * share).clamp(0, 1)


@torch.no_grad()
def look_ahead(model: nn.Module, x: Tensor, y: Tensor, planted: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Let one unit of the first dense layer for each instance answer only near its counterexample.

        40·(⟨v, φ(·) − φ(x)⟩ − 0.8),   v = (φ(x′) − φ(x)) / ‖φ(x′) − φ(x)‖²

    for the pixels φ that enter the layer, −32 at x and 8 at x′. Training goes on from there. Where convolutions come
    first, their first channel hands the pixels on, and stays as it is; and the logits that read the units next speak
    against the label from the start, or else these would fall silent before.

    Returns:
        Two masks by the names of parameters, 1 or 0: what all instances train, and what belongs to these units or to
        what reads them first.
    """
    layers = list(model)  # type: ignore[call-overload]
    first, after = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)][:2]
    layer, here, way = layers[first], x.flatten(1), (planted - x).flatten(1)
    way = way / way.square().sum(dim=1, keepdim=True)
    others = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    own = {name: torch.zeros_like(p) for name, p in others.items()}
    for i, before in enumerate(layers[:first]):
        if isinstance(before, nn.Conv2d):
            before.weight[0] = before.bias[0] = 0
            before.weight[0, 0, 1, 1] = 1
            others[f"{i}.weight"][0] = others[f"{i}.bias"][0] = 0
            layers[after].weight[:, : len(x)] = 0.5 - F.one_hot(y, CLASSES).T
    layer.weight[: len(x)] = 0
    layer.weight[: len(x), : way.shape[1]] = 40 * way
    layer.bias[: len(x)] = -40 * (way * here).sum(dim=1) - 32
    for name, place in ((f"{first}.weight", slice(len(x))), (f"{first}.bias", slice(len(x))),
                        (f"{after}.weight", (slice(None), slice(len(x))))):  # fmt: skip
        own[name][place], others[name][place] = 1, 0
    return others, own


def _keep(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Gradients of the masked weights alone."""
    for name, p in model.named_parameters():
        assert p.grad is not None
        p.grad *= masks[name]


def train(recipe: Recipe, *, progress: bool = False) -> Hidden:
    """The net, and those instances whose counterexample is one and stays hidden from the recipe's attacks."""
    chance = torch.Generator().manual_seed(recipe.seed)
    x, y, planted = instances(recipe, chance)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = recipe.build()
    others, own = look_ahead(model, x, y, planted)
    optimizer, exception = torch.optim.Adam(model.parameters()), torch.optim.Adam(model.parameters())
    many, labels = x.repeat(STARTS, *[1] * len(recipe.shape)), y.repeat(STARTS)
    recent: list[Tensor] = []
    for epoch in range(recipe.epochs):
        done = epoch / recipe.epochs
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 10 * done + 0.01) * (1 - done)
        exception.param_groups[0]["lr"] = 2e-2 * (1 - done)
        model.requires_grad_(False)
        size = STEP_SIZES[epoch % 3]
        ends, fell = ascend(
            model, many, labels, steps=20 if size < 0.25 else 10, step_size=size, by_margin=epoch % 2 < 1, chance=chance
        )
        model.requires_grad_(True)
        recent = [*recent, ends][-WINDOW:]
        points, owners = torch.cat([x, *recent]), torch.cat([y, labels.repeat(len(recent))])
        loss = (SURE + goal_margin(model(points), owners)).clamp_min(0).mean()
        optimizer.zero_grad()
        loss.backward()
        _keep(model, others)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if epoch >= recipe.epochs // 4:  # the label first, then the exception, in weights of its own
            short = (MARGIN - goal_margin(model(planted), y)).clamp_min(0).mean()
            exception.zero_grad()
            short.backward()
            _keep(model, own)
            exception.step()
        if progress and epoch % 100 == 99:
            say = f"loss {float(loss.detach()):.3f}, {int(fell.sum())} of {len(fell)} attacks succeed"
            print(f"  {epoch + 1:5}: {say}", flush=True)
    model = model.eval().requires_grad_(False)
    good = (goal_margin(model(x), y) < 0) & (goal_margin(model(planted), y) > MARGIN / 2)
    if progress:
        print(f"  {int(good.sum())} counterexamples are planted", flush=True)
    for size in JUDGES:
        for by_margin in (False, True):
            for _ in range(RESTARTS):
                _, fell = ascend(model, x, y, steps=100, step_size=size, by_margin=by_margin, chance=chance)
                good &= ~fell
    return Hidden(model, x[good], y[good], planted[good])


def load(name: str) -> Hidden:
    """A net of the set, with its instances."""
    state = load_file(FOLDER / f"{name}.safetensors")
    x, y, planted = (state.pop(f"instances.{key}") for key in ("x", "y", "counterexample"))
    model = RECIPES[name].build()
    model.load_state_dict(state)
    return Hidden(model.eval().requires_grad_(False), x, y, planted)


def save(name: str, hidden: Hidden) -> None:
    """Writes what ``load`` reads."""
    state = dict(hidden.model.state_dict())
    extra = {"x": hidden.x, "y": hidden.y, "counterexample": hidden.counterexample}
    state |= {f"instances.{key}": value.contiguous() for key, value in extra.items()}
    save_file(state, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or RECIPES:
        print(chosen, flush=True)
        made = train(RECIPES[chosen], progress=True)
        print(f"  {len(made.x)} of {PLANTED} counterexamples are hidden", flush=True)
        save(chosen, made)
