"""Every setting as a person meets it, on a command line and in a YAML file; its class gives it a type and limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """What a setting means, its default as a YAML file has it, and its kind: a type, or the words to choose from.

    The tables below name classes without importing them, so that ``--help`` is quick; a test holds them against
    :class:`~fedplatform.experiments.experiment.Experiment` and :class:`~fedplatform.defence.settings.DefenceSettings`.
    """

    help: str
    default: str | int | float | None = None
    kind: type | tuple[str, ...] = str
    shown: str = ""  # the default in words, where it is derived from other settings


# Of what computes: an experiment has them as settings, other commands as options of their own.
COMPUTE: dict[str, Option] = {
    "device": Option(
        "what networks compute on: auto (a CUDA GPU where the process sees one), cpu, cuda, cuda:1, mps (untried); a "
        "run can go on on another",
        "auto",
    ),
    "precision": Option(
        "numbers inside networks: float32, or bf16 to multiply and convolve in; weights, sums and losses stay float32",
        "float32",
        ("float32", "bf16"),
    ),
    "kernels": Option(
        "on a GPU: fast, whose last bits differ from run to run, or deterministic, slower and the same bits again; a "
        "CPU always gives the same bits",
        "fast",
        ("fast", "deterministic"),
    ),
}

EXPERIMENT: dict[str, Option] = {
    "data": Option(
        "data set: a name (see 'fedplatform data list'), the path of a folder, .npz or .parquet file, or your own "
        "class as FILE.py:CLASS",
        "lesions",
    ),
    "size": Option("resize every scan to so many pixels a side", 64, int),
    "scans": Option(
        "use at most so many scans, drawn by the seed in whole groups, train, validation and test in proportion (0: "
        "all)",
        0,
        int,
    ),
    "split": Option(
        "how the test set is split: group_safe keeps a patient's scans together, and a published test set as it is; "
        "redrawn ignores what was published; random cuts patients, and overestimates accuracy",
        "group_safe",
        ("group_safe", "redrawn", "random"),
    ),
    "patients": Option(
        "which scans are of one patient: given (as folders, DICOM headers or a column say), none, a pattern with one "
        "group for file names, as '^(p[0-9]+)_', or the name of a Parquet column",
        "given",
    ),
    "subgroups": Option(
        "columns of a Parquet file by which figures are split, NAME,NAME... (sex, age, scanner); numbers in bands "
        "of 20, codes below 10 as they are. The subgroup of each test scan goes to the server",
        "none",
    ),
    "partition": Option(
        "how scans are dealt to hospitals: iid, dirichlet(concentration=0.5), label_skew(share=0.7), "
        "quantity_skew(sigma=1.0), site",
        "iid",
    ),
    "hospitals": Option("number of hospitals, Byzantine ones included; in a file, or a list of them", 10, int),
    "places": Option("where each hospital lives; a file lists them under 'hospitals' (docs/cluster.md)", shown="none"),
    "outside": Option(
        "hospitals outside the cluster, NAME,NAME...: they bring their own data and join through the gateway, see "
        "docs/joining.md",
        shown="none",
    ),
    "byzantine": Option("how many of the hospitals are Byzantine, chosen by the seed", 3, int),
    "attack": Option(
        "what Byzantine hospitals do: none, label_flip, backdoor, sign_flip, scaling, partial_scaling, gaussian_noise, "
        "free_rider, sleeper, alie, ipm, min_max, min_sum, mimic, fingerprint_aware, poisoned_fl, mpaf, fang_krum, "
        "fang_trimmed_mean, byz_mean, model_replacement, neurotoxin, dba, edge_case, on_off, whitewashing, "
        "slander_in_groups, slander_by_copying, or your own as FILE.py:CLASS",
        "none",
    ),
    "rule": Option(
        "aggregation rule: trust (with its scorer in front: robust, network, policy or hybrid, as network+trust), "
        "mean, weighted_mean, median, trimmed_mean, krum, multi_krum, bulyan, geometric_median, centered_clipping, "
        "rfa, fltrust, dnc, signguard, flame, foolsgold, fldetector, deepsight, lasa, alignins (with nnm, bucketing or "
        "norm_clip in front, as nnm+krum), or your own as FILE.py:CLASS",
        "trust",
    ),
    "privacy": Option(
        "what the server sees of the updates: none (every single one), or grouped(size=3): by secure aggregation only "
        "means of groups of at least so many hospitals, drawn anew each round; grouped(size=5, clip=1.0, noise=2.0) "
        "adds differential privacy of whole hospitals",
        "none",
    ),
    "transport": Option(
        "how updates travel to the server: exact, as float32, fastest on one machine; lossless, the same bits in 66 to "
        "80 % of the bytes; half, rounded to half precision, in half of the bytes. Weights are always sent exact",
        "exact",
        ("exact", "lossless", "half"),
    ),
    "f": Option(
        "how many Byzantine hospitals in a round the rule is built to withstand",
        3,
        int,
        shown="as many as there are Byzantine, times the participation",
    ),
    "participation": Option("share of the hospitals that is drawn by the seed for each round", 1.0, float),
    "server_optimiser": Option(
        "what the server does with the aggregate: average (adds it), fedavgm(learning_rate=1.0, momentum=0.9), "
        "fedadam(learning_rate=0.01), fedyogi(learning_rate=0.01), fedadagrad(learning_rate=0.1)",
        "average",
    ),
    "model": Option(
        "classifier: small_cnn, small_resnet, efficientnet_lite0, experts, any timm model by its name (resnet18), or "
        "FILE.py:CLASS; "
        "masked_autoencoder, noise_predictor and residual_sensor are the networks of a defence",
        "small_cnn",
    ),
    "weights": Option(
        "what the network starts from: none (random), imagenet (timm's networks and efficientnet_lite0), a "
        ".safetensors or .pth file, the folder of an earlier run, or models:/NAME of MLflow",
        "none",
    ),
    "freeze": Option(
        "what training leaves as it was loaded: body (all but the last layer), or layers by name, NAME,NAME..., each "
        "with all below it",
        "none",
    ),
    "algorithm": Option(
        "local training: fedavg, fedprox, fedbn, fedbn_p, silo_bn, fedper, fedrep, ditto, apfl, scaffold", "fedbn_p"
    ),
    "task": Option(
        "what a scan's label is: multiclass (one class), multilabel (any number of findings, each yes or no), ordinal "
        "(a grade: classes in order, lowest first)",
        "multiclass",
        ("multiclass", "multilabel", "ordinal"),
    ),
    "objective": Option(
        "loss that local training minimises: cross_entropy(label_smoothing=0.0), binary_cross_entropy (multilabel), "
        "ordinal, adversarial(epsilon=0.015, steps=1), trades(epsilon=0.015, beta=6.0), or generative (the network's "
        "own loss). Against classes of unequal size: cross_entropy(class_weights=balanced), "
        "binary_cross_entropy(class_weights=balanced), cross_entropy(logit_adjustment=1.0), cross_entropy(focal=2.0)",
        "cross_entropy",
        shown="the task's: cross_entropy, binary_cross_entropy, ordinal",
    ),
    "augmentation": Option(
        "data augmentation in training: none, mirror, orientation, anatomy, scanner, or your own as FILE.py:CLASS",
        "none",
    ),
    "sampling": Option(
        "what one epoch shows: scans, each once; or groups, as many scans drawn so that every group of a class (a "
        "patient, near-identical pictures) counts alike, however many scans it has; or classes, the same with every "
        "class as often as any other",
        "scans",
        ("scans", "groups", "classes"),
    ),
    "optimiser": Option("local optimiser", "sgd", ("sgd", "adamw")),
    "rounds": Option("rounds of broadcast, training and aggregation", 10, int),
    "patience": Option(
        "end after so many rounds without a better one on validation scans, by balanced accuracy (0: never); the best "
        "is kept beside the last in any case",
        0,
        int,
    ),
    "ema": Option(
        "answer with the exponential moving average of the global models, each counting so many times the next, as 0.8 "
        "(0: with the last model)",
        0.0,
        float,
    ),
    "local_epochs": Option("epochs that a hospital trains in one round", 1, int),
    "batch_size": Option("scans in a training step", 32, int),
    "learning_rate": Option("largest learning rate of local training", 0.05, float),
    "schedule": Option(
        "learning rate from round to round: cosine, constant, step(every=10, factor=0.1); with rounds in which it "
        "climbs, as cosine(warmup=2)",
        "cosine",
    ),
    "clip": Option(
        "largest L2 norm of the gradient of a local step: auto (1 with adamw, any with sgd), a number, or 0 for any",
        "auto",
    ),
    "momentum": Option("momentum of local SGD, reset in every round", 0.9, float),
    "weight_decay": Option("weight decay of local training", 1e-4, float),
    "root_size": Option("scans in the server's own clean root set (0: none)", 100, int),
    "quorum": Option("least usable updates for a round to count", 0, int, shown="a majority"),
    "deadline_s": Option(
        "seconds that a round waits for a hospital (0: 1800 at first, then ten times the longest answer, at least 120)",
        0.0,
        float,
    ),
    **COMPUTE,
    "seed": Option("seed of everything random: split, Byzantine hospitals, initial weights, batches, attack", 0, int),
}

DEFENCE: dict[str, Option] = {
    "autoencoder": Option("masked autoencoder of the detector", "masked_autoencoder"),
    "autoencoder_rounds": Option("rounds of training for the masked autoencoder", 10, int),
    "sensor": Option("network of the detector that is trained to recognise attacked scans", "residual_sensor"),
    "sensor_rounds": Option("rounds of training for the sensor", 8, int),
    "purifier": Option("noise predictor of the purifier", "noise_predictor(t_max=260)"),
    "purifier_rounds": Option("rounds of training for the purifier", 12, int),
    "sampler": Option("the purifier's sampler: one_shot, ddim, dpm_solver, ddpm", "one_shot"),
    "tuning_rounds": Option("rounds in which the classifier is tuned on purified scans", 6, int),
    "tuning_epsilon": Option(
        "attack through the purifier while the classifier is tuned, in pixels of [0, 1], 0 for none",
        None,
        float,
        shown="1.5 times the epsilon of adversarial training",
    ),
    "probe_depth": Option("noise step at which every scan is purified once, to measure what changes", 100, int),
    "usual_depth": Option("noise step for scans that are not flagged (0: not purified)", 0, int),
    "least_depth": Option("noise step for the least suspicious flagged scans", 75, int),
    "most_depth": Option("noise step for the most suspicious scans", 125, int),
    "copies": Option("purified copies of a flagged scan that vote", 8, int),
    "false_positive_rate": Option("share of clean scans that may be flagged", 0.05, float),
    "referral_rate": Option("share of clean scans that may be referred to a radiologist as too doubtful", 0.05, float),
}
