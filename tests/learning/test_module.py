import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu import preflight, training, update
from lit_fedbabu.batches import ClientData, normalize
from lit_fedbabu.config import ConfigError
from lit_fedbabu.models import NORMS, FourConvNet, Sandwich, build_model, parts_of, select
from lit_fedbabu.module import LitFedBABU
from tests.helpers import state_digest, tiny_config


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


@pytest.mark.parametrize("mode", ["body", "head", "full"])
def test_running_statistics_move_with_their_part(mode):
    config = tiny_config(norm="batch-running")
    module = training.new_module(config, 10, model_seed=5)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    curve = []
    training.fit([module], [ClientData(config, 0, seed=1)], mode=mode, epochs=2, learning_rate=0.1, curves=[curve])
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in select(before, parts_of(mode))), name
    assert curve[-1] == training.evaluate([module], [ClientData(config, 0, seed=1)])[0]


def own_model(num_classes, norm, channels):
    return Sandwich(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def odd_model(num_classes, norm, channels):
    return nn.Linear(2, num_classes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FiveConvNet", "must be one of FourConvNet, MobileNet, ResNet18, or an import path"),
        ("nowhere.at_all:build", "No module named"),
        ("tests.test_module:nothing", "has no attribute"),
        ("tests.test_module:odd_model", "whose weights are in a body and a head"),
        ("tests.test_module:own_model", "whose weights are in a body and a head"),
    ],
)
def test_what_is_no_model_of_a_body_and_a_head_is_refused_in_one_line(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_model(name, 10, seed=1)
    assert "\n" not in str(caught.value)


def test_initial_model_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = state_digest(build_model("FourConvNet", 10, seed=1).state_dict())
    before = torch.get_rng_state()
    again = state_digest(build_model("FourConvNet", 10, seed=1).state_dict())
    assert first == again != state_digest(build_model("FourConvNet", 10, seed=2).state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["body", "head", "full"])
def test_only_the_mode_trains_and_the_rest_stays_bitwise(mode):
    config = tiny_config(weight_decay=0.1, momentum=0.9)
    module = training.new_module(config, 10, model_seed=5)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    training.fit([module], [ClientData(config, 0, seed=1)], mode=mode, epochs=2, learning_rate=0.1)
    trained = select(before, parts_of(mode)).keys()
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name
        assert dict(module.model.named_parameters())[name].requires_grad == (name in trained), name
    in_optimizer = {id(weight) for group in module.configure_optimizers().param_groups for weight in group["params"]}
    assert in_optimizer == {id(weight) for name, weight in module.model.named_parameters() if name in trained}


def test_checkpoint_round_trip_needs_no_argument(tmp_path):
    module = LitFedBABU(num_classes=7, mode="head", model_seed=9)
    module.about = {"round": 3, "config": {"seed": 1}}
    path = tmp_path / "deep" / "model.ckpt"
    training.save_checkpoint(module, path)
    loaded = LitFedBABU.load_from_checkpoint(path, weights_only=True)
    assert loaded.about == module.about
    assert loaded.hparams == module.hparams
    assert state_digest(loaded.state_dict()) == state_digest(module.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["model.ckpt"]


def test_accuracy_and_loss_are_those_of_the_whole_test_set():
    config = tiny_config(test_batch_size=1000, normalization="imagenet")
    module = training.new_module(config, 10, model_seed=5)
    data = ClientData(config, 2, seed=1)
    evaluation = training.evaluate([module], [data])[0]
    images, labels = data.test_set.tensors
    raw = (images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        logits = nn.Module.__call__(module.model, raw)
    assert evaluation.count == len(labels)
    assert evaluation.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert evaluation.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_auto_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_bf16=has_bf16: {"avx512_bf16": has_bf16})
        assert preflight.resolve_precision("auto") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16, **_: has_bf16)
        assert preflight.resolve_precision("auto") == expected
    assert preflight.resolve_precision("32-true") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match='precision = "16-mixed": needs a GPU'):
        preflight.resolve_precision("16-mixed")


def test_mixed_precision_trains_float32_weights():
    config = tiny_config(precision="bf16-mixed")
    module = training.new_module(config, 10, model_seed=5)
    before = state_digest(module.model.state_dict())
    (loss,) = training.fit([module], [ClientData(config, 0, seed=1)], mode="full", epochs=1, learning_rate=0.01)
    full = training.new_module(config, 10, model_seed=5)
    in_float32 = ClientData(tiny_config(precision="32-true"), 0, seed=1)
    assert [loss] == pytest.approx(
        training.fit([full], [in_float32], mode="full", epochs=1, learning_rate=0.01), rel=0.05
    )
    assert {value.dtype for value in module.model.state_dict().values()} == {torch.float32}
    assert len({before, state_digest(module.model.state_dict()), state_digest(full.model.state_dict())}) == 3


def test_predictions_and_measures_of_mixed_precision_are_float32():
    config = tiny_config(precision="bf16-mixed")
    module, data = update.initial_module(config), ClientData(config, 2, 0)
    images, labels = data.test_set.tensors
    (own,) = training.predictions([module], [data])
    assert {(features.dtype, logits.dtype) for features, logits, _ in own} == {(torch.float32, torch.float32)}
    logits = own[1][1]
    torch.testing.assert_close(logits, module(normalize(images, *data.constants)), rtol=0.05, atol=0.05)
    module.observe(logits, labels)
    expected = training.Evaluation(
        module.test_loss.compute().item(),
        module.test_accuracy.compute().item(),
        module.test_calibration_error.compute().item(),
        len(labels),
    )
    for metric in (module.test_loss, module.test_accuracy, module.test_calibration_error):
        metric.reset()
    assert training.evaluate([module], [data]) == [expected]


def test_reach_is_nearest_templates_and_a_look_at_other_classes():
    config = tiny_config()
    module, data = update.initial_module(config), ClientData(config, 2, 0)
    found = training.reach([module], [data])[0]
    (images, labels), (test_images, test_labels) = (
        (normalize(part.tensors[0], *data.constants), part.tensors[1]) for part in (data.train_set, data.test_set)
    )
    with torch.no_grad():
        features, test_features = module.model.body(images), module.model.body(test_images)
    means = {int(label): features[labels == label].mean(0) for label in labels.unique()}
    nearest = [min(means, key=lambda label: float((row - means[label]).norm())) for row in test_features]
    assert found.template_accuracy == np.mean(np.array(nearest) == test_labels.numpy())
    own = set(labels.tolist())
    others, other_labels = data.others.tensors
    assert len(others) == len(test_labels) and not own & set(other_labels.tolist())
    with torch.no_grad():
        module.model.head.bias[other_labels[0]] = 1e6  # says this class, whatever it sees
    expected = (other_labels == other_labels[0]).double().mean().item()
    assert training.reach([module], [data])[0].other_classes_accuracy == expected > 0


def test_a_client_of_all_classes_has_no_other_ones():
    config = tiny_config(partitioner="iid", num_clients=1)
    found = training.reach([update.initial_module(config)], [ClientData(config, 0, 0)])[0]
    assert np.isnan(found.other_classes_accuracy) and found.template_accuracy > 0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    config = tiny_config()
    module, data = update.initial_module(config), ClientData(config, 2, 0)
    images, labels = data.test_set.tensors
    with torch.no_grad():
        chances = module(normalize(images, *data.constants)).softmax(1)
    confidence, hits = chances.max(1).values, chances.argmax(1) == labels
    bins = (confidence * 15).long()
    expected = sum(
        (bins == each).double().mean() * abs(hits[bins == each].double().mean() - confidence[bins == each].mean())
        for each in bins.unique()
    )
    assert training.evaluate([module], [data])[0].calibration_error == pytest.approx(float(expected), abs=1e-6)
