"""``python -m benchmarks.cluster``: start-up and rounds of 1, 2 and 4 nodes of a cluster that share this machine.

With ``--ray`` those of the engine ``ray``, with one node and with two, in turns with the engine ``local`` and imports.
With ``--flwr-run`` when the stages of ``flwr run .`` are over, with its installation of packages and without.
With ``--message`` the stages of a message to one node.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import tomli_w

from benchmarks.setting import NO_INSTALLATION, ROOT, append, lines_of_flwr_run, machine, rounds_of
from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground import system

NODES, ROUNDS = (1, 2, 4), 8
IMPORTS = "import lightning, flwr, datasets"


class Cluster:
    """A SuperLink, and SuperNodes that each host their share of the clients, as in ``docs/cluster.md``.

    Args:
        folder: for what all of them write.
        nodes: how many SuperNodes there are.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self._nodes = nodes
        self._logs: list[IO[str]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        port = superlink.free_port()
        address = f"127.0.0.1:{port}"
        link = ["superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        self._start("superlink", *link, "--disable-runtime-dependency-installation")
        for node in range(self._nodes):
            own = f'partition-id={node} num-partitions={self._nodes} state-path="{self.folder / f"disk-{node}"}"'
            ports = ["--port", str(superlink.free_port())]
            self._start(f"node-{node}", "supernode", "--insecure", "--superlink", address, *ports, "--node-config", own)
        while not superlink.listens(port):
            time.sleep(0.1)
        (self.folder / "operator").mkdir()
        connection = {"default": "cluster", "cluster": {"address": address, "insecure": True}}
        (self.folder / "operator" / "config.toml").write_text(tomli_w.dumps({"superlink": connection}))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for home in ("operator", "superlink", *(f"node-{node}" for node in range(self._nodes))):
            superlink.end_all(self.folder / home)
        for log in self._logs:
            log.close()

    def run(self, config: Config) -> Iterator[str]:
        """The lines of a run, which is submitted."""
        (self.folder / "run.toml").write_text(tomli_w.dumps(config.to_run_config()))
        command = [system.program("flwr"), "run", str(ROOT), "cluster", "--stream"]
        command += ["--run-config", str(self.folder / "run.toml")]
        environment = superlink.environment(self.folder / "operator")
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as stream:
            yield from stream.stdout or ()

    def _start(self, name: str, *words: str) -> None:
        self._logs.append((self.folder / f"{name}.log").open("w"))
        subprocess.Popen(
            [system.program("lit-fedbabu"), *words], cwd=self.folder, env=superlink.environment(self.folder / name),
            stdout=self._logs[-1], stderr=self._logs[-1], start_new_session=True,
        )  # fmt: skip


def small(scratch: str, **options: Any) -> Config:
    """A run of 10 of 20 clients a round, which train for a fraction of a second."""
    return Config(
        dataset="digits", num_clients=20, fraction_train=0.5, num_local_epochs=1, num_server_rounds=ROUNDS,
        evaluate_every=ROUNDS, num_finetune_epochs=0, output_dir=scratch, **options,
    )  # fmt: skip


def rays(turns: int) -> int:
    """Measure the engine ``ray``."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster as RayCluster

    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        os.environ["RAY_TMPDIR"] = scratch
        two = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            two.add_node(num_cpus=max(1, system.available_cores() // 2))
        places = {"local": ("local", ""), "ray": ("ray", ""), "ray, two nodes": ("ray", two.address)}
        for turn in range(turns):
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", IMPORTS], check=True)
            alone = time.monotonic() - started
            for name, (engine, address) in places.items():
                config = small(scratch, run_name=f"{name}-{turn}", engine=engine, ray_address=address)
                after = [elapsed for elapsed, _, _ in rounds_of(config, ROUNDS)]
                one = found.setdefault(name, {"imports s": [], "first round after s": [], "round s": []})
                one["imports s"].append(alone)
                one["first round after s"].append(after[0])
                one["round s"].append((after[-1] - after[0]) / (ROUNDS - 1))
                print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
        two.shutdown()
    for name, one in found.items():
        ratios = np.divide(one["first round after s"], one["imports s"])
        more = np.subtract(one["round s"], found["local"]["round s"])
        beyond = f"{np.median(more):.2f} ({more.min():.2f} to {more.max():.2f})"
        print(
            f"{name:<16}first round after {np.median(one['first round after s']):.1f} s, of the imports"
            f" {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f});"
            f" a round {np.median(one['round s']):.2f} s, beyond local {beyond}"
        )
    append("cluster.jsonl", {"machine": machine(small("")), "clients of a round": 10, "engines": found})
    return 0


STAGES = {
    "SuperLink is there": "Using SuperLink",
    "app is built and sent": "Successfully started run",
    "process of the run has imported Flower": "Starting Flower Simulation",
    "packages are installed": "dependencies installed",
    "Ray is there, and our server has begun": "run folder",
    "a worker has imported PyTorch": "training on",
    "round 1": "round 1/",
}
"""What ``flwr run`` prints when a stage is over."""


def stages(turns: int) -> int:
    """Measure the stages of ``flwr run .``."""
    found: dict[str, list[float]] = {}
    for turn in range(turns):
        for name, variables in (("as it is", {}), (f"with {NO_INSTALLATION}=1", {NO_INSTALLATION: "1"})):
            with tempfile.TemporaryDirectory(prefix="flwr-", ignore_cleanup_errors=True) as scratch:
                config = small(scratch, run_name="run")
                words = ["dataset=digits", "num-clients=20", f"output-dir={config.output_dir}", "num-server-rounds=100"]
                started = time.monotonic()
                for line in lines_of_flwr_run(Path(scratch) / "home", words, variables):
                    for title in [title for title, words_of in STAGES.items() if words_of in line]:
                        found.setdefault(f"{name}, {title}", []).append(round(time.monotonic() - started, 1))
                    if STAGES["round 1"] in line:
                        break
            print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
    for title, seconds in found.items():
        print(f"{title:<92}{np.median(seconds):6.1f} s   {min(seconds)} to {max(seconds)}")
    append("cluster.jsonl", {"machine": machine(small("")), "stages of flwr run": found})
    return 0


OF_MESSAGE = {
    "the server has the last answer, makes the mean and sends; the node looks": "Receiving: train",
    "the node has the message as a whole": "Received successfully",
    "the process beside the node has answered": "Sending: train",
    "the answer is with the SuperLink": "Sent successfully",
}
"""Stages of a round with one node, and what the node prints when one is over."""


def message() -> int:
    """Measure the stages of a message to one node."""
    with tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as scratch:
        config = small(scratch, run_name="run")
        with Cluster(Path(scratch) / "cluster", 1) as cluster:
            seen: list[tuple[float, str]] = []
            threading.Thread(target=_follow, args=(cluster.folder / "node-0.log", seen), daemon=True).start()
            print("".join(cluster.run(config)).splitlines()[-1])
    found: dict[str, list[float]] = {title: [] for title in OF_MESSAGE}
    begun = 0.0
    for at, line in seen:
        for title in [title for title, words in OF_MESSAGE.items() if words in line]:
            if title in list(OF_MESSAGE)[:1]:
                begun = begun or at
            if begun:
                found[title].append(round(at - begun, 3))
                begun = at
    for title, seconds in found.items():
        del seconds[:1]  # the first message brings the app, and has PyTorch imported
        print(f"{title:<74}{np.median(seconds):6.2f} s   {min(seconds)} to {max(seconds)}")
    append("cluster.jsonl", {"machine": machine(config), "stages of a message": found})
    return 0


def _follow(log: Path, seen: list[tuple[float, str]]) -> None:
    """Note when the lines of a file come, for as long as the process lives."""
    with log.open() as file:
        while True:
            if line := file.readline():
                seen.append((time.monotonic(), line))
            else:
                time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--ray", action="store_true", help="measure the engine ray instead")
    parser.add_argument("--flwr-run", action="store_true", help="measure the stages of flwr run instead")
    parser.add_argument("--message", action="store_true", help="measure the stages of a message to a node instead")
    parser.add_argument("--turns", type=int, default=3, help="of --ray and --flwr-run")
    arguments = parser.parse_args()
    if arguments.flwr_run:
        return stages(arguments.turns)
    if arguments.message:
        return message()
    if arguments.ray:
        return rays(arguments.turns)
    found: dict[str, dict[str, object]] = {}
    for nodes in NODES:
        with tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as scratch:
            config = small(scratch, run_name="run")
            with Cluster(Path(scratch) / "cluster", nodes) as cluster:
                started, seconds, elapsed, told = time.monotonic(), [], 0.0, []
                for line in cluster.run(config):
                    told.append(line)
                    if round_line := re.search(r"round \d+/\d+ .*?([\d.]+) s ", line):
                        seconds.append(float(round_line[1]))
                        elapsed = elapsed or time.monotonic() - started
            if len(seconds) < ROUNDS:
                raise SystemExit(f"the run over {nodes} nodes failed: {''.join(told[-20:])}")
            found[str(nodes)] = {"first round after s": round(elapsed, 1), "round s": seconds[1:]}
            print(
                f"{nodes} nodes: first round after {elapsed:.1f} s, a round {np.median(seconds[1:]):.1f} s", flush=True
            )
    append("cluster.jsonl", {"machine": machine(config), "clients of a round": 10, "nodes": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
