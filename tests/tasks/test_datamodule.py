import dataclasses

import numpy as np
import pytest
import torch

from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.tasks.images import learner, sources
from tests.support import client_data, partition, tiny_config


def test_an_epoch_is_the_clients_images_once_and_the_seed_orders_them():
    config = tiny_config(batch_size=20)
    own = partition(config).train[1]

    def epoch(seed):
        loader = client_data(config, 1, seed).train_dataloader()
        batches = [images for images, _ in loader]
        assert [len(images) for images in batches[:-1]] == [20] * (len(own) // 20)
        return torch.cat(batches)

    expected = np.sort(sources.load(config.dataset).train.images[own].reshape(len(own), -1).sum(1, dtype=int))
    first = epoch(5)
    assert np.array_equal(np.sort(first.numpy().reshape(len(own), -1).sum(1, dtype=int)), expected)
    assert torch.equal(first, epoch(5))
    assert not torch.equal(first, epoch(6))


@pytest.mark.parametrize("batch_size", [8, 10])
def test_an_epoch_takes_one_draw_however_it_ends(batch_size, monkeypatch):
    config = tiny_config(batch_size=batch_size, augmentation="none")
    module_data = client_data(config, 1, 5)
    seen = []
    monkeypatch.setattr(LitFedBABU, "on_train_batch_start", lambda module, batch, index: seen.append(batch[1].clone()))
    learner.fit([LitFedBABU()], [module_data], mode="head", epochs=3, learning_rate=0.1)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(len(module_data.train_set), generator=generator) for _ in range(3)]
    assert torch.equal(torch.cat(seen), module_data.train_set.tensors[1][torch.cat(orders)])
    assert not torch.equal(orders[0], orders[1])


def test_test_images_come_as_one_batch_in_order():
    module_data = client_data(tiny_config(), 3, 5)
    (batch,) = list(module_data.test_dataloader())
    assert torch.equal(batch[0], module_data.test_set.tensors[0])


def test_the_configuration_alone_decides_a_clients_images():
    config = tiny_config()
    one = client_data(config, 2, 0).train_set.tensors[0]
    two = client_data(dataclasses.replace(config, learning_rate=0.5), 2, 1).train_set.tensors[0]
    assert torch.equal(one, two)
