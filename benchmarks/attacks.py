"""``python -m benchmarks.attacks``: what lying clients do to a federation of digits, by method and aggregator."""

import argparse
import csv
import dataclasses
import gc
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import nn

from benchmarks.setting import machine
from lit_fedbabu.client.numpy_client import FedBABUClient, evaluate_together, fit_together
from lit_fedbabu.config import AGGREGATORS, Config
from lit_fedbabu.engines.local import quiet_flower
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.learning.evaluation import STAGES
from lit_fedbabu.learning.models import BodyAndHead, Norm
from lit_fedbabu.protocol.handshake import PLACE, Place
from lit_fedbabu.protocol.wire import Arrays, ClientUpdate, EvaluateReply, Order, TrainReply
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import FAILURES
from lit_fedbabu.server import aggregation
from lit_fedbabu.server import federate as federation
from lit_fedbabu.training.experiment import Experiment

FOLDER = Path(__file__).parent.parent / "results" / "attacks"
METHODS = ("fedbabu", "fedavg")
COLUMNS = ("method", "aggregator", "attack", "liars", "seed", *STAGES, "left out")
CLIENTS = 20
OPTIONS = {
    "dataset": "digits", "image_size": 8, "model_name": "benchmarks.attacks:network", "augmentation": "none",
    "num_clients": CLIENTS, "partitioner": "dirichlet", "min_client_images": 5, "fraction_train": 1.0,
    "num_server_rounds": 10, "num_local_epochs": 2, "batch_size": 20, "num_finetune_epochs": 5,
    "min_clients_per_round": 1, "max_round_retries": 0, "precision": "32-true", "cohort_size": CLIENTS,
}  # fmt: skip
"""Of every run. All clients train in every round, so that as many of them lie in each."""
UNBOUNDED = "mean, no bound"
DEFENCES: Mapping[str, dict[str, Any]] = {
    UNBOUNDED: {"aggregator": "mean"},
    **{name: {"aggregator": name, "num_malicious": 6, "trim_fraction": 0.3} for name in AGGREGATORS},
    "bulyan": {"aggregator": "bulyan", "num_malicious": 4},
}
"""Each as if six of twenty may lie; with twenty bulyan can have four."""
ATTACKS = {"none": 0.0, "flip": -1.0, "flip x4": -4.0, "flip x10": -10.0, "noise": 4.0, "labels": 1.0}
"""What liars send: their update so many times; noise so many times as long as it in its place; or what they trained
with labels y taken as 9 - y. The server's bound is 5 times the others'."""
LIARS = (2, 4, 6)


def network(num_classes: int, norm: Norm, channels: int) -> BodyAndHead:
    """Two layers and a head, for images of 8 pixels."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return BodyAndHead(body, nn.Linear(64, num_classes))


class Attacked(Grid):
    """A node with all clients in this process, of which some send something else than they trained.

    Args:
        config: of the run.
        attack: of ``ATTACKS``.
        liars: how many; the seed says which.
    """

    def __init__(self, config: Config, attack: str, liars: int) -> None:
        self.attack, self.experiment, self.deceived = attack, Experiment(config), Experiment(config)
        drawn = np.random.default_rng(config.derived_seed("liars")).permutation(CLIENTS)
        self.liars = sorted(drawn[:liars].tolist())
        task: Any = self.deceived.task
        assert task.partition, "is dealt by the true labels"
        false = dataclasses.replace(task.source.train, labels=9 - task.source.train.labels)
        vars(task)["source"] = dataclasses.replace(task.source, train=false)
        identify_process()

    def get_node_ids(self) -> Iterable[int]:
        return [1]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [Message(self._answer(message), reply_to=message) for message in messages]

    def _answer(self, message: Message) -> RecordDict:
        if message.metadata.message_type == PLACE:
            return Place(0, 1, "this process").to_record()
        order, arrays = Order.from_record(message.content)
        received = [array.numpy() for array in arrays.values()]
        if message.metadata.message_type == "evaluate":
            clients = [FedBABUClient(self.experiment, client, Path(order.memory)) for client in order.clients]
            rows = evaluate_together(clients, received, order.to_config())
            return EvaluateReply(
                [{"client": client, **row} for client, (*_, row) in zip(order.clients, rows, strict=True)]
            ).to_record()
        deceived = self.liars if self.attack == "labels" else []
        updates: list[ClientUpdate] = []
        for experiment, numbers in (
            (self.experiment, [each for each in order.clients if each not in deceived]), (self.deceived, deceived),
        ):  # fmt: skip
            clients = [FedBABUClient(experiment, client, Path(order.memory)) for client in numbers]
            replies = fit_together(clients, received, order.to_config()) if clients else []
            for client, (parameters, count, metrics) in zip(numbers, replies, strict=True):
                named = dict(zip(arrays, parameters, strict=True))
                if client in self.liars:
                    rng = np.random.default_rng(experiment.config.derived_seed("lie", order.server_round, client))
                    named = self._lie(dict(zip(arrays, received, strict=True)), named, rng)
                updates.append(ClientUpdate(client, count, metrics["train_loss"], named))
        return TrainReply(updates).to_record()

    def _lie(self, received: Arrays, trained: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        moves = {name: trained[name].astype(np.float64) - received[name] for name in received}
        if self.attack == "noise":
            length = np.sqrt(sum(np.square(move).sum() for move in moves.values()))
            drawn = {name: rng.normal(size=move.shape) for name, move in moves.items()}
            norm = np.sqrt(sum(np.square(each).sum() for each in drawn.values()))
            moves = {name: each * length / norm for name, each in drawn.items()}
        times = ATTACKS[self.attack]
        return {name: (received[name] + times * move).astype(received[name].dtype) for name, move in moves.items()}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def measured(method: str, defence: str, attack: str, liars: int, seed: int) -> dict[str, Any]:
    """A run's mean accuracies in percent over the clients that do not lie, and how many updates were left out."""
    found = {"method": method, "aggregator": defence, "attack": attack, "liars": liars, "seed": seed}
    bound = np.inf if defence == UNBOUNDED else aggregation.FAR
    with (
        tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()), quiet_flower(),
        mock.patch.object(federation, "Board"), mock.patch.object(aggregation, "FAR", bound),
    ):  # fmt: skip
        options = {**OPTIONS, **DEFENCES[defence], "algorithm": method, "seed": seed}
        grid = Attacked(Config(**options, output_dir=scratch, run_name="run"), attack, liars)
        try:
            folder = federation.federate(cast(Grid, grid), grid.experiment)
        except RunError:  # nobody's training is finite
            return {**found, "initial": "", "personalized": "", "left out": ""}
        rows = [row for row in read_results(folder)["clients"] if row["client"] not in grid.liars]
        failures = folder / FAILURES
        left_out = len(failures.read_text().splitlines()) if failures.exists() else 0
    for stage in STAGES:
        found[stage] = f"{100 * np.mean([row[f'{stage}_accuracy'] for row in rows]):.2f}"
    return {**found, "left out": left_out}


def runs(seeds: int) -> Iterator[tuple[str, str, str, int, int]]:
    """Method, defence, attack, liars and seed of each run."""
    for seed, attack, defence, method in itertools.product(range(1, seeds + 1), ATTACKS, DEFENCES, METHODS):
        if attack != "flip x10" or DEFENCES[defence]["aggregator"] == "mean":  # which alone looks at lengths
            for liars in LIARS if attack != "none" else (0,):
                yield method, defence, attack, liars, seed


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """In Markdown, for each method and stage: mean and deviation over the seeds, by attack and aggregator."""
    lines: list[str] = []
    for stage, method in itertools.product(STAGES, METHODS):
        lines += [f"**{method}, {stage} accuracy**", "", f"| attack | liars | {' | '.join(DEFENCES)} |"]
        lines += [f"|---|---:|{'---:|' * len(DEFENCES)}"]
        for attack, liars in dict.fromkeys((row["attack"], row["liars"]) for row in rows):
            cells = []
            for defence in DEFENCES:
                asked = method, defence, attack, liars
                found = [row[stage] for row in rows if asked == tuple(row[key] for key in COLUMNS[:4])]
                cells.append(_cell(found))
            lines.append(f"| {attack} | {100 * int(liars) // CLIENTS} % | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(found: Sequence[str]) -> str:
    if not found:
        return ""
    if not all(found):
        return f"ended ({sum(not each for each in found)} of {len(found)})"
    values = [float(each) for each in found]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 1")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of runs.csv; runs that it has are not repeated"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    gc.freeze()  # Flower's Bulyan collects garbage twelve times a round
    with (arguments.out / "runs.csv").open("a+", newline="") as file:
        file.seek(0)
        rows = list(csv.DictReader(file))
        done = {tuple(row[key] for key in COLUMNS[:5]) for row in rows}
        writer = csv.DictWriter(file, COLUMNS)
        if not rows:
            writer.writeheader()
        for run in runs(arguments.seeds):
            if tuple(map(str, run)) not in done:
                row = {key: str(value) for key, value in measured(*run).items()}
                writer.writerow(row)
                file.flush()
                rows.append(row)
                print(", ".join(row.values()), flush=True)
    (arguments.out / "tables.md").write_text(tables(rows))
    print(machine(Config(precision="32-true")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
