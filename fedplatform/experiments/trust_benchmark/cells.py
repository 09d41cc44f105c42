"""The cells of the benchmark: one rule against one attack on one split with one seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.specification import nearest
from fedplatform.core.vectors import combine
from fedplatform.data.error import DataError
from fedplatform.data.partition import PARTITIONS, Partition
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import Aggregator

COMMON: Mapping[str, object] = {"model": "small_cnn(width=8)", "algorithm": "fedbn_p", "learning_rate": 0.05}
# Beside each: CPU seconds of a cell under the plain mean without an attack, on one core of a two-core server.
DATASETS: Mapping[str, Mapping[str, object]] = {
    "mnist": {"size": 28, "scans": 3500, "rounds": 10, "batch_size": 32},  # 8 s
    "br35h": {"size": 64, "scans": 0, "rounds": 12, "batch_size": 16},  # 27 s
    "alzheimer": {"size": 64, "scans": 4500, "rounds": 10, "batch_size": 32},  # 30 s
    "lc25000": {"size": 64, "scans": 2500, "rounds": 12, "batch_size": 16},  # 29 s
    "lesions": {"size": 64, "scans": 0, "rounds": 12, "batch_size": 8, "local_epochs": 2},  # 28 s
    "cifar10": {"size": 32, "scans": 5000, "rounds": 15, "batch_size": 32},  # 20 s
}

HONEST_ONLY = "honest_only"
REFERENCES = (NEAREST_NEIGHBOUR, CENTRAL, HONEST_ONLY)
OURS = "trust"
RULES = (
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "fltrust",
    "dnc",
    "signguard",
    "flame",
    "nnm+median",
    "nnm+trimmed_mean",
    "nnm+multi_krum",
    "nnm+geometric_median",
    "nnm+centered_clipping",
    OURS,
    "network+trust",
    "policy+trust",
    "hybrid+trust",
)
ATTACKS = (
    "none",
    "scaling",
    "partial_scaling",
    "sign_flip",
    "gaussian_noise",
    "label_flip",
    "alie",
    "min_max",
    "min_sum",
    "ipm",
    "mimic",
    "fingerprint_aware",
    "sleeper",
)
SPLITS = ("iid", "dirichlet_0.1")
SEEDS = (0, 1, 2)
SETTING = ["dataset", "split", "hospitals", "byzantine", "rounds"]
CELL = ["dataset", "split", "rule", "attack", "hospitals", "byzantine", "rounds", "seed"]


@dataclass(frozen=True)
class Cell:
    """One rule against one attack on one split with one seed; ``settings`` are all others of the experiment."""

    dataset: str
    split: str
    rule: str
    attack: str
    seed: int
    settings: Mapping[str, object] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """How a person, and a file, call the cell."""
        return f"{self.split}, {self.rule} against {self.attack}, seed {self.seed}"

    def without_rule(self) -> Experiment:
        """The experiment under the plain mean. Raises :class:`ExperimentError` where it is infeasible."""
        return Experiment.from_settings(
            {**self.settings, "rule": "mean", "attack": self.attack, "seed": self.seed}
            | {"partition": partition_of(self.split)}
        )

    def experiment(self) -> Experiment:
        """What is run; the rule has never seen the attack. Raises ValueError where rule or attack is infeasible.

        ``trust@3`` is the rule ``trust`` over groups of 3, by secure aggregation.
        """
        experiment = self.without_rule()
        name, _, size = self.rule.partition("@")
        rule = parse_rule(name, f=experiment.f).without(experiment.attack_slug)
        return experiment.replace(rule=rule, privacy=f"grouped(size={size})" if size else "none")

    def central(self) -> Experiment:
        """The same network with the same budget on all scans in one place."""
        return self.without_rule().replace(hospitals=1, byzantine=0, f=0, quorum=1, partition="iid")

    def honest_only(self) -> Experiment:
        """The mean under a server that knows who lies and leaves them out: their scans are lost, and no more."""
        experiment = self.without_rule()
        return experiment.replace(rule=HonestMean(experiment.adversary().hospital_ids))

    def key(self) -> dict[str, object]:
        """The columns that tell cells apart."""
        return {name: getattr(self, name, self.settings.get(name)) for name in CELL}


@dataclass(frozen=True)
class HonestMean(Aggregator):
    """The mean of all but ``attackers``: no rule, for no server knows them, but what the best judge could reach."""

    byzantine: tuple[str, ...]

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        hostile = np.array([name in self.byzantine for name in evidence.hospital_ids])
        weights = ~hostile / max((~hostile).sum(), 1)
        return Aggregate(combine(weights, deltas), weights, hostile)


@dataclass(frozen=True)
class Benchmark:
    """Which cells to fill: every rule against every attack, on every split, for every seed.

    ``settings`` are those of an :class:`Experiment`, the same for every rule: optimiser, rounds, root set, attackers.
    Rules, attacks and splits are names as on the command line. Three references come first on each split and seed: the
    nearest neighbour by raw pixels, the same network trained centrally, and the mean of the honest hospitals alone.
    """

    dataset: str
    settings: Mapping[str, object]
    rules: tuple[str, ...] = RULES
    attacks: tuple[str, ...] = ATTACKS
    splits: tuple[str, ...] = SPLITS
    seeds: tuple[int, ...] = SEEDS

    @staticmethod
    def settings_of(dataset: str, changes: Mapping[str, object]) -> dict[str, object]:
        """The resolved settings of a data set by name, some of them changed; rule, attack, split and seed left out.

        Raises :class:`ExperimentError` where they are infeasible.
        """
        given = {"data": dataset, "rule": "mean", **COMMON, **DATASETS[dataset], **changes}
        open_ones = ("rule", "attack", "partition", "seed")
        resolved = Experiment.from_settings(given).settings()
        return {name: value for name, value in resolved.items() if name not in open_ones}

    def cells(self) -> list[Cell]:
        """All cells in order: a table that is cut off after any of them is a smaller table, and not a torn one."""
        attacks = sorted(self.attacks, key=lambda attack: attack != "none")
        pairs = [(reference, "none") for reference in REFERENCES]
        pairs += [(rule, attack) for attack in attacks for rule in self.rules]
        return [
            Cell(self.dataset, split, rule, attack, seed, self.settings)
            for seed, split, (rule, attack) in itertools.product(self.seeds, self.splits, pairs)
        ]


def partition_of(split: str) -> Partition:
    """A partition by its short name: ``iid``, ``dirichlet_0.5``, ``label_skew_0.9``, ``quantity_skew_1``, ``site``."""
    kind, _, value = (split, "", "") if split in PARTITIONS else split.rpartition("_")
    try:
        return PARTITIONS[kind](*[float(value)] if value else [])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        known = ("iid", "dirichlet_0.5", "label_skew_0.9", "quantity_skew_1", "site")
        raise ExperimentError(f"unknown split {split!r}{nearest(split, known)}; known: {', '.join(known)}") from error
