import dataclasses
import json
import re
from pathlib import Path

import pytest

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import AGGREGATORS, Config
from lit_fedbabu.config.text import GROUPS, describe, page
from lit_fedbabu.tasks.images.partitioners import PARTITIONERS

INNER, PULLED = ("first-order-maml", "moreau-envelope"), ("proximal", "moreau-envelope")
ROOT = Path(__file__).parent.parent.parent


def test_help_describes_every_option_with_its_default_under_its_group():
    text = describe(Config())
    for key, value in Config().to_run_config().items():
        assert f"  {key}={json.dumps(value)}\n      " in text
    for first, title in GROUPS.items():
        assert f"\n\n{title}\n  {first}=" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_of_options_is_made_from_the_dataclass():
    assert (ROOT / "docs" / "options.md").read_text() == page(), "make options writes it anew"
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(Config().to_run_config())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    assert "in a round | `0.1` | number, above 0, at most 1 |\n" in page()


def test_help_names_every_method_and_every_partitioner():
    text = describe(Config()).replace("-\n      ", "-").replace("\n      ", " ")
    for names in (ALGORITHMS, PARTITIONERS):
        assert all(re.search(rf"[ ,]{name}[,:;]?[ \n]", text) for name in names)


@pytest.mark.parametrize("field", [each for each in dataclasses.fields(Config) if each.metadata["read_by"]])
def test_an_option_is_read_by_whom_it_names(field):
    named = set(field.metadata["read_by"].split(", "))
    parts = Config.__dataclass_fields__["finetune_part"].metadata["choices"]
    kinds = Config.__dataclass_fields__["privacy"].metadata["choices"]
    engines, modes = (Config.__dataclass_fields__[name].metadata["choices"] for name in ("engine", "server_mode"))
    known_to = (PARTITIONERS, ALGORITHMS, AGGREGATORS, parts, kinds, {"secure-aggregation"}, engines, modes)
    assert any(named <= set(known) for known in known_to)
    if field.name == "num_head_epochs":
        assert named == {name for name, row in ALGORITHMS.items() if field.name in dict(row.phases).values()}
    if field.name == "proximal_mu":
        assert named == {name for name, row in ALGORITHMS.items() if row.step in PULLED or name == "ditto"}
    if field.name.startswith("inner_"):
        assert named == {name for name, row in ALGORITHMS.items() if row.step in INNER}
