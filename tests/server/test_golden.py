"""The course of a small federation, number by number. ``make golden`` writes it anew; do so only for a reason."""

import json
from pathlib import Path

import pytest
import torch

from lit_fedbabu.learning import assembly, models
from lit_fedbabu.records import run_folder
from tests.support import tiny_config

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-9
"""Relative, of losses. Between AVX2 and plain x86 arithmetic 1.4e-15 was seen; others may add to it."""


@pytest.fixture(autouse=True)
def weights_drawn_in_float64(monkeypatch):
    """PyTorch's initial weights in float32 differ by one bit between CPU types, which is 1e-8 and no longer 1e-16."""

    def build(*arguments):
        torch.set_default_dtype(torch.float64)
        try:
            return models.build_model(*arguments)
        finally:
            torch.set_default_dtype(torch.float32)

    monkeypatch.setattr(assembly, "build_model", build)


def course(federate, algorithm):
    """A line for every round and for every client, with losses in nats and accuracies between 0 and 1."""
    config = tiny_config(
        algorithm=algorithm, num_server_rounds=4, learning_rate=0.01, num_finetune_epochs=3, precision="64-true"
    )
    folder, _ = federate(config)
    outcome = json.loads((folder / run_folder.RESULTS).read_text())
    lines = [
        f"round {entry['round']} train_loss {entry['train_loss']!r} initial {entry['initial_accuracy']['mean']!r}"
        for entry in outcome["rounds"]
    ]
    for row in outcome["clients"]:
        accuracies = " ".join(repr(row[f"accuracy_epoch_{epoch}"]) for epoch in range(4))
        lines.append(f"client {row['client']} personalized_loss {row['personalized_loss']!r} accuracies {accuracies}")
    return lines


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedavg", pytest.param("ditto", marks=pytest.mark.slow)])
def test_the_course_of_a_federation_is_as_written(algorithm, federate, request):
    path = GOLDEN / f"{algorithm}.txt"
    lines = course(federate, algorithm)
    if request.config.getoption("--rewrite-golden"):
        path.write_text("\n".join(lines) + "\n")
    expected = path.read_text().splitlines()
    assert len(lines) == len(expected)
    for ours, written in zip(lines, expected, strict=True):
        for word, golden in zip(ours.split(), written.split(), strict=True):
            assert word == golden or float(word) == pytest.approx(float(golden), rel=TOLERANCE), (ours, written)
