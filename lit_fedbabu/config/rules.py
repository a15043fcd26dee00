"""What options must fulfil together."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_fedbabu.config.options import OF_TASKS, TRAINER, is_trainable, key_of
from lit_fedbabu.ground.errors import InputError, close_to
from lit_fedbabu.ground.files import dataset_folder

RATES = ("learning_rate", "finetune_learning_rate")
"""Fields of learning rates, which a task's module has its own of."""

TUNED = ("head", "body", "full", "knn")
"""What fine-tuning trains of models of images."""
LEAST_NOISE = 0.01
"""The smallest noise multiplier whose epsilon is computed with central privacy."""
FEWEST, TAIL = 3, 8
"""Of secure aggregation: clients of a round, for of two each knows the other's update by the sum; and standard
deviations of noise that the range must have room for."""
SPEEDS = re.compile(r"lognormal:\d(\.\d+)?")
COUNTED = ("mean", "norm-bound")
"""Aggregators that work with any number of clients."""
ADDRESS = re.compile(r"[^/\s]+:\d{1,5}")
LONGEST_NAME = 200
"""Bytes of the name of a folder, which systems limit to 255, with what files beside it have in addition."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task: what it makes of options, and where its code is, which commands that only name it do not import.

    Args:
        task: the import path of its class, as of ``tasks.protocol.AnyTask``.
        saved: the folder and the module that reads its checkpoints, as of ``checkpoint.Saved``.
        model: the field that names what is trained.
        trainer: arguments of Lightning's Trainer that pass through, and their types.
        has_own_rates: whether its modules bring learning rates, which stand where the options give none.
        check: raises InputError where the options do not fit to it.
        short_name: what it learns, for the name of a run's folder.
        site: keys of the node-config of a site, and an example of each.
        unread: options of ``finetune`` that it does not read.
        by_options: whether options make its model, so that a folder of weights and options is a whole model.
    """

    task: str
    saved: str
    model: str
    trainer: Mapping[str, type]
    has_own_rates: bool
    check: Callable[[Any], None]
    short_name: Callable[[Any], str]
    site: Mapping[str, str]
    unread: tuple[str, ...]
    by_options: bool


def _check_images(config: Any) -> None:
    if config.finetune_part not in TUNED:
        remedy = f"must be one of {', '.join(TUNED)}{close_to(config.finetune_part, TUNED)}"
        raise InputError("finetune-part", config.finetune_part, remedy)
    if config.protection == "sample" and config.norm != "group":
        remedy = "mixes the images of a batch, and privacy=sample bounds what one image does; take group"
        raise InputError("norm", config.norm, remedy)
    if config.protection == "sample" and ":" in config.augmentation:
        remedy = "is given whole batches and may mix their images; with privacy=sample take crop-flip, crop or none"
        raise InputError("augmentation", config.augmentation, remedy)
    if config.on_sites and len(config.classes) < 2:
        remedy = "partitioner sites needs it, as in class-names=cat,dog: no one sees the images of all sites"
        raise InputError("class-names", config.class_names, remedy)
    if config.on_sites and config.normalization != "imagenet":
        remedy = "no one sees the images of all sites; take imagenet"
        raise InputError("normalization", config.normalization, remedy)


def _check_custom(config: Any) -> None:
    if config.validation_fraction:
        remedy = "is for images; the data of a task make a validation split of their own"
        raise InputError("validation-fraction", config.validation_fraction, remedy)
    if config.finetune_part == "knn":
        remedy = "is of features of images by their classes; the modules of a task are tuned by head, body or full"
        raise InputError("finetune-part", "knn", remedy)
    if config.cohort_size > 1:
        raise InputError("cohort-size", config.cohort_size, "modules of a task are trained one by one; take 1")


def _name_of_dataset(config: Any) -> str:
    place = dataset_folder(config.dataset)
    return place[0].resolve().name if place else Path(config.dataset).name


IMAGES = Kind(
    task="lit_fedbabu.tasks.images.task:ImageClassification",
    saved="lit_fedbabu.tasks.images:saved",
    model="model_name",
    trainer=TRAINER,
    has_own_rates=False,
    check=_check_images,
    short_name=_name_of_dataset,
    site={"client-id": "0", "data-path": '"/data/images"'},
    unread=(),
    by_options=True,
)
CUSTOM = Kind(
    task="lit_fedbabu.tasks.custom.task:CustomTask",
    saved="lit_fedbabu.tasks.custom:saved",
    model="task",
    trainer={**TRAINER, **OF_TASKS},
    has_own_rates=True,
    check=_check_custom,
    short_name=lambda config: str(config.task.replace(":", "-")),
    site={"client-id": "0"},
    unread=("augmentation", "dataset", "label_column", "running_statistics"),
    by_options=False,
)


def kind_of(task: str) -> Kind:
    """The kind of a task by its import path: one of the user's own, or if that is empty images."""
    return CUSTOM if task else IMAGES


def _check_privacy(config: Any) -> None:
    if config.noise_multiplier and not config.clipping_norm:
        raise InputError("noise-multiplier", config.noise_multiplier, "needs a clipping-norm, which is its unit")
    if config.noise_multiplier and config.protection == "none":
        raise InputError(
            "noise-multiplier", config.noise_multiplier, "privacy=none has no noise; take local, central or sample"
        )
    if config.protection != "none" and not config.noise_multiplier:
        remedy = "needs a noise-multiplier and a clipping-norm, as in noise-multiplier=1 clipping-norm=1"
        raise InputError("privacy", config.privacy, remedy)
    if config.adaptive_clipping and config.protection != "central":
        raise InputError("adaptive-clipping", True, "is of the server, with privacy=central; leave it out")
    if config.protection in ("central", "sample") and config.noise_multiplier < LEAST_NOISE:
        remedy = f"is next to none, and epsilon is in the thousands; take {LEAST_NOISE:g} or more"
        raise InputError("noise-multiplier", config.noise_multiplier, remedy)
    if config.max_epsilon and config.protection == "none":
        raise InputError("max-epsilon", config.max_epsilon, "without noise nothing is bounded; take privacy=central")
    if config.protection == "central" and config.aggregator != "mean":
        remedy = "privacy=central adds noise to a sum that no client can move far; take mean"
        raise InputError("aggregator", config.aggregator, remedy)
    if config.protection == "central" and config.cohort_size > 1:
        remedy = "with privacy=central no client's update may depend on who is trained with it; take 0"
        raise InputError("cohort-size", config.cohort_size, remedy)
    if config.protection == "sample":
        _check_sample(config)


def _check_sample(config: Any) -> None:
    if config.cohort_size > 1:
        raise InputError("cohort-size", config.cohort_size, "privacy=sample trains clients one by one; take 0")
    if config.precision == "16-mixed":
        remedy = "skips steps by gradients without noise, which privacy=sample does not count; take 32-true"
        raise InputError("precision", config.precision, remedy)
    if "accumulate_grad_batches" in config.trainer:
        remedy = "would add up batches that have noise already; with privacy=sample take a larger batch-size"
        raise InputError("trainer.accumulate_grad_batches", config.trainer["accumulate_grad_batches"], remedy)


def _check_secure(config: Any) -> None:
    key, count = "secure-aggregation", config.clients_per_round
    if config.engine == "ray":
        remedy = "is not built for engine=ray, whose machines need not share the keys of a round; take local or flower"
        raise InputError(key, True, remedy)
    if config.protection == "central":
        remedy = "privacy=central adds noise to a sum of clipped updates, which the server cannot check; take local"
        raise InputError(key, True, remedy)
    if config.over_selection > 1:
        remedy = "draws more clients than secure-threshold is counted of; with secure-aggregation take 1"
        raise InputError("over-selection", config.over_selection, remedy)
    if config.client_speeds:
        remedy = "is not built for secure-aggregation, whose steps take no simulated seconds; leave it out"
        raise InputError("client-speeds", config.client_speeds, remedy)
    if config.aggregator != "mean":
        remedy = "secure-aggregation hides single updates, of which it knows the sum alone; take mean"
        raise InputError("aggregator", config.aggregator, remedy)
    if count < FEWEST:
        remedy = (
            f"a round has {count} clients, and of fewer than {FEWEST} a sum shows updates; take a larger fraction-train"
        )
        raise InputError(key, True, remedy)
    if config.secure_threshold and not count / 2 < config.secure_threshold <= count:
        remedy = f"must be more than half of the {count} clients of a round, and no more than these; 0 takes two thirds"
        raise InputError("secure-threshold", config.secure_threshold, remedy)
    reach = config.clipping_norm * (1 + TAIL * config.noise_multiplier)
    if config.protection == "local" and reach > config.quantization_range:
        remedy = f"has no room for updates with noise, which reach {reach:.4g}; take that or more"
        raise InputError("quantization-range", config.quantization_range, remedy)


def _check_buffered(config: Any) -> None:
    """Refuse what a server that waits for no round has no use for."""
    key, sites = "server-mode", config.on_sites
    if not config.client_speeds and not sites:
        remedy = "needs to know how long clients train; give client-speeds too, as in client-speeds=lognormal:1.0"
        raise InputError(key, config.server_mode, remedy)
    if sites and config.protection != "none":
        remedy = "how often a site takes part is not known before, and so not what it spends; take rounds"
        raise InputError(key, config.server_mode, remedy)
    if config.buffer_size > config.num_federated:
        remedy = f"a client is in a step once, and there are {config.num_federated}; take fewer"
        raise InputError("buffer-size", config.buffer_size, remedy)
    of_rounds = {
        "min-clients-per-round": config.min_clients_per_round,
        "round-deadline-s": config.round_deadline_s,
        "over-selection": config.over_selection if config.over_selection > 1 else 0,
    }
    for given, value in of_rounds.items():
        if value:
            remedy = "is of rounds, and with server-mode=buffered a step waits for buffer-size updates; leave it out"
            raise InputError(given, value, remedy)
    if config.protection == "central":
        remedy = "with privacy=central nothing but chance decides who is in the sum; take rounds"
        raise InputError(key, config.server_mode, remedy)
    if config.secure_aggregation:
        remedy = "secure-aggregation masks the updates of a round against each other; take rounds"
        raise InputError(key, config.server_mode, remedy)
    if config.max_epsilon:
        remedy = "server-mode=buffered knows who will train only if no client fails; leave it out, or take rounds"
        raise InputError("max-epsilon", config.max_epsilon, remedy)


def _check_pace(config: Any) -> None:
    if config.client_speeds and not SPEEDS.fullmatch(config.client_speeds):
        raise InputError("client-speeds", config.client_speeds, "must be lognormal:S, as in lognormal:1.0, or empty")
    if config.client_speeds and config.on_sites:
        raise InputError("client-speeds", config.client_speeds, "is for simulated clients; sites have their own speed")
    timed = config.on_sites or config.client_speeds
    if config.round_deadline_s and not timed:
        remedy = "is for sites; for simulated clients give client-speeds too, as in client-speeds=lognormal:1.0"
        raise InputError("round-deadline-s", config.round_deadline_s, remedy)
    if config.round_deadline_s and config.aggregator not in COUNTED and not config.min_clients_per_round:
        remedy = f"{config.aggregator} needs a number of clients, and others may be late; give min-clients-per-round"
        raise InputError("round-deadline-s", config.round_deadline_s, remedy)
    if config.over_selection == 1:
        return
    if not timed:
        remedy = "who answers first is known of sites; for simulated clients give client-speeds too"
        raise InputError("over-selection", config.over_selection, remedy)
    if config.protection == "central":
        remedy = "with privacy=central nothing but chance decides who is in the sum; take 1"
        raise InputError("over-selection", config.over_selection, remedy)
    if config.clients_asked == config.clients_per_round:
        remedy = f"a round needs all {config.clients_per_round} clients; take a smaller fraction-train"
        raise InputError("over-selection", config.over_selection, remedy)


def _check_devices(config: Any, counts: bool) -> None:
    """Refuse several devices for a client where they would be left out, or would make something else."""
    key, count = "trainer.devices", config.devices
    if count == 1:
        return
    if count < 1:
        raise InputError(key, count, "must be at least 1")
    refused = {
        "a site trains on one device": config.on_sites,
        f"engine={config.engine} starts no process for each device; take local": config.engine != "local",
        "secure-aggregation keeps secrets in one process": config.secure_aggregation,
        "privacy=sample draws batches of its own, in one process": config.protection == "sample",
        "num-local-steps and fractions of epochs count the batches of one device; take whole epochs": counts,
    }
    if why := [remedy for remedy, given in refused.items() if given]:
        raise InputError(key, count, why[0] if ";" in why[0] else f"{why[0]}; leave it out")


def check_together(config: Any) -> None:  # noqa: C901, PLR0912 - one rule after another
    """Raise InputError where an option of a ``Config`` does not fit to the others."""
    if "/" in config.run_name or config.run_name.startswith("."):
        raise InputError("run-name", config.run_name, "must be a plain folder name; the place is output-dir")
    if not config.run_name.isprintable():
        raise InputError("run-name", config.run_name, "has characters that cannot be printed; take others")
    if (length := len(config.run_name.encode(errors="surrogateescape"))) > LONGEST_NAME:
        remedy = f"has {length} bytes, and a folder's name may have {LONGEST_NAME}; shorten it"
        raise InputError("run-name", f"{config.run_name[:60]}...", remedy)
    if config.ray_address not in ("", "auto") and not ADDRESS.fullmatch(config.ray_address):
        raise InputError("ray-address", config.ray_address, "must be host:port, as in 10.0.0.1:6379, auto, or empty")
    if config.class_names.startswith("["):
        raise InputError("class-names", config.class_names, 'must be names, as in cat,dog or ["cat","dog"]')
    for key, place in (
        ("output-dir", config.output_dir),
        ("resume", config.resume),
        ("dataset", config.dataset),
        ("initial-weights", config.initial_weights),
    ):
        if "\0" in place:
            raise InputError(key, place, "has a NUL in it, which no path has")
    for field in (each for each in dataclasses.fields(config) if each.name in RATES):
        rate = getattr(config, field.name)
        if rate < 0 or not (rate or config.kind.has_own_rates):
            raise InputError(key_of(field), rate, f"must be greater than 0, as in {key_of(field)}={field.default}")
    if not is_trainable(config.trainable):
        raise InputError("trainable", config.trainable, "must be all, norm, last:N or lora:R, as in last:2 or lora:8")
    if config.pretrained and not config.model_name.startswith("timm:"):
        remedy = "is for networks of timm, as model-name=timm:resnet18; others start from a file, initial-weights=PATH"
        raise InputError("pretrained", True, remedy)
    if config.pretrained and config.initial_weights and not config.initial_weights_digest:
        raise InputError("initial-weights", config.initial_weights, "is in place of pretrained=true; leave one out")
    if config.initial_weights_digest and not config.initial_weights:
        raise InputError(
            "initial-weights-digest", config.initial_weights_digest, "is of initial-weights; give that too"
        )
    if config.num_new_clients >= config.num_clients:
        remedy = f"must be less than num-clients, which is {config.num_clients}"
        raise InputError("num-new-clients", config.num_new_clients, remedy)
    if config.num_new_clients and config.on_sites:
        raise InputError("num-new-clients", config.num_new_clients, "is for simulated clients; a new site has --data")
    if config.evaluate_clients > config.num_federated:
        remedy = f"must be at most the {config.num_federated} clients of the federation; take 0 for all of them"
        raise InputError("evaluate-clients", config.evaluate_clients, remedy)
    if config.evaluate_clients and config.on_sites:
        remedy = "is for simulated clients: every site gets the model and evaluates it; take 0"
        raise InputError("evaluate-clients", config.evaluate_clients, remedy)
    if config.validation_fraction >= 1:
        raise InputError("validation-fraction", config.validation_fraction, "must be less than 1, as in 0.2")
    if -1 < config.knn_weight < 0:
        raise InputError("knn-weight", config.knn_weight, "must be from 0 to 1, or -1, which chooses it")
    config.kind.check(config)
    if config.trainer and config.cohort_size > 1:
        remedy = "is for clients one by one, whose gradients are one client's; take cohort-size=1"
        raise InputError("trainer-options", config.trainer_options, remedy)
    partial = config.num_local_steps or config.num_local_epochs % 1 or config.num_head_epochs % 1
    if partial and (counting := sorted({"accumulate_grad_batches", "limit_train_batches"} & set(config.trainer))):
        remedy = "counts batches as num-local-steps and fractions of epochs do; leave one of them out"
        raise InputError(f"trainer.{counting[0]}", config.trainer[counting[0]], remedy)
    _check_devices(config, bool(partial))
    _check_privacy(config)
    if config.secure_aggregation:
        _check_secure(config)
    if config.is_buffered:
        _check_buffered(config)
    _check_pace(config)
    if len(set(config.classes)) < len(config.classes) or not all(config.classes):
        raise InputError("class-names", config.class_names, "must be different names with commas between them")
    if config.clipping_norm and config.norm == "batch-running":
        raise InputError("clipping-norm", config.clipping_norm, 'would spoil running statistics; take norm="batch"')
