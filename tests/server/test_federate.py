import dataclasses
import json
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from examples import shapes
from lit_fedbabu import server_app
from lit_fedbabu.algorithms.algorithm import EXTRA
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.protocol.handshake import PLACE
from lit_fedbabu.records import results, run_folder, tensorboard
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server import federate as federate_module
from lit_fedbabu.tasks.images.transforms import normalize
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training.experiment import Experiment
from tests.support import (
    LISTS,
    MEASURES,
    NARROW,
    FakeGrid,
    curves,
    files_that_decide,
    finetuned,
    tiny,
    tiny_config,
)

CHECKPOINTS = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/round_0002.ckpt"}


def test_a_folder_that_another_process_works_in_is_refused(federate):
    """The other is killed, and so its lock is gone."""
    config = tiny_config(num_server_rounds=1, model_name=NARROW, learning_rate_decay=1.0)
    folder, _ = federate(config)
    script = "import sys, time\nfrom pathlib import Path\nfrom lit_fedbabu.ground.files import alone_in\n"
    script += "with alone_in(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
    more = dataclasses.replace(config, num_server_rounds=2, resume=str(folder))
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        before = files_that_decide(folder)
        with pytest.raises(InputError, match="another process works in it; wait for it, or end it"):
            federate(more)
        assert files_that_decide(folder) == before
        other.kill()
    federate(more)
    assert len(read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).rounds) == 2


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


DIFFERENT = ("fedbabu", "fedrep", "lg-fedavg", "fedbn", "ditto", "local", "centralized")
"""Rows that share, train or keep different parts."""
IN_PARTS = [pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.slow) for name in ALGORITHMS]


@pytest.mark.parametrize("algorithm", IN_PARTS)
def test_only_shared_parts_travel(algorithm, federate):
    config = tiny_config(algorithm=algorithm, model_name=NARROW)
    folder, grid = federate(config, FakeGrid(config, 2))
    whole, extras = Experiment(config).new_module().model.state_dict(), Experiment(config).extras
    shared = set(select(whole, parts_of(ALGORITHMS[algorithm].shared))) - set(ALGORITHMS[algorithm].fixed)
    if algorithm == "fedbn":
        shared -= {"body.1.weight", "body.1.bias"}  # its second layer
    up, down, after = ({EXTRA + name for name in each} for each in (extras.up, extras.down, extras.after))
    trains = [message for message in grid.messages if message.metadata.message_type == "train"]
    assert len(trains) == (2 if algorithm == "centralized" else 4)
    for message in grid.messages:
        code = {"version", "source-digest", "source-folder"}
        if message.metadata.message_type == PLACE:
            assert set(message.content) == {"config"} and set(message.content["config"]) == code
        else:
            sent = down if message.metadata.message_type == "train" else after
            assert set(message.content["arrays"]) == shared | sent
            assert set(message.content) == {"arrays", "config"}
            order = {"server-round", "clients", "memory", "learning-rate", "personalize"}
            assert set(message.content["config"]) == order | code
    told = {"train": {"client", "num_train", "train_loss"}, "evaluate": {"client", "num_test", *MEASURES}}
    lists = {"train": set(), "evaluate": LISTS}
    for reply in grid.replies:
        for record in reply.content.array_records.values():
            assert set(record) == shared | up
        if reply.metadata.message_type != PLACE:
            kind = reply.metadata.message_type
            assert set(reply.content) <= {"arrays", "metrics", "lists", "reply"}
            assert set(reply.content["reply"]) == {"version"}
            assert set(reply.content.get("lists", ())) <= lists[kind]
            assert set(reply.content["metrics"]) <= told[kind]
    final = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    moved = {name for name, value in whole.items() if not torch.equal(final[name], value)}
    made = ("head",) if algorithm == "pfedfda" else ()  # of everyone's statistics, by the server
    trained = set(select(whole, (*ALGORITHMS[algorithm].trained, *made)))
    assert moved == shared & trained, "the server's model is what was shared"


def test_a_run_folder_has_everything_and_it_agrees(federate):
    config = tiny_config()
    folder, _ = federate(config)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "seal.jsonl",
        "costs.jsonl",
        "report.html",
        "README.md",
        "config.toml",
        "partition.csv",
        "results.json",
        "projector_config.pbtxt",
        *(f"00002/body_features/{name}.tsv" for name in ("metadata", "tensors")),
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


@pytest.mark.pictures
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
        **{
            f"measures/{stage}_{measure}_mean": last
            for stage in ("initial", "personalized")
            for measure in ("calibration_error", "f1", "auroc")
        },
    }
    assert sorted(events.Tags()["histograms"]) == ["accuracy/initial_of_clients", "accuracy/personalized_of_clients"]
    drawn = {"split/training_images", "finetuning/accuracy_over_epochs", "calibration/reliability"}
    assert set(events.Tags()["images"]) == drawn
    assert {"configuration/text_summary", "results/text_summary"} <= set(events.Tags()["tensors"])
    outcome = json.loads((folder / "results.json").read_text())
    final = events.Scalars("accuracy/personalized_mean")[0].value
    assert final == pytest.approx(outcome["summary"]["personalized_accuracy"]["mean"])
    body_bytes = 4 * (115_658 - 2_570)
    assert events.Scalars("communication/bytes_up")[0].value == 3 * body_bytes
    assert events.Scalars("communication/bytes_down")[0].value == body_bytes


def test_hparams_open_with_the_seed_and_the_projector_with_the_bodys_features(federate):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    events = EventAccumulator(str(folder)).Reload()
    plugin = events.SummaryMetadata("_hparams_/experiment").plugin_data
    infos = HParamsPluginData.FromString(plugin.content).experiment.hparam_infos
    assert {info.name for info in infos if info.differs} == {*tensorboard.SHOWN} and "seed" in tensorboard.SHOWN
    experiment = tiny()
    module = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT)
    images, _ = experiment.client_data(0, 0).test_set.tensors
    with torch.no_grad():
        expected = module.model.body(normalize(images, *experiment.task.constants))
    shown = np.loadtxt(folder / "00001" / "body_features" / "tensors.tsv")
    np.testing.assert_allclose(shown[: len(images)], expected, rtol=1e-4, atol=1e-5)
    head, *rows = (folder / "00001" / "body_features" / "metadata.tsv").read_text().splitlines()
    assert head == "class\tclient"
    classes, clients = zip(*(row.split("\t") for row in rows), strict=True)
    assert len(rows) == len(shown) == 60 and set(classes) == set(experiment.task.class_names)
    assert list(clients) == sorted(clients) and set(clients) == set("012345")


def test_bands_of_accuracies_stay_between_0_and_1(tmp_path):
    board = tensorboard.Board(tmp_path, tiny_config())
    board.scores("initial", 1, [0.0, 0.0, 1.0, 1.0, 1.0])
    board.scores("initial", 2, [0.0, 0.0, 0.0, 0.0, 1.0])
    board.failure(2, "")
    events = EventAccumulator(str(tmp_path)).Reload()
    low, high = ([event.value for event in events.Scalars(f"band/initial_{edge}_std")] for edge in ("minus", "plus"))
    assert low == pytest.approx([0.6 - 0.24**0.5, 0]) and high == pytest.approx([1, 0.2 + 0.4])


def test_an_existing_run_folder_is_not_touched(federate, tmp_path):
    config = tiny_config()
    (tmp_path / "run1").mkdir()
    with pytest.raises(InputError, match='run-name = "run1": .* not overwritten'):
        federate(config)
    assert list((tmp_path / "run1").iterdir()) == []


def test_the_server_refuses_a_bad_configuration_in_one_line(capsys):
    grid = FakeGrid(tiny_config(), run_config={"num-clients": "six"})
    context = next(iter(grid.contexts.values()))
    with pytest.raises(InputError, match='num-clients = "six"'):
        server_app.app(grid, context)
    out = capsys.readouterr().out
    assert out.startswith("[lit_fedbabu] error: num-clients") and out.count("\n") == 1


class StoppedGrid(FakeGrid):
    """A grid that dies when a round's messages of a kind are due, as a killed server does."""

    def __init__(self, config, kind, server_round):
        super().__init__(config)
        self.stop_at = (kind, str(server_round))

    def answer(self, message, context):
        if (message.metadata.message_type, message.metadata.group_id) == self.stop_at:
            raise KeyboardInterrupt
        return super().answer(message, context)


def stopped_and_resumed(config, federate, server_round=3):
    """The folders of a run and of one that was stopped in that round and resumed on three nodes, to the same bytes."""
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", server_round))
    resumed = dataclasses.replace(config, resume=str(whole.parent / "run2"))
    folder, _ = federate(resumed, FakeGrid(resumed, 3, shuffle=True))
    assert files_that_decide(folder) == files_that_decide(whole)
    return whole, folder


@pytest.mark.parametrize(
    ("algorithm", "kind", "server_round", "rounds"),
    [pytest.param(name, "evaluate", 2, 2, marks=() if name == "ditto" else pytest.mark.slow) for name in ALGORITHMS]
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
    (folder / run_folder.RESULTS).unlink()
    with pytest.raises(InputError, match="its rounds are done, but results.json is missing; put it back"):
        federate(tiny_config(resume=str(folder)))


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_finished_run_with_more_rounds_is_the_run_that_had_them_from_the_start(stopped, federate):
    config = tiny_config(algorithm="fedper", model_name=NARROW, num_head_epochs=1, learning_rate_decay=1.0)
    whole, _ = federate(dataclasses.replace(config, num_server_rounds=4))
    folder, _ = federate(config)
    short = files_that_decide(folder)
    more = dataclasses.replace(config, num_server_rounds=4, resume=str(folder))
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            federate(more, StoppedGrid(more, "evaluate", 4))
        assert not (folder / run_folder.RESULTS).exists(), "no results of other rounds than config.toml has"
        more = dataclasses.replace(run_folder.read_config(folder), resume=str(folder))
        assert more.num_server_rounds == 4
    federate(more)
    long = files_that_decide(folder)
    assert long.pop("checkpoints/round_0002.ckpt") == short["checkpoints/round_0002.ckpt"]
    assert long == files_that_decide(whole)
    assert curves(folder)["accuracy/initial_mean"] == curves(whole)["accuracy/initial_mean"]
    assert (folder / "results_round_0002.json").read_bytes() == short["results.json"]
    assert run_folder.read_config(folder).num_server_rounds == 4


@pytest.mark.parametrize("changes", [{}, {"algorithm": "per-fedavg", "learning_rate_decay": 1.0}])
def test_more_rounds_that_would_have_had_other_learning_rates_are_refused(changes, federate):
    config = tiny_config(num_finetune_epochs=0, **changes)
    folder, _ = federate(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"num-server-rounds = 4: .* round 2 of 4 has 0.1, and it had 0.01; begin a"):
        federate(dataclasses.replace(config, num_server_rounds=4, resume=str(folder)))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper", "lg-fedavg"])
def test_running_statistics_are_shared_and_kept_with_their_part(algorithm, federate, one_core):
    config = tiny_config(algorithm=algorithm, model_name=NARROW, norm="batch-running", num_finetune_epochs=2)
    folder, grid = federate(config, FakeGrid(config, 2))
    buffers = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    shared = set(
        next(message for message in grid.messages if message.metadata.message_type == "train").content["arrays"]
    )
    assert buffers <= shared if algorithm != "lg-fedavg" else not buffers & shared
    federated = read_federation(folder / run_folder.LAST_CHECKPOINT, trusted=NARROW)
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


@pytest.mark.slow
def test_the_example_of_ones_own_model_and_images_learns(federate, tmp_path):
    shapes.write(tmp_path / "shapes", train=30, test=10)
    options = {"dataset": str(tmp_path / "shapes"), "model_name": "examples.shapes:build", "num_clients": 2}
    folder, _ = federate(tiny_config(**options, num_server_rounds=1, learning_rate=0.02, num_finetune_epochs=3))
    clients = results.read_results(folder)["clients"]
    assert all(client["personalized_loss"] < client["initial_loss"] for client in clients)


@pytest.mark.parametrize(("rate", "hinted"), [(1e-9, True), (0.1, False)])
def test_a_model_that_stays_at_chance_gets_a_hint_once(rate, hinted, federate, capsys):
    federate(tiny_config(model_name=NARROW, learning_rate=rate, num_server_rounds=8, evaluate_every=8))
    told = capsys.readouterr().out
    hint = "note: after 5 rounds the training loss is that of guessing, ln(classes) = 2.30; another learning-rate"
    assert told.count("that of guessing") == told.count(hint) == int(hinted)


def test_answers_are_counted_as_flowers_grid_pulls_them(monkeypatch):
    monkeypatch.setattr(federate_module, "clients_of", lambda message: message.clients)
    done: list[int] = []

    def message(kind, clients):
        return SimpleNamespace(metadata=SimpleNamespace(message_type=kind), clients=clients)

    grid = SimpleNamespace(
        push_messages=lambda messages: [f"m{place}" for place, _ in enumerate(messages)],
        pull_messages=lambda names: [
            SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=name)) for name in names
        ],
    )
    federate_module._count_answers(grid, SimpleNamespace(advance=done.append))
    messages = [message("train", [1, 2, 3]), message("query.place", [4]), message("evaluate", [5])]
    assert grid.push_messages(iter(messages)) == ["m0", "m1", "m2"]
    for names in (["m1"], ["m0"], ["m0", "m2"]):
        assert len(grid.pull_messages(names)) == len(names)
    assert done == [0, 3, 1], "each look tells that the work goes on"
