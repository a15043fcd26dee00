"""What a model's maker froze: it does not travel, lies in no checkpoint, and is there once in a process."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from lit_fedbabu import LitFedBABU, finetune, load_module
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning.base import digest, frozen_names, is_same
from lit_fedbabu.learning.checkpoint import read
from lit_fedbabu.learning.cohort import LitCohort
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.memory import recall
from tests.own_tasks import Trunk
from tests.support import tiny, tiny_config

OPTIONS: dict[str, Any] = {"num_clients": 4, "fraction_train": 1.0, "num_server_rounds": 2, "num_local_epochs": 1}
OPTIONS |= {"num_finetune_epochs": 1, "precision": "32-true"}
FROZEN = {f"body.0.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
FROZEN |= {f"body.0.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
OTHER = ("ifca",)
"""Methods with several models: where the base travels, each has another one."""
OF_TASKS = [name for name, row in ALGORITHMS.items() if not (row.pooled or row.of_features or name in OTHER)]
OUTSIDE = {"rest.outside.weight", "rest.outside.bias"}
IMAGES = "tests.own_models:frozen_layer"


def of(task, **options):
    return Config(task=f"tests.own_tasks:{task}", **{**OPTIONS, **options})


def in_file(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_what_is_frozen_is_found_with_its_statistics_unless_training_moves_them():
    def names(trunk, inside=None):
        return frozen_names(nn.Sequential(trunk.requires_grad_(False), nn.Linear(3, 3)), inside)

    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    weights = {"0.0.weight", "0.0.bias"}
    assert names(norm) == weights, "whose statistics move"
    assert names(norm.eval()) == weights | {
        f"0.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    assert names(spectral) == {"0.bias", "0.parametrizations.weight.original"}
    assert len(names(spectral.eval())) == 4, "with two vectors that stand still"
    trunk = nn.Linear(3, 3)
    trunk.register_buffer("mask", torch.ones(3))
    assert names(trunk, ["0.weight"]) == {"0.weight"}, "so that a part of its weights may move"
    assert names(trunk) == {"0.weight", "0.bias", "0.mask"}
    assert frozen_names(nn.BatchNorm1d(3).eval()) == frozenset(), "nothing of which is frozen"


def test_a_digest_tells_bases_apart_but_for_last_bits():
    torch.manual_seed(0)
    base = {"a": torch.randn(100, 100), "b": torch.randn(7), "positions": torch.arange(5)}
    rounded = {**base, "a": base["a"] * (1 + 1e-7)}
    swapped = {**base, "a": base["a"].flip(0)}
    tuned = {**base, "a": base["a"] + 1e-3 * torch.randn(100, 100)}
    assert is_same(digest(base), digest(rounded))
    others = [swapped, tuned, {**base, "b": -base["b"]}, {"c": base["a"]}, {**base, "b": base["b"][:, None]}, {}]
    assert not any(is_same(digest(base), digest(other)) for other in others)
    assert is_same("", "") and not is_same(digest(base), "a:b") and not is_same(digest(base), "nan:" * 16)


@pytest.mark.parametrize("algorithm", OF_TASKS)
def test_a_base_moves_no_number_and_does_not_travel(algorithm, tmp_path):
    """The same two rounds of a client with the base on the wire and without."""
    outcomes = []
    for name in ("plain_trunk", "plain_carried"):
        experiment, folder = Experiment(of(name, algorithm=algorithm)), tmp_path / name
        shared = experiment.initial_shared()
        for server_round in (1, 2):
            update = client_update(experiment, 0, server_round, shared, 0.05, folder)
            shared = update.state
        kept = recall(folder, 0, 2) if experiment.algorithm.kept else {}
        outcomes.append((shared, kept, dict(update.extras)))
    for without, carried in zip(*outcomes, strict=True):
        assert carried.keys() - without.keys() == {name for name in carried if any(each in name for each in FROZEN)}
        assert not any(each in name for name in without for each in FROZEN)
        for name, value in without.items():
            expected = carried[name][carried[name] > 0] if name == "lengths" else carried[name]  # 0 of frozen weights
            assert torch.equal(value, expected), name


def test_messages_files_and_memories_are_without_the_base(federate):
    folder, grid = federate(of("trunk", algorithm="fedper"))
    experiment = Experiment(of("trunk", algorithm="fedper"))
    assert set(experiment.base) == FROZEN | OUTSIDE
    size = sum(value.numel() * value.element_size() for value in experiment.initial_shared().values())
    costs = [json.loads(line) for line in (folder / "costs.jsonl").read_text().splitlines()]
    assert [each["bytes_up"] for each in costs] == [4 * size] * 2
    assert set(recall(folder / "memory", 0, 2)) == {"head.weight", "head.bias"}
    assert not any(name.startswith(("body.0", "outside")) for name in in_file(folder / LAST_CHECKPOINT))
    told = read(folder / LAST_CHECKPOINT, "tests.own_tasks:trunk").provenance["base"]
    assert (told["from"], told["weights"]) == ("the seed 42", 6 * 32 + 32 + 4 * 32 + 1 + 6 * 6 + 6)
    finetune(folder, task="tests.own_tasks:trunk", save=True, clients="1")
    (saved,) = folder.glob("finetune/*/personal/client_0001.ckpt")
    assert not any(name.startswith(("body.0", "outside")) for name in in_file(saved))


def test_a_saved_model_gets_its_base_again(federate, tmp_path, monkeypatch):
    torch.manual_seed(3)
    pretrained = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32))
    monkeypatch.setenv("TRUNK", str(tmp_path / "trunk.pt"))
    torch.save(pretrained.state_dict(), tmp_path / "trunk.pt")
    config = of("trunk")
    folder, _ = federate(config)
    path = folder / LAST_CHECKPOINT
    module = load_module(path, config.task)
    assert isinstance(module, Trunk) and torch.equal(module.body[0][0].weight, pretrained[0].weight)
    assert torch.equal(module.outside.weight, Experiment(config).new_module().lightning.outside.weight)
    assert torch.equal(module.body[2].weight, in_file(path)["body.2.weight"])
    by_lightning = Trunk.load_from_checkpoint(path, weights_only=True, strict=False)
    assert torch.equal(by_lightning.body[0][0].weight, pretrained[0].weight)
    torch.save(nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32)).state_dict(), tmp_path / "trunk.pt")
    with pytest.raises(InputError, match="is the base of the checkpoint"):
        load_module(path, config.task)


@pytest.mark.slow
def test_a_base_from_initial_weights_is_asked_for_by_its_file(federate, tmp_path):
    file = tmp_path / "trunk.pt"
    torch.save(Trunk().state_dict(), file)
    config = of("trunk", initial_weights=str(file))
    folder, _ = federate(config)
    expected = torch.load(file, weights_only=True)
    module = load_module(folder / LAST_CHECKPOINT, config.task)
    for name in ("body.0.0.weight", "outside.bias"):
        assert torch.equal(module.state_dict()[name], expected[name])
    (again,) = finetune(folder, task=config.task, epochs=0)
    begun = json.loads((folder / "results.json").read_text())
    assert [row["initial_f1"] for row in again["clients"]] == [row["initial_f1"] for row in begun["clients"]]
    file.rename(tmp_path / "elsewhere.pt")
    with pytest.raises(InputError, match=f'initial-weights = "{file}": cannot be read'):
        finetune(folder, task=config.task, epochs=0)


def test_copies_share_the_base_and_nothing_else():
    for experiment in (Experiment(of("trunk")), tiny(model_name=IMAGES)):
        one, other = experiment.new_module(), experiment.new_module()
        shared = {id(value) for value in one.base.values()}
        assert shared and shared == {id(value) for value in other.base.values()}
        rest = [{id(value) for value in each.model.state_dict(keep_vars=True).values()} for each in (one, other)]
        assert rest[0] & rest[1] <= shared and rest[0] - shared


def test_a_base_that_moves_is_refused_before_the_run():
    with pytest.raises(InputError, match=r"its body.teacher.weight is frozen in __init__ and changes in training"):
        Experiment(of("based_teacher")).check()
    Experiment(of("teaches")).check()


@pytest.mark.parametrize(("task", "told"), [("trained_base", "its base body has weights that train")])
def test_a_base_that_is_none_is_refused(task, told):
    with pytest.raises(InputError, match=told):
        Experiment(of(task)).check()


def test_a_task_may_name_its_base():
    assert set(Experiment(of("partly")).base) == {"body.0.0.weight", "body.0.0.bias"} | OUTSIDE


def test_a_node_with_another_base_is_refused(federate, monkeypatch):
    numbers = iter(range(1, 100))
    monkeypatch.setattr("lit_fedbabu.learning.base.digest", lambda base: f"a:{next(numbers)}")
    with pytest.raises(RunError, match=r"nodes 0 have another base"):
        federate(of("trunk"))


def test_a_frozen_layer_of_an_image_model_does_not_travel(federate, tmp_path):
    config = tiny_config(model_name=IMAGES, algorithm="fedavg")
    folder, _ = federate(config)
    assert set(Experiment(config).base) == {"body.1.weight", "body.1.bias"}
    path = folder / LAST_CHECKPOINT
    assert "model.body.1.weight" not in in_file(path)
    module = load_module(path, IMAGES)
    assert torch.equal(module.model.body[1].weight, Experiment(config).new_module().model.body[1].weight)
    loaded = LitFedBABU.load_from_checkpoint(path, weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_cohort_has_one_base_for_all():
    experiment = tiny(model_name=IMAGES, algorithm="fedavg", precision="64-true")
    modules = [experiment.new_module() for _ in range(3)]
    cohort = LitCohort(modules)
    assert cohort.model.body[1].weight is modules[0].model.body[1].weight
    assert cohort.model.body[3].weight.shape == (3, *modules[0].model.body[3].weight.shape)
    images = torch.rand(3, 4, 3, 32, 32, dtype=torch.float64)
    own = torch.stack([module(batch) for module, batch in zip(modules, images, strict=True)])
    torch.testing.assert_close(cohort._each([0, 1, 2], images), own, rtol=0, atol=1e-12)
