"""``lit-fedbabu body RUN FOLDER``: what a federation shares, as a folder that others fine-tune or publish."""

import argparse
import sys
from pathlib import Path

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import new_folder
from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.ground.system import next_step
from lit_fedbabu.records.run_folder import CONFIG, read_environment


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu body",
        description="Save the model that a run's clients share in the form of model hubs: model.safetensors,"
        " config.json and a card with the run's results. lit-fedbabu finetune FOLDER --data PHOTOS then makes it"
        " someone's own.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    what = "the dataset's name in the card, where a path of this machine says nothing to others"
    parser.add_argument("--dataset", metavar="NAME", help=what)
    parser.add_argument("--model-name", default="", help="the run's model if it is an import path: it is run")
    parser.add_argument("--algorithm", default="", help="the run's method if it is an import path: it is run")
    complete(parser)
    with waiting("loading PyTorch, then the model"):
        _save(parser.parse_args(argv))
    return 0


def _save(arguments: argparse.Namespace) -> None:
    from lit_fedbabu.algorithms.table import title_of  # these import PyTorch: first the cheap checks
    from lit_fedbabu.learning import checkpoint, pretrained
    from lit_fedbabu.records import model_card
    from lit_fedbabu.records.federation import find_checkpoint, read_federation
    from lit_fedbabu.records.results import read_results

    path = find_checkpoint(arguments.run)
    federation = read_federation(path, arguments.model_name, algorithm=arguments.algorithm)
    if not federation.config.kind.by_options:
        raise InputError("RUN", str(arguments.run), "is of a task, whose checkpoint its own LightningModule loads")
    parts = {name.partition(".")[0] for name in federation.shared}
    if "body" not in parts:
        raise InputError("RUN", str(arguments.run), f"{federation.config.algorithm} shares no body")
    outcome = read_results(arguments.run)
    with new_folder("FOLDER", arguments.folder) as scratch:
        saved = checkpoint.read(path, arguments.model_name)
        config = federation.config.experiment() | ({"dataset": arguments.dataset} if arguments.dataset else {})
        provenance = {**federation.provenance, "kind": saved.kind, "config": config}
        if (arguments.run / CONFIG).is_file():
            provenance["trains_on"] = read_environment(arguments.run).get("trains-on", "")
        pretrained.write(scratch, provenance, saved.hyper_parameters, saved.state)
        what = "model" if "head" in parts else "body"
        method = title_of(federation.config.algorithm)
        title = f"{method}: the {what} of a federation on {config['dataset']}"
        model_card.write(scratch, title, provenance, outcome, arguments.folder.name)
    say(f"saved {arguments.folder}: {pretrained.WEIGHTS}, {pretrained.CONFIG} and {model_card.NAME}")
    say(next_step("finetune", arguments.folder, "--data", "PHOTOS", "--save", "me"))


if __name__ == "__main__":
    sys.exit(main())
