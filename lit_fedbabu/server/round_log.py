"""What is kept and shown of each round: the history, TensorBoard's curves and the lines on the console."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from math import isfinite, log
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.files import append_json_line
from lit_fedbabu.learning.evaluation import ACCURACY, STAGES, Score
from lit_fedbabu.records.results import interval_words, spread
from lit_fedbabu.records.run_folder import COSTS, called
from lit_fedbabu.records.tensorboard import Board
from lit_fedbabu.server.pace import SIMULATED, Pace

HINT_AFTER, NEAR_CHANCE = 5, 0.99
"""Rounds, all of them with a loss above this share of that of guessing, after which a hint is given."""


class RoundLog:
    """The history of a run.

    Args:
        config: the experiment.
        folder: the run's.
        board: of the run.
        say: prints a line.
        rounds: the history of a run that is resumed.
        num_classes: of the dataset; 1 where there are none.
        score: what clients are compared by.
        rate_in: the learning rate of a round.
        last_round: the last one; None: that of the options.
        names: of clients by their numbers; empty: they have none.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        board: Board,
        say: Callable[[str], None],
        rounds: Sequence[dict[str, Any]] = (),
        num_classes: int = 1,
        score: Score = ACCURACY,
        rate_in: Callable[[int], float] | None = None,
        last_round: int | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.config, self._names = config, names
        self._last_round = last_round or config.num_server_rounds
        self.score = score
        self._rate_in = rate_in or config.learning_rate_in
        self.chance = log(num_classes)
        self.folder, self.board = folder, board
        self.say = say
        self.rounds = list(rounds)
        """One entry for every round: number, learning rate, training loss (None where no client or sample was drawn),
        with noise the epsilon that was spent, with speeds simulated seconds, who was late, with a buffer the mean
        staleness and, where evaluated, initial accuracy."""
        self._resumed_after = len(self.rounds)
        self._started = self._seconds = 0.0
        self.left: timedelta | None = None
        """The time that training will still take; None before the first round is over."""

    def begin(self) -> None:
        """A round begins."""
        self._started = time.monotonic()

    def trained(
        self,
        server_round: int,
        loss: float,
        bytes_down: int,
        bytes_up: int,
        privacy: Mapping[str, float] = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> None:
        """A round was averaged.

        Args:
            server_round: its number.
            loss: mean training loss in nats; not a number where no client trained, or none on a sample.
            bytes_down: of shared weights from the server to nodes, without framing.
            bytes_up: of shared weights from nodes to the server, without framing.
            privacy: with noise ``epsilon``, spent by the end of the round, and what is adapted.
            pace: who was late, and simulated seconds.
        """
        seconds = time.monotonic() - self._started
        self._seconds += seconds
        mean_seconds = self._seconds / (server_round - self._resumed_after)
        self.left = timedelta(seconds=round(mean_seconds * (self._last_round - server_round)))
        rate = self._rate_in(server_round)
        known = loss if isfinite(loss) else None
        timed = pace.history(self.rounds) if pace else {}
        self.rounds.append({"round": server_round, "learning_rate": rate, "train_loss": known, **privacy, **timed})
        cost = {"round": server_round, "seconds": seconds, "bytes_down": bytes_down, "bytes_up": bytes_up}
        if pace and SIMULATED in timed:
            cost[SIMULATED] = pace.round_s
        append_json_line(self.folder / COSTS, cost)
        self.board.round(
            server_round,
            {
                **({} if known is None else {"train/loss": loss}),
                **{f"privacy/{key}": value for key, value in privacy.items()},
                "train/learning_rate": rate,
                "communication/bytes_down": bytes_down,
                "communication/bytes_up": bytes_up,
                "time/seconds_per_round": seconds,
                **({"time/simulated_seconds": timed[SIMULATED]} if SIMULATED in timed else {}),
                **({"train/late_clients": len(timed["late"])} if "late" in timed else {}),
                **({"train/staleness": timed["staleness"]} if "staleness" in timed else {}),
            },
        )
        self._hint_at_chance(server_round)
        spent = "".join(f"  {key.replace('_', ' ')} {value:.3g}" for key, value in privacy.items())
        spent += f"  {timed[SIMULATED]:.3g} simulated s" if SIMULATED in timed else ""
        spent += f"  staleness {timed['staleness']:.3g}" if "staleness" in timed else ""
        drawn = "sample" if self.config.protection == "sample" else "client"
        what = f"no {drawn} was drawn" if known is None else f"training loss {loss:.4f}"
        self.say(
            f"round {server_round}/{self.config.num_server_rounds}  {what}{spent}"
            f"  learning rate {f'{rate:.3g}' if rate else 'of the module'}  {seconds:.1f} s"
            f"  {self.left} of training left"
        )

    def _hint_at_chance(self, server_round: int) -> None:
        losses = [each["train_loss"] for each in self.rounds if each["train_loss"] is not None]
        chance = [loss > NEAR_CHANCE * self.chance for loss in losses if self.chance]
        if sum(chance) == len(chance) == HINT_AFTER:
            self.say(
                f"note: after {server_round} rounds the training loss is that of guessing, ln(classes) ="
                f" {self.chance:.2f}; another learning-rate or more epochs may help"
            )

    def headline(self, what: str) -> str:
        """What is done now, with the newest loss and accuracy."""
        words = [what]
        if losses := [each["train_loss"] for each in self.rounds if each["train_loss"] is not None]:
            words.append(f"loss {losses[-1]:.4f}")
        key = f"initial_{self.score.name}"
        if measured := [each[key]["mean"] for each in self.rounds if key in each]:
            words.append(f"initial {self.score.name} {self.score.shown(measured[-1])}{self.score.unit}")
        return "  ".join(words)

    def evaluated(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Clients were evaluated; rows are their entries in results.json.

        The history keeps a mean of all that were asked alone, for those of fewer cannot be compared. Sites may be away.
        """
        new = [row for row in rows if row["client"] >= self.config.num_federated]
        for stage in STAGES if new else ():
            values = [value for row in new if isfinite(value := row[f"{stage}_{self.score.name}"])]
            if values:
                self.board.scores(f"{stage}_of_new_clients", server_round, values)
                over = spread(values, self.score.higher_is_better)
                mean, std = (self.score.shown(over[statistic]) for statistic in ("mean", "std"))
                said = f"{mean} ± {std}{self.score.unit} over {len(values)} of {len(new)} new clients"
                self.say(f"round {server_round}  {stage} {self.score.name} {said}")
        rows = [row for row in rows if row["client"] < self.config.num_federated]
        everyone, asked = self.config.num_federated, len(self.config.evaluated)
        for stage in STAGES:
            if (key := f"{stage}_{self.score.name}") not in rows[0]:
                continue
            scores = {row["client"]: row[key] for row in rows}
            values = [value for value in scores.values() if value is not None and isfinite(value)]
            if diverged := [client for client, value in scores.items() if value is None or not isfinite(value)]:
                what = f"{stage} {self.score.name} of clients {called(diverged, self._names)}"
                self.say(f"round {server_round}  {what} is not finite and is left out")
            if not values:
                what = f"{stage} {self.score.name}"
                raise RunError(f"round {server_round}: no client has a finite {what}; a lower learning-rate may help")
            over = spread(values, self.score.higher_is_better, everyone if asked < everyone else 0)
            self.board.scores(stage, server_round, values)
            if stage == STAGES[0] and SIMULATED in self.rounds[-1]:
                self.board.over_time(over["mean"], server_round, self.rounds[-1][SIMULATED])
            mean, std = (self.score.shown(over[statistic]) for statistic in ("mean", "std"))
            left_out = stage == STAGES[0] and not self.config.on_sites and len(values) < asked
            self.say(
                f"round {server_round}  {stage} {self.score.name} {mean} ± {std}{self.score.unit}"
                f" over {len(values)}{'' if len(values) == everyone else f' of {everyone}'} clients"
                f"{interval_words(over, self.score)}"
                f"{'; the history leaves it out, for others were asked too' if left_out else ''}"
            )
            if stage == STAGES[0] and not left_out:
                self.rounds[-1][key] = over
