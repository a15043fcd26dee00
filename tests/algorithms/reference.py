"""FedBABU from the paper's Algorithm 1, in plain PyTorch; of the package it takes images, split and seeds."""

import copy

import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu.tasks.images.task import ImageClassification


def network(seed, dtype):
    torch.manual_seed(seed)
    layers = []
    for channels in (3, 64, 64, 64):
        convolution = nn.Conv2d(channels, 64, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    parts = {"body": nn.Sequential(*layers, nn.Flatten()), "head": nn.Linear(256, 10)}
    return nn.ModuleDict(parts).to(dtype, memory_format=torch.channels_last)


def judge(model, images, labels):
    kind = model["head"].weight.dtype
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=kind) * 255
    logits = model["head"](model["body"](((images - mean) / std).permute(0, 3, 1, 2)))
    return functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).double().mean().item()


def sgd(model, weights, images, labels, seed, epochs, rate, batch):
    """ClientUpdate; returns the mean loss over the images seen."""
    shuffling, cropping = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    optimizer, total = torch.optim.SGD(weights, rate, momentum=0.9), 0.0
    orders = [torch.randperm(len(labels), generator=shuffling) for _ in range(epochs)]
    for chosen in (chosen for order in orders for chosen in order.split(batch)):
        corners = torch.randint(0, 9, (2, len(chosen), 1), generator=cropping).squeeze(2).T.tolist()
        flips = torch.rand(len(chosen), 1, generator=cropping) < 0.5
        padded = functional.pad(images[chosen], (0, 0, 4, 4, 4, 4))
        crops = [image[top : top + 32, left : left + 32] for image, (top, left) in zip(padded, corners, strict=True)]
        mirrored = [crop.flip(1) if flip else crop for crop, flip in zip(crops, flips, strict=True)]
        loss, _ = judge(model, torch.stack(mirrored), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(chosen) / (epochs * len(labels))
    return total


def algorithm_1(config, dtype, rates):
    """Train the body in every round on all clients, then fine-tune everything; returns weights and the curves."""
    source, parts = (task := ImageClassification(config)).source, task.partition
    rows = [[[torch.from_numpy(array[part]) for array in (split.images, split.labels)] for part in dealt]
            for split, dealt in ((source.train, parts.train), (source.test, parts.test))]  # fmt: skip
    server, curve, before, after = network(config.derived_seed("model"), dtype), [], [], []
    for server_round, rate in enumerate(rates, 1):
        locals_ = [copy.deepcopy(server) for _ in rows[0]]
        losses = [sgd(model, model["body"].parameters(), *data, config.derived_seed("train", server_round, client),
                      config.num_local_epochs, rate, config.batch_size)
                  for client, (model, data) in enumerate(zip(locals_, rows[0], strict=True))]  # fmt: skip
        counts = [len(labels) for _, labels in rows[0]]
        curve.append(sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts))
        states = [model["body"].state_dict() for model in locals_]
        weighted = list(zip(counts, states, strict=True))
        total = {name: sum(n * state[name].double() for n, state in weighted) for name in states[0]}
        server["body"].load_state_dict({name: value / sum(counts) for name, value in total.items()})
    for client, (train, test) in enumerate(zip(*rows, strict=True)):
        model = copy.deepcopy(server)
        before.append(judge(model, *test))
        sgd(model, model.parameters(), *train, config.derived_seed("finetune", client), config.num_finetune_epochs,
            config.finetune_learning_rate, config.batch_size)  # fmt: skip
        after.append(judge(model, *test))
    return server.state_dict(), curve, before, after
