"""The page in text, and as headless Chromium shows it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lit_fedbabu import report
from lit_fedbabu.records import run_folder
from lit_fedbabu.reporting.page import COLOURED, FOLDER
from tests.reporting.made_up import made_up_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACK = "<script>document.title='attacked'</script><img src=x onerror=document.title='attacked'>"
VOID = {"meta", "img", "link", "br"}


class Elements(HTMLParser):
    """Start tags with their attributes; fails where an end tag is not that of the last open element."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture(scope="module")
def folders(machine, tmp_path_factory):
    """Runs by people who write markup into every name that a report shows."""
    place = tmp_path_factory.mktemp("runs")
    found = []
    for seed in range(2):
        for algorithm in ("fedbabu", "fedavg", "ditto"):
            name = f"<b>{algorithm}{seed}&"
            facts = {"trains-on": f"cpu {ATTACK[8:]}", "<i>": '"quoted"'}
            run = made_up_run(place / name, algorithm, seed, facts=facts, label_column=f"{ATTACK[:40]}{seed % 1}")
            run.joinpath(run_folder.PARTITION).write_text(f'client,split,"{ATTACK}",$x_$\n0,train,5,0\n1,train,2,3\n')
            found.append(run)
    made_up_run(place / "other", label_column="]]></style><svg/onload=alert(1)>")
    failure = {"round": 1, "client": 0, "node": "0", "reason": f"{ATTACK}\x00\ud800", "traceback": ""}
    (found[0] / run_folder.FAILURES).write_text(json.dumps(failure))
    return [*found, place / "other"]


@pytest.fixture(scope="module")
def path(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert report.main([*map(str, folders), "--out", str(out)]) == 0
    return out / "report.html"


def test_the_page_is_whole_and_escapes_all_that_comes_from_runs(path):
    elements = Elements(path.read_text())
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 1 and not {"img", "b", "i", "link", "iframe"} & set(tags)
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    shown = path.read_text()
    assert "&lt;b&gt;fedbabu0&amp;" in shown and "&lt;script&gt;document.title" in shown


def test_the_page_loads_nothing_and_runs_its_own_script_alone(path):
    text = path.read_text()
    elements = Elements(text)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name, "#")
            assert target.startswith("#") or (tag == "image" and target.startswith("data:image/png;base64,")), target
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_ids_are_there_once_and_links_lead_to_them(path):
    found = Elements(path.read_text()).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for _, attributes in found if attributes.get("href", "").startswith("#")}
    clips = set(re.findall(r"url\(#([^)]*)\)", path.read_text()))
    assert links | clips <= set(ids) and clips


def test_every_colour_of_the_figures_has_one_for_the_dark(path):
    css = (FOLDER / "page.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark")
    for colour in COLOURED.pattern.split("|"):
        assert f"--c-{colour[1:]}: {colour};" in light
    same = {"#e69f00"}
    assert {f"#{name}" for name in re.findall(r"--c-(\w+):", dark)} == set(COLOURED.pattern.split("|")) - same
    drawn = {style for _, attributes in Elements(path.read_text()).found if (style := attributes.get("style"))}
    assert not {colour for style in drawn for colour in re.findall(r"#[0-9a-f]{6}", style)}


@pytest.mark.slow
def test_the_report_repeats_to_the_byte(folders, path, tmp_path):
    assert report.main([*map(str, folders), "--out", str(tmp_path)]) == 0
    assert {each.name for each in tmp_path.iterdir()} == {each.name for each in path.parent.iterdir()}
    for each in tmp_path.iterdir():
        assert each.read_bytes() == (path.parent / each.name).read_bytes(), each.name


PROBE = """<script>
const all = (selector) => Array.from(document.querySelectorAll(selector));
const column = (place) => all("#table-methods tbody tr").map((row) => row.cells[place].innerText);
const place = all("#table-methods th").findIndex((head) => head.innerText === "mean");
const orders = [column(place)];
for (const click of [1, 2]) {
  all("#table-methods th button")[place].click();
  orders.push(column(place));
}
const wide = all("main *").filter((each) => !each.closest(".scroll, svg"));
document.body.dataset.probe = JSON.stringify({
  orders, width: innerWidth, page: document.documentElement.scrollWidth, title: document.title,
  figures: all("figure > svg").map((each) => each.getBoundingClientRect().width),
  right: Math.max(...wide.map((each) => each.getBoundingClientRect().right)),
  paper: getComputedStyle(document.body).backgroundColor,
});
</script></body>"""


def shown(path, profile, width=1440, scheme=1):
    """The page as Chromium has it after its script ran, and what Chromium complained of."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={profile}",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@needs_chromium
def test_chromium_shows_the_page_without_a_complaint(path, tmp_path):
    dom, complaints = shown(path, tmp_path / "profile")
    assert complaints == []
    assert "<title>Federated runs compared</title>" in dom
    assert dom.count("<figure>") == path.read_text().count("<figure>") > 5
    assert "&lt;b&gt;fedbabu0&amp;" in dom


@needs_chromium
@pytest.mark.parametrize(("width", "scheme", "paper"), [(1440, 1, "rgb(255, 255, 255)"), (390, 0, "rgb(22, 22, 22)")])
def test_tables_sort_and_nothing_is_wider_than_the_screen(width, scheme, paper, path, tmp_path):
    probed = tmp_path / "probed.html"  # a script beside its own needs a page without a policy
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    probed.write_text(text.replace("</body>", PROBE))
    dom, _ = shown(probed, tmp_path / "profile", width, scheme)
    found = json.loads(Elements(dom).found[[tag for tag, _ in Elements(dom).found].index("body")][1]["data-probe"])
    start, up, down = ([float(value) for value in order] for order in found["orders"])
    assert up == sorted(start) and down == up[::-1] and start != up
    assert found["title"] == "Federated runs compared"
    assert found["paper"] == paper
    assert found["page"] <= found["width"] and found["right"] <= found["width"]
    assert min(found["figures"]) > 300
