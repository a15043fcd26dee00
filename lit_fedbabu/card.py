"""The README.md beside a saved model, in the form that model hubs show: what it is, whence, and how to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fedbabu import runs
from lit_fedbabu.algorithms import ALGORITHMS
from lit_fedbabu.models import parts_of

NAME = "README.md"
SETTINGS = (
    "num-clients", "partitioner", "num-server-rounds", "num-local-epochs", "fraction-train", "batch-size",
    "learning-rate", "momentum", "weight-decay", "augmentation", "normalization", "norm", "finetune-part",
    "num-finetune-epochs", "finetune-learning-rate", "seed",
)  # fmt: skip


def write(folder: Path, title: str, about: Mapping[str, Any], results: Mapping[str, str], checkpoint: str) -> None:
    """Write the card.

    Args:
        folder: where the model is.
        title: what it is, in a few words.
        about: of its checkpoint, see ``update.about``.
        results: names of measures and their values, as people read them.
        checkpoint: the checkpoint's place in the folder, as it is written in the example.
    """
    config = about["config"]
    dataset = config["dataset"]
    method = ALGORITHMS[config["algorithm"]].title
    head = {
        "library_name": "lit_fedbabu",
        "pipeline_tag": "image-classification",
        "tags": ["federated-learning", "personalized-federated-learning", config["algorithm"], "pytorch-lightning"],
        "metrics": ["accuracy"],
        **({"datasets": [dataset.partition(":")[0]]} if _is_hub_name(dataset) else {}),
    }
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    classes = list(about["class_names"])
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    runs.write_whole(
        folder / NAME,
        f"""---
{front}---

# {title}

A {config["model-name"]} of a body and a head, by {method}, for images of {len(classes)} classes: {shown}.

## Training

Federated on `{dataset}` for {about["round"]} rounds.{_finetuned(about)}

| option | value |
|---|---|
{"".join(f"| `{key}` | {config[key]} |{chr(10)}" for key in SETTINGS)}
All options, versions and hardware are in `{runs.CONFIG}`.

## Results

| measure | value |
|---|---|
{"".join(f"| {name} | {value} |{chr(10)}" for name, value in results.items())}
*Initial* is the model as received, *personalized* after fine-tuning on a client's own images. More is in
`{runs.RESULTS}`.

## Use

```python
from lit_fedbabu.module import LitFedBABU

module = LitFedBABU.load_from_checkpoint("{checkpoint}").eval()
module.about["class_names"]  # outputs of the head
```

Images are 32 x 32, {"grey" if len(about["mean"]) == 1 else "RGB"}, scaled to 0..1 and normalized by the mean
{_rounded(about["mean"])} and the deviation {_rounded(about["std"])}. {_on_batches(config, about)}
""",
    )


def _finetuned(about: Mapping[str, Any]) -> str:
    if "data" in about:
        return f" The body then got a fresh head and was fine-tuned on `{about['data']}`, which had no part in it."
    if "rounds" not in about:
        return " Then fine-tuned, for every client on its own images."
    if "head" not in parts_of(ALGORITHMS[about["config"]["algorithm"]].shared):
        return " Its head is as it was born: fine-tune before use."
    return ""


def _on_batches(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    if config["norm"] == "batch" and not about.get("running_statistics"):
        return "Batch norm uses the batch: a prediction depends on the images that are predicted with it."
    return "A prediction does not depend on the images that are predicted with it."


def _is_hub_name(dataset: str) -> bool:
    return dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and not Path(dataset).exists()


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
