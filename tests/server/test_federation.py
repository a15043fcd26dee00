import dataclasses
import itertools
import json
import platform
import re
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from examples import shapes
from lit_fedbabu import client_app, server_app
from lit_fedbabu.algorithms import client_update as update
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.errors import InputError, RunError
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.handshake import PLACE
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server.nodes import find_nodes
from lit_fedbabu.server.sampling import participants, substitutes
from lit_fedbabu.server.strategy import SharedParts
from lit_fedbabu.wire import ClientUpdate, TrainReply
from tests.support import (
    MEASURES,
    NARROW,
    FakeGrid,
    curves,
    failures_of,
    files_that_decide,
    finetuned,
    tiny,
    tiny_config,
    unavailable,
)

CHECKPOINTS = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/round_0002.ckpt"}


def test_a_run_is_the_same_byte_for_byte_on_any_number_of_nodes_in_any_order(federate):
    config = tiny_config(algorithm="fedper", model_name=NARROW)
    outcomes = []
    for nodes, shuffle in ((1, False), (1, False), (2, True), (5, True), (9, True)):
        folder, _ = federate(config, FakeGrid(config, nodes, shuffle))
        outcomes.append(files_that_decide(folder))
    assert {*CHECKPOINTS, "results.json"} < set(outcomes[0]) and any("memory" in name for name in outcomes[0])
    assert all(outcome == outcomes[0] for outcome in outcomes)
    folder, _ = federate(tiny_config(algorithm="fedper", model_name=NARROW, seed=7))
    other = files_that_decide(folder)
    assert all(other[name] != outcomes[0].get(name) for name in other)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_shared_parts_travel(algorithm, federate):
    config = tiny_config(algorithm=algorithm)
    folder, grid = federate(config, FakeGrid(config, 2))
    whole = Experiment(config).new_module().model.state_dict()
    shared = set(select(whole, parts_of(ALGORITHMS[algorithm].shared)))
    trains = [message for message in grid.messages if message.metadata.message_type == "train"]
    assert len(trains) == (2 if algorithm == "centralized" else 4)
    for message in grid.messages:
        code = {"version", "source-digest", "source-folder"}
        if message.metadata.message_type == PLACE:
            assert set(message.content) == {"config"} and set(message.content["config"]) == code
        else:
            assert set(message.content["arrays"]) == shared
            assert set(message.content) == {"arrays", "config"}
            order = {"server-round", "clients", "memory", "learning-rate", "personalize"}
            assert set(message.content["config"]) == order | code
    told = {"train": {"client", "num_train", "train_loss"}, "evaluate": {"client", "num_test", *MEASURES}}
    for reply in grid.replies:
        for record in reply.content.array_records.values():
            assert set(record) == shared
        if reply.metadata.message_type != PLACE:
            kind = reply.metadata.message_type
            assert set(reply.content) <= {"arrays", "metrics", "reply"} and set(reply.content["reply"]) == {"version"}
            assert set(reply.content["metrics"]) <= told[kind]
    final = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    moved = {name for name, value in whole.items() if not torch.equal(final[name], value)}
    assert moved == shared & set(select(whole, ALGORITHMS[algorithm].trained)), "the server's model is what was shared"


def test_the_average_is_over_clients_weighted_by_their_images(federate):
    config = tiny_config(partitioner="dirichlet", dirichlet_alpha=2.0, num_server_rounds=1)
    folder, grid = federate(config, FakeGrid(config, 2))
    initial = Experiment(config).new_module().model.state_dict()
    received = {name: value.clone() for name, value in select(initial, ["body"]).items()}
    updates = [update.client_update(Experiment(config), client, 1, received, 0.1) for client in participants(config, 1)]
    assert len({count for _, count, _ in updates}) > 1
    total = sum(count for _, count, _ in updates)
    final = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    for name in received:
        mean = sum(count * state[name].double() for state, count, _ in updates) / total
        assert torch.equal(final[name], mean.float()), name


def test_clients_are_summed_in_the_order_of_their_numbers(tmp_path):
    config = tiny_config()
    board = SimpleNamespace(round=lambda *_: None)
    strategy = SharedParts(Experiment(config), [7], tmp_path, board, None, print)
    clients = participants(config, 1)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    strategy.configure_train(1, ArrayRecord({"w": Array(np.zeros(1, np.float32))}), ConfigRecord(), None)
    # In float64, 2^60 + 1 is 2^60: the sum is 0 in this order and 1 if the 1 comes last.
    values = dict(zip(clients, np.float32([2.0**60, 1.0, -(2.0**60)]), strict=True))
    asked = Message(RecordDict(), 7, "train")

    def reply(client):
        trained = ClientUpdate(client, 1, 0.5, {"w": values[client].reshape(1)})
        return Message(TrainReply([trained]).to_record(), reply_to=asked)

    for order in itertools.permutations(clients):
        arrays, _ = strategy.aggregate_train(1, [reply(client) for client in order])
        assert arrays["w"].numpy().tolist() == [0.0]


def test_sampling_is_without_replacement_and_by_seed_and_round():
    config = tiny_config(num_clients=100, fraction_train=0.1)
    draws = [participants(config, server_round) for server_round in range(1, 81)]
    assert all(len(set(draw)) == 10 for draw in draws)
    assert draws[0] != draws[1] and draws[0] == participants(config, 1)
    assert set().union(*draws) == set(range(100))
    for fraction, count in ((0.001, 1), (0.29, 29), (1.0, 100)):
        config = tiny_config(num_clients=100, fraction_train=fraction)
        assert len(participants(config, 1)) == count


def test_a_run_folder_has_everything_and_it_agrees(federate):
    config = tiny_config()
    folder, _ = federate(config)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "README.md",
        "config.toml",
        "partition.csv",
        "results.json",
        *CHECKPOINTS,
    }
    saved = tomllib.loads((folder / "config.toml").read_text())
    environment = saved.pop("environment")
    assert saved == {**config.to_run_config(), "output-dir": str(folder.parent), "run-name": folder.name}
    assert environment["trains-on"].endswith(f"in 32-true with torch {torch.__version__}")
    assert environment["torch"] == torch.__version__.partition("+")[0]

    outcome = json.loads((folder / "results.json").read_text())
    assert (outcome["algorithm"], outcome["round"]) == ("fedbabu", 2)
    assert [row["client"] for row in outcome["clients"]] == list(range(6))
    for key in ("initial_accuracy", "personalized_accuracy"):
        values = [row[key] for row in outcome["clients"]]
        assert all(0 <= value <= 1 for value in values)
        assert outcome["summary"][key] == {
            "mean": pytest.approx(np.mean(values)),
            "std": pytest.approx(np.std(values)),
            "worst_decile": min(values),
            "jain": pytest.approx(sum(values) ** 2 / (len(values) * sum(value**2 for value in values))),
        }


def test_tensorboard_has_every_curve_over_rounds(federate):
    folder, _ = federate(tiny_config())
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    each_round, last = [1, 2], [2]
    over_clients = (
        "accuracy/{}_mean",
        "accuracy/{}_worst_decile",
        "band/{}_minus_std",
        "band/{}_plus_std",
    )
    assert steps == {
        "train/loss": each_round,
        "train/learning_rate": each_round,
        "communication/bytes_up": each_round,
        "communication/bytes_down": each_round,
        "time/seconds_per_round": each_round,
        **{tag.format("initial"): each_round for tag in over_clients},
        **{tag.format("personalized"): last for tag in over_clients},
    }
    assert sorted(events.Tags()["histograms"]) == ["accuracy/initial_of_clients", "accuracy/personalized_of_clients"]
    assert set(events.Tags()["images"]) == {"split/training_images", "finetuning/accuracy_over_epochs"}
    assert {"configuration/text_summary", "results/text_summary"} <= set(events.Tags()["tensors"])
    outcome = json.loads((folder / "results.json").read_text())
    final = events.Scalars("accuracy/personalized_mean")[0].value
    assert final == pytest.approx(outcome["summary"]["personalized_accuracy"]["mean"])
    body_bytes = 4 * (115_658 - 2_570)
    assert events.Scalars("communication/bytes_up")[0].value == 3 * body_bytes
    assert events.Scalars("communication/bytes_down")[0].value == body_bytes


def failing(monkeypatch, whom, how=None):
    """Let ``whom(client, server_round)`` raise while training, or send what ``how`` makes of its arrays."""
    fit = FedBABUClient.fit

    def broken(self, parameters, order):
        arrays, count, told = fit(self, parameters, order)
        if not whom(self.client, order["server-round"]):
            return arrays, count, told
        if how is None:
            raise RuntimeError("boom")
        return how(arrays), count, told

    monkeypatch.setattr(FedBABUClient, "fit", broken)


def error_reply(app):
    """What Flower does with a ClientApp that raises: an error instead of a reply."""

    def answer(message, context):
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(code=0, reason=repr(error)), reply_to=message)

    return answer


HOW = {
    "raises": (None, "RuntimeError('boom')"),
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
        total = sum(count for _, count, _ in updates)
        means = {name: sum(n * state[name].double() for state, n, _ in updates) / total for name in before[-1]}
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


def test_nodes_are_ordered_by_their_place_even_if_they_register_late():
    grid = FakeGrid(tiny_config(), 4)
    late = iter([[], list(grid.contexts)[:1], list(grid.contexts)[:1], list(grid.contexts)[:3]])
    grid.get_node_ids = lambda: next(late, list(grid.contexts)[::-1])
    assert [node.id for node in find_nodes(grid, print)] == list(grid.contexts)


def test_nodes_that_never_come_are_named():
    grid = FakeGrid(tiny_config(), 4)
    grid.get_node_ids = lambda: list(grid.contexts)[:3]
    with pytest.raises(RunError, match="only 3 of 4 nodes"):
        find_nodes(grid, print, timeout_s=2)


def test_a_node_that_is_gone_when_it_is_asked_is_waited_for(capsys):
    grid = FakeGrid(tiny_config(), 3)
    answer, gone = grid.answer, iter([True])

    def sometimes(message, context):
        if context.node_config["partition-id"] == 1 and next(gone, False):
            return unavailable(message)
        return answer(message, context)

    grid.answer = sometimes
    assert [node.id for node in find_nodes(grid, print)] == list(grid.contexts)
    assert "waiting for nodes: 2 of 3 are there" in capsys.readouterr().out


def test_nodes_that_came_but_never_answer_are_not_counted():
    grid = FakeGrid(tiny_config(), 3)
    answer = grid.answer

    def only_the_first(message, context):
        return unavailable(message) if context.node_config["partition-id"] else answer(message, context)

    grid.answer = only_the_first
    with pytest.raises(RunError, match="only 1 of 3 nodes came"):
        find_nodes(grid, print, timeout_s=2)


def test_an_existing_run_folder_is_not_touched(federate, tmp_path):
    config = tiny_config()
    (tmp_path / "run1").mkdir()
    with pytest.raises(InputError, match='run-name = "run1": .* not overwritten'):
        federate(config)
    assert list((tmp_path / "run1").iterdir()) == []


def test_diverged_weights_end_the_run_in_one_line(federate):
    with pytest.raises(RunError, match="round 1: 0 clients trained .* not finite; a lower learning-rate"):
        federate(tiny_config(learning_rate=1e30))


def test_the_server_refuses_a_bad_configuration_in_one_line(capsys):
    grid = FakeGrid(tiny_config(), run_config={"num-clients": "six"})
    context = next(iter(grid.contexts.values()))
    with pytest.raises(InputError, match='num-clients = "six"'):
        server_app.app(grid, context)
    out = capsys.readouterr().out
    assert out.startswith("[lit_fedbabu] error: num-clients") and out.count("\n") == 1


def test_arrays_keep_their_names_and_types_on_the_wire():
    state = tiny().new_module().model.state_dict()
    record = ArrayRecord({name: Array(value.contiguous().numpy()) for name, value in state.items()})
    assert all(np.array_equal(record[name].numpy(), value.numpy()) for name, value in state.items())
    assert {record[name].dtype for name in state} == {"float32"}


class StoppedGrid(FakeGrid):
    """A grid that dies when a round's messages of a kind are due, as a killed server does."""

    def __init__(self, config, kind, server_round):
        super().__init__(config)
        self.stop_at = (kind, str(server_round))

    def answer(self, message, context):
        if (message.metadata.message_type, message.metadata.group_id) == self.stop_at:
            raise KeyboardInterrupt
        return super().answer(message, context)


@pytest.mark.parametrize(
    ("algorithm", "kind", "server_round", "rounds"),
    [(name, "evaluate", 2, 2) for name in ALGORITHMS]
    + [("fedper", "train", server_round, 3) for server_round in (1, 3)],
)
def test_a_stopped_run_ends_byte_for_byte_where_an_unstopped_one_ends(algorithm, kind, server_round, rounds, federate):
    config = tiny_config(
        algorithm=algorithm, model_name=NARROW, num_server_rounds=rounds, num_head_epochs=1, num_clients=3,
        fraction_train=0.7,
    )  # fmt: skip
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, kind, server_round))
    stopped = whole.parent / "run2"
    assert not (stopped / run_folder.RESULTS).exists()
    resumed = dataclasses.replace(config, resume=str(stopped))
    folder, grid = federate(resumed, FakeGrid(resumed, 5, shuffle=True))
    assert folder == stopped
    trained = {message.metadata.group_id for message in grid.messages if message.metadata.message_type == "train"}
    assert trained == {str(each) for each in range(server_round, rounds + 1)}
    assert files_that_decide(stopped) == files_that_decide(whole)
    assert any("memory" in name for name in files_that_decide(whole)) == bool(ALGORITHMS[algorithm].kept)
    assert curves(stopped) == curves(whole)


def test_what_cannot_be_resumed_is_refused_in_one_line(federate, tmp_path):
    config = tiny_config()
    folder, _ = federate(config)
    before = files_that_decide(folder)
    for changes, words in (
        ({"resume": str(folder)}, "the run is finished"),
        ({"resume": str(folder), "learning_rate": 0.05}, "learning-rate = 0.05: the run in .* was begun with 0.1"),
        ({"resume": str(tmp_path / "nowhere")}, "is no run's folder"),
    ):
        with pytest.raises(InputError, match=words):
            federate(tiny_config(**changes))
    assert files_that_decide(folder) == before


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper", "lg-fedavg"])
def test_running_statistics_are_shared_and_kept_with_their_part(algorithm, federate, one_core):
    config = tiny_config(algorithm=algorithm, model_name=NARROW, norm="batch-running", num_finetune_epochs=2)
    folder, grid = federate(config, FakeGrid(config, 2))
    buffers = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    shared = set(
        next(message for message in grid.messages if message.metadata.message_type == "train").content["arrays"]
    )
    assert buffers <= shared if algorithm != "lg-fedavg" else not buffers & shared
    federated = read_federation(folder / run_folder.LAST_CHECKPOINT, trusted_model=NARROW)
    experiment = Experiment(config)
    own = [update.own_module(experiment, client, 2, federated.shared, federated.memories) for client in range(6)]
    counts = {int(module.model.body[1].num_batches_tracked) for module in own}
    assert max(counts) > 0 and (len(counts) == 1) == (algorithm != "lg-fedavg")
    again = finetuned(federated, [0, 1])["clients"]
    assert again == results.read_results(folder)["clients"][:2]


def test_a_checkpoint_cannot_name_code_that_is_not_trusted(federate, capsys):
    folder, _ = federate(tiny_config(model_name=NARROW, num_server_rounds=1))
    capsys.readouterr()
    assert finetune([str(folder)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: model-name") and told.count("\n") == 1 and "--model-name to trust it" in told
    assert not (folder / "finetune").exists()


def test_the_example_of_ones_own_model_and_images_learns(federate, tmp_path):
    shapes.write(tmp_path / "shapes", train=30, test=10)
    options = {"dataset": str(tmp_path / "shapes"), "model_name": "examples.shapes:build", "num_clients": 2}
    folder, _ = federate(tiny_config(**options, num_server_rounds=1, learning_rate=0.02, num_finetune_epochs=3))
    clients = results.read_results(folder)["clients"]
    assert all(client["personalized_loss"] < client["initial_loss"] for client in clients)


def test_a_memory_that_is_not_finite_is_a_failure_and_is_not_kept(federate, tmp_path):
    """Ditto's personal model can diverge while what it shares does not."""
    config = tiny_config(algorithm="ditto", proximal_mu=1e9, model_name=NARROW, num_local_epochs=3)
    with pytest.raises(RunError, match="what it keeps is not finite"):
        federate(config)
    (folder,) = tmp_path.iterdir()
    assert {"what it keeps is not finite" in failure["reason"] for failure in failures_of(folder)} == {True}
    assert not list(folder.rglob("*.safetensors"))
