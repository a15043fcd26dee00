import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from lit_fedbabu import files, report
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.records import plots, results, run_folder
from lit_fedbabu.reporting import figures, tables
from lit_fedbabu.reporting.compare import by_method, finetunings, read_run
from tests.support import tiny_config

ROOT = Path(__file__).parent.parent.parent


def made_up_run(folder, algorithm="fedbabu", seed=1, epochs=2, rounds=4, last=4, **options):
    """A run's folder as a federation of two clients would leave it; accuracies are drawn."""
    rng = np.random.default_rng([seed, *algorithm.encode()])
    folder.mkdir(parents=True)
    config = tiny_config(algorithm=algorithm, seed=seed, num_finetune_epochs=epochs, num_clients=2, **options)
    history = [
        {
            "round": each,
            "train_loss": 1.0,
            **({"initial_accuracy": results.spread(0.5 + rng.random(2) / 2**each)} if each % 2 == 0 else {}),
        }
        for each in range(1, last + 1)
    ]
    clients = []
    for client in range(2):
        values = rng.random(epochs + 1).tolist()
        row = {"client": client, "initial_accuracy": values[0], "personalized_accuracy": values[-1]}
        clients.append(row | {f"accuracy_epoch_{epoch}": value for epoch, value in enumerate(values)})
    run_folder.write_config(folder, config, {})
    files.write_json(folder / run_folder.RESULTS, results.results(algorithm, history, clients))
    (folder / run_folder.PARTITION).write_text(
        "client,split,cat,dog\n0,train,5,0\n1,train,2,3\n0,test,1,0\n1,test,1,1\n"
    )
    return folder


@pytest.fixture
def found(tmp_path):
    """Two methods of two seeds, one of them fine-tuned otherwise as well."""
    folders = [
        made_up_run(tmp_path / f"{algorithm}{seed}", algorithm, seed)
        for algorithm in ("fedbabu", "fedavg")
        for seed in (2, 1)
    ]
    made_up_run(folders[0] / "finetune" / "longer", seed=2, epochs=10)
    made_up_run(folders[0] / "finetune" / "head", seed=2, finetune_part="head", finetune_learning_rate=0.1)
    return folders


def test_tables_say_what_the_runs_say(found, tmp_path, capsys):
    assert report.main([*map(str, found), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "methods.csv").open(newline="") as file:
        rows = {(row["method"], row["accuracy"]): row for row in csv.DictReader(file)}
    assert {method for method, _ in rows} == {"FedBABU", "FedAvg"}
    for method, folders in (("FedBABU", found[:2]), ("FedAvg", found[2:])):
        summaries = [json.loads((folder / run_folder.RESULTS).read_text())["summary"] for folder in folders]
        for kind in ("initial", "personalized"):
            of_seeds = [summary[f"{kind}_accuracy"] for summary in summaries]
            row = rows[method, kind]
            assert row["seeds"] == "2"
            means = [100 * each["mean"] for each in of_seeds]
            assert float(row["mean"]) == pytest.approx(sum(means) / 2, abs=0.006)
            assert float(row["std over seeds"]) == pytest.approx(abs(means[0] - means[1]) / 2**0.5, abs=0.006)
            assert float(row["std over clients"]) == pytest.approx(
                sum(50 * each["std"] for each in of_seeds), abs=0.006
            )
            worst = sum(50 * each["worst_decile"] for each in of_seeds)
            assert float(row["worst decile"]) == pytest.approx(worst, abs=0.006)
    written = (tmp_path / "out" / "methods.md").read_text()
    assert written in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]
    assert [cells[0], *cells[2:]] == [
        list(row.values()) for row in [dict(zip(cells[0], cells[0], strict=True)), *rows.values()]
    ]


def test_the_best_round_is_told_apart_from_the_last(tmp_path):
    folder = made_up_run(tmp_path / "run", seed=3)
    outcome = json.loads((folder / run_folder.RESULTS).read_text())
    evaluated = {entry["round"]: entry["initial_accuracy"]["mean"] for entry in outcome["rounds"] if len(entry) > 2}
    assert outcome["best_round_on_test_data"]["round"] == max(evaluated, key=evaluated.get) == 2
    tuned = made_up_run(folder / "finetune" / "best", seed=3, last=2)
    made_up_run(folder / "finetune" / "best-longer", seed=3, last=2, epochs=10)
    made_up_run(folder / "finetune" / "last", seed=3, last=4)
    rows = tables.method_table(by_method([read_run(folder)]))
    assert {row["seeds"] for row in rows} == {1}
    told = {row["accuracy"]: row["mean"] for row in rows}
    assert told["initial, best round on test data"] == f"{100 * max(evaluated.values()):.2f}"
    of_best = results.read_results(tuned)["summary"]["personalized_accuracy"]["mean"]
    assert told["personalized, best round on test data"] == f"{100 * of_best:.2f}"
    (compared,) = finetunings(by_method([read_run(folder)])).values()
    assert [run.outcome["round"] for run in compared["FedBABU"]] == [4]


def test_finetunings_are_compared_by_part_and_rate(found):
    methods = by_method([read_run(folder) for folder in found])
    compared = finetunings(methods)
    assert list(compared) == [("full", 0.001), ("head", 0.1)]
    assert [run.config.num_finetune_epochs for run in compared["full", 0.001]["FedBABU"]] == [2, 10]
    rows = tables.finetuning_table(methods)
    assert [(row["trained"], row["method"], row["seeds"]) for row in rows] == [
        ("full", "FedBABU", 2),
        ("full", "FedAvg", 2),
        ("head", "FedBABU", 1),
    ]
    assert rows[0]["epoch 10"] == "", "one seed of two went that far"


def test_methods_are_named_by_what_differs(tmp_path):
    folders = [
        made_up_run(tmp_path / "a", seed=1),
        made_up_run(tmp_path / "b", seed=1, momentum=0.5),
        made_up_run(tmp_path / "c", "fedavg", seed=1),
    ]
    names = by_method([read_run(folder) for folder in folders])
    assert list(names) == ["FedBABU momentum=0.9", "FedBABU momentum=0.5", "FedAvg"]


def test_auto_is_the_precision_that_it_stood_for(tmp_path):
    precisions = ("auto", "32-true", "bf16-mixed")
    folders = [
        made_up_run(tmp_path / precision, seed=seed, precision=precision) for seed, precision in enumerate(precisions)
    ]
    config = read_run(folders[0]).config
    run_folder.write_config(folders[0], config, {"trains-on": "cpu AVX2 in 32-true with torch 2.15.0"})
    named = by_method([read_run(folder) for folder in folders])
    assert {name: len(runs) for name, runs in named.items()} == {
        "FedBABU precision=32-true": 2, "FedBABU precision=bf16-mixed": 1,
    }  # fmt: skip


def test_figures_are_drawn_to_size_and_repeat_to_the_byte(found, tmp_path):
    names = {f"{name}.{kind}" for name in ("rounds", "finetuning", "clients", "partition") for kind in ("png", "svg")}
    for out in ("one", "two"):
        assert report.main([*map(str, found), "--out", str(tmp_path / out)]) == 0
    assert names <= {path.name for path in (tmp_path / "one").iterdir()}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name, inches in (("rounds", 3.5), ("clients", 7), ("partition", 3.5), ("finetuning", 7)):
        image = Image.open(tmp_path / "one" / f"{name}.png")
        assert image.width == inches * 300
        assert np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 3, "something is drawn"
        text = (tmp_path / "one" / f"{name}.svg").read_text()
        assert {"rounds": "initial accuracy (%)", "partition": "training images"}.get(name, "(%)") in text


@pytest.mark.parametrize("name", ["rounds", "clients", "finetuning"])
def test_a_figure_of_all_methods_has_room_for_their_names_and_no_two_alike(name, tmp_path):
    methods = by_method([read_run(made_up_run(tmp_path / each, each)) for each in ALGORITHMS])
    assert len(methods) == 11
    with plots.style():
        figure = getattr(figures, name)(methods)
        figure.draw_without_rendering()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y1 <= page.y1
    assert all(axes.get_window_extent().height > 0.4 * page.height for axes in figure.axes), "drawings are not squeezed"
    for axes in figure.axes:
        looks = {(line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in axes.lines}
        assert len(axes.lines) == len(looks) == 11


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: shutil.copytree(folder / "a", folder / "b"), "leave one out"),
        (lambda folder: (folder / "a" / run_folder.RESULTS).write_text("{") and folder / "a", "cannot be read"),
        (lambda folder: (folder / "a" / run_folder.RESULTS).unlink() or folder / "a", "cannot be read"),
    ],
)
def test_bad_runs_are_refused_in_one_line_before_anything_is_written(make, words, tmp_path, capsys):
    first = made_up_run(tmp_path / "a")
    assert report.main([str(first), str(make(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and words in told, told
    assert not (tmp_path / "out").exists()


def test_a_federation_and_its_fine_tuning_can_be_reported(federate, tmp_path, one_core):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    assert finetune([str(folder), "--epochs", "3", "--part", "head"]) == 0
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    counts = list(csv.DictReader((folder / run_folder.PARTITION).open(newline="")))
    assert len(counts) == 12 and all(re.fullmatch(r"\d+", count[name]) for count in counts for name in "abcdefghij")
    tuned = results.read_results(folder / "finetune" / "head-3epochs-lr0.001")["summary"]
    assert f"{100 * tuned['accuracy_epoch_3']['mean']:.2f}" in (tmp_path / "out" / "finetuning.md").read_text()
    with (tmp_path / "out" / "measures.csv").open(newline="") as file:
        rows = {(row["trained"], row["measure"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(part, title) for part in ("head", "full") for title in results.MEASURES}
    row = rows["head", "calibration error"]
    assert (row["epochs"], row["seeds"], row["method"]) == ("3", "1", "FedBABU")
    for name in ("initial", "personalized"):
        assert row[name] == f"{tuned[f'{name}_calibration_error']['mean']:.4f}"
        assert rows["head", "fairness (Jain)"][name] == f"{tuned[f'{name}_accuracy']['jain']:.4f}"


def test_the_page_compares_methods_as_their_seeds_do():
    def means(method):
        found = [results.read_results(ROOT / "results" / f"cifar10-{method}-seed{seed}") for seed in (42, 43, 44)]
        return np.array([100 * outcome["summary"]["personalized_accuracy"]["mean"] for outcome in found])

    page = (ROOT / "docs" / "results.md").read_text()
    pvalues = []
    for method in ("fedprox-babu", "fedper", "fedrep", "fedavg"):
        test, differences = stats.ttest_rel(means(method), means("fedbabu")), means(method) - means("fedbabu")
        low, high = test.confidence_interval()
        shown = ", ".join(f"{value:.2f}" for value in differences)
        row = f"{shown} | {differences.mean():.2f} | {low:.2f} to {high:.2f} | {test.pvalue:.3f} |"
        assert f"| {ALGORITHMS[method].title} | {row}\n" in page
        pvalues.append(test.pvalue)
    holm = max((len(pvalues) - place) * pvalue for place, pvalue in enumerate(sorted(pvalues)))
    assert f"the largest is\n{holm:.3f}" in page


def test_the_page_shows_what_results_hold(tmp_path):
    runs_of_results = [str(path) for path in sorted((ROOT / "results").glob("cifar10-*"))]
    assert report.main([*runs_of_results, "--out", str(tmp_path)]) == 0
    page = (ROOT / "docs" / "results.md").read_text()
    names = {path.stem for path in tmp_path.glob("*.md")}
    assert names == {path.stem for path in (ROOT / "results").glob("*.md")} >= {"methods", "finetuning"}
    for name in names:
        table = (tmp_path / f"{name}.md").read_text()
        assert table == (ROOT / "results" / f"{name}.md").read_text(), "run make results"
        assert f"<!-- {name} -->\n{table}<!-- /{name} -->" in page, (
            f"results/{name}.md is not what docs/results.md shows"
        )
    shown = re.findall(r"\]\(\.\./(results/\w+\.png)\)", page)
    assert len(shown) == 4 and all((ROOT / path).is_file() for path in shown)


def test_the_readmes_table_is_that_of_the_results():
    found: dict[str, dict[str, str]] = {}
    with (ROOT / "results" / "methods.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["method"], {"n": row["seeds"]})[row["accuracy"]] = " ± ".join(
                filter(None, [row["mean"], row["std over seeds"]])
            )
    rows = re.findall(
        r"^\| ([\w+ -]+) \| ([\d.± ]+) \| ([\d.± ]+) \| (\d) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    shown = {method: {"n": n, "initial": initial, "personalized": personal} for method, initial, personal, n in rows}
    assert {
        method: {key: row[key] for key in ("n", "initial", "personalized")} for method, row in found.items()
    } == shown
    means = [float(row["personalized"].split()[0]) for row in shown.values()]
    assert means == sorted(means, reverse=True)
