"""What starts servers and sites: test_deployment.py runs it; here is what containers or systemd would check."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from lit_fedbabu.config.options import read_toml
from lit_fedbabu.ground import system
from tests.support import wait_for

ROOT = Path(__file__).parent.parent.parent
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
SITES = [name for name in SERVICES if name.startswith("site-")]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_an_installed_program_on_declared_volumes(name):
    service = SERVICES[name]
    program = service["command"][0]
    assert program == "sh" or Path(system.program(program)).exists()
    declared = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    mounted = [volume.split(":")[0] for volume in service.get("volumes", [])]
    assert all(volume in declared or volume.startswith("./data/") for volume in mounted)
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    places = [volume.split(":")[1] for volume in service["volumes"]]
    used = re.findall(r"(?<![\w/.])/(?:credentials|state|data|operator|runs)", " ".join(service["command"]))
    assert set(used) <= set(places)


def test_there_is_a_site_for_every_client_of_the_run_and_a_key_for_every_site():
    assert len(SITES) == read_toml(ROOT / "configs" / "sites.toml")["num-clients"]
    for number, name in enumerate(SITES):
        words = " ".join(SERVICES[name]["command"])
        assert name == f"site-{number}" and f"client-id={number} " in words and words.count(name) == 1
        assert f"./data/{name}:/data:ro" in SERVICES[name]["volumes"]
    assert f"--sites {len(SITES)} --host superlink" in SERVICES["credentials"]["command"][-1]
    registered = " ".join(str(number) for number in range(len(SITES)))
    assert f"for site in {registered};" in SERVICES["operator"]["command"][-1]


def test_the_operators_script_is_shell():
    script = SERVICES["operator"]["command"][-1].replace("$$", "$")
    assert [line for line in script.splitlines() if shlex.split(line)][-1].startswith("flwr run . lab --stream")


def test_what_others_depend_on_comes_back_after_a_crash_and_a_reboot():
    for name in ("superlink", *SITES):
        assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
@pytest.mark.parametrize("name", ["site", "superlink"])
def test_systemd_takes_a_unit(name, tmp_path):
    unit = tmp_path / f"lit-fedbabu-{name}.service"
    text = (ROOT / unit.name).read_text().replace("/home/fedbabu/lit-fedbabu/.venv/bin/lit-fedbabu", "/bin/true")
    text = text.replace("=/home/fedbabu/lit-fedbabu", f"={ROOT}").replace("User=fedbabu", "User=root")
    unit.write_text(text.replace("WorkingDirectory=/home/fedbabu", "WorkingDirectory=/"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "Restart=always" in text and "StartLimitIntervalSec=0" in text and "WantedBy=multi-user.target" in text


def test_a_sites_script_starts_it_again_and_ends_it_when_it_is_ended(tmp_path):
    """With stand-ins for the SuperNode, which fails, is refused, and then stays, and for the pauses."""
    stand_in = [
        "#!/bin/sh", "trap 'echo ended >> starts; exit' TERM", 'echo "$@" >> starts',
        "case $(wc -l < starts) in 1) exit 1;; 2) exit 2;; esac", "while :; do /bin/sleep 0.1; done",
    ]  # fmt: skip
    (tmp_path / "lit-fedbabu").write_text("\n".join(stand_in))
    (tmp_path / "sleep").write_text("#!/bin/sh\necho $1 >> pauses\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.defpath}",
        "HOME": "/root",
        "SITE": "2",
        "MORE": 'name="St Mary"',
    }
    script = subprocess.Popen(
        [ROOT / "site.sh", "--port", "9"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True
    )

    def lines(name):
        return (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else []

    try:
        assert wait_for(lambda: len(lines("starts")) == 3, 20)
        script.send_signal(signal.SIGTERM)
        assert script.wait(20) == 0 and lines("starts")[-1] == "ended" and lines("pauses") == ["20", "300"]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    words = lines("starts")[0]
    assert words.startswith("supernode --superlink superlink.example.org:8443") and words.endswith("--port 9")
    assert (
        '--node-config client-id=2 data-path="/data/images" name="St Mary"' in words
        and "/root/credentials/site-2" in words
    )
