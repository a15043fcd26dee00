import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_fedbabu

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add-an-algorithm.md"
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
]


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def listed(entries):
    """All pages of a navigation, which may have sections."""
    for entry in entries:
        for value in entry.values():
            yield from listed(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_of_the_site():
    pages = set(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= pages
    assert all((ROOT / "docs" / page).is_file() or (ROOT / page).is_file() for page in pages - {"messages.md"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?![a-z]+:)([^)]*)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_public_name_is_on_the_page_of_the_api():
    named = re.findall(r"^::: lit_fedbabu\.(?:\w+\.)*(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(lit_fedbabu.__all__) - {"__version__"} == set(named) - {"Request"}


def test_the_picture_of_the_rooms_has_every_room():
    picture = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    rooms = {path.parent.name for path in (ROOT / "lit_fedbabu").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"\b(\w+)/", re.sub(r"<[^>]*>", "", picture)))


@pytest.mark.parametrize("name", ["fedavg", "fedbabu"])
def test_event_files_of_a_clone_leave_the_columns_of_hparams_to_new_runs(name):
    events = EventAccumulator(str(ROOT / "tb_logs" / "reference" / name)).Reload()
    assert set(events.PluginTagToContent("hparams")) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}


@pytest.mark.slow
def test_algorithms_are_added_as_the_page_says_and_go_through_the_tests_of_every_row(tmp_path):
    for folder in ("lit_fedbabu", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    patches = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(patches) == 2
    for patch in patches:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch, text=True, check=True)
    tests = [
        "tests/server",
        "tests/algorithms/test_client_update.py",
        "-k",
        "(random-body or fedbabu-clipped) and not what_the_page_says",
        "-m",
        "slow or not slow",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "7 passed" in done.stdout, done.stdout  # the tests of every row, and by hand where the step is plain SGD


def test_a_package_index_shows_no_link_and_no_picture_that_it_does_not_have():
    text = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert not re.findall(r"\]\((?!https://)", text)
    assert "![" not in text
    assert "[FedBABU](https://arxiv.org" in text
    assert "networks of timm" in text


def test_issue_forms_ask_for_what_a_report_needs():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*")}
    assert set(forms) == {"bug", "feature"}
    for form in forms.values():
        assert {"name", "description", "body"} <= set(form)
        assert all(each["type"] in ("textarea", "input") and each["attributes"]["label"] for each in form["body"])
        assert len({each["id"] for each in form["body"]}) == len(form["body"])
    asked = {each["id"]: each.get("validations", {}).get("required", False) for each in forms["bug"]["body"]}
    assert asked == {
        "command": True, "expected": True, "happened": True, "doctor": True, "config": False, "repeats": False
    }  # fmt: skip
