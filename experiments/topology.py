"""Chapter 14: attacks on the edges of citation graphs, on nets as they are and on nets trained against them.

A row is one graph, one draw and one net. The draw chooses a connected part of 500 papers, whose own edges are all there
is, and the seed of the net. "natural" is the shipped recipe, trained on the whole graph. "adversarial" is trained on
the part by topology adversarial training, on labels that the natural net predicts, as the paper's code has it;
"control" is trained on the same nodes and labels without an attack. The attacks flip at most 1, 3 or 5 % of the part's
edges, to take from the part's test papers the labels that the net itself gives them. A result is the share of these
papers whose label was lost ("moved") or whose label is not the true one ("wrong"). "(true)" is an attack on the true
labels, and "retrained" a net trained anew on the attacked part, with the labels of its training and validation papers.

In rows of the net "whole" all of the graph is attacked with 5 % of its edges, to take the labels of the training and
test papers; a result is about the 1,000 test papers, as the paper's numbers are. Its 25 steps are an eighth of the
paper's, so that these rows are lower bounds of what it takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import models
from robustlab.attacker.domain import Graphs
from robustlab.attacker.victim import Victim
from robustlab.attacks import Retraining, dice, greedy_edges, random_edges, topology
from robustlab.data import Citations, citations
from robustlab.defenses import topology_training
from robustlab.intervals import Rate
from robustlab.training.fit import fit

GRAPHS, DRAWS, SHARES = ("cora", "citeseer"), (0, 1, 2), (0.01, 0.03, 0.05)
NODES, STEPS, WHOLE_STEPS, WHOLE_DRAWS = 500, 40, 25, 5
DEFENDED = {"control": 0.0, "adversarial": 0.05}  # the share of edges that the training's own attack may flip
Graph = tuple[Tensor, Tensor]
ATTACKS: dict[str, Any] = {
    "CE-PGD": lambda *told, **how: topology(*told, steps=STEPS, **how),
    "CW-PGD": lambda *told, **how: topology(*told, steps=STEPS, loss="margin", **how),
    "greedy": greedy_edges,
    "DICE": dice,
    "random": random_edges,
}


def natural(graph: str, draw: int) -> nn.Module:
    """The recipe's net at the seed of the draw."""
    return nets.load(f"{graph}_gcn" + (f"-{draw}" if draw else ""))[0]


def says(net: nn.Module, x: Graph) -> Tensor:
    """(V,) the label of each node."""
    with torch.no_grad():
        return net(*x)[0].argmax(dim=1)


def trained(part: Citations, nodes: Tensor, labels: Tensor, *, share: float, seed: int) -> nn.Module:
    """A net trained on a part; ``share`` of its edges may be flipped by the training's own attack."""
    sizes = {"features": part.features.shape[1], "classes": int(labels.max()) + 1, "hidden": 32, "dropout": 0.0}
    net = models.build("graph_net", seed=seed, **sizes)
    x = part.dense()
    on_graph = models.OnGraph(net, x[0][0], x[1][0]) if share else models.OnGraph(net, part.features, part.adjacency)
    how = {"epochs": 150, "lr": 0.02, "weight_decay": 5e-4, "batch_size": len(part), "schedule": "constant"}
    fit(on_graph, (nodes, labels[nodes]), objective=topology_training(share=share, steps=5), seed=seed, **how)
    return net.eval()


def retrained(part: Citations, x: Graph, classes: int, seed: int) -> nn.Module:
    """A net trained anew on an attacked part, on the papers whose labels are known."""
    known = torch.cat([part.train, part.val])
    net = models.build("graph_net", seed=seed, features=part.features.shape[1], classes=classes)
    how = {"epochs": 100, "lr": 0.02, "weight_decay": 5e-4, "batch_size": len(part), "schedule": "constant"}
    fit(models.OnGraph(net, part.features, x[1][0].to_sparse()), (known, part.y[known]), seed=seed, **how)
    return net.eval()


def measure(graph: str, draw: int, net: str) -> dict[str, Any]:
    """One row."""
    base = natural(graph, draw)
    if net == "whole":
        return on_all(citations(graph), base, draw)  # type: ignore[arg-type]
    part = citations(graph).connected_part(NODES, seed=draw)  # type: ignore[arg-type]
    x, test, truth = part.dense(), part.test, part.y.clamp_min(0)
    everyone, taught = torch.arange(len(part)), says(base, x)
    model = base if net == "natural" else trained(part, everyone, taught, share=DEFENDED[net], seed=draw)
    victim, own = Victim(model, domain=Graphs(), answer="sequence"), says(model, x)
    found: dict[str, Any] = {"edges": len(part.edges), "wrong, clean": Rate.of((own != part.y)[test])}
    attacked: dict[str, Graph] = {"clean": x}

    def note(name: str, x_adv: Any) -> None:
        label = says(model, x_adv)
        found[f"moved, {name}"] = Rate.of((label != own)[test])
        found[f"wrong, {name}"] = Rate.of((label != part.y)[test])

    for share in SHARES:
        told = {"budget": round(share * len(part.edges)), "nodes": test, "seed": draw}
        for name, attack in ATTACKS.items():
            x_adv = attack(victim, x, **told).x_adv
            note(f"{name}, {share:.0%}", x_adv)
            if share == SHARES[-1]:
                attacked[name] = x_adv
        if share == SHARES[-1]:
            note(f"CE-PGD (true), {share:.0%}", ATTACKS["CE-PGD"](victim, x, truth[None], **told).x_adv)
            if net == "natural":
                known = torch.cat([part.train, part.val])
                how = Retraining(known, part.y[known])
                attacked["min-max"] = topology(victim, x, steps=STEPS, retrain=how, **told).x_adv
                note(f"min-max, {share:.0%}", attacked["min-max"])
    if net == "natural":
        for name in ("clean", "CE-PGD", "min-max", "greedy", "random"):
            anew = retrained(part, attacked[name], int(citations(graph).y.max()) + 1, draw)  # type: ignore[arg-type]
            found[f"wrong, {name}, retrained"] = Rate.of((says(anew, attacked[name]) != part.y)[test])
    return found


def on_all(graph: Citations, model: nn.Module, draw: int) -> dict[str, Any]:
    """All of a graph, with 5 % of its edges."""
    x, test = graph.dense(), graph.test
    victim = Victim(model, domain=Graphs(), answer="sequence")
    found: dict[str, Any] = {"edges": len(graph.edges), "wrong, clean": Rate.of((says(model, x) != graph.y)[test])}
    told = {"budget": round(0.05 * len(graph.edges)), "nodes": torch.cat([graph.train, test]), "seed": draw}
    for name, attack, how in (
        ("CE-PGD", topology, {"steps": WHOLE_STEPS, "draws": WHOLE_DRAWS}),
        ("DICE", dice, {"draws": WHOLE_DRAWS}),
    ):
        label = says(model, attack(victim, x, **told, **how).x_adv)  # type: ignore[operator]
        found[f"wrong, {name}, 5%"] = Rate.of((label != graph.y)[test])
    return found


EXPERIMENT = Experiment(
    name="topology",
    question="How many labels do flips of a few edges take, and does topology adversarial training keep them?",
    cases=[
        {"graph": graph, "draw": draw, "net": net}
        for graph in GRAPHS
        for draw in DRAWS
        for net in ("natural", *DEFENDED, *(["whole"] if draw == 0 else []))
    ],
    measure=measure,
    n={"graphs": len(GRAPHS), "draws": len(DRAWS), "nodes of a part": NODES},
    seeds=list(DRAWS),
    data=GRAPHS,
    nets=[f"{graph}_gcn{seed}" for graph in GRAPHS for seed in ("", "-1", "-2")],
    tolerance={"edges": 0.0},
)

if __name__ == "__main__":
    EXPERIMENT.main()
