"""A Flower app as its users write them, and one of its clients under attack by a mod.

    python benchmarks/flower_app.py                      ten clients; the first replaces the model in the third round
    python benchmarks/flower_app.py --attack none        the same app without the mod
    python benchmarks/flower_app.py --attack claim       poisoned training that claims a million samples, unscaled

Needs ``pip install ".[federated]"``. All but :func:`replacement`, :func:`poison` and :func:`mods` is the app, which
knows nothing of robustlab's federated learning: it sends models, and Flower's own strategy takes their mean.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before the first import of Flower

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

from robustlab import data, models
from robustlab.attacks import PatchTrigger, evaluate_backdoor, flower_mod, model_replacement
from robustlab.attacks.federated.malicious_update import MixedBatches
from robustlab.training.clients import Turn, local_update
from robustlab.training.updates import Delta

CLIENTS, ROUNDS, TARGET = 10, 3, 0


def partition(client: int) -> tuple[Tensor, Tensor]:
    """A client's digits."""
    digits = data.load("mnist5k")
    return digits.x_train[client::CLIENTS], digits.y_train[client::CLIENTS]


# The attack ----------------------------------------------------------------------------------------------------------


def replacement(model: nn.Module, given: tuple[Tensor, Tensor], turn: Turn) -> Delta:
    """The same function that a Client of robustlab's own simulation takes."""
    return model_replacement(model, given, target=TARGET, weight=turn.weight, seed=turn.seed).delta


def poison(model: nn.Module, given: tuple[Tensor, Tensor], turn: Turn) -> Delta:
    """Honest training, but for a trigger on a third of each batch."""
    x, y = given
    objective = MixedBatches(PatchTrigger()(x[y != TARGET]), TARGET, share=1 / 3)
    return local_update(model, given, seed=turn.seed, objective=objective)


def mods(attack: str) -> list[Any]:
    """What is put before the app."""
    model = models.build("small_cnn")
    if attack == "replace":
        return [flower_mod(replacement, model=model, data=partition, weight=1 / CLIENTS, clients=[0], rounds=[2])]
    if attack == "claim":
        return [flower_mod(poison, model=model, data=partition, weight=1.0, clients=[0], claimed=1_000_000)]
    return []


# The app -------------------------------------------------------------------------------------------------------------


def client_app(before: list[Any]) -> ClientApp:
    """Trains what comes on the node's own data."""
    app = ClientApp(mods=before)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        x, y = partition(int(context.node_config["partition-id"]))
        model = models.build("small_cnn")
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        model.train()
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        facts = MetricRecord({"train-loss": loss.item(), "num-examples": len(x)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": facts}), reply_to=message)

    return app


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging among all clients."""
    digits = data.load("mnist5k")
    test = digits.x_test[:500], digits.y_test[:500]

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        model = models.build("small_cnn")
        model.load_state_dict(arrays.to_torch_state_dict())
        seen = evaluate_backdoor(model, test, PatchTrigger(), TARGET)
        main, backdoor = float(seen.clean_accuracy), float(seen.attack_success)
        print(f"after round {number}: main accuracy {main:.3f}, backdoor {backdoor:.3f}", flush=True)
        return MetricRecord({"main": main, "backdoor": backdoor})

    # Below these minima Flower would begin with the clients that happen to be there.
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy.start(grid, ArrayRecord(models.build("small_cnn").state_dict()), num_rounds=ROUNDS, evaluate_fn=evaluate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", choices=("replace", "claim", "none"), default="replace")
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    resources = {"init_args": {"num_cpus": chosen.cpus}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app(mods(chosen.attack)), CLIENTS, backend_config=resources)
