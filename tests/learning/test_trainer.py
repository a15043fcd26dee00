import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import registry
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.nn import functional

from lit_fedbabu.learning.evaluation import Evaluation
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.tasks.images.measures import auroc
from lit_fedbabu.tasks.images.transforms import normalize
from lit_fedbabu.training.experiment import Experiment
from tests.support import client_data, state_digest, tiny_config


def new_module(config):
    return LitFedBABU(norm=config.norm, momentum=config.momentum, weight_decay=config.weight_decay, model_seed=5)


@pytest.mark.parametrize("mode", ["body", "head", "full"])
def test_running_statistics_move_with_their_part(mode):
    config = tiny_config(norm="batch-running")
    module = new_module(config)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    curve: list[Evaluation] = []
    learner.fit([module], [client_data(config, 0, seed=1)], mode=mode, epochs=2, learning_rate=0.1, curves=[curve])
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in select(before, parts_of(mode))), name
    assert curve[-1] == learner.evaluate([module], [client_data(config, 0, seed=1)])[0]


@pytest.mark.parametrize("mode", ["body", "head", "full"])
def test_only_the_mode_trains_and_the_rest_stays_bitwise(mode):
    config = tiny_config(weight_decay=0.1, momentum=0.9)
    module = new_module(config)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    learner.fit([module], [client_data(config, 0, seed=1)], mode=mode, epochs=2, learning_rate=0.1)
    trained = select(before, parts_of(mode)).keys()
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name
        assert dict(module.model.named_parameters())[name].requires_grad == (name in trained), name
    in_optimizer = {id(weight) for group in module.configure_optimizers().param_groups for weight in group["params"]}
    assert in_optimizer == {id(weight) for name, weight in module.model.named_parameters() if name in trained}


def test_accuracy_and_loss_are_those_of_the_whole_test_set():
    config = tiny_config(test_batch_size=1000, normalization="imagenet")
    module = new_module(config)
    data = client_data(config, 2, seed=1)
    evaluation = learner.evaluate([module], [data])[0]
    images, labels = data.test_set.tensors
    raw = (images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        logits = nn.Module.__call__(module.model, raw)
    assert evaluation.count == len(labels)
    assert evaluation.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert evaluation.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_mixed_precision_trains_float32_weights():
    config = tiny_config(precision="bf16-mixed")
    module = new_module(config)
    before = state_digest(module.model.state_dict())
    (loss,) = learner.fit([module], [client_data(config, 0, seed=1)], mode="full", epochs=1, learning_rate=0.01)
    full = new_module(config)
    in_float32 = client_data(tiny_config(precision="32-true"), 0, seed=1)
    assert [loss] == pytest.approx(
        learner.fit([full], [in_float32], mode="full", epochs=1, learning_rate=0.01), rel=0.05
    )
    assert {value.dtype for value in module.model.state_dict().values()} == {torch.float32}
    assert len({before, state_digest(module.model.state_dict()), state_digest(full.model.state_dict())}) == 3


def test_predictions_and_measures_of_mixed_precision_are_float32():
    config = tiny_config(precision="bf16-mixed")
    module, data = Experiment(config).new_module(), client_data(config, 2, 0)
    images, labels = data.test_set.tensors
    (own,) = learner.predictions([module], [data])
    assert {(features.dtype, logits.dtype) for features, logits, _ in own} == {(torch.float32, torch.float32)}
    logits = own[1][1]
    torch.testing.assert_close(logits, module(normalize(images, *data.constants)), rtol=0.05, atol=0.05)
    module.observe(logits, labels)
    expected = Evaluation(
        module.test_loss.compute().item(),
        module.test_accuracy.compute().item(),
        module.test_calibration_error.compute().item(),
        len(labels),
    )
    for metric in (module.test_loss, module.test_accuracy, module.test_calibration_error):
        metric.reset()
    assert learner.evaluate([module], [data]) == [expected]


def test_reach_is_nearest_templates_and_a_look_at_other_classes():
    config = tiny_config()
    module, data = Experiment(config).new_module(), client_data(config, 2, 0)
    found = learner.probe([module], [data])[0]
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
    assert learner.probe([module], [data])[0].other_classes_accuracy == expected > 0


def test_f1_and_auroc_are_those_of_scikit_learn():
    config = tiny_config()
    module, data = Experiment(config).new_module(), client_data(config, 2, 0)
    images, labels = data.test_set.tensors
    with torch.no_grad():
        module.model.head.bias[labels.unique()] += 10  # it takes images for both classes
    found = learner.probe([module], [data])[0]
    with torch.no_grad():
        logits = module(normalize(images, *data.constants))
    probabilities = logits.softmax(1).numpy()
    present = labels.unique().tolist()
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in present]
    assert len(present) == 2 and found.auroc == pytest.approx(np.mean(areas), abs=1e-6)
    assert found.f1 == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"), abs=1e-6)
    assert math.isnan(auroc(logits, torch.zeros_like(labels))), "one class has no curve"


def test_a_client_of_all_classes_has_no_other_ones():
    config = tiny_config(partitioner="iid", num_clients=1)
    found = learner.probe([Experiment(config).new_module()], [client_data(config, 0, 0)])[0]
    assert np.isnan(found.other_classes_accuracy) and found.template_accuracy > 0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    config = tiny_config()
    module, data = Experiment(config).new_module(), client_data(config, 2, 0)
    images, labels = data.test_set.tensors
    with torch.no_grad():
        chances = module(normalize(images, *data.constants)).softmax(1)
    confidence, hits = chances.max(1).values, chances.argmax(1) == labels
    bins = (confidence * 15).long()
    expected = sum(
        (bins == each).double().mean() * abs(hits[bins == each].double().mean() - confidence[bins == each].mean())
        for each in bins.unique()
    )
    assert learner.evaluate([module], [data])[0].calibration_error == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.slow
def test_lightning_is_quiet_only_once_it_is_used():
    script = (
        "import logging, warnings; from lightning.fabric.utilities import registry;"
        "log = logging.getLogger('lightning.pytorch');"
        "state = lambda: (log.level, list(warnings.filters), registry.entry_points);"
        "before = state(); from lit_fedbabu.learning import trainer; print(state() == before);"
        "trainer.quiet_lightning(); after = state(); print([a != b for a, b in zip(after, before)]);"
        "trainer.quiet_lightning(); print(state() == after)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["True", "[True, True, True]", "True"], done.stdout + done.stderr
    assert callable(registry.entry_points), "the name that quiet_lightning replaces"
