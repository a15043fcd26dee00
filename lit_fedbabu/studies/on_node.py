"""What a node of a Ray cluster does for a study of another machine."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.studies.conduct import do
from lit_fedbabu.studies.plan import Study
from lit_fedbabu.workers.host import import_as


def work(study: Study, mark: str, path: Sequence[str], current: str, asker: Mapping[str, Any], machines: int) -> str:
    """Do runs of a study until nobody is needed; what it prints goes to ``ray-<machine>.log`` of the study.

    Args:
        study: whose runs they are.
        mark: a file of the study's folder.
        path: folders that modules are imported from on the machine that asks.
        current: its current folder.
        asker: what is installed on it, as ``system.installed`` says.
        machines: how many do the study.

    Returns:
        What to say of it; empty: nothing.
    """
    here = platform.node()
    if reason := system.unlike(system.installed(), asker):
        return f"{here} takes no part: {reason}"
    if not Path(mark).is_file():
        return f"{here} takes no part: it does not share {Path(mark).parent}; take an output-dir that all nodes have"
    import_as(path, current)
    with (Path(mark).parent / f"ray-{here}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            do(study, plain=True, is_worker=True, machines=machines)
        except (InputError, RunError) as error:
            return f"{here} has stopped: {error}"
    return ""
