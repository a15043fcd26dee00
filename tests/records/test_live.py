"""report.html of a run and of a study while they go on."""

import re
from datetime import timedelta
from types import SimpleNamespace

import pytest

from lit_fedbabu.learning.evaluation import ACCURACY
from lit_fedbabu.records.live import PAGE, POINTS, RunPage, curve_of
from tests.support import FakeGrid, failing, tiny_config

REFRESH = 'http-equiv="refresh" content="5"'


def text_of(page):
    """What a reader sees, without what is between angle brackets."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.split("</head>")[1]).split())


def test_the_page_of_a_run_follows_it_round_by_round(federate, tmp_path, monkeypatch):
    config = tiny_config(num_server_rounds=3, evaluate_every=1, fraction_train=1.0, min_clients_per_round=1)
    failing(monkeypatch, lambda client, server_round: client == 2 and server_round == 1)
    grid, seen = FakeGrid(config), []
    deliver = grid.send_and_receive

    def spied(messages, *, timeout):
        pages = list(tmp_path.glob(f"*/{PAGE}"))
        seen.append(pages[0].read_text() if pages else "")
        return deliver(messages, timeout=timeout)

    grid.send_and_receive = spied
    folder, _ = federate(config, grid)
    before = [page for page in seen if page]
    assert all(REFRESH in page for page in before)
    of_round_2 = text_of(next(page for page in before if "round 2: 6 clients train" in page))
    assert "rounds done 1 of 3" in of_round_2 and "of training left 0:0" in of_round_2
    assert "client failures 1 " in of_round_2
    assert "1 client 2 on node 0: RuntimeError" in of_round_2.split("Clients")[0].split("Failures")[1]
    assert "fine-tuning: 6 clients" in text_of(before[-1])
    last = (folder / PAGE).read_text()
    assert "refresh" not in last and "polyline" in last
    told = text_of(last)
    assert "finished" in told and "rounds done 3 of 3" in told and "personalized accuracy" in told
    rows = re.findall(r"<tr>(.*?)</tr>", last.split("<h2>Clients")[1])[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    trained = {client: "2" if client == 2 else "3" for client in range(6)}
    assert [row[:4] for row in cells] == [[str(client), "24", count, "3"] for client, count in trained.items()]
    assert [row[4] for row in cells] == ["0", "0", "1", "0", "0", "0"]
    assert all(0 <= float(value) <= 100 for row in cells for value in row[5:])


def test_a_run_that_is_stopped_says_so_and_why(federate, tmp_path):
    grid = FakeGrid(tiny_config())
    deliver = grid.send_and_receive

    def stopped(messages, *, timeout):
        orders = [message.content["config"] for message in messages if "config" in message.content]
        if any(order.get("server-round") == 2 for order in orders):
            raise KeyboardInterrupt
        return deliver(messages, timeout=timeout)

    grid.send_and_receive = stopped
    with pytest.raises(KeyboardInterrupt):
        federate(tiny_config(), grid)
    page = (tmp_path / "run1" / PAGE).read_text()
    assert "stopped after round 1: KeyboardInterrupt" in page and "refresh" not in page


def test_names_are_shown_and_text_of_others_is_escaped(tmp_path):
    attack = "<script>alert(1)</script>\x1b[2J"
    page = RunPage(tmp_path, tiny_config(), ACCURACY, 2, {0: (7, 3)}, [attack, *"bcdef"])
    page.failed(1, 0, f"client 0 ({attack})")
    page.begins(f"round 1 {attack}", [], timedelta(seconds=90))
    text = (tmp_path / PAGE).read_text()
    assert "<script" not in text and "\x1b" not in text and text.count("&lt;script&gt;alert(1)") == 4
    assert "default-src 'none'" in text and "of training left 0:01:30" in text_of(text)


def test_a_curve_of_many_rounds_is_drawn_by_some_of_its_points():
    values = {each: 1 / each for each in range(1, 10_001)}
    (curve,) = curve_of("loss", values)
    assert len(curve.points) <= POINTS + 1 and curve.points[0] == (60.0, 15.0) and curve.points[-1] == (590.0, 190.0)
    assert (curve.first, curve.last, curve.high, curve.low) == (1, 10_000, "1", "0.0001")
    assert curve_of("none", {}) == [] and len(curve_of("one", {3: 2.0})[0].points) == 1


def test_a_long_history_costs_little_to_write(tmp_path):
    rounds = [{"round": each, "train_loss": 1.0, "learning_rate": 0.1} for each in range(1, 5001)]
    page = RunPage(tmp_path, tiny_config(num_clients=6), ACCURACY, 5000, {})
    page.begins("round", rounds)
    assert (tmp_path / PAGE).stat().st_size < 50_000


def test_the_page_of_a_study_leads_to_those_of_its_runs(tmp_path, monkeypatch):
    from lit_fedbabu.studies import show

    runs = [SimpleNamespace(name=f"run {each}&", folder=tmp_path / f"run {each}&", config=None) for each in range(3)]
    for run in runs:
        run.folder.mkdir()
        (run.folder / PAGE).write_text("")
    study = SimpleNamespace(runs=runs, folder=tmp_path, estimate=lambda run, known: 1.0)
    monkeypatch.setattr(show, "times", lambda folder: {})
    with pytest.raises(KeyboardInterrupt), show.shown(study, runs[1:], plain=True) as shown:
        page = (tmp_path / PAGE).read_text()
        assert REFRESH in page and "1 of 3" in page and 'href="run%202%26/report.html"' in page
        shown.ended(runs[1], "failed")
        page = (tmp_path / PAGE).read_text()
        assert "failed" in page and "2 of 3" in page and "time left" in page
        raise KeyboardInterrupt
    assert "stopped: KeyboardInterrupt" in (tmp_path / PAGE).read_text()
    with show.shown(study, runs[2:], plain=True) as shown:
        shown.ended(runs[2], "failed")
    page = (tmp_path / PAGE).read_text()
    assert "all runs have ended" in page and "refresh" not in page
