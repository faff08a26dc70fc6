"""Making and measuring the nets of citation graphs: trained on 20 papers of each subject, sparse."""

from __future__ import annotations

import torch
from torch import nn

from robustlab.attacker.domain import Graphs
from robustlab.attacker.victim import Victim
from robustlab.data.citations import citations
from robustlab.models.graphs import OnGraph
from robustlab.training.fit import fit
from robustlab.zoo.recipes import Recipe
from robustlab.zoo.shipped import resolve

PART = 500  # nodes of the connected part that is attacked


def train_on_graph(made_by: Recipe, model: nn.Module, *, device: torch.device | str | None, progress: bool) -> None:
    """Train a net by its recipe on the labeled papers of its graph."""
    graph = citations(made_by.dataset)  # type: ignore[arg-type]
    told = {"seed": made_by.seed, "device": device, "progress": progress, **made_by.fit_kwargs}
    fit(OnGraph(model, graph.features, graph.adjacency), (graph.train, graph.y[graph.train]), **told)


def measure_on_graph(made_by: Recipe, model: nn.Module) -> tuple[float, float]:
    """The share of test papers that are right, and of those in a part of 500 nodes under the recipe's attack.

    The attack flips the share ``eps`` of the part's edges, to take the true labels of its test papers.
    """
    graph = citations(made_by.dataset)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    part = graph.connected_part(PART)
    with torch.no_grad():
        answer = OnGraph(model, graph.features.to(device), graph.adjacency.to(device)).eval()(graph.test.to(device))
        right = answer.argmax(dim=1).cpu() == graph.y[graph.test]
        x = tuple(both.to(device) for both in part.dense())
        flips = round(made_by.attack["eps"] * len(part.edges))
        victim, y = Victim(model, domain=Graphs(), answer="sequence"), part.y.clamp_min(0)[None].to(device)
        told = {name: made_by.attack[name] for name in ("steps", "seed")}
        result = resolve("robustlab.attacks.topology")(victim, x, y, budget=flips, nodes=part.test, **told)
        kept = model(*result.x_adv)[0].argmax(dim=1).cpu()[part.test] == part.y[part.test]
    return right.double().mean().item(), kept.double().mean().item()
