"""Fine-tuning of many clients in many settings, on all cores. It can be stopped and continued at any time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.files import append_json_line, read_json_lines, write_json, write_whole
from lit_fedbabu.ground.stops import settle
from lit_fedbabu.ground.system import available_cores
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.models import by_batch
from lit_fedbabu.learning.state import not_finite
from lit_fedbabu.learning.trainer import cohorts
from lit_fedbabu.records import model_card, tensorboard
from lit_fedbabu.records.features import features_of
from lit_fedbabu.records.federation import Federation
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.results import everyone, named, read_results, results
from lit_fedbabu.records.run_folder import RESULTS
from lit_fedbabu.records.saved import PERSONAL, checkpoint_of
from lit_fedbabu.tasks.protocol import Classifies
from lit_fedbabu.training.client_update import (
    finetuning_data,
    own_module,
    personal_model,
    personal_models,
    with_running_statistics,
)  # fmt: skip
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import StartError, Warm

ROWS = "clients.jsonl"
"""The clients that are done. With it an interrupted fine-tuning is continued."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """One setting of a sweep.

    Args:
        config: of the federation, with what fine-tuning trains, for how many epochs and at which rate.
        folder: for its results.
        save_to: folder for one checkpoint for each client; None saves none.
        running_statistics: whether personal models also get running statistics and are evaluated with them.
    """

    config: Config
    folder: Path
    save_to: Path | None = None
    running_statistics: bool = False


class Personalizer:
    """Fine-tunes clients of a federation in several settings, with one dataset, split and initial model.

    Args:
        base: an experiment with the configuration of the first setting.
        federation: whose clients they are.
        tunings: the settings.
    """

    def __init__(self, base: Experiment, federation: Federation, tunings: Sequence[Tuning]) -> None:
        self.received = federation.server_round, federation.shared, federation.memories, federation.extras
        self.tunings = tunings
        self.experiments = [base.with_finetuning(tuning.config) for tuning in tunings]

    def personalize(self, place: int, clients: Sequence[int]) -> list[dict[str, Any]]:
        """Fine-tune clients together in the setting at that place, and save their models if that is asked for.

        Returns:
            Their entries in results.json.
        """
        experiment, tuning = self.experiments[place], self.tunings[place]
        rows = []
        personal = personal_models(experiment, clients, *self.received)
        for client, (module, outcome) in zip(clients, personal, strict=True):
            (row,) = named([{"client": client, **outcome.as_row()}], experiment.task.client_names)
            saved = module
            if tuning.running_statistics and by_batch(module.model) and not not_finite(module.model.state_dict()):
                saved, measured = with_running_statistics(experiment, client, module)
                row |= measured
            if tuning.save_to is not None and not not_finite(saved.model.state_dict()):
                facts = {"client": client, "running_statistics": not by_batch(saved.model)}
                facts |= {"client_name": row["name"]} if "name" in row else {}
                saved.provenance = experiment.provenance("personal", round=self.received[0], **facts)
                checkpoint.save(saved, checkpoint_of(tuning.save_to, client))
            rows.append(row)
        return rows

    def show(self, place: int, outcome: dict[str, Any]) -> None:
        """Write what TensorBoard shows: curve, confusions of the worst and the best client, features of the body."""
        experiment = self.experiments[place]
        names, task = experiment.task.class_names, experiment.task
        folder = self.tunings[place].folder
        if not isinstance(task, Classifies):
            tensorboard.write_finetuning(folder, outcome)
            return
        finite = [row for row in outcome["clients"] if row["personalized_accuracy"] is not None]
        rows = sorted(finite, key=lambda row: row["personalized_accuracy"])

        confusions = {}
        for title, row in (("worst", rows[0]), ("best", rows[-1])):
            module, _ = personal_model(experiment, row["client"], *self.received)
            ((_, of_test, *_),) = task.predictions([module], finetuning_data(experiment, [row["client"]]))
            _, logits, labels = of_test
            matrix = multiclass_confusion_matrix(logits, labels, len(names)).numpy()
            confusions[title] = (f"client {row.get('name', row['client'])}, the {title}", matrix)
        clients = (row["client"] for row in finite)
        own = ((client, own_module(experiment, client, *self.received)) for client in clients)
        tensorboard.write_finetuning(folder, outcome, names, confusions, features_of(experiment, own))

    def describe(self, place: int, outcome: dict[str, Any]) -> None:
        """Write the card of the personal models."""
        experiment, tuning = self.experiments[place], self.tunings[place]
        statistics = {"running_statistics": tuning.running_statistics}
        provenance = experiment.provenance("personal", round=outcome["round"], **statistics)
        key = f"personalized_{experiment.task.score.name}"
        saved = [row["client"] for row in everyone(outcome) if row[key] is not None]
        example = checkpoint_of(Path(PERSONAL), saved[0]) if saved else PERSONAL
        model_card.write(tuning.folder, "Personal models of a federation's clients", provenance, outcome, str(example))


def sweep(
    personalizer: Personalizer, federation: Federation, clients: Sequence[int], warm: Warm, progress: Lines
) -> list[dict[str, Any]]:
    """Fine-tune every client in every setting, keep each as soon as it is done, and write the results.

    Args:
        personalizer: with the settings.
        federation: whose clients they are.
        clients: their numbers.
        warm: where workers come from.
        progress: shows a person how many are done.

    Raises:
        RunError: a client's fine-tuning failed.
    """
    tunings = personalizer.tunings
    done = [_done(tuning) for tuning in tunings]
    todo = [(place, client) for place in range(len(tunings)) for client in clients if client not in done[place]]
    groups = [
        (place, cohort)
        for place, pairs in groupby(todo, key=itemgetter(0))
        for cohort in cohorts(tunings[place].config, [client for _, client in pairs])
    ]
    progress.begin("fine-tuning", len(todo))
    for place, rows in _personalized(personalizer, federation, groups, warm, progress):
        for row in rows:
            done[place][row["client"]] = row
            append_json_line(tunings[place].folder / ROWS, row)
        progress.advance(len(rows))
    progress.wait("writing results")
    outcomes = []
    for place, (tuning, rows_done) in enumerate(zip(tunings, done, strict=True)):
        score, rows = personalizer.experiments[0].task.score, [rows_done[client] for client in clients]
        privacy = federation.provenance.get("privacy")
        outcome = results(tuning.config, federation.rounds, rows, score, privacy=privacy)
        outcomes.append(outcome)
        if (tuning.folder / ROWS).exists() or not (tuning.folder / RESULTS).exists():
            personalizer.show(place, outcome)
            if tuning.save_to is not None:
                personalizer.describe(place, outcome)
            write_json(tuning.folder / RESULTS, outcome)  # last: a command that is stopped before goes on from here
            (tuning.folder / ROWS).unlink(missing_ok=True)
    settle()
    return outcomes


def _done(tuning: Tuning) -> dict[int, dict[str, Any]]:
    """Entries of the clients that an earlier command has done, and saved if that is asked for."""
    folder = tuning.folder
    rows = everyone(read_results(folder)) if (folder / RESULTS).exists() else []
    if (folder / ROWS).exists():
        rows += read_json_lines(folder / ROWS, {"client": int})
        write_whole(folder / ROWS, "".join(f"{json.dumps(row)}\n" for row in rows))
    saved = tuning.save_to
    return {row["client"]: row for row in rows if saved is None or checkpoint_of(saved, row["client"]).exists()}


def prepare() -> None:
    """Import what workers need: this file does it."""


_Job = tuple[Federation, Sequence[Tuning]]
_of_worker: list[tuple[_Job, Personalizer]] = []
"""In a worker process: what it fine-tunes with."""


def _personalized(
    personalizer: Personalizer,
    federation: Federation,
    groups: Sequence[tuple[int, list[int]]],
    warm: Warm,
    progress: Lines,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Setting and rows of each cohort: made here with one core or a GPU, else by a worker for each core."""
    side_by_side = max(1, available_cores() // personalizer.tunings[0].config.num_threads)
    workers = 1 if torch.cuda.is_available() else min(len(groups), side_by_side)
    if workers <= 1:
        for place, clients in groups:
            yield place, personalizer.personalize(place, clients)
        return
    job: _Job = federation, personalizer.tunings
    requests = [(job, place, clients) for place, clients in groups]
    with Pool(warm, workers, say=progress.say) as pool:
        try:
            for number, rows in pool.answers("lit_fedbabu.personal.sweep:in_worker", requests, job):
                place, clients = groups[number]
                if isinstance(rows, Exception):
                    raise RunError(f"fine-tuning of clients {clients} failed: {rows}")
                yield place, rows
        except StartError as error:
            raise RunError(str(error)) from None


def in_worker(job: _Job, place: int, clients: Sequence[int]) -> list[dict[str, Any]]:
    """In a worker: fine-tune clients in the setting at that place; ``job`` is the same object in every call."""
    if not (_of_worker and _of_worker[0][0] is job):
        federation, tunings = job
        _of_worker[:] = [(job, Personalizer(federation.experiment(tunings[0].config), federation, tunings))]
    return _of_worker[0][1].personalize(place, clients)
