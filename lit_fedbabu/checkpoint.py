"""Reading what a federation left, without Lightning and without running any code that a file may contain."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch

from lit_fedbabu import runs
from lit_fedbabu.algorithms import algorithm_of, shared_state
from lit_fedbabu.config import Config, ConfigError


@dataclasses.dataclass(frozen=True)
class Federated:
    """What a federation left: its configuration, its history and the state that its clients share."""

    config: Config
    rounds: list[dict[str, Any]]
    shared: dict[str, torch.Tensor]
    memories: Path | None = None
    """The folder of what the clients kept, where the checkpoint lies in a run's folder."""

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


def read_checkpoint(path: Path, trusted_model: str = "") -> Federated:
    """Read what fine-tuning needs from a checkpoint, without running any code that it may contain.

    Args:
        path: the checkpoint.
        trusted_model: the import path of a model of the user's own that may be imported.

    Raises:
        ConfigError: the file is damaged, or no run of this package wrote it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about = content["lit_fedbabu"]
        if missing := sorted(Config().experiment().keys() - about["config"].keys()):
            remedy = f"was written by another version of lit_fedbabu: it does not say {', '.join(missing)}"
            raise ConfigError("checkpoint", str(path), remedy)
        config = Config.from_run_config(about["config"])
        state = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
        memories = path.resolve().parent.parent / runs.MEMORY
        federated = Federated(
            config, about["rounds"], shared_state(config, state), memories if memories.is_dir() else None
        )
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ConfigError("checkpoint", str(path), f"is not one that a run of lit_fedbabu wrote ({reason})") from None
    if ":" in config.model_name and config.model_name != trusted_model:
        raise ConfigError(
            "model-name", config.model_name, "is code that the checkpoint names; give --model-name to trust it"
        )
    if algorithm_of(config).kept and federated.memories is None:
        raise ConfigError(
            "checkpoint", str(path), f"{config.algorithm} needs the run's folder {runs.MEMORY}/ beside it"
        )
    return federated


def resumable(config: Config) -> Federated | None:
    """What the run at ``config.resume`` has behind it; None if it was stopped before its first round was over.

    Raises:
        ConfigError: there is no such run, it is finished, or it was begun with other options.
    """
    folder = Path(config.resume)
    if not (folder / runs.CONFIG).is_file():
        raise ConfigError("resume", config.resume, f"is no run's folder: it has no {runs.CONFIG}")
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
