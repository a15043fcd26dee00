import csv
import io
import json

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.reporting import differences, facts, figures, sections, tables
from lit_fedbabu.reporting.costs import TAGS
from lit_fedbabu.reporting.formats import Table, as_csv, latex, markdown
from lit_fedbabu.reporting.runs import read_run
from tests.reporting.made_up import change, made_up_run, study_of


def made_up_study(folder, methods, seeds, **options):
    return study_of(
        *(made_up_run(folder / f"{name}{seed}", name, seed, **options) for name in methods for seed in seeds)
    )


def test_with_one_seed_nothing_is_said_of_its_spread(tmp_path):
    study = made_up_study(tmp_path, ["fedbabu", "fedavg"], [1])
    for row in tables.method_table(study):
        assert (row["seeds"], row["std over seeds"], row["95 % interval"]) == (1, "", "")
    (row, *_) = differences.difference_table(study)
    assert (row["p"], row["p, Holm"], row["95 % interval"]) == ("", "", "")
    assert row["ahead"] in ("0 of 1", "1 of 1")
    (told,) = differences.sentences(study)
    assert "of 1 seeds" in told and "±" not in told and "better" not in told
    (cost, _) = tables.cost_table(study)
    assert "±" not in cost["personalized accuracy (%)"]


def test_of_many_methods_a_sentence_says_which_are_ahead_and_which_behind(tmp_path):
    gains = dict(zip(ALGORITHMS, (0.5, 0.99, 0.98, 0.5, 0.0, 0.97, 0.45, 0.95), strict=False))
    seeds = range(12)
    study = study_of(
        *(
            made_up_run(tmp_path / f"{name}{seed}", name, seed, gain=gain)
            for name, gain in gains.items()
            for seed in seeds
        )
    )
    (told,) = differences.sentences(study)
    rows = [row for row in differences.difference_table(study) if row["accuracy"] == "personalized"]
    titles = []
    for row in rows:
        p, mean = float(row["p, Holm"].lstrip("<")), float(row["mean"])
        titles.append("no difference is shown" if p >= 0.05 else f"{'ahead of' if mean > 0 else 'behind'} FedBABU")
        (group,) = (part for part in told[:-1].split("; ") if part.startswith(f"{titles[-1]}: "))
        assert f"{row['method']} ({mean:+.2f})" in group.removeprefix(f"{titles[-1]}: ").split(", ")
    assert len(rows) == 7 and len(set(titles)) == 3, "the test has all kinds"
    (told,) = differences.sentences(made_up_study(tmp_path / "one", [*gains], [1]))
    assert told.partition("; ")[2].startswith("not tested, for want of seeds that differ: FedAvg (")


def test_methods_are_grouped_by_what_clients_have_after_the_rounds(tmp_path):
    names = ["centralized", "fedper", "moon", "local", "fedbabu", "ditto", "fedavg", "apfl", "fedbn", "moon-babu"]
    study = made_up_study(tmp_path, names, [1])
    kinds = {row["method"]: row["models"] for row in tables.method_table(study)}
    assert list(kinds.items()) == [
        ("FedBABU", "one for all"), ("FedAvg", "one for all"), ("MOON", "one for all"), ("MOON+BABU", "one for all"),
        ("FedPer", "one each"), ("FedBN", "one each"), ("Ditto", "one each"), ("APFL", "one each"),
        ("Local only", "bound"), ("Centralized", "bound"),
    ]  # fmt: skip


def test_differences_are_of_the_reference_in_the_same_seeds(tmp_path):
    study = made_up_study(tmp_path, ["fedbabu", "fedavg", "fedper"], range(6))
    rows = differences.difference_table(study)
    assert [(row["method"], row["accuracy"]) for row in rows] == [
        (method, stage) for stage in ("personalized", "initial") for method in ("FedAvg", "FedPer")
    ]
    means = {cell.method: cell.means("personalized") for cell in study.cells}
    each = [one - other for one, other in zip(means["FedAvg"], means["FedBABU"], strict=True)]
    assert rows[0]["mean"] == f"{sum(each) / 6:.2f}"
    assert rows[0]["ahead"] == f"{sum(one > 0 for one in each)} of 6"
    assert rows[0]["seeds"] == "6" and rows[0]["differences"] == "", "many are counted"
    assert float(rows[0]["p, Wilcoxon"]) in [round(2 * count / 2**6, 3) for count in range(1, 33)]
    assert float(rows[0]["p, Holm"]) >= float(rows[0]["p"])
    few = differences.difference_table(made_up_study(tmp_path / "few", ["fedbabu", "fedavg"], [1, 2]))
    assert few[0]["seeds"] == "1, 2" and "p, Wilcoxon" not in few[0]


def test_clients_are_compared_within_a_seed(tmp_path):
    study = made_up_study(tmp_path, ["fedbabu", "fedavg"], [1, 2])
    rows = differences.client_table(study)
    assert [(row["method"], row["seed"], row["minus"]) for row in rows] == [
        ("FedBABU", 1, "its initial model"), ("FedBABU", 2, "its initial model"),
        ("FedAvg", 1, "its initial model"), ("FedAvg", 1, "FedBABU"),
        ("FedAvg", 2, "its initial model"), ("FedAvg", 2, "FedBABU"),
    ]  # fmt: skip
    own, other = (study.cells[place].runs[0].of_clients("personalized_accuracy") for place in (1, 0))
    assert rows[3]["mean"] == f"{100 * (own - other).mean():.2f}"
    assert rows[3]["ahead"] == int((own > other).sum())


def test_methods_are_ranked_over_the_settings_that_have_them_all(tmp_path):
    gains = {"fedbabu": 0.9, "fedavg": 0.5, "fedper": 0.0}
    folders = [
        made_up_run(tmp_path / f"{name}{alpha}", name, 1, gain=gain * 0.99, dirichlet_alpha=float(alpha))
        for name, gain in gains.items()
        for alpha in range(1, 7)
    ]
    folders.append(made_up_run(tmp_path / "ditto", "ditto", dirichlet_alpha=1.0))
    folders += [made_up_run(tmp_path / f"lacks{name}", name, dirichlet_alpha=9.0) for name in ("fedbabu", "fedavg")]
    study = study_of(*folders)
    ranked = differences.ranking(study)
    assert (ranked.methods, len(ranked.settings)) == (["FedBABU", "FedAvg", "FedPer"], 6)
    (_, not_ranked, left_out) = sections.ranking_words(ranked, study)
    assert not_ranked == "Not ranked, for they were run in too few settings: Ditto."
    assert left_out == "Left out: 1 setting that lacks one of the methods."
    assert differences.rank_table(ranked)[0]["method"] == "FedBABU"
    assert [row["method"] for row in tables.setting_table(study)] == list(study.methods)
    assert differences.ranking(study_of(*folders[:10])) is None


def test_fairness_is_that_of_the_clients(tmp_path):
    study = made_up_study(tmp_path, ["fedbabu"], [1])
    (_, row) = tables.fairness_table(study)
    spread = results.spread(study.runs[0].of_clients("personalized_accuracy").tolist())
    assert row["worst client"] == row["worst decile"] == f"{100 * spread['worst_decile']:.2f}", "of two clients"
    assert row["fairness (Jain)"] == f"{spread['jain']:.4f}"


@pytest.mark.parametrize(
    ("algorithm", "options", "epochs"),
    [
        ("fedbabu", {"num_local_epochs": 3}, 3),
        ("fedrep", {"num_local_epochs": 3, "num_head_epochs": 2}, 5),
        ("ditto", {"num_local_epochs": 3}, 6),
        ("centralized", {"num_local_epochs": 3}, 6),
    ],
)
def test_images_seen_are_those_of_all_epochs(algorithm, options, epochs, tmp_path):
    run = read_run(made_up_run(tmp_path / "run", algorithm, **options))
    assert run.config.clients_per_round == 1 and run.partition.train.sum() == 10
    assert run.cost.images == 4 * epochs * 5


def test_bytes_and_seconds_are_those_of_all_rounds_or_none(tmp_path):
    folder = made_up_run(tmp_path / "run")
    assert read_run(folder).cost.bytes_up is None
    writer = SummaryWriter(str(folder))
    for server_round in range(1, 5):
        for place, tag in enumerate(TAGS):
            if (server_round, place) != (4, 2):
                writer.add_scalar(tag, 10.0 ** (place + 1) * server_round, server_round)
    writer.close()
    found = read_run(folder).cost
    assert (found.bytes_up, found.bytes_down, found.seconds) == (100, 1000, None)


def test_small_costs_have_digits():
    assert [tables._amount(value) for value in (0, 0.00143, 0.05, 0.1, 3.2)] == [
        "0.00",
        "0.0014",
        "0.050",
        "0.10",
        "3.20",
    ]


def test_splits_are_told_apart_by_their_content(tmp_path):
    study = made_up_study(tmp_path, ["fedbabu", "fedavg"], [1, 2])
    (row,) = facts.split_table(study)
    assert (row["split"], row["runs"], row["fewest images"], row["most classes"]) == ("seed 1, seed 2", 4, 5, 2)
    path = tmp_path / "fedbabu1" / run_folder.PARTITION
    path.write_text(path.read_text().replace("0,train,5,0", "0,train,4,0"))
    rows = facts.split_table(study_of(*(run.folder for run in study.runs)))
    assert sorted((row["runs"], row["fewest images"]) for row in rows) == [(1, 4), (3, 5)]


def test_failures_are_counted_by_reason_and_the_rest_is_told(tmp_path):
    folder = made_up_run(tmp_path / "run")
    lines = [
        {"round": 1, "client": number % 9, "node": "0", "reason": f"{number % 150:03} {'x' * 400}"}
        for number in range(200)
    ]
    (folder / run_folder.FAILURES).write_text("\n".join(map(json.dumps, lines)))
    rows, more = facts.failure_table(study_of(folder))
    assert len(rows) == facts.SHOWN_FAILURES and rows[0]["failures"] == 2 and len(rows[0]["reason"]) == facts.REASON
    assert more == "50 more rows with 50 failures are in the runs' own files."


def test_the_configuration_is_what_differs_and_what_is_the_same(tmp_path):
    folders = [
        made_up_run(tmp_path / "a", facts={"trains-on": "cpu"}),
        made_up_run(tmp_path / "b", "fedavg", 2, momentum=0.5, facts={"trains-on": "gpu"}),
    ]
    study = study_of(*folders)
    first, second = facts.run_table(study)
    assert (first["momentum"], second["momentum"], second["seed"]) == ("0.9", "0.5", 2)
    assert (first["trains-on"], second["trains-on"]) == ("cpu", "gpu")
    same = {row["option or version"]: row["in all runs"] for row in facts.common_table(study)}
    assert same["num-server-rounds"] == "4" and "torch" in same and not same.keys() & first.keys()
    missing = read_run(folders[0]).config.to_run_config().keys() - same.keys() - first.keys()
    assert all(not read_run(folders[0]).config.to_run_config()[key] for key in missing - {"seed"}), "only empty ones"


HOSTILE = [
    "a|b", "<script>alert(1)</script>", "&amp;", "_x_ *y* `z` [l](u)", "\\end{tabular} $x^2$ 50% #1 ~ {}", "=cmd()",
    "two\nlines", "nul\x00", "\udcff", "-1.5", "<0.001",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_read_as_markup(text):
    table = Table("t", "t", [{"name": text, "number": "1.5"}])
    assert markdown(table).count("\n") == 3 and "<s" not in markdown(table)
    assert markdown(table).splitlines()[2].replace("\\|", "").count("|") == 3
    (_, row) = csv.reader(io.StringIO(as_csv(table)))
    assert row[1] == "1.5" and row[0].replace("'", "")[:3] == text.strip()[:3].replace("\udcff", "\\ud")
    assert not row[0].startswith("=")
    written = latex(table)
    assert written.count("\\\\\n") == 2 and written.count("&") - written.count("\\&") == 2
    assert written.encode().decode().count("\\end{tabular}") == 1
    for special in "%$#_":
        assert written.replace("$\\pm$", "").count(special) == written.count(f"\\{special}")


def test_latex_is_a_booktabs_table():
    table = Table("t", "t", [{"method": "A", "mean": "1.00"}, {"method": "B ± C", "mean": "<0.001"}])
    assert latex(table) == (
        "\\begin{tabular}{lr}\n\\toprule\nmethod & mean \\\\\n\\midrule\nA & 1.00 \\\\\n"
        "B $\\pm$ C & \\textless{}0.001 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def spending(folder, name, seed, epsilon, **options):
    """A run that has spent so much, half of it in its first half."""
    privacy = {"privacy": "central", "clipping_norm": 1.0, "noise_multiplier": 1.0, **options}
    made_up_run(folder, name, seed, **privacy)
    rounds = json.loads((folder / run_folder.RESULTS).read_text())["rounds"]
    return change(folder, rounds=[{**each, "epsilon": epsilon * each["round"] / 4} for each in rounds])


def test_what_was_spent_stands_beside_what_was_reached(tmp_path):
    free = made_up_run(tmp_path / "free", "fedavg", 1)
    runs = [
        spending(tmp_path / f"{name}{seed}{noise}", name, seed, epsilon / noise, noise_multiplier=noise)
        for name, epsilon in (("fedbabu", 4.0), ("fedper", 8.0))
        for seed in (1, 2)
        for noise in (1.0, 2.0)
    ]
    study = study_of(*runs)
    rows = tables.privacy_table(study)
    found = [(row["method"], row["privacy"], row["epsilon"], row["delta"], row["rounds"]) for row in rows]
    assert sorted(found) == [
        (method, "central", epsilon, "1e-05", "4")
        for method, epsilons in (("FedBABU", ("2", "4")), ("FedPer", ("4", "8")))
        for epsilon in epsilons
    ]
    methods = {row["method"]: row for row in tables.method_table(study) if row["accuracy"] == "initial"}
    assert all(row["initial accuracy (%)"] and row["personalized accuracy (%)"] for row in rows) and methods
    drawing = figures.privacy(study)
    assert [panel.title for panel in drawing.panels] == ["initial, privacy=central", "personalized, privacy=central"]
    other = [
        spending(tmp_path / f"sample{seed}", "fedbabu", seed, 3.0, privacy="sample", norm="group") for seed in (1, 2)
    ]
    drawn = figures.privacy(study_of(*runs, *other)).panels
    assert len(drawn) == 4 and drawn[2].title == "initial, privacy=sample", "epsilons of other things are not joined"
    axes = Figure().add_subplot()
    drawn[2].draw(axes)
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [3.0]
    ticks = {label.get_text() for label in axes.get_xticklabels()}
    assert "2" in ticks and not any("$" in tick for tick in ticks), "no formula, which is not set here"
    assert "Privacy" in {section.title for section in sections.sections(study)}
    without = study_of(free)
    assert tables.privacy_table(without) == [] and figures.privacy(without) is None
    assert "Privacy" not in {section.title for section in sections.sections(without)}


def test_scores_are_drawn_over_simulated_time(tmp_path):
    def timed(name, factor):
        made_up_run(tmp_path / name, name, 1)
        rounds = json.loads((tmp_path / name / run_folder.RESULTS).read_text())["rounds"]
        return change(
            tmp_path / name, rounds=[{**each, "simulated_seconds": factor * each["round"]} for each in rounds]
        )

    folders = [timed("fedbabu", 2.0), timed("fedper", 3.0)]
    assert read_run(folders[0]).simulated == {each: 2.0 * each for each in read_run(folders[0]).initial}
    drawing = figures.simulated_time(study_of(*folders))
    assert len(drawing.panels) == 1 and [name for name, _ in drawing.panels[0].key] == ["FedBABU", "FedPer"]
    assert figures.simulated_time(study_of(made_up_run(tmp_path / "other", "fedavg", 1))) is None
    change(folders[0], rounds=[{**each, "simulated_seconds": -1.0} for each in read_run(folders[0]).outcome["rounds"]])
    with pytest.raises(InputError, match="simulated seconds of the rounds are no numbers that grow"):
        read_run(folders[0])


@pytest.mark.parametrize("epsilon", [True, "3", None, -1.0, float("nan"), 3])
def test_an_epsilon_that_cannot_be_is_refused(epsilon, tmp_path):
    folder = spending(tmp_path / "run", "fedbabu", 1, 4.0)
    rounds = json.loads((folder / run_folder.RESULTS).read_text())["rounds"]
    change(folder, rounds=[*rounds[:-1], {**rounds[-1], "epsilon": epsilon}])
    with pytest.raises(InputError, match="an epsilon is no number"):
        read_run(folder)
