"""Where images come from: a hub dataset, a local folder or the embedded digits, decoded once per machine."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_fedbabu.config import ConfigError
from lit_fedbabu.models import IMAGE_SIZE

HUB_TIMEOUT_S = 5
_FORMAT = "v1"


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (N, 32, 32, 3) of uint8, mapped from disk, and their labels (N,) of int64."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset with its two splits and the names of its classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


@lru_cache(maxsize=4)
def load(dataset: str) -> Source:
    """The dataset as arrays that all processes of a machine map from one copy; decoded when first seen.

    Args:
        dataset: "digits", a folder, or a hub name "owner/name".

    Raises:
        ConfigError: the dataset is not there, cannot be reached, or has not one image and one label column.
    """
    folder = _cache_root() / _cache_key(dataset)
    if not folder.exists():
        _decode(dataset, folder)
    names = tuple(json.loads((folder / "classes.json").read_text()))
    splits = [
        Split(*(np.load(folder / f"{split}_{what}.npy", mmap_mode="r") for what in ("images", "labels")))
        for split in ("train", "test")
    ]
    return Source(*splits, class_names=names)


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lit_fedbabu"


def _cache_key(dataset: str) -> str:
    if dataset == "digits":
        return f"digits-{_FORMAT}"
    path = Path(dataset).expanduser()
    if path.is_dir():
        digest = hashlib.sha256(str(path.resolve()).encode())
        for file in sorted(path.rglob("*")):
            if file.is_file():
                stat = file.stat()
                digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return f"folder-{path.resolve().name}-{digest.hexdigest()[:16]}-{_FORMAT}"
    owner, slash, name = dataset.partition("/")
    if not (owner and slash and name) or "/" in name or owner in (".", "..", "~"):
        raise ConfigError("dataset", dataset, 'is no folder here; give a folder, a hub name "owner/name" or "digits"')
    return f"hub-{owner}--{name}-{_FORMAT}"


def _decode(dataset: str, folder: Path) -> None:
    splits, class_names = _digits() if dataset == "digits" else _hugging_face(dataset)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".decoding-"))
    try:
        for name, split in splits.items():
            np.save(scratch / f"{name}_images.npy", split.images)
            np.save(scratch / f"{name}_labels.npy", split.labels)
        (scratch / "classes.json").write_text(json.dumps(class_names))
        scratch.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process has decoded the same dataset meanwhile
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _to_array(image: Image.Image) -> np.ndarray:
    image = image.convert("RGB")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _digits() -> tuple[dict[str, Split], list[str]]:
    """scikit-learn's 1,797 handwritten digits; every fifth image of a class is a test image."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.stack([_to_array(Image.fromarray((image * 255 / 16).astype(np.uint8))) for image in raw.images])
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[::5]] = True
    splits = {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}
    return splits, [str(name) for name in raw.target_names]


def _hugging_face(dataset: str) -> tuple[dict[str, Split], list[str]]:
    is_folder = Path(dataset).expanduser().is_dir()
    reachable = is_folder or _hub_answers()
    if not reachable or is_folder:
        _go_offline()
    from datasets import disable_progress_bars
    from flwr_datasets import FederatedDataset

    disable_progress_bars()
    place = str(Path(dataset).expanduser().resolve()) if is_folder else dataset
    federated = FederatedDataset(dataset=place, partitioners={"train": 1}, shuffle=False)
    splits: dict[str, Split] = {}
    class_names: list[str] = []
    for name in ("train", "test"):
        try:
            rows = federated.load_split(name)
        except Exception as error:  # datasets raises many kinds, from its own and its dependencies' modules
            if not reachable:
                raise ConfigError(
                    "dataset",
                    dataset,
                    "the hub cannot be reached and nothing is cached; three ways out: a network,"
                    ' dataset="<local folder>", or dataset="digits"',
                ) from None
            reason = " ".join(str(error).split())[:200]
            raise ConfigError("dataset", dataset, f"its split {name!r} cannot be loaded: {reason}") from None
        image_column, label_column = _columns(dataset, rows.features)
        class_names = list(rows.features[label_column].names)
        images = np.empty((len(rows), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        try:
            for i, image in enumerate(rows[image_column]):
                images[i] = _to_array(image)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are no images
            raise ConfigError("dataset", dataset, f"an image of its split {name!r} cannot be read: {error}") from None
        splits[name] = Split(images, np.asarray(rows[label_column], dtype=np.int64))
    return splits, class_names


def _columns(dataset: str, features: dict[str, Any]) -> tuple[str, str]:
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise ConfigError("dataset", dataset, f"needs one Image and one ClassLabel column; it has {found}")
    return images[0], labels[0]


def _hub_answers() -> bool:
    """Whether the hub answers at all, known after HUB_TIMEOUT_S seconds even where packets are dropped."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answered = threading.Event()
    asked = time.monotonic()

    def ask() -> None:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    import flwr_datasets  # noqa: F401 - takes seconds, in which the hub may answer

    thread.join(max(0.0, asked + HUB_TIMEOUT_S - time.monotonic()))
    return answered.is_set()


def _go_offline() -> None:
    """Tell the Hugging Face libraries, loaded or not, to use their caches alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True
