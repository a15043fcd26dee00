"""Options chosen on images that are held out of training, and never on test images."""

import json

import numpy as np
import pytest

from lit_fedbabu import study as door
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import write_json
from lit_fedbabu.records.results import read_results, results
from lit_fedbabu.records.run_folder import RESULTS, TUNED, read_config, read_environment
from lit_fedbabu.studies.plan import read_study
from lit_fedbabu.studies.tuning import chosen, tuning_of
from tests.support import client_data, partition, tiny_config, write_study


def test_held_out_images_are_training_images_of_the_same_client():
    config, plain = tiny_config(validation_fraction=0.25), partition(tiny_config())
    held_out = partition(config)
    for client in range(6):
        both = np.concatenate([held_out.train[client], held_out.test[client]])
        assert np.array_equal(np.sort(both), plain.train[client])
        assert len(held_out.test[client]) == round(0.25 * len(both))
    data = client_data(config, 2)
    labels = data.test_set.tensors[1].numpy()
    assert np.array_equal(labels, data.task.source.train.labels[held_out.test[2]])
    assert len(data.others) == 0 and len(client_data(tiny_config(), 2).others) > 0


def test_test_images_have_no_part_in_a_choice(tmp_path, federate, monkeypatch):
    whole = federate(tiny_config(validation_fraction=0.25))[0]
    source = client_data(tiny_config(), 0).task.source
    from lit_fedbabu.tasks.images.task import ImageClassification

    other = type(source)(
        source.train, type(source.test)(source.test.images[::-1], source.test.labels[:1].repeat(100)),
        source.class_names, source.mean, source.std, source.notes,
    )  # fmt: skip
    monkeypatch.setattr(ImageClassification, "source", other)
    changed = federate(tiny_config(validation_fraction=0.25))[0]
    assert (changed / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.mark.slow
def test_the_best_on_held_out_images_is_run_on_all_and_reported(tmp_path, capsys):
    path, folder = write_study(tmp_path, seed=[1, 2], algorithm=["fedbabu"])
    path.write_text(path.read_text() + "\n[tune]\nfinetune-learning-rate = [1e-9, 0.05]\nvalidation-fraction = 0.25\n")
    assert door.main([str(path), "--dry-run"]) == 0
    assert "0 of 4 runs of the tuning are done" in capsys.readouterr().out
    assert door.main([str(path)]) == 0
    told = capsys.readouterr().out
    for method in ["fedbabu"]:
        means = {}
        for value in ("1e-09", "0.05"):
            names = [f"{method}-seed_{seed}-finetune-learning-rate_{value}" for seed in (1, 2)]
            outcomes = [read_results(folder / "tune" / name) for name in names]
            means[float(value)] = np.mean([each["summary"]["personalized_accuracy"]["mean"] for each in outcomes])
        best = max(means, key=lambda value: means[value])
        for seed in (1, 2):
            run = folder / f"{method}-seed_{seed}"
            config = read_config(run)
            assert (config.finetune_learning_rate, config.validation_fraction) == (best, 0.0)
            assert f"finetune-learning-rate={best} of 1e-09, 0.05 by the mean" in read_environment(run)[TUNED]
        assert f"chosen for {method}: finetune-learning-rate={best}" in told
    assert "over 2 seeds on 25 % of the training images, held out" in told
    page = (folder / "report" / "report.html").read_text()
    assert "no test image had a part in the choice" in page and "on 25 % of the training images" in page
    before = {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")}
    assert door.main([str(path)]) == 0
    assert {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")} == before, "nothing was done again"


def test_a_choice_is_among_what_is_read_and_prefers_models_that_are_finite(tmp_path):
    path, _ = write_study(tmp_path, seed=[1], algorithm=["fedbabu", "fedprox"])
    path.write_text(path.read_text() + "\n[tune]\nproximal-mu = [0.1, 0.2, 0.3]\n")
    study = read_study(path)
    tuning = tuning_of(study)
    assert [each.group for each in tuning.candidates] == ["fedprox"] * 3, "fedbabu reads none of them"
    for candidate, scores in zip(tuning.candidates, [(0.5, 0.5), (0.9, None), (0.6, 0.6)], strict=True):
        clients = [
            {"client": place, "initial_accuracy": 0.5, "personalized_accuracy": value or float("nan")}
            for place, value in enumerate(scores)
        ]
        (run,) = candidate.runs
        run.folder.mkdir(parents=True)
        write_json(run.folder / RESULTS, results(run.config, [{"round": 1}], clients))
    made, words = chosen(study, tuning, {})
    assert [run.config.proximal_mu for run in made.runs] == [0.01, 0.3]
    assert list(words) == ["fedprox-seed_1"] and words["fedprox-seed_1"].startswith("proximal-mu=0.3 of 0.1, 0.2, 0.3")


def test_each_method_tries_as_many_combinations_as_the_budget_allows_also_of_its_own_options(tmp_path):
    path, _ = write_study(tmp_path, seed=[1, 2, 3], algorithm=["fedbabu", "fedprox", "ditto"])
    tune = """
[tune]
learning-rate = [0.01, 0.03, 0.1]
finetune-learning-rate = [0.001, 0.01]
seed = [2, 3]
runs = 10
[tune.per.algorithm.fedprox]
proximal-mu = [0.1, 0.2, 0.3]
[tune.per.algorithm.ditto]
learning-rate = [0.3, 1.0]
"""
    path.write_text(path.read_text() + tune)
    tuning = tuning_of(read_study(path))
    tried = {name: [each for each in tuning.candidates if each.group == name] for name in ("fedbabu", "fedprox")}
    assert [len(each) for each in tried.values()] == [5, 5], "of 6 and 18, by two seeds each"
    for candidate in tuning.candidates:
        assert [run.config.seed for run in candidate.runs] == [2, 3]
        for key, value in candidate.values.items():
            assert {getattr(run.config, key.replace("-", "_")) for run in candidate.runs} == {value}
    points = [tuple(each.values.values()) for each in tried["fedprox"]]
    assert len(set(points)) == 5 and {mu for *_, mu in points} <= {0.1, 0.2, 0.3}
    ditto = [each for each in tuning.candidates if each.group == "ditto"]
    assert [each.values["learning-rate"] for each in ditto] == [0.3, 0.3, 1.0, 1.0], "its own in place of those of all"
    assert tuning == tuning_of(read_study(path)), "drawn again the same"
    assert tuning.axes == ("learning-rate", "finetune-learning-rate", "proximal-mu")


REFUSED = {
    "[tune]\nseed = [1, 2]\nmomentum = [0.1, 0.2]": "tune.seed = .*must be seeds of the study, which has 1; a seed",
    "[tune]\nruns = 0.5\nmomentum = [0.1, 0.2]": "tune.runs = 0.5: must be a whole number, at least 1",
    "[tune.per.algorithm.fedavg]\nproximal-mu = [0.1, 0.2]": "tune.per.algorithm = .*no such axis; there are seed",
    "[tune.per.seed.2]\nmomentum = [0.1, 0.2]": r"tune.per.seed.2 = .*there are \[tune.per.seed.1\]",
    "[tune.per.seed.1]\nmomentum = 0.1": "tune.per.seed.1 = .*must be lists of values, and no places",
    "[tune.per.seed.1]\nmomentum = [0.1]": "tune.per.seed.1.momentum = .*two different values or more",
    "[tune.per.seed.1]\nproximal-mu = [0.1, 0.2]": "tune.per.seed.1.proximal-mu = .*is read by fedprox, .* alone",
    "[tune]\nmomentum = [0.1]": "tune.momentum = .*two different values or more",
    "[tune]\nvalidation-fraction = 0.3": "tune = .*names no option",
    "[tune]\nvalidation-fraction = 1.5\nmomentum = [0.1, 0.2]": "validation-fraction = 1.5: must be less than 1",
    "[tune]\nlearning-rate = [0.1, 0.2]\n[per.seed.1]\nlearning-rate = 0.3": "seed_1 has a value for it already",
    "[tune]\nmomentum = [0.1, 0.2]\nvalidation-fraction = 0": "tune.validation-fraction = 0: would choose on",
    "[tune]\nnum-clients = [2, 3]": "tune.num-clients = .*is of the data that methods are compared on",
    "[tune]\nproximal-mu = [0.1, 0.2]": "tune.proximal-mu = .*is read by fedprox, .* alone",
    "validation-fraction = 0.3\n[tune]\nmomentum = [0.1, 0.2]": "validation-fraction = 0.3: would evaluate",
    "[tune]\nlearning-rates = [0.1, 0.2]": "learning-rates = .*no such key",
}


@pytest.mark.parametrize(("table", "told"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_tuned_is_refused_by_its_key(table, told, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(f'dataset = "digits"\nseed = [1]\noutput-dir = {json.dumps(str(tmp_path))}\n{table}\n')
    with pytest.raises(InputError, match=told):
        tuning_of(read_study(path))
