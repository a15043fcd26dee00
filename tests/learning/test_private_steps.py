"""Steps of DP-SGD against a loop by hand, one image at a time, and against what they must do to be private."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.private_steps import PoissonBatches, PrivateSteps, mixing_layer
from lit_fedbabu.tasks.images import datamodule, learner
from lit_fedbabu.tasks.images.task import ImageClassification
from lit_fedbabu.training.privacy import Course, steps_epsilon
from tests.algorithms.test_accountant import audited
from tests.support import NARROW, tiny_config


def spy(monkeypatch, planned=None):
    """The batches that are drawn, or those that are planned."""
    seen: list[list[int]] = []

    class Seen(PoissonBatches):
        def __iter__(self):
            for drawn in super().__iter__():
                seen.append(planned[len(seen)] if planned else drawn)
                yield seen[-1]

    monkeypatch.setattr(datamodule, "PoissonBatches", Seen)
    return seen


def fitted(config, mode="body", **options):
    """A module before and after a private fit of client 1, and the client's data."""
    task = ImageClassification(config)
    module = task.initial(3)
    before = module.copy()
    data = task.client_data(1, 5)
    options = {"epochs": 2, "learning_rate": 0.1, **options}
    (loss,) = learner.fit([module], [data], mode=mode, private=True, **options)
    return before, module, data, loss


def stepped_by_hand(module, data, config, batches, mode, rate=0.1):
    """Plain PyTorch: the gradient of one image after another, clipped, summed, divided; then momentum and decay."""
    module.set_mode(mode)
    model, images = module.model.train(), data.prepare(data.train_set.tensors[0], None)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    momenta = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for batch in batches:
        total = [torch.zeros_like(weight) for weight in weights]
        for row in batch:
            label = data.train_set.tensors[1][row : row + 1]
            loss = nn.functional.cross_entropy(model(images[row : row + 1]), label)
            gradients = torch.autograd.grad(loss, weights)
            norm = math.sqrt(sum(float((each**2).sum()) for each in gradients))
            losses.append(loss.item())
            for place, each in enumerate(gradients):
                total[place] += each * min(1.0, config.clipping_norm / norm)
        size = min(config.batch_size, data.num_train)
        with torch.no_grad():
            for weight, momentum, each in zip(weights, momenta, total, strict=True):
                momentum.mul_(config.momentum).add_(each / size + config.weight_decay * weight)
                weight.sub_(rate * momentum)
    return sum(losses) / len(losses)


MODELS = {
    "own": {"model_name": NARROW},
    "built in": {"model_name": "FourConvNet", "image_size": 16},
    "adapters": {"model_name": "FourConvNet", "image_size": 16, "trainable": "lora:2"},
    "a tied weight": {"model_name": "tests.own_models:tied"},
    "a scalar": {"model_name": "tests.own_models:scalar"},
}


@pytest.mark.parametrize(
    ("model", "mode", "bound"),
    [("own", "body", 0.5), ("own", "full", 2.0), ("own", "full", 1e6), ("built in", "body", 0.2),
     ("adapters", "body", 0.05), ("a tied weight", "full", 0.1), ("a scalar", "full", 0.5), ("own", "head", 1.0)],
)  # fmt: skip
def test_without_noise_steps_are_those_of_a_loop_over_single_images(model, mode, bound, monkeypatch):
    config = tiny_config(
        **MODELS[model], norm="group", augmentation="none", precision="64-true", clipping_norm=bound, batch_size=13
    )
    batches = spy(monkeypatch)
    monkeypatch.setattr("lit_fedbabu.learning.module.AT_ONCE", 40_000)  # so that gradients come in chunks
    before, module, data, loss = fitted(config, mode)
    assert len(batches) == 2 * math.ceil(data.num_train / 13) and len(set(map(tuple, batches))) > 1
    expected = before.copy()
    assert loss == pytest.approx(stepped_by_hand(expected, data, config, batches, mode), rel=1e-5)
    moved = 0
    for name, value in expected.model.state_dict().items():
        found, first = module.model.state_dict()[name], before.model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
        assert torch.equal(found, first) or name.startswith(mode) or mode == "full", "what is frozen has no noise"
        moved += not torch.equal(found, first)
    assert moved and module.steps is None and not data.poisson, "fine-tuning is as it was"


def step(module, images, labels, noise=0.0, bound=1.0, size=1):
    """The gradients of one step, as one vector."""
    steps = PrivateSteps(bound, noise, size, 1)
    module.steps = steps
    module.training_step((images, labels), 0)
    steps.on_before_optimizer_step(None, module, None)
    return torch.cat([weight.grad.flatten() for weight in module.model.parameters() if weight.requires_grad])


@pytest.fixture
def narrow():
    """A module that trains its body, images and labels."""
    torch.manual_seed(0)
    module = ImageClassification(tiny_config(model_name=NARROW, norm="group")).initial(0)
    return module, 3 * torch.randn(40, 3, 32, 32), torch.arange(40) % 10


def test_an_image_moves_the_sum_by_the_clipping_norm_at_most(narrow):
    module, images, labels = narrow
    whole, bound = step(module, images, labels, bound=0.7), 0.7
    moves = []
    for left_out in range(40):
        rest = torch.arange(40) != left_out
        moves.append(float((whole - step(module, images[rest], labels[rest], bound=bound)).norm()))
    assert max(moves) <= bound * (1 + 1e-5) and np.median(moves) > 0.99 * bound, "most are clipped, and none is lost"
    free = step(module, images, labels, bound=1e9)
    assert float(free.norm()) > 2 * float(whole.norm())


def test_an_image_whose_gradient_is_not_finite_counts_as_none(narrow):
    module, images, labels = narrow
    expected = step(module, images[1:], labels[1:])
    for wrong in (math.nan, math.inf, 1e30):
        images[0] = wrong
        torch.testing.assert_close(step(module, images, labels), expected)


def test_noise_is_gaussian_of_every_weight_and_from_entropy(narrow):
    module, images, labels = narrow
    clean = step(module, images, labels, size=40)
    np.random.seed(0)
    torch.manual_seed(0)
    one = step(module, images, labels, noise=3.0, bound=0.5, size=40)
    np.random.seed(0)
    torch.manual_seed(0)
    two = step(module, images, labels, noise=3.0, bound=0.5, size=40)
    clean = step(module, images, labels, bound=0.5, size=40)
    noise = torch.cat([one - clean, two - clean]) * 40 / (3.0 * 0.5)
    assert len(one) > 200 and not torch.equal(one, two)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-6
    assert abs(np.corrcoef(one - clean, two - clean)[0, 1]) < 6 / math.sqrt(len(one))


def test_a_batch_of_nobody_is_a_step_with_noise_alone(monkeypatch):
    config = tiny_config(
        model_name=NARROW, norm="group", clipping_norm=1.0, noise_multiplier=1.0, privacy="sample", momentum=0.0,
        weight_decay=0.0,
    )  # fmt: skip
    seen = spy(monkeypatch, planned=[[]] * 9)
    before, module, data, loss = fitted(config, epochs=1)
    assert len(seen) == math.ceil(data.num_train / 10) > 1 and math.isnan(loss)
    before, after = (
        [weight.detach().flatten() for weight in each.model.body.parameters()] for each in (before, module)
    )
    moved = (torch.cat(after) - torch.cat(before)).numpy() / (0.1 / 10 * math.sqrt(len(seen)))
    assert stats.kstest(moved, "norm").pvalue > 1e-6


def test_each_sample_is_in_a_batch_by_itself_and_not_by_the_seed():
    torch.manual_seed(0)
    np.random.seed(0)
    drawn = [batch for _ in range(400) for batch in PoissonBatches(100, 20)]
    torch.manual_seed(0)
    np.random.seed(0)
    assert len(drawn) == 2000 and drawn[:5] != list(PoissonBatches(100, 20))
    assert all(batch == sorted(set(batch)) and {type(each) for each in batch} <= {int} for batch in drawn)
    sizes = np.array([len(batch) for batch in drawn])
    expected = 2000 * np.diff(stats.binom.cdf([-1, 14, 17, 19, 21, 24, 100], 100, 0.2))
    found = np.histogram(sizes, [0, 15, 18, 20, 22, 25, 101])[0]
    assert stats.chisquare(found, expected).pvalue > 1e-6
    counts = np.bincount([each for batch in drawn for each in batch], minlength=100)
    assert np.all(np.abs(counts - 400) < 6 * math.sqrt(2000 * 0.2 * 0.8))
    assert list(PoissonBatches(5, 20)) == [[0, 1, 2, 3, 4]]
    assert [] in [batch for _ in range(50) for batch in PoissonBatches(3, 1)]


def test_more_steps_than_were_paid_for_are_not_taken(narrow):
    module, images, labels = narrow
    module.steps = steps = PrivateSteps(1.0, 1.0, 1, 2)
    for _ in range(2):
        steps.on_before_optimizer_step(None, module, None)
    with pytest.raises(ValueError, match="takes more gradients than there are batches"):
        steps.on_before_optimizer_step(None, module, None)


def test_layers_that_mix_samples_are_found():
    for layer in (nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.SyncBatchNorm(3)):
        assert mixing_layer(nn.Sequential(nn.Linear(3, 3), nn.Sequential(layer))) == "1.0"
    for layer in (nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3), nn.Dropout()):
        assert mixing_layer(nn.Sequential(layer)) == ""


def linear(num_classes, norm, channels):
    """A head alone; the body does nothing to what is not negative."""
    return BodyAndHead(nn.Sequential(nn.Flatten(), nn.PReLU()), nn.Linear(1024 * channels, num_classes))


def attacked(noise_multiplier, steps=12, count=300, guesses=60):
    """What an attacker of one fit finds who sees its weights, of canaries each of which was an image by a coin.

    Canary i is an image with one bright pixel, and so its clipped gradient is that of two weights.
    """
    there = np.flatnonzero(np.random.default_rng().random(count) < 0.5)
    module = LitFedBABU("tests.learning.test_private_steps:linear", 2, channels=1, mode="head")
    weight = module.model.head.weight
    optimizer = torch.optim.SGD(module.model.parameters(), lr=1e-4)  # so that losses stay as they are
    images = torch.zeros(count, 1, 32, 32)
    images.view(count, -1)[torch.arange(count), torch.arange(count)] = 1e3
    torch.nn.init.zeros_(weight)
    module.steps = made = PrivateSteps(1.0, noise_multiplier, 1, steps)
    for _ in range(steps):
        rows = there[next(iter(PoissonBatches(len(there), len(there) // 2)))]
        module.training_step((images[rows], torch.zeros(len(rows), dtype=torch.long)), 0)
        made.on_before_optimizer_step(None, module, None)
        optimizer.step()
    order = np.argsort((weight[0] - weight[1]).detach()[:count].numpy())
    said_there, said_away = order[-guesses // 2 :], order[: guesses // 2]
    right = np.isin(said_there, there).sum() + (~np.isin(said_away, there)).sum()
    return audited(count, guesses, int(right), 1e-5)


@pytest.mark.slow
def test_an_audit_of_samples_refutes_less_than_epsilon_and_more_without_noise():
    promised = steps_epsilon([Course(0.5, 2.0, 12)], 1e-5)
    found = [attacked(2.0) for _ in range(8)]
    print(f"promised {promised:.2f}, refuted {min(found):.2f} to {max(found):.2f}")
    assert max(found) < promised and max(found) > 0
    bare = attacked(1e-6, count=600, guesses=120)
    print(f"without noise {bare:.2f}")
    assert bare > 2
