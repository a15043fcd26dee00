"""What ``lit-fedbabu trial`` makes of its words; test_deployment.py has whole ones, which take minutes."""

import subprocess
from types import SimpleNamespace

import pytest

from lit_fedbabu import trial
from lit_fedbabu.config import Config
from lit_fedbabu.engines import lab, superlink
from lit_fedbabu.ground.errors import RunError
from tests.sites import write_site


@pytest.fixture
def tried(monkeypatch):
    """The options and the folders of images that a trial would have been made with."""
    found = []
    monkeypatch.setattr(trial, "_trial", lambda options, images, folder: found.append((options, images, folder)) or 0)
    return found


def test_a_trial_has_shapes_the_folders_of_sites_or_a_task(tried, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert trial.main([]) == 0
    options, images, folder = tried.pop()
    assert options["class-names"] == "circle,square,triangle,cross" and not images and folder == tmp_path / "trial"
    assert (options["num-clients"], options["output-dir"]) == (3, str(folder / "runs"))
    for site, classes in enumerate([("red", "blue"), ("red", "green")]):
        write_site(tmp_path / "mine" / f"site {site}", classes, count=1)
    assert trial.main(["dataset=mine", "--out", "other"]) == 0
    options, images, _ = tried.pop()
    assert Config.from_run_config(options).class_names == "blue,green,red" and options["num-clients"] == 2
    assert [path.name for path in images] == ["site 0", "site 1"]
    assert str(images[1]) in trial._node_config(1, options, images, folder)
    assert trial.main(["task=tests.own_tasks:regression", "--sites", "2", "--out", "third"]) == 0
    options, images, _ = tried.pop()
    assert "class-names" not in options and not images
    assert 'task="tests.own_tasks:regression"' in trial._node_config(1, options, images, folder)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset=digits"], 'dataset = "digits": a trial needs a folder that has a folder for each site'),
        (["partitioner=iid"], 'partitioner = "iid": a trial\'s sites have data of their own'),
        (["--sites", "1"], "--sites = 1: must be at least 2"),
        (["--sites", "4", "num-clients=3"], "--sites = 4: num-clients is 3; leave one of them out"),
        (["dataset=mine", "--sites", "3"], "has 1 folders with train/ in them; a site needs one"),
        (["--out", "mine"], "is not empty, and nothing is overwritten"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(words, told, tried, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path / "mine" / "one", ("red",), count=1)
    assert trial.main(words) == 2
    assert told in capsys.readouterr().err and not tried
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_site_that_ends_while_it_is_waited_for_is_told_with_its_last_line(tmp_path, monkeypatch):
    made = lab.Lab(tmp_path, tmp_path)
    made.start("site-1", ["sh", "-c", "echo first; echo no key; exit 3"])
    made.processes["site-1"].wait(20)
    monkeypatch.setattr(lab.Lab, "_public", lambda self, site: b"")
    monkeypatch.setattr(lab, "key_of", lambda public: b"")
    control = SimpleNamespace(registered=lambda: {b"": lab.Registered(1, True, False)})
    monkeypatch.setattr(lab.Lab, "_control", lambda self: control)
    with pytest.raises(RunError, match="site-1 did not start: no key; all that was said is in .*/site-1.log"):
        made.wait_for([1])


def test_processes_of_a_home_below_another_end_with_it(tmp_path):
    (tmp_path / "home" / "below").mkdir(parents=True)
    homes = [tmp_path / "home" / "below", tmp_path / "homes"]
    sleeping = [subprocess.Popen(["sleep", "60"], env={"FLWR_HOME": str(home)}) for home in homes]
    try:
        superlink.end_all(tmp_path / "home")
        assert [process.poll() is None for process in sleeping] == [False, True]
    finally:
        sleeping[1].kill()
