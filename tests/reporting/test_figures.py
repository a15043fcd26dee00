import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from PIL import Image

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.records import plots, run_folder
from lit_fedbabu.reporting import differences, dots, figures
from lit_fedbabu.reporting.panels import PANELS, Drawing, Panel, alone, together, written
from tests.reporting.made_up import made_up_run, study_of

MADE = [figures.rounds, figures.finetuning, figures.clients, figures.cost]


@pytest.fixture(scope="module")
def many(machine, tmp_path_factory):
    """All algorithms, FedBABU with many learning rates and names, one of them shorter."""
    folder = tmp_path_factory.mktemp("many")
    folders = [made_up_run(folder / each, each) for each in ALGORITHMS if each not in ("fedbabu", "local")]
    folders.append(made_up_run(folder / "local", "local", rounds=2, last=2, epochs=1))
    folders += [made_up_run(folder / f"rate{each}", learning_rate=each / 10) for each in range(1, 14)]
    return study_of(*folders)


@pytest.mark.parametrize("make", MADE)
def test_every_method_is_in_a_panel_with_few_others_and_the_reference(make, many):
    drawing = make(many)
    stages = {figures.clients: 2}.get(make, 1)
    named = [name.partition(",")[0] for panel in drawing.panels for name, _ in panel.key]
    assert set(named) == set(many.methods) and len(many.methods) == len(ALGORITHMS) + 12
    for panel in drawing.panels:
        names, numbers = zip(*panel.key, strict=True)
        assert len(names) <= 1 + figures.BESIDE and len(set(numbers)) == len(numbers)
        assert panel.key[0] == (many.reference, 0)
    assert named.count("Ditto") == stages and named.count(many.reference) == len(drawing.panels)


def test_curves_that_end_early_are_explained(many):
    for make, words in ((figures.rounds, "Local only, 2 rounds"), (figures.finetuning, "Local only, 1 epochs")):
        names = [name for panel in make(many).panels for name, _ in panel.key]
        assert words in names
        assert [name for name in names if "," in name] == [words], "the others go on to the end"


def test_a_panel_has_its_few_in_colour_and_all_others_in_grey(many):
    (panel, *_) = figures.rounds(many).panels
    with plots.style():
        (axes,) = alone(panel).axes
    colours = [line.get_color() for line in axes.lines]
    assert colours.count("#b8b8b8") == len(many.methods) - 7 and len(set(colours)) == 8


def test_a_round_is_a_whole_number_also_on_an_axis_of_few(tmp_path):
    with plots.style():
        (axes,) = alone(figures.rounds(study_of(made_up_run(tmp_path / "run", rounds=2, last=2))).panels[0]).axes
    assert all(float(place).is_integer() for place in axes.get_xticks())


def test_bands_are_of_seeds_and_one_seed_has_none(tmp_path):
    folders = [made_up_run(tmp_path / f"{seed}", seed=seed) for seed in (1, 2)]
    for chosen, bands in ((folders, 1), (folders[:1], 0)):
        study = study_of(*chosen)
        with plots.style():
            (axes,) = alone(figures.rounds(study).panels[0]).axes
        assert len(axes.collections) == bands
    values = np.array([[run.initial[each]["mean"] for each in (2, 4)] for run in study_of(*folders).runs])
    line = figures._over_seeds([dict(zip((2, 4), row, strict=True)) for row in values], lambda last: "")
    assert line.y == pytest.approx(values.mean(0)) and line.std == pytest.approx(values.std(0, ddof=1))


def _is_within(text, page, renderer):
    box = text.get_window_extent(renderer)
    return Bbox.intersection(box, page).bounds == box.bounds


@pytest.mark.slow
@pytest.mark.parametrize("make", [*MADE, dots.fairness, dots.differences, figures.partition])
def test_all_words_are_within_a_panel_alone(make, many):
    for panel in make(many).panels:
        with plots.style():
            figure = alone(panel)
            renderer = FigureCanvasAgg(figure).get_renderer()
            figure.draw(renderer)
        for axes in figure.axes:
            words = [axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels()]
            words = [text for text in words if re.search("[a-z]", text.get_text())]
            assert all(_is_within(text, figure.bbox.padded(1), renderer) for text in words)


@pytest.mark.parametrize("make", [figures.rounds, dots.fairness, dots.differences])
def test_names_are_within_the_figure_and_panels_keep_their_size(make, many):
    drawing = make(many)
    with plots.style():
        figure = together(drawing.panels[:4])
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
    texts = [text for axes in figure.axes for text in [axes.title, *axes.get_yticklabels()] if text.get_text()]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert len(texts) > 20
    page = figure.bbox.padded(1)
    assert all(_is_within(text, page, renderer) for text in texts)
    for axes in figure.axes:
        if axes.axison:
            inches = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
            assert inches.width > 1.3 and inches.height > 1


@pytest.mark.slow
def test_many_panels_make_several_files(tmp_path):
    panels = [Panel(f"panel {number}", lambda axes: axes.plot([0, 1])) for number in range(PANELS + 1)]
    with plots.style():
        paths = list(written(Drawing("name", "title", panels), tmp_path))
    assert [path.name for path in paths] == ["name.png", "name.svg", "name-2.png", "name-2.svg"]
    text = "".join(path.read_text() for path in paths if path.suffix == ".svg")
    assert all(f"panel {number}<" in text for number in range(PANELS + 1))
    assert Image.open(tmp_path / "name.png").width == 7 * 300 and Image.open(tmp_path / "name-2.png").width == 3.5 * 300


def test_every_split_has_a_panel_with_its_title(tmp_path):
    folders = [made_up_run(tmp_path / f"{seed}", seed=seed) for seed in range(14)]
    for seed, folder in enumerate(folders):
        (folder / run_folder.PARTITION).write_text(f"client,split,$x$,{'y' * 40}\n0,train,{seed + 1},0\n1,train,2,3\n")
    drawing = figures.partition(study_of(*folders))
    assert [panel.title for panel in drawing.panels] == [f"seed {seed}" for seed in range(figures.SPLITS)]
    assert drawing.note == "12 of 14 splits are drawn."
    with plots.style():
        figure = alone(drawing.panels[0])
        figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["$x$", f"{'y' * 15}…"]


def test_methods_whose_bars_do_not_overlap_differ(tmp_path):
    folders = [
        made_up_run(tmp_path / f"{name}{alpha}", name, gain=gain, dirichlet_alpha=float(alpha))
        for name, gain in (("fedbabu", 0.9), ("fedavg", 0.5), ("fedper", 0.0))
        for alpha in range(1, 8)
    ]
    ranked = differences.ranking(study_of(*folders))
    with plots.style():
        (axes,) = (figure := alone(dots.ranks(ranked).panels[0])).axes
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
    assert _is_within(axes.xaxis.label, figure.bbox.padded(1), renderer)
    bars = [list(line.get_xdata()) for line in axes.lines if np.size(line.get_xdata()) == 2]
    order = np.sort(ranked.found.average)
    for place, (low, high) in enumerate(bars):
        assert (low + high) / 2 == pytest.approx(order[place])
        assert high - low == pytest.approx(ranked.found.critical_difference)
    assert bars[0][1] < bars[2][0], "the first and the last differ"
