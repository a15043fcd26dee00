import numpy as np
import pytest
import torch

from benchmarks import decoding
from benchmarks.bench import ratios
from benchmarks.loops import Common, Tuned
from benchmarks.setting import machine
from lit_fedbabu.config import Config
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.tasks.images.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize


def test_all_loops_train_the_same_function():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
    config = Config(num_local_epochs=1, num_finetune_epochs=1, batch_size=10)
    tuned, common = Tuned(config, images, labels), Common(config, (images, labels), (images, labels))
    weights = [value for name, value in build_model("FourConvNet", 10, 0).state_dict().items()]
    model = build_model("FourConvNet", 10, 0)
    for place, weight in enumerate(weights[:16:4]):  # batch norm cancels the biases of the convolutions
        model.body[place][0].bias.data.zero_()
        tuned.model[0][place][0].weight.data.copy_(weight)
        common.model[0][place][0].weight.data.copy_(weight)
    for loop in (tuned, common):
        loop.model[1].load_state_dict(model.head.state_dict())
    batch = normalize(torch.from_numpy(images), IMAGENET_MEAN, IMAGENET_STD)
    own = torch.stack([image for image, _ in common.test_set])
    torch.testing.assert_close(own, batch, rtol=1e-5, atol=1e-6)
    for loop in (tuned, common):
        torch.testing.assert_close(loop.model(batch), model(batch), rtol=1e-4, atol=1e-4)
    for train, loop in ((tuned.train, tuned), (common.train, common)):
        before = [weight.clone() for weight in loop.model.parameters()]
        train()
        moved = [not torch.equal(weight, value) for weight, value in zip(loop.model.parameters(), before, strict=True)]
        assert any(moved[:-2]) and not any(moved[-2:]), "the body trains and the head does not"
    common.personalize()
    assert not torch.equal(common.model[1].weight, model.head.weight), "fine-tuning trains the head too"


def test_ratios_are_taken_turn_by_turn():
    one = {
        "round, floor": [1.0, 2.0],
        "round, floor with the biases": [1.0, 2.0],
        "round, ours": [1.1, 2.4],
        "round, common": [2.2, 4.8],
    }
    one["round, floor in float32"] = [2.5, 3.0]
    one |= {f"{what}, {who}": [0.1, 0.1] for what in ("evaluation", "fine-tuning") for who in ("ours", "common")}
    every = {"round of 10 clients, ours": [10.0, 12.0]}
    every |= {f"{what} of 10 clients, common, one process": [20.0] for what in ("round", "evaluation", "fine-tuning")}
    engines = {
        "local": {"round s": [11.0, 12.1], "start-up s": 60},
        "flower": {"round s": [22.0, 22.0], "start-up s": 70},
    }
    measured = {"machine": {"cores": 2}, "one core": one, "all cores": every, "engines": engines}
    found = ratios(measured)
    assert found["round, ours / floor"] == pytest.approx((1.15, 1.1, 1.2))
    assert found["round, floor in float32 / in bf16"] == pytest.approx((2.0, 1.5, 2.5))
    assert found["round by the engine local / by workers alone"] == pytest.approx((1.05, 1.0, 1.1))
    assert found["round by the engine flower / by workers alone"] == pytest.approx((2.0, 2.0, 2.0))
    theirs, ours = 80 * (20 + 10 * 20) + 10 * 20, 60 + 80 * 11.55 + 50 * (8 * 0.1 + 0.1)
    assert found["whole reference run, common / ours (estimate)"][0] == pytest.approx(theirs / ours, abs=1e-3)


def test_results_say_what_machine_they_are_of():
    about = machine(Config(precision="bf16-mixed"))
    assert about["cores"] >= 1 and " in bf16-mixed with torch " in about["trains on"]


@pytest.mark.parametrize("way", ["a plain loop", "ours, all cores"])
def test_decoding_is_measured_with_its_memory(way, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = decoding._measured(way, str(decoding.photographs(tmp_path / "photographs", 20)), 48)
    assert found["seconds"] > 0 and found["MiB"] >= 0
    assert (tmp_path / "cache").exists() == way.startswith("ours")
