"""A Flower app as its users write them, and one of its clients under attack by a mod.

    python benchmarks/flower_app.py                      ten clients; the first replaces the model in the third round
    python benchmarks/flower_app.py --attack none        the same app without the mod
    python benchmarks/flower_app.py --attack claim       poisoned training that claims a million samples, unscaled

Needs ``pip install ".[federated]"``. All but :func:`replacement`, :func:`poison` and :func:`mods` is the app, which
knows nothing of robustlab's federated learning: it sends models, and Flower's own strategy takes their mean.

Flower starts Ray itself, which gives up where a busy machine does not let it come up within 15 seconds, and the app
then waits for clients without end. So the command runs the app in a process of its own and ends it, with all that it
has started, after ``--timeout`` seconds; ``--timeout 0`` runs it in this process and waits.
"""

from __future__ import annotations

import os

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # before the first import of Flower

import argparse
import signal
import subprocess
import sys
import threading
from contextlib import suppress
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
        number = int(context.node_config["partition-id"])
        torch.manual_seed(number)
        x, y = partition(number)
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


def within(limit: float, command: list[str]) -> None:
    """Run the app in a group of processes of its own, all of which are ended, at the latest after so many seconds.

    Raises:
        SystemExit: where the time runs out or the app fails, and says so.
    """
    late, last = threading.Event(), "before the first round"
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(app.pid, signal.SIGKILL)

    def expire() -> None:
        late.set()
        end()

    timer = threading.Timer(limit, expire)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the app is to be ended, too
    try:
        timer.start()
        for line in app.stdout or ():
            print(line, end="", flush=True)
            last = line.partition(":")[0] if line.startswith("after round") else last
        app.wait()
    finally:
        timer.cancel()
        end()
        app.wait()
        signal.signal(signal.SIGTERM, before)
    if late.is_set():
        raise SystemExit(
            f"timeout: the app did not end within {limit:g} s, and stood {last}; it is ended. Flower's own start of "
            "Ray gives up after 15 s, which a busy machine does not meet, and its server then waits for clients that "
            "never come: run it while little else runs, with fewer --cpus, or with a longer --timeout if rounds were "
            "under way. robustlab.training.flower.simulate_on_flower starts Ray itself, and waits for it."
        )
    if app.returncode:
        raise SystemExit(f"the app failed and returned {app.returncode}; its own error stands above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", choices=("replace", "claim", "none"), default="replace")
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds, of the whole run; 0 for no limit")
    chosen = parser.parse_args()
    if not 0 <= chosen.timeout <= threading.TIMEOUT_MAX:
        parser.error(f"--timeout: want a number of seconds of at least 0, got {chosen.timeout:g}")
    if chosen.timeout:
        within(chosen.timeout, [sys.executable, __file__, *sys.argv[1:], "--timeout", "0"])
    else:
        resources = {"init_args": {"num_cpus": chosen.cpus}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server_app, client_app(mods(chosen.attack)), CLIENTS, backend_config=resources)
