"""Whole federations of tasks of users: run, stopped and resumed, fine-tuned, reported, and what is refused."""

import json
import shutil

import pytest
import torch

from lit_fedbabu import finetune, run
from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune_main
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records.classifier import load_model
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, RESULTS
from lit_fedbabu.report import main as report_main
from lit_fedbabu.run import main as run_main
from lit_fedbabu.tasks.custom import loaders
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.support import FakeGrid, curves, files_that_decide

TASK = "tests.own_tasks:windows"


def config_of(task="windows", **options):
    given: dict[str, object] = {"num-clients": 4}
    given |= {"num-server-rounds": 3, "num-local-epochs": 1, "num-finetune-epochs": 1}
    given |= {"task": f"tests.own_tasks:{task}", "precision": "32-true", "evaluate-every": 1}
    return Config.from_run_config({**given, **{key.replace("_", "-"): value for key, value in options.items()}})


class Breaks(FakeGrid):
    """A grid that is gone after some exchanges."""

    def __init__(self, config, after):
        super().__init__(config)
        self.left = after

    def send_and_receive(self, messages, *, timeout=None):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().send_and_receive(messages, timeout=timeout)


@pytest.fixture(scope="module")
def windows(machine, tmp_path_factory):
    """The folder of a finished federation of sensor windows."""
    from lit_fedbabu.server.federate import federate

    config = config_of(output_dir=str(tmp_path_factory.mktemp("windows")), run_name="run")
    return federate(FakeGrid(config), Experiment(config))


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper", "ditto"])
def test_a_stopped_federation_is_resumed_to_the_same_bytes(algorithm, federate):
    whole, _ = federate(config_of(algorithm=algorithm))
    config = config_of(algorithm=algorithm)
    with pytest.raises(KeyboardInterrupt):
        federate(config, Breaks(config, 4))
    stopped = whole.with_name("run2")
    assert not (stopped / RESULTS).exists()
    resumed, _ = federate(config_of(algorithm=algorithm, resume=str(stopped)))
    assert resumed == stopped
    assert files_that_decide(resumed) == files_that_decide(whole)


def test_results_checkpoints_and_curves_say_the_score(windows, federate, capsys):
    outcome = json.loads((windows / RESULTS).read_text())
    assert outcome["score"] == {"name": "f1", "higher_is_better": True}
    over = outcome["summary"]["personalized_f1"]
    assert over["mean"] == pytest.approx(sum(row["personalized_f1"] for row in outcome["clients"]) / 4)
    assert {"f1/initial_mean", "f1/personalized_mean", "train/loss"} <= curves(windows).keys()
    saved = own_tasks.Windows.load_from_checkpoint(windows / LAST_CHECKPOINT, weights_only=True)
    shared = read_federation(windows / LAST_CHECKPOINT, TASK).shared
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in shared.items())
    assert (windows / "partition.csv").read_text().splitlines()[:2] == ["client,split,samples", "0,train,24"]
    federate(config_of("regression"))
    out = capsys.readouterr().out
    assert "initial error" in out
    assert "its own rate stands in every round" in out
    assert "learning rate of the module" in out


@pytest.mark.slow
def test_less_of_a_score_can_be_better(federate, tmp_path, capsys):
    folders = [str(federate(config_of("regression", algorithm=name))[0]) for name in ("fedbabu", "fedavg")]
    outcome = json.loads((tmp_path / "run1" / RESULTS).read_text())
    errors = sorted(row["personalized_error"] for row in outcome["clients"])
    assert outcome["summary"]["personalized_error"]["worst_decile"] == errors[-1]
    means = [each["initial_error"]["mean"] for each in outcome["rounds"]]
    assert outcome["best_round_on_test_data"]["round"] == means.index(min(means)) + 1
    assert report_main([*folders, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Personalized error minus that of FedBABU" in page
    rows = (tmp_path / "report" / "differences.csv").read_text().splitlines()
    difference, ahead = rows[1].split(",")[4:6]
    assert ahead == f"{int(float(difference) < 0)} of 1"
    other = str(federate(config_of())[0])
    capsys.readouterr()
    assert report_main([folders[0], other, "--out", str(tmp_path / "both")]) == 2
    assert "has the score f1" in capsys.readouterr().err


def test_clients_are_finetuned_to_what_the_run_noted(windows, tmp_path, one_core, capsys):
    copied = shutil.copytree(windows, tmp_path / "run")
    assert finetune_main([str(copied)]) == 2
    assert "give --task to trust it" in capsys.readouterr().err
    assert finetune_main([str(copied), "--task", TASK, "--save"]) == 0
    assert "client    3  initial" in capsys.readouterr().out
    (tuned,) = copied.glob("finetune/*")
    noted = json.loads((windows / RESULTS).read_text())["clients"]
    assert json.loads((tuned / RESULTS).read_text())["clients"] == noted
    personal = own_tasks.Windows.load_from_checkpoint(tuned / "personal" / "client_0002.ckpt", weights_only=True)
    data = own_tasks.Sensors(2, 4, 42)
    data.setup("test")
    score = own_tasks.L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    assert score.test(personal, data, verbose=False)[0]["test_f1"] == pytest.approx(noted[2]["personalized_f1"])
    with pytest.raises(InputError, match="load_module gives its LightningModule"):
        load_model(tuned / "personal" / "client_0002.ckpt", TASK)


def test_a_newcomer_gets_a_model_of_its_own(windows, tmp_path, capsys):
    options = {"task": TASK, "data": "tests.own_tasks:newcomer", "save_to": tmp_path / "me", "epochs": 2}
    (outcome,) = finetune(windows, **options)
    assert outcome["clients"][0]["num_test"] > 0
    assert "epoch 2  f1" in capsys.readouterr().out
    saved = checkpoint.read(tmp_path / "me" / "personal.ckpt", TASK)
    assert saved.kind == "newcomer"
    with pytest.raises(InputError, match="import path of a LightningDataModule"):
        finetune(windows, task=TASK, data="nowhere:newcomer")
    for options in ({"augmentation": "none"}, {"running_statistics": True}, {"label_column": "kind"}):
        with pytest.raises(InputError, match="is for federations of images, and this one is of a task; leave it out"):
            finetune(windows, task=TASK, data="tests.own_tasks:newcomer", save_to=tmp_path / "me", **options)


REFUSED = [
    ("nowhere:task", "import path of a lit_fedbabu.Task"),
    ("tests.own_tasks:no_task", "it is a type, Windows"),
    ("tests.own_tasks:half", "it is a Half without data"),
    ("tests.own_tasks:headless", "Headless has no head, which is to be its head"),
    ("tests.own_tasks:tied", "is in body and head at once"),
    ("tests.own_tasks:extra", "its weight temperature is in neither body nor head"),
    ("tests.own_tasks:empty", "the test loader of client 2 is empty"),
    ("tests.own_tasks:not_logged", "test_accuracy is not logged in test_step; test_loss, test_f1 is logged"),
    ("tests.own_tasks:fails", "training its body on data of client 0 fails: RuntimeError: shapes do not fit"),
    ("tests.own_tasks:single", "training its body on data of client 3 fails: ValueError: Expected more than 1 value"),
    ("tests.own_tasks:head_only", "its optimizer holds no weight of its body"),
    ("tests.own_tasks:overlaps", "its weight net.readout.weight is in body and head at once"),
    ("tests.own_tasks:untold", "its training_step returns no loss"),
    ("tests.own_tasks:replaces", "its head.weight is replaced when training starts"),
    ("tests.own_tasks:grows", "its body.means changes from shape [0] to [18] in training"),
    ("tests.own_tasks:outside", "its norm.running_mean changes in training, is in neither body nor head"),
    ("tests.own_tasks:extra_state", "its head._extra_state, of get_extra_state, is no weight or buffer"),
    ("tests.own_tasks:locked", "its module cannot be copied: TypeError: cannot pickle"),
    ("tests.own_tasks:logs_twice", "it logs test_f1 and f1, which would both be f1 in results.json"),
    ("tests.own_tasks:logs_steps", "its score test_f1 is not logged in test_step; test_f1_epoch is logged"),
    ("tests.own_tasks:late_body", "no loss of its training_step depends on a weight of its body that trains"),
    ("tests.own_tasks:untested", "its Untested has no test_step; add one that logs the score"),
    (
        "tests.own_tasks:hooked",
        "its function Hooked.__init__.<locals>.count holds the module, and would act on another",
    ),
    ("tests.own_tasks:silent", "its training_step returns no loss"),
    ("tests.own_tasks:elsewhere", "its module is of pytorch_lightning, which is another package; write import light"),
    ("tests.own_tasks:elsewhere_data", "its data of client 0 is of pytorch_lightning"),
    ("tests.own_tasks:outside_teacher", "its teacher.weight changes in training, is in neither body nor head"),
    ("tests.own_tasks:endless", "a loader does not end within"),
    ("tests.own_tasks:drops", "the training loader of client 2 gives no batch of its 24 samples"),
]


def test_an_object_with_a_tasks_methods_is_one(windows, federate):
    folder, _ = federate(config_of("as_object"))
    saved = [
        read_federation(each / LAST_CHECKPOINT, f"tests.own_tasks:{name}")
        for each, name in ((folder, "as_object"), (windows, "windows"))
    ]
    assert saved[0].shared.keys() == saved[1].shared.keys()
    assert all(torch.equal(value, saved[1].shared[name]) for name, value in saved[0].shared.items())


@pytest.mark.parametrize(("task", "told"), REFUSED, ids=[task for task, _ in REFUSED])
def test_what_cannot_be_federated_is_refused_by_name(task, told, tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "ENDLESS", 10_000)
    with pytest.raises(InputError, match=r"^task = ") as refused:
        run(Config.from_run_config({"task": task, "num-clients": 4, "output-dir": str(tmp_path / "runs")}))
    assert told in str(refused.value)
    assert not list(tmp_path.glob("runs/*"))


OPTIONS = [
    ({"task": "tests.own_tasks:by_hand", "algorithm": "pfedme"}, "algorithm = .*takes steps by hand; take another"),
    ({"task": "tests.own_tasks:rates", "learning-rate": 0.5}, "learning-rate = 0.5: .*lr that is a number; leave it"),
    ({"task": "tests.own_tasks:regression", "finetune-learning-rate": 0.5}, "finetune-learning-rate = 0.5: .*leave it"),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS, ids=[next(reversed(each)) for each, _ in OPTIONS])
def test_options_that_a_module_cannot_follow_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        Experiment(Config.from_run_config({**options, "num-clients": 4})).check()


def test_measures_and_epochs_that_some_clients_lack_are_left_out_of_means(federate, capsys):
    folder, _ = federate(config_of("of_some", num_server_rounds=1, num_finetune_epochs=3))
    outcome = read_results(folder)
    assert [row["initial_of_2"] for row in outcome["clients"]] == [None, None, 2.0, None]
    assert outcome["summary"]["initial_of_2"] == {"mean": 2.0, "std": 0.0, "clients": 1}
    assert outcome["summary"]["recall_epoch_3"]["clients"] == 3
    assert [row["personalized_recall"] for row in outcome["clients"]] == [1.0, None, 1.0, 1.0]
    assert "initial recall of clients [1] is not finite and is left out" in capsys.readouterr().out


WORDS = [
    (
        "trainer.max_epochs=3",
        "trainer.max_epochs = 3: would break the protocol; use num-local-epochs and num-finetune-epochs instead",
    ),
    ("trainer.sauce=3", "does not pass through"),
    ("trainer.devices=2", "a client trains on one GPU or CPU core, and workers take a machine's GPUs in turn"),
    ("trainer.gradient_clip_val=yes", "must be a number"),
    ("trainer.limit_val_batches=1", "does not pass through"),
    ("trainer=3", "must be a table"),
    ("learning-rate=0", "must be greater than 0"),
]


@pytest.mark.parametrize(("word", "told"), WORDS, ids=[word for word, _ in WORDS])
def test_arguments_that_do_not_pass_through_are_refused(word, told, capsys):
    assert run_main(["dataset=digits", word]) == 2
    assert told in capsys.readouterr().err
