"""The options of an experiment: one frozen dataclass with the keys of ``[tool.flwr.app.config]``."""

import dataclasses

from lit_fedbabu.derived import Derived
from lit_fedbabu.option_rules import check_together
from lit_fedbabu.options import checked, option


@dataclasses.dataclass(frozen=True)
class Config(Derived):
    """One experiment. Field ``num_clients`` is the key ``num-clients``; defaults are the paper's.

    Values are checked when the object is made.

    Raises:
        InputError: a value has the wrong type or lies outside its limits.
    """

    algorithm: str = option("fedbabu", "method: a row of the table in algorithms/table.py, as fedavg, fedper or ditto")
    model_name: str = option(
        "FourConvNet",
        "FourConvNet, MobileNet, ResNet18, a network of timm as timm:resnet18, or your own build(num_classes, norm,"
        " channels): my_package.my_module:build",
    )
    pretrained: bool = option(
        False,
        "whether a network of timm starts from its weights of the hub, which are its initial-weights then",
    )
    initial_weights: str = option(
        "",
        "file of weights that the model starts from, where names and shapes fit: a state dict (.pt), .safetensors, or"
        " a checkpoint of this package; empty: all are random",
    )
    initial_weights_digest: str = option("", "SHA-256 of that file, which a run writes down; another file is refused")
    norm: str = option(
        "batch",
        "normalization layers: batch uses the statistics of each batch, as in the paper; batch-running has running"
        " statistics, which are shared, kept and frozen with the part they are in",
        choices=("batch", "batch-running"),
    )
    task: str = option(
        "",
        "what clients learn if not to classify images: the import path of a lit_fedbabu.Task of your own, as in"
        " my_module:task; options of images and models are not read then",
    )
    dataset: str = option(
        "uoft-cs/cifar10",
        'hub name "owner/name" or "owner/name:subset", a folder of images or tables, or "digits"',
    )
    label_column: str = option("", "column of the dataset with the labels; empty: the only one there is")
    class_names: str = option(
        "", "names of the classes in the order of their numbers, as in cat,dog; empty: the dataset's own; sites need it"
    )
    normalization: str = option(
        "data",
        "of images, by channel: mean and standard deviation of the dataset's training images, or ImageNet's constants,"
        " as in the paper's code",
        choices=("data", "imagenet"),
    )
    image_size: int = option(32, "height and width in pixels that every image is resized to", low=8, high=1024)
    partitioner: str = option(
        "classes",
        "how images are dealt to clients, as classes, shards, dirichlet or iid; with sites every SuperNode is a client"
        " with images of its own, and dataset is a name for all of them",
    )
    num_clients: int = option(100, "participants with data of their own; with sites, the SuperNodes", low=1)
    num_new_clients: int = option(
        0,
        "of them, the last ones, that have no part in any round; after the last round they are fine-tuned as well and"
        " reported apart",
        low=0,
    )
    num_classes_per_client: int = option(
        2, "s of the paper: classes or shards per client", read_by="classes, shards, pathological, distribution", low=1
    )
    dirichlet_alpha: float = option(0.5, "concentration", read_by="dirichlet, inner-dirichlet", above=0)
    lognormal_sigma: float = option(2.0, "spread of the sizes of a class's pieces", read_by="distribution", low=0)
    natural_id_column: str = option("", "column of the dataset that says whose an image is", read_by="natural-id")
    min_client_images: int = option(10, "training images that every client must have at least", low=1)
    validation_fraction: float = option(
        0.0,
        "share, below 1, of each client's training images that is held out of training and takes the place of its test"
        " images, to choose options without test data; 0: clients are evaluated on their test images",
        low=0,
    )
    augmentation: str = option(
        "crop-flip",
        "of training images, also while fine-tuning: crop is a random one with padding of an eighth of image-size,"
        " resized-crop a random part of 8 to 100 % that is resized, flip a horizontal one in half of the images; or"
        " your own function of a float batch (N, C, H, W) in 0..1: my_module:augment",
        choices=("crop-flip", "crop", "resized-crop-flip", "none"),
        import_path=True,
    )
    num_server_rounds: int = option(80, "K: communication rounds", low=1)
    num_local_epochs: int | float = option(
        4,
        "tau: epochs of each participant in a round; a fraction is the first batches of an epoch, rounded up",
        above=0,
    )
    num_local_steps: int = option(
        0, "mini-batches of each participant in a round, in place of num-local-epochs; 0: those epochs", low=0
    )
    num_head_epochs: int | float = option(4, "epochs on the head before those on the body", read_by="fedrep", low=0)
    fraction_train: float = option(0.1, "f: share of the clients that train in a round", above=0, high=1)
    min_clients_per_round: int = option(
        0, "trained clients that a round needs; 0: as many as were drawn, failed ones being replaced", low=0
    )
    max_round_retries: int = option(2, "times that a round asks other clients in place of failed ones", low=0)
    batch_size: int = option(50, "training images per step", low=1)
    learning_rate: float = option(
        0.1, "in the first round, above 0; with a task 0, its default, takes that of the module's own hyper-parameters"
    )
    learning_rate_decay: float = option(
        0.1, "factor on the learning rate after half and after three quarters of the rounds", above=0, high=1
    )
    inner_learning_rate: float = option(0.1, "alpha, of inner steps", read_by="per-fedavg, pfedme", low=0)
    inner_learning_rate_decay: float = option(0.1, "the same for alpha", read_by="per-fedavg, pfedme", above=0, high=1)
    num_inner_steps: int = option(5, "K: inner steps on each batch", read_by="pfedme", low=1)
    momentum: float = option(0.9, "of SGD; starts from zero in every round", low=0, high=1)
    weight_decay: float = option(0.0, "of SGD, on the trained part only", low=0)
    proximal_mu: float = option(
        0.01,
        "strength of the pull to the received model; lambda of ditto and pfedme",
        read_by="fedprox, fedprox-babu, ditto, pfedme",
        low=0,
    )
    server_optimizer: str = option(
        "none",
        "what the server makes of the mean of the clients' weights: none takes it; momentum, adam and yogi take its"
        " difference to the weights before as a gradient, as Flower's FedAvgM, FedAdam and FedYogi do",
        choices=("none", "momentum", "adam", "yogi"),
    )
    server_learning_rate: float = option(
        0.0, "of the server's optimizer; 0: 1 for momentum, 0.01 for adam and yogi", low=0
    )
    server_momentum: float = option(0.9, "of the server's optimizer; beta 1 of adam and yogi", low=0, high=1)
    server_second_momentum: float = option(0.99, "beta 2 of adam and yogi", low=0, high=1)
    server_tau: float = option(0.001, "added to the root of the second moment of adam and yogi", above=0)
    clipping_norm: float = option(0.0, "greatest L2 norm of a client's update of what it shares; 0: any", low=0)
    noise_multiplier: float = option(
        0.0, "standard deviation of the noise on what a client shares, in clipping norms; 0: none", low=0
    )
    finetune_part: str = option("full", "what fine-tuning trains", choices=("head", "body", "full"))
    num_finetune_epochs: int = option(5, "epochs of fine-tuning on a client's own data", low=0)
    finetune_learning_rate: float = option(
        0.001,
        "while fine-tuning, above 0; the default is the paper's decayed rate of the last rounds, and with a task 0, its"
        " default, takes the rate of the last round",
    )
    evaluate_every: int = option(
        10, "rounds between two evaluations on all clients; the last round is always evaluated", low=1
    )
    test_batch_size: int = option(
        1000,
        "test images per batch at most; a client's whole test set should fit, because batch norm"
        " uses the statistics of the test batch",
        low=1,
    )
    precision: str = option(
        "auto",
        "Lightning precision; auto is bf16-mixed where GPU or CPU have it, else 16-mixed on GPU, else 32-true;"
        " 64-true also keeps, averages and sends weights in float64",
        choices=("auto", "bf16-mixed", "16-mixed", "32-true", "64-true"),
    )
    num_threads: int = option(
        1, "CPU threads of one client's training; part of what makes numbers repeat to the bit", low=1
    )
    cohort_size: int = option(
        0,
        "clients of a node that are trained together, as one model with a leading axis of clients; 1: one after"
        " another; 0: 1 on a CPU, 10 on a GPU",
        low=0,
    )
    trainer_options: str = option(
        "",
        "arguments of Lightning's Trainer as JSON; trainer.gradient_clip_val=1 and the like are gathered here",
    )
    engine: str = option(
        "local",
        "what carries messages between server and clients under lit-fedbabu run: local are processes of this machine,"
        " flower is Flower with its SuperLink and Ray, which flwr run always is",
        choices=("local", "flower"),
    )
    logger: str = option(
        "", "loggers beside TensorBoard: csv, wandb or mlflow, several with commas between them; they change no number"
    )
    output_dir: str = option("tb_logs", "folder of run folders")
    run_name: str = option("", "name of the run's folder; empty: made from dataset, algorithm, seed and time")
    resume: str = option("", "folder of a run that was stopped, to be continued after its last whole round")
    seed: int = option(42, "of the split, the initial model, the sampling and every client", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(getattr(self, field.name), field)
            object.__setattr__(self, field.name, value)
        check_together(self)
