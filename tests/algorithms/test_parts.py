"""Parts beside body and head: a part of its own is what it would be in the body or in the head."""

import pytest
import torch

from lit_fedbabu import Algorithm, finetune, load_module
from lit_fedbabu.algorithms.algorithm import EPOCHS
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.memory import recall

OPTIONS = {"num_clients": 3, "fraction_train": 1.0, "num_server_rounds": 2, "num_local_epochs": 1}
shared_body = Algorithm("Private adapter", "body", (("body+aside", EPOCHS),))
shared_aside = Algorithm("Shared adapters", "body+aside", (("full", EPOCHS),))
in_turn = Algorithm("In turn", "body", (("aside+head", "num_head_epochs"), ("body", EPOCHS)))


def of(task, **options):
    given = {**OPTIONS, "num_finetune_epochs": 1, "precision": "32-true", **options}
    return Config(task=f"tests.own_tasks:{task}", **given)


def mine(name):
    return f"{__name__}:{name}"


def weights(folder, task, algorithm=""):
    module = load_module(folder / LAST_CHECKPOINT, f"tests.own_tasks:{task}")
    return module.state_dict()


def scores(outcome):
    return [row["personalized_f1"] for row in outcome["clients"]]


@pytest.mark.parametrize(
    ("algorithm", "task", "other", "as_other"),
    [
        ("fedavg", "dual", "dual_in_body", "fedavg"),
        ("local", "dual", "dual_in_head", "local"),
        ("ditto", "dual", "dual_in_body", "ditto"),
        (mine("shared_aside"), "dual", "dual_in_body", "fedper"),
        (mine("in_turn"), "dual", "dual_in_head", "fedrep"),
    ],
)
def test_a_part_is_what_it_would_be_in_body_or_head(algorithm, task, other, as_other, federate):
    """The same federation with the same weights in another part."""
    runs = [federate(of(name, algorithm=row))[0] for name, row in ((task, algorithm), (other, as_other))]
    own, expected = (weights(run, name) for run, name in zip(runs, (task, other), strict=True))
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
    assert scores(read_results(runs[0])) == scores(read_results(runs[1]))
    kept = [run / "memory" for run in runs]
    if kept[1].exists():
        values = [sorted(value.sum().item() for value in recall(each, 1, 2).values()) for each in kept]
        assert values[0] == values[1] != []


@pytest.mark.slow
def test_dual_adapters_of_which_one_stays_at_home(federate):
    folder, grid = federate(of("dual", algorithm=mine("shared_body")))
    experiment = Experiment(of("dual", algorithm=mine("shared_body")))
    assert experiment.shared_names == ("body.weight", "body.bias")
    assert set(recall(folder / "memory", 0, 2)) == {"aside.weight", "aside.bias"}
    begun, after = experiment.new_module().lightning.state_dict(), weights(folder, "dual")
    assert {name for name in begun if not torch.equal(begun[name], after[name])} == {"body.weight", "body.bias"}
    (tuned,) = finetune(
        folder, task="tests.own_tasks:dual", algorithm=mine("shared_body"), part="head+aside", save=True
    )
    (saved,) = folder.glob("finetune/head+aside*/personal/client_0001.ckpt")
    own = load_module(saved, "tests.own_tasks:dual").state_dict()
    assert torch.equal(own["body.weight"], after["body.weight"]) and not torch.equal(
        own["head.weight"], begun["head.weight"]
    )
    assert len(tuned["clients"]) == 3


def test_the_rows_are_as_they_were():
    for name in ("fedbabu", "fedavg", "fedper", "ditto"):
        row = ALGORITHMS[name]
        assert row.of_parts(("body", "head")) is row
    assert ALGORITHMS["fedper"].of_parts(("body", "head", "neck")).kept == ("head", "neck")
    assert ALGORITHMS["fedbabu"].of_parts(("body", "head", "neck")).kept == ()
    assert ALGORITHMS["fedavg"].of_parts(("body", "head", "neck")).shared == "body+head+neck"


@pytest.mark.parametrize(
    ("task", "options", "key", "told"),
    [
        ("dual_nowhere", {}, "task", "its weight aside.weight is in neither body nor head"),
        ("dual_twice", {}, "task", "is in body and aside at once"),
        ("dual_named", {}, "task", "names a part 'full'"),
        (
            "dual",
            {"finetune_part": "head+neck"},
            "finetune-part",
            "there is no part neck; the task has body, head, aside",
        ),
        ("trunk", {"algorithm": mine("shared_body")}, "algorithm", "there is no part aside"),
    ],
)
def test_what_is_no_part_is_refused(task, options, key, told):
    with pytest.raises(InputError, match=told) as caught:
        Experiment(of(task, **options)).check()
    assert caught.value.key == key


def test_images_have_two_parts():
    with pytest.raises(InputError, match=r"must be one of head, body, full, knn"):
        Config(finetune_part="head+neck")
