"""A small graph convolution net, and the form in which a net of one graph's nodes is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.models.registry import register


class GraphConvolution(nn.Module):
    """One layer of Kipf and Welling (2017), equation (2), without its nonlinearity: Â·H·W + b.

        Â = D^(−1/2)·(A + I)·D^(−1/2),  D = diag(1 + Σ_j A_ij)

    A may be dense, (N, V, V) for N graphs, or sparse, (V, V) for one; its entries may be weights in [0, 1], in which
    the layer is differentiable. Neither A + I nor Â is ever written: with r = D^(−1/2)·1 and Z = H·W,
    Â·Z = r ⊙ (A·(r ⊙ Z) + r ⊙ Z).

    Args:
        inputs, outputs: numbers per node.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """(…, V, inputs) and the adjacency → (…, V, outputs); sparse features too."""
        mixed = torch.sparse.mm(features, self.weight) if features.is_sparse else features @ self.weight
        sums = torch.sparse.sum(adjacency, dim=1).to_dense() if adjacency.is_sparse else adjacency.sum(dim=-1)
        root = (sums + 1).rsqrt().unsqueeze(-1)
        mixed = root * mixed
        return root * ((adjacency @ mixed) + mixed) + self.bias


class GraphNet(nn.Module):
    """Two graph convolutions with a ReLU and dropout before each: features and adjacency → logits of the nodes."""

    def __init__(self, features: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(features, hidden), GraphConvolution(hidden, classes)
        self.dropout = dropout

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """Features (N, V, F) and adjacency (N, V, V), or both sparse and without N → logits (N, V, K) or (V, K)."""
        hidden = self.first(self._dropped(features), adjacency).relu()
        return self.second(self._dropped(hidden), adjacency)

    def _dropped(self, x: Tensor) -> Tensor:
        if not x.is_sparse:
            return F.dropout(x, self.dropout, self.training)
        values = F.dropout(x.values(), self.dropout, self.training)
        return torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True, check_invariants=False)


class OnGraph(nn.Module):
    """A net on one graph: nodes (n,) int64 → their logits (n, K).

    It is the form in which :func:`robustlab.training.fit.fit` trains the net, with pairs (nodes, labels) as data. The
    net reads the whole graph, whatever nodes are asked about. The graph moves with the module, and is no part of its
    ``state_dict``.

    Args:
        net: from features and adjacency to the logits of all nodes, such as :class:`GraphNet`.
        features: (V, F), dense or sparse.
        adjacency: (V, V), dense or sparse.
    """

    def __init__(self, net: nn.Module, features: Tensor, adjacency: Tensor) -> None:
        super().__init__()
        if features.dim() != 2 or adjacency.shape != (features.shape[0],) * 2:
            shapes = tuple(features.shape), tuple(adjacency.shape)
            raise ValueError(f"features, adjacency: want shapes (V, F) and (V, V), got {shapes[0]} and {shapes[1]}")
        self.net = net
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.features: Tensor
        self.adjacency: Tensor

    def check_inputs(self, name: str, nodes: Tensor) -> None:
        """Raises unless these are numbers of nodes; :func:`robustlab.training.fit.fit` asks before any work."""
        if nodes.dtype != torch.int64 or nodes.dim() != 1:
            raise TypeError(f"{name}: want int64 nodes (n,), got {nodes.dtype} {tuple(nodes.shape)}")
        wrong = (nodes < 0) | (nodes >= self.features.shape[0])
        if bool(wrong.any()):
            raise ValueError(f"{name}: want nodes in 0 … {self.features.shape[0] - 1}, got {nodes[wrong][:5].tolist()}")

    def forward(self, nodes: Tensor) -> Tensor:
        """Logits (n, K) of the nodes."""
        if self.features.is_sparse or self.adjacency.is_sparse:
            return self.net(self.features, self.adjacency)[nodes]
        return self.net(self.features[None], self.adjacency[None])[0, nodes]


@register
def graph_net(*, features: int, classes: int, hidden: int = 16, dropout: float = 0.5, seed: int = 0) -> nn.Module:
    """The two-layer graph convolution net of Kipf and Welling (2017), equation (9).

    Args:
        features: numbers per node.
        classes: number of outputs, at least 2.
        hidden: width of the layer between (default 16).
        dropout: of features and hidden units, in [0, 1) (default 0.5).
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer, or the dropout is out of range.
    """
    for name, value in (("features", features), ("hidden", hidden)):
        checks.at_least(name, value, 1, integer=True)
    checks.at_least("classes", classes, 2, integer=True)
    checks.not_negative("dropout", dropout)
    checks.below("dropout", dropout, 1)
    return GraphNet(features, classes, hidden, dropout)
