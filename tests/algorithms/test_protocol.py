"""Lines of the official code's protocol that no other test holds; docs/protocol.md says which test holds which line."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import select
from lit_fedbabu.records import run_folder
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.training import client_update as update
from tests.support import (
    BALANCED,
    NARROW,
    batches,
    client_data,
    counts,
    model_by_hand,
    partition,
    tiny,
    tiny_config,
)  # fmt: skip

ROOT = Path(__file__).parent.parent.parent


def test_official_toml_is_the_official_codes_command_line():
    config = Config.from_run_config(parse_words([str(ROOT / "configs" / "official.toml")]))
    assert (config.num_server_rounds, config.num_local_epochs, config.fraction_train) == (80, 4, 0.1)
    assert (config.num_clients, config.partitioner, config.num_classes_per_client) == (100, "shards", 2)
    assert (config.learning_rate, config.momentum, config.weight_decay, config.batch_size) == (0.1, 0.9, 0.0, 50)
    assert (config.finetune_part, config.num_finetune_epochs, config.finetune_learning_rate) == ("full", 5, 1e-3)
    assert (config.evaluate_every, config.precision, config.augmentation) == (1, "32-true", "crop-flip")
    assert config.finetune_learning_rate == pytest.approx(config.learning_rate_in(80))
    assert config.test_batch_size >= 100, "a client's test images are one batch"


@pytest.mark.slow
@pytest.mark.parametrize(("per_client", "distinct"), [(10, 6.53), (5, 4.11), (2, 1.90)])
def test_shards_repeat_classes_as_often_as_the_official_shuffle(per_client, distinct, cifar_like):
    seen = []
    for seed in range(3):
        dealt = partition(
            dataclasses.replace(cifar_like, partitioner="shards", num_classes_per_client=per_client, seed=seed)
        )
        train = counts(dealt.train, BALANCED.train.labels)
        assert set(np.unique(train % (500 // per_client))) == {0}, "shards are whole, and of one class"
        seen.append((train > 0).sum(1).mean())
    assert np.mean(seen) == pytest.approx(distinct, abs=0.1)


def test_a_frozen_head_is_the_official_head_with_learning_rate_zero():
    """One optimizer over body and head, head_lr = 0: the body goes the same way, to the bit."""
    experiment = tiny(weight_decay=0.0)
    config, model = experiment.config, model_by_hand(experiment)
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    groups = [{"params": model.body.parameters(), "lr": 0.1}, {"params": model.head.parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=0.0)
    for images, labels in batches(experiment, 0, 1)(config.num_local_epochs):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    received = experiment.initial_shared()
    ours, *_ = update.client_update(experiment, 0, 1, received, 0.1)
    official = select(model.state_dict(), ["body"])
    assert all(torch.equal(ours[name], official[name]) for name in official)
    assert all(torch.equal(model.head.state_dict()[name], head[name]) for name in head)


def test_with_equal_sizes_the_average_is_the_plain_mean(federate):
    experiment = tiny(num_server_rounds=1, fraction_train=1.0)
    folder, _ = federate(experiment.config)
    received = experiment.initial_shared()
    states, sizes, _, _ = zip(
        *(update.client_update(experiment, client, 1, received, 0.1) for client in range(6)), strict=True
    )
    assert len(set(sizes)) == 1
    final = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    for name in received:
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(final[name].double(), mean, rtol=1e-7, atol=1e-12)
        official = sum(state[name] for state in states) / len(states)  # in float32, one after another
        torch.testing.assert_close(final[name], official, rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedavg", "fedrep"])
def test_evaluating_changes_nothing(algorithm, federate):
    outcomes = []
    for every in (1, 10):
        folder, _ = federate(
            tiny_config(algorithm=algorithm, model_name=NARROW, num_server_rounds=3, evaluate_every=every)
        )
        outcome = json.loads((folder / run_folder.RESULTS).read_text())
        assert [entry["round"] for entry in outcome["rounds"] if "initial_accuracy" in entry] == (
            [1, 2, 3] if every == 1 else [3]
        )
        outcomes.append((outcome["clients"], [entry["train_loss"] for entry in outcome["rounds"]]))
    assert outcomes[0] == outcomes[1]


def test_test_images_are_normalized_by_their_own_batch():
    config = tiny_config()
    module = LitFedBABU(model_seed=5)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        in_training, in_evaluation = module.train()(images), module.eval()(images)
        halves = torch.cat([module(images[:4]), module(images[4:])])
    assert torch.equal(in_training, in_evaluation)
    assert not torch.allclose(in_evaluation, halves, atol=1e-3)
    whole, cut = (client_data(dataclasses.replace(config, test_batch_size=size), 0, 0) for size in (1000, 3))
    assert learner.evaluate([module], [whole])[0].loss != pytest.approx(
        learner.evaluate([module], [cut])[0].loss, rel=1e-3
    )


def test_fine_tuning_sees_augmented_images():
    plain, cropped = (tiny(augmentation=how, finetune_learning_rate=0.01) for how in ("none", "crop-flip"))
    received = plain.initial_shared()
    losses = [update.personal_model(each, 0, 1, received)[1].personalized.loss for each in (plain, cropped)]
    assert losses[0] != losses[1]


def test_every_line_of_the_protocol_names_tests_that_exist():
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", (ROOT / "docs" / "protocol.md").read_text())
    assert len(named) > 20
    for module, name in named:
        (path,) = (ROOT / "tests").rglob(f"{module}.py")
        assert f"def {name}(" in path.read_text(), f"{module}.py::{name}"
