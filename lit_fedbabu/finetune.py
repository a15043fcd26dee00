"""``lit-fedbabu finetune RUN_OR_CHECKPOINT``: personal models from a federation's, without Flower."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from lit_fedbabu.completion import Parser, bodies, complete, values
from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import alone_in
from lit_fedbabu.ground.printing import in_line, say, waiting
from lit_fedbabu.ground.stops import STOPS
from lit_fedbabu.learning.evaluation import STAGES, Score
from lit_fedbabu.records import seal
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, PARTITION, RESULTS, SERVER, called
from lit_fedbabu.workers.worker import Warm, threads

if TYPE_CHECKING:
    from lit_fedbabu.config import Config
    from lit_fedbabu.personal.settings import Request
    from lit_fedbabu.records.federation import Federation
    from lit_fedbabu.records.results import Results

HERE = Path()
SEVERAL = {"part", "lr", "clients"}
"""Options that take several values."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    arguments = vars(_parser().parse_args(argv))
    save = arguments.pop("save")
    save_to = None if save == HERE else save
    try:
        with system.plain_lines(arguments["plain"]), waiting("loading PyTorch, then model and data"):
            (first, *_) = _finetune(_request(**arguments, save=save == HERE, save_to=save_to))
        if save is None:
            again = ("--save", "me") if arguments["data"] else ("--save",)
            say(system.next_step("finetune", *(sys.argv[1:] if argv is None else argv), *again))
        elif first.score.is_accuracy:
            say(system.next_step("predict", save_to or first.folder, "IMAGE"))
    except STOPS as stop:
        begins = "goes on from here" if arguments["data"] is None else "begins again"
        words = [system.program("lit-fedbabu"), "finetune", *(sys.argv[1:] if argv is None else argv)]
        stop.add_note(f"the same command {begins}: {shlex.join(words)}")
        raise
    return 0


class Options(TypedDict, total=False):
    """What ``finetune`` takes, as ``personal.settings.Request`` describes it; lists in place of texts with commas."""

    part: str | Sequence[str] | None
    epochs: int | None
    lr: float | str | Sequence[float] | None
    knn_neighbors: int | None
    knn_weight: float | None
    clients: int | str | Iterable[int]
    data: str | Path | None
    label_column: str
    save: bool
    save_to: str | Path | None
    running_statistics: bool | None
    precision: str | None
    dataset: str | Path | None
    model_name: str
    augmentation: str | None
    task: str
    algorithm: str
    weights: str | Path | None
    trainable: str | None
    plain: bool


def finetune(source: str | Path, **options: Unpack[Options]) -> list[Results]:
    """Fine-tune clients of a federation on their own data, or its body on data that had no part in it.

    Args:
        source: a run's folder, a checkpoint, the folder of a saved model, the name of a body of this package, or a
            network of timm, as "timm:resnet18".
        options: of which ``part``, ``lr`` and ``clients`` take one value or several, as in ``clients=[0, 3]``.

    Returns:
        For every combination of part and learning rate its results, in the order given, as of ``read_results``.

    Raises:
        InputError: an option is wrong, or the checkpoint or the data cannot be used.
    """
    given: dict[str, Any] = {**options}
    for name in SEVERAL & given.keys():
        given[name] = _words(given[name])
    for name in ("data", "dataset"):
        given |= {name: str(given[name])} if isinstance(given.get(name), Path) else {}
    for name in ("save_to", "weights"):
        given |= {name: Path(given[name])} if given.get(name) is not None else {}
    return _finetune(_request(source=Path(source), **given))


def _words(value: Any) -> Any:
    """One value or several as the command takes them."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(str, value))
    return value if value is None or isinstance(value, bool) else str(value)


def _request(**options: Any) -> Request:
    from lit_fedbabu.personal.settings import Request  # imports PyTorch, which takes seconds

    return Request(**options)


def _parser() -> Parser:
    parser = Parser(
        prog="lit-fedbabu finetune",
        description="Fine-tune clients of a federation on their own data, or its body on data that had no part in it."
        " What is not given is as in the federation. An interrupted command goes on where it stopped.",
        epilog=f"Bodies that come with the package: {', '.join(system.shipped_bodies())}.",
    )
    what = "a run's folder, a .ckpt file, the folder of a saved model, the name of a body of this package, or a network"
    what += " of timm as timm:resnet18"
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help=what)
    what = "what trains: head, body or full; or knn: nothing does, and the nearest training images vote; several as in"
    parser.add_argument("--part", help=f"{what} head,full")
    parser.add_argument("--epochs", type=int, help="epochs on a client's training images")
    parser.add_argument("--lr", help="learning rate; several as in 1e-3,1e-2")
    parser.add_argument("--knn-neighbors", type=int, help="of --part knn, as the option knn-neighbors")
    parser.add_argument("--knn-weight", type=float, help="of --part knn, as the option knn-weight")
    parser.add_argument("--clients", default="all", help="all, or numbers or names as in 0,3,7 and alice,bob")
    data = "of your own, instead of the clients': a folder or a hub name of images, or with --task my_module:MyData"
    parser.add_argument("--data", help=data)
    parser.add_argument("--label-column", default="", help="of --data, where it has several")
    what = "of timm:NAME, a .safetensors with the network's weights; without it they are fetched from timm's hub"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=what)
    what = "of timm:NAME, what of its body trains beside the head: last:N, its last N blocks, or norm"
    parser.add_argument("--trainable", metavar="last:N", help=what)
    what = "save the clients' models beside the results, or with --data the model in DIR"
    parser.add_argument("--save", nargs="?", const=HERE, type=Path, metavar="DIR", help=what)
    what = (
        "models use statistics of the client's training images, and so predict each image alone; saved ones always do"
    )
    what += " unless --no-running-statistics is given"
    parser.add_argument("--running-statistics", action=argparse.BooleanOptionalAction, help=what)
    parser.add_argument("--precision", help="of the training, as the option precision")
    parser.add_argument("--dataset", help="where the federation's dataset is on this machine")
    parser.add_argument("--augmentation", help="of the training, as the option; one that is code must be named")
    parser.add_argument("--plain", action="store_true", help="print lines alone, without a live one")
    parser.add_argument("--model-name", default="", help="the federation's model if it is an import path: it is run")
    parser.add_argument("--task", default="", help="the federation's task if it has one: it is run")
    parser.add_argument("--algorithm", default="", help="the federation's method if it is an import path: it is run")
    complete(parser, source=bodies, part=values("finetune-part"), precision=values("precision"))
    return parser


TYPED = {
    "augmentation": "augmentation", "dataset": "dataset", "finetune-learning-rate": "lr", "finetune-part": "part",
    "initial-weights": "weights", "knn-neighbors": "knn_neighbors", "knn-weight": "knn_weight",
    "label-column": "label_column", "num-finetune-epochs": "epochs", "precision": "precision", "trainable": "trainable",
}  # fmt: skip
"""Options of the configuration, and the names that this command has for them."""


def _finetune(request: Request) -> list[Results]:
    """Fine-tune; a refused option is called as it was typed."""
    try:
        return _finetuned(request)
    except InputError as error:
        typed = "data" if error.key == "dataset" and request.data is not None else TYPED.get(error.key, "")
        if not typed or getattr(request, typed) in (None, ""):
            raise
        name = f"--{typed.replace('_', '-')}"
        raise InputError(name, error.value, error.remedy.replace(f"{error.key}=", f"{name} ")) from None


def _finetuned(request: Request) -> list[Results]:
    from lit_fedbabu.learning.precision import resolve_precision
    from lit_fedbabu.records.federation import read_federation
    from lit_fedbabu.records.results import Results

    request.refuse_unread()
    if request.of_timm:
        from lit_fedbabu.personal.of_timm import of_timm

        checkpoint, federation = request.source, of_timm(request)
    else:
        checkpoint, trusted = request.checkpoint(), request.task or request.model_name
        federation = read_federation(checkpoint, trusted, request.data is not None, request.algorithm)
    request.refuse_unread_by(federation.config.kind)
    configs = list(request.configs(federation.config))
    request = request.with_statistics(federation.config)
    resolve_precision(configs[0].precision)
    if request.data is None:
        if checkpoint.is_dir():
            remedy = "is a saved model, without the clients of its federation: give images of your own with --data"
            raise InputError("RUN_OR_CHECKPOINT", str(request.source), remedy)
        return _clients(request, federation, checkpoint)
    if len(configs) > 1:
        raise InputError("--data", request.data, "takes one --part and one --lr")
    from lit_fedbabu.personal import external  # imports Lightning: first the cheap checks

    what = request.data, request.label_column, request.save_to, bool(request.running_statistics)
    return [Results(external.finetune(federation, configs[0], *what), request.save_to)]


def _clients(request: Request, federation: Federation, checkpoint: Path) -> list[Results]:
    """Fine-tune the federation's own clients in every setting."""
    clients = request.chosen_clients(federation)
    if (federation.memories or federation.extras) and checkpoint.name == LAST_CHECKPOINT.name:
        seal.check_memories(checkpoint.resolve().parent.parent, federation.server_round)
    configs = list(request.configs(federation.config))
    with Warm("lit_fedbabu.personal.sweep:prepare", environment=threads(configs[0].num_threads)) as warm:
        if len(clients) > 1:
            warm.start()  # it imports what workers need while this process imports the same
        return _in_settings(request, configs, clients, federation, checkpoint, warm)


def _in_settings(
    request: Request, configs: list[Config], clients: list[int], federation: Federation, checkpoint: Path, warm: Warm
) -> list[Results]:
    from lit_fedbabu.personal.settings import results_folder
    from lit_fedbabu.personal.sweep import Personalizer, Tuning, sweep
    from lit_fedbabu.records.progress import shown
    from lit_fedbabu.records.results import Results, curve, everyone, table, tuned_words
    from lit_fedbabu.records.saved import PERSONAL

    first = min(configs, key=lambda each: each.finetune_part != "knn")  # which asks for most of a model of images
    experiment = federation.experiment(first)
    experiment.task.refuse_other(federation.provenance, checkpoint.resolve().parent.parent / PARTITION)
    experiment.check()
    others = {config.finetune_part: config for config in configs} if not first.kind.by_options else {}
    for part in others.keys() - {first.finetune_part}:
        federation.experiment(others[part]).check()  # a task's module may not train every part
    if federation.extras.keys() != experiment.extras.after.keys():
        remedy = f"{experiment.config.algorithm} needs the run's folder {SERVER}/ beside it"
        raise InputError("checkpoint", str(checkpoint), remedy)
    facts = {
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16],
        "source": system.source_digest(),
        "clients": request.clients,
        "running-statistics": str(request.running_statistics),
    }
    tunings = []
    for config in configs:
        folder = results_folder(checkpoint, config, facts)
        save_to = folder / PERSONAL if request.save else None
        tunings.append(Tuning(config, folder, save_to, bool(request.running_statistics)))
    with ExitStack() as locks, shown(request.plain) as progress:
        for tuning in tunings:
            locks.enter_context(alone_in(tuning.folder))
        outcomes = sweep(Personalizer(experiment, federation, tunings), federation, clients, warm, progress)
    score = experiment.task.score
    key = f"personalized_{score.name}"
    if len(outcomes) == 1:
        for row in everyone(outcomes[0]):
            scores = "  ".join(f"{stage} {_shown(row[f'{stage}_{score.name}'], score)}" for stage in STAGES)
            of_what = "images" if score.is_accuracy else "samples"
            name = f"  ({in_line(row['name'])})" if "name" in row else ""
            say(f"client {row['client']:>4}  {scores}  of {row['num_test']} test {of_what}{name}")
    for tuning, outcome in zip(tunings, outcomes, strict=True):
        if diverged := [row["client"] for row in everyone(outcome) if row[key] is None]:
            unsaved = "; models whose weights are not finite are not saved" if request.save else ""
            say(f"note: personalized {score.name} of clients {called(diverged)} is not finite and is left out{unsaved}")
        if measured := outcome["summary"].get("running_statistics_accuracy"):
            what = "as saved, with running statistics" if request.save else "with running statistics"
            say(f"mean accuracy {what}: {100 * measured['mean']:.2f} %")
        rate = tuning.config.finetune_learning_rate or experiment.finetuning_rate
        trained, trains = tuned_words(tuning.config)
        say(f"trained {trained} at {f'{rate:g}' if rate else 'the rate of the module'}" if trains else trained)
        means = ", ".join(score.shown(over["mean"]) for over in curve(outcome))
        say(f"mean {score.axis} by epoch: {means}")
        say(table(outcome))
        say(f"results {tuning.folder / RESULTS}")
    return [Results(outcome, tuning.folder) for tuning, outcome in zip(tunings, outcomes, strict=True)]


def _shown(value: float | None, score: Score) -> str:
    return "not finite" if value is None else f"{score.shown(value):>6}{score.unit}"


if __name__ == "__main__":
    sys.exit(main())
