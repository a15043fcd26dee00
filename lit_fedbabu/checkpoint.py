"""Reading what a federation left, without Lightning and without running any code that a file may contain."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import torch

from lit_fedbabu import runs
from lit_fedbabu.algorithms import algorithm_of, shared_state
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import build_model


@dataclasses.dataclass(frozen=True)
class Federated:
    """What a federation left: its configuration, its history and the state that its clients share."""

    config: Config
    rounds: list[dict[str, Any]]
    shared: dict[str, torch.Tensor]
    class_names: list[str]
    constants: tuple[list[float], list[float]]
    """Mean and standard deviation by channel that its images were normalized with."""
    memories: Path | None = None
    """The folder of what the clients kept, where the checkpoint lies in a run's folder."""
    site: int | None = None
    """The client whose machine wrote the checkpoint; None if the server did."""

    @property
    def server_round(self) -> int:
        """The last round, from 1."""
        return self.rounds[-1]["round"]


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run's folder or a file's path stands for.

    Raises:
        ConfigError: there is none.
    """
    path = source / runs.LAST_CHECKPOINT if source.is_dir() else source
    if not path.is_file():
        raise ConfigError("RUN_OR_CHECKPOINT", str(source), "has no checkpoint; give a run's folder or a .ckpt file")
    return path


def read_content(path: Path, trusted_model: str = "") -> dict[str, Any]:
    """What a checkpoint of this package holds, read without running any code that it may contain.

    Args:
        path: the checkpoint.
        trusted_model: the import path of a model of the user's own that may be imported.

    Raises:
        ConfigError: the file is damaged, not of this version of the package, or names a model that is code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        about, model_name = content["lit_fedbabu"], content["hyper_parameters"]["model_name"]
        missing = {"config", "round", "class_names", "mean", "std"} - about.keys()
        missing |= {"num_classes", "norm", "channels"} - content["hyper_parameters"].keys()
    except Exception as error:  # a damaged file can make the reader raise anything
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ConfigError("checkpoint", str(path), f"is not one that lit_fedbabu wrote ({reason})") from None
    if missing:
        remedy = f"was written by another version of lit_fedbabu: it does not say {', '.join(sorted(missing))}"
        raise ConfigError("checkpoint", str(path), remedy)
    if ":" in model_name and model_name != trusted_model:
        raise ConfigError("model-name", model_name, "is code that the checkpoint names; give --model-name to trust it")
    if wrong := _strange(content):
        raise ConfigError("checkpoint", str(path), f"has weights of another model than {model_name}: {wrong}")
    return content


def _strange(content: dict[str, Any]) -> str:
    """The first weight that the model named in a checkpoint does not have as the checkpoint has it; empty: none."""
    options = content["hyper_parameters"]
    model = build_model(options["model_name"], options["num_classes"], 0, options["norm"], options["channels"])
    expected = {f"model.{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
    names = [*expected, *found]
    return next((f"{name} is {found.get(name)}" for name in names if found.get(name) != expected.get(name)), "")


def read_checkpoint(path: Path, trusted_model: str = "") -> Federated:
    """Read what fine-tuning needs from the checkpoint of a run.

    Raises:
        ConfigError: as ``read_content``, or the checkpoint is not that of a federation.
    """
    content = read_content(path, trusted_model)
    about = content["lit_fedbabu"]
    if "rounds" not in about:
        raise ConfigError("checkpoint", str(path), "is a personal model; give the checkpoint of a federation")
    try:
        config = Config.from_run_config(about["config"])
    except ConfigError as error:
        raise ConfigError("checkpoint", str(path), f"was written by another version of lit_fedbabu: {error}") from None
    state = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
    memories = path.resolve().parent.parent / runs.MEMORY
    if algorithm_of(config).kept and not memories.is_dir() and not config.on_sites:
        raise ConfigError(
            "checkpoint", str(path), f"{config.algorithm} needs the run's folder {runs.MEMORY}/ beside it"
        )
    return Federated(
        config,
        about["rounds"],
        shared_state(config, state),
        about["class_names"],
        (about["mean"], about["std"]),
        memories if memories.is_dir() else None,
        about.get("client"),
    )


def resumable(config: Config) -> Federated | None:
    """What the run at ``config.resume`` has behind it; None if it was stopped before its first round was over.

    Raises:
        ConfigError: there is no such run, it is finished, or it was begun with other options.
    """
    folder = Path(config.resume)
    begun = runs.read_config(folder).experiment()
    for key, value in config.experiment().items():
        if value != begun[key]:
            raise ConfigError(key, value, f"the run in {folder} was begun with {begun[key]!r}; give it the same")
    if not (folder / runs.LAST_CHECKPOINT).exists():
        return None
    federated = read_checkpoint(folder / runs.LAST_CHECKPOINT, config.model_name)
    if len(federated.rounds) >= config.num_server_rounds:
        raise ConfigError("resume", config.resume, f"the run is finished; see {folder / runs.RESULTS}")
    return federated
