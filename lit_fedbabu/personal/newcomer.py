"""The body of a federation, fine-tuned on images of someone who had no part in it, under a fresh head."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.client_update import finetuning_of
from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError, some
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.files import new_folder, write_json
from lit_fedbabu.learning import pretrained, trainer
from lit_fedbabu.learning.models import by_batch
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import select
from lit_fedbabu.printing import say
from lit_fedbabu.records import model_card
from lit_fedbabu.records.federation import Federation
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import CONFIG, RESULTS, write_config
from lit_fedbabu.tasks.data import ImageClassification
from lit_fedbabu.tasks.evaluation import Evaluation
from lit_fedbabu.tasks.seeding import seeded

TUNED = ("finetune_part", "num_finetune_epochs", "finetune_learning_rate", "precision")
"""Options that a fine-tuning may have other than the federation."""


def finetune(
    federation: Federation, config: Config, data: str, label_column: str, save_to: Path | None, running: bool
) -> dict[str, Any]:
    """Fine-tune and print; save the model with its card, configuration and results.

    Args:
        federation: whose body it is, or a personal model that is tuned further.
        config: of the federation, with what fine-tuning trains, for how many epochs and at which rate.
        data: a folder, a hub name or "digits".
        label_column: of the data, where it has several.
        save_to: a folder that is new or empty; None saves nothing.
        running: whether the model gets running statistics.

    Returns:
        The content of results.json.

    Raises:
        InputError: the federation shares no body, the data cannot be used, or the folder is taken.
    """
    further = federation.kind != "federation"
    if not further and not select(federation.shared, ["body"]):
        raise InputError("checkpoint", config.algorithm, "shares no body that others could make their own")
    start = {**federation.initial, **federation.shared}
    start = start if further else select(start, ["body"])
    config = dataclasses.replace(  # one client that has it all
        config,
        dataset=data,
        label_column=label_column,
        class_names="",
        natural_id_column="",
        normalization="data",
        partitioner="iid",
        num_clients=1,
        num_new_clients=0,
        validation_fraction=0.0,
        min_client_images=1,
    )
    experiment = Experiment(config, ImageClassification(config, federation.constants), {})
    if further:
        experiment = _with_classes(experiment, federation)
    names = experiment.task.class_names
    if len(names) < 2:
        raise InputError("--data", data, f"has one class, {names[0]}; give two or more")
    experiment.check()
    for note in experiment.task.notes:
        say(f"note: {note}")
    with nullcontext() if save_to is None else new_folder("--save", save_to) as scratch:
        module = experiment.new_module(start)
        own = experiment.client_data(0, config.derived_seed("finetune", 0))
        say(
            f"{data}: {len(own.train_set)} training and {len(own.test_set)} test images of"
            f" {len(names)} classes, resized to {config.image_size} x {config.image_size}"
        )

        def follow(curve: Sequence[Evaluation]) -> None:
            epoch, now = len(curve) - 1, curve[-1]
            stage = "initial" if epoch == 0 else "personalized" if epoch == config.num_finetune_epochs else ""
            line = f"accuracy {100 * now.score:6.2f} %  loss {now.loss:.4f}"
            say(f"epoch {epoch}  {line}  {stage}".rstrip())

        with seeded(config.derived_seed("finetuning-draws", 0)):
            (outcome,) = trainer.personalize([module], [own], **finetuning_of(experiment), say=follow)
        row = {"client": 0, **outcome.as_row()}
        written = results(config, [], [row], server_round=federation.server_round)  # raises where it is not finite
        if running and by_batch(module.model):
            module = trainer.with_running_statistics(module, own)
            row["running_statistics_accuracy"] = trainer.evaluate([module], [own])[0].accuracy
            say(f"with running statistics  accuracy {100 * row['running_statistics_accuracy']:6.2f} %")
            written = results(config, [], [row], server_round=federation.server_round)
        if scratch is not None and save_to is not None:
            facts = {"round": federation.server_round, "data": data, "running_statistics": not by_batch(module.model)}
            if further:
                facts["earlier"] = federation.tuned_on
            options = {name: getattr(config, name) for name in TUNED}
            trained = dataclasses.replace(federation.config, **options)
            module.provenance = {**experiment.provenance("newcomer", **facts), "config": trained.experiment()}
            _save(module, trained, written, scratch, save_to.name)
    if save_to is not None:
        say(f"saved {save_to}: {pretrained.WEIGHTS}, {pretrained.CONFIG}, {model_card.NAME}, {CONFIG} and {RESULTS}")
    return written


def _with_classes(experiment: Experiment, federation: Federation) -> Experiment:
    """The experiment with the classes of a model that is tuned further, of which the data may have some alone.

    Raises:
        InputError: the data have a class that the model does not know.
    """
    config, found, classes = experiment.config, experiment.task.class_names, federation.class_names
    if unknown := [name for name in found if name not in classes]:
        remedy = f"has the classes {some(unknown)}, and the model knows {some(classes)}; fine-tune a federation's body"
        raise InputError("--data", config.dataset, remedy)
    if tuple(found) == tuple(classes):
        return experiment
    return Experiment(config, ImageClassification(config, federation.constants, classes), {})


def _save(module: LitFedBABU, config: Config, outcome: dict[str, Any], folder: Path, name: str) -> None:
    provenance = module.provenance
    pretrained.write(folder, provenance, module.hparams, module.model.state_dict())
    write_config(folder, config, {"data": provenance["data"]})
    write_json(folder / RESULTS, outcome)
    title = f"A personal model for {Path(provenance['data']).name}"
    model_card.write(folder, title, provenance, outcome, name)
