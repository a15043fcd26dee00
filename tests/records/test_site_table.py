"""sites.json of a run on sites, and the table that ``lit-fedbabu sites`` and the run's page make of it."""

import errno
import json
import re
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from lit_fedbabu import sites
from lit_fedbabu.client.handlers import _failure
from lit_fedbabu.ground import waits
from lit_fedbabu.records import live
from lit_fedbabu.records.sites import SITES, kind_of
from lit_fedbabu.server import exchange, patience
from lit_fedbabu.server.federate import federate
from lit_fedbabu.training.experiment import Experiment
from tests.sites import Sites, site_config, write_site
from tests.support import unavailable, wait_for

NOW = time.time()
OWN = ("red", "green"), ("blue", "green"), ("red", "blue")
NAMES = "St Mary's Hospital of the Long Name", "Süd\x1b[2J", "c"


@Grid.register
class Watched(Sites):
    """Flower's grid, whose node 1 is gone while it is asked in round 2, and came back since."""

    def __init__(self, config, node_configs, folder):
        super().__init__(config, node_configs)
        self.folder, self.asked, self.seen, self.gone = folder, {}, {}, False

    def push_messages(self, messages):
        self.asked |= {str(len(self.messages) + place): message for place, message in enumerate(messages)}
        self.messages += messages
        return list(self.asked)[-len(messages) :]

    def pull_messages(self, names):
        message = self.asked[names[0]]
        place = list(self.contexts).index(message.metadata.dst_node_id)
        is_round_2 = message.metadata.message_type == "train" and message.metadata.group_id == "2"
        self.gone = self.gone or is_round_2
        if is_round_2:
            wait_for(lambda: self.look() or self.seen, 20)
        if is_round_2 and place == 1:
            self.gone = False
            return [unavailable(message)]
        return [self.answer(message, self.contexts[message.metadata.dst_node_id])]

    def look(self):
        page = (self.folder / live.PAGE).read_text()
        if re.search(r"<td>gone [\d:-]+</td>", page):
            self.seen["gone"] = json.loads((self.folder / SITES).read_text()), page

    def get_nodes(self):
        there = [node for place, node in enumerate(self.contexts) if not (self.gone and place == 1)]
        registered, came = (datetime.fromtimestamp(NOW - ago, UTC).isoformat() for ago in (10 * 86400, 4 * 86400))
        return [
            NodeInfo(
                node_id=node, registered_at=registered, last_activated_at=came, online_until=NOW + 50,
                heartbeat_interval=30.0,
            )
            for node in there
        ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with noise on three sites, and what was written while one of them was gone."""
    place = tmp_path_factory.mktemp("run")
    noise = {"privacy": "local", "clipping_norm": 1.0, "noise_multiplier": 1.0, "norm": "group"}
    config = site_config(place, num_server_rounds=3, min_clients_per_round=2, evaluate_every=9, **noise)
    nodes = [
        {
            "client-id": site,
            "data-path": str(write_site(place / f"{site}", classes)),
            "state-path": str(place / f"state-{site}"),
            "name": name,
        }
        for site, (classes, name) in enumerate(zip(OWN, NAMES, strict=True))
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waits, "FIRST_S", 0.01)
        patch.setattr(patience, "SITES_EVERY_S", 0.05)
        patch.setattr(exchange, "SITE_PAUSE_S", 0)
        grid = Watched(config, nodes, place / "server" / "run")
        return federate(grid, Experiment(config)), grid


def test_a_site_that_is_gone_in_a_round_is_shown_so_while_the_round_goes_on(run):
    content, page = run[1].seen["gone"]
    assert content["going"] and content["state"] == "round 2: 3 clients train"
    rows = content["sites"]
    assert [row["online"] for row in rows] == [True, False, True] and [row["round"] for row in rows] == [1, 1, 1]
    assert [row["next"] for row in rows] == ["asked: round 2", "start its SuperNode", "asked: round 2"]
    seen = datetime.fromisoformat(rows[1]["seen"]).timestamp()
    assert abs(seen - (NOW + 50 - 60)) <= 1, "heartbeats come every 30 s, and two may be missing"
    told = " ".join(re.sub(r"<[^>]*>", " ", page.split("<h2>Sites")[1].split("<h2>")[0]).split())
    day = time.strftime("%m-%d", time.localtime(NOW - 4 * 86400))
    assert f"1 Süd\\x1b[2J {time.strftime('%Y-%m-%d', time.localtime(NOW - 10 * 86400))} gone" in told
    assert f"since {day} 1" in told and "\x1b" not in page


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_of_a_finished_run_keeps_its_numbers(width, run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert sites.main([str(run[0])]) == 0
    told = capsys.readouterr().out
    assert all(len(line) <= width for line in told.splitlines()) and "\x1b" not in told
    state, head, *rows = told.splitlines()
    assert state == "finished"
    assert {"site", "name", "registered", "there", "round", "failures", "epsilon"} <= set(head.split())
    first = [row.split() for row in rows if row[:1] in ("0", "1", "2")]
    epsilon = json.loads((run[0] / "results.json").read_text())["privacy"]["epsilon"]
    for site, row in enumerate(first):
        day = time.strftime("%m-%d", time.localtime(NOW - 4 * 86400))
        registered = time.strftime("%Y-%m-%d", time.localtime(NOW - 10 * 86400))
        assert row[0] == str(site) and {registered, day, "3", f"{epsilon:.3g}"} <= set(row)
    assert "1 gone" in " ".join(rows) and "finetune --save" in " ".join(" ".join(rows).split())


def test_a_file_that_is_old_or_damaged_and_a_run_without_sites_are_told(run, tmp_path, capsys):
    folder = run[0]
    content = json.loads((folder / SITES).read_text())
    (folder / SITES).write_text(json.dumps({**content, "going": True, "written": time.time() - 7200}))
    assert sites.main([str(folder)]) == 0
    assert "written 2:00:0" in capsys.readouterr().out
    for damage in ({"sites": [{**content["sites"][0], "round": "3"}]}, {"sites": 3}, {"going": 1}):
        (folder / SITES).write_text(json.dumps({**content, **damage}))
        assert sites.main([str(folder)]) == 2
        assert "cannot be read" in capsys.readouterr().err
    (folder / SITES).unlink()
    assert sites.main([str(folder)]) == 0
    assert "waits until num-clients = 3 sites are there" in capsys.readouterr().out
    (folder / "config.toml").write_text('dataset = "digits"\n')
    assert sites.main([str(folder)]) == 2
    assert "sites is for runs on real ones (partitioner=sites)" in capsys.readouterr().err


def test_kinds_of_failures():
    full = OSError(errno.ENOSPC, "No space left on device", "train_images.npy")
    for error in (RuntimeError("boom"), full):
        reason = _failure(SimpleNamespace(client=1), error).reason
        assert reason == f"{type(error).__name__}: {error}" and kind_of(reason) == "error"
    assert "train_images.npy" in reason
    told = ["Error: Node Unavailable", "late: no answer within 20 s", "RuntimeError: boom", "its update has no number"]
    assert [kind_of(reason) for reason in told] == ["gone", "late", "error", "refused"]
