"""Flower's ServerApp: configuration, nodes, rounds, summary."""

import sys
from collections import Counter
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from lit_fedbabu import card, preflight, runs, training, update
from lit_fedbabu.algorithms import shared_state
from lit_fedbabu.board import Board
from lit_fedbabu.checkpoint import resumable
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.nodes import RunError, find_nodes
from lit_fedbabu.partition import class_counts
from lit_fedbabu.privacy import guarantee
from lit_fedbabu.sampling import participants
from lit_fedbabu.strategy import MESSAGE_TIMEOUT_S, SharedParts

app = ServerApp()


def say(line: str) -> None:
    """Print a line for the person who watches, wherever Flower's log ends up."""
    print(f"{runs.MARK} {line}", flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    try:
        config = Config.from_run_config(context.run_config)
        preflight.check(config, images=not config.on_sites)
        federate(grid, config)
    except (ConfigError, RunError) as error:
        say(f"error: {error}")
        raise error.with_traceback(None) from None  # so that the run has failed; Flower logs it again


def federate(grid: Grid, config: Config) -> Path:
    """Run all rounds that a run still needs and personalize all clients; returns the run's folder."""
    begun = resumable(config) if config.resume else None
    folder = Path(config.resume).resolve() if config.resume else runs.create(config)
    rounds = begun.rounds if begun else []
    say(f"run folder {folder}")
    if any("runtime-envs" in entry for entry in sys.path):
        say("note: Flower installed a throw-away environment for this run; python -m lit_fedbabu.run does not")
    module = update.initial_module(config)
    shared = begun.shared if begun else shared_state(config, module.model.state_dict())
    board = Board(folder, config, len(rounds) + 1)

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        whole = update.received_module(config, {name: torch.tensor(array.numpy()) for name, array in arrays.items()})
        whole.about = update.about(config, round=server_round, rounds=strategy.rounds)
        best = runs.best_round(strategy.rounds)
        if best and best["round"] == server_round:
            training.save_checkpoint(whole, folder / runs.BEST_CHECKPOINT)
        if server_round == config.num_server_rounds:
            # Before the last checkpoint: a run that was stopped here still has its last round to do.
            runs.write_json(folder / runs.RESULTS, runs.results(config.algorithm, strategy.rounds, strategy.clients))
            training.save_checkpoint(whole, folder / "checkpoints" / f"round_{server_round:04d}.ckpt")
        training.save_checkpoint(whole, folder / runs.LAST_CHECKPOINT)

    nodes = find_nodes(grid, say)
    trains_on = "; ".join(sorted({node.trains_on for node in nodes}))
    strategy = SharedParts(config, [node.id for node in nodes], folder, board, keep, say, rounds)
    facts = {"trains-on": trains_on}
    say(f"training on {trains_on}")
    if config.clipping_norm:
        every_round = range(1, config.num_server_rounds + 1)
        drawn = Counter(client for each in every_round for client in participants(config, each))
        facts["privacy"] = guarantee(config, max(drawn.values()))
        say(facts["privacy"])
    if begun is None:
        if not config.on_sites:
            counts = class_counts(config)
            runs.write_whole(folder / runs.PARTITION, counts)
            board.split(counts)
        runs.write_config(folder, runs.read_config(folder), {**runs.read_environment(folder), **facts})
    elif (before := runs.read_environment(folder).get("trains-on", trains_on)) != trains_on:
        say(f"note: the run was begun on {before}; its last bits will differ from those of a run made on one machine")
    strategy.start(
        grid,
        ArrayRecord({name: Array(value.contiguous().numpy()) for name, value in shared.items()}),
        num_rounds=config.num_server_rounds - len(rounds),
        timeout=MESSAGE_TIMEOUT_S,
        train_config=ConfigRecord(),
        evaluate_config=ConfigRecord(),
        evaluate_fn=strategy.end_of_round,
    )
    outcome = runs.read_results(folder)
    board.finish(config, outcome)
    about = update.about(config, round=outcome["round"], rounds=outcome["rounds"])
    card.write(folder, "The body of a federation", about, runs.measures(outcome), str(runs.LAST_CHECKPOINT))
    say(f"results {folder / runs.RESULTS}")
    for line in runs.table(outcome).splitlines():
        say(line)
    return folder
