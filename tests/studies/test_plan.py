"""What a study's file stands for."""

import dataclasses
from pathlib import Path

import pytest

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.studies.plan import read_study
from lit_fedbabu.studies.tuning import tuning_of

PLAIN = """
dataset = "digits"
num-clients = 4
algorithm = ["fedbabu", "fedprox"]
seed = [1, 2]
output-dir = "OUT"

[per.algorithm.fedprox]
proximal-mu = 0.5
"""


def study(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text.replace("OUT", str(tmp_path / "out")))
    return read_study(path)


def test_there_is_a_run_for_every_combination_with_its_own_options(tmp_path):
    found = study(tmp_path, PLAIN)
    assert found.folder == tmp_path / "out" / "mine"
    assert [run.name for run in found.runs] == ["fedbabu-seed_1", "fedbabu-seed_2", "fedprox-seed_1", "fedprox-seed_2"]
    configs = [run.config for run in found.runs]
    assert [(each.algorithm, each.seed, each.proximal_mu) for each in configs] == [
        ("fedbabu", 1, 0.01), ("fedbabu", 2, 0.01), ("fedprox", 1, 0.5), ("fedprox", 2, 0.5),
    ]  # fmt: skip
    assert {each.num_clients for each in configs} == {4}
    assert [run.folder for run in found.runs] == [found.folder / run.name for run in found.runs]


def test_a_base_comes_first_and_a_name_is_the_folders(tmp_path):
    (tmp_path / "base.toml").write_text('dataset = "digits"\nnum-clients = 4\nmomentum = 0.5\n')
    found = study(tmp_path, 'base = "base.toml"\nname = "other"\nmomentum = 0.1\nseed = [1]\ndataset = ["a/b", "c"]')
    assert found.folder.name == "other"
    assert [run.name for run in found.runs] == ["dataset_b-seed_1", "dataset_c-seed_1"]
    assert {run.config.momentum for run in found.runs} == {0.1}


REFUSED = {
    "seed = [1, 2]\n[per.seed.1]\nseed = 3": "per.seed.1.seed = 3: is an axis, and runs are named by its values",
    'seed = [1]\nalgorithm = ["fedprox"]\n[per.seed.1]\nmomentum = 0.1\n[per.algorithm.fedprox]\nmomentum = 0.2': (
        "per.algorithm.fedprox.momentum = 0.2: per.seed.1 gives the same run 0.1"
    ),
    "momentum = [1, 1.0]": "must be different values|two runs with the same options",
    'base = "nowhere.toml"\nseed = [1]': "configuration file = .*nowhere.toml",
    "seed = []": r"seed = \[\]: must be different values, at least one",
    "seed = [1, 1]": "seed = .*must be different values",
    "seed = 1": "has no axis; give one or more options lists",
    "seeds = [1]": "seeds = .*no such key; did you mean seed",
    'algorithm = ["fedbabu", "fedbab"]': 'algorithm = "fedbab": must be one of',
    'seed = [1]\nrun-name = "x"': "run-name = .*is not for a study",
    "seed = [1]\n[per.algorithm.fedprox]\nmomentum = 0.1": "per.algorithm = .*there is no such axis; there are seed",
    "seed = [1]\n[per.seed.2]\nmomentum = 0.1": "per.seed.2 = .*the axis has no such value",
    "seed = [1]\n[per.seed.1]\nmomentum = [0.1]": "per.seed.1 = .*must be single values",
    'dataset = ["a/x", "b/x"]\nseed = [1]': "has two runs of the name dataset_x-seed_1",
    "slurm = 4\nseed = [1]": r"slurm = 4: must be a table, as in \[slurm\]",
    "learning-rate = [0.1, -1.0]": "learning-rate = -1.0: must be greater than 0",
    'name = "../other"\nseed = [1]': 'name = "../other": must be the plain name of a folder',
    'name = ""\nseed = [1]': "name = .*must be the plain name of a folder",
    "name = 3\nseed = [1]": "name = 3: must be the plain name of a folder",
    f'class-names = ["{"x" * 300}"]': "name = .*has 312 bytes, and a folder's may have 200",
    "output-dir = 3\nseed = [1]": "output-dir = 3: must be one path",
    'base = ["a.toml"]\nseed = [1]': r'base = \["a.toml"\]: must be one path',
    "seed = [1]\n[per]\nseed = 3": r"per.seed = 3: must be tables, as in \[per.seed.1\]",
    "seed = [1]\n[per.seed]\n1 = 3": "per.seed.1 = 3: must be a table of options",
    "seed = [1]\n[per]\nmomentum = 3": "per.momentum = 3: there is no such axis",
    "momentum = [0.1]\n[per.momentum.0.1]\nseed = 1": r'there are \[per.momentum."0.1"\]',
    "proximal-mu = [0.1, 1.0]": r"proximal-mu = \[0.1, 1.0\]: is read by fedprox, .* alone, and changes no number here",
    'algorithm = ["fedavg"]\n[per.algorithm.fedavg]\nproximal-mu = 1.0': "per.algorithm.fedavg.proximal-mu = .*read by",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_that_is_no_study_is_refused_by_its_key(text, tmp_path):
    with pytest.raises(InputError, match=REFUSED[text]):
        study(tmp_path, text)


def test_runs_that_differ_in_what_they_do_not_read_are_told(tmp_path):
    axes = 'algorithm = ["fedbabu", "fedprox"]\nproximal-mu = [0.1, 1.0]\nseed = [1, 2]'
    (told,) = study(tmp_path, axes).repeated()
    assert told.startswith("note: fedbabu-proximal-mu_0.1-seed_1, fedbabu-proximal-mu_1.0-seed_1 are one run 2 times")
    assert study(tmp_path, PLAIN).repeated() == []


def test_a_table_of_a_truth_is_written_as_in_toml(tmp_path):
    found = study(tmp_path, 'pretrained = [true]\n[per.pretrained.true]\nmodel-name = "timm:resnet18"')
    assert found.runs[0].config.model_name == "timm:resnet18"


def test_the_shipped_studies_are_those_of_their_configurations():
    folder = Path(__file__).parent.parent.parent / "configs"
    cifar10 = read_study(folder / "studies" / "cifar10.toml")
    assert len(cifar10.runs) == 3 * len(ALGORITHMS)
    for run in cifar10.runs:
        own = folder / f"{run.config.algorithm}.toml"  # FedBABU has none: it is the default
        alone = parse_words([str(folder / "official.toml"), *([str(own)] if own.exists() else [])])
        alone |= {"dataset": "data/cifar10", "evaluate-every": 5, "seed": run.config.seed}
        assert run.config.dataset.endswith("data/cifar10")  # a path of its own where it is there
        found = dataclasses.replace(run.config, dataset="data/cifar10")
        assert found.experiment() == Config.from_run_config(alone).experiment()
    assert len(read_study(folder / "studies" / "cifar10-eight.toml").runs) == 8 * 2 * 3


@pytest.mark.slow
def test_the_studies_of_all_methods_have_all_and_tune_them_alike():
    folder = Path(__file__).parent.parent.parent / "configs"
    assert {run.config.algorithm for run in read_study(folder / "studies" / "cifar10.toml").runs} == set(ALGORITHMS)
    for name in ("digits", "field"):
        found = read_study(folder / "studies" / f"{name}.toml")
        assert {run.config.algorithm for run in found.runs} == set(ALGORITHMS)
        assert len(found.runs) == 10 * len(ALGORITHMS)
    tuning = tuning_of(found)
    assert {len([each for each in tuning.candidates if each.group == run.group]) for run in found.runs} == {6}


def test_a_relative_dataset_is_the_same_folder_for_every_worker(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    found = study(tmp_path, 'dataset = "photos"\nseed = [1]')
    assert found.runs[0].config.dataset == str(tmp_path / "photos")


def test_options_after_the_file_are_of_all_runs(tmp_path):
    path = tmp_path / "field.toml"
    path.write_text(
        f'output-dir = "{tmp_path}"\ndataset = "digits"\nalgorithm = ["fedprox", "fedbabu"]\nseed = [1, 2]\n'
        "learning-rate = 0.5\n[per.algorithm.fedprox]\nproximal-mu = 0.1\nmomentum = 0.5\n"
    )

    def runs(*words):
        return {run.name: run.config for run in read_study(path, parse_words([*words])).runs}

    assert list(runs("seed=1")) == ["fedprox-seed_1", "fedbabu-seed_1"]
    assert list(runs("seed=[3]", "algorithm=fedbabu")) == ["fedbabu-seed_3"]
    assert list(runs("seed=1", "num-clients=[5,6]")) == [
        f"{name}-seed_1-num-clients_{count}" for name in ("fedprox", "fedbabu") for count in (5, 6)
    ]
    found = runs("seed=1", "learning-rate=.1", "momentum=0.25", "name=2026-11", f"output-dir={tmp_path / 'other'}")
    assert {config.learning_rate for config in found.values()} == {0.1}
    assert {config.momentum for config in found.values()} == {0.25}, "what is typed is last"
    assert found["fedprox-seed_1"].proximal_mu == 0.1
    assert {config.output_dir for config in found.values()} == {str(tmp_path / "other" / "2026-11")}
    with pytest.raises(InputError, match=r"lr = 1: no such key; did you mean learning-rate\?"):
        runs("lr=1")
    with pytest.raises(InputError, match="run-name = .x.: is not for a study"):
        runs("run-name=x")
