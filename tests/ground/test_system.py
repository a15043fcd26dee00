"""What this process runs on."""

import os

import psutil
import pytest

from lit_fedbabu.ground import system
from lit_fedbabu.ground.system import available_memory, left_in_groups


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)


SECOND = {"max": "1000\n", "current": "600\n", "stat": "anon 300\ninactive_file 200\n"}
FIRST = {
    "limit_in_bytes": "1000\n", "usage_in_bytes": "600\n", "stat": "inactive_file 7\ntotal_inactive_file 200\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "top", "files", "none"),
    [("0::/job/step", ".", SECOND, {"max": "max\n", "current": "9\n", "stat": ""}),
     ("4:cpu,memory:/job/step", "memory", FIRST, {"stat": ""})],
)  # fmt: skip
def test_a_group_has_left_what_it_does_not_use_beside_its_cache(line, top, files, none, tmp_path):
    groups = tmp_path / "cgroup"
    groups.write_text(f"9:devices:/\n{line}\n")
    assert left_in_groups(groups, tmp_path) == []
    group(tmp_path / top / "job" / "step", **none)
    assert left_in_groups(groups, tmp_path) == [], "it has no limit"
    group(tmp_path / top / "job", **files)
    assert left_in_groups(groups, tmp_path) == [600]
    (tmp_path / top / "job" / "memory.stat").write_text("")
    assert left_in_groups(groups, tmp_path) == [400]
    assert left_in_groups(tmp_path / "absent", tmp_path) == []


def test_there_is_no_more_memory_than_the_machine_has():
    assert 0 < available_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize("before", [None, "1"])
def test_plain_lines_are_wanted_for_as_long_as_they_are(before, monkeypatch):
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    if before is not None:
        monkeypatch.setenv("TTY_INTERACTIVE", before)
    with system.plain_lines(False):
        assert os.environ.get("TTY_INTERACTIVE") == before
    with pytest.raises(KeyboardInterrupt), system.plain_lines(True):
        assert os.environ["TTY_INTERACTIVE"] == "0"
        raise KeyboardInterrupt
    assert os.environ.get("TTY_INTERACTIVE") == before
