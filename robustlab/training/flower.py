"""The same federated learning on Flower: clients in processes of their own, which Ray runs on many cores.

Beutel et al., "Flower: A friendly federated learning research framework" (2020). The server is that of
:func:`~robustlab.training.federated.simulate`, and so is what clients do; Flower carries the messages. Who takes part,
the clients' seeds and the order of all sums do not depend on who answers first, so the outcome is that of the serial
simulation: bit for bit where this process computes with one thread, as Ray's do, else to rounding.

Flower (1.42) and Ray are optional, ``pip install "robustlab[federated]"``, and imported on use alone. What both would
report of their use to their makers is turned off. Ray is started for one call, on this machine's own address 127.0.0.1,
and it and all its processes end with the call, also where that ends by an exception or a time-out.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.progress import bar
from robustlab.training.averaging import put
from robustlab.training.clients import Client, ClientUpdate, LocalTraining, Pair, Turn
from robustlab.training.federated import Federation, Server, answer
from robustlab.training.updates import Delta, Divide, Rule, Statistics

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg

__all__ = ["simulate_on_flower"]

Seen = TypeVar("Seen")
Load = Callable[[int], tuple[nn.Module, ClientUpdate, Pair]]
_HONEST = LocalTraining()
_LEAST = 80 * 2**20  # bytes; Ray takes no less
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning on each start
    "RAY_prestart_worker_first_driver": "0",  # Flower starts its own
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on all systems: this machine's own address, not that of its network
    "OMP_NUM_THREADS": "1",
}
_GROUPS = ("parameters", "statistics", "counters")


def simulate_on_flower(
    model: nn.Module,
    clients: Sequence[Client],
    *,
    rounds: int,
    selected: int | None = None,
    honest: ClientUpdate = _HONEST,
    eta: float = 1.0,
    divide: Divide = "selected",
    rule: Rule | None = None,
    statistics: Statistics = "together",
    schedule: Mapping[int, Sequence[int]] | None = None,
    on_round: Callable[[int, nn.Module], Seen] | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    cpus: int = 2,
    memory: int = 2**29,
    timeout: float = 600.0,
) -> Federation[Seen]:
    """Run rounds of federated learning on Flower, so many clients at a time as there are CPUs.

        G ← G + Σ_{i selected} w_i · δ_i      as :func:`~robustlab.training.federated.simulate` has it

    Args:
        model, clients, rounds, selected, honest, eta, divide, rule, statistics, schedule: as ``simulate`` takes them.
            Clients train on the CPU. What they do is sent to other processes, so that a client that keeps notes in a
            list of the caller's keeps them there and not here.
        on_round, seed, progress, resume: as ``simulate`` takes them; ``on_round`` is called here, in a thread. A folder
            of the one resumes the other.
        cpus: of this machine that Ray may use: so many clients train at a time, on one thread each.
        memory: bytes of memory that Ray shares between processes, at least 80 MiB, by default 512 MiB. All clients'
            data, the model and the messages of a round must fit in, or Ray moves them to the disk. Each process has
            its own memory besides, about that of an import of PyTorch.
        timeout: seconds that Ray may take to come up, and that the clients of a round may take to answer.

    Returns:
        Federation.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work, more CPUs than this machine has among them.
        ImportError: where Flower or Ray is not installed.
        RuntimeError: if Ray does not come up, or runs in this process already, or a client fails, which is named.
        TimeoutError: if Ray does not come up in time, or clients do not answer in time, which are named.

    Source:
        McMahan et al. (2017), algorithm 1, on the framework of Beutel et al. (2020).
    """
    server = Server(
        model, clients, rounds=rounds, selected=selected, honest=honest, eta=eta, divide=divide, rule=rule,
        statistics=statistics, schedule=schedule, on_round=on_round, seed=seed, resume=resume,
    )  # fmt: skip
    checks.at_least("cpus", cpus, 1, integer=True)
    checks.at_most("cpus", cpus, os.cpu_count() or 1)
    checks.at_least("memory", memory, _LEAST, integer=True)
    checks.positive("timeout", timeout)
    _require_packages()
    if server.first < rounds:
        with _environment(), _ray(cpus, memory, timeout) as end_clients:
            updates = [client.attack or honest for client in clients]
            _run(server, updates, range(server.first, rounds), timeout, progress, end_clients)
    return server.outcome()


def _run(
    server: Server[Seen], updates: Sequence[ClientUpdate], numbers: Sequence[int], timeout: float, progress: bool,
    end_clients: Callable[[], None],
) -> None:  # fmt: skip
    """All rounds on Flower, whose server runs in a thread, on the Ray that is up."""
    import ray
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    # What does not change is handed to Ray once; messages carry the rest.
    template = ray.put(copy.deepcopy(server.model).cpu())
    boxes = [ray.put((update, x.cpu(), y.cpu())) for update, (x, y) in zip(updates, server.data, strict=True)]

    def load(client: int) -> tuple[nn.Module, ClientUpdate, Pair]:
        update, x, y = ray.get(boxes[client])
        return ray.get(template), update, (x, y)

    failures: list[BaseException] = []
    stopped = threading.Event()
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, context: object) -> None:
        impatient = _Impatient(grid, stopped)
        try:
            strategy = _strategy(server, numbers, timeout, progress)
            state = ArrayRecord(server.model.state_dict())
            strategy.start(cast("Grid", impatient), state, num_rounds=len(numbers), timeout=timeout)
        except BaseException as failure:  # Flower would swallow some of them
            failures.append(failure)
            if impatient.waiting:
                end_clients()  # one that still works would hold Flower up

    try:
        run_simulation(
            app, _client_app(load), len(updates),
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )  # fmt: skip
    except Exception as failure:
        failures.append(RuntimeError(f"flower: its simulation broke off: {failure}"))
    finally:
        stopped.set()
    if failures:
        raise failures[0]


def _strategy(server: Server[Seen], numbers: Iterable[int], timeout: float, progress: bool) -> FedAvg:
    """The server as a strategy of Flower's."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg

    rounds = iter(bar(numbers, show=progress, label="simulate"))

    class Strategy(FedAvg):
        """Asks the clients that the server draws, and hands it their answers in the order of their numbers."""

        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            turns = server.turns(next(rounds))
            self.nodes = getattr(self, "nodes", None) or _nodes(grid, server.total, timeout)
            previous = {} if server.previous is None else {"previous": _packed(server.previous)}
            for turn in turns:
                facts = {name: getattr(turn, name) for name in ("round", "client", "seed", "weight", "colluders")}
                content = RecordDict({"arrays": arrays, **previous, "config": ConfigRecord(facts)})
                yield Message(content, self.nodes[turn.client], MessageType.TRAIN)

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            clients = {node: client for client, node in self.nodes.items()}
            answers = {clients[reply.metadata.src_node_id]: reply for reply in replies}
            _complete(answers, [turn.client for turn in server.asked], timeout)
            sent = [answers[turn.client].content.array_records["delta"] for turn in server.asked]
            server.take([_unpacked(record) for record in sent])
            return ArrayRecord(server.model.state_dict()), None

    # Without these minima Flower would go ahead as soon as two nodes are connected.
    return Strategy(fraction_evaluate=0.0, min_train_nodes=server.n, min_available_nodes=server.total)


def _nodes(grid: Grid, total: int, timeout: float) -> dict[int, int]:
    """Client → Flower's number of its node, as the nodes themselves say."""
    from flwr.app import Message, MessageType, RecordDict

    end = time.monotonic() + timeout
    while len(nodes := list(grid.get_node_ids())) < total:
        if time.monotonic() > end:
            raise TimeoutError(f"timeout: {len(nodes)} of {total} of Flower's nodes connected within {timeout:g} s")
        time.sleep(0.05)
    replies = grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes], timeout=timeout)
    found = {_who(reply): reply.metadata.src_node_id for reply in replies if reply.has_content()}
    if len(found) < total:
        raise TimeoutError(f"timeout: {len(found)} of {total} of Flower's nodes answered within {timeout:g} s")
    return found


def _who(reply: Message) -> int:
    """The client that says so."""
    return int(cast(int, reply.content.metric_records["who"]["client"]))


def _complete(answers: Mapping[int, Message], asked: Sequence[int], timeout: float) -> None:
    """Raises where a client failed or did not answer."""
    for client, reply in answers.items():
        if reply.has_error():
            why = str(reply.error.reason).rpartition("Message: ")[2].removesuffix("'>")  # behind Ray's account of it
            raise RuntimeError(f"clients: number {client} failed: {why}")
    missing = [client for client in asked if client not in answers]
    if missing:
        raise TimeoutError(f"timeout: clients {missing[:10]} of {len(asked)} did not answer within {timeout:g} s")


def _client_app(load: Load) -> ClientApp:
    """All clients as one app of Flower's, which asks the node's configuration which of them it is."""
    from flwr.app import Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator, unused-ignore]
    def who(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return Message(RecordDict({"who": MetricRecord({"client": client})}), reply_to=message)

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Message, context: Context) -> Message:
        model, update, data = load(int(context.node_config["partition-id"]))
        return Message(_answer(message.content, model, update, data), reply_to=message)

    return app


def _answer(content: RecordDict, template: nn.Module, update: ClientUpdate, data: Pair) -> RecordDict:
    """What a client sends back: its update, of the model that came."""
    from flwr.app import MetricRecord, RecordDict

    model = copy.deepcopy(template)
    records = content.array_records
    put(model, tensors_of(records["arrays"]))
    facts = cast(dict[str, Any], dict(content.config_records["config"]))
    previous = _unpacked(records["previous"]) if "previous" in records else None
    delta = answer(update, model, data, Turn(**facts, previous=previous))
    return RecordDict({"delta": _packed(delta), "metrics": MetricRecord({"num-examples": len(data[1])})})


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as Flower sends them, nothing rounded."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(value.cpu().numpy()) for name, value in tensors.items()})


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors that were sent, by their names."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def _packed(delta: Delta) -> ArrayRecord:
    """An update, its groups in the names."""
    return record_of({f"{group}/{name}": t for group in _GROUPS for name, t in getattr(delta, group).items()})


def _unpacked(record: ArrayRecord) -> Delta:
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for key, tensor in tensors_of(record).items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return Delta(**groups)


class _Impatient:
    """Flower's grid, which waits for no more answers once one is an error or the simulation has stopped."""

    def __init__(self, grid: Grid, stopped: threading.Event) -> None:
        self.grid, self.stopped, self.waiting = grid, stopped, set[str]()

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        self.waiting = set(self.grid.push_messages(messages))
        replies: list[Message] = []
        end = time.monotonic() + timeout
        while self.waiting and time.monotonic() < end and not any(reply.has_error() for reply in replies):
            if self.stopped.wait(0.02):
                raise RuntimeError("flower: its simulation stopped before the clients had answered")
            new = list(self.grid.pull_messages(self.waiting))
            self.waiting -= {reply.metadata.reply_to_message_id for reply in new}
            replies += new
        return replies


# Starting and ending -------------------------------------------------------------------------------------------------


def _require_packages() -> None:
    for package in ("flwr", "ray"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'{package} is not installed: pip install "robustlab[federated]"')


@contextmanager
def _environment() -> Iterator[None]:
    """Telemetry off, loggers quiet, and a way for other processes to what this one imports; all restored at the end."""
    wanted = {**_QUIET, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    from flwr.supercore import telemetry

    logger, told = logging.getLogger("flwr"), telemetry.FLWR_TELEMETRY_ENABLED
    level, telemetry.FLWR_TELEMETRY_ENABLED = logger.level, "0"  # read at import, perhaps before this call
    logger.setLevel(logging.CRITICAL)  # errors are raised here, by name
    try:
        yield
    finally:
        telemetry.FLWR_TELEMETRY_ENABLED = told
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# Ray in a process of its own, which leads a group. All of the group is killed at the end of the call, or when the pipe
# to the caller breaks, since it was killed itself. Ray waits 15 seconds for its helpers to say at which ports they
# listen, and gives up, which a busy machine does not meet: so the ports are chosen here, and one, which it reads from a
# file alone, is written there.
_KEEPER = """
import json, os, signal, socket, sys, threading

def watch():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
from ray._private.node import Node
from ray._private.parameter import RayParams

folder, options = sys.argv[1], json.loads(sys.argv[2])
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
ports = [free.getsockname()[1] for free in sockets]
for free in sockets:
    free.close()
names = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")


class Announced(Node):
    def start_raylet(self, *given, **named):
        with open(f"{self.get_session_dir_path()}/{names[0]}_{self._node_id}", "w") as file:
            file.write(str(ports[0]))
        super().start_raylet(*given, **named)


started = RayParams(
    temp_dir=folder, node_ip_address="127.0.0.1", num_gpus=0, include_dashboard=False, include_log_monitor=False,
    no_monitor=True, **dict(zip(names, ports)), **options,
)
node = Announced(started, head=True, shutdown_at_exit=False, spawn_reaper=False)
with open(folder + "/address.part", "w") as file:
    file.write(node.gcs_address)
os.rename(folder + "/address.part", folder + "/address")
threading.Event().wait()
"""


@contextmanager
def _ray(cpus: int, memory: int, timeout: float) -> Iterator[Callable[[], None]]:
    """Ray on so many CPUs; at the end nothing of it runs. Yields what ends its clients' processes at once."""
    import ray

    psutil = importlib.import_module("psutil")  # Ray brings it along
    constants: Any = importlib.import_module("ray._private.ray_constants")
    if ray.is_initialized():
        raise RuntimeError("ray: want none that runs in this process already, since Flower ends it: ray.shutdown()")
    options = {"num_cpus": cpus, "object_store_memory": memory}
    handler = signal.getsignal(signal.SIGTERM)
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        _started(Path(folder), options, timeout) as (keeper, address),
    ):

        def end_clients() -> None:
            for process in psutil.Process(keeper).children(recursive=True):
                with suppress(psutil.Error):
                    if process.name().startswith("ray::ClientApp"):
                        process.kill()

        wide, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False  # read at import, perhaps before
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
            yield end_clients
        finally:
            ray.shutdown()
            constants.ENABLE_RAY_CLUSTER = wide
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray sets its own


@contextmanager
def _started(folder: Path, options: Mapping[str, int], timeout: float) -> Iterator[tuple[int, str]]:
    """The process that keeps Ray, and where Ray listens, once it does."""
    end = time.monotonic() + timeout
    what = f"cpus={options['num_cpus']}, memory={options['object_store_memory']}"
    while True:
        with open(folder / "said", "w", encoding="utf-8") as said:
            keeper = subprocess.Popen(
                [sys.executable, "-c", _KEEPER, str(folder), json.dumps(options)],
                stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        try:
            while keeper.poll() is None and not (folder / "address").exists():
                if time.monotonic() > end:
                    raise TimeoutError(f"timeout: Ray did not come up within {timeout:g} s with {what}")
                time.sleep(0.05)
            if keeper.poll() is None:
                yield keeper.pid, (folder / "address").read_text(encoding="utf-8")
                return
        finally:
            with suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()
            keeper.stdin.close()  # type: ignore[union-attr]
        last = "".join((folder / "said").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:])
        if "timed out during startup" not in last:  # Ray says so after half a minute, too soon for a busy machine
            raise RuntimeError(f"ray: did not come up with {what}: {last}")
