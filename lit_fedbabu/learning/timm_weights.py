"""Pretrained weights of timm, kept in a file that a model can start from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.ground.files import whole
from lit_fedbabu.learning import cache, reach
from lit_fedbabu.learning.backbones import PREFIX, known, network

WAYS_OUT = "three ways out: a network, initial-weights=PATH with a file of them, or pretrained=false for random weights"


class Maker(NamedTuple):
    """What whoever trained a network's weights did with images.

    Args:
        image_size: height and width in pixels.
        mean: that was subtracted, by channel, of images scaled to 0..1.
        std: that was divided by, by channel.
        hub_name: where the weights are on the Hugging Face hub; empty: not there.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    hub_name: str


def maker_of(model_name: str) -> Maker:
    """What timm says of a network's images, by its name as in ``timm:resnet18``.

    Raises:
        InputError: there is no such network, timm says nothing of it, or its images are no squares of three channels.
    """
    timm, name = known(model_name), model_name.removeprefix(PREFIX)
    made = timm.get_pretrained_cfg(name)
    if made is None:
        raise InputError("model-name", model_name, "timm does not say for which images it is; take another one")
    channels, height, width = made.input_size
    if channels != 3 or height != width:
        remedy = f"is for {channels} channels of {height} x {width} pixels; take one of colour images that are squares"
        raise InputError("model-name", model_name, remedy)
    return Maker(height, made.mean, made.std, made.hf_hub_id or "")


def body_of(config: Config) -> dict[str, Tensor]:
    """The weights of timm's network without its classifier, all of which the file of initial weights must have.

    timm itself fits names and shapes, as it does with files of its hub.

    Raises:
        InputError: the file is no .safetensors, or has not all weights of the network.
    """
    from safetensors.torch import load_file

    timm, name, path = known(config.model_name), config.model_name.removeprefix(PREFIX), config.initial_weights
    try:
        state = load_file(path)
    except Exception as error:  # of many kinds, for any file may be given
        remedy = f"is no .safetensors ({' '.join(str(error).split())[:120]}), and others may run code; where you trust"
        remedy += " it: safetensors.torch.save_file(torch.load(PATH, weights_only=True), NEW_PATH)"
        raise InputError("initial-weights", path, remedy) from None
    classifier = timm.get_pretrained_cfg(name).classifier or ()
    for layer in [classifier] if isinstance(classifier, str) else classifier:
        state = {key: value for key, value in state.items() if not key.startswith(f"{layer}.")}
    whole = {"state_dict": state, "num_classes": 0, "classifier": None}  # so that none may be missing
    try:
        body = network(timm, name, 3, config.image_size, pretrained=True, pretrained_cfg_overlay=whole)
    except Exception as error:  # whatever timm raises
        remedy = f"has not the weights of {name}: {' '.join(str(error).split())[:300]}"
        raise InputError("initial-weights", path, remedy) from None
    return {f"body.{key}": value for key, value in body.state_dict().items()}


def with_pretrained(config: Config, ways_out: str = WAYS_OUT) -> Config:
    """The same options as of ``Config.pinned``, with a file of pretrained weights where they ask for these.

    The file is made once on each machine, for images of three channels. Its digest then belongs to the run.

    Args:
        config: the options.
        ways_out: what a person is told to do where the weights cannot be had.

    Raises:
        InputError: also where there are no such weights, or the hub cannot be reached and has nothing cached.
    """
    wanted = config.pretrained and not config.initial_weights
    return config.pinned(str(_file(config.model_name, config.image_size, ways_out)) if wanted else "")


def _file(model_name: str, image_size: int, ways_out: str) -> Path:
    """The file with the body's pretrained weights, which are fetched if it is not there."""
    timm, name = known(model_name), model_name.removeprefix(PREFIX)
    path = cache.folder() / cache.WEIGHTS / f"{name}-{image_size}px-timm{timm.__version__}.safetensors"
    if path.exists():
        return path
    if not timm.is_model_pretrained(name):
        remedy = f"timm has no weights of {name}; timm.list_models(pretrained=True) has those of which it has"
        raise InputError("pretrained", True, remedy)
    reachable = reach.answers()
    try:
        with reach.offline(not reachable):
            body = network(timm, name, 3, image_size, pretrained=True)
    except Exception as error:  # timm and the hub raise many kinds
        why = told(error) if reachable else "the hub cannot be reached and has nothing cached"
        raise InputError("pretrained", True, f"weights of {name} cannot be had: {why}; {ways_out}") from None
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch:
        save_file({key: value.contiguous() for key, value in body.state_dict().items()}, scratch)
    return path
