"""Fine-tuning of many clients in many settings, as many at once as there are cores, to be gone on with at any time."""

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lit_fedbabu import runs
from lit_fedbabu.checkpoint import Federated
from lit_fedbabu.config import Config

ROWS = "clients.jsonl"
"""Clients that are done, while others are not: with it an interrupted fine-tuning goes on."""
CLIENTS_SHOWN, IMAGES_SHOWN = 20, 25
"""Of how many clients the PROJECTOR tab has how many test images each: the first ones."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """One setting of a sweep.

    Args:
        federated: the federation; ``config`` says what trains, for how many epochs and at which rate.
        save_to: a folder for one checkpoint per client; None saves none.
        running_statistics: whether personal models also get running statistics and are evaluated with them.
    """

    federated: Federated
    save_to: Path | None = None
    running_statistics: bool = False


def sweep(tunings: Sequence[Tuning], folders: Sequence[Path], clients: list[int]) -> list[dict[str, Any]]:
    """Fine-tune every client in every setting, keep each as soon as it is done, and write the results."""
    done = [_done(tuning, folder) for tuning, folder in zip(tunings, folders, strict=True)]
    todo = [(place, client) for place in range(len(tunings)) for client in clients if client not in done[place]]
    cohorts = _cohorts(tunings[0].federated.config, todo)
    with _mapper(tunings[0].federated.config, len(cohorts)) as mapped:
        tuned = mapped(personalize, [tunings[place] for place, _ in cohorts], [clients for _, clients in cohorts])
        rows = track(chain.from_iterable(tuned), description="fine-tuning", total=len(todo))
        for (place, client), row in zip(todo, rows, strict=True):
            done[place][client] = row
            with (folders[place] / ROWS).open("a") as file:
                file.write(json.dumps(row) + "\n")
    outcomes = []
    for tuning, folder, rows_done in zip(tunings, folders, done, strict=True):
        config, history = tuning.federated.config, tuning.federated.rounds
        outcome = runs.results(config.algorithm, history, [rows_done[client] for client in clients])
        runs.write_json(folder / runs.RESULTS, outcome)
        (folder / ROWS).unlink(missing_ok=True)
        outcomes.append(outcome)
    for place in dict.fromkeys(place for place, _ in todo):
        _show(tunings[place], folders[place], outcomes[place])
    return outcomes


def _cohorts(config: Config, todo: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """Places and clients, in order, as places and clients that are fine-tuned together."""
    from lit_fedbabu import training  # Lightning takes long to import: not before the cheap checks

    return [
        (place, clients)
        for place, pairs in groupby(todo, key=itemgetter(0))
        for clients in training.cohorts(config, [client for _, client in pairs])
    ]


def _show(tuning: Tuning, folder: Path, outcome: dict[str, Any]) -> None:
    """Write what TensorBoard shows: the curve, what the worst and the best client confuse, and features of the body."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    from lit_fedbabu import board, sources, training, update
    from lit_fedbabu.batches import ClientData

    federated = tuning.federated
    received = federated.server_round, federated.shared, federated.memories
    names = sources.source_of(federated.config).class_names
    rows = sorted(outcome["clients"], key=lambda row: row["personalized_accuracy"])

    def of_test_images(module: Any, client: int) -> list[torch.Tensor]:
        (own,) = training.predictions([module], [ClientData(federated.config, client, 0)])
        return own[1]

    confusions = {}
    for title, row in (("worst", rows[0]), ("best", rows[-1])):
        module, _ = update.personal_model(federated.config, row["client"], *received)
        _, logits, labels = of_test_images(module, row["client"])
        matrix = multiclass_confusion_matrix(logits, labels, len(names)).numpy()
        confusions[title] = (f"client {row['client']}, the {title}", matrix)
    points = []
    for row in outcome["clients"][:CLIENTS_SHOWN]:
        module = update.own_module(federated.config, row["client"], *received)
        features, _, labels = of_test_images(module, row["client"])
        points += [(feature, names[label]) for feature, label in zip(features[:IMAGES_SHOWN], labels)]
    features = torch.stack([feature for feature, _ in points])
    board.write_finetuning(folder, outcome, names, confusions, (features, [name for _, name in points]))


def _done(tuning: Tuning, folder: Path) -> dict[int, dict[str, Any]]:
    """Rows of the clients that an earlier command has done, and saved if that is asked for."""
    rows = runs.read_results(folder)["clients"] if (folder / runs.RESULTS).exists() else []
    if (folder / ROWS).exists():
        for line in (folder / ROWS).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # a line that an interrupted command did not finish
                continue
        runs.write_whole(folder / ROWS, "".join(f"{json.dumps(row)}\n" for row in rows))
    saved = tuning.save_to
    return {row["client"]: row for row in rows if saved is None or checkpoint_of(saved, row["client"]).exists()}


def checkpoint_of(folder: Path, client: int) -> Path:
    """Where a client's model is saved."""
    return folder / f"client_{client:04d}.ckpt"


def personalize(tuning: Tuning, clients: Sequence[int]) -> list[dict[str, Any]]:
    """Fine-tune the clients, together, save their models if that is asked for, and return their entries in
    results.json."""
    from lit_fedbabu import training, update  # Lightning takes long to import: not before the cheap checks

    federated = tuning.federated
    rows = []
    for client, (module, outcome) in zip(
        clients,
        update.personal_models(federated.config, clients, federated.server_round, federated.shared, federated.memories),
    ):
        row = {"client": client, **outcome.as_row()}
        if tuning.running_statistics:
            module, measured = update.with_running_statistics(federated.config, client, module)
            row |= measured
        if tuning.save_to is not None:
            module.about = update.about(
                federated.config,
                round=federated.server_round,
                client=client,
                running_statistics=tuning.running_statistics,
            )
            training.save_checkpoint(module, checkpoint_of(tuning.save_to, client))
        rows.append(row)
    return rows


@contextmanager
def _mapper(config: Config, tasks: int) -> Iterator[Any]:
    side_by_side = max(1, runs.available_cores() // config.num_threads)
    workers = 1 if torch.cuda.is_available() else min(tasks, side_by_side)
    if workers <= 1:
        yield map
        return
    os.environ.setdefault("GLIBC_TUNABLES", runs.MALLOC)
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,  # Ctrl-C is for this process: it lets the workers finish their clients
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
