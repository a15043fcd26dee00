import json
import shutil

import pytest
import torch

from lit_fedbabu import finetune, runs
from lit_fedbabu.batches import ClientData
from lit_fedbabu.module import LitFedBABU
from lit_fedbabu.training import evaluate
from tests.helpers import tiny_config

pytestmark = pytest.mark.usefixtures("one_core")


def test_fine_tuning_the_checkpoint_gives_the_runs_own_numbers(federate, capsys):
    folder, _ = federate(tiny_config(num_finetune_epochs=2))
    assert finetune.main([str(folder)]) == 0
    again = folder / "finetune" / "full-2epochs-lr0.001" / "results.json"
    assert again.read_text() == (folder / "results.json").read_text()
    assert "personalized" in capsys.readouterr().out


def test_chosen_clients_are_saved_as_checkpoints_that_give_their_numbers(federate, capsys):
    folder, _ = federate(tiny_config())
    command = [str(folder), "--part", "head", "--epochs", "3", "--lr", "0.05", "--clients", "4,1", "--save"]
    assert finetune.main(command) == 0
    place = folder / "finetune" / "head-3epochs-lr0.05"
    outcome = json.loads((place / "results.json").read_text())
    assert [row["client"] for row in outcome["clients"]] == [1, 4]
    assert "over 2 clients" in capsys.readouterr().out
    shared = LitFedBABU.load_from_checkpoint(folder / runs.LAST_CHECKPOINT).model.state_dict()
    for row in outcome["clients"]:
        module = LitFedBABU.load_from_checkpoint(place / "personal" / f"client_{row['client']:04d}.ckpt")
        assert module.about["client"] == row["client"]
        assert torch.equal(module.model.state_dict()["body.0.0.weight"], shared["body.0.0.weight"])
        assert not torch.equal(module.model.head.weight, shared["head.weight"])
        evaluation = evaluate(module, ClientData(tiny_config(), row["client"], 0))
        assert evaluation.accuracy == row["personalized_accuracy"]


def test_the_checkpoint_alone_is_enough_and_nothing_is_overwritten(federate, tmp_path):
    folder, _ = federate(tiny_config())
    alone = tmp_path / "elsewhere" / "body.ckpt"
    alone.parent.mkdir()
    shutil.copy(folder / runs.LAST_CHECKPOINT, alone)
    for _ in range(2):
        assert finetune.main([str(alone), "--clients", "0"]) == 0
    assert {path.name for path in (alone.parent / "finetune").iterdir()} == {
        "body-full-1epochs-lr0.001",
        "body-full-1epochs-lr0.001-2",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "RUN_OR_CHECKPOINT"),
        (["{run}", "--part", "legs"], "finetune-part"),
        (["{run}", "--epochs", "-1"], "num-finetune-epochs"),
        (["{run}", "--lr", "0"], "finetune-learning-rate"),
        (["{run}", "--clients", "0,6"], "the run's clients are 0 to 5"),
        (["{run}", "--clients", "two"], "must be all, or numbers"),
        (["{run}", "--dataset", "nowhere"], "dataset"),
        (["{broken}"], "not one that a run of lit_fedbabu wrote"),
        (["{foreign}"], "not one that a run of lit_fedbabu wrote"),
        (["{code}"], "not one that a run of lit_fedbabu wrote"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(arguments, words, federate, tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return (pytest.fail, ("code in a checkpoint was run",))

    folder, _ = federate(tiny_config(num_server_rounds=1, num_clients=6))
    places = {name: str(tmp_path / f"{name}.ckpt") for name in ("broken", "foreign", "code")}
    whole = (folder / runs.LAST_CHECKPOINT).read_bytes()
    (tmp_path / "broken.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, places["foreign"])
    torch.save(Code(), places["code"])
    capsys.readouterr()
    assert finetune.main([word.format(run=folder, **places) for word in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and words in told.err, told.err
    assert not told.out
    assert not (folder / "finetune").exists() and not (tmp_path / "finetune").exists()
