import json

import pytest
import torch
from huggingface_hub import ModelCard

from lit_fedbabu import body, configs
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground import system
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.parts import parts_of
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from tests.personal.test_newcomer import paint
from tests.support import tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


def test_a_runs_body_is_saved_and_fine_tuned_as_the_run_itself(finished, tmp_path, capsys):
    assert body.main([str(finished), str(tmp_path / "shared"), "--dataset", "their/images"]) == 0
    saved, run = read_federation(tmp_path / "shared"), read_federation(finished / run_folder.LAST_CHECKPOINT)
    assert saved.shared.keys() == run.shared.keys() and saved.rounds == run.rounds
    assert all(torch.equal(saved.shared[name], value) for name, value in run.shared.items())
    assert saved.config.dataset == "their/images"
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert "FedBABU: the body of a federation on their/images" in card.text and card.data.datasets == ["their/images"]
    assert tiny_config().dataset not in (tmp_path / "shared" / "config.json").read_text() + card.content
    told, data = [], str(paint(tmp_path / "colours"))
    for source in (finished, tmp_path / "shared"):
        capsys.readouterr()
        assert finetune([str(source), "--data", data]) == 0
        *lines, following = capsys.readouterr().out.splitlines()
        told.append(lines)
        assert following.endswith(f"lit-fedbabu finetune {source} --data {data} --save me")
    assert told[0] == told[1]
    assert finetune([str(tmp_path / "shared")]) == 2
    assert "is a saved model, without the clients of its federation: give images" in capsys.readouterr().err
    assert body.main([str(finished), str(tmp_path / "shared")]) == 2 and "is not empty" in capsys.readouterr().err


def test_a_run_that_shares_no_body_has_none_to_save(federate, tmp_path, capsys):
    run, _ = federate(tiny_config(algorithm="lg-fedavg", num_server_rounds=1, num_clients=2))
    capsys.readouterr()
    assert body.main([str(run), str(tmp_path / "shared")]) == 2
    assert "lg-fedavg shares no body" in capsys.readouterr().err and not (tmp_path / "shared").exists()


@pytest.mark.parametrize(("name", "algorithm"), [("cifar10", "fedbabu"), ("cifar10-fedavg", "fedavg")])
def test_the_bodies_of_this_package_are_whole_and_say_what_they_are(name, algorithm):
    folder = system.shipped_bodies()[name]
    saved = checkpoint.read(folder)
    config = saved.config()
    assert (config.algorithm, config.dataset, saved.provenance["round"]) == (algorithm, "uoft-cs/cifar10", 80)
    assert sum(value.numel() for value in saved.state.values()) == 115_658
    assert "frog" in saved.provenance["class_names"]
    for file in folder.iterdir():
        assert file.stat().st_size < 500_000 and b"/work" not in file.read_bytes(), "no path of the machine it is from"
    initial, personalized = (result.metric_value for result in ModelCard.load(folder / "README.md").data.eval_results)
    assert initial == pytest.approx(saved.provenance["rounds"][-1]["initial_accuracy"]["mean"])
    assert initial < personalized
    assert ("head" in parts_of(ALGORITHMS[algorithm].shared)) == (name == "cifar10-fedavg")


def test_a_body_of_this_package_is_fine_tuned_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.main([]) == 0
    assert "cifar10        FedBABU: the body of a federation on uoft-cs/cifar10" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        finetune(["--help"])
    assert "cifar10, cifar10-fedavg" in capsys.readouterr().out
    paint(tmp_path / "colours")
    assert finetune(["cifar10", "--data", "colours", "--save", "me", "--epochs", "1"]) == 0
    assert capsys.readouterr().out.startswith("cifar10: FedBABU: the body of a federation on uoft-cs/cifar10")
    provenance = json.loads((tmp_path / "me" / "config.json").read_text())["lit_fedbabu"]
    assert provenance["class_names"] == ["blue", "green", "red"] and provenance["data"] == "colours"
    assert finetune(["cifar10"]) == 2
    assert "give images of your own with --data" in capsys.readouterr().err
