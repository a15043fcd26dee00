"""Real nodes: every client is a site with images and a disk of its own."""

import dataclasses
import logging
import re

import pytest
import torch
from flwr.app import Context, RecordDict

from lit_fedbabu.client import handlers
from lit_fedbabu.client.host import Host, Hosts
from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server import exchange
from lit_fedbabu.server.federate import federate, serve
from lit_fedbabu.training.experiment import Experiment
from tests.sites import MODEL, SITES, Sites, site_config, write_site
from tests.support import FakeGrid, client_data, failures_of, files_that_decide, unavailable


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The node-config of three sites, of which none has all classes, and a place for what is theirs."""
    monkeypatch.setattr(exchange, "SITE_PAUSE_S", 0)
    own = [["red", "green"], ["blue", "green"], ["red", "blue"]]
    return [
        {
            "client-id": site,
            "data-path": str(write_site(tmp_path / f"images-{site}", classes)),
            "state-path": str(tmp_path / f"state-{site}"),
        }
        for site, classes in enumerate(own)
    ]


@pytest.mark.parametrize(
    ("algorithm", "part"),
    [
        pytest.param("fedbabu", "full", marks=pytest.mark.slow),
        ("fedper", "full"),
        pytest.param("fedavg", "knn", marks=pytest.mark.slow),
        pytest.param("fedetf", "full", marks=pytest.mark.slow),
    ],
)
def test_sites_train_on_their_own_images_and_keep_what_is_theirs(algorithm, part, nodes, tmp_path, capsys):
    config = site_config(tmp_path, algorithm=algorithm, finetune_part=part)
    grid = Sites(config, nodes[::-1])
    folder = federate(grid, Experiment(config))
    outcome = results.read_results(folder)
    assert [row["client"] for row in outcome["clients"]] == [0, 1, 2]
    assert all(row["num_test"] == 24 for row in outcome["clients"])
    assert not (folder / run_folder.PARTITION).exists() and not (folder / run_folder.MEMORY).exists()
    assert "3 sites with images of their own" in capsys.readouterr().out
    for message in grid.messages:
        assert str(tmp_path / "images") not in str(message.content) and "red" not in str(message.content)
    for site in range(SITES):
        (state,) = (tmp_path / f"state-{site}" / f"client-{site}").iterdir()
        memories = [path.name for path in state.glob("memory/*")]
        assert memories == ([f"client_{site:04d}"] if algorithm == "fedper" else [])
        own = LitFedBABU.load_from_checkpoint(state / run_folder.LAST_CHECKPOINT).model.state_dict()
        shared = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
        assert all(torch.equal(own[name], shared[name]) for name in Experiment(config).shared_names)
        assert finetune([str(state), *MODEL, "--save", "--no-running-statistics"]) == 0
        (tuned,) = state.glob("finetune/*")
        (row,) = results.read_results(tuned)["clients"]
        assert row == outcome["clients"][site], "the site's own fine-tuning is that of the federation"
        assert (tuned / "personal" / f"client_{site:04d}.ckpt").exists()


def test_labels_have_the_federations_numbers_whatever_a_site_has(nodes, tmp_path):
    for node, classes in zip(nodes, ({0, 1}, {1, 2}, {0, 2}), strict=True):
        config = site_config(tmp_path, dataset=node["data-path"])
        images, labels = client_data(config, 0).train_set.tensors
        assert set(labels.tolist()) == classes
        assert all(
            int(image.float().mean((0, 1)).argmax()) == label for image, label in zip(images, labels, strict=True)
        )


def test_a_server_killed_between_rounds_is_resumed_to_the_same_bytes(nodes, tmp_path):
    config = site_config(tmp_path, algorithm="fedper", num_server_rounds=3)
    whole = federate(Sites(config, nodes), Experiment(config))
    states = [{**node, "state-path": f"{node['state-path']}-again"} for node in nodes]
    again = dataclasses.replace(config, output_dir=str(tmp_path / "again"))
    grid = Sites(again, states)
    deliver = grid.send_and_receive

    def killed(messages, *, timeout):
        if any(message.content["config"].get("server-round") == 3 for message in messages):
            raise KeyboardInterrupt
        return deliver(messages, timeout=timeout)

    grid.send_and_receive = killed
    with pytest.raises(KeyboardInterrupt):
        federate(grid, Experiment(again))
    resumed = dataclasses.replace(again, resume=str(tmp_path / "again" / "run"))
    folder = federate(Sites(resumed, states[::-1]), Experiment(resumed))
    assert files_that_decide(folder) == files_that_decide(whole)


def test_a_site_that_is_away_is_written_down_and_asked_again(nodes, tmp_path, capsys):
    config = site_config(tmp_path, min_clients_per_round=2)
    grid = Sites(config, nodes)
    answer, away = grid.answer, {("train", 1), ("evaluate", 1), ("evaluate", 2)}

    def sometimes(message, context):
        place = message.metadata.message_type, message.content["config"].get("server-round")
        if context.node_config["client-id"] == 1 and place in away:
            away.discard(place)
            return unavailable(message)
        return answer(message, context)

    grid.answer = sometimes
    folder = federate(grid, Experiment(config))
    told = capsys.readouterr().out
    assert told.count("failed: client 1 on node 1: Node Unavailable") == 3
    assert "asking clients [1] again" in told and "over 2 of 3 clients" in told
    assert [row["client"] for row in results.read_results(folder)["clients"]] == [0, 1, 2]


def test_a_site_that_stays_away_is_left_out_of_the_results(nodes, tmp_path, capsys):
    config = site_config(tmp_path, min_clients_per_round=2)
    grid = Sites(config, nodes)
    answer = grid.answer

    def gone(message, context):
        if context.node_config["client-id"] == 1 and message.metadata.message_type == "evaluate":
            return unavailable(message)
        return answer(message, context)

    grid.answer = gone
    folder = federate(grid, Experiment(config))
    assert [row["client"] for row in results.read_results(folder)["clients"]] == [0, 2]
    assert "over 2 clients" in capsys.readouterr().out
    grid.answer = lambda message, context: (
        answer(message, context) if message.metadata.message_type != "evaluate" else unavailable(message)
    )
    with pytest.raises(RunError, match=r"round 1: clients \[0, 1, 2\] were not evaluated: .*Node Unavailable"):
        federate(grid, Experiment(dataclasses.replace(config, run_name="second")))


def broken(node, key):
    return {name: value for name, value in node.items() if name != key}


REFUSED = {
    "no client-id": (
        lambda node: broken(node, "client-id"),
        "has no client-id; start the SuperNode with --node-config",
    ),
    "no data-path": (lambda node: broken(node, "data-path"), "has no data-path; start the SuperNode with"),
    "another's client-id": (lambda node: {**node, "client-id": 0}, "several nodes say they are 0; give each its own"),
    "a client-id too high": (
        lambda node: {**node, "client-id": 3},
        "client-id 3 on .*: there are 3 clients, so it must",
    ),
    "a client-id that is no number": (
        lambda node: {**node, "client-id": "b"},
        "client-id b on .*: there are 3 clients",
    ),
    "no folder": (lambda node: {**node, "data-path": "/nowhere"}, 'client-id 1 on .*: dataset = "/nowhere": '),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_node_with_another_configuration_is_refused_by_name_before_the_first_round(how, nodes, tmp_path):
    change, told = REFUSED[how]
    config = site_config(tmp_path)
    grid = Sites(config, [nodes[0], change(nodes[1]), nodes[2]])
    with pytest.raises(RunError, match=told):
        federate(grid, Experiment(config))
    assert not any(message.metadata.message_type == "train" for message in grid.messages)


def test_sites_with_a_class_that_the_federation_does_not_know_are_refused_in_a_line_each(nodes, tmp_path, capsys):
    config = site_config(tmp_path, class_names="red,green")
    why = r"client-id {} on .*: class-names = .* has no blue, which .*images-{} has"
    with pytest.raises(RunError, match="^a node cannot take part: client-id") as refused:
        federate(Sites(config, nodes), Experiment(config))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: a node")]
    lines.append(str(refused.value))
    for site in (1, 2):
        (line,) = [line for line in lines if re.search(why.format(site, site), line)]
        assert line.count("client-id") == 1 and "class '" not in line


def test_sites_have_the_names_that_their_owners_gave_them(nodes, tmp_path, capsys):
    config = site_config(tmp_path, min_clients_per_round=2)
    named = [{**nodes[0], "name": "St Mary"}, nodes[1], {**nodes[2], "name": "Charité"}]
    grid = Sites(config, named[::-1])
    answer = grid.answer

    def away(message, context):
        gone = context.node_config["client-id"] == 2 and message.metadata.message_type == "evaluate"
        return unavailable(message) if gone else answer(message, context)

    grid.answer = away
    folder = federate(grid, Experiment(config))
    told = capsys.readouterr().out
    assert "training samples of the sites: St Mary 24, site 1 24, Charité 24" in told
    assert "failed: client 2 (Charité) on node 2: Node Unavailable" in told
    assert "asking clients 2 (Charité) again" in told and "clients 2 (Charité) are missing from the results" in told
    assert [row["name"] for row in results.read_results(folder)["clients"]] == ["St Mary", "site 1"]
    assert run_folder.read_names(folder) == {0: "St Mary", 1: "site 1", 2: "Charité"}
    assert {each["name"] for each in failures_of(folder)} == {"Charité"}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("one", "two", "one"), "^sites 0 and 2 are both called one; give each a name of its own in node-config"),
        (("one", "two", "x" * 101), "^a node cannot take part 2: its name has more than 100 characters"),
    ],
)
def test_sites_whose_names_cannot_be_shown_are_refused(names, told, nodes, tmp_path):
    config = site_config(tmp_path)
    nodes = [{**node, "name": name} for node, name in zip(nodes, names, strict=True)]
    with pytest.raises(RunError, match=told):
        federate(Sites(config, nodes), Experiment(config))


def test_flower_logs_an_error_that_was_said_without_a_traceback(tmp_path, capsys):
    config = site_config(tmp_path)
    grid = Sites(config, [{}] * SITES)
    with pytest.raises(RunError, match="no client-id") as raised:
        serve(grid, config.to_run_config())
    record = logging.LogRecord("flwr", 40, "", 1, "raised", (), (RunError, raised.value, None))
    assert logging.getLogger("flwr").filter(record) and record.exc_info is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"class_names": ""}, 'class-names = "": partitioner sites needs it'),
        ({"class_names": "red"}, 'class-names = "red": partitioner sites needs it'),
        ({"class_names": "red,red"}, "must be different names"),
        ({"class_names": "red,,blue"}, "must be different names"),
        ({"normalization": "data"}, 'normalization = "data": no one sees the images of all sites'),
    ],
)
def test_a_configuration_that_sites_cannot_have_is_refused(options, told, tmp_path):
    with pytest.raises(InputError, match=told):
        site_config(tmp_path, **options)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--clients", "0"], "a site has the images of one client"), (["--clients", "0,1"], "a site has the images of")],
)
def test_a_site_fine_tunes_no_other_client(words, told, nodes, tmp_path, capsys):
    config = site_config(tmp_path, num_server_rounds=1)
    federate(Sites(config, nodes), Experiment(config))
    (state,) = (tmp_path / "state-1" / "client-1").iterdir()
    assert finetune([str(state), *MODEL, *words]) == 2
    assert told in capsys.readouterr().err
    assert not (state / "finetune").exists()


def test_the_servers_checkpoint_is_fine_tuned_at_a_site_that_says_who_it_is(nodes, tmp_path, capsys):
    config = site_config(tmp_path, num_server_rounds=1)
    folder = federate(Sites(config, nodes), Experiment(config))
    words = [str(folder), *MODEL, "--dataset", nodes[2]["data-path"]]
    assert finetune(words) == 2
    assert "give its client-id" in capsys.readouterr().err
    assert finetune([*words, "--clients", "2"]) == 0
    (tuned,) = folder.glob("finetune/*")
    assert results.read_results(tuned)["clients"] == results.read_results(folder)["clients"][2:]
    config = site_config(tmp_path, num_server_rounds=1, algorithm="fedper", run_name="second")
    words[0] = str(federate(Sites(config, nodes), Experiment(config)))
    assert finetune([*words, "--clients", "2"]) == 2
    assert "what fedper kept is in the site's state folder" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_sites_that_share_a_folder_do_not_overwrite_each_other(algorithm, nodes, tmp_path):
    config = site_config(tmp_path, algorithm=algorithm)
    shared = [{**node, "state-path": str(tmp_path / "shared")} for node in nodes]
    folder = federate(Sites(config, shared), Experiment(config))
    for site in range(SITES):
        (state,) = (tmp_path / "shared" / f"client-{site}").iterdir()
        assert read_federation(state / run_folder.LAST_CHECKPOINT, config.model_name).site == site
        kept = [path.name for path in state.glob("memory/*")]
        assert kept == ([f"client_{site:04d}"] if algorithm == "fedper" else [])
    assert len(results.read_results(folder)["clients"]) == SITES


def test_what_a_site_kept_before_sites_had_folders_of_their_own_is_read(tmp_path):
    (tmp_path / "run" / "memory" / "client_0001").mkdir(parents=True)
    host = Host(1, 3, None, tmp_path, client=1)
    assert host.memories("run/memory") == tmp_path / "run" / "memory"
    (tmp_path / "client-1" / "run" / "memory").mkdir(parents=True)
    assert host.memories("run/memory") == tmp_path / "client-1" / "run" / "memory"
    assert Host(2, 3, None, tmp_path, client=2).memories("run/memory") == tmp_path / "client-2" / "run" / "memory"


class TaskSites(Sites):
    """Sites of a task, each in a process of its own that has the data of its client."""

    def answer(self, message, context):
        handlers.HOSTS = Hosts()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SITE", str(context.node_config["client-id"]))
            return super().answer(message, context)


@pytest.mark.parametrize("algorithm", [pytest.param("fedbabu", marks=pytest.mark.slow), "fedper"])
def test_sites_of_a_task_have_their_own_data_alone(algorithm, tmp_path, capsys, monkeypatch):
    options = {
        "task": "tests.own_tasks:on_sites", "algorithm": algorithm, "num-clients": SITES, "fraction-train": 1.0,
        "num-server-rounds": 2, "num-local-epochs": 1, "num-finetune-epochs": 1, "precision": "32-true",
    }  # fmt: skip
    place = {"output-dir": str(tmp_path / "server"), "run-name": "run", "partitioner": "sites"}
    config = Config.from_run_config({**options, **place})
    nodes = [{"client-id": site, "state-path": str(tmp_path / f"state-{site}")} for site in range(SITES)]
    experiment = Experiment(config)
    experiment.check(images=False)
    folder = federate(TaskSites(config, nodes), experiment)
    assert "3 sites with data of their own" in capsys.readouterr().out
    outcome = results.read_results(folder)
    one = Config.from_run_config({**options, "task": "tests.own_tasks:windows", "output-dir": str(tmp_path / "one")})
    together = federate(FakeGrid(one), Experiment(one))
    assert outcome["clients"] == results.read_results(together)["clients"], "as with all data on one machine"
    (state,) = (tmp_path / "state-1" / "client-1").iterdir()
    monkeypatch.setenv("SITE", "1")
    assert finetune([str(state), "--task", "tests.own_tasks:on_sites", "--save"]) == 0
    (tuned,) = state.glob("finetune/*")
    assert results.read_results(tuned)["clients"] == [outcome["clients"][1]]
    monkeypatch.setenv("SITE", "2")
    assert finetune([str(state), "--task", "tests.own_tasks:on_sites", "--epochs", "2"]) == 2
    assert "its data of client 1 fail" in capsys.readouterr().err
    with pytest.raises(ValueError, match="client-id 0 on .*: its data of client 0 fail: .*are elsewhere"):
        handlers.HOSTS.of(Context(1, 1, nodes[0], RecordDict(), config.to_run_config()))


def test_sites_sum_without_showing_and_take_part_in_nothing_else_if_they_say_so(nodes, tmp_path):
    config = site_config(tmp_path, secure_aggregation=True)
    own = [{**node, "secure-aggregation": True} for node in nodes]
    folder = federate(Sites(config, own), Experiment(config))
    assert not (folder / run_folder.MEMORY).exists()
    for site in range(SITES):
        (secrets,) = (tmp_path / f"state-{site}").rglob("secure.json")
        assert secrets.stat().st_mode & 0o777 == 0o600 and '"secrets": ["", "", ""]' in secrets.read_text()
    clear = site_config(tmp_path, run_name="clear")
    with pytest.raises(RunError, match="node-config has secure-aggregation=true, and the run has not; start it with"):
        federate(Sites(clear, own), Experiment(clear))
    other = federate(Sites(clear := site_config(tmp_path, run_name="other"), nodes), Experiment(clear))
    found, expected = (read_federation(each / run_folder.LAST_CHECKPOINT, MODEL[1]).shared for each in (folder, other))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name
    assert any(not torch.equal(found[name], value) for name, value in expected.items()), "updates are quantized"
