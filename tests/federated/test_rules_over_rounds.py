"""Rules that remember rounds: what they make of the second and later ones, by their papers' definitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import slow_aggregation as slow
import torch
from aggregation_rounds import Round, a_round
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import Situation, SlanderByCopying
from fedplatform.core.messages import Aggregate
from fedplatform.federated.aggregation import Aggregator, FLDetector, FoolsGold
from fedplatform.federated.aggregation.fl_detector import DetectorMemory, clusters_of, foretold_turn, split


def over_rounds(rule: Aggregator, rounds: list[Round]) -> Iterator[Aggregate]:
    """What a rule makes of rounds one after another."""
    memory = None
    for number, case in enumerate(rounds, start=1):
        evidence = replace(case.evidence, memory=memory, round_number=number, generator=torch.Generator())
        aggregate = rule(case.deltas, evidence)
        memory = aggregate.memory
        yield aggregate


def foreseeable_rounds(count: int, *, n: int = 9, d: int = 40, seed: int = 0) -> list[Round]:
    """Each hospital descends a quadratic of its own, all of about the same curvature, as the mean moves the model."""
    random = np.random.default_rng(seed)
    curvature = random.uniform(0.05, 0.3, d)
    targets = random.normal(size=d) + 0.3 * random.normal(size=(n, d))
    model, rounds = np.zeros(d), []
    for number in range(count):
        updates = curvature * (targets - model)
        rounds.append(replace(a_round(number, n=n, d=d), deltas=updates.astype(np.float32)))
        model = model + updates.mean(axis=0)
    return rounds


@pytest.mark.parametrize("d", [40, 9001])
def test_foolsgold_judges_by_updates_summed_over_rounds(d: int) -> None:
    rounds = [a_round(seed, d=d) for seed in range(4)]
    for number, aggregate in enumerate(over_rounds(FoolsGold(), rounds), start=1):
        expected = slow.foolsgold([case.rows for case in rounds[:number]])
        np.testing.assert_allclose(aggregate.delta, expected, rtol=1e-4, atol=2e-5)


def test_foolsgold_names_attackers_who_send_alike_and_keeps_everybody_else() -> None:
    case = a_round(0)
    case.deltas[:3] = -5 * case.root + 0.01 * case.deltas[:3]
    aggregate = FoolsGold()(case.deltas, case.evidence)
    assert aggregate.hostile[:3].all()
    assert aggregate.weights[3:].sum() == pytest.approx(1)


def test_slander_by_copying_has_foolsgold_refuse_the_victim() -> None:
    """What FoolsGold cannot know: which of those who send alike was there first."""
    case = a_round(0, n=10)
    honest = torch.from_numpy(case.deltas[3:])
    situation = Situation(10, 3, 1, torch.zeros(60), torch.Generator().manual_seed(0))
    case.deltas[:3] = SlanderByCopying(victim=2).collude(honest, situation).numpy()
    fair = FoolsGold()(case.deltas[3:], replace(case.evidence, hospital_ids=case.evidence.hospital_ids[3:]))
    assert fair.weights[2] > 0.02
    slandered = FoolsGold()(case.deltas, case.evidence)
    assert slandered.weights[5] == 0
    assert slandered.hostile[5]
    assert slandered.weights[[3, 4, 6, 7, 8, 9]].sum() == pytest.approx(1)


def test_the_foretold_turn_is_the_hessian_times_the_last_step() -> None:
    steps = [row.astype(np.float64) for row in a_round(1, n=6, d=50).deltas]
    moves, turns = steps[:-1], [after - before for before, after in pairwise(steps)]
    expected = slow.hessian_times(moves, turns, steps[-1])
    shares = foretold_turn(np.stack(steps) @ np.stack(steps).T)
    np.testing.assert_allclose(shares @ np.stack(steps), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("window", [2, 10])
def test_fldetectors_errors_are_those_of_the_paper(window: int) -> None:
    rounds = [a_round(seed, d=9001) for seed in range(5)]
    steps: list[np.ndarray] = []
    for number, aggregate in enumerate(over_rounds(FLDetector(window=window), rounds), start=1):
        assert isinstance(aggregate.memory, DetectorMemory)
        if number > 2:
            expected = slow.fldetector_errors([case.rows for case in rounds[:number]], steps[-(window + 1) :])
            found = [errors[-1] for errors in aggregate.memory.errors.values()]
            np.testing.assert_allclose(found, expected, rtol=1e-4)
        steps.append(aggregate.delta.astype(np.float64))


def test_fldetector_finds_those_who_do_not_follow_from_their_last_update_and_nobody_else() -> None:
    rounds = foreseeable_rounds(8)
    for number, case in enumerate(rounds):
        case.deltas[:2] += np.random.default_rng(number).normal(size=(2, 40)).astype(np.float32)
    *_, last = over_rounds(FLDetector(), rounds)
    assert last.hostile.tolist() == [True] * 2 + [False] * 7
    *_, honest = over_rounds(FLDetector(), foreseeable_rounds(2))
    assert not honest.hostile.any()


def test_a_hospital_that_rested_is_not_judged_in_the_next_round() -> None:
    rounds = [a_round(seed) for seed in range(4)]
    ids = rounds[0].evidence.hospital_ids
    without = replace(
        rounds[2], deltas=rounds[2].deltas[1:], evidence=replace(rounds[2].evidence, hospital_ids=ids[1:])
    )
    memories = [aggregate.memory for aggregate in over_rounds(FLDetector(), [*rounds[:2], without, rounds[3]])]
    assert ids[0] not in memories[-1].errors
    assert len(memories[-1].errors[ids[1]]) == 2


def test_a_window_keeps_as_many_errors_and_steps_as_it_needs() -> None:
    *_, last = over_rounds(FLDetector(window=2), [a_round(seed) for seed in range(7)])
    assert {len(errors) for errors in last.memory.errors.values()} == {2}
    assert len(last.memory.steps) == 3


@given(st.lists(st.floats(0, 1), min_size=3, max_size=7), st.integers(1, 3))
def test_values_are_split_where_the_summed_squares_are_least(values: list[float], count: int) -> None:
    ordered = np.sort(values)

    def within(cuts: tuple[int, ...]) -> float:
        parts = np.split(ordered, cuts)
        return sum(float(((part - part.mean()) ** 2).sum()) for part in parts if len(part))

    best = min(within(cuts) for cuts in combinations(range(1, len(values)), count - 1))
    labels = split(np.array(values), count)
    parts = [np.array(values)[labels == label] for label in range(count)]
    assert sum(float(((part - part.mean()) ** 2).sum()) for part in parts if len(part)) == pytest.approx(best, abs=1e-9)
    assert all(a.max() <= b.min() for a, b in pairwise(parts) if len(a) and len(b))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.1] * 9, 1), ([*np.linspace(0, 1, 12)], 1), ([0.1, 0.11, 0.12, 0.1, 0.9, 0.91, 0.89], 2)],
)
def test_the_gap_statistic_counts_clusters(values: list[float], expected: int) -> None:
    found = clusters_of(np.array(values), generator=torch.Generator().manual_seed(0))
    assert (found > 1) == (expected > 1)


@pytest.mark.parametrize("rule", [FoolsGold(), FLDetector()])
def test_what_a_rule_remembers_is_stored_and_forgets_who_has_withdrawn(rule: Aggregator) -> None:
    *_, last = over_rounds(rule, [a_round(seed) for seed in range(4)])
    forgotten = rule.forgetting(last.memory, "hospital-3")
    names = forgotten.updates if isinstance(forgotten, DetectorMemory) else forgotten
    assert sorted(names) == sorted(f"hospital-{i}" for i in range(11) if i != 3)
    if isinstance(forgotten, DetectorMemory):
        assert "hospital-3" not in forgotten.errors
