"""Groups: who is summed with whom, and who lies, found out from groups alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import Situation, SlanderInGroups
from fedplatform.core.messages import Evidence
from fedplatform.core.storable import from_plain, to_plain
from fedplatform.federated.aggregation import Mean, Median, WeightedMean
from fedplatform.federated.secure import Grouped, GroupMemory, GroupTested, promise
from fedplatform.federated.secure.differential_privacy import DELTA, epsilon, protect
from fedplatform.federated.secure.exclusion import Exclusion, judge_hospitals, next_seating
from fedplatform.federated.secure.groups import Seating, draw_groups
from fedplatform.federated.secure.suspicion import GroupTest, NoisyGroupTesting

NAMES = tuple(f"h{number}" for number in range(10))
D = 2000


@given(st.integers(0, 14), st.integers(2, 6), st.sets(st.integers(0, 13)), st.integers(0, 99))
@settings(deadline=None)
def test_no_group_is_smaller_than_promised_and_nobody_is_in_two(n: int, size: int, chosen: set[int], seed: int) -> None:
    names = [f"h{number}" for number in range(n)]
    apart = {f"h{number}" for number in chosen if number < n}
    groups = draw_groups(names, size=size, seating=Seating(tuple(apart)), generator=torch.Generator().manual_seed(seed))
    members = [name for group in groups for name in group]
    assert len(members) == len(set(members))
    assert all(len(group) >= size for group in groups)
    kept = set(names) - apart
    kinds = (kept, apart) if len(kept) >= 2 * size else (kept | apart,)
    for kind in kinds:
        sizes = [len(group) for group in groups if set(group) <= kind]
        assert sum(sizes) == (len(kind) if len(kind) >= size else 0)
        assert len(sizes) == len(kind) // size
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(groups) == sum(len(kind) // size for kind in kinds)
    mixed = [group for group in groups if set(group) & apart and set(group) & kept]
    if len(kept) >= size and len(apart) <= size:
        assert len(mixed) <= 1, "those kept apart are to spoil one group and no more"


def test_groups_are_drawn_anew_each_round() -> None:
    drawn = {
        draw_groups(NAMES, size=3, seating=Seating(), generator=torch.Generator().manual_seed(seed))
        for seed in range(20)
    }
    assert len(drawn) == 20


def by_enumeration(testing: NoisyGroupTesting, tests: list[GroupTest], *, now: int) -> dict[str, float]:
    """The exact posterior, by adding up over who could lie: the slow definition."""
    names = sorted({name for test in tests for name in test.members})
    lying, total = dict.fromkeys(names, 0.0), 0.0
    for lies in itertools.product([False, True], repeat=len(names)):
        byzantine = {name for name, is_one in zip(names, lies, strict=True) if is_one}
        chance = testing.prior ** len(byzantine) * (1 - testing.prior) ** (len(names) - len(byzantine))
        for test in tests:
            fails = testing.power if byzantine & set(test.members) else testing.false_alarm
            seen = test.soundness * (1 - fails) + (1 - test.soundness) * fails
            chance *= seen ** (testing.memory ** (now - test.round_number))
        total += chance
        for name in byzantine:
            lying[name] += chance
    return {name: share / total for name, share in lying.items()}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2), st.integers(0, 5))
@settings(deadline=None)
def test_where_groups_share_nobody_suspicion_is_the_exact_posterior(soundness: list[float], age: int) -> None:
    tests = [GroupTest(1, NAMES[3 * n : 3 * n + 3], sound) for n, sound in enumerate(soundness)]
    exact = by_enumeration(NoisyGroupTesting(), tests, now=1 + age)
    found = NoisyGroupTesting()(tests, now=1 + age)
    assert found == pytest.approx(exact, abs=1e-5)


def noisy_tests(rounds: int, *, byzantine: set[str], size: int, seed: int) -> list[GroupTest]:
    """Rounds of groups whose tests are wrong once in ten times."""
    draw = np.random.default_rng(seed)
    tests = []
    for number in range(1, rounds + 1):
        for group in draw_groups(
            NAMES, size=size, seating=Seating(), generator=torch.Generator().manual_seed(100 * seed + number)
        ):
            looks_sound = bool(byzantine & set(group)) == (draw.random() < 0.1)
            tests.append(GroupTest(number, group, 0.95 if looks_sound else 0.05))
    return tests


@pytest.mark.parametrize("seed", range(3))
def test_where_groups_overlap_suspicion_stays_near_the_exact_posterior(seed: int) -> None:
    tests = noisy_tests(8, byzantine={"h2", "h7"}, size=3, seed=seed)
    exact = by_enumeration(NoisyGroupTesting(), tests, now=8)
    found = NoisyGroupTesting()(tests, now=8)
    assert found == pytest.approx(exact, abs=0.15)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_attackers_are_found_in_the_end_and_nobody_else(size: int) -> None:
    found = NoisyGroupTesting()(noisy_tests(30, byzantine={"h2", "h7"}, size=size, seed=5), now=30)
    assert {name for name, chance in found.items() if chance > 0.8} == {"h2", "h7"}
    assert max(chance for name, chance in found.items() if name not in ("h2", "h7")) < 0.2


def test_what_a_hospital_did_long_ago_weighs_less() -> None:
    test = GroupTest(1, NAMES[:3], 0.0)
    soon, late = (NoisyGroupTesting()([test], now=now)["h0"] for now in (1, 60))
    assert NoisyGroupTesting().prior < late < soon


@given(st.lists(st.tuples(st.sets(st.integers(1, 9), min_size=2, max_size=4), st.floats(0, 1)), max_size=12))
@settings(deadline=None)
def test_the_more_accusers_are_not_believed_the_less_suspicious_is_anybody(
    drawn: list[tuple[set[int], float]],
) -> None:
    tests = [GroupTest(1, ("h0", *sorted(f"h{m}" for m in others)), sound) for others, sound in drawn]
    tests.append(GroupTest(1, NAMES, 1.0))
    testing = NoisyGroupTesting()
    found = [testing.without_accusers(tests, now=1, accusers=number) for number in range(10)]
    assert found[0] == pytest.approx(testing(tests, now=1))
    for fewer, more in itertools.pairwise(found):
        assert all(more[name] <= fewer[name] + 1e-12 for name in NAMES)


def test_a_hospital_whose_accusers_are_struck_out_is_judged_by_its_other_groups() -> None:
    bad = [GroupTest(number, ("h0", "h1"), 0.0) for number in range(3)]
    testing = NoisyGroupTesting(memory=1.0)
    for sound, left in ((1.0, 0.061), (0.0, 0.15)):  # .15 is the prior: h2 could be an accuser as well
        tests = [*bad, GroupTest(3, ("h0", "h2"), sound)]
        tests += [GroupTest(number, ("h1", "h3"), 1.0) for number in range(4)]
        assert testing(tests, now=3)["h0"] > 0.5
        assert testing.without_accusers(tests, now=3, accusers=2)["h0"] == pytest.approx(left, abs=0.005)
    tests = [*bad, GroupTest(3, ("h0", "h2"), 0.0), GroupTest(3, ("h0", "h4"), 0.0), GroupTest(3, ("h0", "h5"), 0.0)]
    assert testing.without_accusers(tests, now=3, accusers=0) == pytest.approx(testing(tests, now=3))
    assert testing.without_accusers(tests, now=3, accusers=2)["h0"] > 0.5, "four accuse it, and two are not believed"


def test_who_probably_misbehaves_beside_a_hospital_is_in_its_spoiled_groups_and_in_no_sound_one() -> None:
    tests = [
        GroupTest(1, ("h0", "h1", "h2"), 0.0),
        GroupTest(2, ("h0", "h1", "h3"), 0.0),
        GroupTest(3, ("h0", "h2", "h3"), 1.0),
        GroupTest(3, ("h1", "h4", "h5"), 1.0),  # of no account: h0 is not in it
    ]
    found = NoisyGroupTesting().accusers_of("h0", tests, now=3)
    assert set(found) == {"h1", "h2", "h3"}
    assert found["h1"] > 0.6
    assert max(found["h2"], found["h3"]) < NoisyGroupTesting().prior
    assert NoisyGroupTesting().accusers_of("h9", tests, now=3) == {}


@given(st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None)
def test_those_in_conflict_do_not_meet_and_groups_stay_as_large(size: int, seed: int) -> None:
    conflicts = tuple(("h0", other, 1.0) for other in ("h1", "h2", "h3"))
    free, heeding = (
        draw_groups(NAMES, size=size, seating=seating, generator=torch.Generator().manual_seed(seed))
        for seating in (Seating(), Seating(conflicts=conflicts))
    )
    assert sorted(map(len, free)) == sorted(map(len, heeding))
    (own,) = (group for group in heeding if "h0" in group)
    assert set(own).isdisjoint({"h1", "h2", "h3"})


def test_who_is_on_probation_is_dealt_among_the_others_unless_they_would_be_too_few_to_compare() -> None:
    def drawn(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        seating = Seating(("h0", "h1"), "h2", (("h2", "h5", 1.0),))
        return draw_groups(names, size=3, seating=seating, generator=torch.Generator().manual_seed(0))

    among = drawn(NAMES)
    assert sorted(name for group in among for name in group) == list(NAMES[2:])
    (tested,) = (group for group in drawn(NAMES[:8]) if "h2" in group)
    assert {"h0", "h1", "h2"} <= set(tested), "five others make one group, and the excluded are in the second"


def test_a_slandered_hospital_is_tested_again_in_the_next_round_and_back_after_two_sound_ones() -> None:
    testing = NoisyGroupTesting()
    tests = [GroupTest(number, ("h0", "h1", other), 0.0) for number, other in enumerate(("h4", "h5", "h6"), start=1)]
    tests += [GroupTest(number, ("h1", "h7", "h8"), 1.0) for number in (1, 2, 3)]
    tests += [GroupTest(number, ("h4", "h5", "h6", "h9"), 1.0) for number in (1, 2, 3)]
    out = judge_hospitals(testing, tests, (), now=3).exclusions
    assert out == (Exclusion("h0", retest=4),)
    seating = next_seating(testing, tests, out, now=4)
    assert (seating.apart, seating.on_probation) == ((), "h0")
    groups = draw_groups(NAMES, size=3, seating=seating, generator=torch.Generator().manual_seed(1))
    (own,) = (group for group in groups if "h0" in group)
    assert "h1" not in own
    for soundness, after in ((1.0, ()), (0.0, ("h0",))):
        tested = [*tests, GroupTest(4, own, soundness)]
        between = judge_hospitals(testing, tested, out, now=4).exclusions
        assert between == (Exclusion("h0", retest=5),)
        verdict = judge_hospitals(testing, [*tested, GroupTest(5, own, soundness)], between, now=5)
        assert tuple(exclusion.hospital_id for exclusion in verdict.exclusions) == after


def test_a_hospital_that_lies_beside_everybody_waits_for_its_next_probation() -> None:
    testing = NoisyGroupTesting()
    others = [(f"h{number}", f"h{number + 1}") for number in range(1, 9, 2)]
    tests = [GroupTest(number, ("h0", *pair), 0.0) for number, pair in enumerate(2 * others, start=1)]
    tests += [GroupTest(number, (*pair, "h9"), 1.0) for number, pair in enumerate(2 * others[1:] + others, start=1)]
    out = judge_hospitals(testing, tests, (), now=8).exclusions
    assert out == (Exclusion("h0", retest=17),)
    assert next_seating(testing, tests, out, now=16).apart == ("h0",)
    assert next_seating(testing, tests, out, now=17).on_probation == "h0"


def test_a_rules_memory_of_exclusions_and_seating_is_storable() -> None:
    memory = GroupMemory((GroupTest(1, ("h0", "h1"), 0.0),), ((1.0,),), (Exclusion("h0", 3),), None, Seating(("h0",)))
    kinds = GroupTested(Mean()).memory_kinds
    assert from_plain(*to_plain(memory, kinds=kinds, name="memory"), kinds=kinds) == memory


def test_settings_that_no_test_could_have_are_refused() -> None:
    with pytest.raises(ValueError, match="false_alarm < power"):
        NoisyGroupTesting(false_alarm=0.8)


def round_of(
    updates: dict[str, np.ndarray], groups: tuple[tuple[str, ...], ...], *, number: int = 1, memory: object = None
) -> tuple[np.ndarray, Evidence]:
    """What the server gets: for every hospital in a group the mean of the group."""
    group_of = {name: group for group in groups for name in group}
    rows = np.stack([np.stack([updates[n] for n in group_of[name]]).mean(axis=0) for name in group_of])
    root = 1 + 0.5 * torch.randn(D, generator=torch.Generator().manual_seed(0)).numpy()
    return rows, Evidence(
        hospital_ids=tuple(group_of),
        num_examples=np.ones(len(group_of), dtype=np.int64),
        previous_delta=np.zeros(D, np.float32),
        generator=torch.Generator().manual_seed(number),
        round_number=number,
        root_delta=root,
        memory=memory,
        groups=tuple(group_of.values()),
    )


def honest(seed: int = 0) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 1 + torch.randn(D, generator=generator).numpy() for name in NAMES}


GROUPS = (NAMES[:5], NAMES[5:])


def test_without_a_lie_the_step_is_that_of_the_rule_on_the_means() -> None:
    updates = honest()
    aggregate = GroupTested(Mean())(*round_of(updates, GROUPS))
    np.testing.assert_allclose(aggregate.delta, np.mean(list(updates.values()), axis=0), rtol=1e-5, atol=1e-5)
    assert aggregate.weights.tolist() == pytest.approx([0.1] * 10)
    assert not aggregate.hostile.any()
    assert {judgement.trust for judgement in aggregate.judgements} == {1.0}


def test_groups_of_unequal_size_weigh_by_their_members_under_the_weighted_mean() -> None:
    updates = honest()
    aggregate = GroupTested(WeightedMean())(*round_of(updates, (NAMES[:4], NAMES[4:])))
    np.testing.assert_allclose(aggregate.delta, np.mean(list(updates.values()), axis=0), rtol=1e-5, atol=1e-5)
    assert aggregate.weights.tolist() == pytest.approx([0.1] * 10)


def test_a_group_that_an_attacker_spoiled_does_not_count_and_its_members_are_told_why() -> None:
    updates = honest()
    updates["h0"] = updates["h0"] * 100
    aggregate = GroupTested(Mean())(*round_of(updates, GROUPS))
    assert not aggregate.weights[:5].any()
    assert float(aggregate.weights[5:].sum()) == pytest.approx(1)
    assert not aggregate.hostile.any(), "after one round it could have been any of the five"
    assert "times as long as sound ones" in aggregate.judgements[0].reason


@pytest.mark.parametrize(("rule", "size"), [(Mean(), 2), (Mean(), 3), (Median(), 2)])
@pytest.mark.parametrize("factor", [10.0, -4.0])
def test_over_rounds_attackers_are_shut_out_and_honest_hospitals_are_not(
    rule: Mean | Median, size: int, factor: float
) -> None:
    memory = GroupMemory()
    for number in range(1, 13):
        updates = honest(number)
        for attacker in ("h3", "h8"):
            updates[attacker] = factor * updates[attacker]
        groups = draw_groups(NAMES, size=size, seating=memory.seating, generator=torch.Generator().manual_seed(number))
        aggregate = GroupTested(rule)(*round_of(updates, groups, number=number, memory=memory))
        assert isinstance(aggregate.memory, GroupMemory)
        memory = aggregate.memory
        assert set(memory.shut_out) <= {"h3", "h8"}
    assert set(memory.shut_out) == {"h3", "h8"}
    step = aggregate.delta
    mean = np.mean([update for name, update in updates.items() if name not in memory.shut_out], axis=0)
    assert step @ mean / np.linalg.norm(step) / np.linalg.norm(mean) > 0.9


@pytest.mark.parametrize(("slanderers", "size"), [(1, 3), (2, 3), (3, 3), (2, 4), (2, 5)])
def test_who_is_slandered_in_groups_keeps_its_weight_and_is_never_out_for_more_than_five_rounds(
    slanderers: int, size: int
) -> None:
    """Slanderers lie only beside their victim, and are honest everywhere else."""
    names, victim = NAMES[:slanderers], "h5"
    attack = SlanderInGroups(victim=0, scale=10)
    memory, out, weight = GroupMemory(), [], 0.0
    for number in range(1, 41):
        groups = draw_groups(NAMES, size=size, seating=memory.seating, generator=torch.Generator().manual_seed(number))
        updates = honest(number)
        for group in groups:
            situation = Situation(
                num_hospitals=10,
                num_byzantine=slanderers,
                round_number=number,
                previous_delta=torch.zeros(D),
                generator=torch.Generator(),
                honest_ids=(victim,),
                group=group,
            )
            for name in set(names) & set(group):
                updates[name] = attack.corrupt(torch.from_numpy(updates[name]), situation).numpy()
        deltas, evidence = round_of(updates, groups, number=number, memory=memory)
        aggregate = GroupTested(WeightedMean())(deltas, evidence)
        assert isinstance(aggregate.memory, GroupMemory)
        memory = aggregate.memory
        assert set(memory.shut_out) <= {victim, *names}, "nobody else is accused"
        out.append("x" if victim in memory.shut_out else " ")
        if victim in evidence.hospital_ids:
            weight += float(aggregate.weights[evidence.hospital_ids.index(victim)])
    assert max(map(len, "".join(out).split()), default=0) <= 5
    assert weight >= 0.5 * 40 / 10


def test_a_group_of_the_shut_out_never_reaches_the_rule() -> None:
    memory = GroupMemory(tests=(GroupTest(1, ("h0", "h1"), 0.0),), exclusions=(Exclusion("h0", 9), Exclusion("h1", 9)))
    aggregate = GroupTested(Mean())(*round_of(honest(), (NAMES[:2], NAMES[2:6], NAMES[6:]), number=2, memory=memory))
    assert not aggregate.weights[:2].any()
    assert float(aggregate.weights.sum()) == pytest.approx(1)


def test_nobody_moves_the_model_further_than_three_root_updates() -> None:
    updates = {name: 1e4 * update for name, update in honest().items()}
    deltas, evidence = round_of(updates, GROUPS)
    aggregate = GroupTested(Mean())(deltas, evidence)
    assert evidence.root_delta is not None
    assert np.linalg.norm(aggregate.delta) <= 3 * np.linalg.norm(evidence.root_delta)


def test_single_updates_are_no_groups() -> None:
    deltas, evidence = round_of(honest(), GROUPS)
    with pytest.raises(ValueError, match="judges groups"):
        GroupTested(Mean())(deltas, replace(evidence, groups=()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"size": 1}, "a group of one is a single update"), ({"noise": 1.0}, "a clip where there is noise")],
)
def test_privacy_that_is_none_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Grouped(**wrong)  # type: ignore[arg-type]


def test_an_update_is_cut_and_every_sum_that_opens_has_its_noise() -> None:
    privacy = Grouped(size=6, clip=2.0, noise=1.5)
    draw = np.random.default_rng(0)
    update = np.full(20_000, 1.0, np.float32)
    cut = protect(update, replace(privacy, noise=0.0), members=6, generator=draw)
    assert np.linalg.norm(cut) == pytest.approx(2.0)
    shorter = protect(update * 1e-4, replace(privacy, noise=0.0), members=6, generator=draw)
    np.testing.assert_array_equal(shorter, (update * np.float32(1e-4)).astype(np.float64))
    opened = sum(protect(0 * update, privacy, members=6, generator=draw) for _ in range(4))  # two of six dropped out
    assert np.std(opened) == pytest.approx(1.5 * 2.0, rel=0.03)


@given(st.floats(0.5, 20), st.integers(1, 100))
@settings(deadline=None, max_examples=25)
def test_epsilon_is_no_larger_than_the_textbook_bound_and_grows_with_rounds(noise: float, rounds: int) -> None:
    privacy = Grouped(clip=1.0, noise=noise)
    orders = np.concatenate([np.arange(1.1, 11, 0.1), np.arange(12, 64)])
    textbook = (rounds * orders / (2 * noise**2) + np.log(1 / DELTA) / (orders - 1)).min()  # Mironov, 2017
    assert 0 < epsilon(privacy, rounds=rounds) <= textbook + 1e-9
    assert epsilon(privacy, rounds=rounds) < epsilon(privacy, rounds=rounds + 1)


def test_without_noise_nothing_is_promised() -> None:
    assert epsilon(Grouped(clip=1.0), rounds=1) == float("inf")


def test_a_person_is_told_what_the_server_sees_and_what_it_comes_to() -> None:
    assert "at least 3 hospitals" in promise(Grouped(size=3), rounds=5)
    assert "no differential privacy" in promise(Grouped(size=3), rounds=5)
    said = promise(Grouped(size=3, clip=1.0, noise=2.0), rounds=12)
    assert f"epsilon {epsilon(Grouped(size=3, clip=1.0, noise=2.0), rounds=12):.3g} at delta 1e-05" in said


def stretched(lengths: tuple[float, ...], *, size: int, number: int = 1, memory: object = None) -> tuple:
    """A round without a root update whose groups of ``size`` have means of these lengths, all in one direction."""
    groups = tuple(tuple(f"h{size * n + m}" for m in range(size)) for n in range(len(lengths)))
    updates = {
        name: np.full(D, length, np.float32) for group, length in zip(groups, lengths, strict=True) for name in group
    }
    rows, evidence = round_of(updates, groups, number=number, memory=memory)
    return rows, replace(evidence, root_delta=None)


@pytest.mark.parametrize("times", [1.0, 1.5, 1.9, 2.0, 2.4, 2.8, 3.2])
def test_a_group_is_too_long_from_16_tenths_of_a_clean_one_on_and_beyond_doubt_at_24(times: float) -> None:
    aggregate = GroupTested(Mean())(*stretched((1.0, times), size=5))
    # The reference is an interpolated quantile of both lengths: at half the share of groups without an attacker.
    quantile = 0.8**5 / 2
    grown = times / (1 + quantile * (times - 1))
    expected = 1 - min(max((grown - 1.6) / (2.4 - 1.6), 0.0), 1.0)
    assert aggregate.judgements[0].trust == pytest.approx(1.0, abs=1e-6)
    assert aggregate.judgements[5].trust == pytest.approx(expected, abs=1e-5)
    said = f"its group is {grown:.1f} times as long as sound ones" if grown > 1.6 else ""
    assert aggregate.judgements[5].reason == said
    assert aggregate.judgements[0].reason == ""
    assert bool(aggregate.weights[5:].any()) is (expected >= 0.2)


def test_a_larger_group_is_as_long_as_a_smaller_one_when_its_mean_is_shorter_by_the_root() -> None:
    names = (NAMES[:2], NAMES[2:])
    updates = {name: np.full(D, 1 / len(group) ** 0.5, np.float32) for group in names for name in group}
    rows, evidence = round_of(updates, names)
    memory = GroupTested(Mean())(rows, replace(evidence, root_delta=None)).memory
    assert isinstance(memory, GroupMemory)
    assert memory.lengths[-1] == pytest.approx([D**0.5] * 2)


def test_a_group_that_points_backwards_is_told_so_and_one_that_does_not_is_told_nothing() -> None:
    updates = {name: (-1.0 if name in NAMES[:5] else 1.0) * update for name, update in honest().items()}
    aggregate = GroupTested(Mean())(*round_of(updates, GROUPS))
    assert aggregate.judgements[0].reason == "its group points away from the root update"
    assert aggregate.judgements[0].trust == 0.0
    assert aggregate.judgements[9].reason == ""
    assert aggregate.judgements[9].trust == 1.0


def test_who_is_shut_out_comes_back_at_a_lower_suspicion_than_it_went_at() -> None:
    tests = tuple(GroupTest(1, (name,), 0.0) for name in ("h0", "h0", "h5", "h5", "h5", "h5"))
    out = (Exclusion("h0", 9), Exclusion("h1", 9))
    first = stretched((1.0, 1.0), size=5, number=2, memory=GroupMemory(tests=tests))
    second = stretched((1.0, 1.0), size=5, number=2, memory=GroupMemory(tests=tests, exclusions=out))
    fresh, again = GroupTested(Mean())(*first), GroupTested(Mean())(*second)
    chance = NoisyGroupTesting()((*tests, *(GroupTest(2, group, 1.0) for group in GROUPS)), now=2)
    assert 0.4 < chance["h0"] < 0.8 < chance["h5"]
    assert chance["h1"] < 0.4
    for aggregate, gone in ((fresh, ("h5",)), (again, ("h0", "h5"))):
        assert isinstance(aggregate.memory, GroupMemory)
        assert aggregate.memory.shut_out == gone
        assert [name for name, bad in zip(NAMES, aggregate.hostile, strict=True) if bad] == list(gone)
        for name, judgement in zip(NAMES, aggregate.judgements, strict=True):
            assert judgement.reputation == pytest.approx(1 - chance[name])
    reasons = {name: judgement.reason for name, judgement in zip(NAMES, again.judgements, strict=True)}
    assert reasons["h0"] == "", "it is out as it was before"
    assert reasons["h1"] == "reinstated: its groups have been sound again"
    assert reasons["h5"] == "excluded: it was in too many spoiled groups"
    assert reasons["h2"] == ""


def test_a_hundred_rounds_of_tests_and_ten_of_lengths_are_remembered() -> None:
    tests = tuple(GroupTest(number, ("h0", "h1"), 1.0) for number in range(1, 201))
    lengths = tuple((float(number),) for number in range(1, 201))
    aggregate = GroupTested(Mean())(*stretched((1.0, 1.0), size=5, number=201, memory=GroupMemory(tests, lengths)))
    assert isinstance(aggregate.memory, GroupMemory)
    assert [test.round_number for test in aggregate.memory.tests] == [*range(102, 201), 201, 201]
    assert [first for first, *_ in aggregate.memory.lengths[:-1]] == [float(number) for number in range(192, 201)]
    assert aggregate.memory.lengths[-1] == pytest.approx([D**0.5 * 5**0.5] * 2)


@pytest.mark.parametrize("name", ["prior", "false_alarm", "power", "memory"])
def test_chances_of_group_testing_lie_between_0_and_1(name: str) -> None:
    for wrong in (0.0, 1.0, -0.1, 1.1):
        if (name, wrong) != ("memory", 1.0):
            with pytest.raises(ValueError, match=f"{name}={wrong}"):
                NoisyGroupTesting(**{name: wrong})
    with pytest.raises(ValueError, match="false_alarm < power"):
        NoisyGroupTesting(false_alarm=0.7, power=0.7)
    assert NoisyGroupTesting(memory=1.0)([GroupTest(1, ("h0",), 0.0)], now=90) == pytest.approx(
        {"h0": 0.15 * 0.7 / (0.15 * 0.7 + 0.85 * 0.1)}
    )


def test_privacy_is_refused_up_to_its_bounds_and_not_at_them() -> None:
    for wrong in ({"clip": -1.0}, {"noise": -1.0, "clip": 1.0}, {"size": 0}, {"noise": 0.1, "clip": 0.0}):
        with pytest.raises(ValueError, match="Grouped needs"):
            Grouped(**wrong)  # type: ignore[arg-type]
    assert [Grouped(size=3).groups_of(n) for n in (0, 2, 3, 5, 6, 11)] == [0, 0, 1, 1, 2, 3]
    assert Grouped(size=2, clip=0.0, noise=0.0).groups_of(2) == 1
    # Four of six must arrive; the variances of their parts are to make up (noise * clip)^2.
    assert Grouped(clip=3.0, noise=2.0).noise_of_one(6) == pytest.approx(6.0 / 2)
    assert Grouped(clip=3.0, noise=2.0).noise_of_one(2) == pytest.approx(6.0 / 2**0.5)
