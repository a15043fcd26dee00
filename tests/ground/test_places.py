import os

import pytest

from lit_fedbabu.ground import places
from lit_fedbabu.learning import cache


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A home that cannot be written to, and a temporary folder; root may write anywhere, so os.access is told."""
    home, temp = tmp_path / "home", tmp_path / "temp"
    for each in (home, temp):
        each.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)))
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return temp / f"lit_fedbabu-{os.getuid()}"


def test_a_home_that_cannot_be_written_to_is_told_and_replaced(read_only, monkeypatch):
    assert cache.folder() == read_only / "lit_fedbabu"
    assert read_only.stat().st_mode & 0o777 == 0o700
    (note,) = cache.note()
    assert str(read_only) in note and "XDG_CACHE_HOME" in note
    places.keep_matplotlib_quiet()
    assert os.environ.pop("MPLCONFIGDIR") == str(read_only / "matplotlib")


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home_is_one_whose_home_cannot_be_written_to(home, read_only, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: home or path)
    assert cache.folder() == read_only / "lit_fedbabu"


def test_a_home_that_can_be_written_to_is_used_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert (cache.folder(), cache.note()) == (tmp_path / ".cache" / "lit_fedbabu", ())
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    places.keep_matplotlib_quiet()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert (cache.folder(), cache.note()) == (tmp_path / "elsewhere" / "lit_fedbabu", ())


def test_a_folder_of_someone_else_in_the_temporary_one_is_refused(read_only):
    read_only.mkdir(mode=0o777)
    read_only.chmod(0o777)
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        places.temporary()
