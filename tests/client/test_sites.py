"""Real nodes: every client is a site with images and a disk of its own."""

import os
import stat

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.app import Context, Error, Message, RecordDict
from PIL import Image

from lit_fedbabu import credentials, finetune, runs, server_app, strategy, update, warm, worker
from lit_fedbabu.batches import ClientData
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.module import LitFedBABU
from lit_fedbabu.nodes import RunError
from tests.helpers import NARROW, FakeGrid, unavailable
from tests.test_federation import files_that_decide

SITES = 3
MODEL = ["--model-name", NARROW]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_site(folder, classes, count=12):
    """An image folder of noisy colours: ``train/red/0.png`` and so on."""
    rng = np.random.default_rng(sum(map(ord, str(folder.name))))
    for split in ("train", "test"):
        for name in classes:
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 56, (32, 32, 3)) + np.array(COLOURS[name])
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The node-config of three sites, of which none has all classes, and a place for what is theirs."""
    monkeypatch.setattr(strategy, "SITE_PAUSE_S", 0)
    monkeypatch.setattr(warm, "answer", lambda what, *received: getattr(worker, what)(*received))
    own = [["red", "green"], ["blue", "green"], ["red", "blue"]]
    return [
        {
            "client-id": site,
            "data-path": str(write_site(tmp_path / f"images-{site}", classes)),
            "state-path": str(tmp_path / f"state-{site}"),
        }
        for site, classes in enumerate(own)
    ]


def site_config(tmp_path, **changes):
    options = {
        "dataset": "colours",
        "partitioner": "sites",
        "class_names": "red,green,blue",
        "normalization": "imagenet",
        "num_clients": SITES,
        "fraction_train": 1.0,
        "num_server_rounds": 2,
        "num_local_epochs": 1,
        "num_finetune_epochs": 1,
        "batch_size": 10,
        "learning_rate": 0.05,
        "evaluate_every": 1,
        "precision": "32-true",
        "model_name": NARROW,
        "output_dir": str(tmp_path / "server"),
        "run_name": "run",
    }
    return Config(**{**options, **changes})


class Sites(FakeGrid):
    """A grid of nodes with these node-configs; what a node raises comes back as Flower's SuperNodes send it."""

    def __init__(self, config, node_configs):
        super().__init__(config, len(node_configs))
        run_config = config.to_run_config()
        self.contexts = {
            node: Context(1, node, own, RecordDict(), run_config) for node, own in zip(self.contexts, node_configs)
        }

    def answer(self, message, context):
        try:
            return super().answer(message, context)
        except Exception as error:
            return Message(Error(code=1, reason=f"{type(error)}:<'{error}'>"), reply_to=message)


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_sites_train_on_their_own_images_and_keep_what_is_theirs(algorithm, nodes, tmp_path, capsys):
    config = site_config(tmp_path, algorithm=algorithm)
    grid = Sites(config, nodes[::-1])
    folder = server_app.federate(grid, config)
    outcome = runs.read_results(folder)
    assert [row["client"] for row in outcome["clients"]] == [0, 1, 2]
    assert all(row["num_test"] == 24 for row in outcome["clients"])
    assert not (folder / runs.PARTITION).exists() and not (folder / runs.MEMORY).exists()
    assert "3 sites with images of their own" in capsys.readouterr().out
    for message in grid.messages:
        assert str(tmp_path / "images") not in str(message.content) and "red" not in str(message.content)
    for site in range(SITES):
        (state,) = (tmp_path / f"state-{site}").iterdir()
        memories = [path.name for path in state.glob("memory/*")]
        assert memories == ([f"client_{site:04d}"] if algorithm == "fedper" else [])
        own = LitFedBABU.load_from_checkpoint(state / runs.LAST_CHECKPOINT).model.state_dict()
        shared = LitFedBABU.load_from_checkpoint(folder / runs.LAST_CHECKPOINT).model.state_dict()
        assert all(torch.equal(own[name], shared[name]) for name in update.shared_names(config))
        assert finetune.main([str(state), *MODEL, "--save"]) == 0
        (tuned,) = state.glob("finetune/*")
        (row,) = runs.read_results(tuned)["clients"]
        assert row == outcome["clients"][site], "the site's own fine-tuning is that of the federation"
        assert (tuned / "personal" / f"client_{site:04d}.ckpt").exists()


def test_labels_have_the_federations_numbers_whatever_a_site_has(nodes, tmp_path):
    for node, classes in zip(nodes, ({0, 1}, {1, 2}, {0, 2})):
        config = site_config(tmp_path, dataset=node["data-path"])
        images, labels = ClientData(config, 0, 0).train_set.tensors
        assert set(labels.tolist()) == classes
        assert all(int(image.float().mean((0, 1)).argmax()) == label for image, label in zip(images, labels))


def test_a_server_killed_between_rounds_is_resumed_to_the_same_bytes(nodes, tmp_path):
    config = site_config(tmp_path, algorithm="fedper", num_server_rounds=3)
    whole = server_app.federate(Sites(config, nodes), config)
    states = [{**node, "state-path": f"{node['state-path']}-again"} for node in nodes]
    again = Config(**{**vars(config), "output_dir": str(tmp_path / "again")})
    grid = Sites(again, states)
    deliver = grid.send_and_receive

    def killed(messages, *, timeout):
        if any(message.content["config"].get("server-round") == 3 for message in messages):
            raise KeyboardInterrupt
        return deliver(messages, timeout=timeout)

    grid.send_and_receive = killed
    with pytest.raises(KeyboardInterrupt):
        server_app.federate(grid, again)
    resumed = Config(**{**vars(again), "resume": str(tmp_path / "again" / "run")})
    folder = server_app.federate(Sites(resumed, states[::-1]), resumed)
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
    folder = server_app.federate(grid, config)
    told = capsys.readouterr().out
    assert told.count("failed: client 1 on node 1: Node Unavailable") == 3
    assert "asking clients [1] again" in told and "over 2 clients" in told
    assert [row["client"] for row in runs.read_results(folder)["clients"]] == [0, 1, 2]


def test_a_site_that_stays_away_is_left_out_of_the_results(nodes, tmp_path, capsys):
    config = site_config(tmp_path, min_clients_per_round=2)
    grid = Sites(config, nodes)
    answer = grid.answer

    def gone(message, context):
        if context.node_config["client-id"] == 1 and message.metadata.message_type == "evaluate":
            return unavailable(message)
        return answer(message, context)

    grid.answer = gone
    folder = server_app.federate(grid, config)
    assert [row["client"] for row in runs.read_results(folder)["clients"]] == [0, 2]
    assert "over 2 clients" in capsys.readouterr().out
    grid.answer = lambda message, context: (
        answer(message, context) if message.metadata.message_type != "evaluate" else unavailable(message)
    )
    with pytest.raises(RunError, match=r"round 1: clients \[0, 1, 2\] were not evaluated: .*Node Unavailable"):
        server_app.federate(grid, Config(**{**vars(config), "run_name": "second"}))


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
        server_app.federate(grid, config)
    assert not any(message.metadata.message_type == "train" for message in grid.messages)


def test_a_site_with_a_class_that_the_federation_does_not_know_is_refused(nodes, tmp_path):
    config = site_config(tmp_path, class_names="red,green")
    with pytest.raises(RunError, match="client-id 1 on .*: class-names = .* has no blue, which .*images-1 has"):
        server_app.federate(Sites(config, nodes), config)


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
    with pytest.raises(ConfigError, match=told):
        site_config(tmp_path, **options)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--clients", "0"], "a site has the images of one client"), (["--clients", "0,1"], "a site has the images of")],
)
def test_a_site_fine_tunes_no_other_client(words, told, nodes, tmp_path, capsys):
    config = site_config(tmp_path, num_server_rounds=1)
    server_app.federate(Sites(config, nodes), config)
    (state,) = (tmp_path / "state-1").iterdir()
    assert finetune.main([str(state), *MODEL, *words]) == 2
    assert told in capsys.readouterr().err
    assert not (state / "finetune").exists()


def test_the_servers_checkpoint_is_fine_tuned_at_a_site_that_says_who_it_is(nodes, tmp_path, capsys):
    config = site_config(tmp_path, num_server_rounds=1)
    folder = server_app.federate(Sites(config, nodes), config)
    words = [str(folder), *MODEL, "--dataset", nodes[2]["data-path"]]
    assert finetune.main(words) == 2
    assert "give its client-id" in capsys.readouterr().err
    assert finetune.main([*words, "--clients", "2"]) == 0
    (tuned,) = folder.glob("finetune/*")
    assert runs.read_results(tuned)["clients"] == runs.read_results(folder)["clients"][2:]
    config = site_config(tmp_path, num_server_rounds=1, algorithm="fedper", run_name="second")
    words[0] = str(server_app.federate(Sites(config, nodes), config))
    assert finetune.main([*words, "--clients", "2"]) == 2
    assert "what fedper kept is in the site's state folder" in capsys.readouterr().err


def test_certificates_and_keys_are_made_once_and_are_what_flower_takes(tmp_path, capsys):
    folder = tmp_path / "credentials"
    words = [str(folder), "--sites", "2", "--host", "hub.example.org", "--host", "127.0.0.1"]
    assert credentials.main(words) == 0
    made = {path.name: path for path in folder.iterdir()}
    assert set(made) == {"ca.crt", "superlink.crt", "superlink.key", "site-0", "site-0.pub", "site-1", "site-1.pub"}
    root, server = (x509.load_pem_x509_certificate(made[name].read_bytes()) for name in ("ca.crt", "superlink.crt"))
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    for name in ("site-0", "site-1"):
        private = serialization.load_ssh_private_key(made[name].read_bytes(), None)
        public = serialization.load_ssh_public_key(made[f"{name}.pub"].read_bytes())
        assert private.public_key() == public and public.curve.name == "secp384r1"
    for name in ("site-0", "site-1", "superlink.key"):
        assert stat.S_IMODE(os.stat(made[name]).st_mode) == 0o600
    before = {name: path.read_bytes() for name, path in made.items()}
    assert credentials.main(words) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sites", "0"], "--sites = 0: must be at least 1"),
        (["--sites", "1", "--host", "hüb"], "must be a name of ASCII letters or an IP address"),
    ],
)
def test_credentials_that_cannot_be_made_leave_no_folder(words, told, tmp_path, capsys):
    assert credentials.main([str(tmp_path / "new"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
