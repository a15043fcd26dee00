"""The model of a federation, fine-tuned on data of someone who had no part in it."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import FINETUNING
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import new_folder, write_json
from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.learning.evaluation import Measured
from lit_fedbabu.learning.models import by_batch
from lit_fedbabu.learning.state import BASE
from lit_fedbabu.records import model_card
from lit_fedbabu.records.federation import Federation
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import CONFIG, RESULTS, write_config
from lit_fedbabu.tasks.protocol import class_of
from lit_fedbabu.training.client_update import personalize
from lit_fedbabu.training.experiment import Experiment

TUNED = (*FINETUNING, "precision")
"""Options that a fine-tuning may have other than the federation."""


def finetune(
    federation: Federation, config: Config, data: str, label_column: str, save_to: Path | None, running: bool
) -> dict[str, Any]:
    """Fine-tune and print; save the model with its card, configuration and results.

    Args:
        federation: whose model it is, or a personal model that is tuned further.
        config: of the federation, with what fine-tuning trains, for how many epochs and at which rate.
        data: of images a folder, a hub name or "digits"; of a task the import path of what makes a
            LightningDataModule without arguments.
        label_column: of the data, where they have several.
        save_to: a folder that is new or empty; None saves nothing.
        running: whether the model gets running statistics.

    Returns:
        The content of results.json.

    Raises:
        InputError: the federation shares nothing of use, the data cannot be used, or the folder is taken.
    """
    further = federation.kind != "federation"
    if further and federation.config.finetune_part == "knn":
        remedy = "has stored features of images, which a model that trains further does not fit; tune the federation's"
        raise InputError("checkpoint", "finetune-part=knn", remedy)
    task = class_of(config).of_external(config, data, label_column, federation.provenance, further)
    config = task.config
    try:
        initial, start = task.external_start(federation.initial, federation.shared, further)
    except ValueError as error:
        raise InputError("checkpoint", config.algorithm, str(error)) from None
    experiment = Experiment(config, task, initial)
    experiment.check()
    for note in task.notes:
        say(f"note: {note}")
    score = task.score
    with nullcontext() if save_to is None else new_folder("--save", save_to) as scratch:
        module = experiment.new_module(start)
        own = experiment.client_data(0, config.derived_seed("finetune", 0))
        say(f"{data}: {task.described(own)}")

        length = experiment.algorithm.tuning_length(config)

        def follow(curve: Sequence[Measured]) -> None:
            epoch, now = len(curve) - 1, curve[-1]
            stage = "initial" if epoch == 0 else "personalized" if epoch == length else ""
            loss = "" if math.isnan(now.loss) else f"  loss {now.loss:.4f}"
            say(f"epoch {epoch}  {score.name} {score.shown(now.score):>6}{score.unit}{loss}  {stage}".rstrip())

        with waiting("fine-tuning"):
            (outcome,) = personalize(experiment, [0], [module], [own], follow)
        row = {"client": 0, **outcome.as_row()}
        written = results(config, [], [row], score, federation.server_round)  # raises where it is not finite
        if running and by_batch(module.model):
            module = experiment.classifier.with_running_statistics(module, own)
            row["running_statistics_accuracy"] = task.evaluate([module], [own])[0].score
            say(f"with running statistics  accuracy {100 * row['running_statistics_accuracy']:6.2f} %")
            written = results(config, [], [row], score, federation.server_round)
        if scratch is not None and save_to is not None:
            facts: dict[str, Any] = {"round": federation.server_round, "data": data}
            facts |= {"running_statistics": not by_batch(module.model)} if config.kind.by_options else {}
            facts |= {"earlier": federation.tuned_on} if further else {}
            trained = dataclasses.replace(federation.config, **{name: getattr(config, name) for name in TUNED})
            module.provenance = {**experiment.provenance("newcomer", **facts), "config": trained.experiment()}
            if not federation.server_round:  # no federation has the base, so that it is saved too
                module.provenance.pop(BASE, None)
            saved = task.save(module, scratch)
            write_config(scratch, trained, {"data": data})
            write_json(scratch / RESULTS, written)
            title = f"A personal model for {Path(data).name}"
            place = save_to.name if config.kind.by_options else saved[0]
            model_card.write(scratch, title, module.provenance, written, place)
    if save_to is not None:
        say(f"saved {save_to}: {', '.join([*saved, model_card.NAME, CONFIG])} and {RESULTS}")
    return written
