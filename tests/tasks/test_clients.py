"""Folders of clients: which are clients, which are classes, and what each client has."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu.config import Config
from lit_fedbabu.data import table
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.predict import main as predict
from lit_fedbabu.records.plots import heat_map
from lit_fedbabu.records.results import named, read_results
from lit_fedbabu.records.run_folder import read_names
from lit_fedbabu.report import main
from lit_fedbabu.reporting.runs import read_run
from lit_fedbabu.tasks.images.task import ImageClassification
from lit_fedbabu.training.experiment import Experiment
from tests.support import failing, failures_of, tiny_config
from tests.tasks.test_folders import paint

CLIENTS = {"alice": ("cats", "dogs"), "bob": ("cats", "dogs"), "carol": ("dogs", "owls", "cats")}


def task(folder, clients=3, column="", **more):
    options = {"partitioner": "natural-id", "min_client_images": 1, "natural_id_column": column, **more}
    return ImageClassification(Config(dataset=str(folder), num_clients=clients, **options))


def fill(top, form, count=5):
    """Images of each client and class, in folders of a form as "split/client/class"."""
    for client, classes in CLIENTS.items():
        for label in classes:
            for split in ("train", "test") if "split" in form else ("",):
                names = {"client": client, "class": label, "split": split}
                paint(top.joinpath(*(names[each] for each in form.split("/"))), count)
    return top


@pytest.mark.parametrize(
    ("form", "column"),
    [
        ("client/class", "client/class"),
        ("split/client/class", "client/class"),
        ("client/split/class", ""),
        ("class/client", "class/client"),
        ("split/class/client", "class/client"),
    ],
)
def test_folders_are_clients_and_keep_their_names(form, column, tmp_path):
    dealt = task(fill(tmp_path, form), column=column)
    assert dealt.source.class_names == ("cats", "dogs", "owls")
    assert sorted(dealt.client_names) == sorted(CLIENTS)
    splits = (5, 5) if "split" in form else (4, 1)
    for name, train, test in zip(dealt.client_names, dealt.partition.train, dealt.partition.test, strict=True):
        for split, part, count in zip((dealt.source.train, dealt.source.test), (train, test), splits, strict=True):
            labels = [dealt.source.class_names[label] for label in split.labels[part]]
            assert sorted(labels) == sorted(CLIENTS[name] * count)
    lines = table(dealt.class_counts(), dealt.client_names).splitlines()
    assert all(line.endswith(f"  ({name})") for line, name in zip(lines[1:], dealt.client_names, strict=True))
    assert named([{"client": 2}], dealt.client_names) == [{"client": 2, "name": dealt.client_names[2]}]
    assert named([{"client": 2}], ()) == [{"client": 2}]
    (note,) = dealt.notes
    assert "alice, bob, carol are clients, and cats, dogs, owls are classes" in note


@pytest.mark.parametrize("form", ["client/class", "class/client", "split/client/class", "split/class/client"])
@pytest.mark.parametrize(
    ("left_out", "more"),
    [("owls", {}), ("", {"class_names": "owls,cats,dogs"}), ("", {"class_names": "cats,dogs,owls,x"})],
)
def test_clients_and_classes_are_told_apart_where_one_way_alone_is_possible(
    form, left_out, more, tmp_path, monkeypatch
):
    monkeypatch.setitem(CLIENTS, "carol", tuple(each for each in CLIENTS["carol"] if each != left_out))
    dealt = task(fill(tmp_path, form), **more)
    assert sorted(dealt.client_names) == sorted(CLIENTS)
    assert set(dealt.class_names) >= {"cats", "dogs"} and not set(dealt.class_names) & set(CLIENTS)


@pytest.mark.parametrize("form", ["client/class", "class/client", "split/client/class", "split/class/client"])
def test_it_is_asked_which_folders_are_clients_where_both_ways_are_possible(form, tmp_path):
    outer, inner = ("alice.*", "cats.*") if form.endswith("client/class") else ("cats.*", "alice.*")
    words = f"which are the clients. If {outer}, take natural-id-column=client/class; if {inner}=class/client"
    with pytest.raises(InputError, match=words):
        task(fill(tmp_path, form), 2).check_data()


def test_clients_may_be_grouped_and_an_image_of_its_kind_is_trained_on(tmp_path):
    for name in ("a", "b", "c", "d"):
        paint(tmp_path / name / "cats", 4)
        paint(tmp_path / name / "dogs", 1)
    dealt = task(tmp_path, 2, "client/class")
    assert sorted(", ".join(dealt.client_names).split(", ")) == ["a", "b", "c", "d"]
    assert [len(part) for part in (*dealt.partition.train, *dealt.partition.test)] == [8, 8, 2, 2]


REFUSED = {
    "classes alone": ("cats", "", "natural-id needs a folder for each client, .*; it has cats"),
    "splits of classes alone": ("train/cats", "", "natural-id needs a folder for each client"),
    "splits of a client": ("alice/train alice/test", "", "natural-id needs a folder for each client"),
    "no two have a name": ("a/x b/y", "", "are the clients.*=client/class; if x, y, natural-id-column=class/client"),
    "a split for one": ("alice/train/cats bob/cats", "", "has alice/train/cats in a split and bob/cats in none"),
    "a folder beside splits": ("train/alice/cats bob/cats", "", "has train/alice/cats in a split and bob/cats in none"),
    "more clients than folders": ("cats/a dogs/a cats/b dogs/b", "client/class", "are those of 2 clients .cats, dogs"),
    "no such form": ("a/x b/x", "x", 'natural-id-column = "x": is no column of the dataset; it has image'),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_folders_that_do_not_say_who_has_what_are_refused_in_one_line(how, tmp_path):
    places, column, words = REFUSED[how]
    for place in places.split():
        paint(tmp_path / place, 5)
    with pytest.raises(InputError, match=words) as caught:
        task(tmp_path, column=column).check_data()
    assert "\n" not in str(caught.value)


def test_clients_in_folders_without_natural_id_are_told(tmp_path):
    fill(tmp_path, "client/class")
    with pytest.raises(InputError, match="if they are splits, name them .*; if clients, take partitioner=natural-id"):
        task(tmp_path, partitioner="iid").check_data()


@pytest.mark.pictures
def test_a_failure_and_the_figures_say_whose_they_are(federate, tmp_path, monkeypatch):
    options = {"dataset": str(fill(tmp_path / "photos", "client/class")), "partitioner": "natural-id", "num_clients": 3}
    options["natural_id_column"] = "client/class"
    config = tiny_config(
        **options, fraction_train=1.0, min_clients_per_round=1, min_client_images=1, num_server_rounds=1
    )
    failing(monkeypatch, lambda client, server_round: client == 1)
    folder, _ = federate(config)
    owners = [each["name"] for each in read_results(folder)["clients"]]
    assert sorted(owners) == ["alice", "bob", "carol"]
    (failure,) = failures_of(folder)
    assert (failure["client"], failure["name"]) == (1, owners[1])
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    (told,) = events.Tensors("failures/text_summary")
    assert f"client 1 ({owners[1]}) on node 0: " in told.tensor_proto.string_val[0].decode()
    run = read_run(folder)
    assert run.failures[0]["client"] == f"1 ({owners[1]})" and run.partition.clients == tuple(owners)
    names = [
        label.get_text() for label in heat_map(run.partition.text, run.partition.clients).axes[0].get_xticklabels()
    ]
    assert names == owners
    assert main([str(folder), "--out", str(tmp_path / "report")]) == 0
    drawn = (tmp_path / "report" / "partition.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in names)


@pytest.mark.slow
def test_clients_are_chosen_by_their_names_and_so_are_their_models(federate, tmp_path, capsys):
    photos = fill(tmp_path / "photos", "client/class")
    options = {"dataset": str(photos), "partitioner": "natural-id", "natural_id_column": "client/class"}
    folder, _ = federate(tiny_config(**options, num_clients=3, min_client_images=1, num_server_rounds=1))
    names = read_names(folder)
    assert sorted(names.values()) == sorted(CLIENTS)
    assert finetune([str(folder), "--clients", "carol, alice", "--save", "--epochs", "1"]) == 0
    (tuned,) = folder.glob("finetune/*")
    rows = read_results(tuned)["clients"]
    assert {row["name"] for row in rows} == {"alice", "carol"}
    assert all(names[row["client"]] == row["name"] for row in rows)
    (carol,) = (client for client, name in names.items() if name == "carol")
    saved = LitFedBABU.load_from_checkpoint(tuned / "personal" / f"client_{carol:04d}.ckpt")
    assert saved.provenance["client_name"] == "carol"
    head, *shown = (tuned / "00000" / "body_features" / "metadata.tsv").read_text().splitlines()
    assert head == "class\tclient" and {row.split("\t")[1] for row in shown} == {"alice", "carol"}
    image = str(photos / "bob" / "cats" / "0.png")
    capsys.readouterr()
    assert predict([str(folder), image]) == 0
    told = capsys.readouterr()
    assert f"is that of client {rows[0]['client']} ({rows[0]['name']}), the first of 2" in told.err
    outputs = {}
    for whose in ("carol", str(carol)):
        assert predict([str(folder), image, "--client", whose]) == 0
        outputs[whose] = capsys.readouterr().out
    assert outputs["carol"] == outputs[str(carol)]
    assert predict([str(folder), image, "--client", "bob"]) == 2
    assert f"{carol} (carol)" in capsys.readouterr().err
    assert finetune([str(folder), "--clients", "dora"]) == 2
    assert "or names as in " in capsys.readouterr().err
    (folder / "clients.csv").write_text("whose")
    assert finetune([str(folder), "--clients", "0"]) == 2
    assert "clients.csv" in capsys.readouterr().err


def test_clients_of_a_task_have_the_names_that_it_gives_them(federate, capsys):
    options = {"num_server_rounds": 1, "num_local_epochs": 1, "num_finetune_epochs": 1, "precision": "32-true"}
    config = Config(task="tests.own_tasks:named", num_clients=4, **options)
    folder, _ = federate(config)
    assert [row["name"] for row in read_results(folder)["clients"]] == ["pump", "press, left", "7", "fan"]
    command = [str(folder), "--task", "tests.own_tasks:named", "--epochs", "0", "--clients"]
    for whose, number in {"press, left": 1, "fan": 3}.items():
        assert finetune([*command, whose]) == 0
        told = capsys.readouterr().out
        assert f"client    {number}  initial" in told and f"({whose})" in told
    for task, number, remedy in (
        ("named", 6, "has 5 client_names; give each of the 6 a text"),
        ("twins", 2, "has two client_names pump; give each client its own"),
    ):
        with pytest.raises(InputError, match=remedy):
            Experiment(Config(task=f"tests.own_tasks:{task}", num_clients=number, **options)).check()
