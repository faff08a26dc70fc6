"""Citation graphs and nets of graphs: against SciPy's components, and the layer written out with matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch import Tensor

from robustlab import models
from robustlab.attacker.domain import Graphs
from robustlab.data import Citations, citations
from robustlab.models import GraphConvolution, OnGraph
from robustlab.training.fit import fit

SIZES = {"cora": (2708, 5278, 1433, 140, 7), "citeseer": (3327, 4552, 3703, 120, 6)}


def matrix(graph: Citations) -> csr_matrix:
    i, j = graph.edges.T.numpy()
    return csr_matrix((torch.ones(len(i)).numpy(), (i, j)), shape=(len(graph), len(graph)))


@pytest.mark.parametrize("name", SIZES)
def test_the_graphs_are_what_they_say(name: str) -> None:
    graph = citations(name)  # type: ignore[arg-type]
    nodes, edges, words, train, classes = SIZES[name]
    assert (len(graph), len(graph.edges), graph.features.shape[1], len(graph.train)) == (nodes, edges, words, train)
    assert (len(graph.val), len(graph.test), int(graph.y.max()) + 1) == (500, 1000, classes)
    split = torch.cat([graph.train, graph.val, graph.test])
    assert len(split.unique()) == len(split) and bool((graph.y[split] >= 0).all())
    assert graph.y[graph.train].bincount().tolist() == [20] * classes
    assert bool((graph.edges[:, 0] < graph.edges[:, 1]).all()) and len(graph.edges.unique(dim=0)) == edges
    sums = torch.sparse.sum(graph.features, dim=1).to_dense()
    assert bool(((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()) and int((sums == 0).sum()) == 15 * (classes == 6)
    features, adjacency = graph.dense()
    Graphs().check((features, adjacency))
    assert int(adjacency.sum()) == 2 * edges == int(graph.adjacency._nnz())


def test_a_part_is_connected_and_the_nearest_to_its_start() -> None:
    graph = citations("cora")
    _, label = connected_components(matrix(graph), directed=False)
    largest = np.unique(label, return_counts=True)[1].max()
    seen = set()
    for seed in range(3):
        part = graph.connected_part(500, seed=seed)
        assert len(part) == 500 and connected_components(matrix(part), directed=False)[0] == 1
        assert torch.equal(part.y, graph.y[part.origin]) and "500 nodes" in repr(part)
        dense, whole = part.dense(), graph.dense()
        assert torch.equal(dense[1][0], whole[1][0][part.origin][:, part.origin])
        assert torch.equal(dense[0][0], whole[0][0][part.origin])
        for name in ("train", "val", "test"):
            inside = torch.isin(getattr(graph, name), part.origin)
            assert torch.equal(part.origin[getattr(part, name)], getattr(graph, name)[inside])
        full = part.connected_part(500)
        assert torch.equal(full.origin, part.origin), "all of a connected graph is itself"
        order = breadth_first_order(matrix(part), 0, directed=False, return_predecessors=False)
        assert len(order) == 500
        seen.add(tuple(part.origin.tolist()))
    assert len(seen) == 3 and torch.equal(graph.connected_part(500).origin, graph.connected_part(500).origin)
    for wrong, match in ((0, "n"), (int(largest) + 1, f"n: want at most {int(largest)}, the nodes of the largest")):
        with pytest.raises(ValueError, match=match):
            graph.connected_part(wrong)
    for nodes in (torch.tensor([1, 1]), torch.tensor([2708]), torch.tensor([0.0])):
        with pytest.raises(ValueError, match=r"^nodes: want"):
            graph.induced(nodes)
    with pytest.raises(ValueError, match=r"^name: want one of"):
        citations("pubmed")  # type: ignore[arg-type]


def written_out(layer: GraphConvolution, features: Tensor, adjacency: Tensor) -> Tensor:
    """D^(−1/2)·(A + I)·D^(−1/2)·H·W + b."""
    looped = adjacency + torch.eye(adjacency.shape[-1])
    root = torch.diag_embed(looped.sum(dim=-1) ** -0.5)
    return root @ looped @ root @ features @ layer.weight + layer.bias


def test_a_layer_is_the_formula_dense_and_sparse_and_differentiable_in_weights_of_edges() -> None:
    torch.manual_seed(0)
    layer = GraphConvolution(4, 3).double()
    layer.bias.data.normal_()
    features = torch.randn(2, 5, 4, dtype=torch.float64)
    half = torch.rand(2, 5, 5, dtype=torch.float64).triu(1)
    adjacency = half + half.mT
    torch.testing.assert_close(layer(features, adjacency), written_out(layer, features, adjacency))
    assert torch.autograd.gradcheck(layer, (features.requires_grad_(True), adjacency.requires_grad_(True)))
    for words in (features[0].detach(), features[0].detach().to_sparse()):
        sparse = layer(words, adjacency[0].detach().to_sparse())
        torch.testing.assert_close(sparse, written_out(layer, features[0], adjacency[0]))


def test_a_net_on_a_graph_is_trained_by_fit() -> None:
    """Sparse and dense give one training; dropout acts in training alone; the graph is no part of the weights."""
    part = citations("cora").connected_part(60)
    nodes = torch.arange(60)
    found = []
    for sparse in (True, False):
        net = models.build("graph_net", features=1433, classes=7, dropout=0.0, seed=3)
        words, edges = part.features, part.adjacency
        on_graph = OnGraph(net, *((words, edges) if sparse else (words.to_dense(), edges.to_dense())))
        assert set(on_graph.state_dict()) == {f"net.{name}" for name in net.state_dict()}
        fit(on_graph, (nodes, part.y), epochs=12, batch_size=60, lr=0.05, seed=1)
        found.append(on_graph.eval()(nodes).detach())
        assert torch.allclose(found[-1], net(*part.dense())[0].detach(), atol=1e-5)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert float((found[0].argmax(dim=1) == part.y).double().mean()) > 0.9
    dropping = models.build("graph_net", features=1433, classes=7, seed=3)
    on_graph = OnGraph(dropping, part.features, part.adjacency).train()
    assert not torch.equal(on_graph(nodes), on_graph(nodes))
    on_graph.eval()
    assert torch.equal(on_graph(nodes), on_graph(nodes))
    with pytest.raises(ValueError, match=r"features, adjacency: want shapes \(V, F\) and \(V, V\)"):
        OnGraph(dropping, part.features, part.adjacency.to_dense()[:5])
    for wrong in ({"classes": 1}, {"features": 0}, {"hidden": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            models.build("graph_net", **{"features": 4, "classes": 3, **wrong})
