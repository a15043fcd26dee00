"""What options must fulfil together."""

import dataclasses
from typing import Any

from lit_fedbabu.errors import InputError
from lit_fedbabu.options import key_of

RATES = ("learning_rate", "finetune_learning_rate")
"""Fields of learning rates, which a task's module has its own of."""

LONGEST_NAME = 200
"""Bytes of the name of a folder, which systems limit to 255, with what files beside it have in addition."""


def check_together(config: Any) -> None:  # noqa: C901, PLR0912 - one rule after another
    """Raise InputError where an option of a ``Config`` does not fit to the others."""
    if "/" in config.run_name or config.run_name.startswith("."):
        raise InputError("run-name", config.run_name, "must be a plain folder name; the place is output-dir")
    if not config.run_name.isprintable():
        raise InputError("run-name", config.run_name, "has characters that cannot be printed; take others")
    if (length := len(config.run_name.encode(errors="surrogateescape"))) > LONGEST_NAME:
        remedy = f"has {length} bytes, and a folder's name may have {LONGEST_NAME}; shorten it"
        raise InputError("run-name", f"{config.run_name[:60]}...", remedy)
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
        if rate < 0 or not (rate or config.task):
            raise InputError(key_of(field), rate, f"must be greater than 0, as in {key_of(field)}={field.default}")
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
    if config.validation_fraction >= 1:
        raise InputError("validation-fraction", config.validation_fraction, "must be less than 1, as in 0.2")
    if config.validation_fraction and config.task:
        remedy = "is for images; the data of a task make a validation split of their own"
        raise InputError("validation-fraction", config.validation_fraction, remedy)
    if config.trainer and config.cohort_size > 1:
        remedy = "is for clients one by one, whose gradients are one client's; take cohort-size=1"
        raise InputError("trainer-options", config.trainer_options, remedy)
    partial = config.num_local_steps or config.num_local_epochs % 1 or config.num_head_epochs % 1
    if partial and (counting := sorted({"accumulate_grad_batches", "limit_train_batches"} & set(config.trainer))):
        remedy = "counts batches as num-local-steps and fractions of epochs do; leave one of them out"
        raise InputError(f"trainer.{counting[0]}", config.trainer[counting[0]], remedy)
    if config.algorithm == "pfedme" and "accumulate_grad_batches" in config.trainer:
        count = config.trainer["accumulate_grad_batches"]
        raise InputError("trainer.accumulate_grad_batches", count, "pfedme takes a step for each batch; leave it out")
    if config.server_optimizer != "none" and config.algorithm == "local":
        raise InputError("server-optimizer", config.server_optimizer, "local shares nothing with a server; take none")
    if config.task and config.cohort_size > 1:
        raise InputError("cohort-size", config.cohort_size, "modules of a task are trained one by one; take 1")
    if config.noise_multiplier and not config.clipping_norm:
        raise InputError("noise-multiplier", config.noise_multiplier, "needs a clipping-norm, which is its unit")
    if config.on_sites and not config.task and len(config.classes) < 2:
        remedy = "partitioner sites needs it, as in class-names=cat,dog: no one sees the images of all sites"
        raise InputError("class-names", config.class_names, remedy)
    if len(set(config.classes)) < len(config.classes) or not all(config.classes):
        raise InputError("class-names", config.class_names, "must be different names with commas between them")
    if config.on_sites and not config.task and config.normalization == "data":
        remedy = "no one sees the images of all sites; take imagenet"
        raise InputError("normalization", config.normalization, remedy)
    if config.clipping_norm and config.norm == "batch-running":
        raise InputError("clipping-norm", config.clipping_norm, 'would spoil running statistics; take norm="batch"')
