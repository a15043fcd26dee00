"""A network of timm in the place of a federation's model: its maker's weights are the body."""

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.system import available_cores
from lit_fedbabu.learning.timm_weights import body_of, maker_of, with_pretrained
from lit_fedbabu.personal.settings import Request
from lit_fedbabu.records.federation import Federation

RATE = 0.01
"""Learning rate of fine-tuning where none is given: a fresh head on features of photographs needs a larger one."""
TEST_BATCH = 50
"""Images that are predicted at once: of large ones a thousand would need gigabytes."""


def of_timm(request: Request) -> Federation:
    """What a federation of no rounds would leave: the network's body with its maker's weights.

    Raises:
        InputError: timm has no such network, or its weights cannot be had, or are of another one.
    """
    name = str(request.source)
    maker = maker_of(name)
    config = Config(
        algorithm="local",
        model_name=name,
        dataset=str(request.data),
        image_size=maker.image_size,
        norm="batch-running",
        trainable=request.trainable or "all",
        finetune_part="full" if request.trainable else "head",
        finetune_learning_rate=RATE,
        pretrained=request.weights is None,
        initial_weights="" if request.weights is None else str(request.weights),
        num_clients=1,
        partitioner="iid",
        num_server_rounds=1,
        test_batch_size=TEST_BATCH,
        num_threads=available_cores(),
    )
    where = f"hf download {maker.hub_name} model.safetensors" if maker.hub_name else "save them as .safetensors"
    try:
        config = with_pretrained(config, f"where there is a network: {where}; then give the file by --weights")
    except InputError as error:
        if error.key != "pretrained":
            raise
        raise InputError("RUN_OR_CHECKPOINT", name, error.remedy) from None
    body = body_of(config)
    say(f"{name}: weights of {config.initial_weights}")
    provenance = {"config": config.experiment(), "round": 0, "class_names": [], "mean": maker.mean, "std": maker.std}
    return Federation(config, [], body, provenance)
