"""Sentences: batches that are dicts, an encoder of transformers, and adapters as the body."""

import json

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from lit_fedbabu import Task, finetune, load_module
from lit_fedbabu.config import Config
from lit_fedbabu.learning.checkpoint import read
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.training.experiment import Experiment

WIDTH, WORDS = 16, 40


class Encoded(L.LightningModule):
    """A tiny random encoder of the class that pretrained ones have."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.encoder = BertModel(BertConfig(vocab_size=WORDS, **sizes), add_pooling_layer=False)
        self.classifier = nn.Linear(WIDTH, 2)

    def forward(self, batch):
        return self.classifier(self.encoder(**batch["inputs"]).last_hidden_state[:, 0])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch), batch["labels"])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch), batch["labels"]))

    def configure_optimizers(self):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.hparams.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps), "interval": "step"}
        ]


class Texts(L.LightningDataModule):
    """Nested batches, as a collator of sentences gives them, whose lengths differ."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.seed = 100 * seed + client

    def setup(self, stage):
        draw = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(3, 9, (24,), generator=draw).tolist()
        self.rows = [torch.randint(1, WORDS, (length,), generator=draw) for length in lengths]

    def _collate(self, rows):
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
        return {"inputs": inputs, "labels": torch.tensor([int(row[0]) % 2 for row in rows])}

    def train_dataloader(self):
        return DataLoader(self.rows[:12], 5, shuffle=True, collate_fn=self._collate)

    def test_dataloader(self):
        return DataLoader(self.rows[12:], 12, collate_fn=self._collate)


task = Task(Encoded, Texts, score="test_loss", higher_is_better=False, body=("encoder",), head=("classifier",))
TASK = f"{__name__}:task"


def of(**options):
    few = {"num_clients": 3, "num_server_rounds": 2, "num_local_epochs": 1, "fraction_train": 1.0}
    return Config(task=TASK, trainable="lora:2", precision="32-true", num_finetune_epochs=1, **few, **options)


def test_messages_have_the_size_of_the_adapters(federate):
    folder, grid = federate(of())
    begun = Experiment(of()).new_module().lightning
    adapters = [value for name, value in begun.named_parameters() if ".lora_" in name]
    layers = list(BertModel(begun.encoder.config, add_pooling_layer=False).modules())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    numbers = sum(2 * (layer.in_features + layer.out_features) for layer in linear)
    assert len(adapters) == 2 * len(linear) == 24 and sum(value.numel() for value in adapters) == numbers
    costs = [json.loads(line) for line in (folder / "costs.jsonl").read_text().splitlines()]
    assert [each["bytes_up"] for each in costs] == [3 * 4 * numbers] * 2
    for message in grid.replies:
        for record in message.content.array_records.values():
            assert all(".lora_" in name for name in record)


def test_the_trunk_stays_as_it_was_and_comes_back(federate):
    folder, _ = federate(of(algorithm="fedper"))
    begun = Experiment(of(algorithm="fedper")).new_module().lightning
    (outcome,) = finetune(folder, task=TASK, save=True, clients="1")
    assert outcome["clients"][0]["client"] == 1
    (saved,) = folder.glob("finetune/*/personal/client_0001.ckpt")
    written = torch.load(saved, weights_only=True)["state_dict"]
    assert {name for name in written if ".lora_" not in name} == {"classifier.weight", "classifier.bias"}
    for path in (folder / LAST_CHECKPOINT, saved):
        module = load_module(path, TASK)
        for name, value in begun.state_dict().items():
            same = torch.equal(value, module.state_dict()[name])
            assert same == (".lora_" not in name and not (path == saved and "classifier" in name)), name
    facts = read(saved, TASK).provenance["base"]
    assert facts["weights"] == sum(value.numel() for value in begun.parameters() if not value.requires_grad)


@pytest.mark.parametrize("trainable", ["all", "last:1", "norm"])
def test_other_ways_to_train_an_encoder(trainable, federate):
    config = Config.from_run_config({**of().to_run_config(), "trainable": trainable})
    folder, _ = federate(config)
    shared = Experiment(config).shared_names
    expected = {"all": "body.encoder.", "last:1": "body.encoder.encoder.layer.1.", "norm": "body.encoder."}[trainable]
    assert shared and all(name.startswith(expected) for name in shared)
    assert trainable != "norm" or all("LayerNorm" in name for name in shared)
    assert load_module(folder / LAST_CHECKPOINT, TASK)
