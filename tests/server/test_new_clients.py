"""Clients that have no part in the federation."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.finetune import main as finetune_main
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import without
from lit_fedbabu.learning.state import state_of
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, RESULTS
from lit_fedbabu.report import main as report_main
from lit_fedbabu.training.client_update import own_module
from tests.support import FakeGrid, curves, finetuned, tiny, tiny_config


@pytest.mark.parametrize(
    "algorithm",
    [
        "fedbabu",
        "fedper",
        pytest.param("ditto", marks=pytest.mark.slow),
        pytest.param("centralized", marks=pytest.mark.slow),
    ],
)
def test_new_clients_have_no_part_and_are_reported_apart(algorithm, federate, one_core, capsys):
    config = tiny_config(algorithm=algorithm, num_new_clients=2, fraction_train=1.0)
    folder, grid = federate(config)
    asked: dict[str, set[int]] = {"train": set(), "evaluate": set()}
    for message in grid.messages:
        kind = message.metadata.message_type
        if kind in asked:
            asked[kind] |= set(message.content["config"]["clients"])
    assert asked["train"] == ({0} if algorithm == "centralized" else {0, 1, 2, 3})
    assert asked["evaluate"] == set(range(6))
    assert not [path for path in folder.glob("memory/*") if path.name in ("client_0004", "client_0005")]
    outcome = json.loads((folder / RESULTS).read_text())
    assert [row["client"] for row in outcome["clients"]] == [0, 1, 2, 3]
    new = outcome["new_clients"]
    assert [row["client"] for row in new["clients"]] == [4, 5]
    mean = sum(row["personalized_accuracy"] for row in new["clients"]) / 2
    assert new["summary"]["personalized_accuracy"]["mean"] == pytest.approx(mean)
    assert "accuracy/personalized_of_new_clients_mean" in curves(folder)
    assert "2 new clients, which had no part" in capsys.readouterr().out
    again = finetuned(read_federation(folder / LAST_CHECKPOINT), range(6))
    assert (again["clients"], again["new_clients"]) == (outcome["clients"], new)


def test_a_client_that_is_no_longer_there_changes_nothing_for_the_others(federate):
    """New clients are the last ones, and what others train does not depend on them."""
    apart, _ = federate(tiny_config(num_new_clients=2, fraction_train=1.0, algorithm="local"))
    whole, _ = federate(tiny_config(fraction_train=1.0, algorithm="local"))
    rows = [json.loads((folder / RESULTS).read_text())["clients"] for folder in (apart, whole)]
    assert rows[0] == rows[1][:4]


@pytest.mark.slow
def test_commands_and_reports_show_new_clients(federate, one_core, tmp_path, capsys):
    folder, _ = federate(tiny_config(num_new_clients=2))
    assert finetune_main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "client    5  initial" in out
    assert finetune_main([str(folder), "--clients", "5"]) == 0
    assert report_main([str(folder), "--out", str(tmp_path / "report")]) == 0
    rows = (tmp_path / "report" / "new-clients.csv").read_text().splitlines()
    assert rows[1].startswith("FedBABU,2,initial,1,")
    assert "had no part in any round" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_a_run_whose_new_client_could_not_be_evaluated_is_completed(federate, monkeypatch):
    from lit_fedbabu.ground.errors import RunError

    class Loses(FakeGrid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            config = messages[0].content.get("config", {})
            if config.get("personalize"):
                config["clients"] = [client for client in config["clients"] if client != 5]
            replies = super().send_and_receive(messages, timeout=timeout)
            if config.get("personalize"):
                failed = {"client": [5], "reason": ["it was switched off"], "traceback": [""]}
                replies[0].content["failures"] = ConfigRecord(failed)
            return replies

    config = tiny_config(num_new_clients=2)
    whole, _ = federate(config)
    with pytest.raises(RunError, match=r"clients \[5\] were not evaluated"):
        federate(config, Loses(config))
    resumed, grid = federate(tiny_config(num_new_clients=2, resume=str(whole.with_name("run2"))))
    assert (resumed / RESULTS).read_text() == (whole / RESULTS).read_text()
    asked = [message for message in grid.messages if message.content.get("config", {}).get("personalize")]
    assert list(asked[0].content["config"]["clients"]) == [5]


@pytest.mark.parametrize(("options", "told"), [({"num_new_clients": 6}, "less than num-clients, which is 6")])
def test_numbers_that_leave_nobody_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        tiny_config(**options)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_new_client_starts_from_what_the_page_says(algorithm, tmp_path):
    page = (Path(__file__).parent.parent.parent / "docs" / "personal-models.md").read_text()
    title = ALGORITHMS[algorithm].title
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    (row,) = (row for row in rows if title in [word.strip() for word in row[1].split(",")])
    experiment = tiny(algorithm=algorithm, num_new_clients=2)
    initial = state_of(experiment.new_module().model)
    received = {name: value + 1 for name, value in experiment.initial_shared().items()}
    start = without(state_of(own_module(experiment, 5, 2, received, tmp_path).model), ALGORITHMS[algorithm].fixed)
    for part, said in zip(("body", "head"), row[2:4], strict=True):
        same = {name: torch.equal(value, initial[name]) for name, value in start.items() if name.startswith(part)}
        ours = "the initial one" if all(same.values()) else "the federation's"
        assert said.strip() == ours + (
            ", normalization layers as they began" if 0 < sum(same.values()) < len(same) else ""
        )
