"""``make bench``: a round beside a bare loop and beside what most published code does, as ratios inside one run."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.loops import Common, Tuned
from benchmarks.setting import append, machine, noise, rounds_of
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.config import Config
from lit_fedbabu.ground import system
from lit_fedbabu.learning.precision import resolve_precision
from lit_fedbabu.training.experiment import Experiment

CLIENTS = 10
"""Of a round; each has 500 training and 100 test images, as in the reference experiment."""
ALONE = f"round of {CLIENTS} clients, ours"
"""What a round of an engine is compared with."""
WORKERS = {"local": "lit_fedbabu.workers.warm", "flower": "ClientAppActor"}
"""What the command lines of an engine's workers have in them."""
ROUNDS, ALL_CLIENTS, EVALUATIONS = 80, 100, 8
"""Of the reference experiment, for the estimate of a whole run."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="how often everything is measured, in turns")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "32-true", "bf16-mixed"), help="of all but the common loop"
    )
    parser.add_argument("--one-core", action="store_true", help="leave out all cores and the engines")
    arguments = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:  # read when a process starts: as lit_fedbabu.run sets it for its workers
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": system.MALLOC})
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        config = Config(
            dataset=str(noise(Path(scratch) / "noise", 500 * CLIENTS, 100 * CLIENTS)),
            num_clients=CLIENTS,
            fraction_train=1.0,
            precision=resolve_precision(arguments.precision),
            output_dir=scratch,
        )
        measured = {
            "machine": machine(config),
            "config": config.experiment() | {"dataset": "noise of CIFAR-10's shape"},
        }
        print(json.dumps(measured["machine"]), flush=True)
        measured |= {"one core": _in_turns(_one_core(config), arguments.repeats), "all cores": {}, "engines": {}}
        if not arguments.one_core:
            work, turns = _all_cores(config), max(2, arguments.repeats // 2)
            measured["all cores"] = every = _in_turns(work, turns)
            measured["engines"] = {engine: _through(engine, config) for engine in WORKERS}
            every[ALONE] += _in_turns({ALONE: work[ALONE]}, turns)[ALONE]  # on both sides of them: drift cancels
    measured["ratios"] = ratios(measured)
    for title, times in (*measured["one core"].items(), *measured["all cores"].items()):
        print(f"{title:<52}{np.median(times):8.3f} s   {min(times):.3f} to {max(times):.3f}")
    for title, (middle, low, high) in measured["ratios"].items():
        print(f"{title:<52}{middle:8.2f}     {low:.2f} to {high:.2f}")
    for engine, found in measured["engines"].items():
        for key, value in found.items():
            print(f"{f'{engine}, {key}':<52}{value}")
    append("bench.jsonl", measured)
    return 0


def ratios(measured: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Median, least and greatest of every ratio; those of times that were taken in turns are turn by turn."""
    one, every = measured["one core"], measured["all cores"]
    cores, engines = measured["machine"]["cores"], measured["engines"]

    def of(times: list[float], others: list[float]) -> tuple[float, float, float]:
        found = np.divide(times, others)
        return tuple(round(float(value), 3) for value in (np.median(found), found.min(), found.max()))

    found = {
        "round, ours / floor": of(one["round, ours"], one["round, floor"]),
        "round, ours / floor with the biases": of(one["round, ours"], one["round, floor with the biases"]),
        "round, common / ours": of(one["round, common"], one["round, ours"]),
        "evaluation / round, both of a client, ours": of(one["evaluation, ours"], one["round, ours"]),
        "evaluation, common / ours": of(one["evaluation, common"], one["evaluation, ours"]),
        "fine-tuning, common / ours": of(one["fine-tuning, common"], one["fine-tuning, ours"]),
    }
    for who in ("floor", "ours"):
        if f"round, {who} in float32" in one:
            found[f"round, {who} in float32 / in bf16"] = of(one[f"round, {who} in float32"], one[f"round, {who}"])
    if not engines:
        return found
    side_by_side = np.median(every[ALONE])
    for engine, through in engines.items():
        rounds = through["round s"]
        found[f"round by the engine {engine} / by workers alone"] = of(rounds, [side_by_side] * len(rounds))
    theirs = ROUNDS * (
        np.median(every["round of 10 clients, common, one process"])
        + ALL_CLIENTS / CLIENTS * np.median(every["evaluation of 10 clients, common, one process"])
    ) + ALL_CLIENTS / CLIENTS * np.median(every["fine-tuning of 10 clients, common, one process"])
    per_client = EVALUATIONS * np.median(one["evaluation, ours"]) + np.median(one["fine-tuning, ours"])
    local = engines["local"]
    ours = local["start-up s"] + ROUNDS * np.median(local["round s"]) + ALL_CLIENTS / cores * per_client
    found["whole reference run, common / ours (estimate)"] = of([theirs], [ours])
    return found


def _one_core(config: Config) -> dict[str, Callable[[], Any]]:
    """What one process does with one client, on one core."""
    experiment = Experiment(config)
    source, parts = experiment.task.source, experiment.task.partition
    train = source.train.images[parts.train[0]], source.train.labels[parts.train[0]]
    test = source.test.images[parts.test[0]], source.test.labels[parts.test[0]]
    client, order, received = _client(experiment, 0)
    common = Common(config, train, test)
    with_threads = _threads(1)
    in_bf16 = config.precision == "bf16-mixed"
    work = {
        "round, floor": Tuned(config, *train, bf16=in_bf16).train,
        "round, floor with the biases": Tuned(config, *train, bf16=in_bf16, bias=True).train,
        "round, ours": lambda: client.fit(received, order),
        "round, common": with_threads(common.train),
        "evaluation, ours": lambda: client.evaluate(received, {**order, "personalize": False}),
        "evaluation, common": with_threads(common.evaluate),
        "fine-tuning, ours": lambda: client.evaluate(received, {**order, "personalize": True}),
        "fine-tuning, common": with_threads(common.personalize),
    }
    if in_bf16:
        in_float32, *_ = _client(Experiment(dataclasses.replace(config, precision="32-true")), 0)
        work["round, floor in float32"] = Tuned(config, *train).train
        work["round, ours in float32"] = lambda: in_float32.fit(received, order)
    return work


def _all_cores(config: Config) -> dict[str, Callable[[], Any]]:
    """A round of all clients: ours in as many processes as there are cores, the common one in one process."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(system.available_cores(), context, initializer=_start_worker, initargs=(config,))
    list(pool.map(_fit, range(CLIENTS)))  # imports, and every process has seen the data
    task = Experiment(config).task
    source, parts = task.source, task.partition
    commons = [
        Common(
            config,
            (source.train.images[train], source.train.labels[train]),
            (source.test.images[test], source.test.labels[test]),
        )
        for train, test in zip(parts.train, parts.test, strict=True)
    ]
    with_threads = _threads(system.available_cores())
    common = {
        f"{title} of {CLIENTS} clients, common, one process": with_threads(
            lambda what=what: [getattr(each, what)() for each in commons]
        )
        for title, what in (("round", "train"), ("evaluation", "evaluate"), ("fine-tuning", "personalize"))
    }
    ours = {ALONE: lambda: list(pool.map(_fit, range(CLIENTS)))}
    return ours | common


def _through(engine: str, config: Config, rounds: int = 4) -> dict[str, Any]:
    """Seconds per round through ``lit_fedbabu.run``, seconds before the first, worker memory, and bytes."""
    told = {**config.to_run_config(), "num-server-rounds": rounds, "evaluate-every": rounds, "num-finetune-epochs": 0}
    config = Config.from_run_config({**told, "run-name": engine, "engine": engine})
    with _peak_memory(WORKERS[engine]) as peak:
        elapsed, seconds, _ = zip(*rounds_of(config, rounds), strict=True)
    events = EventAccumulator(str(Path(config.output_dir) / engine)).Reload()
    moved = {way: int(events.Scalars(f"communication/bytes_{way}")[-1].value) for way in ("up", "down")}
    return {
        "start-up s": round(elapsed[0] - seconds[0], 1),
        "round s": seconds[1:],  # Ray's workers import PyTorch and Lightning in the first
        "worker peak MiB": {kind: round(value / 2**20) for kind, value in peak.items()},
        **{f"bytes {way}": count for way, count in moved.items()},
    }


def _client(experiment: Experiment, client: int) -> tuple[FedBABUClient, dict[str, Any], list[np.ndarray]]:
    order = {"server-round": 1, "learning-rate": experiment.config.learning_rate}
    participant = FedBABUClient(experiment, client, Path(experiment.config.output_dir))
    return participant, order, [value.numpy() for value in experiment.initial_shared().values()]


_of_worker: list[Experiment] = []
"""In a worker process: the experiment whose clients it trains."""


def _start_worker(config: Config) -> None:
    _of_worker.append(Experiment(config))


def _fit(client: int) -> None:
    participant, order, received = _client(_of_worker[0], client)
    participant.fit(received, order)


def _in_turns(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of everything, measured in turns after one turn to warm up, so that drift cancels in the ratios."""
    times: dict[str, list[float]] = {title: [] for title in work}
    for turn in range(-1, repeats):
        for title, do in work.items():
            started = time.perf_counter()
            do()
            if turn >= 0:
                times[title].append(time.perf_counter() - started)
        print(f"turn {turn + 1} of {repeats}", file=sys.stderr, flush=True)
    return times


def _threads(count: int) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def wrap(do: Callable[[], Any]) -> Callable[[], Any]:
        def done() -> None:
            torch.set_num_threads(count)
            do()

        return done

    return wrap


@contextmanager
def _peak_memory(name: str) -> Iterator[dict[str, int]]:
    """The greatest resident memory in bytes of any process of that name, and what of it no other process shares.

    The greatest is the kernel's own record. What is shared, which is the libraries, is looked at every five seconds:
    a look holds the process up, so there are few.
    """
    peak, over = {"resident": 0, "unique": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(5):
            for process in psutil.process_iter(["cmdline"]):
                try:
                    if name in " ".join(process.info["cmdline"] or []):
                        memory = process.memory_full_info()
                        record = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                        resident = 1024 * int(record[1]) if record else 0  # none of a process on its end
                        peak["resident"] = max(peak["resident"], resident)
                        peak["unique"] = max(peak["unique"], resident - (memory.rss - memory.uss))
                except (psutil.Error, OSError):
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main())
