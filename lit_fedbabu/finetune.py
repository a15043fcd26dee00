"""``python -m lit_fedbabu.finetune RUN_OR_CHECKPOINT``: personal models from a finished run, without Flower."""

import argparse
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lit_fedbabu import preflight, runs
from lit_fedbabu.checkpoint import Federated, find_checkpoint, read_checkpoint
from lit_fedbabu.config import Config, ConfigError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.finetune",
        description="Fine-tune clients of a finished run on their own data. What is not given is as in the run.",
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or a .ckpt file")
    parser.add_argument("--part", help="what trains: head, body or full")
    parser.add_argument("--epochs", type=int, help="epochs on a client's training images")
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--clients", default="all", help="all, or numbers as in 0,3,7")
    parser.add_argument("--save", action="store_true", help="save one Lightning checkpoint per client")
    parser.add_argument("--dataset", help="where the run's dataset is on this machine")
    parser.add_argument("--model-name", default="", help="the run's model, where it is an import path: it is run")
    arguments = parser.parse_args(argv)
    try:
        checkpoint = find_checkpoint(arguments.source)
        federated = read_checkpoint(checkpoint, arguments.model_name)
        given = {
            "finetune_part": arguments.part,
            "num_finetune_epochs": arguments.epochs,
            "finetune_learning_rate": arguments.lr,
            "dataset": arguments.dataset,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        federated = dataclasses.replace(federated, config=dataclasses.replace(federated.config, **changed))
        clients = chosen_clients(arguments.clients, federated.config.num_clients)
        preflight.check(federated.config)
        folder = _new_folder(checkpoint, federated.config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs.write_config(folder, federated.config, {})
    outcome = finetune(federated, clients, folder / "personal" if arguments.save else None)
    runs.write_json(folder / runs.RESULTS, outcome)
    for row in outcome["clients"]:
        accuracies = "  ".join(f"{name} {100 * row[f'{name}_accuracy']:6.2f} %" for name in ("initial", "personalized"))
        print(f"client {row['client']:>4}  {accuracies}  of {row['num_test']} test images")
    print(runs.table(outcome))
    print(f"results {folder / runs.RESULTS}")
    return 0


def chosen_clients(words: str, num_clients: int) -> list[int]:
    """Client numbers from "all" or "0,3,7".

    Raises:
        ConfigError: no number, or no client of the run.
    """
    if words == "all":
        return list(range(num_clients))
    try:
        clients = sorted({int(word) for word in words.split(",")})
    except ValueError:
        raise ConfigError("--clients", words, "must be all, or numbers as in 0,3,7") from None
    if clients[0] < 0 or clients[-1] >= num_clients:
        raise ConfigError("--clients", words, f"the run's clients are 0 to {num_clients - 1}")
    return clients


def finetune(federated: Federated, clients: list[int], save_to: Path | None = None) -> dict[str, Any]:
    """Fine-tune the clients, as many at once as there are cores, and return the content of a results.json.

    Args:
        federated: the run; ``config`` says what trains, for how many epochs and at which rate.
        clients: client numbers.
        save_to: a folder for one checkpoint per client; None saves none.
    """
    work = partial(_personalize, federated, save_to)
    side_by_side = max(1, runs.available_cores() // federated.config.num_threads)
    workers = 1 if torch.cuda.is_available() else min(len(clients), side_by_side)
    with _mapper(workers) as mapped:
        rows = list(track(mapped(work, clients), description="fine-tuning", total=len(clients)))
    return runs.results(federated.config.algorithm, federated.rounds, rows)


def _personalize(federated: Federated, save_to: Path | None, client: int) -> dict[str, Any]:
    from lit_fedbabu import training, update  # Lightning takes long to import: not before the cheap checks

    module, outcome = update.personal_model(
        federated.config, client, federated.server_round, federated.shared, federated.memories
    )
    if save_to is not None:
        module.about = {
            "config": federated.config.experiment(),
            "round": federated.server_round,
            "client": client,
        }
        training.save_checkpoint(module, save_to / f"client_{client:04d}.ckpt")
    return {"client": client, **outcome.as_row()}


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    if workers == 1:
        yield map
        return
    os.environ.setdefault("GLIBC_TUNABLES", runs.MALLOC)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _new_folder(checkpoint: Path, config: Config) -> Path:
    """A folder for this fine-tuning beside the run's other files; an existing one is left alone."""
    run = checkpoint.parent.parent if checkpoint.parent.name == runs.LAST_CHECKPOINT.parent.name else checkpoint.parent
    which = "" if checkpoint.name == runs.LAST_CHECKPOINT.name else f"{checkpoint.stem}-"
    name = f"{which}{config.finetune_part}-{config.num_finetune_epochs}epochs-lr{config.finetune_learning_rate:g}"
    for count in range(1, 10_000):
        folder = run / "finetune" / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError("RUN_OR_CHECKPOINT", str(run), f"cannot be written to: {error.strerror}") from None
    raise ConfigError("RUN_OR_CHECKPOINT", str(run / "finetune"), "is full; remove old results")


if __name__ == "__main__":
    sys.exit(main())
