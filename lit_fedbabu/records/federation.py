"""What a federation left: read from the checkpoint of a run, to be fine-tuned or resumed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_fedbabu.algorithms.algorithm import EXTRA, STATE, Algorithm
from lit_fedbabu.algorithms.rows import numbered
from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.system import shipped_bodies
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.parts import PARTS, PRIVATE, REST, behind, parts_of, select, without
from lit_fedbabu.learning.pretrained import is_saved
from lit_fedbabu.learning.state import first_other
from lit_fedbabu.records import seal
from lit_fedbabu.records.run_folder import (
    CONFIG,
    LAST_CHECKPOINT,
    MEMORY,
    RESULTS,
    SERVER,
    read_config,
    read_environment,
    read_names,
    refuse_other_options,
)
from lit_fedbabu.training import memory

if TYPE_CHECKING:
    from lit_fedbabu.training.experiment import Experiment

ON_NODES = "on the nodes' disks"
"""In a run's ``config.toml``: where the memories of its clients are, if not in its folder."""


@dataclasses.dataclass(frozen=True)
class Federation:
    """A federation after one of its rounds.

    Args:
        config: its configuration.
        rounds: its history, one entry for each round.
        shared: the weights that its clients share.
        initial: those that they do not, as they were before the first round.
        extras: what clients need of the server's state to be evaluated.
        provenance: what its checkpoint says of it.
        memories: folder of what the clients kept, where the checkpoint lies in a run's folder; None: it has none.
        site: the client whose machine wrote the checkpoint; None if the server did.
        names: of its clients, where they have names.
        kind: one of ``checkpoint.KINDS``; of personal models all weights are in ``shared``.
    """

    config: Config
    rounds: list[dict[str, Any]]
    shared: dict[str, Tensor]
    provenance: Mapping[str, Any]
    memories: Path | None = None
    site: int | None = None
    kind: str = "federation"
    initial: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    extras: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def tuned_on(self) -> list[str]:
        """What a personal model was tuned on, one after the other; of a federation's shared model nothing."""
        if self.kind == "federation":
            return []
        last = self.provenance.get("data") or f"client {self.provenance.get('client')}"
        return [*self.provenance.get("earlier", []), str(last)]

    def experiment(self, config: Config) -> Experiment:
        """The experiment of this configuration, with the federation's initial model."""
        from lit_fedbabu.tasks.protocol import class_of
        from lit_fedbabu.training.experiment import Experiment  # imports Lightning, which takes seconds

        task = None if self.site is None else class_of(config).of_site(config, self.site, config.dataset)
        return Experiment(config, task, self.initial)

    def refuse_other_start(self, experiment: Experiment) -> None:
        """Raise InputError where a run would go on from another initial model than it was begun with."""
        config = experiment.config
        if name := first_other(self.initial, experiment.start()):
            remedy = "begins otherwise than when the run was begun; put back what it is read from, as a file"
            raise InputError(
                config.kind.model.replace("_", "-"), config.trusted, f"its {name.removeprefix(f'{REST}.')} {remedy}"
            )

    @property
    def server_round(self) -> int:
        """The last round, from 1."""
        number: int = self.provenance["round"]
        return number


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run's folder, a file's path or the name of a body of this package stands for.

    Raises:
        InputError: there is none.
    """
    path = source / LAST_CHECKPOINT if source.is_dir() and not is_saved(source) else source
    if not path.exists() and str(source) in (bodies := shipped_bodies()):
        return bodies[str(source)]
    if not path.exists():
        remedy = "has no checkpoint; give a run's folder, a .ckpt file, or the folder of a saved model"
        raise InputError("RUN_OR_CHECKPOINT", str(source), remedy)
    return path


def read_federation(path: Path, trusted: str = "", personal: bool = False, algorithm: str = "") -> Federation:
    """Read a federation from a checkpoint; arguments and errors as of ``checkpoint.read``.

    Args:
        path: of the checkpoint.
        trusted: the import path of the user's own model or task that may be imported.
        personal: whether it may be a personal model; all of its weights are then taken for shared.
        algorithm: the import path of the user's own method that may be imported.

    Raises:
        InputError: also where the checkpoint is not that of a federation.
    """
    content = checkpoint.read(path, trusted)
    provenance = content.provenance
    if content.kind != "federation" and not personal:
        remedy = f"is a {content.kind} model; give the checkpoint of a federation, or tune it further with --data"
        raise InputError("checkpoint", str(path), remedy)
    config = content.config()
    if ":" in config.algorithm and config.algorithm != algorithm:
        remedy = "is code that the checkpoint names; give --algorithm to trust it"
        raise InputError("algorithm", config.algorithm, remedy)
    if content.kind != "federation":
        if content.of.by_options:
            config = dataclasses.replace(config, norm=content.hyper_parameters["norm"])
        under = {**{name: content.state[name] for name in content.base}, **select(content.state, [REST])}
        return Federation(config, [], content.state, provenance, kind=content.kind, initial=under)
    parts = [name.partition(".")[0] for name in content.state if not name.startswith(f"{REST}.")]
    method = algorithm_of(config).of_parts(tuple(dict.fromkeys([*PARTS, *parts])))
    folder = path.resolve().parent.parent
    memories = folder / MEMORY
    on_nodes = config.on_sites or ((folder / CONFIG).is_file() and read_environment(folder).get("memory") == ON_NODES)
    if method.kept and not memories.is_dir() and not on_nodes:
        raise InputError("checkpoint", str(path), f"{config.algorithm} needs the run's folder {MEMORY}/ beside it")
    own = *provenance.get(PRIVATE, ()), *method.fixed, *content.base
    shared = without(select(content.state, parts_of(method.shared)), own)
    return Federation(
        config,
        provenance["rounds"],
        shared,
        provenance,
        memories if memories.is_dir() else None,
        provenance.get("client"),
        initial=without(content.state, shared),  # so that no file which they came from is needed any more
        extras=_extras(path, method, config, provenance["round"]),
        names=read_names(folder),
    )


def _extras(path: Path, method: Algorithm, config: Config, server_round: int) -> dict[str, Tensor]:
    """What clients need of the server's state after a round: of what it kept, or of what a site got of it."""
    if not method.needs_server:
        return {}
    place = path.resolve().parent.parent / SERVER
    try:
        kept = memory.recall_from(place, server_round, "the server")
    except LookupError as error:
        raise InputError("checkpoint", str(path), f"{error}; take the last one") from None
    return behind(EXTRA, kept) or numbered(method, config, method.broadcast_after(behind(STATE, kept)))


def resumable(config: Config) -> Federation | None:
    """What the run at ``config.resume`` has done; None if it was stopped before its first round was over.

    It may be given more rounds than it was begun with, where the rounds that it has done would have been the same.

    Raises:
        InputError: there is no such run, it is finished, it was begun with other options, or a file that it goes on
            from is missing or was changed.
    """
    folder = Path(config.resume)
    refuse_other_options(_with_rounds(config, read_config(folder)), folder, "give it the same")
    seal.check_checkpoints(folder)
    if not (folder / LAST_CHECKPOINT).exists():
        return None
    federation = read_federation(folder / LAST_CHECKPOINT, config.trusted, algorithm=config.algorithm)
    begun = federation.config.experiment()
    for key, value in _with_rounds(config, federation.config).experiment().items():
        if value != begun[key]:
            remedy = f"{folder / CONFIG} was changed: the run was begun with {begun[key]!r}; put that back"
            raise InputError(key, value, remedy)
    seal.check_memories(folder, federation.server_round)
    if len(federation.rounds) >= config.num_server_rounds:
        remedy = f"the run is finished; see {folder / RESULTS}, or give it more rounds than {config.num_server_rounds}"
        if not (folder / RESULTS).exists():
            remedy = f"its rounds are done, but {RESULTS} is missing; put it back, or delete the folder and begin anew"
        raise InputError("resume", config.resume, remedy)
    _refuse_other_schedule(config, federation.config, len(federation.rounds))
    return federation


def _with_rounds(config: Config, other: Config) -> Config:
    """A configuration with as many rounds as the other one."""
    return dataclasses.replace(config, num_server_rounds=other.num_server_rounds)


def _refuse_other_schedule(config: Config, begun: Config, done: int) -> None:
    """Raise InputError where a run of other rounds would have had another learning rate in a round that is done."""
    fields = [field for field in ("learning_rate", "inner_learning_rate") if config.reads(field)]
    for server_round, field in itertools.product(range(1, done + 1), fields):
        rate = getattr(config, field) or 1.0  # with 0 the rate is that of a task's module, times the same factor
        was, would = (each.decayed(rate, server_round, field) for each in (begun, config))
        if was != would:
            remedy = (
                f"the run was begun with {begun.num_server_rounds}, and the rate decays after half and three quarters"
                f" of the rounds: round {server_round} of {config.num_server_rounds} has {would:g}, and it had {was:g};"
                " begin a new run"
            )
            raise InputError("num-server-rounds", config.num_server_rounds, remedy)
