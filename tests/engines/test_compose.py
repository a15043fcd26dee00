"""compose.yaml: its commands are run by test_deployment.py; here is what a container runtime would check."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_fedbabu.config.options import read_toml
from lit_fedbabu.ground import system

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
