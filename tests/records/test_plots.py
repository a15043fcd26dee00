"""Names of classes in figures: by a font that has their characters, or by numbers."""

import io
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from lit_fedbabu.records import plots

NAMES = ["猫", "dog", "犬"]


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font of the machine that has the two characters, each a square."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 500), (500, 500), (500, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat", "dog"])
    builder.setupCharacterMap({ord("猫"): "cat", ord("犬"): "dog"})
    builder.setupGlyf(dict.fromkeys((".notdef", "cat", "dog"), square))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "cat", "dog"), (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")


@pytest.fixture
def no_font(monkeypatch):
    """A machine with the fonts of Matplotlib alone."""
    theirs = [each for each in font_manager.fontManager.ttflist if "mpl-data" in each.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", theirs)


def drawn(figure):
    """The texts at the axes of a figure that can be drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
    (axes, *_) = figure.axes
    return axes, [label.get_text() for label in axes.get_yticklabels()]


def test_a_font_of_the_machine_shows_the_names(font):
    with plots.style():
        axes, labels = drawn(plots.heat_map("client,split,猫,dog,犬\n0,train,1,2,3\n"))
    assert labels == NAMES and axes.get_ylabel() == "class"
    assert "Two Squares" in plots.fonts_for("猫犬")


def test_without_such_a_font_numbers_stand_for_the_names(no_font):
    with plots.style():
        axes, labels = drawn(plots.heat_map("client,split,猫,dog,犬\n0,train,1,2,3\n"))
        assert labels == ["0", "1", "2"] and axes.get_ylabel() == "class (order of partition.csv)"
        matrix = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 1]])
        axes, labels = drawn(plots.confusion(matrix, NAMES, "Confusion"))
        assert labels == ["1", "2"] and axes.get_xlabel() == "predicted class (order of partition.csv)"


def test_other_names_are_shown_as_they_are(no_font):
    with plots.style():
        axes, labels = drawn(plots.heat_map("client,split,$x^$,größer,жук\n0,train,1,2,3\n"))
    assert labels == ["$x^$", "größer", "жук"] and axes.get_ylabel() == "class"
