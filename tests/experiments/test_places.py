"""A federation file lists its hospitals; what does not hold together is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedplatform.data.error import DataError
from fedplatform.experiments.engine import cohort_plan
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.places import Place
from fedplatform.learning.training import Trainer

BASE = {"byzantine": 0, "rule": "mean"}


def federation(*hospitals: object) -> Experiment:
    return Experiment.from_settings({**BASE, "hospitals": list(hospitals)})


def test_a_list_of_names_is_a_federation_of_so_many_hospitals() -> None:
    experiment = federation("st-mary", {"name": "charite", "node": "berlin", "cpus": 2})
    assert experiment.hospitals == 2
    assert experiment.hospital_ids() == ("st-mary", "charite")
    assert [place.node for place in experiment.places] == ["st-mary", "berlin"]


def test_a_federation_reads_back_what_it_wrote() -> None:
    experiment = federation(
        {"name": "a", "shard": "/srv/a.parquet", "gpus": 1}, {"name": "b", "shard": "/srv/b.parquet"}
    )
    text = yaml.safe_dump(experiment.settings())
    assert "places" not in text
    assert Experiment.from_settings(yaml.safe_load(text)) == experiment
    assert experiment.replace(rounds=3).places == experiment.places


def test_a_number_of_hospitals_takes_the_place_of_the_list() -> None:
    assert federation("a", "b").replace(hospitals=5).hospital_ids() == Experiment.from_settings(BASE).hospital_ids()[:5]


@pytest.mark.parametrize(
    ("hospitals", "says"),
    [
        (["a", "a"], "every hospital has a name of its own, got a twice"),
        (["a", {"name": "b", "node": "a"}], "every hospital has a node of its own, got a twice"),
        (
            [{"name": "a", "shard": "/a.parquet"}, "b"],
            "all hospitals open a shard of their own or none does, b has none",
        ),
        ([{"name": "a", "shard": "a.parquet"}], "hospital 'a': shard"),
        (["St. Mary"], "name"),
        ([{"name": "a", "nodes": "b"}], "hospital 'a': unknown setting 'nodes'; did you mean 'node'?"),
        ([3], "hospitals are a number or a list"),
    ],
)
def test_hospitals_that_do_not_hold_together_are_refused_in_one_line(hospitals: list[object], says: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        federation(*hospitals)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hospitals_open_the_shards_of_their_places_and_the_server_none(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    hospitals = [{"name": name, "shard": f"/nowhere/{name}.parquet"} for name in small.hospital_ids()]
    placed = small.replace(hospitals=hospitals)
    at_home = cohort_plan(placed, shards, state_folder=tmp_path, places=placed.places)
    assert [str(path) for path in at_home.shard_files.values()] == [
        f"/nowhere/{name}.parquet" for name in small.hospital_ids()
    ]
    simulated = cohort_plan(placed, shards, state_folder=tmp_path)
    assert [path.parent for path in simulated.shard_files.values()] == [shards.resolve()] * 5


def test_a_shard_of_another_size_is_refused_by_its_hospital(small: Experiment, shards: Path, tmp_path: Path) -> None:
    plan = cohort_plan(small.replace(size=64), shards, state_folder=tmp_path)
    with pytest.raises(DataError, match="64 pixels a side, hospital-00's shard 2, 1 and 32"):
        plan.admit("hospital-00", Trainer(plan.training))


def test_a_place_bears_the_label_of_its_name_where_none_is_given() -> None:
    assert Place.of("a") == Place.of({"name": "a", "node": "a"})
