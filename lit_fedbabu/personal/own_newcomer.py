"""The model of a task, fine-tuned on data of someone who had no part in the federation."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.client_update import finetuning_of
from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.files import new_folder, write_json
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.options import imported
from lit_fedbabu.printing import say
from lit_fedbabu.records import model_card
from lit_fedbabu.records.federation import Federation
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import CONFIG, RESULTS, write_config
from lit_fedbabu.records.saved import NEWCOMER
from lit_fedbabu.tasks.own import OwnTask
from lit_fedbabu.tasks.seeding import seeded


def finetune(federation: Federation, config: Config, data: str, save_to: Path | None) -> dict[str, Any]:
    """Fine-tune what the federation shares, over its initial model, and print; save the model if that is asked for.

    Args:
        federation: of a task, or a personal model that is tuned further.
        config: of the federation, with what fine-tuning trains, for how many epochs and at which rate.
        data: the import path of what makes a LightningDataModule without arguments.
        save_to: a folder that is new or empty; None saves nothing.

    Returns:
        The content of results.json.

    Raises:
        InputError: the federation shares nothing, the data cannot be used, or the folder is taken.
    """
    if not federation.shared:
        raise InputError("checkpoint", config.algorithm, "shares nothing that others could make their own")
    make = imported("--data", data, "must be the import path of a LightningDataModule, as in my_module:MyData")
    task = OwnTask(dataclasses.replace(config, num_clients=1, num_new_clients=0), make)
    experiment = Experiment(config, task, federation.initial)
    experiment.check()
    with nullcontext() if save_to is None else new_folder("--save", save_to) as scratch:
        module = experiment.new_module(federation.shared)
        own = experiment.client_data(0, 0)
        say(f"{data}: {own.num_train} training and {own.num_test} test samples")
        with seeded(config.derived_seed("finetuning-draws", 0)):
            (outcome,) = experiment.learner.personalize([module], [own], **finetuning_of(experiment))
        score = experiment.task.score
        written = results(config, [], [{"client": 0, **outcome.as_row()}], score, federation.server_round)
        for epoch, evaluation in enumerate(outcome.curve):
            stage = "initial" if epoch == 0 else "personalized" if epoch == len(outcome.curve) - 1 else ""
            say(f"epoch {epoch}  {score.name} {score.shown(evaluation.score)}{score.unit}  {stage}".rstrip())
        if scratch is not None:
            earlier = {"earlier": federation.tuned_on} if federation.tuned_on else {}
            facts = {"round": federation.server_round, "data": data, **earlier}
            module.provenance = experiment.provenance("newcomer", **facts)
            checkpoint.save(module, scratch / NEWCOMER)
            write_config(scratch, config, {"data": data})
            write_json(scratch / RESULTS, written)
            title = f"A personal model for {data}"
            model_card.write(scratch, title, module.provenance, written, NEWCOMER)
    if save_to is not None:
        say(f"saved {save_to / NEWCOMER}, with {model_card.NAME}, {CONFIG} and {RESULTS}")
    return written
