"""What TensorBoard shows of a run; x is the communication round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_fedbabu import runs
from lit_fedbabu.config import Config

FINAL = {"initial_accuracy": "final/initial_accuracy", "personalized_accuracy": "final/personalized_accuracy"}


class Board:
    """Writes one event file into the run's folder, however many clients there are."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._writer = SummaryWriter(str(folder))
        self._config = config
        options = "\n".join(f"| {key} | {value} |" for key, value in config.to_run_config().items())
        self._writer.add_text("configuration", f"| option | value |\n|---|---|\n{options}", 0)
        margins = {
            name: ["Margin", [f"{name}/accuracy_mean", f"{name}/accuracy_minus_std", f"{name}/accuracy_plus_std"]]
            for name in ("initial", "personalized")
        }
        self._writer.add_custom_scalars({"Accuracy over clients, mean ± std": margins})
        runs_by, measures = hparams(config.to_run_config(), dict.fromkeys(FINAL.values(), 0.0))[:2]
        self._writer.file_writer.add_summary(runs_by)
        self._writer.file_writer.add_summary(measures)

    def round(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a round of training."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, server_round)
        self._writer.flush()

    def accuracies(self, name: str, server_round: int, values: Sequence[float]) -> None:
        """Accuracies (0 to 1) of all clients: mean, the margin of one std, worst decile, and a histogram."""
        over = runs.spread(values)
        scalars = {
            f"{name}/accuracy_mean": over["mean"],
            f"{name}/accuracy_minus_std": over["mean"] - over["std"],
            f"{name}/accuracy_plus_std": over["mean"] + over["std"],
            f"{name}/accuracy_worst_decile": over["worst_decile"],
        }
        self.round(server_round, scalars)
        edges = np.linspace(0, 1, 21)
        self._writer.add_histogram(f"{name}/accuracy_of_clients", np.asarray(values), server_round, bins=edges)

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """The summary as text and as the metrics of the HPARAMS tab; closes the file."""
        for key, tag in FINAL.items():
            self._writer.add_scalar(tag, outcome["summary"][key]["mean"], outcome["round"])
        self._writer.add_text("results", f"```\n{runs.table(outcome)}\n```", outcome["round"])
        self._writer.file_writer.add_summary(hparams(self._config.to_run_config(), {})[2])
        self._writer.close()
