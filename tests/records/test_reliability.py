import json

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu.learning.evaluation import BINS, STAGES
from lit_fedbabu.records import plots, run_folder
from lit_fedbabu.records.reliability import diagram, pooled
from lit_fedbabu.reporting.reliability import reliability
from lit_fedbabu.tasks.images.measures import by_confidence
from tests.reporting.made_up import change, made_up_run, study_of


def test_images_are_counted_in_the_bin_of_their_confidence():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.2, 0.2, 0.6]]))
    logits = torch.cat([logits, torch.tensor([[100.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]])])
    logits[logits == -torch.inf] = -1e30
    images, hits, confidence = by_confidence(logits, torch.tensor([0, 1, 2, 2, 0, 0]))
    assert {place: count for place, count in enumerate(images) if count} == {7: 1, 9: 1, 13: 2, 14: 1}
    assert {place: count for place, count in enumerate(hits) if count} == {7: 1, 9: 1, 13: 1, 14: 1}
    assert confidence[13] == pytest.approx(1.8) and confidence[14] == 1 and sum(confidence) == pytest.approx(3.9)
    assert len(images) == len(hits) == len(confidence) == BINS


@pytest.mark.pictures
def test_a_runs_bins_agree_with_its_accuracies_and_calibration_errors(finished):
    outcome = json.loads((finished / run_folder.RESULTS).read_text())
    for row in outcome["clients"]:
        for stage in STAGES:
            found = pooled([row], stage)
            assert found.images.sum() == row["num_test"]
            assert found.hits.sum() / row["num_test"] == pytest.approx(row[f"{stage}_accuracy"])
            assert found.error == pytest.approx(row[f"{stage}_calibration_error"], abs=1e-6)
    events = EventAccumulator(str(finished)).Reload()
    assert "calibration/reliability" in events.Tags()["images"]


def row_of(stage, images, hits, confidence):
    def placed(values):
        return [0] * (BINS - len(values)) + values

    return {
        f"{stage}_bin_images": placed(images),
        f"{stage}_bin_hits": placed(hits),
        f"{stage}_bin_confidence": placed(confidence),
    }


def test_clients_are_pooled_and_bins_of_few_images_are_not_drawn():
    rows = [row_of("initial", [9, 30], [3, 30], [7.9, 29]), row_of("initial", [0, 10], [0, 6], [0, 9.5])]
    found = pooled(rows, "initial")
    assert [list(each) for each in found.points] == [[pytest.approx(38.5 / 40)], [36 / 40]]
    assert found.error == pytest.approx((4.9 + 2.5) / 49)
    with plots.style():
        figure = diagram({"clients": rows})
    above, below = figure.axes
    assert [list(line.get_ydata()) for line in above.lines] == [[0, 1], [36 / 40]]
    assert figure.legends[0].get_texts()[0].get_text() == "initial, calibration error 0.151"
    assert list(below.patches[0].get_data().values)[-2:] == [9 / 49, 40 / 49]
    with plots.style():
        figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not any(text.get_window_extent().overlaps(legend.get_window_extent()) for text in figure.texts)
    assert legend.get_window_extent().y0 >= above.get_tightbbox().y1
    assert "test images of 2 clients together" in [each.get_text() for each in figure.findobj(Text)]


def test_results_without_bins_have_no_diagram(tmp_path):
    study = study_of(made_up_run(tmp_path / "old"))
    assert reliability(study) is None and diagram(study.runs[0].outcome) is None
    assert pooled([row_of("initial", [0], [0], [0])], "initial") is None and pooled([], "initial") is None


def test_a_report_has_a_line_for_every_method_that_has_bins(tmp_path):
    folders = [made_up_run(tmp_path / f"{name}{seed}", name, seed) for name in ("fedbabu", "fedavg") for seed in (1, 2)]
    for folder in folders[:2]:
        rows = json.loads((folder / run_folder.RESULTS).read_text())["clients"]
        bins = {**row_of("initial", [20], [10], [19]), **row_of("personalized", [20, 20], [18, 20], [17, 19.8])}
        change(folder, clients=[{**row, **bins} for row in rows])
    drawing = reliability(study_of(*folders))
    assert [panel.title for panel in drawing.panels] == list(STAGES)
    assert [panel.key for panel in drawing.panels] == [(("FedBABU, error 0.450", 0),), (("FedBABU, error 0.030", 0),)]
    figure = plots.Figure()
    drawing.panels[1].draw(axes := figure.subplots())
    x, y = next(line.get_data() for line in axes.lines if line.get_marker() != "None")
    assert np.allclose([x, y], [[0.85, 0.99], [0.9, 1]])
