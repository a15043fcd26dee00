"""A whole federation on the server: nodes, rounds, checkpoints, results."""

import dataclasses
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from lit_fedbabu.aggregation import table as aggregation
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.files import alone_in, write_json, write_whole
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.ground.stops import settle
from lit_fedbabu.ground.system import LOG_MARK, PROGRESS
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.base import is_same
from lit_fedbabu.learning.parts import parts_of
from lit_fedbabu.protocol.wire import clients_of
from lit_fedbabu.records import incomplete, loggers, model_card, results, run_folder, seal
from lit_fedbabu.records.features import features_of
from lit_fedbabu.records.federation import ON_NODES, Federation, resumable
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.tensorboard import Board, Features
from lit_fedbabu.server.nodes import MOST_NODES, Node, find_nodes, names_of
from lit_fedbabu.server.patience import patient
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.server.strategy import SharedParts
from lit_fedbabu.tasks.protocol import Classifies
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import OF_SUMS, TRUST

LARGE = 2**24
"""Bytes of shared weights that it is worth to look for forgotten copies of."""


def serve(grid: Grid, run_config: dict[str, bool | float | int | str]) -> None:
    """Check the configuration and run the federation; an error is one line, and is raised for Flower.

    Raises:
        InputError: the configuration cannot be run.
        RunError: the run cannot go on.
    """
    file = os.environ.get(PROGRESS)
    progress = Lines(LOG_MARK, Path(file) if file else None)  # so that lines are found in Flower's log
    if isinstance(grid, Grid):
        _count_answers(grid, progress)
    try:
        experiment = Experiment(Config.from_run_config({**run_config, "engine": "flower"}))
        loggers.check(experiment.config)
        experiment.check(images=not experiment.config.on_sites)
        aggregation.check(experiment)
        federate(grid, experiment, progress)
    except (InputError, RunError) as error:
        progress.say(f"error: {error}")
        logging.getLogger("flwr").addFilter(_without_traceback)
        raise error.with_traceback(None) from None  # so that the run has failed; Flower logs it again


def _count_answers(grid: Grid, progress: Lines) -> None:
    """Let a grid of Flower's tell of clients as it pulls their answers, which it hands over when all are there."""
    push, pull = grid.push_messages, grid.pull_messages
    asked: dict[str, int] = {}

    def pushed(messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        names = list(push(messages))
        for name, message in zip(names, messages, strict=False):
            if message.metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE):
                asked[name] = len(clients_of(message))
        return names

    def pulled(names: Iterable[str]) -> list[Message]:
        replies = list(pull(names))
        progress.advance(sum(asked.pop(reply.metadata.reply_to_message_id, 0) for reply in replies))
        return replies

    grid.push_messages, grid.pull_messages = pushed, pulled  # type: ignore[method-assign, assignment]


def _without_traceback(record: logging.LogRecord) -> bool:
    """Let Flower log an error that was said in a line without the lines of code that it came through."""
    if record.exc_info and isinstance(record.exc_info[1], InputError | RunError):
        record.exc_info = None
    return True


NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1, set before its SuperLink starts,"


def federate(grid: Grid, experiment: Experiment, progress: Lines | None = None) -> Path:
    """Run all rounds that a run still needs and personalize all clients; returns the run's folder.

    Args:
        grid: carries messages to the nodes.
        experiment: that was checked.
        progress: shows a person what is done; None: prints lines.

    Raises:
        InputError: another process does this run.
        RunError: the run cannot go on.
    """
    config = experiment.config
    folder = Path(config.resume).resolve() if config.resume else run_folder.create(config)
    run_folder.read_config(folder)
    with alone_in(folder):
        _rounds(grid, experiment, folder, progress or Lines())
    return folder


def _rounds(grid: Grid, experiment: Experiment, folder: Path, progress: Lines) -> None:
    config, say = experiment.config, progress.say
    begun = _begun(experiment) if config.resume else None
    rounds = begun.rounds if begun else []
    ledger = None if config.on_sites else _ledger(config, folder, len(rounds), _sizes(experiment, []))
    say(f"run folder {folder}")
    progress.wait("starting workers")
    if begun is not None and not seal.is_sealed(folder):
        say("note: this run has no seal.jsonl, as those of version 0.1; whether its files were changed is not checked")
    if not experiment.rate_in(1):
        none = "note: the task's module has no hyper-parameter learning_rate or lr that is a number"
        say(f"{none}; its own rate stands in every round")
    for note in [*config.unread, *(() if config.on_sites else experiment.task.notes)]:
        say(f"note: {note}")
    shared = begun.shared if begun else experiment.initial_shared()
    if experiment.starting_note:
        say(f"note: {experiment.starting_note}")
    if any("runtime-envs" in entry for entry in sys.path):
        say(f"note: Flower installed a throw-away environment for this run; {NO_INSTALLATION} saves that time")
    board = Board(folder, config, len(rounds) + 1, experiment.task.score, say)
    grid = patient(grid, config, say)
    nodes = _nodes(grid, experiment, say)
    sizes = _sizes(experiment, nodes)
    ledger = ledger or _ledger(config, folder, len(rounds), sizes)

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        _save_round(experiment, folder, strategy, board, server_round, arrays)

    own_disks = nodes[0].said.own_disk
    memory = run_folder.memory_of(folder, own_disks)
    names = names_of(nodes) if config.on_sites else experiment.task.client_names
    run_folder.write_names(folder, names)
    strategy = SharedParts(
        experiment, [node.id for node in nodes], folder, memory, board, keep, progress, rounds, sizes, ledger, names
    )
    trains_on = "; ".join(sorted({node.said.trains_on for node in nodes}))
    say(f"training on {trains_on}")
    privacy = ledger.facts(len(rounds))
    _say_privacy(ledger, privacy, say)
    if config.secure_aggregation:
        say(f"{OF_SUMS}; of {config.clients_per_round} clients it takes {config.unmasking_threshold}")
    precision = ", ".join(sorted({node.said.precision for node in nodes}))
    facts = {"trains-on": trains_on, "precision": precision, **({"memory": ON_NODES} if own_disks else {}), **privacy}
    if begun is None:
        if not config.on_sites:
            counts = experiment.task.class_counts()
            write_whole(folder / run_folder.PARTITION, counts)
            board.split(counts, names)
        environment = run_folder.read_environment(folder)
        run_folder.write_config(folder, run_folder.read_config(folder), {**environment, **facts})
    elif config.num_server_rounds != run_folder.read_config(folder).num_server_rounds:
        say(f"note: the run gets {config.num_server_rounds} rounds, of which {len(rounds)} are done")
    if begun is not None and (before := run_folder.read_environment(folder).get("trains-on", trains_on)) != trains_on:
        say(f"note: the run was begun on {before}; its last bits will differ from those of a run made on one machine")
    if config.resume:
        _more_rounds(folder, config, privacy)
    arrays = ArrayRecord({name: Array(value.contiguous().numpy()) for name, value in shared.items()})
    _forget_trials(shared)
    del shared, begun
    with _followed(strategy):
        _all_rounds(strategy, grid, arrays, ledger.last_round - len(rounds))
    _write_spent(ledger, folder, say)
    outcome = results.read_results(folder)
    say(f"results {folder / run_folder.RESULTS}")
    for line in results.table(outcome).splitlines():
        say(line)


def _forget_trials(shared: Mapping[str, torch.Tensor]) -> None:
    """Free the modules that were tried before the run, which are in cycles, where they are large."""
    if sum(value.nbytes for value in shared.values()) > LARGE:
        gc.collect()


@contextmanager
def _followed(strategy: SharedParts) -> Iterator[None]:
    """Let the run's page say how it ended."""
    rounds = strategy.log.rounds
    try:
        yield
    except BaseException as error:
        why = str(error) if isinstance(error, InputError | RunError) else type(error).__name__
        strategy.page.over(rounds, f"stopped after round {len(rounds)}: {why}")
        raise
    strategy.page.over(rounds)


def _all_rounds(strategy: SharedParts, grid: Grid, arrays: ArrayRecord, count: int) -> None:
    """Do so many rounds more; without any, as where the budget was spent when the run was stopped, evaluate alone."""
    if not count:
        strategy.finish(grid, arrays)
        return
    strategy.start(
        grid,
        arrays,
        num_rounds=count,
        timeout=strategy.config.timeout_s,
        train_config=ConfigRecord(),
        evaluate_config=ConfigRecord(),
        evaluate_fn=strategy.end_of_round,
    )


def _ledger(config: Config, folder: Path, done: int, sizes: Mapping[int, tuple[int, int]]) -> Ledger:
    """The ledger of a run; raises InputError where the run is over because its budget of privacy is spent."""
    ledger = Ledger(config, folder, done, sizes)
    if done and ledger.last_round == done and run_folder.is_finished(folder):
        remedy = f"is spent after round {done}, and the run is over; see {folder / run_folder.RESULTS}"
        raise InputError("max-epsilon", config.max_epsilon, remedy)
    return ledger


def _say_privacy(ledger: Ledger, facts: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Say who is protected from whom, how much, and which round the budget ends before."""
    for line in (f"privacy {TRUST[ledger.config.protection]}", facts.get("privacy"), ledger.stop):
        if line:
            say(line)


def _nodes(grid: Grid, experiment: Experiment, say: Callable[[str], None]) -> list[Node]:
    """The nodes; raises RunError where one of them has another file of initial weights, or another base."""
    config, base, digest = experiment.config, experiment.base_facts, experiment.config.initial_weights_digest
    nodes = find_nodes(grid, say, most=config.num_clients if config.on_sites else MOST_NODES)
    if others := [place for place, node in enumerate(nodes) if node.said.initial_weights != digest]:
        what = f"initial-weights = {config.initial_weights} is another file on nodes {', '.join(map(str, others))}"
        raise RunError(f"{what}; copy the server's to them, under the same path")
    if others := [place for place, node in enumerate(nodes) if not is_same(node.said.base, base.get("digest", ""))]:
        what = f"nodes {', '.join(map(str, others))} have another base, the weights that the model's maker froze"
        raise RunError(f"{what}; give them the server's code, and the files that it reads weights from")
    if base:
        say(f"{base['weights']:,} frozen weights ({base['bytes'] / 1e6:.1f} MB) are on each node and do not travel")
    if config.on_sites:
        names = names_of(nodes) or range(len(nodes))
        samples = (f"{in_line(str(name))} {node.said.num_train}" for name, node in zip(names, nodes, strict=True))
        say(f"training samples of the sites: {', '.join(samples)}")
    return nodes


def _write_spent(ledger: Ledger, folder: Path, say: Callable[[str], None]) -> None:
    """Write down what was spent of the privacy, where it is more than was foreseen; say what ended the run."""
    kept, spent = run_folder.read_environment(folder), ledger.facts(ledger.last_round)
    if ledger.stop:
        say(ledger.stop)
    if spent.get("privacy") != kept.get("privacy"):
        say(f"clients stood in for others or repeated a round: {spent['privacy']}")
        run_folder.write_config(folder, run_folder.read_config(folder), {**kept, **spent})


def _sizes(experiment: Experiment, nodes: list[Node]) -> Mapping[int, tuple[int, int]]:
    """Training and test samples of each client: as they were dealt, or as each site said before the first round."""
    if experiment.config.on_sites:
        return {client: node.said.sizes for client, node in enumerate(nodes)}
    sizes = experiment.task.sizes
    if not experiment.algorithm.pooled:
        return sizes
    together = sum(sizes[client][0] for client in range(experiment.config.num_federated))
    return {**sizes, 0: (together, sizes[0][1])}


def _begun(experiment: Experiment) -> Federation | None:
    """What the run that is resumed has done, if its model and its data are still as they were."""
    config = experiment.config
    if begun := resumable(config):
        begun.refuse_other_start(experiment)
        if not config.on_sites:
            _refuse_other_split(experiment, Path(config.resume).resolve())
    return begun


def _refuse_other_split(experiment: Experiment, folder: Path) -> None:
    """Raise InputError where a run that is resumed would get other images than it was begun with."""
    path = folder / run_folder.PARTITION
    if not path.is_file():
        raise InputError("run", str(folder), f"{path.name} is missing, which the run goes on from; put it back")
    if path.read_text() != experiment.task.class_counts():
        remedy = (
            f"is dealt otherwise than the run has written down in {path}; give it the dataset that it was begun with"
        )
        raise InputError("dataset", experiment.config.dataset, remedy)


def _more_rounds(folder: Path, config: Config, facts: Mapping[str, str]) -> None:
    """Write down that a run gets other rounds than it was begun with; results that it had are kept beside."""
    begun = run_folder.read_config(folder)
    if begun.num_server_rounds != config.num_server_rounds:
        whole = dataclasses.replace(begun, num_server_rounds=config.num_server_rounds)
        run_folder.write_config(folder, whole, {**run_folder.read_environment(folder), **facts})
    path = folder / run_folder.RESULTS
    if path.exists() and (done := results.read_results(folder)["round"]) < config.num_server_rounds:
        path.rename(path.with_stem(f"{path.stem}_round_{done:04d}"))


def _save_round(
    experiment: Experiment, folder: Path, strategy: SharedParts, board: Board, server_round: int, arrays: ArrayRecord
) -> None:
    """Write the checkpoints of a round and, after the last one, the results."""
    rounds = strategy.log.rounds
    received = {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
    module = experiment.received_module(received)
    summed = {"secure_aggregation": OF_SUMS} if experiment.config.secure_aggregation else {}
    privacy = {**strategy.ledger.results(server_round), **summed}
    module.provenance = experiment.provenance("federation", round=server_round, rounds=rounds, privacy=privacy)
    best = results.best_round(rounds, experiment.task.score)

    def save(name: Path) -> None:
        checkpoint.save(module, folder / name, lambda scratch: seal.add(folder, server_round, folder / name, scratch))

    seal.add_memories(folder, server_round, strategy.exchange.asked)
    if best and best["round"] == server_round:
        save(run_folder.BEST_CHECKPOINT)
    if server_round == strategy.ledger.last_round:
        # Before last.ckpt: a run that is stopped here still has to do its last round.
        clients = results.named(strategy.clients, strategy.names)
        spent = strategy.ledger.epsilons(server_round)
        clients = [{**row, "epsilon": spent[row["client"]]} if spent else row for row in clients]
        outcome = results.results(
            experiment.config, rounds, clients, experiment.task.score, missing=strategy.missing, privacy=privacy
        )
        write_json(folder / run_folder.RESULTS, outcome)
        (folder / incomplete.INCOMPLETE).unlink(missing_ok=True)
        board.finish(experiment.config, outcome, _features(experiment, received))
        last = str(run_folder.LAST_CHECKPOINT)
        model_card.write(folder, "The body of a federation", module.provenance, outcome, last)
        checkpoint.save(module, folder / "checkpoints" / f"round_{server_round:04d}.ckpt")
        settle()
    save(run_folder.LAST_CHECKPOINT)


def _features(experiment: Experiment, received: Mapping[str, torch.Tensor]) -> Features | None:
    """What a shared body makes of clients' test images, where the server has them and the body is whole."""
    config, algorithm = experiment.config, experiment.algorithm
    nowhere = config.on_sites or algorithm.private or "body" not in parts_of(algorithm.shared)
    if nowhere or not isinstance(experiment.task, Classifies):
        return None
    clients = config.evaluated_last
    return features_of(experiment, ((client, experiment.received_module(received)) for client in clients))
