"""Real nodes on this machine: a SuperLink with TLS and authentication, and three SuperNodes; minutes, so all slow."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import tomli_w
import yaml

from benchmarks.cluster import Cluster
from lit_fedbabu import credentials
from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.engines.lab import Lab as OnThisMachine
from lit_fedbabu.ground import system
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.classifier import load_model
from lit_fedbabu.records.sites import read
from lit_fedbabu.server.federate import federate
from lit_fedbabu.training.experiment import Experiment
from tests.sites import Sites, site_config, write_site
from tests.support import files_that_decide, of_folder, ours

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent.parent
OWN = (("red", "green"), ("blue", "green"), ("red", "blue"))


class Lab(OnThisMachine):
    """A SuperLink and its sites by the commands of compose.yaml, which have other places there."""

    def __init__(self, folder):
        assert credentials.main([str(folder / "credentials"), "--sites", "4"]) == 0
        for site, classes in enumerate(OWN):
            write_site(folder / f"images-{site}", classes)
        (folder / "operator").mkdir()
        super().__init__(folder, folder / "operator")

    def command(self, service):
        words = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]["command"]
        places = {
            "/credentials/own": str(self.folder / "credentials"), "superlink:8443": self.address,
            "0.0.0.0": "127.0.0.1", "=8443": f"={self.port}", "=/state": f"={self.folder}",
        }  # fmt: skip
        for place, here in places.items():
            words = [word.replace(place, here) for word in words]
        return [system.program(words[0]), *words[1:]]

    def superlink_command(self):
        return self.command("superlink")

    def start_site(self, site, *words, images=None, secured=True, path=None):
        places = {
            'data-path="/data"': f'data-path="{self.folder / f"images-{site if images is None else images}"}"',
            ' state-path="/state"': "",
            "client-id=0": f"client-id={site}",
            "/site-0": f"/site-{site}",
        }
        command = self.command("site-0")
        for place, here in places.items():
            command = [word.replace(place, here) for word in command]
        if not secured:
            command = ["--insecure" if word.startswith("--root-certificates") else word for word in command]
        command += ["--port", str(superlink.free_port()), *words]
        state = {"XDG_STATE_HOME": str(self.folder / f"site-{site}-state")}
        return self.start(f"site-{site}", command, state | ({"PYTHONPATH": str(path)} if path else {}))

    def flwr(self, *words):
        environment = superlink.environment(self.folder / "operator")
        return subprocess.run(
            [system.program("flwr"), *words], env=environment, capture_output=True, text=True, timeout=900
        )

    def run(self, **options):
        """The stream of a run, which is submitted, and its status once it has ended."""
        config = site_config(self.folder, model_name="FourConvNet", **options)
        (self.folder / "run.toml").write_text(tomli_w.dumps(config.to_run_config()))
        command = ["run", str(ROOT), "own", "--stream", "--run-config", str(self.folder / "run.toml")]
        return subprocess.Popen(
            [system.program("flwr"), *command], env=superlink.environment(self.folder / "operator"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def status(self):
        return json.loads(self.flwr("list", "own", "--format", "json").stdout)["runs"][0]["status"]

    def stop_site(self, site):
        self.processes[f"site-{site}"].terminate()
        self.processes[f"site-{site}"].wait(60)

    def log_of(self, site):
        return (self.folder / f"site-{site}.log").read_text()

    def reach_sent(self, site, before, kind, count=1):
        """Wait until a site has sent so many messages of a kind since its log was this."""
        deadline = time.monotonic() + 400
        sent = re.compile(rf"Sending: {kind} message.*\n.*Sent successfully")
        while len(sent.findall(self.log_of(site).removeprefix(before))) < count:
            assert time.monotonic() < deadline, self.log_of(site).removeprefix(before)
            time.sleep(0.1)

    def kill_site(self, site):
        os.killpg(self.processes[f"site-{site}"].pid, signal.SIGKILL)


def reach(stream, line, told=""):
    """Read a stream until a line matches; returns what was read."""
    for text in stream.stdout:
        told += text
        if re.search(line, text):
            return told
    raise AssertionError(f"no {line!r} in\n{told}")


@pytest.fixture(scope="module")
def lab():
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as folder:
        lab = Lab(Path(folder))
        try:
            lab.start_superlink()
            for site in range(3):
                done = lab.flwr("supernode", "register", str(lab.folder / "credentials" / f"site-{site}.pub"), "own")
                assert done.returncode == 0, done.stdout + done.stderr
                lab.start_site(site)
            lab.wait_for(range(3))
            yield lab
        finally:
            superlink.end_all(lab.folder)


@pytest.fixture
def in_one_process(lab, tmp_path):
    """What decides of the same federation without Flower's processes, and with none of ours either."""

    def run(**options):
        config = site_config(tmp_path, model_name="FourConvNet", **options)
        nodes = [
            {
                "client-id": site,
                "data-path": str(lab.folder / f"images-{site}"),
                "state-path": str(tmp_path / f"{site}"),
            }
            for site in range(3)
        ]
        return files_that_decide(federate(Sites(config, nodes), Experiment(config)))

    return run


def test_a_federation_of_three_sites_is_that_of_one_process(lab, in_one_process):
    """Encrypted and authenticated, to the same bytes; then a site makes its personal model."""
    stream = lab.run(run_name="first")
    told, _ = stream.communicate(timeout=900)
    folder = lab.folder / "server" / "first"
    assert (folder / run_folder.RESULTS).exists() and lab.status() == "finished:completed", told
    assert in_one_process(run_name="first") == files_that_decide(folder)
    (state,) = (lab.folder / "site-2-state" / "lit_fedbabu" / "client-2").iterdir()
    command = [sys.executable, "-m", "lit_fedbabu.finetune", str(state), "--save", "--no-running-statistics"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tuned,) = state.glob("finetune/*")
    assert results.read_results(tuned)["clients"] == results.read_results(folder)["clients"][2:]


EVIL = """
from pathlib import Path
from flwr.app import Context, Message, RecordDict, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()
server = ServerApp()
Path({folder!r}, "imported").touch()

@app.query()
@app.query("place")
@app.train()
def train(message, context):
    Path({folder!r}, "client").touch()
    return Message(RecordDict({{"c": ConfigRecord()}}), reply_to=message)

@server.main()
def main(grid, context):
    Path({folder!r}, "server").touch()
    for kind in ("query", "query.place", "train"):
        messages = [Message(RecordDict({{"c": ConfigRecord()}}), node, kind) for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(messages, timeout=60):
            refused = reply.has_error() or reply.content["place"]["refusal"]
            Path({folder!r}, f"answer-{{kind}}-{{reply.metadata.src_node_id}}").write_text(str(bool(refused)))
"""


@pytest.fixture
def evil():
    """An app of someone else's that leaves files where it runs, in a folder that everyone may write to."""
    with tempfile.TemporaryDirectory(prefix="evil-", ignore_cleanup_errors=True) as folder:
        app, left = Path(folder) / "evil-app", Path(folder) / "left"
        for made in (app / "evil", left, Path(folder) / "home"):
            made.mkdir(parents=True)
            made.chmod(0o777)
        Path(folder).chmod(0o777)
        (app / "evil" / "__init__.py").touch()
        (app / "evil" / "code.py").write_text(EVIL.format(folder=str(left)))
        project = {"name": "evil-app", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []}
        components = {"serverapp": "evil.code:server", "clientapp": "evil.code:app"}
        flower = {"publisher": "evil", "components": components}
        (app / "pyproject.toml").write_text(tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}}))
        yield app


def left(app):
    return sorted(path.name for path in (app.parent / "left").iterdir())


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
def test_someone_with_the_certificate_alone_cannot_list_or_start_runs(lab, evil):
    """Another user of the server, who is as near as can be: others reach the port from further away."""
    home = evil.parent / "home"
    shutil.copy(lab.folder / "credentials" / "ca.crt", home / "ca.crt")
    connection = {"address": lab.address, "root-certificates": str(home / "ca.crt")}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "own", "own": connection}}))
    for path in (home, *home.iterdir()):
        path.chmod(0o777)
    environment = {**superlink.environment(home), "HOME": str(home)}
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for words in (["list", "own"], ["run", str(evil), "own", "--stream"], ["supernode", "list", "own"]):
        done = subprocess.run(
            [*other, system.program("flwr"), *words], env=environment, cwd=home, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode != 0 and "403 Forbidden" in done.stdout + done.stderr, done
    code = (
        "import ssl, sys, urllib.request as r; c = ssl.create_default_context(cafile=sys.argv[2]);"
        "r.urlopen(r.Request(sys.argv[1], b'', method='POST'), context=c)"
    )
    for place in ("runtime/acquire-task", "control/list-runs", "fleet/../control/list-runs", "fleet/pull-messages"):
        done = subprocess.run(
            [*other, sys.executable, "-c", code, f"https://{lab.address}/v1/{place}", str(home / "ca.crt")],
            env=environment, cwd=home, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "HTTP Error 4" in done.stderr, (place, done.stderr)
    assert not left(evil)
    assert lab.flwr("list", "own", "--format", "json").returncode == 0, "the operator still may"


def test_a_site_runs_no_code_that_comes_from_the_server(lab, evil):
    """Even the operator's: the app runs on the server, and the sites answer by errors and refusals of their own app."""
    environment = superlink.environment(lab.folder / "operator")
    command = [system.program("flwr"), "run", str(evil), "own", "--stream"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    found = left(evil)
    assert {"imported", "server"} < set(found), done.stdout + done.stderr
    answers = [name for name in found if name.startswith("answer-")]
    assert len(answers) >= 6 and {(evil.parent / "left" / name).read_text() for name in answers} == {"True"}
    assert "client" not in found
    assert not list(lab.home.glob("site-*/apps/*")), "it was not even unpacked"
    assert list(lab.home.glob("superlink/apps/*")), "where else homes are"


def test_a_key_that_is_not_registered_and_a_line_without_tls_are_refused(lab):
    stranger = lab.start_site(3, images=0)
    assert stranger.wait(120) == 2
    told = (lab.folder / "site-3.log").read_text()
    assert re.search(r"error: --auth-supernode-private-key = .*/site-3.*: no site has this key .*flwr supernode", told)
    assert "could not establish" not in told
    (lab.folder / "site-3.log").unlink()
    plain = lab.start_site(3, "--max-retries", "1", images=0, secured=False)
    assert plain.wait(120) != 0
    assert json.loads(lab.flwr("supernode", "list", "own", "--format", "json").stdout)["success"]


def test_a_revoked_site_ends_and_is_never_taken_again(lab):
    folder = lab.folder / "credentials"
    assert lab.flwr("supernode", "register", str(folder / "site-3.pub"), "own").returncode == 0
    (lab.folder / "site-3.log").unlink(missing_ok=True)
    shutil.copy(folder / "site-3", lab.folder / "kept")
    site = lab.start_site(3, images=0)
    deadline = time.monotonic() + 120
    while "SuperNode ID" not in (told := (lab.folder / "site-3.log").read_text()):
        assert site.poll() is None and time.monotonic() < deadline, told
        time.sleep(0.5)
    assert credentials.main([str(folder), "--revoke", "3", "--superlink", lab.address]) == 0
    assert site.wait(60) == 2
    assert "the server takes this key no longer" in (lab.folder / "site-3.log").read_text()
    (lab.folder / "kept").rename(folder / "site-3")  # its owner still has it
    assert lab.start_site(3, images=0).wait(120) == 2
    assert "no site has this key at the server" in (lab.folder / "site-3.log").read_text()
    assert lab.flwr("supernode", "register", str(folder / "site-3.pub.revoked"), "own").returncode != 0


def test_a_site_started_at_once_after_a_crash_waits_until_it_is_taken(lab):
    lab.kill_site(2)
    (lab.folder / "site-2.log").unlink()
    site = lab.start_site(2)
    deadline = time.monotonic() + 180
    while "SuperNode ID" not in (told := (lab.folder / "site-2.log").read_text()):
        assert site.poll() is None and time.monotonic() < deadline, told
        time.sleep(0.5)
    assert told.count("waiting for the server to take this site again") == 1, told


def test_a_site_killed_in_a_round_is_written_down_and_takes_part_again_when_it_is_back(lab):
    stream = lab.run(run_name="killed", num_server_rounds=6, min_clients_per_round=2, evaluate_every=9)
    told = reach(stream, r"round 1/6 ")
    time.sleep(1)  # sites need seconds for a round
    lab.kill_site(1)
    told = reach(stream, r"round 2  failed: client 1 on node 1", told)
    lab.start_site(1)
    told += stream.communicate(timeout=900)[0]
    folder = lab.folder / "server" / "killed"
    failures = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    assert {failure["client"] for failure in failures} == {1}
    assert all("Node Unavailable" in failure["reason"] for failure in failures), failures
    rounds = {failure["round"] for failure in failures}
    assert 2 in rounds and 6 not in rounds, "it was back for the last round at least"
    assert [row["client"] for row in results.read_results(folder)["clients"]] == [0, 1, 2], told


def test_a_site_that_its_script_keeps_comes_back_into_a_run_and_finds_a_server_that_was_restarted(lab):
    lab.stop_site(0)
    variables = {
        "SUPERLINK": lab.address, "CREDENTIALS": str(lab.folder / "credentials"), "SITE": "0",
        "IMAGES": str(lab.folder / "images-0"), "XDG_STATE_HOME": str(lab.folder / "site-0-state"),
    }  # fmt: skip
    script = lab.start("site-0", [str(ROOT / "site.sh"), "--port", str(superlink.free_port())], variables)
    lab.wait_for(range(3))
    stream = lab.run(run_name="kept", num_server_rounds=8, min_clients_per_round=1, evaluate_every=9)
    told = reach(stream, r"round 1/8 ")
    (node,) = psutil.Process(script.pid).children()
    node.kill()
    told += stream.communicate(timeout=900)[0]
    folder = lab.folder / "server" / "kept"
    failures = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    gone = [failure for failure in failures if "Node Unavailable" in failure["reason"]]
    assert {failure["client"] for failure in gone} == {0} and gone[-1]["round"] < 8, told
    assert [row["client"] for row in results.read_results(folder)["clients"]] == [0, 1, 2], told
    shown = read(folder)["sites"]
    assert [row["online"] for row in shown] == [True] * 3 and shown[0]["round"] == 8
    assert shown[0]["failures"] == {"gone": len(gone)} and shown[0]["since"] > shown[1]["since"]
    for process in [*psutil.Process(lab.processes["superlink"].pid).children(recursive=True)]:
        process.kill()
    lab.processes["superlink"].kill()
    lab.processes["superlink"].wait(60)
    time.sleep(10)
    lab.start_superlink()
    told, _ = lab.run(run_name="restarted").communicate(timeout=900)
    assert (lab.folder / "server" / "restarted" / run_folder.RESULTS).exists(), told
    assert all(
        process.poll() is None for name, process in lab.processes.items() if name in ("site-0", "site-1", "site-2")
    )


def test_a_site_that_stands_still_holds_up_no_round_that_has_a_deadline(lab):
    """SIGSTOP of all of a site's processes: rounds go on without it, and the last evaluation too."""
    options = {"round_deadline_s": 20.0, "num_server_rounds": 4, "max_round_retries": 0, "evaluate_every": 9}
    stream = lab.run(run_name="still", **options)
    told = reach(stream, r"round 1/4 ")
    still = os.getpgid(lab.processes["site-1"].pid)
    os.killpg(still, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        told += stream.communicate(timeout=900)[0]
    finally:
        os.killpg(still, signal.SIGCONT)
    assert time.monotonic() - begun < 300 and lab.status() == "finished:completed", told
    folder = lab.folder / "server" / "still"
    outcome = results.read_results(folder)
    assert outcome.rounds[1]["late"] == [1], told
    assert outcome.missing == [1] and [row["client"] for row in outcome.clients] == [0, 2], told
    failures = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    assert [(failure["round"], failure["client"]) for failure in failures] == [(2, 1), (3, 1), (4, 1), (4, 1)]
    assert failures[0]["reason"].startswith("late: no answer within 20 s"), failures
    either = ("late: ", "Error: Node Unavailable")  # which Flower says after a minute without a heartbeat
    assert all(failure["reason"].startswith(either) for failure in failures), failures


def test_a_buffered_server_waits_for_no_site_that_stands_still(lab):
    """Two of three make steps; the third goes on after some and brings an update that is that old."""
    options = {"server_mode": "buffered", "buffer_size": 2, "num_server_rounds": 5, "evaluate_every": 9}
    stream = lab.run(run_name="buffered", **options)
    told = reach(stream, r"round 1/5 ")
    still = os.getpgid(lab.processes["site-1"].pid)
    os.killpg(still, signal.SIGSTOP)
    try:
        told = reach(stream, r"round 3/5 ", told)
    finally:
        os.killpg(still, signal.SIGCONT)
    told += stream.communicate(timeout=900)[0]
    assert lab.status() == "finished:completed", told
    outcome = results.read_results(lab.folder / "server" / "buffered")
    assert [row["client"] for row in outcome.clients] == [0, 1, 2], told
    stale = [each["staleness"] for each in outcome.rounds]
    assert stale[0] == 0 and len(stale) == 5 and max(stale) > 0, told
    assert "does not repeat to the same bytes" in told


def test_sites_with_secure_aggregation_are_those_of_one_process(lab, in_one_process):
    options = {"secure_aggregation": True, "num_server_rounds": 2}
    told, _ = lab.run(run_name="secure", **options).communicate(timeout=900)
    folder = lab.folder / "server" / "secure"
    assert (folder / run_folder.RESULTS).exists() and lab.status() == "finished:completed", told
    assert in_one_process(run_name="secure", **options) == files_that_decide(folder)
    assert not list(folder.rglob("secure.json"))
    for site in range(3):
        (secrets,) = (lab.folder / f"site-{site}-state").rglob("secure.json")
        assert secrets.stat().st_mode & 0o777 == 0o600 and "PRIVATE" not in secrets.read_text()


def test_a_site_killed_between_masking_and_unmasking_is_in_the_sum(lab, in_one_process):
    """Its masks come off by the shares of the other two; it comes back for the evaluation alone."""
    options = {"secure_aggregation": True, "num_server_rounds": 1}
    before = lab.log_of(1)
    stream = lab.run(run_name="unmasked", **options)
    lab.reach_sent(1, before, "train")
    lab.kill_site(1)
    told = reach(stream, r"round 1/1 ")
    lab.start_site(1)
    told += stream.communicate(timeout=900)[0]
    folder = lab.folder / "server" / "unmasked"
    assert lab.status() == "finished:completed", told
    assert in_one_process(run_name="unmasked", **options) == files_that_decide(folder)
    failures = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    assert {failure["client"] for failure in failures} == {1} and "Node Unavailable" in failures[0]["reason"], told


def test_a_site_that_stands_still_is_left_out_of_the_sum_when_a_step_is_over(lab):
    """SIGSTOP when it has sent shares: the others take its masks off, and a step waits no longer than the deadline."""
    options = {"secure_aggregation": True, "round_deadline_s": 25.0, "num_server_rounds": 2, "max_round_retries": 0}
    before = lab.log_of(1)
    stream = lab.run(run_name="secure-still", **options)
    lab.reach_sent(1, before, "query.secure", 2)
    still = os.getpgid(lab.processes["site-1"].pid)
    os.killpg(still, signal.SIGSTOP)
    try:
        told = stream.communicate(timeout=900)[0]
    finally:
        os.killpg(still, signal.SIGCONT)
    assert lab.status() == "finished:completed", told
    folder = lab.folder / "server" / "secure-still"
    outcome = results.read_results(folder)
    assert [row["client"] for row in outcome.clients] == [0, 2] and outcome.missing == [1], told
    failures = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    assert {failure["client"] for failure in failures} == {1}, failures
    assert {each["round"] for each in failures} == {1, 2}
    assert failures[0]["reason"].startswith("late: no answer within 25 s"), failures


def test_a_killed_server_is_resumed_to_the_same_bytes(lab, in_one_process):
    stream = lab.run(run_name="resumed", num_server_rounds=6, algorithm="fedper")
    reach(stream, r"round 2/6 ")  # whoever reads it knows that the checkpoint of round 1 is written
    (server,) = (each for each in ours(lab.folder) if "flwr-serverapp" in " ".join(each.cmdline()))
    server.kill()
    stream.wait(timeout=300)
    folder = lab.folder / "server" / "resumed"
    assert not (folder / run_folder.RESULTS).exists()
    stream = lab.run(run_name="resumed", num_server_rounds=6, algorithm="fedper", resume=str(folder))
    told, _ = stream.communicate(timeout=900)
    assert "resumed after round" in told and lab.status() == "finished:completed", told
    assert in_one_process(run_name="resumed", num_server_rounds=6, algorithm="fedper") == files_that_decide(folder)


def test_a_site_with_other_images_or_code_is_refused_by_name(lab):
    images = lab.folder / "images-0"
    images.rename(lab.folder / "elsewhere")
    told, _ = lab.run(run_name="no-images").communicate(timeout=900)
    assert re.search(r"error: a node cannot take part: client-id 0 on .*images-0", told), told
    (lab.folder / "elsewhere").rename(images)
    shutil.copytree(system.package_folder(), lab.folder / "mine" / "lit_fedbabu")
    with (lab.folder / "mine" / "lit_fedbabu" / "algorithms" / "steps.py").open("a") as changed:
        changed.write("\n# mine\n")
    lab.stop_site(0)
    lab.start_site(0, path=lab.folder / "mine")
    told, _ = lab.run(run_name="other-code").communicate(timeout=900)
    assert re.search(r"error: a node cannot take part: .*their code differs", told), told
    assert lab.status() == "finished:failed"


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_a_cluster_of_two_nodes_writes_the_bytes_of_one_process(algorithm, tmp_path, federate):
    options = {"dataset": "digits", "num_clients": 6, "algorithm": algorithm, "num_server_rounds": 2}
    config = Config(**options, num_local_epochs=1, fraction_train=0.5, num_finetune_epochs=1)
    whole, _ = federate(config)
    expected = files_that_decide(whole)
    with tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as folder:
        place = {"output-dir": str(tmp_path), "run-name": "cluster"}
        with Cluster(Path(folder) / "cluster", 2) as cluster:
            told = list(cluster.run(Config.from_run_config({**config.to_run_config(), **place})))
            assert (tmp_path / "cluster" / run_folder.RESULTS).exists(), told
            disks = [cluster.folder / f"disk-{node}" for node in range(2)]
            kept = {
                f"memory/{path.parent.name}/{path.name}": path.read_bytes()
                for disk in disks for path in disk.glob("cluster-*/memory/*/*.safetensors")
            }  # fmt: skip
    assert files_that_decide(tmp_path / "cluster") | kept == expected
    assert bool(kept) == (algorithm == "fedper")


def test_a_trial_runs_a_federation_and_its_models_predict_one_image_alone(tmp_path):
    """From one command, on drawn shapes; and nothing of it is left running."""
    command = [sys.executable, "-m", "lit_fedbabu.trial", "--sites", "3", "num-server-rounds=2", "--out", "tried"]
    done = subprocess.run(command, cwd=tmp_path, env=HERE, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = [shlex.split(line.removeprefix("next: ")) for line in done.stdout.splitlines() if "next: " in line]
    assert [words[1] for words in commands] == ["sites", "predict"]
    folder = tmp_path / "tried"
    for words, told in zip(commands, ("finetune --save", "circle"), strict=True):
        shown = subprocess.run(words, cwd=tmp_path, env=HERE, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0 and told in shown.stdout, shown
    right = []
    for site in range(3):
        (model,) = (folder / "state" / f"client-{site}").glob("*/finetune/*/personal/*.ckpt")
        images = sorted((folder / "images" / f"site-{site}" / "test").rglob("*.png"))[::7]
        model = load_model(model)
        right += [model.predict([image])[0] == image.parent.name for image in images]
    assert sum(right) / len(right) > 0.9
    assert not [each for each in psutil.process_iter() if str(folder) in " ".join(_words(each))]


def test_a_trial_that_is_stopped_leaves_nothing_behind(tmp_path):
    temp = tmp_path / "temp"
    temp.mkdir()
    command = [sys.executable, "-m", "lit_fedbabu.trial", "--out", "tried"]
    environment = {**HERE, "TMPDIR": str(temp)}
    trial = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told = reach(trial, "all sites are there")
    assert len(of_folder(temp)) >= 5
    trial.send_signal(signal.SIGINT)
    told += trial.communicate(timeout=120)[0]
    assert trial.returncode == 130 and "nothing is left of the trial" in told, told
    assert not of_folder(temp) and not list(temp.iterdir()) and not (tmp_path / "tried").exists()


HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
