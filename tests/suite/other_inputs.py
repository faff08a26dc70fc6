"""Toy models of tokens, of graphs, of several inputs, and of answers that are sequences or boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.suite.models import seeded

VOCABULARY, LENGTH, PADDING = 12, 5, 0
FRAMES, BLANK = 6, 3  # the toy that hears


class Words(nn.Module):
    """Tokens (N, T) → logits (N, K): embedding, GRU, linear."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(VOCABULARY, 4), nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, classes)
        for p in self.parameters():
            p.data *= 3

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(tokens))[1][0])


class Hears(nn.Module):
    """Sounds (N, 24) → scores (N, 6, 4) of three labels and a blank in six frames, by a GRU that reads both ways."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gru = nn.GRU(4, 8, batch_first=True, bidirectional=True)
            self.out = nn.Linear(16, BLANK + 1)
        for p in self.parameters():
            p.data *= 6

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x.unflatten(1, (FRAMES, 4)))[0])


class Nodes(nn.Module):
    """A graph (features (N, V, 3), adjacency (N, V, V)) → logits of its nodes (N, V, K): two graph convolutions."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, classes)
        for p in self.parameters():
            p.data *= 3

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        loops = adjacency + torch.eye(adjacency.shape[-1]).to(adjacency)
        root = loops.sum(dim=2).rsqrt()
        spread = root[:, :, None] * loops * root[:, None, :]
        return spread @ self.second((spread @ self.first(features)).relu())


class Captioned(nn.Module):
    """An image (N, 2, 4, 4) and tokens (N, T) → logits (N, K)."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(32, classes), Words(classes)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return 4 * self.image(image.flatten(1)) + self.words(tokens)


class Finder(nn.Module):
    """An image (N, 2, 4, 4) → a set of boxes for each sample, as torchvision's detectors return it: a list of dicts.

    One candidate box per quarter; those whose score is above ½ are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(2, 1, 2, stride=2)
        self.score.weight.data *= 6
        self.register_buffer("corners", torch.tensor([[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4], [2, 2, 4, 4]]).float())

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        scores = self.score(image - 0.5).flatten(1).sigmoid()
        return [{"boxes": self.corners[s > 0.5], "scores": s[s > 0.5]} for s in scores]


class FinderOfTuples(Finder):
    """The same boxes as a tuple (boxes (N, 4, 4), scores (N, 4)), in which a score of at most ½ means none."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.corners.expand(len(image), -1, -1), self.score(image - 0.5).flatten(1).sigmoid()


class Watching(nn.Module):
    """Counts the rows asked about, and those through which a gradient was propagated back to the first of floats.

    Knows nothing of the library's own counters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = self.forwards = self.backwards = 0

    def forward(self, *inputs: Tensor) -> Any:
        assert not any(module.training for module in self.modules()), "asked in training mode"
        assert not any(p.requires_grad for p in self.parameters()), "asked with parameters that are not frozen"
        self.calls += 1
        self.forwards += len(inputs[0])
        floats = [value for value in inputs if value.requires_grad]
        if floats:
            floats[0].register_hook(self._back)
        return self.model(*inputs)

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def net(build: type[nn.Module], seed: int = 0) -> nn.Module:
    """One of the models above, in float64."""
    return seeded(build, seed).double()


MOST = 40  # samples; a smaller batch is a part of the whole one


def sentences(n: int, seed: int = 0) -> Tensor:
    """(n, T) tokens; the last of every second sample is padding."""
    tokens = torch.randint(1, VOCABULARY, (MOST, LENGTH), generator=torch.Generator().manual_seed(seed))
    tokens[::2, -1] = PADDING
    return tokens[:n]


def graphs(n: int, nodes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and adjacency of n random graphs."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(MOST, nodes, 3, generator=generator, dtype=torch.float64)
    upper = torch.rand(MOST, nodes, nodes, generator=generator).lt(0.4).double().triu(1)
    return features[:n], (upper + upper.mT)[:n]


def images(n: int, seed: int = 0) -> Tensor:
    """(n, 2, 4, 4) in [0, 1], float64."""
    return torch.rand(MOST, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[:n]
