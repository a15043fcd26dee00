"""The README.md beside a saved model, in the form that model hubs show: what it is, whence, and how to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.files import write_whole
from lit_fedbabu.learning.parts import parts_of
from lit_fedbabu.records.run_folder import CONFIG, RESULTS

NAME = "README.md"
SETTINGS = (
    "num-clients", "partitioner", "num-server-rounds", "num-local-epochs", "fraction-train", "batch-size",
    "learning-rate", "momentum", "weight-decay", "augmentation", "normalization", "image-size", "norm",
    "finetune-part", "num-finetune-epochs", "finetune-learning-rate", "seed",
)  # fmt: skip

OF_IMAGES = (
    "partitioner", "batch-size", "momentum", "weight-decay", "augmentation", "normalization", "image-size", "norm",
)  # fmt: skip
"""Of them those that a task has no use for."""


def write(folder: Path, title: str, provenance: Mapping[str, Any], results: Mapping[str, str], checkpoint: str) -> None:
    """Write the card.

    Args:
        folder: where the model is.
        title: what it is, in a few words.
        provenance: of its checkpoint, see ``Experiment.provenance``.
        results: names of measures and their values, as people read them.
        checkpoint: the checkpoint's place in the folder, as it is written in the example.
    """
    config = provenance["config"]
    dataset = config["dataset"]
    method = ALGORITHMS[config["algorithm"]].title
    head = {
        "library_name": "lit_fedbabu",
        **({} if config.get("task") else {"pipeline_tag": "image-classification"}),
        "tags": ["federated-learning", "personalized-federated-learning", config["algorithm"], "pytorch-lightning"],
        "metrics": [provenance["score"]["name"] if config.get("task") else "accuracy"],
        **({"datasets": [dataset.partition(":")[0]]} if not config.get("task") and _is_hub_name(dataset) else {}),
    }
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    what, use = _of_task(config, checkpoint) if config.get("task") else _of_images(config, provenance, checkpoint)
    write_whole(
        folder / NAME,
        f"""---
{front}---

# {title}

{what.format(method=method)}

## Training

Federated on `{config.get("task") or dataset}` for {provenance["round"]} rounds.{_finetuned(provenance)}

| option | value |
|---|---|
{"".join(f"| `{key}` | {config[key]} |{chr(10)}" for key in SETTINGS if not (config.get("task") and key in OF_IMAGES))}
All options, versions and hardware are in `{CONFIG}`.

## Results

| measure | value |
|---|---|
{"".join(f"| {name} | {value} |{chr(10)}" for name, value in results.items())}
*Initial* is the model as received, *personalized* after fine-tuning on a client's own data. More is in
`{RESULTS}`.

## Use

{use}
""",
    )


def _of_images(config: Mapping[str, Any], provenance: Mapping[str, Any], checkpoint: str) -> tuple[str, str]:
    """What a classifier of images is, and how it is used."""
    classes = list(provenance["class_names"])
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    what = f"A {config['model-name']} of a body and a head, by {{method}}, for images of {len(classes)} classes: "
    return (
        what + shown.replace("{", "{{").replace("}", "}}") + ".",
        f"""```python
import lit_fedbabu

model = lit_fedbabu.load_model("{checkpoint}")
model.predict(["image.png"])  # images of any size: paths, PIL images or arrays
```

The model resizes images to {" x ".join(2 * [str(config["image-size"])])},
{"grey" if len(provenance["mean"]) == 1 else "RGB"}, scales them to 0..1, and normalizes them by the mean
{_rounded(provenance["mean"])} and the deviation {_rounded(provenance["std"])}. {_on_batches(config, provenance)}""",
    )


def _of_task(config: Mapping[str, Any], checkpoint: str) -> tuple[str, str]:
    """What a module of a task is, and how it is used."""
    module = config["task"].partition(":")[0]
    return (
        "The LightningModule of a task, a body and a head, by {method}.",
        f"""```python
from {module} import task

model = type(task.module()).load_from_checkpoint("{checkpoint}", weights_only=True)
```

A federation's checkpoint has the head as it was before the first round unless the head is shared.""",
    )


def _finetuned(provenance: Mapping[str, Any]) -> str:
    if provenance["kind"] == "newcomer":
        return f" The body then got a fresh head and was fine-tuned on `{provenance['data']}`, which had no part in it."
    if provenance["kind"] == "personal":
        return " Then fine-tuned, for every client on its own images."
    if "head" not in parts_of(ALGORITHMS[provenance["config"]["algorithm"]].shared):
        return " Its head is random and untrained: fine-tune before use."
    return ""


def _on_batches(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    if config["norm"] == "batch" and not provenance.get("running_statistics"):
        return "Batch norm uses the batch: a prediction depends on the images that are predicted with it."
    return "A prediction does not depend on the images that are predicted with it."


def _is_hub_name(dataset: str) -> bool:
    return dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and not Path(dataset).exists()


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
