"""Values that are sent to break the arithmetic: every rule, every kind, seven and ten hospitals; and any others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile_values import (
    ALLOWED,
    ENTRIES,
    EVERYBODY,
    KINDS,
    SIZES,
    UNUSABLE,
    Entry,
    bowl,
    honest_updates,
    play,
)
from fedplatform.core.messages import HospitalState, Predictions, Reply, Update
from fedplatform.core.usable import LONGEST, unusable
from fedplatform.data.splits import Role
from fedplatform.experiments.rule_text import ALL_RULES, parse_rule
from fedplatform.federated.aggregation import MIXERS, Krum, Mixed, NearestNeighbourMixing, TrimmedMean
from fedplatform.federated.server import Federation
from fedplatform.federated.trust import SCORERS
from fedplatform.learning.parameters import ParameterLayout

LAYOUT = ParameterLayout.of(torch.nn.Linear(20, 2), personal=frozenset())


def named(entry: Entry) -> str:
    return entry.name


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_no_rule_raises_or_overflows_and_a_robust_one_stays_near_the_honest_mean(entry: Entry, n: int) -> None:
    for kind in KINDS:
        if entry.groups and kind in UNUSABLE:  # no group's mean can hold them: test_secure_aggregation
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = play(entry, kind, n)
        hostile = [f"hospital-{row}" for row in range(n - entry.hostile(n), n)]
        assert list(outcome.refused) == (hostile if kind in UNUSABLE else []), kind
        assert all(" finite, got " in said or " norm of at most " in said for said in outcome.reasons), kind
        if kind in UNUSABLE or kind in EVERYBODY or not entry.exempt:
            assert outcome.distance <= ALLOWED, (kind, outcome.distance)


def test_the_table_has_every_rule_every_mixer_and_every_scorer() -> None:
    parts = {part for entry in ENTRIES for part in entry.text.split("+")}
    assert {*ALL_RULES, *MIXERS, *(name for name in SCORERS if name != "robust")} <= parts
    assert {entry.text for entry in ENTRIES if entry.exempt} == {
        *("mean", "weighted_mean", "norm_clip+mean", "foolsgold", "fldetector", "deepsight", "lasa")
    }


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    values=st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=30),
    everywhere=st.booleans(),
)
def test_whatever_one_hospital_sends_is_refused_or_survived(values: list[float], everywhere: bool) -> None:
    draw = np.random.default_rng(0)
    honest = honest_updates(draw, bowl(draw).place, 6)
    sent = honest.mean(axis=0)
    sent[: len(values)] = values
    if everywhere:
        sent = np.resize(np.array(values, np.float32), sent.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complaint = unusable(sent)
        finite = bool(np.isfinite(sent).all())
        norm = np.linalg.norm(sent.astype(np.float64)) if finite else np.inf
        assert bool(complaint) == (norm > LONGEST)
        if complaint:
            return
        rows = np.concatenate([honest, sent[None]])
        for text in ("median", "trimmed_mean", "krum", "geometric_median", "centered_clipping", "dnc", "flame"):
            step = parse_rule(text, f=1)(rows).delta
            assert np.isfinite(step).all(), text
            assert np.linalg.norm(step - honest.mean(axis=0)) < 10, text


@dataclass(frozen=True)
class Sending:
    """Hospitals that send these updates in every round, through the server's own door."""

    deltas: Sequence[np.ndarray]

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        return tuple(f"hospital-{row}" for row in range(len(self.deltas)))

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        for name, delta in zip(self.hospital_ids, self.deltas, strict=True):
            yield Reply(name, HospitalState.REPORTED, Update(name, round_number, delta, 10, 0.5, 1.0))

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        return []


@pytest.mark.parametrize(
    "rule", [Krum(f=3), TrimmedMean(f=3), Mixed((NearestNeighbourMixing(f=3),), Krum(f=3))], ids=lambda rule: str(rule)
)
def test_hospitals_that_are_refused_cannot_stop_a_rule_that_counts_on_them(rule: object) -> None:
    good = [np.full(LAYOUT.size, 1 + row / 100, np.float32) for row in range(7)]
    bad = [np.full(LAYOUT.size, value, np.float32) for value in (np.nan, np.inf, 3.4e38)]
    server = Federation(
        cohort=Sending([*good, *bad]),
        rule=rule,
        layout=LAYOUT,
        num_classes=2,
        seed=0,
        quorum=4,  # type: ignore[arg-type]
    )
    state, report = server.run_round(server.start(np.zeros(LAYOUT.size, np.float32)))
    assert report.had_effect
    assert np.abs(state.weights - 1.03).max() < 0.04
    assert [record.state for record in report.hospitals[7:]] == ["malformed"] * 3
    assert [record.hospital_id for record in report.hospitals if not record.state.is_as_expected][-3:] == [
        "hospital-7",
        "hospital-8",
        "hospital-9",
    ]


def test_an_update_of_another_sender_or_with_words_for_numbers_is_refused() -> None:
    one = np.ones(LAYOUT.size, np.float32)

    class Confused(Sending):
        def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
            told: list[Update] = [
                Update("hospital-0", 1, one, 10, 0.5, 1.0),
                Update("hospital-0", 1, -one, 10, 0.5, 1.0),
                Update("hospital-2", 1, one, 10, "low", 1.0),  # type: ignore[arg-type]
                Update("hospital-3", 1, one, 2**70, 0.5, 1.0),
            ]
            for name, update in zip(self.hospital_ids, told, strict=True):
                yield Reply(name, HospitalState.REPORTED, update)

    server = Federation(
        cohort=Confused([one] * 4), rule=TrimmedMean(f=0), layout=LAYOUT, num_classes=2, seed=0, quorum=1
    )
    state, report = server.run_round(server.start(np.zeros(LAYOUT.size, np.float32)))
    assert (state.weights == 1).all()
    assert [record.reason for record in report.hospitals] == [
        "",
        "an update is of its sender, got one of 'hospital-0'",
        "train_loss is a number, got a str",
        f"an update comes from at most 1000000000 scans, got num_examples={2**70}",
    ]
