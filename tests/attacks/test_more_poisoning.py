"""The attacks that reviewers ask for, against slow definitions written from their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import (
    MPAF,
    ByzMean,
    DistributedBackdoor,
    EdgeCase,
    FangKrum,
    FangTrimmedMean,
    LittleIsEnough,
    ModelReplacement,
    Neurotoxin,
    OnOff,
    PoisonedFL,
    Situation,
    SlanderByCopying,
    SlanderInGroups,
    Whitewashing,
)
from fedplatform.attacks.poisoning.backdoors import stamp_bars
from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.federated.aggregation import Krum, TrimmedMean

D = 60
honest_updates = st.builds(
    lambda h, seed, spread, offset: offset + spread * torch.randn(h, D, generator=torch.Generator().manual_seed(seed)),
    st.integers(5, 12),
    st.integers(0, 2**20),
    st.sampled_from([0.1, 1.0, 20.0]),
    st.sampled_from([0.0, 0.3, 2.0]),
)
few = settings(deadline=None, max_examples=25)


def situation(
    *,
    n: int = 10,
    f: int = 3,
    number: int = 2,
    step: torch.Tensor | None = None,
    memory: dict[str, torch.Tensor] | None = None,
    group: tuple[str, ...] = (),
) -> Situation:
    return Situation(
        num_hospitals=n,
        num_byzantine=f,
        round_number=number,
        previous_delta=torch.linspace(-1, 1, D) if step is None else step,
        generator=torch_generator(0, "attacker", number),
        weights=torch.linspace(1, 2, D),
        honest_ids=tuple(f"h{place}" for place in range(n - f)),
        group=group,
        memory={} if memory is None else memory,
    )


def own(seed: int = 0) -> torch.Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


# --- PoisonedFL ---


def sent_over(rounds: list[torch.Tensor], attack: PoisonedFL) -> list[np.ndarray]:
    """What one attacker sends while the server takes these steps, one before each round."""
    memory: dict[str, torch.Tensor] = {}
    return [
        attack.corrupt(own(number), situation(number=number, step=step, memory=memory)).double().numpy()
        for number, step in enumerate(rounds, start=1)
    ]


def by_the_paper(rounds: list[torch.Tensor], attack: PoisonedFL) -> list[np.ndarray]:
    """Equations of PoisonedFL, one coordinate vector at a time in float64."""
    signs = torch.randint(0, 2, (D,), generator=torch.Generator().manual_seed(attack.seed)).numpy() * 2.0 - 1
    c, last, total, sent = attack.factor, None, np.zeros(D), []
    for number, tensor in enumerate(rounds, start=1):
        h = tensor.double().numpy()
        total = total + h
        if number % attack.period == 0:
            agreeing = int((np.sign(total) == signs).sum())
            if agreeing <= D / 2 + 2.3263478740408408 * math.sqrt(D) / 2:
                c = max(0.7 * c, 0.5)
            total = np.zeros(D)
        length = np.linalg.norm(h)
        k = np.ones(D)
        if last is not None and np.linalg.norm(last) > 0:
            k = np.abs(h - last * length / np.linalg.norm(last))
        k = k / np.linalg.norm(k)
        last = c * length * k * signs
        sent.append(last)
    return sent


@pytest.mark.parametrize("period", [1, 3, 50])
def test_poisoned_fl_sends_what_the_paper_says_over_rounds(period: int) -> None:
    steps = [torch.zeros(D), *(own(seed) for seed in range(1, 8))]
    attack = PoisonedFL(period=period)
    for found, expected in zip(sent_over(steps, attack), by_the_paper(steps, attack), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_poisoned_fl_pushes_every_round_the_same_way_and_looks_at_nothing_of_its_own() -> None:
    first, *others = sent_over([own(seed) for seed in range(6)], PoisonedFL())
    assert all(np.array_equal(np.sign(other), np.sign(first)) for other in others)
    one, two = (PoisonedFL().corrupt(own(seed), situation()) for seed in (1, 2))
    assert torch.equal(one, two)


def test_poisoned_fl_keeps_its_strength_where_the_model_follows_it_and_weakens_where_not() -> None:
    signs = torch.from_numpy(np.sign(sent_over([own()], PoisonedFL())[0])).float()
    strengths = {}
    for name, step in {"follows": signs, "does not": -signs}.items():
        last = sent_over([step] * 4, PoisonedFL(period=1))[-1]
        strengths[name] = np.linalg.norm(last) / math.sqrt(D)
    assert strengths["follows"] == pytest.approx(8, rel=1e-5)
    assert strengths["does not"] == pytest.approx(8 * 0.7**4, rel=1e-5)


# --- MPAF ---


def test_mpaf_pulls_towards_the_same_base_model_in_every_round_and_from_every_attacker() -> None:
    sent = MPAF(scale=5).corrupt(own(), situation())
    base = sent / 5 + situation().weights
    assert float(base.std()) == pytest.approx(0.05, rel=0.3)
    assert torch.equal(sent, MPAF(scale=5).corrupt(own(1), situation(number=9)))


def test_mpaf_says_that_it_needs_the_weights() -> None:
    blind = Situation(10, 3, 1, torch.zeros(D), torch_generator(0, "attacker"))
    with pytest.raises(ValueError, match="MPAF needs the broadcast weights, got none"):
        MPAF().corrupt(own(), blind)


# --- Fang ---


@few
@given(honest=honest_updates, f=st.integers(1, 2))
def test_fang_against_krum_goes_against_the_mean_and_is_chosen_by_krum(honest: torch.Tensor, f: int) -> None:
    n = len(honest) + f
    sent = FangKrum().collude(honest, situation(n=n, f=f))
    mean = honest.double().mean(dim=0)
    assert torch.equal(sent.sign(), -mean.sign().float())
    assert float(sent.abs().max() - sent.abs().min()) < 1e-5 * float(sent.abs().max())

    def is_chosen(forged: torch.Tensor) -> bool:
        rows = torch.cat([forged.expand(f, -1), honest]).numpy()
        return bool(Krum(f)(rows).weights[:f].sum() > 0.5) if n >= 2 * f + 3 else False

    if n >= 2 * f + 3 and f > 1:  # alone, it has no fellow beside it and may never be chosen
        smallest = float(sent.abs().max()) < 1e-4 * float(honest.norm(dim=1).max()) / D**0.5
        assert smallest or is_chosen(sent)


def test_fang_against_krum_moves_krum_backwards_where_honest_updates_spread() -> None:
    honest = 0.3 + torch.randn(8, D, generator=torch.Generator().manual_seed(3))
    sent = FangKrum().collude(honest, situation(n=11, f=3))
    rows = torch.cat([sent.expand(3, -1), honest]).numpy()
    step = Krum(3)(rows)
    assert step.weights[:3].sum() == pytest.approx(1)
    assert float(step.delta @ honest.mean(dim=0).numpy()) < 0


@few
@given(honest=honest_updates, f=st.integers(1, 4))
def test_fang_against_a_trimmed_mean_lies_just_beyond_the_extreme_on_the_wrong_side(
    honest: torch.Tensor, f: int
) -> None:
    sent = FangTrimmedMean(reach=2).collude(honest, situation(f=f)).numpy()
    low, high = honest.min(dim=0).values.numpy(), honest.max(dim=0).values.numpy()
    rises = honest.double().mean(dim=0).numpy() > 0
    assert sent.shape == (f, D)
    for row in sent:
        for value, lo, hi, up in zip(row, low, high, rises, strict=True):
            ends = sorted((lo, lo / 2 if lo > 0 else 2 * lo)) if up else sorted((hi, 2 * hi if hi > 0 else hi / 2))
            slack = 1e-5 * max(abs(lo), abs(hi))
            assert ends[0] - slack <= value <= ends[1] + slack


def test_fang_against_a_trimmed_mean_drags_it_further_than_silence() -> None:
    honest = 0.3 + torch.randn(7, 400, generator=torch.Generator().manual_seed(1))
    here = situation(f=3)
    sent = FangTrimmedMean().collude(honest, here)
    mean = honest.mean(dim=0).numpy()
    attacked = TrimmedMean(3)(torch.cat([sent, honest]).numpy()).delta
    alone = TrimmedMean(2)(honest.numpy()).delta
    assert attacked @ mean < 0.2 * (alone @ mean)


# --- ByzMean ---


@few
@given(honest=honest_updates, f=st.integers(1, 5))
def test_byz_mean_puts_the_mean_of_all_where_half_of_the_attackers_point(honest: torch.Tensor, f: int) -> None:
    n = len(honest) + f
    sent = ByzMean(z=2).collude(honest, situation(n=n, f=f)).double()
    aim = LittleIsEnough(z=2).collude(honest, situation(n=n, f=f)).double()
    assert sent.shape == (f, D)
    assert all(torch.equal(row, aim) for row in sent[: f // 2])
    mean = (sent.sum(dim=0) + honest.double().sum(dim=0)) / n
    np.testing.assert_allclose(mean.numpy(), aim.numpy(), rtol=1e-4, atol=1e-5 * float(sent.abs().max()))


# --- backdoors ---


def scans(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 200, (n, 1, 32, 32), dtype=np.uint8), np.arange(n, dtype=np.int64) % 4


def test_model_replacement_makes_the_mean_of_three_attackers_theirs() -> None:
    update = own()
    assert torch.equal(ModelReplacement().corrupt(update, situation(n=10, f=2)), 5 * update)
    assert torch.equal(ModelReplacement(scale=3).corrupt(update, situation()), 3 * update)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_neurotoxin_leaves_alone_what_the_last_step_moved_most(ratio: float) -> None:
    step = torch.linspace(0.1, 1, D)
    sent = Neurotoxin(ratio=ratio).corrupt(torch.ones(D), situation(step=step))
    left = round(ratio * D)
    assert sent.tolist() == [1.0] * (D - left) + [0.0] * left


def test_neurotoxin_sends_all_before_it_has_seen_a_step() -> None:
    update = own()
    assert torch.equal(Neurotoxin().corrupt(update, situation(step=torch.zeros(D))), update)
    with pytest.raises(ValueError, match="0 <= ratio < 1, got 1"):
        Neurotoxin(ratio=1)


@pytest.mark.parametrize("of", [1, 2, 3, 4, 6])
def test_the_parts_of_a_distributed_backdoor_make_the_whole_trigger(of: int) -> None:
    images, _ = scans()
    dark = np.zeros_like(images)
    parts = [DistributedBackdoor(target=1).part(number, of).stamp(dark) for number in range(of)]
    whole = DistributedBackdoor().stamp(dark)
    assert np.array_equal(np.maximum.reduce(parts), whole)
    if of > 1:
        assert all((part != whole).any() for part in parts)
    assert (whole[0, 0] == 255).sum() == 4 * 6 * 2


def test_an_attacker_trains_its_own_part_with_the_settings_of_the_whole() -> None:
    images, labels = scans()
    part = DistributedBackdoor(target=2, fraction=1.0).part(1, 3)
    stamped, relabelled = part.poison(images, labels, num_classes=4, generator=numpy_generator(0, "poison"))
    touched = labels != 2
    assert (relabelled == 2).all()
    assert np.array_equal(stamped[touched], stamp_bars(images[touched], (1,)))


def test_an_edge_case_is_a_scan_with_its_grey_levels_turned_round() -> None:
    images, labels = scans()
    stamped, relabelled = EdgeCase(target=0, fraction=1.0).poison(
        images, labels, num_classes=4, generator=numpy_generator(0, "poison")
    )
    assert np.array_equal(stamped[labels != 0], 255 - images[labels != 0])
    assert np.array_equal(stamped[labels == 0], images[labels == 0])
    assert not relabelled.any()


@pytest.mark.parametrize("attack", [DistributedBackdoor(), EdgeCase()])
def test_a_trigger_is_refused_on_images_in_other_units(attack: DistributedBackdoor | EdgeCase) -> None:
    with pytest.raises(ValueError, match=r"uint8 images \(n, c, h, w\), got float32 \(1, 1, 8, 8\)"):
        attack.stamp(np.zeros((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize("attack", [ModelReplacement, Neurotoxin, DistributedBackdoor, EdgeCase])
def test_every_backdoor_refuses_a_class_that_is_not_there_by_its_own_name(attack: type[ModelReplacement]) -> None:
    images, labels = scans()
    with pytest.raises(ValueError, match=f"{attack.__name__} needs 0 <= target < 4 classes, got target=4"):
        attack(target=4).poison(images, labels, num_classes=4, generator=np.random.default_rng(0))


# --- reputation ---


def test_an_on_off_attacker_is_honest_and_lies_in_turn() -> None:
    attack = OnOff(honest=2, lying=1, scale=3)
    sent = [attack.corrupt(own(), situation(number=number)) for number in range(1, 7)]
    expected = [own(), own(), -3 * own()] * 2
    assert all(torch.equal(*pair) for pair in zip(sent, expected, strict=True))
    assert [attack.lies_in(number) for number in range(1, 7)] == [False, False, True] * 2


def test_a_whitewasher_has_a_new_name_after_every_stay() -> None:
    names = [Whitewashing(stay=2).name_in("a", number) for number in range(1, 8)]
    assert names == ["a", "a", *["a, new name 1"] * 2, *["a, new name 2"] * 2, "a, new name 3"]
    assert torch.equal(Whitewashing(scale=2).corrupt(own(), situation()), -2 * own())


@pytest.mark.parametrize(("make", "said"), [(lambda: OnOff(honest=0), "honest >= 1"), (lambda: Whitewashing(0), "1")])
def test_an_attacker_of_reputations_that_never_changes_is_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()


# --- slander ---


def test_a_slanderer_in_groups_lies_only_where_its_victim_is_beside_it() -> None:
    attack = SlanderInGroups(victim=1, scale=5)
    update = own()
    assert torch.equal(attack.corrupt(update, situation(group=("me", "h1", "h4"))), -5 * update)
    assert torch.equal(attack.corrupt(update, situation(group=("me", "h0", "h4"))), update)
    assert torch.equal(attack.corrupt(update, situation()), update)
    with pytest.raises(ValueError, match="0 <= victim < 7 honest hospitals, got 7"):
        SlanderInGroups(victim=7).corrupt(update, situation(group=("me",)))


@few
@given(honest=honest_updates, victim=st.integers(0, 4))
def test_a_copy_is_the_victims_update_with_noise_of_its_own(honest: torch.Tensor, victim: int) -> None:
    sent = SlanderByCopying(victim=victim, noise=0.01).collude(honest, situation()).double()
    copied = honest[victim].double()
    apart = (sent - copied).norm(dim=1) / copied.norm()
    assert bool(((apart > 0.006) & (apart < 0.014)).all())
    assert not torch.equal(sent[0], sent[1])
    with pytest.raises(ValueError, match=f"0 <= victim < {len(honest)} honest updates, got 12"):
        SlanderByCopying(victim=12).collude(honest, situation())
