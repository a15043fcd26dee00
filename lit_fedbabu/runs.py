"""A run's folder: the effective configuration, checkpoints, results and failures."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from lit_fedbabu.config import Config, ConfigError, read_toml

PACKAGES = ("lit-fedbabu", "torch", "torchvision", "lightning", "torchmetrics", "flwr", "flwr-datasets", "numpy")
MARK = "[lit_fedbabu]"
"""Starts every line of ours in Flower's log; ``lit_fedbabu.run`` shows just these."""
MALLOC = "glibc.malloc.mmap_threshold=16777216:glibc.malloc.trim_threshold=4294967296"
"""GLIBC_TUNABLES of workers (Linux): the buffers of a step are kept and not faulted in again and again, and those above
16 MB, of predicting a client's training images at once, are given back, for kept they would lie scattered."""
BEST_CHECKPOINT = Path("checkpoints") / "best.ckpt"
CONFIG = "config.toml"
RESULTS = "results.json"
PARTITION = "partition.csv"
MEMORY = "memory"
FAILURES = "failures.jsonl"
CONTENT = ("algorithm", "round", "summary", "best_round_on_test_data", "rounds", "clients")
"""The keys of a results.json."""
KINDS = ("initial", "personalized")
"""Of accuracies: of the model as received, and after fine-tuning."""
MEASURES = {
    "fairness (Jain)": ("accuracy", "jain"),
    "calibration error": ("calibration_error", "mean"),
    "accuracy without head": ("template_accuracy", "mean"),
    "accuracy on classes not had": ("other_classes_accuracy", "mean"),
}
"""What is told beside accuracies: the key in a summary without initial_ or personalized_, and the statistic."""
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def default_run_name(config: Config) -> str:
    """Dataset, algorithm, seed and local time, as in ``cifar10-fedbabu-seed42-20260131-235959``."""
    dataset = Path(config.dataset.rstrip("/")).name
    return f"{dataset}-{config.algorithm}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def create(config: Config) -> Path:
    """Make the run's folder, with the effective configuration in it, or not at all.

    Raises:
        ConfigError: the folder exists already, or cannot be made.
    """
    folder = Path(config.output_dir).expanduser().resolve() / (config.run_name or default_run_name(config))
    refuse_existing(folder)
    scratch = folder.with_name(f".{folder.name}")
    make_folder("output-dir", scratch)
    write_config(scratch, config, {"begun": time.strftime("%Y%m%d-%H%M%S")})
    scratch.rename(folder)
    return folder


def write_config(folder: Path, config: Config, facts: Mapping[str, str]) -> None:
    """Write ``config.toml``: every option, versions, and the given facts about the machines."""
    about = {**config.to_run_config(), "environment": {**versions(), **facts}}
    write_whole(folder / CONFIG, tomli_w.dumps(about))


def read_config(folder: Path) -> Config:
    """The effective configuration of the run in the folder.

    Raises:
        ConfigError: ``config.toml`` is missing, damaged, or not of this version.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError("run", str(folder), f"is no run's folder: it has no {CONFIG}")
    values = read_toml(folder / CONFIG)
    values.pop("environment", None)
    return Config.from_run_config(values)


def read_environment(folder: Path) -> dict[str, str]:
    """Versions and hardware of the run in the folder, from its ``config.toml``."""
    return read_toml(folder / CONFIG).get("environment", {})


def is_of(folder: Path, config: Config, facts: Mapping[str, str]) -> bool:
    """Whether the folder was begun with this configuration, these facts and these versions."""
    try:
        return read_config(folder) == config and read_environment(folder) == {**versions(), **facts}
    except ConfigError:
        return False


def memory_of(folder: Path, config: Config) -> str:
    """The folder of what the clients of the run in the folder keep; sites have it below a folder of their own."""
    if not config.on_sites:
        return str(folder / MEMORY)
    begun = read_environment(folder)["begun"]
    name = folder.name if folder.name.endswith(begun) else f"{folder.name}-{begun}"  # names may come again
    return f"{name}/{MEMORY}"


def make_folder(option: str, folder: Path) -> None:
    """Make the folder that an option names, if it is not there.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(option, str(folder), f"cannot be made: {error.strerror}") from None


def make_new_folder(option: str, folder: Path) -> None:
    """Make the folder that an option names, which may be there if it is empty.

    Raises:
        ConfigError: it cannot be made or written to, or it is not empty.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
        (folder / ".scratch").touch()
        (folder / ".scratch").unlink()
    except OSError as error:
        raise ConfigError(option, str(folder), f"cannot be written to: {error.strerror}") from None
    if taken:
        raise ConfigError(option, str(folder), "is not empty, and nothing is overwritten; take another folder")


def refuse_unwritable(option: str, folder: Path) -> None:
    """Raise ConfigError where a folder that an option names cannot be made or written to."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ConfigError(option, str(folder), f"{place} is no folder that can be written to; take another one")


def refuse_existing(folder: Path) -> None:
    """Raise ConfigError where a run's folder exists already: nothing is overwritten."""
    if folder.exists():
        raise ConfigError("run-name", folder.name, f"{folder} exists and is not overwritten; take another name")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # this package itself, where Flower unpacked the app
            found[name] = "not installed"
    return found


@lru_cache
def source_digest() -> str:
    """A digest of this package's source files; it differs where two machines run different code."""
    digest = hashlib.sha256()
    for file in sorted(package_folder().glob("*.py")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def own_code() -> dict[str, str]:
    """What a server tells of its code in every message: nodes with other code refuse to take part."""
    return {"source-digest": source_digest(), "source-folder": str(package_folder())}


def package_folder() -> Path:
    """The folder that this package was imported from."""
    return Path(__file__).resolve().parent


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(values: Sequence[float]) -> dict[str, float]:
    """How values of clients are spread; all that is written of them.

    Returns:
        ``mean``, ``std`` (population), ``worst_decile`` (mean of the lowest tenth of the values, of at least one) and
        ``jain``, the fairness index (sum x)^2 / (n sum x^2) of Jain et al. 1984: 1 where all are equal, 1/n where one
        has everything.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    worst = ordered[: max(1, math.ceil(len(ordered) / 10))]
    squares = float((ordered**2).mean())
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_decile": float(worst.mean()),
        "jain": float(ordered.mean() ** 2) / squares if squares else 1.0,
    }


def results(algorithm: str, rounds: Sequence[Mapping], clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of results.json.

    Args:
        algorithm: a name of ``algorithms.ALGORITHMS``.
        rounds: the history of the federation, one entry per round, as it is in checkpoints.
        clients: every client's accuracies (0 to 1) and losses (nats) after the last round.
    """
    clients = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in client.items()}
        for client in sorted(clients, key=lambda client: client["client"])
    ]
    for client in clients:
        client["gain"] = client["personalized_accuracy"] - client["initial_accuracy"]
    measured = {key: [client[key] for client in clients if client[key] is not None] for key in clients[0]}
    summary = {}
    for key, values in measured.items():
        if values and ("accuracy" in key or key == "gain"):
            summary[key] = spread(values)
        elif values and key.endswith(("_loss", "_calibration_error")):  # of which less is better
            summary[key] = {name: value for name, value in spread(values).items() if name in ("mean", "std")}
    return {
        "algorithm": algorithm,
        "round": rounds[-1]["round"],
        "summary": summary,
        "best_round_on_test_data": best_round(rounds),
        "rounds": list(rounds),
        "clients": clients,
    }


def read_results(folder: Path) -> dict[str, Any]:
    """The content of the results.json in the folder.

    Raises:
        ConfigError: it is missing or damaged.
    """
    path = folder / RESULTS
    try:
        outcome = json.loads(path.read_text())
        return {key: outcome[key] for key in CONTENT}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError("results", str(path), f"cannot be read: {error!r}") from None


def best_round(rounds: Sequence[Mapping]) -> dict[str, Any] | None:
    """Of the evaluated rounds, the first with the highest mean initial accuracy; the choice has seen test data."""
    evaluated = [entry for entry in rounds if "initial_accuracy" in entry]
    best = max(evaluated, key=lambda entry: entry["initial_accuracy"]["mean"], default=None)
    return best and {"round": best["round"], "initial_accuracy": best["initial_accuracy"]}


def measure(outcome: Mapping[str, Any], title: str) -> tuple[float | None, float | None]:
    """One of ``MEASURES`` over all clients, before and after fine-tuning; None where a result does not have it."""
    kind, statistic = MEASURES[title]
    return tuple(outcome["summary"].get(f"{name}_{kind}", {}).get(statistic) for name in KINDS)


def table(outcome: Mapping[str, Any]) -> str:
    """The summary of a results.json as the table that people read, accuracies in percent."""
    count = len(outcome["clients"])
    lines = [
        f"{outcome['algorithm']} after round {outcome['round']}, over {count} clients",
        f"{'accuracy (%)':<16}{'mean ± std':>16}{'worst decile':>16}",
    ]
    for name in KINDS:
        mean, std, worst = (
            100 * outcome["summary"][f"{name}_accuracy"][key] for key in ("mean", "std", "worst_decile")
        )
        lines.append(f"{name:<16}{f'{mean:.2f} ± {std:.2f}':>16}{worst:>16.2f}")
    told = [(title, *values) for title in MEASURES if None not in (values := measure(outcome, title))]
    if told:
        lines.append(f"{'mean, between 0 and 1':<32}{'initial':>10}{'personalized':>14}")
    lines += [f"{title:<32}{initial:>10.4f}{personalized:>14.4f}" for title, initial, personalized in told]
    if best := outcome["best_round_on_test_data"]:
        mean, std = (100 * best["initial_accuracy"][key] for key in ("mean", "std"))
        lines.append(f"best initial accuracy {mean:.2f} ± {std:.2f} after round {best['round']}, chosen on test data")
    return "\n".join(lines)


def curve(outcome: Mapping[str, Any]) -> list[dict[str, float]]:
    """Spreads of accuracy over clients before fine-tuning and after each of its epochs."""
    epochs = sum(key.startswith("accuracy_epoch_") for key in outcome["summary"])
    return [outcome["summary"][f"accuracy_epoch_{epoch}"] for epoch in range(epochs)]


def measures(outcome: Mapping[str, Any]) -> dict[str, str]:
    """The summary of a results.json without the curve: mean ± std over clients of each measure, as people read it."""
    return {
        f"{key.replace('_', ' ')}, over {len(outcome['clients'])} clients": f"{over['mean']:.4f} ± {over['std']:.4f}"
        for key, over in outcome["summary"].items()
        if not key.startswith("accuracy_epoch_")
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole or not at all: a line for each key, and for each entry of a list."""

    def lines(item: Any) -> str:
        if not isinstance(item, list):
            return json.dumps(item)
        return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in item) + "\n ]"

    body = ",\n".join(f" {json.dumps(key)}: {lines(item)}" for key, item in value.items())
    write_whole(path, f"{{\n{body}\n}}\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, then move it into place; what was there stays if that fails."""
    scratch = path.with_name(f".{path.name}")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def record_failure(folder: Path, failure: Mapping[str, Any]) -> None:
    """Append to failures.jsonl: which client on which node failed, in which round, and why."""
    with (folder / FAILURES).open("a") as file:
        file.write(json.dumps(failure) + "\n")
