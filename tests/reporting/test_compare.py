import json
from pathlib import Path

import pytest

from lit_fedbabu import report
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.reporting import differences, facts
from lit_fedbabu.reporting.compare import finetunings, pairs_of, read_study
from lit_fedbabu.reporting.files import write_report
from lit_fedbabu.reporting.names import METHOD_WIDTH, run_names
from lit_fedbabu.reporting.runs import Unfinished, read_run
from tests.reporting.made_up import change, made_up_run, study_of


def methods_of(study):
    return {(cell.method, cell.setting): [run.config.seed for run in cell.runs] for cell in study.cells}


def test_methods_are_named_by_what_differs(tmp_path):
    folders = [
        made_up_run(tmp_path / "a", seed=1),
        made_up_run(tmp_path / "b", seed=1, momentum=0.5),
        made_up_run(tmp_path / "c", "fedavg", seed=1),
    ]
    study = study_of(*folders)
    assert list(study.methods) == ["FedBABU momentum=0.9", "FedBABU momentum=0.5", "FedAvg"]
    assert study.settings == {"": {}}
    assert study.reference == "FedBABU momentum=0.9"
    assert study_of(*folders, reference="FedAvg").reference == "FedAvg"


def test_auto_is_the_precision_that_it_stood_for(tmp_path):
    precisions = ("auto", "32-true", "bf16-mixed")
    folders = [
        made_up_run(tmp_path / precision, seed=seed, precision=precision) for seed, precision in enumerate(precisions)
    ]
    config = read_run(folders[0]).config
    run_folder.write_config(folders[0], config, {"trains-on": "cpu AVX2 in 32-true with torch 2.15.0"})
    assert methods_of(study_of(*folders)) == {
        ("FedBABU precision=32-true", ""): [0, 1], ("FedBABU precision=bf16-mixed", ""): [2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "methods", "settings"),
    [
        # of the data: always a setting
        ([("fedbabu", {"dirichlet_alpha": 1.0}), ("fedavg", {})], ["FedBABU", "FedAvg"], 2),
        ([("fedbabu", {"dataset": "a"}), ("fedbabu", {"dataset": "b"})], ["FedBABU"], 2),
        # run with two values by two algorithms: a setting
        (
            [(method, {"momentum": value}) for method in ("fedbabu", "fedavg") for value in (0.1, 0.5)],
            ["FedBABU", "FedAvg"],
            2,
        ),
        # what one algorithm needs: its own
        ([("fedbabu", {}), ("fedavg", {}), ("local", {"momentum": 0.5})], ["FedBABU", "FedAvg", "Local only"], 1),
        # tried for one algorithm alone: methods
        (
            [("fedbabu", {"momentum": 0.1}), ("fedbabu", {"momentum": 0.5}), ("fedavg", {"momentum": 0.5})],
            ["FedBABU momentum=0.1", "FedBABU momentum=0.5", "FedAvg"],
            1,
        ),
    ],
)
def test_an_option_is_of_the_setting_or_of_the_method(runs, methods, settings, tmp_path):
    folders = [made_up_run(tmp_path / str(number), name, **options) for number, (name, options) in enumerate(runs)]
    study = study_of(*folders)
    assert list(study.methods) == methods
    assert len(study.settings) == settings


def test_what_was_chosen_for_each_method_is_neither_its_name_nor_a_setting(tmp_path):
    """Two methods whose rates were tuned, and came out otherwise in two splits."""
    rates = {("fedbabu", "iid"): 0.1, ("fedbabu", "classes"): 0.05, ("fedavg", "iid"): 0.05, ("fedavg", "classes"): 0.1}
    folders = [
        made_up_run(
            tmp_path / f"{algorithm}-{split}",
            algorithm,
            partitioner=split,
            learning_rate=rate,
            proximal_mu=rate / 10,
            facts={"tuned": f"learning-rate={rate} of 0.05, 0.1; proximal-mu={rate / 10} of 1, 2 by the mean accuracy"},
        )
        for (algorithm, split), rate in rates.items()
    ]
    study = study_of(*folders)
    assert list(study.methods) == ["FedBABU", "FedAvg"]
    assert list(study.settings.values()) == [{"partitioner": "classes"}, {"partitioner": "iid"}]
    for folder in folders:
        path = folder / "config.toml"
        path.write_text(path.read_text().replace("tuned = ", "other = "))
    assert len(study_of(*folders).settings) == 4, "as without a choice"


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "a" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "run")
    folders = [Path(), tmp_path / "b" / "run", tmp_path / "b" / "other", tmp_path / "b" / "run" / "finetune" / "head"]
    assert list(run_names(folders).values()) == ["a/run", "b/run", "other", "run/finetune/head"]


def test_settings_are_in_the_order_of_their_numbers(tmp_path):
    alphas = (10.0, 0.5, 2.0)
    study = study_of(*(made_up_run(tmp_path / str(alpha), dirichlet_alpha=alpha) for alpha in alphas))
    assert [cell.setting for cell in study.cells] == [f"dirichlet-alpha={alpha}" for alpha in sorted(alphas)]


def test_long_names_and_names_that_look_alike_become_numbers(tmp_path):
    folders = [
        made_up_run(tmp_path / str(number), momentum=number / 10, learning_rate=0.1 + number, weight_decay=number / 10)
        for number in range(3)
    ]
    study = study_of(*folders)
    assert list(study.methods) == ["FedBABU 1", "FedBABU 2", "FedBABU 3"]
    assert max(map(len, study.methods)) <= METHOD_WIDTH
    assert study.methods["FedBABU 2"] == {"learning-rate": 1.1, "momentum": 0.1, "weight-decay": 0.1}
    alike = [made_up_run(tmp_path / f"alike{i}", dataset=name) for i, name in enumerate(("x\x01", r"x\x01"))]
    assert list(study_of(*alike).settings) == ["setting 1", "setting 2"]
    assert in_line("a\x00b\n c\udce9\u202e") == "a\\x00b\\n c\\udce9\\u202e"


def test_other_clients_rounds_and_newcomers_are_other_settings(tmp_path):
    whole = made_up_run(tmp_path / "whole")
    part = made_up_run(tmp_path / "part", num_clients=2)
    outcome = json.loads((part / run_folder.RESULTS).read_text())
    change(part, **results.results(run_folder.read_config(part), outcome["rounds"], outcome["clients"][:1]))
    newcomer = made_up_run(tmp_path / "newcomer", facts={"data": "shapes"})
    best = change(made_up_run(tmp_path / "best"), round=2)
    study = study_of(whole, part, newcomer, best)
    told = {tuple(each.values()) for each in study.settings.values()}
    assert told == {
        ("of the clients", "all", "last"), ("of the clients", "1 of 2", "last"), ("shapes", "all", "last"),
        ("of the clients", "all", "2"),
    }  # fmt: skip
    run = next(run for run in study.runs if run.folder == newcomer)
    assert run.best is None and run.initial == {}, "the federation's numbers are not the newcomer's"


def test_finetunings_are_compared_by_part_and_rate(tmp_path):
    folders = [made_up_run(tmp_path / f"{seed}", seed=seed) for seed in (1, 2)]
    made_up_run(folders[0] / "finetune" / "longer", seed=1, epochs=10)
    made_up_run(folders[0] / "finetune" / "head", seed=1, finetune_part="head", finetune_learning_rate=0.1)
    for neighbors in (3, 5):
        part = {"finetune_part": "knn", "knn_neighbors": neighbors, "knn_weight": 0.5 if neighbors == 5 else -1.0}
        made_up_run(folders[0] / "finetune" / f"knn-{neighbors}", seed=1, epochs=1, **part)
    compared = finetunings(study_of(*folders).cells)
    assert list(compared) == [("full", "0.001"), ("head", "0.1"), ("knn of 3", ""), ("knn of 5, weight 0.5", "")]
    assert [run.config.num_finetune_epochs for run in compared["full", "0.001"]["FedBABU"]] == [10, 2]


@pytest.mark.parametrize(
    ("options", "split", "kinds", "left_out"),
    [
        ({}, None, "same split, same sampling", []),
        ({"num_server_rounds": 5, "rounds": 5}, None, "same split, other sampling", []),
        ({"fraction_train": 1.0}, None, "same split, other sampling", []),
        ({}, "", "split not recorded, same sampling", []),
        ({}, "client,split,cat,dog\n0,train,5,1\n1,train,2,3\n", "", [1]),
    ],
)
def test_runs_are_paired_by_seed_where_their_splits_are_the_same(options, split, kinds, left_out, tmp_path):
    other = made_up_run(tmp_path / "fedavg", "fedavg", **{**options, "last": options.pop("num_server_rounds", 4)})
    if split == "":
        (other / run_folder.PARTITION).unlink()
    elif split:
        (other / run_folder.PARTITION).write_text(split)
    study = study_of(made_up_run(tmp_path / "fedbabu"), made_up_run(tmp_path / "second", seed=2), other)
    pairs = pairs_of(study.cells[1], study.cells[0])
    assert (pairs.kinds, pairs.left_out, len(pairs.runs)) == (kinds, left_out, 0 if left_out else 1)
    told = differences.unpaired(study)
    assert told == (["FedAvg: seed 1 left out, for its split is not FedBABU's."] if left_out else [])


def test_what_cannot_be_compared_is_told(tmp_path):
    folders = [
        made_up_run(tmp_path / "a", seed=1),
        made_up_run(tmp_path / "b", "fedavg", seed=2),
        made_up_run(tmp_path / "c", "fedper", seed=1, dirichlet_alpha=9.0),
    ]
    assert differences.unpaired(study_of(*folders)) == [
        "FedAvg in dirichlet-alpha=0.5: no seed in common with FedBABU.",
        "FedBABU has no run in dirichlet-alpha=9.0: nothing is compared there.",
    ]


def test_unfinished_runs_and_fine_tunings_are_told(tmp_path, capsys):
    done, begun = made_up_run(tmp_path / "done"), made_up_run(tmp_path / "begun", seed=2)
    (begun / run_folder.RESULTS).unlink()
    tuned = made_up_run(done / "finetune" / "head")
    (tuned / run_folder.RESULTS).unlink()
    study = read_study([done, begun])
    assert [run.folder for run in study.runs] == [done]
    assert [each.folder for each in study.unfinished] == [tuned, begun]
    assert [row["run"] for row in facts.unfinished_table(study)] == ["done/finetune/head", "begun"]
    failure = {"round": 1, "client": 0, "node": "0", "reason": "oh", "traceback": ""}
    (begun / run_folder.FAILURES).write_text(json.dumps(failure))
    assert facts.failure_table(study)[0][0]["run"] == "begun", "clients failed, also in a run without results"
    with pytest.raises(InputError, match="give a run that is finished"):
        read_study([begun])
    failed = Unfinished(tmp_path / "never", read_run(done).config, "no worker can be started")
    (tmp_path / "told").mkdir()
    for name in ("ranks.md", "unfinished.csv", "mine.txt"):
        (tmp_path / "told" / name).write_text("of an earlier report, or of a person")
    write_report([done], tmp_path / "told", failed=[failed])
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"note: beside this report, and not of it: {tmp_path / 'told' / 'ranks.md'}"
    assert "| never | FedBABU | 1 | no worker can be started |" in told.out and "never" not in told.err
    assert "1 run without results" not in told.out and "run" in (tmp_path / "told" / "unfinished.md").read_text()
    assert report.main([str(done), "--out", str(tmp_path / "out"), "--reference", "FedAvg"]) == 2
    assert capsys.readouterr().err.startswith(
        'error: --reference = "FedAvg": is no method of these runs; they are FedB'
    )
    assert not (tmp_path / "out").exists()


SPREAD = {"mean": 0.5, "std": 0.1, "worst_decile": 0.2}
CLIENT = {"client": 0, "initial_accuracy": 0.5, "personalized_accuracy": 0.5}


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": {}},
        {"summary": {"initial_accuracy": SPREAD}},
        {"summary": {"initial_accuracy": SPREAD, "personalized_accuracy": {**SPREAD, "mean": float("nan")}}},
        {"summary": {"initial_accuracy": SPREAD, "personalized_accuracy": {**SPREAD, "mean": "<b>"}}},
        {"summary": {"initial_accuracy": SPREAD, "personalized_accuracy": SPREAD, "accuracy_epoch_1": SPREAD}},
        {"summary": {"initial_accuracy": SPREAD, "personalized_accuracy": SPREAD, "gain": {"mean": "<b>"}}},
        {"clients": []},
        {"clients": [CLIENT, CLIENT]},
        {"clients": [{"client": 0, "initial_accuracy": None, "personalized_accuracy": 0.5}]},
        {"clients": [{**CLIENT, "personalized_accuracy": 50}]},
        {"clients": [{"initial_accuracy": 0.5, "personalized_accuracy": 0.5}]},
        {"rounds": []},
        {"rounds": [{}]},
        {"rounds": [{"round": "one"}]},
        {"rounds": [{"round": 1, "initial_accuracy": 0.5}]},
        {"round": "last"},
        {"best_round_on_test_data": {"round": 1}},
        {"algorithm": "fedavg"},
        {"round": 5},
        {"rounds": [{"round": 2}]},
        {"new_clients": {}},
    ],
)
def test_damaged_results_are_refused_by_name(changes, tmp_path):
    folder = change(made_up_run(tmp_path / "run"), **changes)
    with pytest.raises(InputError) as caught:
        read_run(folder)
    told = str(caught.value)
    assert str(folder / run_folder.RESULTS) in told and "leave this run out" in told and "\n" not in told


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("summary", "personalized_accuracy", "mean"), 0.99),
        (("summary", "personalized_accuracy", "worst_decile"), 0.0),
        (("summary", "gain", "mean"), 0.5),
        (("clients", 0, "personalized_accuracy"), 0.01),
        (("clients", 1, "client"), "one"),
        (("clients", 1, "initial_bin_hits"), [1, 2]),
        (("clients", 1, "initial_bin_hits"), "many"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_by_name(place, value, tmp_path):
    folder = made_up_run(tmp_path / "run")
    outcome = json.loads((folder / run_folder.RESULTS).read_text())
    inner = outcome
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(InputError, match="leave this run out"):
        read_run(change(folder, **outcome))


@pytest.mark.parametrize(
    "text",
    [
        "", "client,split\n", "client,split,cat\n0,test,1\n", "client,split,cat\n0,train\n",
        "client,split,cat\n0,train,x\n",
        "split,client,cat\ntrain,0,1\n", f"client,split,cat\n0,train,{2**70}\n",
    ],
)  # fmt: skip
def test_damaged_splits_are_refused_by_name(text, tmp_path):
    folder = made_up_run(tmp_path / "run")
    (folder / run_folder.PARTITION).write_text(text)
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert str(folder / run_folder.PARTITION) in str(caught.value)


def test_damaged_lines_of_failures_are_told(tmp_path):
    folder = made_up_run(tmp_path / "run")
    whole = {"round": 1, "client": 2, "node": "0", "reason": "oh", "traceback": "..."}
    (folder / run_folder.FAILURES).write_text(json.dumps(whole) + '\n[]\n{"round": 1, "cli')
    reasons = [failure["reason"] for failure in read_run(folder).failures]
    assert reasons == ["oh", *(f"line {line} of {run_folder.FAILURES} cannot be read" for line in (2, 3))]


def test_a_comparison_has_a_pair_for_every_seed_of_both(tmp_path):
    folders = [made_up_run(tmp_path / f"{name}{seed}", name, seed) for name in ("fedbabu", "fedavg") for seed in (1, 2)]
    (found,) = differences.comparisons(study_of(*folders, made_up_run(tmp_path / "x", seed=3)), "personalized")
    assert found.seeds == (1, 2)


@pytest.mark.parametrize(("clients", "images"), [(2, 10), (3000, None)])
def test_a_split_of_some_clients_of_a_task_is_not_taken_for_that_of_all(clients, images, tmp_path):
    """Of more than 1,000 clients a task's ``partition.csv`` has those alone that were looked at before the run."""
    folder = made_up_run(tmp_path / "run")
    config = Config(task="tests.own_tasks:windows", num_clients=clients, num_server_rounds=4, fraction_train=1.0)
    run_folder.write_config(folder, config, {})
    run = read_run(folder)
    assert (run.partition and int(run.partition.train.sum())) == images
    assert (run.cost.images is None) == (images is None)
