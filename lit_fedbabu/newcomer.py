"""The body of a federation, fine-tuned on images of someone who had no part in it, under a fresh head."""

import dataclasses
from pathlib import Path

from lit_fedbabu import card, preflight, runs, sources, training, update
from lit_fedbabu.batches import ClientData
from lit_fedbabu.checkpoint import Federated
from lit_fedbabu.config import ConfigError
from lit_fedbabu.models import IMAGE_SIZE, model_seed, select
from lit_fedbabu.module import LitFedBABU

CHECKPOINT = "personal.ckpt"


def finetune(federated: Federated, dataset: str, label_column: str, save_to: Path | None, running: bool) -> None:
    """Fine-tune and print; save the model with its card, configuration and results.

    Args:
        federated: the federation; ``config`` says what trains, for how many epochs and at which rate.
        dataset: a folder, a hub name or "digits".
        label_column: of the dataset, where it has several.
        save_to: a folder that is new or empty; None saves nothing.
        running: whether the model gets running statistics.

    Raises:
        ConfigError: the federation shares no body, the data cannot be used, or the folder is taken.
    """
    body = select(federated.shared, ["body"])
    if not body:
        raise ConfigError("checkpoint", federated.config.algorithm, "shares no body that others could make their own")
    config = dataclasses.replace(  # one client that has it all
        federated.config,
        dataset=dataset,
        label_column=label_column,
        natural_id_column="",
        normalization="data",
        partitioner="iid",
        num_clients=1,
        min_client_images=1,
    )
    source = sources.source_of(config)
    if len(source.class_names) < 2:
        raise ConfigError("--data", dataset, f"has one class, {source.class_names[0]}; give two or more")
    preflight.check(config)
    if save_to is not None:
        runs.make_new_folder("--save", save_to)
    module = training.new_module(config, len(source.class_names), model_seed(config), len(federated.constants[0]))
    module.model.load_state_dict({**module.model.state_dict(), **body})
    data = ClientData(config, 0, config.derived_seed("finetune", 0), constants=federated.constants)
    print(
        f"{dataset}: {len(data.train_set)} training and {len(data.test_set)} test images of"
        f" {len(source.class_names)} classes, resized to {IMAGE_SIZE} x {IMAGE_SIZE}"
    )
    (outcome,) = training.personalize([module], [data])
    row = {"client": 0, **outcome.as_row()}
    for epoch, evaluation in enumerate(outcome.curve):
        name = "initial" if epoch == 0 else "personalized" if epoch == len(outcome.curve) - 1 else ""
        told = f"accuracy {100 * evaluation.accuracy:6.2f} %  loss {evaluation.loss:.4f}"
        print(f"epoch {epoch}  {told}  {name}".rstrip())
    if running:
        module = training.with_running_statistics(module, data)
        row["running_statistics_accuracy"] = training.evaluate([module], [data])[0].accuracy
        print(f"with running statistics  accuracy {100 * row['running_statistics_accuracy']:6.2f} %")
    if save_to is not None:
        mean, std = federated.constants
        facts = update.about(config, round=federated.server_round, data=dataset, running_statistics=running)
        module.about = {**facts, "mean": mean, "std": std}
        _save(module, federated, row, save_to)


def _save(module: LitFedBABU, federated: Federated, row: dict, folder: Path) -> None:
    config, about = federated.config, module.about
    training.save_checkpoint(module, folder / CHECKPOINT)
    runs.write_config(folder, config, {"data": about["data"]})
    outcome = runs.results(config.algorithm, federated.rounds, [row])
    runs.write_json(folder / runs.RESULTS, outcome)
    told = {
        name.replace("_", " "): f"{100 * value:.2f} %"
        for name, value in outcome["clients"][0].items()
        if name.endswith("_accuracy") and value is not None
    }
    card.write(
        folder,
        f"A personal model for {Path(about['data']).name}",
        {**about, "config": config.experiment()},
        told,
        CHECKPOINT,
    )
    print(f"saved {folder / CHECKPOINT}, with {card.NAME}, {runs.CONFIG} and {runs.RESULTS}")
