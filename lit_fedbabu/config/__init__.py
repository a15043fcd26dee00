"""The options of an experiment: one frozen dataclass with the keys of ``[tool.flwr.app.config]``."""

import dataclasses
from typing import Any, Self

from lit_fedbabu.config.derived import Derived
from lit_fedbabu.config.options import checked, option
from lit_fedbabu.config.rules import RATES, TUNED, check_together

AGGREGATORS = ("mean", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-bound")


@dataclasses.dataclass(frozen=True)
class Config(Derived):
    """One experiment. Field ``num_clients`` is the key ``num-clients``; defaults are the paper's.

    Values are checked when the object is made.

    Raises:
        InputError: a value has the wrong type or lies outside its limits.
    """

    algorithm: str = option(
        "fedbabu",
        "method: fedbabu, fedavg, fedper, fedrep, lg-fedavg, fedbn, fedprox, fedprox-babu, ditto, per-fedavg, pfedme,"
        " moon, moon-babu, fedrod, fednova, fednova-babu, feddyn, feddyn-babu, ifca, feddbe, pfedfda, fedetf,"
        " scaffold, scaffold-babu, apfl, fedala, fedas, fedpac, local or centralized; or the import path of a"
        " lit_fedbabu.Algorithm of your own, such as my_module:method",
    )
    model_name: str = option(
        "FourConvNet",
        "FourConvNet, MobileNet, ResNet18, a network of timm such as timm:resnet18, or the import path of a function of"
        " your own, build(num_classes, norm, channels), such as my_package.my_module:build",
    )
    pretrained: bool = option(False, "true: a network of timm starts from pretrained weights of the Hugging Face hub")
    initial_weights: str = option(
        "",
        "file of weights to start from: a state dict (.pt), .safetensors, or a checkpoint of this package; those whose"
        " name and shape fit are taken, the others stay random; empty: all are random",
    )
    initial_weights_digest: str = option("", "SHA-256 of that file; a run sets it, and refuses any other file")
    norm: str = option(
        "batch",
        "normalization layers: batch uses the statistics of each batch, as in the paper; batch-running has running"
        " statistics, which are shared, kept and frozen with the part they are in; group normalizes each image alone",
        choices=("batch", "batch-running", "group"),
    )
    trainable: str = option(
        "all",
        "what of the body trains: all; last:N, its last N blocks; norm, its normalization layers; lora:R, adapters of"
        " rank R beside its linear layers; the rest is frozen and does not travel",
    )
    task: str = option(
        "",
        "import path of a lit_fedbabu.Task of your own, such as my_module:task; options of images and of the models"
        " above are then not used; empty: classify images",
    )
    dataset: str = option(
        "uoft-cs/cifar10",
        'hub name "owner/name" or "owner/name:subset", a folder of images or tables, or "digits"',
    )
    label_column: str = option("", "column of the dataset with the labels; empty: its only label column")
    class_names: str = option(
        "",
        "names of the classes by their numbers, such as cat,dog; empty: the dataset's; partitioner=sites needs them",
        several=True,
    )
    normalization: str = option(
        "data",
        "mean and standard deviation of each channel: data takes those of the dataset's training images, imagenet those"
        " of ImageNet, as the paper's code does, none leaves pixels at 0 to 1",
        choices=("data", "imagenet", "none"),
    )
    image_size: int = option(32, "height and width in pixels that every image is resized to", low=8, high=1024)
    partitioner: str = option(
        "classes",
        "how images are dealt to clients: classes, shards, pathological, distribution, dirichlet, inner-dirichlet, iid,"
        " linear, square, exponential or natural-id; sites: nothing is dealt, every SuperNode is a client with images"
        " of its own, and dataset is only a name",
    )
    num_clients: int = option(100, "clients; with partitioner=sites, the number of SuperNodes", low=1)
    num_new_clients: int = option(
        0,
        "clients, the last ones, that train in no round; they are fine-tuned at the end and reported separately",
        low=0,
    )
    num_classes_per_client: int = option(
        2, "s of the paper: classes or shards per client", read_by="classes, shards, pathological, distribution", low=1
    )
    dirichlet_alpha: float = option(0.5, "concentration parameter alpha", read_by="dirichlet, inner-dirichlet", above=0)
    lognormal_sigma: float = option(2.0, "spread of the sizes of a class's pieces", read_by="distribution", low=0)
    natural_id_column: str = option("", "column of the dataset that names the owner of an image", read_by="natural-id")
    min_client_images: int = option(
        10, "least number of training images of a client; a split with fewer is refused", low=1
    )
    validation_fraction: float = option(
        0.0,
        "share, below 1, of each client's training images that is held out of training and used in place of its test"
        " images, to choose options without test data; 0: evaluate on test images",
        low=0,
    )
    augmentation: str = option(
        "crop-flip",
        "of training images, also in fine-tuning: crop pads by an eighth of image-size and crops at random,"
        " resized-crop resizes a random part of 8 to 100 % of the area, flip mirrors half of the images; or the import"
        " path of a function of your own of a float batch (N, C, H, W) in 0..1, such as my_module:augment",
        choices=("crop-flip", "crop", "resized-crop-flip", "none"),
        import_path=True,
    )
    num_server_rounds: int = option(80, "K: communication rounds", low=1)
    num_local_epochs: int | float = option(
        4, "tau: local epochs of a client in a round; of a fraction the first batches, rounded up", above=0
    )
    num_local_steps: int = option(
        0, "local mini-batches of a client in a round, in place of num-local-epochs; 0: epochs", low=0
    )
    num_head_epochs: int | float = option(
        4, "epochs on the head, before num-local-epochs on the body", read_by="fedrep, fedpac", low=0
    )
    fraction_train: float = option(0.1, "f: share of the clients that train in a round", above=0, high=1)
    min_clients_per_round: int = option(
        0, "clients that must finish a round; 0: all that were drawn, or others in their place", low=0
    )
    max_round_retries: int = option(2, "how often a round asks other clients in place of failed ones", low=0)
    server_mode: str = option(
        "rounds",
        "rounds: the server asks the clients of a round and waits for them; buffered (FedBuff): as many train at all"
        " times, and the server makes a step, which counts as a round, whenever buffer-size updates have come, each"
        " weighted by 1 / sqrt(1 + the steps since its client began); for sites, or with client-speeds",
        choices=("rounds", "buffered"),
    )
    buffer_size: int = option(
        0,
        "K: updates that make a step; 0: 10, as in the paper, or as many as train at once if these are fewer",
        read_by="buffered",
        low=0,
    )
    round_timeout: float = option(
        0.0, "minutes that a round waits for clients; 0: 120 with partitioner=sites, else 720", low=0
    )
    round_deadline_s: float = option(
        0.0,
        "seconds that a round (with secure-aggregation each of its four steps) and an evaluation wait for answers;"
        " later ones are discarded, and the round goes on with those that came, if there are min-clients-per-round or"
        " else one; for sites, or with client-speeds in simulated seconds; 0: round-timeout",
        low=0,
    )
    over_selection: float = option(
        1.0,
        "how many times as many clients as fraction-train says are asked, of which the first that answer count; for"
        " sites, or with client-speeds",
        low=1,
        high=10,
    )
    client_speeds: str = option(
        "",
        "lognormal:S gives simulated clients speeds, by the seed, and results simulated seconds: the logarithm of the"
        " seconds for a sample has the deviation S; empty: none",
    )
    batch_size: int = option(
        50,
        "training images per step; with privacy=sample on average, and the size that loaders of a task have",
        low=1,
    )
    learning_rate: float = option(
        0.1, "of SGD in the first round, above 0; with a task the default is 0, the rate of the module itself"
    )
    learning_rate_decay: float = option(
        0.1, "factor on the learning rate after half of the rounds, and again after three quarters", above=0, high=1
    )
    inner_learning_rate: float = option(0.1, "alpha, of the inner steps", read_by="per-fedavg, pfedme", low=0)
    inner_learning_rate_decay: float = option(
        0.1, "the same factor for alpha", read_by="per-fedavg, pfedme", above=0, high=1
    )
    num_inner_steps: int = option(5, "inner steps on each batch, K", read_by="pfedme", low=1)
    momentum: float = option(0.9, "of SGD; its buffer starts from zero in every round", low=0, high=1)
    weight_decay: float = option(0.0, "of SGD, on the trained part only", low=0)
    proximal_mu: float = option(
        0.01,
        "mu, the weight of the proximal term that pulls to the received model; lambda of ditto and pfedme",
        read_by="fedprox, fedprox-babu, ditto, pfedme",
        low=0,
    )
    moon_mu: float = option(
        1.0, "mu, the weight of the model-contrastive loss beside the cross-entropy", read_by="moon, moon-babu", low=0
    )
    moon_temperature: float = option(
        0.5, "tau, which cosines of features are divided by", read_by="moon, moon-babu", above=0
    )
    dynamic_alpha: float = option(
        0.01, "alpha, the weight of the term that pulls to the received model", read_by="feddyn, feddyn-babu", low=0
    )
    num_clusters: int = option(2, "shared models, of which each client takes the best for it", read_by="ifca", low=1)
    dbe_kappa: float = option(
        50.0, "kappa, the weight of the term that draws mean features to those of all clients", read_by="feddbe", low=0
    )
    dbe_momentum: float = option(
        1.0, "mu, the share of a batch in the running mean of features", read_by="feddbe", above=0, high=1
    )
    mixing_alpha: float = option(
        0.5, "alpha, the part of a client's own model in its mixture at first", read_by="apfl", low=0, high=1
    )
    num_mixing_layers: int = option(
        1, "p, the last layers, which begin a round as a mixture; all if there are fewer", read_by="fedala", low=1
    )
    num_mixing_epochs: int | float = option(
        0.8, "epochs of a pass that learns the mixture; s of the paper as a fraction", read_by="fedala", low=0
    )
    mixing_learning_rate: float = option(1.0, "eta, of the mixture's weights", read_by="fedala", above=0)
    num_alignment_epochs: int | float = option(
        1, "epochs that fit the received body to the client's features, before others", read_by="fedas", low=0
    )
    alignment_lambda: float = option(
        1.0,
        "lambda, the weight of the term that draws features to everyone's mean of their class",
        read_by="fedpac",
        low=0,
    )
    num_etf_turns: int = option(
        20, "turns of the frame of classes and the projection, after the epochs of fine-tuning", read_by="fedetf", low=0
    )
    etf_learning_rate: float = option(
        0.1, "of the frame in these turns; the projection has half of it", read_by="fedetf", above=0
    )
    aggregator: str = option(
        "mean",
        "what makes one model of the clients': their mean, weighted by training samples; median, trimmed-mean, krum,"
        " multi-krum or bulyan, which a few clients cannot move far and which weight all alike; norm-bound, a mean of"
        " updates that are scaled down; or the import path of a Flower strategy of your own",
        choices=AGGREGATORS,
        import_path=True,
    )
    num_malicious: int = option(
        1, "clients of a round that may send anything", read_by="krum, multi-krum, bulyan", low=0
    )
    trim_fraction: float = option(
        0.2, "of a round's clients, left out at either end of every weight", read_by="trimmed-mean", low=0, high=0.49
    )
    norm_bound: float = option(
        0.0, "largest L2 norm of an update; 0: the median of the round's", read_by="norm-bound", low=0
    )
    server_optimizer: str = option(
        "none",
        "none: what the aggregator makes is the new model; momentum, adam, yogi: its difference to the old model"
        " is taken as a gradient, as in Flower's FedAvgM, FedAdam and FedYogi",
        choices=("none", "momentum", "adam", "yogi"),
    )
    server_learning_rate: float = option(
        0.0, "of the server's optimizer; 0: 1 for momentum, 0.01 for adam and yogi", low=0
    )
    server_momentum: float = option(0.9, "of the server's optimizer; beta 1 of adam and yogi", low=0, high=1)
    server_second_momentum: float = option(0.99, "beta 2 of adam and yogi", low=0, high=1)
    server_tau: float = option(0.001, "added to the root of the second moment of adam and yogi", above=0)
    privacy: str = option(
        "auto",
        "differential privacy: none; local: each adds noise to its update before it is sent, so that it is"
        " protected from everyone; central: the server, which is trusted, adds noise to the sum of a round's updates,"
        " so that clients are protected from whoever gets the shared weights; sample: clients add noise to each step of"
        " their training (DP-SGD), so that each sample is protected from everyone; auto: local with a noise-multiplier,"
        " else none",
        choices=("auto", "none", "local", "central", "sample"),
    )
    clipping_norm: float = option(
        0.0,
        "largest L2 norm of a client's shared update, with privacy=sample of the gradient of one sample; longer ones"
        " are scaled; 0: no clipping",
        low=0,
    )
    noise_multiplier: float = option(
        0.0,
        "standard deviation of Gaussian noise, as a multiple of clipping-norm: on each shared update with local, on"
        " their sum with central privacy, on the sum of a batch's gradients with sample; 0: none",
        low=0,
    )
    adaptive_clipping: bool = option(
        False,
        "true: with central privacy clipping-norm is that of the first round, and follows the median norm of updates",
        read_by="central",
    )
    client_sampling: str = option(
        "poisson",
        "how central privacy draws the clients of a round, from the system's entropy: poisson, each by itself, or"
        " fixed, as many in every round, which costs more epsilon",
        choices=("poisson", "fixed"),
        read_by="central",
    )
    delta: float = option(1e-5, "delta of (epsilon, delta)-differential privacy", above=0, high=0.1)
    max_epsilon: float = option(
        0.0, "the run ends, with its results, before the round after which epsilon would be more; 0: no limit", low=0
    )
    secure_aggregation: bool = option(
        False,
        "true: clients mask their updates so that the server learns the sum of a round's updates and no single one",
    )
    secure_threshold: int = option(
        0,
        "clients of a round, more than half, that must stay to its end, and of which so many together could take masks"
        " off; 0: two thirds",
        read_by="secure-aggregation",
        low=0,
    )
    quantization_range: float = option(
        8.0,
        "largest change of a weight in a round of secure aggregation, which sums it in steps of 2^-30 of this; a client"
        " whose update is larger fails",
        read_by="secure-aggregation",
        above=0,
        high=1e6,
    )
    finetune_part: str = option(
        "full",
        "part of the model that fine-tuning trains; knn trains none: features of a client's training images are stored,"
        " and the nearest of them vote beside the model (kNN-Per); of a task also parts that it names, as in head+neck",
        choices=TUNED,
        parts=True,
    )
    num_finetune_epochs: int = option(
        5, "epochs of fine-tuning on a client's own data", read_by="head, body, full", low=0
    )
    finetune_learning_rate: float = option(
        0.001,
        "of SGD in fine-tuning, above 0; the default is the rate of the paper's last rounds; with a task the default is"
        " 0, which takes the rate of the run's last round",
        read_by="head, body, full",
    )
    knn_neighbors: int = option(10, "k, the nearest training images, which vote", read_by="knn", low=1)
    knn_weight: float = option(
        -1.0,
        "lambda, from 0 to 1, the weight of their votes; -1: every client takes the one of 0, 0.1, ..., 1 that is best"
        " on a fifth of its training images, which are not stored meanwhile",
        read_by="knn",
        low=-1,
        high=1,
    )
    evaluate_every: int = option(10, "clients are evaluated after every so many rounds, and after the last", low=1)
    evaluate_clients: int = option(
        0,
        "how many clients are evaluated and fine-tuned, the same ones in every round, drawn by the seed; means are then"
        " estimates with an interval; 0: all. Clients that had no part are all evaluated",
        low=0,
    )
    test_batch_size: int = option(
        1000, "largest batch of test images; a client's test set should fit, for batch norm uses its statistics", low=1
    )
    precision: str = option(
        "auto",
        "Lightning precision; auto is bf16-mixed where GPU or CPU are faster by it, else 16-mixed on GPU, else 32-true;"
        " 64-true also keeps, averages and sends weights in float64",
        choices=("auto", "bf16-mixed", "16-mixed", "32-true", "64-true"),
    )
    num_threads: int = option(
        1, "CPU threads that train one client; another number changes the last bits of results", low=1
    )
    cohort_size: int = option(
        0,
        "clients of a node that are trained together, as one model with a leading axis of clients; 0 or 1: one after"
        " another",
        low=0,
    )
    trainer_options: str = option(
        "", "arguments of Lightning's Trainer as JSON; trainer.NAME=value is an easier way to set them"
    )
    engine: str = option(
        "local",
        "what carries messages between server and clients in lit-fedbabu run: local uses processes of this machine,"
        " ray those of a Ray cluster, flower uses Flower's SuperLink and Ray, as flwr run always does; or the import"
        " path of a function of your own that takes the Config and gives a Flower Grid",
        choices=("local", "ray", "flower"),
        import_path=True,
    )
    ray_address: str = option(
        "",
        "host:port of a Ray cluster that this machine is a node of, or auto, the one that Ray finds; empty: a Ray is"
        " started here for the run",
        read_by="ray",
    )
    logger: str = option(
        "",
        "loggers in addition to TensorBoard: csv, wandb, mlflow, or the import path of a function of your own that"
        " takes the run's folder and gives a Lightning Logger; several as in csv,mlflow",
        several=True,
    )
    output_dir: str = option("tb_logs", "folder in which the folders of runs are made")
    run_name: str = option("", "name of the run's folder; empty: made from dataset, algorithm, seed and time")
    resume: str = option("", "folder of a stopped run, which goes on after its last finished round")
    seed: int = option(
        42, "of the split, the initial model, the sampling of clients and their training", low=0, high=2**63 - 1
    )

    def __new__(cls, *values: Any, **options: Any) -> Self:
        config = super().__new__(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        object.__setattr__(config, "given", frozenset({*names[: len(values)], *options}))
        return config

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(getattr(self, field.name), field)
            if self.kind.has_own_rates and field.name in RATES and field.name not in self.given:
                value = 0.0
            object.__setattr__(self, field.name, value)
        check_together(self)
