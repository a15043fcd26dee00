"""``lit-fedbabu run [CONFIG.toml] [key=value ...]``: a federation on this machine.

It leaves no process behind. With ``engine=local`` messages go to worker processes, with ``engine=ray`` to those of a
Ray cluster; with ``engine=flower`` it starts a SuperLink of its own, as plain ``flwr run .`` would. Training is the
same.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.completion import Parser, complete, option_words
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OF_SERVER, PLACES, WITHOUT_NUMBERS, code_in
from lit_fedbabu.config.text import describe
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError, RunError, of_system, one_line_errors
from lit_fedbabu.ground.files import from_home, refuse_unwritable, whole_name
from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.ground.stops import STOPS
from lit_fedbabu.ground.system import next_step, plain_lines, program
from lit_fedbabu.records import loggers, run_folder
from lit_fedbabu.workers.worker import Warm, threads

if TYPE_CHECKING:
    from lit_fedbabu.records.results import Results
    from lit_fedbabu.training.experiment import Experiment


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu run",
        description="Run a federation on this machine.",
        epilog=describe(Config()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.toml | key=value", help="options; later ones win")
    parser.add_argument("--plain", action="store_true", help="print lines alone, without a live one")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder, which was stopped")
    complete(parser, words=option_words)
    arguments = parser.parse_intermixed_args(argv)
    options = parse_words(arguments.words)
    if arguments.resume:
        options["resume"] = str(arguments.resume)
    with plain_lines(arguments.plain):
        folder, status = _run(options, arguments.plain)
    if status == 0:
        command = shlex.join([program("tensorboard"), "--logdir", str(folder.parent)])
        say(f"TensorBoard: {command}")
        code = [word for key, path in code_in(options).items() if key not in OF_SERVER for word in (f"--{key}", path)]
        say(next_step("finetune", folder, *code, "--save"))
        say(next_step("report", folder))
    return status


def run(config: Config) -> "Results":
    """Run a federation on this machine.

    Args:
        config: its options. ``resume`` names the folder of a run to be continued.

    Returns:
        Its results, as of ``read_results``.

    Raises:
        InputError: the configuration cannot be run.
        RunError: the run has failed.
    """
    from lit_fedbabu.records.results import read_results

    if not isinstance(config, Config):
        raise InputError("config", config, 'must be a lit_fedbabu.Config, as in Config(dataset="digits")')
    defaults, options = Config().to_run_config(), config.to_run_config()
    given = {name.replace("_", "-") for name in config.given}  # also a default, but for those that name places
    taken = {key: options[key] for key in given if key not in PLACES or options[key] != defaults[key]}
    folder, status = _run(taken)
    if status:
        raise RunError(f"the run in {folder} has failed; what was said of it is above")
    return read_results(folder)


def _run(options: dict[str, Any], plain: bool = False) -> tuple[Path, int]:
    """Check the options and run; returns the run's folder and the exit status."""
    resume = from_home(str(options["resume"])) if options.get("resume") else None
    options, folder = _resumed(options, resume) if resume else _new(options)
    config = Config.from_run_config(options).pinned()
    loggers.check(config)
    if config.on_sites:
        raise InputError("partitioner", "sites", "is for real nodes, with flwr run: see docs/deployment.md")
    try:
        return folder, ENGINES.get(config.engine, _by_grid)(config, folder, plain)
    except STOPS as stop:
        if (folder / run_folder.CONFIG).exists():
            is_over = run_folder.is_finished(folder)
            stop.add_note(f"the run in {folder} is over" if is_over else f"the run goes on with: {_resuming(folder)}")
        raise
    except OSError as error:
        if (folder / run_folder.CONFIG).exists():
            raise RunError(of_system(error, f"go on with: {_resuming(folder)}")) from None
        raise


def _resuming(folder: Path) -> str:
    """The command that a run goes on with. It repeats what the run has of the user's own code."""
    code = [f"{key}={path}" for key, path in run_folder.read_config(folder).code().items()]
    return shlex.join([program("lit-fedbabu"), "run", "--resume", str(folder), *code])


def _by_flower(config: Config, folder: Path, plain: bool) -> int:
    """Run with the engine ``flower``; returns the exit status."""
    say("checking the dataset and the split")
    with waiting("loading PyTorch and Flower"):
        from lit_fedbabu.engines import flower  # imports PyTorch, which takes seconds: first the cheap checks

    _checked(config)
    defaults = Config().to_run_config()
    options = {key: value for key, value in config.to_run_config().items() if value != defaults[key]}
    from lit_fedbabu.records.progress import shown

    with shown(plain) as progress:
        return flower.run(options, folder, progress)


def _locally(config: Config, folder: Path, plain: bool) -> int:
    """Run with the engine ``local``; returns the exit status."""
    with Warm("lit_fedbabu.client_app:prepare", environment=threads(config.num_threads, config.devices)) as warm:
        warm.start()  # it imports what workers need while this process imports what the server needs
        say("checking the dataset and the split")
        experiment = _checked(config)
        from lit_fedbabu.engines import local
        from lit_fedbabu.records.progress import shown
        from lit_fedbabu.server.federate import federate

        with shown(plain) as progress, local.started(config, warm, folder, progress) as grid:
            federate(grid, experiment, progress)
    return 0


def _by_ray(config: Config, folder: Path, plain: bool) -> int:
    """Run with the engine ``ray``; returns the exit status."""
    from lit_fedbabu.engines import ray

    with ray.connected(config, folder) as workers:  # they start while this process imports what the server needs
        say("checking the dataset and the split")
        experiment = _checked(config)
        from lit_fedbabu.records.progress import shown
        from lit_fedbabu.server.federate import federate

        with shown(plain) as progress, workers.grid(experiment, progress) as grid:
            federate(grid, experiment, progress)
    return 0


def _by_grid(config: Config, folder: Path, plain: bool) -> int:
    """Run with an engine of the user's own; returns the exit status."""
    say("checking the dataset and the split")
    experiment = _checked(config)
    from lit_fedbabu.engines import custom
    from lit_fedbabu.records.progress import shown
    from lit_fedbabu.server.federate import federate

    with custom.opened(config) as grid, shown(plain) as progress:
        federate(grid, experiment, progress)
    return 0


ENGINES = {"local": _locally, "ray": _by_ray, "flower": _by_flower}


def _checked(config: Config) -> "Experiment":
    """The experiment, after the checks of all that is needed."""
    with waiting("loading PyTorch, then data and model"):
        from lit_fedbabu.aggregation import table as aggregation
        from lit_fedbabu.learning.precision import resolve_precision
        from lit_fedbabu.records.federation import resumable
        from lit_fedbabu.training.experiment import Experiment

        resolve_precision(config.precision)
        experiment = Experiment(config)
        experiment.check()
        aggregation.check(experiment)
        if config.resume and (begun := resumable(config)):
            begun.refuse_other_start(experiment)
        from lit_fedbabu.server import federate  # noqa: F401 - the rest of what is imported, which takes a second
    return experiment


def _resumed(options: dict[str, Any], resume: Path) -> tuple[dict[str, Any], Path]:
    """The options of a run that is continued, and its folder."""
    for key in ("run-name", "output-dir"):
        if key in options:
            raise InputError(key, options[key], "a run that is resumed keeps its folder; leave it out")
    folder = resume.resolve()
    begun = run_folder.read_config(resume)
    for key, path in begun.code().items():
        if key not in options if key in WITHOUT_NUMBERS else options.get(key) != path:
            remedy = (
                f"is code that {resume / run_folder.CONFIG} names; if you trust it, go on with: {_resuming(folder)}"
            )
            raise InputError(key, path, remedy)
    return {**begun.to_run_config(), **options, "resume": str(folder)}, folder


def _new(options: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """The options of a new run, with absolute paths, and its folder."""
    config = Config.from_run_config(options)
    output_dir = from_home(config.output_dir).resolve()
    name = config.run_name or run_folder.default_run_name(config)
    options = {**options, "output-dir": str(output_dir), "run-name": name}
    if (dataset := whole_name(config.dataset)) != config.dataset:
        options["dataset"] = dataset
    run_folder.refuse_existing(output_dir / name)
    refuse_unwritable("output-dir", output_dir)
    return options, output_dir / name


if __name__ == "__main__":
    sys.exit(main())
