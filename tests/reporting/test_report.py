import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from lit_fedbabu import report
from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.reporting import formats, tables
from lit_fedbabu.reporting.compare import finetunings, read_study
from lit_fedbabu.reporting.sections import sections
from tests.reporting.made_up import made_up_run, study_of
from tests.support import tiny_config

ROOT = Path(__file__).parent.parent.parent


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
    study = study_of(folder)
    rows = tables.method_table(study)
    assert {row["seeds"] for row in rows} == {1}
    told = {row["accuracy"]: row["mean"] for row in rows}
    assert told["initial, best round on test data"] == f"{100 * max(evaluated.values()):.2f}"
    of_best = results.read_results(tuned)["summary"]["personalized_accuracy"]["mean"]
    assert told["personalized, best round on test data"] == f"{100 * of_best:.2f}"
    (compared,) = finetunings(study.cells).values()
    assert [run.outcome["round"] for run in compared["FedBABU"]] == [4]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: shutil.copytree(folder / "a", folder / "b"), "leave one out"),
        (lambda folder: (folder / "a" / run_folder.RESULTS).write_text("{") and folder / "a", "cannot be read"),
        (lambda folder: (folder / "a" / run_folder.RESULTS).unlink() or folder / "a", "has no results.json"),
        (lambda folder: (folder / "a" / run_folder.CONFIG).unlink() or folder / "a", "is no run's folder"),
        (lambda folder: (folder / "a" / run_folder.PARTITION).write_text("a") and folder / "a", "cannot be read"),
    ],
)
def test_bad_runs_are_refused_in_one_line_before_anything_is_written(make, words, tmp_path, capsys):
    first = made_up_run(tmp_path / "a")
    assert report.main([str(first), str(make(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and words in told, told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_federation_and_its_fine_tuning_can_be_reported(federate, tmp_path, one_core):
    folder, _ = federate(tiny_config(num_server_rounds=1))
    assert finetune([str(folder), "--epochs", "3", "--part", "head"]) == 0
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    counts = list(csv.DictReader((folder / run_folder.PARTITION).open(newline="")))
    assert len(counts) == 12 and all(re.fullmatch(r"\d+", count[name]) for count in counts for name in "abcdefghij")
    tuned = results.read_results(folder / "finetune" / "head-3epochs-lr0.001")["summary"]
    assert f"{100 * tuned['accuracy_epoch_3']['mean']:.2f}" in (tmp_path / "out" / "finetuning.md").read_text()
    with (tmp_path / "out" / "cost.csv").open(newline="") as file:
        (cost,) = csv.DictReader(file)
    assert float(cost["sent by clients (MB)"]) > 0 and float(cost["rounds took (s)"]) > 0, "from TensorBoard's events"
    with (tmp_path / "out" / "measures.csv").open(newline="") as file:
        rows = {(row["trained"], row["measure"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(part, title) for part in ("head", "full") for title in results.MEASURES}
    row = rows["head", "calibration error"]
    assert (row["epochs"], row["seeds"], row["method"]) == ("3", "1", "FedBABU")
    for name in ("initial", "personalized"):
        assert row[name] == f"{tuned[f'{name}_calibration_error']['mean']:.4f}"
        assert rows["head", "fairness (Jain)"][name] == f"{tuned[f'{name}_accuracy']['jain']:.4f}"


def test_every_table_is_written_in_three_forms_and_every_figure_in_two(found, tmp_path):
    assert report.main([*map(str, found), "--out", str(tmp_path / "out")]) == 0
    content = sections(study_of(*found))
    expected = {f"{table.name}{suffix}" for each in content for table in each.tables for suffix in formats.files(table)}
    expected |= {f"{drawn.name}.{kind}" for each in content for drawn in each.drawings for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*expected, "report.html"}
    assert {
        "methods.tex",
        "differences.csv",
        "fairness.md",
        "rounds.png",
        "partition.svg",
        "calibration.png",
    } - expected == {"calibration.png"}, "these runs have no calibration"


def test_letters_that_no_font_has_are_told_once(tmp_path, capfd):
    folder = made_up_run(tmp_path / "run")
    path = folder / run_folder.PARTITION
    path.write_text(path.read_text().replace("cat", "\U00012345").replace("dog", "\U00012346"))
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    told = capfd.readouterr()
    assert told.out.count("have boxes for letters that no font here has") == 1 and "Glyph" not in told.err
    assert "\U00012345" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_shows_what_results_hold():
    content = sections(read_study(sorted((ROOT / "results").glob("cifar10-*"))))
    made = {table.name: formats.files(table) for section in content for table in section.tables}
    for name, files in made.items():
        for suffix, text in files.items():
            assert text == (ROOT / "results" / f"{name}{suffix}").read_bytes().decode(), "run make results"
    assert {path.stem for path in (ROOT / "results").glob("*.md")} == set(made)
    page = (ROOT / "docs" / "results.md").read_text()
    shown = set(re.findall(r"<!-- (\w+) -->\n\|", page))
    assert shown == {"methods", "differences", "finetuning", "measures"}
    for name in shown:
        table = made[name][".md"]
        assert f"<!-- {name} -->\n{table}<!-- /{name} -->" in page, (
            f"results/{name}.md is not what docs/results.md shows"
        )
    pictures = re.findall(r"\]\(\.\./(results/\w+\.png)\)", page)
    assert len(pictures) == 4 and all((ROOT / path).is_file() for path in pictures)
    assert (ROOT / "results" / "report.html").stat().st_size < 1_500_000


def test_what_the_page_says_of_differences_is_what_the_tables_say():
    page = (ROOT / "docs" / "results.md").read_text()
    with (ROOT / "results" / "differences.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["accuracy"] == "personalized" and row["p, Holm"]]
    largest = max(row["p, Holm"] for row in rows)
    assert f"Corrected for {len(rows)} comparisons (Holm), all p are below 0.05, the largest is\n{largest}" in page


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
