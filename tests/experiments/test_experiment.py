"""An experiment from words and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import ATTACKS, MinMax
from fedplatform.data.partition import PARTITIONS, Dirichlet
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings, recipe_names
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import MIXERS, RULES, Mixed, NearestNeighbourMixing, TrimmedMean
from fedplatform.learning.models import SmallCnn, TimmModel
from fedplatform.learning.training import ALGORITHMS, FedProx

PLUGINS = '''
from dataclasses import dataclass

import numpy as np
from torch import nn

from fedplatform.core.messages import Aggregate
from fedplatform.federated.aggregation import Aggregator


@dataclass(frozen=True)
class Smallest(Aggregator):
    """Takes the k smallest updates."""

    k: int = 1

    def aggregate(self, deltas, evidence):
        weights = np.zeros(len(deltas))
        weights[np.linalg.norm(deltas, axis=1).argsort()[: self.k]] = 1 / self.k
        return Aggregate((weights.astype(np.float32)[:, None] * deltas).sum(0), weights, weights == 0)


@dataclass(frozen=True)
class Doubling:
    """Sends twice the update."""

    def corrupt(self, own, situation):
        return 2 * own


@dataclass(frozen=True)
class Linear:
    """One layer."""

    def __call__(self, *, channels, num_classes, size):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, num_classes))
'''


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(PLUGINS)
    return file


def test_the_resolved_settings_make_an_equal_experiment() -> None:
    experiment = Experiment.from_settings(
        {"rule": "nnm+trimmed_mean", "attack": "min_max", "partition": "dirichlet(concentration=0.3)", "byzantine": 2}
    )
    again = Experiment.from_settings(yaml.safe_load(yaml.safe_dump(experiment.settings())))
    assert again == experiment
    assert again.settings() == experiment.settings()


def test_words_and_objects_make_the_same_experiment() -> None:
    words = Experiment.from_settings(
        {"rule": "nnm(f=2)+trimmed_mean(f=2)", "attack": "min_max(direction='std')", "algorithm": "fedprox(mu=0.1)",
         "model": "resnet18", "partition": "dirichlet(concentration=0.3)", "byzantine": 2}
    )  # fmt: skip
    objects = Experiment(
        rule=Mixed((NearestNeighbourMixing(f=2),), TrimmedMean(f=2)),
        attack=MinMax(direction="std"),
        algorithm=FedProx(mu=0.1),
        model=TimmModel("resnet18"),
        partition=Dirichlet(concentration=0.3),
        byzantine=2,
    )
    assert words == objects
    assert words.settings() == objects.settings()


def test_a_rule_withstands_as_many_as_there_are_attackers_unless_told_otherwise() -> None:
    assert Experiment.from_settings({"rule": "krum", "byzantine": 2}).rule == RULES["krum"](f=2)
    assert Experiment.from_settings({"rule": "krum", "byzantine": 2, "f": 1}).rule == RULES["krum"](f=1)
    assert Experiment.from_settings({"rule": "krum(f=3)", "byzantine": 2}).rule == RULES["krum"](f=3)


@settings(deadline=None, max_examples=30)
@given(
    rule=st.sampled_from(sorted(RULES)),
    mixers=st.lists(st.sampled_from(sorted(MIXERS)), max_size=2),
    f=st.integers(0, 1),
)
def test_every_rule_is_written_as_it_is_read(rule: str, mixers: list[str], f: int) -> None:
    from fedplatform.experiments.rule_text import describe_rule

    built = parse_rule("+".join([*mixers, rule]), f=f)
    assert parse_rule(describe_rule(built), f=9) == built


@pytest.mark.parametrize("name", [*ATTACKS, "none"])
def test_every_attack_has_its_slug(name: str) -> None:
    experiment = Experiment.from_settings({"attack": name})
    assert experiment.attack_slug == name
    assert Experiment.from_settings(experiment.settings()) == experiment


@pytest.mark.parametrize("name", list(PARTITIONS))
def test_every_partition_has_its_slug(name: str) -> None:
    slug = Experiment.from_settings({"partition": name}).split_slug
    assert slug == ("group_safe" if name == "iid" else f"group_safe+{name}")


def test_settings_of_a_partition_stand_in_its_slug() -> None:
    assert Experiment(partition=Dirichlet(0.25)).split_slug == "group_safe+dirichlet_0.25"


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_is_known_by_name(name: str) -> None:
    assert Experiment.from_settings({"algorithm": name}).settings()["algorithm"] == name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ruel": "mean"}, "unknown setting 'ruel'; did you mean 'rule'?"),
        ({"rule": "meen"}, "unknown aggregation rule 'meen'; did you mean 'mean'?"),
        ({"rule": "trimmed_mean(F=2)"}, "no setting 'F'; did you mean 'f'?"),
        ({"rule": "trimmed_mean(2)"}, "settings are written name=value"),
        ({"rule": "trimmed_mean(f=2.7)"}, "'trimmed_mean(f=2.7)': f is a whole number, got 2.7"),
        ({"rule": "multi_krum(m=2.5)"}, "m is a whole number, got 2.5"),
        ({"rule": "trust(root_steps=True)"}, "root_steps is a whole number, got True"),
        ({"rule": "bucketing(size=2.5)+mean"}, "size is a whole number, got 2.5"),
        ({"attack": "sleeper(patience=1.5)"}, "'sleeper(patience=1.5)': patience is a whole number, got 1.5"),
        ({"attack": "mimic(hospital=0.5)"}, "hospital is a whole number, got 0.5"),
        ({"model": "small_cnn(width='4')"}, "width is a whole number, got '4'"),
        ({"objective": "adversarial(epsilon=0.01, steps=2.5)"}, "steps is a whole number, got 2.5"),
        ({"privacy": "grouped(size=2.5)"}, "size is a whole number, got 2.5"),
        ({"rule": "krum", "hospitals": 4, "byzantine": 1}, "n >= 2f + 3, got n=4, f=1"),
        ({"rule": "trimmed_mean(f=5)"}, "n=10, f=5"),
        ({"attack": "sign_flp"}, "did you mean 'sign_flip'?"),
        ({"attack": "min_max(direction='up')"}, "up"),
        ({"model": "resnet19"}, "did you mean"),
        ({"partition": "dirichlet(concentration=-1)"}, "concentration > 0, got -1"),
        ({"byzantine": 10}, "at least one hospital must be honest, got 10 Byzantine of 10 hospitals"),
        ({"byzantine": 12}, "at least one hospital must be honest, got 12 Byzantine of 10 hospitals"),
        ({"attack": "alie", "byzantine": 0}, "needs at least one Byzantine hospital"),
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1, got 0"),
        ({"rounds": "many"}, "rounds"),
        ({"split": "by_picture"}, "split"),
        ({"rule": "fltrust", "root_size": 0}, "root"),
        ({"quorum": 11}, "the quorum is at most the number of hospitals in a round, got 11 of 10"),
        ({"rule": "nowhere.py:Rule"}, "no file"),
        ({"rule": "no_such_package:Rule"}, "cannot import"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.from_settings(wrong)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_lies_depends_on_the_seed_and_not_on_the_attack() -> None:
    byzantine = {attack: Experiment.from_settings({"attack": attack}).adversary().hospital_ids for attack in ATTACKS}
    assert len(set(byzantine.values())) == 1
    assert len({Experiment.from_settings({"seed": seed}).adversary().hospital_ids for seed in range(20)}) > 10


def test_a_users_own_objects_plug_in_by_their_file(plugins: Path) -> None:
    experiment = Experiment.from_settings(
        {"rule": f"{plugins}:Smallest(k=2)", "attack": f"{plugins}:Doubling", "model": f"{plugins}:Linear"}
    )
    assert experiment.rule.k == 2
    assert Experiment.from_settings(experiment.settings()) == experiment


def test_a_mixing_step_stands_in_front_of_a_users_own_rule(plugins: Path) -> None:
    experiment = Experiment.from_settings({"rule": f"nnm+{plugins}:Smallest"})
    assert experiment.rule_slug == "nnm+Smallest"


def test_a_missing_class_in_a_users_file_names_the_nearest(plugins: Path) -> None:
    with pytest.raises(ExperimentError, match="did you mean 'Smallest'"):
        Experiment.from_settings({"rule": f"{plugins}:Smalest"})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_an_experiment(name: str) -> None:
    Experiment.from_settings(load_settings(name))


def test_a_mistyped_recipe_names_the_nearest() -> None:
    with pytest.raises(ExperimentError, match="unknown recipe 'br35'; did you mean 'br35h'"):
        load_settings("br35")


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ExperimentError, match="must hold settings"):
        load_settings(str(file))
    file.write_text("a: [1")
    with pytest.raises(ExperimentError, match="is no YAML"):
        load_settings(str(file))


def test_models_of_timm_and_our_own_are_told_apart() -> None:
    assert Experiment.from_settings({"model": "resnet18"}).model == TimmModel("resnet18")
    assert Experiment.from_settings({"model": "small_cnn(width=8)"}).model == SmallCnn(width=8)
