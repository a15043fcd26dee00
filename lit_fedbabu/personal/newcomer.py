"""The body of a federation, fine-tuned on images of someone who had no part in it, under a fresh head."""

import dataclasses
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.client_update import finetuning_of
from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.files import make_new_folder, write_json
from lit_fedbabu.learning import checkpoint, trainer
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import select
from lit_fedbabu.records import model_card
from lit_fedbabu.records.federation import Federation
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import CONFIG, RESULTS, write_config
from lit_fedbabu.tasks.data import ImageClassification
from lit_fedbabu.tasks.seeding import seeded

CHECKPOINT = "personal.ckpt"


def finetune(
    federation: Federation, config: Config, data: str, label_column: str, save_to: Path | None, running: bool
) -> dict[str, Any]:
    """Fine-tune and print; save the model with its card, configuration and results.

    Args:
        federation: whose body it is.
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
    body = select(federation.shared, ["body"])
    if not body:
        raise InputError("checkpoint", config.algorithm, "shares no body that others could make their own")
    config = dataclasses.replace(  # one client that has it all
        config,
        dataset=data,
        label_column=label_column,
        natural_id_column="",
        normalization="data",
        partitioner="iid",
        num_clients=1,
        num_new_clients=0,
        min_client_images=1,
    )
    experiment = Experiment(config, ImageClassification(config, federation.constants))
    names = experiment.task.class_names
    if len(names) < 2:
        raise InputError("--data", data, f"has one class, {names[0]}; give two or more")
    experiment.check()
    for note in experiment.task.notes:
        print(f"note: {note}")
    if save_to is not None:
        make_new_folder("--save", save_to)
    module = experiment.new_module(body)
    own = experiment.client_data(0, config.derived_seed("finetune", 0))
    print(
        f"{data}: {len(own.train_set)} training and {len(own.test_set)} test images of"
        f" {len(names)} classes, resized to {config.image_size} x {config.image_size}"
    )
    with seeded(config.derived_seed("finetuning-draws", 0)):
        (outcome,) = trainer.personalize([module], [own], **finetuning_of(experiment))
    row = {"client": 0, **outcome.as_row()}
    written = results(config, federation.rounds, [row])  # raises where the model is not finite
    for epoch, evaluation in enumerate(outcome.curve):
        stage = "initial" if epoch == 0 else "personalized" if epoch == len(outcome.curve) - 1 else ""
        line = f"accuracy {100 * evaluation.score:6.2f} %  loss {evaluation.loss:.4f}"
        print(f"epoch {epoch}  {line}  {stage}".rstrip())
    if running:
        module = trainer.with_running_statistics(module, own)
        row["running_statistics_accuracy"] = trainer.evaluate([module], [own])[0].accuracy
        print(f"with running statistics  accuracy {100 * row['running_statistics_accuracy']:6.2f} %")
        written = results(config, federation.rounds, [row])
    if save_to is not None:
        facts = {"round": federation.server_round, "data": data, "running_statistics": running}
        module.provenance = experiment.provenance("newcomer", **facts)
        _save(module, federation.config, written, save_to)
    return written


def _save(module: LitFedBABU, config: Config, outcome: dict[str, Any], folder: Path) -> None:
    provenance = module.provenance
    checkpoint.save(module, folder / CHECKPOINT)
    write_config(folder, config, {"data": provenance["data"]})
    write_json(folder / RESULTS, outcome)
    accuracies = {
        name.replace("_", " "): f"{100 * value:.2f} %"
        for name, value in outcome["clients"][0].items()
        if name.endswith("_accuracy") and value is not None
    }
    title = f"A personal model for {Path(provenance['data']).name}"
    model_card.write(folder, title, {**provenance, "config": config.experiment()}, accuracies, CHECKPOINT)
    print(f"saved {folder / CHECKPOINT}, with {model_card.NAME}, {CONFIG} and {RESULTS}")
