"""``lit-fedbabu data [CONFIG.toml] [key=value ...]``: who has which images, as a table and a figure."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_fedbabu.completion import Parser, complete, option_words
from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import new_folder, refuse_unwritable, write_whole
from lit_fedbabu.ground.printing import in_line, say, waiting
from lit_fedbabu.ground.system import next_step
from lit_fedbabu.records.run_folder import PARTITION

ROWS = 100
"""Clients in the printed table; the file has all."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu data",
        description="Deal the dataset as a run with these options would, print the split and draw it.",
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.toml|KEY=VALUE", help="options as of lit_fedbabu.run")
    parser.add_argument("--clean", action="store_true", help="remove the cache of decoded images instead, and say what")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to (re)write the files; %(default)s")
    complete(parser, words=option_words)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.clean:
        return _clean(arguments.words)
    config = Config.from_run_config(parse_words(arguments.words))
    refuse_unwritable("--out", arguments.out)
    with waiting("loading PyTorch, then the data"):
        _show(config, arguments.out)
    say(next_step("run", *arguments.words))
    return 0


def _show(config: Config, out: Path) -> None:
    """Print the split and draw it."""
    from lit_fedbabu.training.experiment import Experiment  # PyTorch, which takes seconds: first refuse bad options

    experiment = Experiment(config)
    experiment.check()
    from lit_fedbabu.records.plots import draw_split, fonts_for

    counts = experiment.task.class_counts()
    for note in experiment.task.notes:
        say(f"note: {note}")
    say(table(counts, experiment.task.client_names))
    say(f"{experiment.task.title}: {experiment.task.summary()}")
    if fonts_for("".join(experiment.task.class_names)) is None:
        say(f"note: no font here has the characters of the class names; figures number them, as {PARTITION} does")
    with new_folder("--out", out, rewritten=True) as scratch:
        write_whole(scratch / PARTITION, counts)
        names = [PARTITION, *(path.name for path in draw_split(counts, scratch, experiment.task.client_names))]
    for name in names:
        say(out / name)


def _clean(words: list[str]) -> int:
    """Remove all decoded images; they are decoded again where they are needed."""
    from lit_fedbabu.learning.cache import clean, folder

    if words:
        raise InputError("--clean", " ".join(words), "removes the whole cache; leave the options out")
    removed, kept = clean()
    for name, size in removed:
        say(f"removed {name}  {size / 1e6:.1f} MB")
    for name in kept:
        say(f"note: {name} is being written by a process, and stays")
    total = sum(size for _, size in removed) / 1e6
    say(f"{folder()}: removed {len(removed)} decoded datasets, {total:.1f} MB")
    return 0


def table(class_counts: str, clients: Sequence[str] = ()) -> str:
    """A line for every client, the first ROWS of them: its training images by class, its test images, and its name."""
    (_, _, *names), *rows = csv.reader(io.StringIO(class_counts))
    images: dict[str, dict[str, dict[str, int]]] = {"train": {}, "test": {}}
    for client, split, *counts in rows:
        images[split][client] = {name: int(count) for name, count in zip(names, counts, strict=True) if count != "0"}

    def name(client: str) -> str:
        return f"  ({in_line(clients[int(client)])})" if clients else ""

    lines = [f"{'client':>6}  {'train':>6}  {'test':>6}  training images by class"]
    for client, train in list(images["train"].items())[:ROWS]:
        classes = ", ".join(f"{in_line(name)} {count}" for name, count in train.items())
        lines.append(
            f"{client:>6}  {sum(train.values()):>6}  {sum(images['test'][client].values()):>6}  {classes}"
            + name(client)
        )
    if len(images["train"]) > ROWS:
        lines.append(f"and {len(images['train']) - ROWS} more clients, in {PARTITION}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
