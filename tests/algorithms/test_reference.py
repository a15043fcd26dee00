import json
from pathlib import Path

import pytest
import torch

from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.records import run_folder
from tests.algorithms import reference
from tests.support import FakeGrid, tiny_config


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "64-true"])
def test_a_federation_and_its_fine_tuning_are_algorithm_1(precision, federate):
    config = tiny_config(
        num_clients=3, fraction_train=1.0, num_server_rounds=3, num_local_epochs=2, weight_decay=0.0,
        num_finetune_epochs=3, finetune_learning_rate=0.01, precision=precision,
        normalization="imagenet",
    )  # fmt: skip
    torch.set_num_threads(config.num_threads)
    dtype = torch.float32 if precision == "32-true" else torch.float64
    # K = 3: the rate is a tenth after rounds 1 and 2.
    weights, curve, before, after = reference.algorithm_1(config, dtype, rates=[0.1, 0.01, 0.001])
    folder, _ = federate(config, FakeGrid(config, 2, shuffle=True))
    module = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT)
    assert len(weights) == len(module.model.state_dict())
    for ours, theirs in zip(module.model.state_dict().values(), weights.values(), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    outcome = json.loads((folder / run_folder.RESULTS).read_text())
    digits = 1e-6 if dtype == torch.float32 else 1e-13
    assert [entry["train_loss"] for entry in outcome["rounds"]] == pytest.approx(curve, rel=digits)
    for name, expected in (("initial", before), ("personalized", after)):
        losses, accuracies = zip(*expected, strict=True)
        assert [row[f"{name}_accuracy"] for row in outcome["clients"]] == list(accuracies)
        assert [row[f"{name}_loss"] for row in outcome["clients"]] == pytest.approx(
            [loss.item() for loss in losses], rel=digits
        )
    assert len({accuracy for _, accuracy in before + after}) > 2, "a problem that tells models apart"


def test_the_reference_is_short_and_plain():
    text = Path(reference.__file__).read_text()
    assert len([line for line in text.splitlines() if line]) <= 60
    assert "lightning" not in text.lower() and "flwr" not in text.lower()
