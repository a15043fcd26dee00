"""Loggers beside TensorBoard, as their services read them."""

import csv
import json

import pytest
from lightning.pytorch.loggers import CSVLogger
from mlflow import MlflowClient

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records import loggers
from lit_fedbabu.records.run_folder import RESULTS
from tests.support import NARROW, FakeGrid, files_that_decide, tiny_config


def config_of(**options):
    return tiny_config(model_name=NARROW, **options)


class Breaks(FakeGrid):
    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if len(self.messages) > 3:
            raise KeyboardInterrupt
        return super().send_and_receive(messages, timeout=timeout)


@pytest.mark.slow
def test_csv_and_mlflow_have_every_round_also_after_a_stop(federate, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    plain, _ = federate(config_of(num_server_rounds=4))
    with pytest.raises(KeyboardInterrupt):
        stopped = config_of(num_server_rounds=4, logger="csv, mlflow")
        federate(stopped, Breaks(stopped))
    folder, _ = federate(config_of(num_server_rounds=4, logger="csv,mlflow", resume=str(plain.with_name("run2"))))
    assert files_that_decide(folder) == files_that_decide(plain), "loggers change no number"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name == loggers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    losses = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "train/loss")}
    history = json.loads((folder / RESULTS).read_text())["rounds"]
    assert losses == {each["round"]: each["train_loss"] for each in history}
    assert run.info.status == "FINISHED" and run.data.params["algorithm"] == "fedbabu"
    assert run.data.metrics["accuracy/personalized_mean"] == pytest.approx(
        json.loads((folder / RESULTS).read_text())["summary"]["personalized_accuracy"]["mean"]
    )
    found: dict[int, float] = {}
    for path in sorted(folder.glob("csv/*/metrics.csv")):
        with path.open() as file:
            found |= {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert found == pytest.approx(losses), "a later folder replaces rounds that were not over"


@pytest.mark.slow
def test_wandb_has_a_run_in_offline_mode(federate, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, _ = federate(config_of(logger="wandb"))
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    assert b"train/loss" in content and b"accuracy/personalized_mean" in content
    assert written.stem == f"run-{json.loads((folder / loggers.RUNS).read_text())['wandb']}"


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(federate, monkeypatch, capsys):
    def fails(self, metrics, step=None):
        raise ConnectionError("the service is away")

    monkeypatch.setattr(CSVLogger, "log_metrics", fails)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    folder, _ = federate(config_of(logger="csv,mlflow"))
    told = capsys.readouterr().out
    assert told.count("note: the logger csv failed and is left out from now on: ConnectionError") == 1
    assert told.count("note: the logger mlflow cannot be started and is left out: ") == 1
    assert (folder / RESULTS).exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [("neptune", "must be some of csv, wandb, mlflow"), ("wandb", r"pip install 'lit-fedbabu\[wandb\]'")],
)
def test_loggers_that_are_not_there_are_refused(given, told, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=told):
        loggers.check(config_of(logger=given))
    loggers.check(config_of(logger="csv"))
