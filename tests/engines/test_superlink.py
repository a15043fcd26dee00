import os
import sys
from pathlib import Path

from lit_fedbabu.engines.superlink import environment


def test_the_users_environment_does_not_reach_into_the_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    found = environment(tmp_path)
    assert found["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert found["no_proxy"].endswith("127.0.0.1,localhost")
    assert "RAY_ADDRESS" not in found and "PYTHONWARNINGS" not in found
    assert found["PYTHONIOENCODING"] == "utf-8"
    assert found["http_proxy"] == "http://127.0.0.1:9", "the hub may still need it"


def test_without_a_path_the_systems_programs_are_found(tmp_path, monkeypatch):
    """Ray starts its workers by a shell; without one a run waited for nodes for ever."""
    monkeypatch.delenv("PATH")
    folders = environment(tmp_path)["PATH"].split(os.pathsep)
    assert folders[0] == str(Path(sys.executable).parent) and "/usr/bin" in folders


def test_the_users_folder_is_where_models_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert environment(tmp_path)["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"
