"""Chapter 14: all of Cora and of Citeseer under the topology attack at the paper's 200 steps and 20 draws.

The attack flips at most 5 % of the edges, to take from the papers of the training and test parts the labels that a net
gives them. A row is one graph and one net of the recipe. Its shares are about the 1,000 test papers whose label is not
the true one, as the paper's numbers are; "loss" is the attacker's at the start and after one and two steps, which a
chapter can repeat, and "late" that before steps 25, 50, 100 and 200. The same after 25 steps, on one net, stands in
:mod:`experiments.topology`.
"""

from __future__ import annotations

from typing import Any

import torch

from experiments.record import Experiment
from experiments.topology import DRAWS as NETS
from experiments.topology import GRAPHS, natural, says
from robustlab.attacker.domain import Graphs
from robustlab.attacker.victim import Victim
from robustlab.attacks import topology
from robustlab.data import citations
from robustlab.intervals import Rate

STEPS, DRAWS, SHARE = 200, 20, 0.05
FIRST, LATE = 3, (25, 50, 100, 200)


def measure(graph: str, net: int) -> dict[str, Any]:
    """One row."""
    whole, model = citations(graph), natural(graph, net)  # type: ignore[arg-type]
    x, test = whole.dense(), whole.test
    told = {"budget": round(SHARE * len(whole.edges)), "nodes": torch.cat([whole.train, test])}
    victim = Victim(model, domain=Graphs(), answer="sequence")
    found = topology(victim, x, steps=STEPS, draws=DRAWS, trace=True, **told)  # type: ignore[arg-type]
    assert found.trace is not None  # asked for
    loss = found.trace["loss"][:, 0].tolist()
    x_adv: Any = found.x_adv
    return {
        "edges": len(whole.edges),
        "flipped": int(found.distances["edges"]),
        "wrong, clean": Rate.of((says(model, x) != whole.y)[test]),
        "wrong, CE-PGD": Rate.of((says(model, x_adv) != whole.y)[test]),
        "loss": [round(f, 4) for f in loss[:FIRST]],
        "late": [round(loss[step - 1], 4) for step in LATE],
    }


EXPERIMENT = Experiment(
    name="whole_graphs",
    question="How many papers of all of Cora and Citeseer are misread after 200 steps of the topology attack?",
    cases=[{"graph": graph, "net": net} for graph in GRAPHS for net in NETS],
    measure=measure,
    n={"graphs": len(GRAPHS), "nets": len(NETS), "test papers": 1000},
    seeds=NETS,
    data=GRAPHS,
    nets=[f"{graph}_gcn{seed}" for graph in GRAPHS for seed in ("", "-1", "-2")],
    tolerance={"edges": 0.0, "flipped": 5.0, "loss": 0.01, "late": 0.05},
)

if __name__ == "__main__":
    EXPERIMENT.main()
