"""``python -m lit_fedbabu.finetune RUN_OR_CHECKPOINT``: personal models from a federation's, without Flower."""

import argparse
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu import card, preflight, runs, sources, sweep
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.checkpoint import Federated, find_checkpoint, read_checkpoint
from lit_fedbabu.config import Config, ConfigError, told_in_one_line

HERE = Path()


@told_in_one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.finetune",
        description="Fine-tune clients of a federation on their own data, or its body on data that had no part in it."
        " What is not given is as in the federation. An interrupted command goes on where it stopped.",
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or a .ckpt file")
    parser.add_argument("--part", help="what trains: head, body or full; several as in head,full")
    parser.add_argument("--epochs", type=int, help="epochs on a client's training images")
    parser.add_argument("--lr", help="learning rate; several as in 1e-3,1e-2")
    parser.add_argument("--clients", default="all", help="all, or numbers as in 0,3,7")
    parser.add_argument("--data", help="images of your own, instead of the clients': a folder or a hub name")
    parser.add_argument("--label-column", default="", help="of --data, where it has several")
    parser.add_argument(
        "--save",
        nargs="?",
        const=HERE,
        type=Path,
        metavar="DIR",
        help="save the clients' models beside the results, or with --data the model in DIR",
    )
    parser.add_argument(
        "--running-statistics",
        action="store_true",
        help="saved models use statistics of the training images, and so predict each image alone",
    )
    parser.add_argument("--precision", help="of the training, as the option precision")
    parser.add_argument("--dataset", help="where the federation's dataset is on this machine")
    parser.add_argument("--model-name", default="", help="the federation's model if it is an import path: it is run")
    arguments = parser.parse_args(argv)
    checkpoint = find_checkpoint(arguments.source)
    federated = read_checkpoint(checkpoint, arguments.model_name)
    settings = list(_settings(federated, arguments))
    if arguments.running_statistics and federated.config.norm == "batch-running":
        raise ConfigError("--running-statistics", True, "the model has them already")
    preflight.resolve_precision(settings[0].config.precision)
    if arguments.data is not None:
        return _newcomer(settings, arguments)
    if arguments.save not in (None, HERE):
        raise ConfigError("--save", str(arguments.save), "is for --data; for the clients it is --save alone")
    clients = _site(federated, arguments) or chosen_clients(arguments.clients, federated.config.num_clients)
    _check(settings[0])
    facts = {
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16],
        "source": runs.source_digest(),
        "clients": arguments.clients,
        "running-statistics": str(arguments.running_statistics),
    }
    folders = [_folder(checkpoint, setting.config, facts) for setting in settings]
    tunings = [
        sweep.Tuning(setting, None if arguments.save is None else folder / "personal", arguments.running_statistics)
        for setting, folder in zip(settings, folders, strict=True)
    ]
    try:
        outcomes = sweep.sweep(tunings, folders, clients)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if len(outcomes) == 1:
        for row in outcomes[0]["clients"]:
            accuracies = "  ".join(f"{name} {100 * row[f'{name}_accuracy']:6.2f} %" for name in runs.KINDS)
            print(f"client {row['client']:>4}  {accuracies}  of {row['num_test']} test images")
    for tuning, folder, outcome in zip(tunings, folders, outcomes, strict=True):
        config = tuning.federated.config
        if tuning.save_to is not None:
            _describe(tuning, folder, outcome)
        print(f"trained {config.finetune_part} at {config.finetune_learning_rate:g}")
        means = ", ".join(f"{100 * over['mean']:.2f}" for over in runs.curve(outcome))
        print(f"mean accuracy (%) by epoch: {means}")
        print(runs.table(outcome))
        print(f"results {folder / runs.RESULTS}")
    return 0


def _newcomer(settings: Sequence[Federated], arguments: argparse.Namespace) -> int:
    if len(settings) > 1:
        raise ConfigError("--data", arguments.data, "takes one --part and one --lr")
    if arguments.clients != "all":
        raise ConfigError("--clients", arguments.clients, "are those of the federation; leave it out, or --data")
    if arguments.save == HERE:
        raise ConfigError("--save", "", "needs a folder where there is --data")
    from lit_fedbabu import newcomer  # imports Lightning, which takes long: not before the cheap checks

    newcomer.finetune(settings[0], arguments.data, arguments.label_column, arguments.save, arguments.running_statistics)
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


def _site(federated: Federated, arguments: argparse.Namespace) -> list[int]:
    """The client whose machine this is, where every client has its own; empty where one machine has all.

    Raises:
        ConfigError: it is not said which, or what the client kept is elsewhere.
    """
    if not federated.config.on_sites:
        return []
    words = arguments.clients
    own = str(federated.site) if words == "all" else words
    if not own.isdecimal() or federated.site not in (None, int(own)):
        remedy = "a site has the images of one client; give its client-id"
        raise ConfigError("--clients", words, remedy)
    if algorithm_of(federated.config).kept and federated.memories is None:
        remedy = f"is the server's, and what {federated.config.algorithm} kept is in the site's state folder; give that"
        raise ConfigError("RUN_OR_CHECKPOINT", str(arguments.source), remedy)
    return chosen_clients(own, federated.config.num_clients)


def _settings(federated: Federated, arguments: argparse.Namespace) -> Iterator[Federated]:
    """The federation with the options of every combination of part and learning rate."""
    parts = arguments.part.split(",") if arguments.part else [federated.config.finetune_part]
    try:
        rates = [float(rate) for rate in arguments.lr.split(",")] if arguments.lr else [None]
    except ValueError:
        raise ConfigError("--lr", arguments.lr, "must be numbers, as in 1e-3,1e-2") from None
    for part, rate in itertools.product(dict.fromkeys(parts), dict.fromkeys(rates)):
        given = {
            "finetune_part": part,
            "num_finetune_epochs": arguments.epochs,
            "finetune_learning_rate": rate,
            "dataset": arguments.dataset,
            "precision": arguments.precision,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        yield dataclasses.replace(federated, config=dataclasses.replace(federated.config, **changed))


def _check(federated: Federated) -> None:
    """Raise ConfigError where the clients' data are not what the fine-tuning needs."""
    config = federated.config
    found, expected = (", ".join(names) for names in (sources.source_of(config).class_names, federated.class_names))
    if found != expected:
        remedy = f"has the classes {found}, and the federation's had {expected}; for images of your own there is --data"
        raise ConfigError("dataset", config.dataset, remedy)
    preflight.check(config)


def _describe(tuning: sweep.Tuning, folder: Path, outcome: dict[str, Any]) -> None:
    from lit_fedbabu import update

    about = update.about(tuning.federated.config, round=outcome["round"], running_statistics=tuning.running_statistics)
    example = sweep.checkpoint_of(Path("personal"), outcome["clients"][0]["client"])
    card.write(folder, "Personal models of a federation's clients", about, runs.measures(outcome), str(example))


def _folder(checkpoint: Path, config: Config, facts: dict[str, str]) -> Path:
    """The folder of this fine-tuning beside the run's other files: a new one, or that of the same one begun before."""
    run = checkpoint.parent.parent if checkpoint.parent.name == runs.LAST_CHECKPOINT.parent.name else checkpoint.parent
    which = "" if checkpoint.name == runs.LAST_CHECKPOINT.name else f"{checkpoint.stem}-"
    name = f"{which}{config.finetune_part}-{config.num_finetune_epochs}epochs-lr{config.finetune_learning_rate:g}"
    for folder in _names(run / "finetune" / name):
        try:
            folder.mkdir(parents=True)
            runs.write_config(folder, config, facts)
            return folder
        except FileExistsError:
            if runs.is_of(folder, config, facts):
                return folder
        except OSError as error:
            raise ConfigError("RUN_OR_CHECKPOINT", str(run), f"cannot be written to: {error.strerror}") from None
    raise ConfigError("RUN_OR_CHECKPOINT", str(run / "finetune"), "is full; remove old results")


def _names(folder: Path) -> Iterable[Path]:
    return (folder if count == 1 else folder.with_name(f"{folder.name}-{count}") for count in range(1, 10_000))


if __name__ == "__main__":
    sys.exit(main())
