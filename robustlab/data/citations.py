"""Two citation graphs, Cora and Citeseer: who cites whom, the words of each paper, and its subject.

An edge joins two papers of which one cites the other; edges have no direction. Features are kept sparse, edges as a
list: a net reads both without a matrix of all pairs, and :meth:`Citations.dense` writes that for those who need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.embedded import Source, read_source
from robustlab.geometry.keyed import Noise

CitationName = Literal["cora", "citeseer"]
_CITATION = (
    "Yang, Cohen and Salakhutdinov, Revisiting semi-supervised learning with graph embeddings, ICML 2016; Sen, Namata, "
    "Bilgic, Getoor, Gallagher and Eliassi-Rad, Collective classification in network data, AI Magazine, 2008."
)
_LICENSE = "MIT, copyright 2016 Zhilin Yang: planetoid_LICENSE.txt beside the file. The raw data state no license."
CITATIONS: dict[str, Source] = {
    name: Source(
        title=title,
        file=f"{name}.npz",
        sha256=sha256,
        classes=tuple(f"subject {k}" for k in range(classes)),
        provenance=f"The graph and the split of github.com/kimiyoung/planetoid; {name}.json beside the file has the "
        "details.",
        license=_LICENSE,
        citation=_CITATION,
    )
    for name, title, sha256, classes in (
        (
            "cora",
            "Cora, 2,708 papers and 5,278 citations",
            "b0d03fe475aaef773fc1aea3c33b8fc43dbd8b3cbd166af3a39d9f5bb8a8232d",
            7,
        ),
        (
            "citeseer",
            "Citeseer, 3,327 papers and 4,552 citations",
            "4e45e584398c6e1cb36329bdf1515b81f06aef9fa21cfc74cf8351948c81c804",
            6,
        ),
    )
}
"""Where the graphs come from."""


@dataclass(frozen=True, eq=False, repr=False)
class Citations:
    """A graph whose nodes have words and a subject.

    Attributes:
        name: of the data set.
        features: (V, F) sparse float32: each paper's words, in equal shares of sum 1; a paper without words has none.
        edges: (E, 2) int64, i < j, each once.
        y: (V,) int64 subjects; −1 where none is known.
        train, val, test: indices of the nodes of the split, ascending.
        origin: (V,) int64, the nodes' places in the whole graph.
    """

    name: str
    features: Tensor
    edges: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    origin: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Citations({self.name}: {len(self)} nodes, {len(self.edges)} edges, {self.features.shape[1]} words)"

    @property
    def adjacency(self) -> Tensor:
        """(V, V) sparse, 1 in both directions of each edge."""
        both = torch.cat([self.edges, self.edges.flip(1)]).T
        ones = torch.ones(both.shape[1], device=both.device)
        return torch.sparse_coo_tensor(both, ones, (len(self), len(self)), check_invariants=False).coalesce()

    def dense(self) -> tuple[Tensor, Tensor]:
        """The batch of one graph that an attack takes: features (1, V, F) and adjacency (1, V, V), float32.

        The second has V² entries: 29 MB for Cora, 44 MB for Citeseer.
        """
        return self.features.to_dense()[None], self.adjacency.to_dense()[None]

    def induced(self, nodes: Tensor) -> Citations:
        """The graph of some nodes (n,) int64 and the edges between them.

        Raises:
            ValueError: if a node is named twice or is none.
        """
        if nodes.dim() != 1 or nodes.is_floating_point() or len(nodes.unique()) != len(nodes):
            raise ValueError(f"nodes: want different integers (n,), got shape {tuple(nodes.shape)} of {nodes.dtype}")
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < len(self):
            raise ValueError(f"nodes: want nodes in 0 … {len(self) - 1}, got {int(nodes.min())} … {int(nodes.max())}")
        place = torch.full((len(self),), -1, device=nodes.device).index_put_(
            (nodes,), torch.arange(len(nodes)).to(nodes)
        )
        moved = place[self.edges]
        moved = moved[(moved >= 0).all(dim=1)].sort(dim=1).values
        split = {name: place[getattr(self, name)] for name in ("train", "val", "test")}
        return Citations(
            name=self.name,
            features=self.features.index_select(0, nodes).coalesce(),
            edges=moved,
            y=self.y[nodes],
            origin=self.origin[nodes],
            **{name: part[part >= 0].sort().values for name, part in split.items()},
        )

    def connected_part(self, n: int, *, seed: int = 0) -> Citations:
        """A connected part of about n nodes: the first n that a search in breadth meets, from a node that is drawn.

        Nodes at the same distance come in an order that is drawn too. The start is one of the largest component.

        Args:
            n: number of nodes, at least 1.
            seed: of start and order.

        Raises:
            ValueError, TypeError: if n is no positive integer, or more than the largest component has.
        """
        checks.at_least("n", n, 1, integer=True)
        label = _components(len(self), self.edges)
        largest = (label == label.bincount().argmax()).nonzero().flatten()
        if n > len(largest):
            raise ValueError(f"n: want at most {len(largest)}, the nodes of the largest component, got {n}")
        rank = Noise(seed, torch.arange(1)).permutation(0, len(self))[0].to(self.edges.device)
        start = largest[rank[largest].argmin()]
        both = torch.cat([self.edges, self.edges.flip(1)])
        distance = torch.full((len(self),), -1, device=self.edges.device)
        distance[start], reached = 0, 0
        while int((distance >= 0).sum()) < n:
            beyond = both[distance[both[:, 0]] == reached, 1]
            reached += 1
            distance[beyond[distance[beyond] < 0]] = reached
        found = (distance >= 0).nonzero().flatten()
        order = (distance[found] * len(self) + rank[found]).argsort()
        return self.induced(found[order[:n]].sort().values)


def citations(name: CitationName) -> Citations:
    """A citation graph that ships here, with the split of Yang et al. (2016).

    ``"cora"``: 2,708 papers on machine learning in 7 subjects, 1,433 words, 5,278 edges; ``"citeseer"``: 3,327 papers
    in 6 subjects, 3,703 words, 4,552 edges, where 15 papers have neither words nor subject. 20 papers of each subject
    are for training, 500 for validation, 1,000 for testing.

    Raises:
        ValueError: if the name is unknown, or the shipped file was changed.
    """
    checks.one_of("name", name, get_args(CitationName))
    arrays = read_source(CITATIONS[name])
    starts, words = (torch.from_numpy(arrays[key]).long() for key in ("indptr", "indices"))
    count = starts.diff()
    rows = torch.arange(len(count)).repeat_interleave(count)
    shares = (1 / count.double())[rows].float()
    shape = tuple(int(size) for size in arrays["shape"])
    features = torch.sparse_coo_tensor(torch.stack([rows, words]), shares, shape, check_invariants=False).coalesce()
    split = torch.from_numpy(arrays["split"])
    parts = {part: (split == number).nonzero().flatten() for number, part in enumerate(("train", "val", "test"), 1)}
    return Citations(
        name=name,
        features=features,
        edges=torch.from_numpy(arrays["edges"].astype("int64")),
        y=torch.from_numpy(arrays["labels"]).long(),
        origin=torch.arange(len(count)),
        **parts,
    )


def _components(vertices: int, edges: Tensor) -> Tensor:
    """(V,) the least node of each node's component."""
    label = torch.arange(vertices, device=edges.device)
    while True:
        least = label.clone()
        for a, b in ((0, 1), (1, 0)):
            least.scatter_reduce_(0, edges[:, a], label[edges[:, b]], "amin")
        least = least[least]
        if torch.equal(least, label):
            return label
        label = least
