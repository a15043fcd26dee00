"""Pretrained weights of timm, kept in a file that a model can start from."""

from pathlib import Path

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.ground.files import whole
from lit_fedbabu.learning import cache, reach
from lit_fedbabu.learning.backbones import PREFIX, known, network

WAYS_OUT = "three ways out: a network, initial-weights=PATH with a file of them, or pretrained=false for random weights"


def with_pretrained(config: Config) -> Config:
    """The same options as of ``Config.pinned``, with a file of pretrained weights where they ask for these.

    The file is made once on each machine, for images of three channels. Its digest then belongs to the run.

    Raises:
        InputError: also where there are no such weights, or the hub cannot be reached and has nothing cached.
    """
    wanted = config.pretrained and not config.initial_weights
    return config.pinned(str(_file(config.model_name, config.image_size)) if wanted else "")


def _file(model_name: str, image_size: int) -> Path:
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
        raise InputError("pretrained", True, f"weights of {name} cannot be had: {why}; {WAYS_OUT}") from None
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch:
        save_file({key: value.contiguous() for key, value in body.state_dict().items()}, scratch)
    return path
