"""report.html: one file that needs no network and no server."""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.markers import MarkerStyle

from lit_fedbabu.algorithms.table import title_of
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.ground.system import package_folder
from lit_fedbabu.records.plots import COLOURS, style
from lit_fedbabu.reporting.compare import Study
from lit_fedbabu.reporting.panels import GREY, Panel, look, svg
from lit_fedbabu.reporting.runs import Run
from lit_fedbabu.reporting.sections import Section

FOLDER = package_folder() / "reporting"
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
COLOURED = re.compile("|".join(["#000000", "#ffffff", "#e6e6e6", GREY, *(each.lower() for each in COLOURS)]))
"""Colours that page.css gives other values in the dark."""
FONTS = re.compile(r"font-family: [^;]*; ")
DECIMALS = re.compile(r"(\.\d)\d+")


def page(study: Study, sections: Sequence[Section]) -> str:
    """The page. Text from run folders is escaped; a policy in its head keeps browsers from loading anything."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: in_line(value) if type(value) is str else value,
    )
    script = (FOLDER / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    with style():
        return environment.get_template("page.html").render(
            title=title(study),
            counts=[
                *(_of_one(study.runs[0]) if len(study.runs) == 1 else _of_several(study)),
                *([f"{_counted(len(study.unfinished), 'run')} without results"] if study.unfinished else []),
            ],
            sections=sections,
            css=Markup((FOLDER / "page.css").read_text()),  # a file of this package
            script=Markup(script),  # a file of this package
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
            anchor=lambda title: re.sub(r"\W+", "-", title.lower()),
            inline=inline,
            swatch=swatch,
        )


def title(study: Study) -> str:
    """What the report is about: one run by its method and its data, or several."""
    if len(study.runs) > 1:
        return "Federated runs compared"
    config = study.runs[0].config
    return f"{title_of(config.algorithm)} on {config.kind.short_name(config)}"


def _of_one(run: Run) -> list[str]:
    clients, rounds = (_counted(len(run.outcome[f"{noun}s"]), noun) for noun in ("client", "round"))
    return [f"Run {run.folder.name}", clients, rounds, f"seed {run.config.seed}"]


def _of_several(study: Study) -> list[str]:
    counts = {"run": len(study.runs), "method": len(study.methods), "setting": len(study.settings)}
    counts["seed"] = len({run.config.seed for run in study.runs})
    return [_counted(count, noun) for noun, count in counts.items()]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def inline(panel: Panel, name: str, wide: bool = False) -> Markup:
    """A panel as SVG within the page: its ids start with the name, and a style sheet decides colours in the dark.

    Args:
        panel: of a figure.
        name: of it.
        wide: whether nothing stands beside it.
    """
    root = ElementTree.fromstring(svg(panel, wide))  # made by Matplotlib
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}metadata" or child.tag == f"{SVG}style":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.text, element.tail = ((text or "").strip() for text in (element.text, element.tail))
        _rewrite(element.attrib, name)
    root.attrib |= {"role": "img", "aria-label": in_line(panel.title) or name}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree escapes text


def _rewrite(attributes: dict[str, Any], name: str) -> None:
    if LINK in attributes:
        attributes["href"] = attributes.pop(LINK)
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
    if "style" in attributes:
        attributes["style"] = COLOURED.sub(_variable, FONTS.sub("", attributes["style"]))
    for shape in attributes.keys() & {"d", "x", "y"}:
        attributes[shape] = DECIMALS.sub(r"\1", " ".join(attributes[shape].split()))


def _variable(found: re.Match[str]) -> str:
    return f"var(--c-{found[0][1:]})"


def swatch(number: int) -> Markup:
    """The line and marker of a name in a key."""
    shown = look(number)
    marker = MarkerStyle(shown["marker"])
    outline = np.asarray(marker.get_path().transformed(marker.get_transform()).to_polygons()[0])
    points = " ".join(f"{14 + 8 * x:.1f},{7 - 8 * y:.1f}" for x, y in outline.tolist())
    painted = COLOURED.sub(_variable, shown["color"].lower())
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true"><g style="fill: {0}; stroke: {0}">'
        '<path d="M1 7H27" stroke-width="1.5"/><polygon points="{1}"/></g></svg>'
    ).format(painted, points)
