"""The engine ``flower``: a run on a SuperLink of its own, as under ``flwr run .``, with a true exit status."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
import torch

from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.engines.resources import nodes_of, worker_environments
from lit_fedbabu.ground import system
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.stops import settle
from lit_fedbabu.records.progress import Lines, Live
from lit_fedbabu.records.run_folder import RESULTS

STATE = "progress.json"
"""In the FLWR_HOME: how far the server is."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def app_folder(home: Path) -> Path:
    """The Flower app as a folder of its own in the run's FLWR_HOME: Flower reads every file beside an app's package.

    In a clone these would be those of its ``.venv`` too, which takes five seconds.
    """
    package = system.package_folder()
    app = home / "lit-fedbabu"
    shutil.copytree(package, app / package.name, ignore=shutil.ignore_patterns("__pycache__", "shipped_configs"))
    project = {"name": "lit-fedbabu", "version": version("lit-fedbabu"), "license": "Apache-2.0", "dependencies": []}
    components = {"serverapp": "lit_fedbabu.server_app:app", "clientapp": "lit_fedbabu.client_app:app"}
    flower = {"publisher": "lit-fedbabu", "components": components, "config": Config().to_run_config()}
    (app / "pyproject.toml").write_text(tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}}))
    return app


def run(options: dict[str, Any], folder: Path, progress: Lines) -> int:
    """Run a federation and print its lines as they come; returns the exit status of the run itself.

    Args:
        options: the run's configuration, by keys.
        folder: the run's, which the server makes.
        progress: shows a person what is done.

    Raises:
        RunError: no SuperLink could be started.
    """
    with superlink.started(Path.cwd(), STATE if isinstance(progress, Live) else "") as home:
        if isinstance(progress, Live):
            progress.follow(home / STATE)
        more = ["--federation-config", _resources(Config.from_run_config(options))]
        status = follow(home, options, folder, progress, more)
        if not status:
            settle()
        return status


def _resources(config: Config) -> str:
    """Flower's --federation-config: a worker for every GPU, or for every ``num-threads`` cores."""
    cores = system.available_cores()
    gpus = torch.cuda.device_count()
    workers, nodes = len(worker_environments(config)), nodes_of(config)
    cpus = max(1, cores // workers) if gpus else min(config.num_threads, cores)
    resources = f"num-supernodes={nodes} client-resources-num-cpus={cpus} init-args-num-cpus={cores}"
    return f"{resources} client-resources-num-gpus=1.0" if gpus else resources


def follow(home: Path, options: dict[str, Any], folder: Path, progress: Lines, more: Sequence[str] = ()) -> int:
    """Run a federation on the SuperLink that ``config.toml`` in this FLWR_HOME calls ``own``, and print its lines.

    Args:
        home: the FLWR_HOME.
        options: the run's configuration, by keys.
        folder: the run's, which the server makes.
        progress: shows a person what is done.
        more: options of ``flwr run``.

    Returns:
        The exit status of the run itself.
    """
    root = app_folder(home)
    (home / "run.toml").write_text(tomli_w.dumps(options))
    command = [system.program("flwr"), "run", str(root), "own", "--stream", "--run-config", str(home / "run.toml")]
    command += more
    log = home / "flower.log"
    error_shown = False
    with log.open("w") as file:
        stream = subprocess.Popen(
            command, env=superlink.environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        progress.say("starting Flower (half a minute or more)")
        progress.wait("starting Flower")
        for line in stream.stdout or ():
            file.write(line)
            file.flush()
            text = ANSI.sub("", line).strip()
            if text.startswith(system.LOG_MARK):
                text = text.removeprefix(f"{system.LOG_MARK} ")
                error_shown |= text.startswith("error:")
                if text.startswith("error:"):
                    say(text, sys.stderr)
                else:
                    progress.say(text)
        stream.wait()
    status, details = _status(home)
    kept = folder / "flower.log" if folder.exists() else Path(tempfile.mkstemp(suffix="-flower.log")[1])
    with kept.open("ab") as kept_file:  # a resumed run has a log already
        kept_file.write(log.read_bytes())
    if status == "finished:completed" and (folder / RESULTS).exists():
        return 0
    if not error_shown:
        say(f"error: the run ended as {status!r}: {details}; Flower's log is {kept}", sys.stderr)
    return 1


def _status(home: Path) -> tuple[str, str]:
    """What Flower says of the only run there is, and its reason."""
    command = [system.program("flwr"), "list", "own", "--format", "json"]
    answer = subprocess.run(command, env=superlink.environment(home), capture_output=True, text=True, check=False)
    try:
        run = json.loads(answer.stdout)["runs"][0]
        return run["status"], " ".join(run.get("status-details", "").split())
    except (ValueError, LookupError):
        return "not submitted", " ".join(answer.stderr.split())[-200:]
