"""Which weights of a body train: all, its last blocks, its normalization layers, or adapters of low rank."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterator

import torch
from torch import nn

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import NORMALIZATIONS

KEY = "trainable"
ADAPTER = ".lora_"
"""What the names of an adapter's weights have in them."""
INSIDE = ".base_layer."
"""What the names of a weight have in them where an adapter lies beside it."""


def restrict(root: nn.Module, names: Collection[str], trainable: str, seed: int) -> None:
    """Freeze what of modules does not train, in place, and put adapters into them.

    Args:
        root: has the modules.
        names: of the modules, or weights, that are the body.
        trainable: "all", "norm", "last:N" blocks, or "lora:R": adapters of rank R (Hu et al. 2022) beside every linear
            layer, or of a network without these beside its convolutions, scaled by 1.
        seed: that adapters are drawn from.

    Raises:
        InputError: the body has no such layers, or peft is not installed.
    """
    kind, _, number = trainable.partition(":")
    if kind == "all":
        return
    inside = {name for name, _ in root.named_parameters() if _lies_in(name, names)}
    given = {name for name, weight in root.named_parameters() if weight.requires_grad}
    if kind == "norm":
        trained = _of_norms(root, inside, trainable) & given
    elif kind == "last":
        trained = _of_blocks(root, names, int(number), trainable) & given
    else:
        trained = _with_adapters(root, names, int(number), trainable, seed)
        inside = {name for name, _ in root.named_parameters() if _lies_in(name, names)}
    for name, weight in root.named_parameters():
        weight.requires_grad_(name in (trained if name in inside else given))


def _lies_in(name: str, names: Collection[str]) -> bool:
    return f"{name}.".startswith(tuple(f"{each}." for each in names))


def _of_norms(root: nn.Module, inside: Collection[str], trainable: str) -> set[str]:
    layers = [path for path, layer in root.named_modules() if isinstance(layer, NORMALIZATIONS)]
    if found := {name for name in inside if name.rpartition(".")[0] in layers}:
        return found
    raise InputError(KEY, trainable, "the body has no normalization layers with weights; take all, last:2 or lora:8")


def _of_blocks(root: nn.Module, names: Collection[str], count: int, trainable: str) -> set[str]:
    blocks = [block for name in names for block in blocks_of(root, name)]
    if count > len(blocks):
        raise InputError(KEY, trainable, f"the body has {len(blocks)} blocks; take fewer, or all")
    last = {path for block in blocks[len(blocks) - count :] for path in block}
    return {name for name, _ in root.named_parameters() if _lies_in(name, last)}


def blocks_of(root: nn.Module, name: str) -> list[list[str]]:
    """The blocks of a module, each as the paths of what is in it: items of its lists of modules, or else its children.

    What follows a block, as a last normalization, belongs to it; what comes before the first, as embeddings, to none.
    """
    modules = dict(root.named_modules())
    if name not in modules:  # a weight
        return [[name]]
    while len(inner := _with_weights(modules[name])) == 1 and _is_nested(modules[f"{name}.{inner[0]}"]):
        name = f"{name}.{inner[0]}"  # of what wraps a network
    units = list(_units(modules[name], name)) or [(name, True)]
    if not any(is_block for _, is_block in units):
        return [[path] for path, _ in units]
    blocks: list[list[str]] = []
    for path, is_block in units:
        if is_block:
            blocks.append([path])
        elif blocks:
            blocks[-1].append(path)
    return blocks


def _units(module: nn.Module, path: str) -> Iterator[tuple[str, bool]]:
    """Paths of what in a module has weights, in their order, and whether they are items of a list of modules."""
    is_list = _is_list(module)
    for name in _with_weights(module):
        child = module.get_submodule(name)
        if _is_list(child) or (not is_list and _holds_list(child)):
            yield from _units(child, f"{path}.{name}")
        else:
            yield f"{path}.{name}", is_list and _is_nested(child)


def _is_list(module: nn.Module) -> bool:
    """Whether it is a list of modules with modules in them."""
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(map(_is_nested, module.children()))


def _holds_list(module: nn.Module) -> bool:
    """Whether it is no more than a list, as an encoder is of its layers."""
    inner = _with_weights(module)
    return len(inner) == 1 and _is_list(module.get_submodule(inner[0]))


def _with_weights(module: nn.Module) -> list[str]:
    """The names of the children that have weights."""
    return [name for name, child in module.named_children() if any(True for _ in child.parameters())]


def _is_nested(module: nn.Module) -> bool:
    """Whether there are modules in it; the activation of a normalization layer does not count."""
    return not isinstance(module, NORMALIZATIONS) and any(True for _ in module.children())


def _with_adapters(root: nn.Module, names: Collection[str], rank: int, trainable: str, seed: int) -> set[str]:
    if importlib.util.find_spec("peft") is None:
        raise InputError(KEY, trainable, "needs peft: pip install 'lit-fedbabu[lora]'")
    layers = {path: layer for path, layer in root.named_modules() if _lies_in(path, names)}
    chosen = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
    chosen = chosen or [path for path, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    if not chosen:
        raise InputError(KEY, trainable, "the body has no linear layers and no convolutions; take all or norm")
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    pattern = "|".join(map(re.escape, chosen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern), root)
    return {name for name, _ in root.named_parameters() if ADAPTER in name and _lies_in(name, names)}
