"""What every rule has in common: what it may be given, what it says of itself, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from aggregation_rounds import a_round

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.rule_text import ALL_RULES, parse_rule
from fedplatform.federated.aggregation import (
    FLAME,
    RULES,
    Aggregator,
    DnC,
    FLTrust,
    Mean,
    Median,
    Mixed,
    NearestNeighbourMixing,
    NormClipping,
    TrimmedMean,
    WeightedMean,
    as_updates,
    default_evidence,
    try_rule,
)
from fedplatform.federated.secure import GroupTested
from fedplatform.federated.trust import OptiGradTrust

ROWS = [[0.0, 1.5], [1.0, -2.0], [9.0, 0.1], [2.0, 0.5], [1.5, 0.25]]


@pytest.mark.parametrize(
    "name", [name for name in RULES if name not in ("fltrust", "bulyan", "deepsight", "lasa", "alignins")]
)
def test_lists_numpy_and_torch_give_the_same_bits(name: str) -> None:
    rule = parse_rule(name, f=1)
    single = np.array(ROWS, np.float32)
    forms = [
        ROWS,
        tuple(tuple(row) for row in ROWS),
        single,
        np.array(ROWS),
        np.asfortranarray(single),
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.float64),
        torch.tensor(ROWS, requires_grad=True),
        [torch.tensor(row) for row in ROWS],
        [np.array(row) for row in ROWS],
    ]
    first, *others = [rule(form) for form in forms]
    for other in others:
        assert other.delta.tobytes() == first.delta.tobytes()
        assert other.weights.tobytes() == first.weights.tobytes()
        assert other.hostile.tobytes() == first.hostile.tobytes()


def test_updates_that_are_as_they_should_be_are_not_copied() -> None:
    rows = np.array(ROWS, np.float32)
    assert np.shares_memory(as_updates(rows), rows)
    assert as_updates([[1, 2], [True, 4]]).tolist() == [[1.0, 2.0], [1.0, 4.0]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([1.0, 2.0], r"updates have shape \(n, d\), got \(2,\)"),
        (np.zeros((2, 3, 4)), r"updates have shape \(n, d\), got \(2, 3, 4\)"),
        ([[1.0], [1.0, 2.0]], "updates are n rows of d numbers each, got a list that is not"),
        ([["a"], ["b"]], "updates are n rows of d numbers each, got a list that is not"),
        (np.array([[1j], [2j]]), "updates are n rows of d numbers each, got a ndarray that is not"),
        (None, "updates are n rows of d numbers each, got a NoneType that is not"),
        ([[1.0, 1.0], [math.nan, math.inf]], "an update is finite, got 2 NaN or infinite entries of 2, in row 1"),
        ([[1e300]], "an update is finite, got 1 NaN or infinite entries of 1, in row 0"),
        ([[1.0], [3.4e38]], r"an update has a norm of at most 9.22e\+18, got 3.4e\+38, in row 1"),
    ],
)
def test_what_is_no_finite_table_of_numbers_is_refused_in_one_line(wrong: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        Mean()(wrong)


def test_a_rule_works_without_evidence() -> None:
    assert TrimmedMean(f=1)([[0.0], [1.0], [9.0]]).delta.tolist() == [1.0]
    assert WeightedMean()(ROWS).weights.tolist() == pytest.approx([0.2] * 5)
    assert Mixed((NormClipping(), NearestNeighbourMixing(f=1)), Median())(ROWS).delta.shape == (2,)
    noisy = [FLAME(noise=0.1)(ROWS).delta.tobytes() for _ in range(2)]
    assert noisy[0] == noisy[1], "the generator is seeded 0 in every call"
    with pytest.raises(ValueError, match=r"FLTrust needs evidence\.root_delta"):
        FLTrust()(ROWS)
    with pytest.raises(ValueError, match=r"OptiGradTrust needs evidence\.root"):
        OptiGradTrust()(ROWS)


def test_the_evidence_that_is_given_is_the_evidence_that_is_used() -> None:
    case = a_round(0, n=5, d=2)
    told = replace(case.evidence, num_examples=np.array([0, 0, 5, 5, 5]))
    assert WeightedMean()(ROWS, told).weights.tolist() == pytest.approx([0, 0, *[1 / 3] * 3])
    default = default_evidence(np.zeros((3, 2), np.float32))
    assert default.hospital_ids == ("0", "1", "2")
    assert default.num_examples.tolist() == [1, 1, 1]
    assert default.previous_delta.tolist() == [0.0, 0.0]
    assert (default.root_delta, default.root, default.memory) == (None, None, None)


def rule_with(**names: object) -> type[Aggregator]:
    return type("MyRule", (Aggregator,), {"aggregate": lambda self, deltas, evidence: None, **names})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("need_root", "needs_root"),
        ("needs_roots", "needs_root"),
        ("memory_kind", "memory_kinds"),
        ("requires", "require"),
        ("aggregated", "aggregate"),
        ("withouts", "without"),
    ],
)
def test_a_mistyped_capability_is_refused(wrong: str, right: str) -> None:
    with pytest.raises(TypeError) as refused:
        rule_with(**{wrong: True})
    assert str(refused.value) == f"MyRule.{wrong} is no capability of an Aggregator; did you mean {right!r}?"


def test_a_mistyped_capability_that_only_has_a_type_is_refused_and_a_field_is_not() -> None:
    with pytest.raises(TypeError, match=r"Declared\.need_root is no capability"):

        class Declared(Aggregator):
            need_root: ClassVar[bool]

            def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
                return Mean()(deltas, evidence)

    @dataclass(frozen=True)
    class Settable(Aggregator):
        requires: int = 3
        scale = 2.0  # a constant of another name is nobody's business

        def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
            return Mean()(deltas, evidence)

    assert Settable(requires=4)(ROWS).delta.tobytes() == Mean()(ROWS).delta.tobytes()


def test_a_rule_that_overrides_the_call_is_refused_and_one_without_aggregate_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"^MyRule overrides __call__; an Aggregator implements aggregate"):
        rule_with(__call__=lambda self, deltas, evidence: None)
    with pytest.raises(TypeError, match=r"abstract method '?aggregate"):
        type("Empty", (Aggregator,), {})()


class Bare:
    """A callable that was a rule before there was a class to subclass."""

    def __call__(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        return Mean()(deltas, evidence)


def a_function(deltas: np.ndarray, evidence: Evidence) -> Aggregate:
    return Mean()(deltas, evidence)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Bare(), r"must subclass fedplatform.Aggregator \(fedplatform\.federated\.aggregation\.Aggregator\)"),
        (a_function, "a_function is no aggregation rule: it must subclass"),
        (3, "int is no aggregation rule: it must subclass"),
        (Mean, r"an aggregation rule is an object, Mean\(\.\.\.\), got the class Mean"),
        (f"{__file__}:Bare", "Bare is no aggregation rule: it must subclass"),
        (f"nnm+{__file__}:Bare", "Bare is no aggregation rule: it must subclass"),
        (f"{__file__}:a_function", "a_function is no aggregation rule: it must subclass"),
    ],
)
def test_what_is_no_aggregator_is_refused_in_one_line_where_an_experiment_is_built(rule: object, said: str) -> None:
    with pytest.raises(ExperimentError, match=said) as refused:
        Experiment.from_settings({"rule": rule})
    assert "\n" not in str(refused.value)
    if not isinstance(rule, str):
        with pytest.raises(ValueError, match=said):
            Experiment(rule=rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_rule_says_whether_it_needs_a_root_update(name: str) -> None:
    rule = parse_rule(name, f=1)
    needs = name in ("fltrust", "trust")
    assert rule.needs_root is needs
    assert Mixed((NormClipping(),), rule).needs_root is needs
    assert GroupTested(rule).needs_root is needs


@pytest.mark.parametrize(
    ("rule", "hospitals", "has_root", "said"),
    [
        (TrimmedMean(f=3), 6, True, "TrimmedMean needs n > 2f, got n=6, f=3"),
        (FLTrust(), 6, False, "FLTrust needs evidence.root_delta"),
        (Mixed((NearestNeighbourMixing(f=3),), Mean()), 6, True, "NearestNeighbourMixing needs n > 2f, got n=6, f=3"),
        (OptiGradTrust(), 6, False, "needs the server's own clean scans"),
        (OptiGradTrust(), 2, True, "needs n >= 3, got n=2"),
    ],
)
def test_a_rule_says_where_it_cannot_work(rule: Aggregator, hospitals: int, has_root: bool, said: str) -> None:
    for ask in (rule.require, lambda **setting: try_rule(rule, **setting)):
        with pytest.raises(ValueError, match=said):
            ask(hospitals=hospitals, has_root=has_root)
    rule.require(hospitals=20, has_root=True)


def test_a_rule_is_tried_on_random_updates_unless_it_answers_by_itself() -> None:
    tried = try_rule(DnC(f=1), hospitals=5, has_root=False)
    assert tried is not None
    assert tried.delta.shape == (8,)
    assert try_rule(OptiGradTrust(), hospitals=5, has_root=True) is None


@pytest.mark.parametrize(
    "wrap", [lambda rule: rule, lambda rule: Mixed((NormClipping(),), rule), lambda rule: GroupTested(rule)]
)
def test_without_an_attack_the_rule_behind_never_saw_it(wrap: Callable[[Aggregator], Aggregator]) -> None:
    assert wrap(Mean()).without("alie") == wrap(Mean())
    assert wrap(OptiGradTrust()).without("alie") == wrap(OptiGradTrust(unseen="alie"))
