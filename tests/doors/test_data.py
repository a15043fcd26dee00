import csv

from PIL import Image

from lit_fedbabu import data
from lit_fedbabu.config import Config
from lit_fedbabu.tasks.images.task import ImageClassification


def test_a_split_is_printed_written_and_drawn(tmp_path, capsys):
    out = tmp_path / "split"
    assert data.main(["dataset=digits", "num-clients=12", "partitioner=dirichlet", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    config = Config(dataset="digits", num_clients=12, partitioner="dirichlet")
    assert (out / "partition.csv").read_text() == ImageClassification(config).class_counts()
    with (out / "partition.csv").open(newline="") as file:
        first, *_ = csv.DictReader(file)
    images = {name: int(count) for name, count in first.items() if name.isdigit() and count != "0"}
    line = next(line for line in printed.splitlines() if line.split()[0] == "0")
    assert line.endswith(", ".join(f"{name} {count}" for name, count in images.items()))
    assert line.split()[1] == str(sum(images.values()))
    assert "digits by dirichlet: 12 clients with" in printed
    for path in (out / "partition.csv", out / "partition.png", out / "partition.svg"):
        assert str(path) in printed.splitlines() and path.stat().st_size > 0
    assert Image.open(out / "partition.png").width == 1050, "3.5 inches at 300 dots each"


def test_a_long_table_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(data, "ROWS", 3)
    lines = data.table(ImageClassification(Config(dataset="digits", num_clients=8)).class_counts()).splitlines()
    assert len(lines) == 5 and lines[-1] == "and 5 more clients, in partition.csv"
