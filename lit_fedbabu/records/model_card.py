"""The README.md beside a saved model, in the form of model hubs: what it is, whence, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.algorithms.table import shared_of, title_of
from lit_fedbabu.config.derived import protection_of
from lit_fedbabu.config.rules import Kind, kind_of
from lit_fedbabu.ground.files import dataset_folder, write_whole
from lit_fedbabu.ground.printing import in_code, in_markdown
from lit_fedbabu.learning.evaluation import STAGES
from lit_fedbabu.learning.parts import PRIVATE, parts_of
from lit_fedbabu.learning.state import BASE
from lit_fedbabu.records.results import measures, score_of
from lit_fedbabu.training.privacy import OF_SUMS, TRUST

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

NAME = "README.md"
LICENSE = "apache-2.0"
SETTINGS = (
    "num-clients", "partitioner", "num-server-rounds", "num-local-epochs", "fraction-train", "batch-size",
    "learning-rate", "momentum", "weight-decay", "augmentation", "normalization", "image-size", "norm",
    "trainable", "finetune-part", "num-finetune-epochs", "finetune-learning-rate", "knn-neighbors", "knn-weight",
    "seed",
)  # fmt: skip
OF_IMAGES = (
    "partitioner", "batch-size", "momentum", "weight-decay", "augmentation", "normalization", "image-size", "norm",
)  # fmt: skip
"""Of them those that a task has no use for."""
OF_ROUNDS = (
    "num-clients", "partitioner", "num-server-rounds", "num-local-epochs", "fraction-train", "learning-rate",
    "normalization",
)  # fmt: skip
"""Of them those that a model without a federation has no use for."""
TUNED_BY = (("num-finetune-epochs", "finetune-learning-rate"), ("knn-neighbors", "knn-weight"))
"""Of them those that say how a part trains, and those of kNN-Per."""
FEDERATED = ("federated-learning", "personalized-federated-learning")
CLASSES_SHOWN = 20

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ what }}

## Training

{{ federated }}.{{ began }}{{ finetuned }}

{{ protected }}

| option | value |
|---|---|
{% for key, value in settings.items() %}| `{{ key }}` | {{ value }} |
{% endfor %}
{% if results %}## Results

| measure | value |
|---|---|
{% for name, value in results.items() %}| {{ name }} | {{ value }} |
{% endfor %}
*Initial* is the model as received, *personalized* after fine-tuning on a client's own data. Accuracies in the head of
this file are between 0 and 1. More is in `results.json`, where it is beside this file.

{% endif %}## Use

{{ use }}

## Licence

{{ license }} is the licence of lit_fedbabu. Whoever publishes this model changes it where its training data ask for
another.
"""


def card(title: str, provenance: Mapping[str, Any], outcome: Mapping[str, Any] | None, path: str) -> ModelCard:
    """The card of a model.

    Args:
        title: what it is, in a few words.
        provenance: of its checkpoint, see ``Experiment.provenance``.
        outcome: the content of its results.json; None: it has none.
        path: the model's place beside the card, as it is written in the example.
    """
    from huggingface_hub import ModelCard

    config = provenance["config"]
    method = in_markdown(title_of(config["algorithm"]))
    of = _kind(provenance)
    what, use = _of_images(config, provenance, path) if of.by_options else _of_task(config, path)
    unread: tuple[str, ...] = TUNED_BY[config.get("finetune-part") != "knn"]
    unread += () if of.by_options else OF_IMAGES
    unread += () if provenance["round"] else OF_ROUNDS
    made: ModelCard = ModelCard.from_template(
        _metadata(title, provenance, outcome),
        template_str=TEMPLATE,
        title=title,
        what=", by ".join([what[0], *([method] if provenance["round"] else [])]) + what[1],
        use=use,
        federated=_federated(provenance),
        settings={key: in_markdown(str(config[key])) for key in SETTINGS if key in config and key not in unread},
        began=_began(config) + _based(provenance),
        finetuned=_finetuned(provenance),
        protected=_protected(provenance),
        results=_results(provenance, outcome) if outcome else {},
        license=LICENSE,
    )
    return made


def write(
    folder: Path, title: str, provenance: Mapping[str, Any], outcome: Mapping[str, Any] | None, path: str
) -> None:
    """Write the card into a folder; arguments as of ``card``."""
    write_whole(folder / NAME, str(card(title, provenance, outcome, path)))


def _metadata(title: str, provenance: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> ModelCardData:
    """What hubs read: licence, tags, and the scores."""
    from huggingface_hub import ModelCardData

    config = provenance["config"]
    classifies, data = _kind(provenance).by_options, _data(provenance)
    found = _scores(provenance, outcome) if outcome else []
    return ModelCardData(
        license=LICENSE,
        library_name="lit_fedbabu",
        tags=[*(FEDERATED if provenance["round"] else ()), config["algorithm"], "pytorch-lightning"],
        metrics=["accuracy" if classifies else provenance["score"]["name"]],
        model_name=title,
        ignore_metadata_errors=False,
        pipeline_tag="image-classification" if classifies else None,
        datasets=[data.partition(":")[0]] if classifies and _is_hub_name(data) else None,
        eval_results=found or None,
    )


def _scores(provenance: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[EvalResult]:
    """Mean scores over clients, before and after fine-tuning."""
    from huggingface_hub import EvalResult

    score, clients, data = score_of(outcome), len(outcome["clients"]), _data(provenance)
    over = f", mean over {clients} clients" if clients > 1 else ""
    place = dataset_folder(data)
    return [
        EvalResult(
            task_type="image-classification" if _kind(provenance).by_options else "other",
            dataset_type=data if _is_hub_name(data) else "own",
            dataset_name=place[0].name if place else data,
            metric_type=score.name,
            metric_name=f"{stage} {score.name}{over}",
            metric_value=round(outcome["summary"][f"{stage}_{score.name}"]["mean"], 6),
        )
        for stage in STAGES
    ]


def _results(provenance: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, str]:
    if provenance["kind"] != "newcomer" or not _kind(provenance).by_options:
        return measures(outcome)
    return {
        name.replace("_", " "): f"{100 * value:.2f} %"
        for name, value in outcome["clients"][0].items()
        if name.endswith("_accuracy") and value is not None
    }


def _data(provenance: Mapping[str, Any]) -> str:
    """What the results are measured on: a newcomer's data, or the federation's."""
    config = provenance["config"]
    return str(provenance.get("data") or _learned(config))


def _of_images(config: Mapping[str, Any], provenance: Mapping[str, Any], path: str) -> tuple[tuple[str, str], str]:
    """What a classifier of images is, around its method, and how it is used."""
    classes = list(provenance["class_names"])
    more = len(classes) - CLASSES_SHOWN
    shown = ", ".join(map(in_markdown, classes[:CLASSES_SHOWN])) + (f" and {more} more" if more > 0 else "")
    what = (
        f"A {in_markdown(config['model-name'])} of a body and a head",
        f", for images of {len(classes)} classes: {shown}.",
    )
    return (
        what,
        f"""```python
import lit_fedbabu

{_first(provenance, path)}
model.predict(["image.png"])  # images of any size: paths, PIL images or arrays
```
{_from_hub(provenance)}
The model resizes images to {" x ".join(2 * [str(config.get("image-size", 32))])},
{"grey" if len(provenance["mean"]) == 1 else "RGB"}, scales them to 0..1, and normalizes them by the mean
{_rounded(provenance["mean"])} and the deviation {_rounded(provenance["std"])}. {_on_batches(config, provenance)}""",
    )


def _first(provenance: Mapping[str, Any], path: str) -> str:
    """How the model in the example is made: it is loaded, or it is a body that is fine-tuned first."""
    shared = parts_of(shared_of(provenance))
    if provenance["kind"] != "federation" or "head" in shared or path.endswith(".ckpt"):
        return f'model = lit_fedbabu.load_model("{path}")'
    tuned = f'lit_fedbabu.finetune("{path}", data="my_photos", save_to="me")  # a folder with a folder for each class'
    return f'{tuned}\nmodel = lit_fedbabu.load_model("me")'


def _from_hub(provenance: Mapping[str, Any]) -> str:
    """How it is loaded where it was published, if it is a whole folder."""
    if provenance["kind"] != "newcomer":
        return ""
    return '\nFrom a hub: `lit_fedbabu.Classifier.from_pretrained("owner/name")`.\n'


def _of_task(config: Mapping[str, Any], path: str) -> tuple[tuple[str, str], str]:
    """What a module of a task is, around its method, and how it is used."""
    return (
        ("The LightningModule of a task, a body and a head", "."),
        f"""```python
import lit_fedbabu

model = lit_fedbabu.load_module("{path}", "{config["task"]}")  # which imports the task
```

A federation's checkpoint has the head as it was before the first round unless the head is shared.""",
    )


def _kind(provenance: Mapping[str, Any]) -> Kind:
    return kind_of(provenance["config"].get("task", ""))


def _learned(config: Mapping[str, Any]) -> str:
    """What names the data: a task or a dataset."""
    return str(config.get("task") or config["dataset"])


def _federated(provenance: Mapping[str, Any]) -> str:
    """On what, for how long, and on which machine."""
    if not provenance["round"]:
        return "No federation trained it"
    where = f", on {provenance['trains_on']}" if provenance.get("trains_on") else ""
    return f"Federated on {in_code(_learned(provenance['config']))} for {provenance['round']} rounds{where}"


def _began(config: Mapping[str, Any]) -> str:
    if not config.get("initial-weights"):
        return ""
    file, digest = Path(config["initial-weights"]).name, config["initial-weights-digest"]
    return f" It began with what fits of the weights in {in_code(file)} (SHA-256 {digest})."


def _based(provenance: Mapping[str, Any]) -> str:
    """What of the model its maker froze, which is not in the file."""
    base = provenance.get(BASE)
    if not base:
        return ""
    size = f"{base['weights']:,} weights ({base['bytes'] / 1e6:.1f} MB)"
    trained = f"; {base['trained']:,} of the body train" if "trained" in base else ""
    return f" {size} are frozen and not in this file, but made again from {in_code(base['from'])}{trained}."


def _finetuned(provenance: Mapping[str, Any]) -> str:
    if earlier := provenance.get("earlier"):
        return f" It was then fine-tuned on {', '.join(map(in_code, (*earlier, provenance['data'])))}."
    if provenance["kind"] != "federation" and provenance["config"].get("finetune-part") == "knn":
        whose = in_code(provenance["data"]) if provenance["kind"] == "newcomer" else "a client's training images"
        return f" Then the nearest of {whose} vote beside it: the model holds features and labels of them (kNN-Per)."
    if provenance["kind"] == "newcomer":
        apart = ", which had no part in it" if provenance["round"] else ""
        return f" The body then got a fresh head and was fine-tuned on {in_code(provenance['data'])}{apart}."
    if provenance["kind"] == "personal":
        return " Then fine-tuned, for every client on its own images."
    if "head" not in parts_of(shared_of(provenance)):
        what = "as it began" if provenance["config"].get("initial-weights") else "random"
        return f" Its head is {what} and untrained: fine-tune before use."
    if provenance.get(PRIVATE):
        return " Its normalization layers are as they began, for each client keeps its own: fine-tune before use."
    return ""


def _protected(provenance: Mapping[str, Any]) -> str:
    """Who is protected from whom, and what was spent by the round that the model is of."""
    config = provenance["config"]
    kind = protection_of(config.get("privacy", "auto"), config.get("noise-multiplier", 0.0))
    words = [f"Privacy {TRUST[kind]}."] if provenance["round"] else []
    if config.get("secure-aggregation"):
        words.append(f"{OF_SUMS.capitalize()}.")
    if spent := (provenance.get("rounds") or [{}])[-1].get("epsilon"):
        words.append(f"Epsilon is {spent:.4g} for delta {config['delta']:g}.")
    if (kind != "none" or not provenance["round"]) and provenance["kind"] != "federation":
        words.append(
            "Fine-tuning has no noise: from this model one may learn about the data that it was fine-tuned on."
        )
    return " ".join(words)


def _on_batches(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    if config["norm"] == "batch" and not provenance.get("running_statistics"):
        return "Batch norm uses the batch: a prediction depends on the images that are predicted with it."
    return "A prediction does not depend on the images that are predicted with it."


def _is_hub_name(dataset: str) -> bool:
    return dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and not Path(dataset).exists()


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
