"""``python -m lit_fedbabu.run [CONFIG.toml] [key=value ...]``: ``flwr run`` with a true exit status.

It starts a SuperLink of its own in a folder of its own, submits this package's app to it, shows the
run's lines, and leaves no process behind. Training itself is the same as under plain ``flwr run .``.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import tomli_w

from lit_fedbabu import runs
from lit_fedbabu.config import Config, ConfigError, parse_overrides

NODES_PER_WORKER = 16
"""Nodes are many more than workers, so that a round's clients divide evenly among the workers."""
START_TIMEOUT_S = 60
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.run",
        description="Run a federation on this machine. Options and defaults: [tool.flwr.app.config] in pyproject.toml.",
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.toml | key=value", help="overrides, later ones win")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder, which was stopped")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(arguments.words, arguments.resume)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except _LinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(words: list[str], resume: Path | None) -> int:
    overrides = parse_overrides(words)
    root = _app_folder()
    if resume:
        overrides = {**runs.read_config(resume).to_run_config(), **overrides, "resume": str(resume.resolve())}
        config = Config.from_run_config(overrides)
        folder = resume.resolve()
    else:
        config = Config.from_run_config(overrides)
        overrides["output-dir"] = str(Path(config.output_dir).expanduser().resolve())
        overrides["run-name"] = config.run_name or runs.default_run_name(config)
        if Path(config.dataset).expanduser().is_dir():
            overrides["dataset"] = str(Path(config.dataset).expanduser().resolve())
        folder = Path(overrides["output-dir"]) / overrides["run-name"]
        runs.refuse_existing(folder)
    print("checking the dataset and the split", flush=True)
    from lit_fedbabu import checkpoint, preflight  # import PyTorch, which takes seconds: not before the cheap checks

    preflight.check(Config.from_run_config(overrides))
    if resume:
        checkpoint.resumable(config)
    with _superlink() as home:
        return _follow(root, home, overrides, folder, _resources(config))


class _LinkError(RuntimeError):
    pass


def _app_folder() -> Path:
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").exists():
        raise ConfigError("app", str(root), "has no pyproject.toml; clone the repository and pip install -e it")
    return root


def _resources(config: Config) -> str:
    """Flower's --federation-config: a worker for every GPU, or for every ``num-threads`` cores."""
    import torch

    cores = runs.available_cores()
    gpus = torch.cuda.device_count()
    workers = gpus or max(1, cores // config.num_threads)
    nodes = min(config.num_clients, NODES_PER_WORKER * workers)
    cpus = max(1, cores // workers) if gpus else min(config.num_threads, cores)
    resources = f"num-supernodes={nodes} client-resources-num-cpus={cpus} init-args-num-cpus={cores}"
    return f"{resources} client-resources-num-gpus=1.0" if gpus else resources


@contextmanager
def _superlink() -> Iterator[Path]:
    """A SuperLink with a FLWR_HOME of its own, which is yielded; everything it started is ended afterwards."""
    home = Path(tempfile.mkdtemp(prefix="lit_fedbabu-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": "own", "own": {"address": f"127.0.0.1:{port}", "insecure": True}}})
    )
    command = [
        _program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), "--database", str(home / "state.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    try:
        with (home / "superlink.log").open("w") as log:
            link = subprocess.Popen(
                command, cwd=_app_folder(), env=_environment(home), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if link.poll() is not None or time.monotonic() > deadline:
                tail = (home / "superlink.log").read_text().strip().splitlines()[-1:]
                raise _LinkError(f"Flower's SuperLink did not start: {' '.join(tail)}")
            time.sleep(0.1)
        yield home
    finally:
        _end_all(home)
        shutil.rmtree(home, ignore_errors=True)


def _follow(root: Path, home: Path, overrides: dict, folder: Path, resources: str) -> int:
    """Submit the run, show its lines as they come, and return the exit status of the run itself."""
    (home / "run.toml").write_text(tomli_w.dumps(overrides))
    command = [_program("flwr"), "run", str(root), "own", "--stream", "--run-config", str(home / "run.toml")]
    log = home / "flower.log"
    told_error = False
    with log.open("w") as file:
        stream = subprocess.Popen(
            [*command, "--federation-config", resources],
            env=_environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        print("starting Flower (half a minute or more)", flush=True)
        for line in stream.stdout:
            file.write(line)
            file.flush()
            text = ANSI.sub("", line).strip()
            if text.startswith(runs.MARK):
                text = text.removeprefix(f"{runs.MARK} ")
                told_error |= text.startswith("error:")
                print(text, file=sys.stderr if text.startswith("error:") else sys.stdout, flush=True)
        stream.wait()
    status, details = _status(home)
    kept = folder / "flower.log" if folder.exists() else Path(tempfile.mkstemp(suffix="-flower.log")[1])
    with kept.open("ab") as file:  # a resumed run has a log already
        file.write(log.read_bytes())
    if status == "finished:completed" and (folder / runs.RESULTS).exists():
        print(f"TensorBoard: {_program('tensorboard')} --logdir {folder.parent}", flush=True)
        return 0
    if not told_error:
        print(f"error: the run ended as {status!r}: {details}; Flower's log is {kept}", file=sys.stderr)
    return 1


def _status(home: Path) -> tuple[str, str]:
    """Flower's own word on the only run there is, and its reason."""
    answer = subprocess.run(
        [_program("flwr"), "list", "own", "--format", "json"], env=_environment(home), capture_output=True, text=True
    )
    try:
        run = json.loads(answer.stdout)["runs"][0]
        return run["status"], " ".join(run.get("status-details", "").split())
    except (ValueError, LookupError):
        return "not submitted", " ".join(answer.stderr.split())[-200:]


def _environment(home: Path) -> dict[str, str]:
    own = {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return {"GLIBC_TUNABLES": runs.MALLOC, **os.environ, **own}


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end_all(home: Path) -> None:
    """End every process that inherited this FLWR_HOME: SuperLink, server, Ray and its workers."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        ours = [process for process in psutil.process_iter() if _belongs(process, home)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(ours, timeout=5)


def _belongs(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("FLWR_HOME") == str(home)
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
