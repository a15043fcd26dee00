import pytest
import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import NORMS, BodyAndHead, FourConvNet, build_model
from lit_fedbabu.learning.parts import select
from lit_fedbabu.tasks.images import task
from tests.support import state_digest, tiny


def test_four_conv_net_has_the_papers_size():
    model = FourConvNet(num_classes=10)
    assert sum(weight.numel() for weight in model.parameters()) == 115_658
    assert sum(weight.numel() for weight in model.head.parameters()) == 2_570
    assert not list(model.buffers()), "batch norm must not keep running statistics"
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pooling_before_relu_is_the_papers_block_to_the_bit():
    model = build_model("FourConvNet", 10, seed=3)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)

    def papers_forward():
        features = images
        for conv, norm, _, _ in list(model.body)[:4]:
            features = functional.max_pool2d(functional.relu(norm(conv(features))), 2)
        return model.head(features.flatten(1))

    outcomes = []
    for forward in (lambda: model(images), papers_forward):
        logits = forward()
        gradients = torch.autograd.grad(functional.cross_entropy(logits, labels), list(model.parameters()))
        outcomes.append([logits, *gradients])
    assert all(torch.equal(ours, papers) for ours, papers in zip(*outcomes, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "parameters"), [("FourConvNet", 115_658), ("MobileNet", 3_217_226), ("ResNet18", 11_173_962)]
)
def test_every_model_is_a_body_and_a_head(name, parameters, norm):
    model = build_model(name, 10, seed=1, norm=norm)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert bool(list(model.buffers())) == (norm == "batch-running")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (4, 10)
    assert torch.equal(logits, model.head(model.body(images))) or norm == "batch-running"
    functional.cross_entropy(logits, torch.arange(4)).backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), weight_name
    state = model.state_dict()
    assert [*select(state, ["body"]), *select(state, ["head"])] == list(state)
    assert len(select(state, ["head"])) == 2


def own_model(num_classes, norm, channels):
    return BodyAndHead(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def odd_model(num_classes, norm, channels):
    return nn.Linear(2, num_classes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FiveConvNet", "must be one of FourConvNet, MobileNet, ResNet18, timm:NAME, or an import path"),
        ("nowhere.at_all:build", "No module named"),
        ("tests.learning.test_models:nothing", "has no attribute"),
        ("tests.learning.test_models:odd_model", "whose weights are in a body and a head"),
        ("tests.learning.test_models:own_model", "whose weights are in a body and a head"),
    ],
)
def test_what_is_no_model_of_a_body_and_a_head_is_refused_in_one_line(name, words):
    with pytest.raises(InputError, match=words) as caught:
        build_model(name, 10, seed=1)
    assert "\n" not in str(caught.value)


def test_initial_model_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = state_digest(build_model("FourConvNet", 10, seed=1).state_dict())
    before = torch.get_rng_state()
    again = state_digest(build_model("FourConvNet", 10, seed=1).state_dict())
    assert first == again != state_digest(build_model("FourConvNet", 10, seed=2).state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("FourConvNet", 64, 1024), ("FourConvNet", 16, 64), ("MobileNet", 17, 1024), ("ResNet18", 9, 512)],
)
def test_models_are_built_for_the_size_of_their_images(name, size, features):
    model = build_model(name, 10, 1, "batch", 3, size)
    assert model.head.in_features == features
    assert model(torch.rand(1, 3, size, size)).shape == (1, 10), "also for one image alone"


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (
            "FourConvNet",
            100,
            "does not fit FourConvNet, which takes multiples of 16, as 32, 64 or 224; others take any",
        ),
        ("FourConvNet", 8, "does not fit FourConvNet"),
        ("MobileNet", 16, "is too small for MobileNet; take 17 or more"),
        ("ResNet18", 8, "is too small for ResNet18; take 9 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(name, size, words, monkeypatch):
    with pytest.raises(InputError, match=f"image-size = {size}: {words}"):
        build_model(name, 10, 1, "batch", 3, size)
    monkeypatch.setattr(task, "load", None)
    with pytest.raises(InputError, match=words):
        tiny(model_name=name, image_size=size).check()  # before the dataset is read


def sized_model(num_classes, norm, channels, image_size):
    return BodyAndHead(nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 4)), nn.Linear(4, num_classes))


def test_a_users_model_is_told_the_size_if_it_asks():
    assert build_model("tests.learning.test_models:sized_model", 5, 1, "batch", 1, 12).body[1].in_features == 144


def test_group_norm_looks_at_each_image_alone_and_is_not_for_networks_of_others():
    model = build_model("FourConvNet", 10, seed=1, norm="group")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images), rtol=1e-5, atol=1e-6)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert [layer.num_groups for layer in layers] == [32] * 4
    with pytest.raises(InputError, match='norm = "group": is not for timm:resnet18'):
        build_model("timm:resnet18", 10, seed=1, norm="group")
