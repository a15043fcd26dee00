"""What TensorBoard shows of a run; x is the communication round."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_fedbabu.config import Config
from lit_fedbabu.ground.printing import in_line, in_markdown
from lit_fedbabu.learning.evaluation import ACCURACY, STAGES, Score
from lit_fedbabu.records import plots, reliability
from lit_fedbabu.records.loggers import Loggers
from lit_fedbabu.records.results import MEASURES, curve, score_of, spread, table

BAND = "band"
"""The group of the edges mean ± std, which the CUSTOM SCALARS tab draws as a band around the mean; of accuracies within
0 and 1."""


SHOWN = ("algorithm", "dataset", "finetune-part", "learning-rate", "seed")
"""Options that the HPARAMS tab opens with: it shows the first five."""


Features = tuple[Tensor, Sequence[tuple[str, str]]]
"""Of the body, (N, F), and class and client of each."""


class Board:
    """Writes an event file into the run's folder, however many clients there are.

    A resumed run writes a second file. It replaces what the first one has of ``first_round`` and later.

    Args:
        folder: the run's.
        config: the experiment.
        first_round: the round after those that the run has done.
        score: what clients are compared by; its curves are ``accuracy/...`` for images.
        say: prints a line; told of other loggers that fail.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        first_round: int = 1,
        score: Score = ACCURACY,
        say: Callable[[str], None] = print,
    ) -> None:
        self._score = score
        self._loggers = Loggers(config, folder, first_round, say)
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=first_round if resumed else None)
        self._file_writer = cast(Any, self._writer).file_writer
        measures = {f"{score.name}/{name}_mean": 0.0 for name in STAGES}
        experiment, start, self._end = hparams(config.experiment(), measures)  # type: ignore[no-untyped-call]
        _first(SHOWN, experiment.value[0].metadata.plugin_data)
        if resumed:
            return
        options = "\n".join(f"| {key} | {in_markdown(str(value))} |" for key, value in config.experiment().items())
        self._writer.add_text("configuration", f"| option | value |\n|---|---|\n{options}", 0)
        margins = {
            name: ["Margin", [f"{score.name}/{name}_mean", f"{BAND}/{name}_minus_std", f"{BAND}/{name}_plus_std"]]
            for name in STAGES
        }
        self._writer.add_custom_scalars({f"{score.title} over clients, mean ± std": margins})
        self._file_writer.add_summary(experiment)
        self._file_writer.add_summary(start)
        self._writer.flush()

    def round(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a round of training."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, server_round)
        self._writer.flush()
        self._loggers.log(scalars, server_round)

    def scores(self, name: str, server_round: int, values: Sequence[float]) -> None:
        """Scores of all clients: mean, the margin of one std, worst decile, and a histogram."""
        tag, over = f"{self._score.name}/{name}", spread(values, self._score.higher_is_better)
        _add_scores(self._writer, self._score, tag, name, values, server_round)
        self._writer.flush()
        shown = ("mean", "std", "worst_decile")
        self._loggers.log({f"{tag}_{statistic}": over[statistic] for statistic in shown}, server_round)

    def over_time(self, mean: float, server_round: int, seconds: float) -> None:
        """The mean initial score at the simulated time of a round, which is what the curve has for its wall time."""
        self._writer.add_scalar(f"{self._score.name}/initial_mean_over_simulated_time", mean, server_round, seconds)
        self._writer.flush()

    def failure(self, server_round: int, text: str) -> None:
        """A client's failure, as text."""
        self._writer.add_text("failures", in_markdown(text), server_round)
        self._writer.flush()

    def split(self, class_counts: str, clients: Sequence[str] = ()) -> None:
        """The split as a figure, from the content of a ``partition.csv`` and the names of clients that have names."""
        with plots.style():
            self._writer.add_figure("split/training_images", plots.heat_map(class_counts, clients), 0)

    def finish(self, config: Config, outcome: Mapping[str, Any], features: Features | None = None) -> None:
        """Fine-tuning as a figure, the summary as text, features; marks the run as finished and closes the file."""
        with plots.style():
            figure = plots.curve(curve(outcome), config, self._score)
            self._writer.add_figure(f"finetuning/{self._score.name}_over_epochs", figure, outcome["round"])
            _add_reliability(self._writer, outcome, outcome["round"])
        self._writer.add_text("results", f"```\n{table(outcome)}\n```", outcome["round"])
        _add_features(self._writer, features, outcome["round"])
        for kind, _ in MEASURES.values():
            for key in (f"{stage}_{kind}" for stage in STAGES if not kind.endswith("accuracy")):
                if key in outcome["summary"]:
                    self._writer.add_scalar(f"measures/{key}_mean", outcome["summary"][key]["mean"], outcome["round"])
        self._file_writer.add_summary(self._end)
        self._writer.close()
        self._loggers.finish()


def _add_reliability(writer: SummaryWriter, outcome: Mapping[str, Any], step: int) -> None:
    if (figure := reliability.diagram(outcome)) is not None:
        writer.add_figure("calibration/reliability", figure, step)


def _first(names: Sequence[str], experiment: Any) -> None:
    """Let the HPARAMS tab, whose plugin data these are, put options of these names first, as if they alone differed."""
    content = HParamsPluginData.FromString(experiment.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    experiment.content = content.SerializeToString()


def _add_scores(writer: SummaryWriter, score: Score, tag: str, band: str, values: Sequence[float], step: int) -> None:
    """Scores of all clients: mean, the margin of one std, worst decile, and a histogram."""
    over = spread(values, score.higher_is_better)
    writer.add_scalar(f"{tag}_mean", over["mean"], step)
    writer.add_scalar(f"{tag}_worst_decile", over["worst_decile"], step)
    edges = over["mean"] - over["std"], over["mean"] + over["std"]
    low, high = (min(max(edge, 0.0), 1.0) if score.is_accuracy else edge for edge in edges)
    writer.add_scalar(f"{BAND}/{band}_minus_std", low, step)
    writer.add_scalar(f"{BAND}/{band}_plus_std", high, step)
    bins: Any = np.linspace(0, 1, 21) if score.is_accuracy else 20
    writer.add_histogram(f"{tag}_of_clients", np.asarray(values), step, bins=bins)


def _add_features(writer: SummaryWriter, features: Features | None, step: int) -> None:
    """Replace what the PROJECTOR tab shows of this folder."""
    if features is not None:
        folder = Path(writer.log_dir)
        (folder / "projector_config.pbtxt").unlink(missing_ok=True)  # else a second entry of the same name is added
        rows = [[in_line(word) for word in row] for row in features[1]]
        header = ["class", "client"]
        writer.add_embedding(features[0], rows, global_step=step, tag="body_features", metadata_header=header)


def write_finetuning(
    folder: Path,
    outcome: Mapping[str, Any],
    class_names: Sequence[str] = (),
    confusions: Mapping[str, tuple[str, np.ndarray]] = MappingProxyType({}),
    features: Features | None = None,
) -> None:
    """An event file of a fine-tuning, in which x is its epoch.

    Args:
        folder: where its results are.
        outcome: the content of its results.json.
        class_names: of the dataset.
        confusions: for "worst" and "best" client a title, and images (classes, classes) by true and predicted class.
        features: for the PROJECTOR tab; None: there are no classes.
    """
    for old in (*folder.glob("events.out.tfevents.*"), *folder.glob("projector_config.pbtxt")):
        old.unlink()  # of the same fine-tuning, before clients were done again
    writer = SummaryWriter(str(folder))
    score = score_of(outcome)
    tag, key = f"finetuning/{score.name}", f"{score.name}_epoch_"
    mean, minus, plus = f"{tag}_mean", f"{BAND}/finetuning_minus_std", f"{BAND}/finetuning_plus_std"
    writer.add_custom_scalars({"Fine-tuning, mean ± std over clients": {score.name: ["Margin", [mean, minus, plus]]}})
    for epoch in range(len(curve(outcome))):
        values = [value for client in outcome["clients"] if (value := client[f"{key}{epoch}"]) is not None]
        _add_scores(writer, score, tag, "finetuning", values, epoch)
    with plots.style():
        for which, (title, matrix) in confusions.items():
            writer.add_figure(f"confusion/{which}_client", plots.confusion(matrix, class_names, title))
        _add_reliability(writer, outcome, 0)
    _add_features(writer, features, 0)
    writer.add_text("results", f"```\n{table(outcome)}\n```")
    writer.close()
