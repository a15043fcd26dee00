"""What TensorBoard shows of a run; x is the communication round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_fedbabu import runs
from lit_fedbabu.config import Config

ACCURACIES = ("initial", "personalized")
BAND = "band"
"""The group of the edges mean ± std, which the CUSTOM SCALARS tab draws as a band around the mean."""


class Board:
    """Writes an event file into the run's folder, however many clients there are.

    A resumed run writes a second file, which makes void what the first one has of ``first_round`` and later.
    """

    def __init__(self, folder: Path, config: Config, first_round: int = 1) -> None:
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=first_round if resumed else None)
        measures = {f"accuracy/{name}_mean": 0.0 for name in ACCURACIES}
        experiment, start, self._end = hparams(config.experiment(), measures)
        if resumed:
            return
        options = "\n".join(f"| {key} | {value} |" for key, value in config.experiment().items())
        self._writer.add_text("configuration", f"| option | value |\n|---|---|\n{options}", 0)
        margins = {
            name: ["Margin", [f"accuracy/{name}_mean", f"{BAND}/{name}_minus_std", f"{BAND}/{name}_plus_std"]]
            for name in ACCURACIES
        }
        self._writer.add_custom_scalars({"Accuracy over clients, mean ± std": margins})
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        self._writer.flush()

    def round(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a round of training."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, server_round)
        self._writer.flush()

    def accuracies(self, name: str, server_round: int, values: Sequence[float]) -> None:
        """Accuracies (0 to 1) of all clients: mean, the margin of one std, worst decile, and a histogram."""
        over = runs.spread(values)
        scalars = {
            f"accuracy/{name}_mean": over["mean"],
            f"accuracy/{name}_worst_decile": over["worst_decile"],
            f"{BAND}/{name}_minus_std": over["mean"] - over["std"],
            f"{BAND}/{name}_plus_std": over["mean"] + over["std"],
        }
        self.round(server_round, scalars)
        edges = np.linspace(0, 1, 21)
        self._writer.add_histogram(f"accuracy/{name}_of_clients", np.asarray(values), server_round, bins=edges)

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """The summary as text; marks the run as finished for the HPARAMS tab and closes the file."""
        self._writer.add_text("results", f"```\n{runs.table(outcome)}\n```", outcome["round"])
        self._writer.file_writer.add_summary(self._end)
        self._writer.close()
