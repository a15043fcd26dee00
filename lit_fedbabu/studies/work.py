"""A run of a study, in a worker: claimed, begun or resumed, and finished."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.engines.local import Answers, LocalGrid, answer, quiet_flower
from lit_fedbabu.engines.resources import nodes_of
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import append_json_line
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import CONFIG, LAST_CHECKPOINT, RESULTS
from lit_fedbabu.server.federate import federate
from lit_fedbabu.studies.claims import Claim, claimed
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import Warm

TIMES = "times.jsonl"
"""In a study's folder: how many seconds each run took."""
PLACE = "LIT_FEDBABU_PLACE"
"""Variable of a worker: its place among those that do runs at once."""
PREPARE = "lit_fedbabu.client_app:prepare"
DONE, ELSEWHERE = "done", "elsewhere"


class Here:
    """Stands for a pool of workers: this process answers every message itself."""

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """As of ``Pool.answers``, one after another; arguments that have no use here are ignored."""
        for place, request in enumerate(requests):
            yield place, answer(*request)


class Claimed:
    """Has messages answered while this process has the claim to the run.

    Args:
        claim: to the run.
        by: who answers them.
    """

    def __init__(self, claim: Claim, by: Answers) -> None:
        self._claim, self._by = claim, by

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """As of ``Pool.answers``."""
        self._claim.refuse_lost()
        yield from self._by.answers(function, requests, shared, timeout_s)


@contextlib.contextmanager
def _workers(
    environments: Sequence[Mapping[str, str]], log: Path, say: Callable[[str], None], once: bool
) -> Iterator[Answers]:
    """The workers of a run: this process where there is one alone, and else a pool of them."""
    if len(environments) == 1 and not once:
        yield Here()
        return
    with Warm.here(PREPARE) as warm, Pool(warm, len(environments), environments, str(log), say, once) as pool:
        yield pool


def claim_of(folder: Path) -> Path:
    """The file, beside a run's folder, that says who does the run."""
    return folder.with_name(f"{folder.name}.claim")


def log_of(folder: Path) -> Path:
    """The file, beside a run's folder, with what the run prints until it has gone well."""
    return folder.with_name(f"{folder.name}.log")


def state_of(folder: Path) -> Path:
    """The file, beside a run's folder, in which it says how far it is, while it goes on."""
    return folder.with_name(f"{folder.name}.progress")


def is_done(config: Config) -> bool:
    """Whether the run that this configuration is of has finished."""
    folder = Path(config.output_dir) / config.run_name
    if not (folder / RESULTS).exists() or not (folder / LAST_CHECKPOINT).exists():
        return False
    done: int = checkpoint.read(folder / LAST_CHECKPOINT, config.trusted).provenance["round"]
    return done >= config.num_server_rounds or "stopped_before" in read_results(folder).get("privacy", {})


def work(config: Config, shares: Sequence[Sequence[Mapping[str, str]]]) -> str:
    """Do a run, or what is left of it, in this process; what it prints goes to ``<run>.log`` beside its folder.

    Args:
        config: of the run.
        shares: variables of the workers of each run that is done at once, of which the one at ``PLACE`` is for this.

    Returns:
        ``DONE``, or ``ELSEWHERE`` where another process does it.
    """
    folder = Path(config.output_dir) / config.run_name
    with claimed(claim_of(folder)) as claim:
        if claim is None:
            return ELSEWHERE
        if is_done(config):
            return DONE
        started = time.monotonic()
        if (folder / CONFIG).exists():
            config = Config.from_run_config({**config.to_run_config(), "resume": str(folder)})
        log = log_of(folder)
        environments = shares[int(os.environ[PLACE])]
        with (
            Lines(file=state_of(folder)) as progress,
            log.open("a") as file,
            contextlib.redirect_stdout(file),
            quiet_flower(),
            _workers(environments, log, progress.say, config.devices > 1) as workers,
        ):
            grid = LocalGrid(config, nodes_of(config), Claimed(claim, workers), progress)
            federate(grid, Experiment(config), progress)
        log.unlink()  # of a run that went well; its folder has everything
        if not config.resume:
            append_json_line(folder.parent / TIMES, {"run": folder.name, "seconds": time.monotonic() - started})
    return DONE


def times(folder: Path) -> dict[str, float]:
    """Seconds that each finished run of a study took, where that is known."""
    path = folder / TIMES
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {row["run"]: float(row["seconds"]) for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        raise InputError("study", str(path), f"cannot be read: {error!r}; delete it") from None
