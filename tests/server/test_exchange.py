import dataclasses
import json
import platform
import re

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu import client_app
from lit_fedbabu.client import numpy_client
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.handshake import PLACE
from lit_fedbabu.records import incomplete, results, run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server.sampling import participants, substitutes
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training.experiment import Experiment
from tests.support import (
    NARROW,
    FakeGrid,
    failing,
    failures_of,
    files_that_decide,
    tiny_config,
)


def error_reply(app):
    """What Flower does with a ClientApp that raises: an error instead of a reply."""

    def answer(message, context):
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(code=0, reason=repr(error)), reply_to=message)

    return answer


HOW = {
    "raises": (None, "RuntimeError: boom"),
    "sends what is not finite": (lambda arrays: [array * np.nan for array in arrays], "are not finite"),
    "sends other shapes": (lambda arrays: [array[..., None] for array in arrays], "but the model has"),
    "sends another type": (lambda arrays: [array.astype(np.float16) for array in arrays], "but the model has"),
}


@pytest.mark.parametrize("how", HOW)
def test_a_failed_client_is_written_down_and_another_one_takes_its_place(how, federate, monkeypatch):
    config = tiny_config(num_clients=5, fraction_train=0.6)
    bad = participants(config, 2)[1]
    (other,) = substitutes(config, 2, 1, participants(config, 2), 1)
    failing(monkeypatch, lambda client, server_round: server_round == 2 and client == bad, HOW[how][0])
    folder, _ = federate(config, FakeGrid(config, 5))
    (failure,) = failures_of(folder)
    assert (failure["round"], failure["client"], failure["node"]) == (2, bad, str(bad))
    assert HOW[how][1] in failure["reason"] and ("broken" in failure["traceback"]) == (how == "raises")
    events = EventAccumulator(str(folder)).Reload()
    (told,) = events.Tensors("failures/text_summary")
    assert told.step == 2 and f"client {bad} on node {bad}" in told.tensor_proto.string_val[0].decode()
    # The round is the average of those that were left and of the one in its place.
    federated, before = read_federation(folder / run_folder.LAST_CHECKPOINT), [Experiment(config).initial_shared()]
    monkeypatch.undo()
    for server_round in (1, 2):
        clients = [*participants(config, server_round), *([other] if server_round == 2 else [])]
        rate = config.learning_rate_in(server_round)
        updates = [
            update.client_update(Experiment(config), client, server_round, before[-1], rate)
            for client in sorted(set(clients) - ({bad} if server_round == 2 else set()))
        ]
        total = sum(count for _, count, *_ in updates)
        means = {name: sum(n * state[name].double() for state, n, *_ in updates) / total for name in before[-1]}
        before.append({name: value.float() for name, value in means.items()})
    assert all(torch.equal(federated.shared[name], value) for name, value in before[-1].items())


def test_a_round_counts_if_enough_clients_remain(federate, monkeypatch):
    config = tiny_config(num_clients=5, fraction_train=0.6, min_clients_per_round=2)
    bad = participants(config, 1)[0]
    failing(monkeypatch, lambda client, _: client == bad)
    folder, grid = federate(config)
    trained = [message for message in grid.messages if message.metadata.message_type == "train"]
    assert len(trained) == 2, "nobody is asked in its place"
    assert {failure["client"] for failure in failures_of(folder)} == {bad}


def test_too_many_failures_end_the_run_after_its_retries_and_leave_a_checkpoint(federate, monkeypatch, tmp_path):
    config = tiny_config(fraction_train=0.34, max_round_retries=1)
    failing(monkeypatch, lambda _, server_round: server_round == 2)
    with pytest.raises(RunError, match=r"round 2: 0 clients trained and 2 are needed; .*failures.jsonl.*boom"):
        federate(config)
    (folder,) = tmp_path.iterdir()
    asked = [failure["client"] for failure in failures_of(folder)]
    assert len(asked) == len(set(asked)) == 4, "two that were drawn, and two others"
    assert not (folder / "results.json").exists()
    assert torch.load(folder / run_folder.LAST_CHECKPOINT, weights_only=True)["lit_fedbabu"]["round"] == 1
    monkeypatch.undo()
    resumed = dataclasses.replace(config, resume=str(folder))
    federate(resumed)
    assert (folder / "results.json").read_text() == (federate(config)[0] / "results.json").read_text()


@pytest.mark.parametrize("kind", [PLACE, "train"])
def test_nodes_of_other_code_are_refused_by_name(kind, federate, monkeypatch):
    """Before the first round, and where the code of a node changes while the run goes on."""
    monkeypatch.setattr(client_app, "app", error_reply(client_app.app))
    config = tiny_config(max_round_retries=0)
    grid = FakeGrid(config)
    answer = grid.answer

    def from_elsewhere(message, context):
        if message.metadata.message_type == kind:
            message.content["config"]["source-digest"] = "0123"
            message.content["config"]["source-folder"] = "/elsewhere"
        return answer(message, context)

    grid.answer = from_elsewhere
    with pytest.raises(RunError, match=re.escape(f"/elsewhere but {platform.node()} runs")):
        federate(config, grid)
    trained = any(message.metadata.message_type == "train" for message in grid.messages)
    assert trained == (kind == "train")


def test_clients_of_a_lost_node_are_replaced_by_those_of_others(federate):
    config = tiny_config(num_clients=9, fraction_train=0.34)
    grid = FakeGrid(config, 3)
    deliver, lost = grid.send_and_receive, list(grid.contexts)[1]

    def without(messages, timeout):
        return [
            reply
            for reply in deliver(messages)
            if (reply.metadata.src_node_id, reply.metadata.message_type) != (lost, "train")
        ]

    grid.send_and_receive = without
    folder, _ = federate(config, grid)
    failures = failures_of(folder)
    assert failures and all(failure["client"] % 3 == 1 and failure["reason"] == "no answer" for failure in failures)
    assert len(results.read_results(folder)["rounds"]) == 2


def test_a_dead_worker_is_recognized_and_not_asked_again(federate):
    config = tiny_config()
    grid = FakeGrid(config)
    answer, asked = grid.answer, []

    def dies(message, context):
        if message.metadata.message_type != "train":
            return answer(message, context)
        asked.append(message)
        return Message(Error(code=0, reason="<class 'ray.exceptions.ActorDiedError'>: gone"), reply_to=message)

    grid.answer = dies
    with pytest.raises(RunError, match=r"round 1: a worker process died; go on with resume = .*run1"):
        federate(config, grid)
    assert len(asked) == 1


def test_diverged_weights_end_the_run_in_one_line(federate):
    with pytest.raises(RunError, match="round 1: 0 clients trained .* not finite; a lower learning-rate"):
        federate(tiny_config(learning_rate=1e30))


def test_a_memory_that_is_not_finite_is_a_failure_and_is_not_kept(federate, tmp_path):
    """Ditto's personal model can diverge while what it shares does not."""
    config = tiny_config(algorithm="ditto", proximal_mu=1e9, model_name=NARROW, num_local_epochs=3)
    with pytest.raises(RunError, match="what it keeps is not finite"):
        federate(config)
    (folder,) = tmp_path.iterdir()
    assert {"what it keeps is not finite" in failure["reason"] for failure in failures_of(folder)} == {True}
    assert not list(folder.rglob("*.safetensors"))


def failing_evaluation(monkeypatch, name, whom):
    """Let evaluations of a client raise, whoever is evaluated with it."""
    work = getattr(numpy_client, name)

    def broken(experiment, clients, *received):
        if whom in clients:
            raise RuntimeError("boom")
        return work(experiment, clients, *received)

    monkeypatch.setattr(numpy_client, name, broken)


@pytest.mark.parametrize("cohort_size", [1, 3])
def test_a_client_that_fails_in_the_last_evaluation_loses_nothing(cohort_size, federate, monkeypatch, tmp_path):
    config = tiny_config(model_name=NARROW, cohort_size=cohort_size)
    whole, _ = federate(config)
    failing_evaluation(monkeypatch, "personal_models", 3)
    with pytest.raises(RunError, match=r"clients \[3\] were not evaluated, and .*results.incomplete.json has .*boom"):
        federate(config)
    folder = tmp_path / "run2"
    kept = json.loads((folder / incomplete.INCOMPLETE).read_text())
    assert kept["missing"] == [3] and [row["client"] for row in kept["clients"]] == [0, 1, 2, 4, 5]
    (failure,) = failures_of(folder)
    assert (failure["client"], failure["reason"]) == (3, "RuntimeError: boom") and "broken" in failure["traceback"]
    assert not (folder / run_folder.RESULTS).exists()
    monkeypatch.undo()
    resumed, grid = federate(dataclasses.replace(config, resume=str(folder)))
    asked = [message for message in grid.messages if message.metadata.message_type == "evaluate"]
    assert asked[-1].content["config"]["clients"] == [3]
    assert not (folder / incomplete.INCOMPLETE).exists()
    if cohort_size == 1:  # with cohorts the last bits depend on who is evaluated together
        assert files_that_decide(resumed) == files_that_decide(whole)
    assert len(results.read_results(resumed)["clients"]) == config.num_clients


def test_kept_results_of_other_weights_are_not_used(federate, monkeypatch, tmp_path):
    config = tiny_config(model_name=NARROW, num_server_rounds=1)
    whole, _ = federate(config)
    failing_evaluation(monkeypatch, "personal_models", 3)
    with pytest.raises(RunError):
        federate(config)
    monkeypatch.undo()
    path = tmp_path / "run2" / incomplete.INCOMPLETE
    kept = json.loads(path.read_text())
    kept["arrays"] = "others"
    kept["clients"][0]["personalized_accuracy"] = 0.123
    path.write_text(json.dumps(kept))
    folder, _ = federate(dataclasses.replace(config, resume=str(tmp_path / "run2")))
    assert results.read_results(folder) == results.read_results(whole)


def test_a_client_that_fails_in_an_evaluation_between_is_left_out_and_told(federate, monkeypatch, capsys):
    failing_evaluation(monkeypatch, "initial_evaluations", 3)
    folder, _ = federate(tiny_config(model_name=NARROW))
    first, last = results.read_results(folder)["rounds"]
    assert "initial_accuracy" not in first and "initial_accuracy" in last, "a mean of fewer clients is no mean of all"
    told = capsys.readouterr().out
    assert "round 1  initial accuracy" in told and "over 5 of 6 clients; the history leaves it out" in told
    assert [failure["client"] for failure in failures_of(folder)] == [3]


def test_an_evaluation_of_nobody_ends_the_run(federate, monkeypatch):
    monkeypatch.setattr(numpy_client, "initial_evaluations", None)
    with pytest.raises(
        RunError, match=r"round 1: clients \[0, 1, 2, 3, 4, 5\] were not evaluated: client 5 .*TypeError"
    ):
        federate(tiny_config(model_name=NARROW))


def test_of_many_clients_a_line_calls_the_first_by_their_numbers_or_names():
    names = [f"site {client}" for client in range(99)]
    assert run_folder.called([3, 5]) == "[3, 5]" and run_folder.called([3], names) == "3 (site 3)"
    first = list(range(run_folder.CALLED))
    assert run_folder.called(range(99)) == f"{first} and {99 - len(first)} more"
    assert run_folder.called(range(99), names).endswith(f"{first[-1]} (site {first[-1]}) and {99 - len(first)} more")
