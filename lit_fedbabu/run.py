"""``python -m lit_fedbabu.run [CONFIG.toml] [key=value ...]``: ``flwr run`` with a true exit status.

It starts a SuperLink of its own in a folder of its own, submits this package's app to it, shows the
run's lines, and leaves no process behind. Training itself is the same as under plain ``flwr run .``.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import tomli_w

from lit_fedbabu import runs, superlink
from lit_fedbabu.config import Config, ConfigError, parse_overrides, told_in_one_line
from lit_fedbabu.superlink import LinkError

NODES_PER_WORKER = 16
"""Nodes are many more than workers, so that a round's clients divide evenly among the workers."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@told_in_one_line
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
    except LinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(words: list[str], resume: Path | None) -> int:
    overrides = parse_overrides(words)
    root = _app_folder()
    if resume is None and overrides.get("resume"):
        resume = Path(str(overrides["resume"])).expanduser()
    if resume:
        for key in ("run-name", "output-dir"):
            if key in overrides:
                raise ConfigError(key, overrides[key], "a run that is resumed keeps its folder; leave it out")
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
        runs.refuse_unwritable("output-dir", Path(overrides["output-dir"]))
    if config.on_sites:
        raise ConfigError("partitioner", "sites", "is for real nodes, with flwr run: see docs/deployment.md")
    print("checking the dataset and the split", flush=True)
    from lit_fedbabu import checkpoint, preflight  # import PyTorch, which takes seconds: not before the cheap checks

    preflight.resolve_precision(config.precision)
    preflight.check(Config.from_run_config(overrides))
    if resume:
        checkpoint.resumable(config)
    with superlink.started(root) as home:
        return _follow(root, home, overrides, folder, _resources(config))


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


def _follow(root: Path, home: Path, overrides: dict, folder: Path, resources: str) -> int:
    """Submit the run, show its lines as they come, and return the exit status of the run itself."""
    (home / "run.toml").write_text(tomli_w.dumps(overrides))
    command = [superlink.program("flwr"), "run", str(root), "own", "--stream", "--run-config", str(home / "run.toml")]
    log = home / "flower.log"
    told_error = False
    with log.open("w") as file:
        stream = subprocess.Popen(
            [*command, "--federation-config", resources],
            env=superlink.environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
        print(f"TensorBoard: {superlink.program('tensorboard')} --logdir {folder.parent}", flush=True)
        return 0
    if not told_error:
        print(f"error: the run ended as {status!r}: {details}; Flower's log is {kept}", file=sys.stderr)
    return 1


def _status(home: Path) -> tuple[str, str]:
    """Flower's own word on the only run there is, and its reason."""
    command = [superlink.program("flwr"), "list", "own", "--format", "json"]
    answer = subprocess.run(command, env=superlink.environment(home), capture_output=True, text=True)
    try:
        run = json.loads(answer.stdout)["runs"][0]
        return run["status"], " ".join(run.get("status-details", "").split())
    except (ValueError, LookupError):
        return "not submitted", " ".join(answer.stderr.split())[-200:]


if __name__ == "__main__":
    sys.exit(main())
