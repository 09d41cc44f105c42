"""The learned trust scorers, taught and examined on made-up rounds whose attackers are known."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score
from torch import nn

from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.federated.trust import dual_attention, policy
from fedplatform.federated.trust.dual_attention import CHUNKS, WIDTH, DualAttention, DualAttentionSkill
from fedplatform.federated.trust.fingerprint import FEATURES, SKETCH, Fingerprints, measure, relative_sketches, take
from fedplatform.federated.trust.hybrid import Hybrid, HybridSkill
from fedplatform.federated.trust.policy import (
    LEVELS,
    PolicySkill,
    Transitions,
    TrustPolicy,
    double_dqn_targets,
    rewards,
)
from fedplatform.federated.trust.scorer import Lesson, TrustScorer
from fedplatform.federated.trust.update_vae import LONGEST, UpdateVae, VaeState, bounded

SIZE = 4000
STRANGERS = ("min_max", "inner_product")  # attacks that no lesson shows
SCORERS = (DualAttention(), TrustPolicy(), Hybrid())


def scaling(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 10 * own


def partial_scaling(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return own * np.where(random.random(own.shape) < 0.5, 5, 1)


def sign_flipping(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return -own


def noise(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return own + 1.5 * honest.std() * random.normal(size=own.shape)


def little_is_enough(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(honest.mean(axis=0) - honest.std(axis=0), own.shape)


def min_max(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    mean, spread = honest.mean(axis=0), honest.std(axis=0)
    limit = np.linalg.norm(honest[:, None] - honest[None], axis=2).max()
    reach = [g for g in np.linspace(0, 20, 200) if np.linalg.norm(mean - g * spread - honest, axis=1).max() <= limit]
    return np.broadcast_to(mean - max(reach) * spread, own.shape)


def inner_product(honest: np.ndarray, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(-0.5 * honest.mean(axis=0), own.shape)


ATTACKS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    attack.__name__: attack
    for attack in (scaling, partial_scaling, sign_flipping, noise, little_is_enough, min_max, inner_product)
}
TAUGHT = tuple(attack for attack in ATTACKS if attack not in STRANGERS)


@dataclass(frozen=True, eq=False)
class World:
    """A place with its own direction of learning; the more ``unlike`` its hospitals, the harder to tell them apart."""

    seed: int
    unlike: float
    vae: VaeState = field(init=False)

    def __post_init__(self) -> None:
        sketches = np.concatenate([self.sketches(f"rehearsal {number}") for number in range(10)])
        object.__setattr__(self, "vae", UpdateVae().fit(sketches, generator=torch_generator(self.seed), steps=60))

    def step(self, name: str) -> np.ndarray:
        base = numpy_generator(self.seed, "base").normal(size=SIZE)
        return base + 0.5 * numpy_generator(self.seed, name, "step").normal(size=SIZE)

    def honest(self, name: str, n: int) -> np.ndarray:
        random, step = numpy_generator(self.seed, name, "hospitals"), self.step(name)
        classes = (random.dirichlet([0.5] * 3, n) - 1 / 3) @ random.normal(size=(3, SIZE))
        own = self.unlike * (1.5 * classes + 0.8 * random.normal(size=(n, SIZE)))
        return 0.01 * random.uniform(0.7, 1.4, (n, 1)) * (step + own)

    def sketches(self, name: str, n: int = 10) -> np.ndarray:
        rows = self.honest(name, n).astype(np.float32)
        return relative_sketches(measure(rows, rows[0]))

    def lesson(self, attack: str, number: int, *, n: int = 10, f: int = 3) -> Lesson:
        name = f"{attack} {number} {n}"
        random, step, deltas = numpy_generator(self.seed, name), self.step(name), self.honest(name, n)
        byzantine = np.zeros(n, dtype=bool)
        if attack != "none":
            byzantine[random.permutation(n)[:f]] = True
            deltas[byzantine] = ATTACKS[attack](deltas, deltas[byzantine], random)
        rows = deltas.astype(np.float32)
        root = (0.01 * (step + 0.8 * random.normal(size=SIZE))).astype(np.float32)
        measured = measure(rows, root)
        help_to_root = rows.astype(np.float64) @ step
        fingerprints = take(
            measured,
            hospital_ids=tuple(f"hospital-{i}" for i in range(n)),
            errors=UpdateVae().errors(self.vae, relative_sketches(measured)),
            shapley=help_to_root + 0.2 * np.abs(help_to_root).mean() * random.normal(size=n),
        )
        return Lesson(fingerprints, byzantine, attack)


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    """Fifty-six rounds of ten hospitals, as the server would play them by itself."""
    world = World(seed=1, unlike=1.2)
    return [world.lesson(attack, number) for attack in ("none", *TAUGHT, "none") for number in range(8)]


@pytest.fixture(scope="module")
def elsewhere() -> World:
    """Where the taught are examined: other directions, hospitals less alike than in the lessons."""
    return World(seed=2, unlike=1.6)


@pytest.fixture(scope="module")
def skills(lessons: list[Lesson]) -> dict[str, object]:
    return {name_of(scorer): scorer.prepare(lessons, generator=torch_generator(3)) for scorer in SCORERS}


def name_of(scorer: TrustScorer) -> str:
    return type(scorer).__name__


each_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=name_of)


def half(fingerprints: Fingerprints) -> np.ndarray:
    return np.full(len(fingerprints.hospital_ids), 0.5)


def trust_in(scorer: TrustScorer, rounds: Sequence[Lesson], skill: object) -> tuple[np.ndarray, np.ndarray]:
    """All trust given in some rounds, and who lied."""
    given = [scorer.score(r.fingerprints, half(r.fingerprints), skill) for r in rounds]
    return np.concatenate(given), np.concatenate([r.byzantine for r in rounds])


def auc(scorer: TrustScorer, rounds: Sequence[Lesson], skill: object) -> float:
    trust, byzantine = trust_in(scorer, rounds, skill)
    return float(roc_auc_score(byzantine, -trust))


# --- the update VAE


def test_honest_updates_are_less_strange_than_noise_and_flipped_and_scaled_ones(elsewhere: World) -> None:
    honest = elsewhere.sketches("a round it has not seen")
    random = numpy_generator(0).normal(size=honest.shape)
    random *= np.linalg.norm(honest, axis=1, keepdims=True) / np.linalg.norm(random, axis=1, keepdims=True)
    vae = UpdateVae()
    usual = vae.errors(elsewhere.vae, honest).mean()
    assert usual < 0.95 * vae.errors(elsewhere.vae, random).mean()
    assert usual < 0.8 * vae.errors(elsewhere.vae, -honest).mean()
    assert usual < 0.1 * vae.errors(elsewhere.vae, 5 * honest).mean()


@pytest.mark.parametrize("length", [1e6, 1e30, np.inf])
def test_an_update_of_any_length_has_a_finite_and_large_error(elsewhere: World, length: float) -> None:
    honest = elsewhere.sketches("a round it has not seen")
    errors = UpdateVae().errors(elsewhere.vae, np.float32(length) * honest)
    assert np.isfinite(errors).all()
    assert errors.min() > 10 * UpdateVae().errors(elsewhere.vae, honest).max()


def test_the_error_is_that_of_the_latent_mean(elsewhere: World) -> None:
    honest = elsewhere.sketches("a round it has not seen")
    weights = {name: value.double().numpy() for name, value in elsewhere.vae.weights.items()}

    def through(part: str, row: np.ndarray) -> np.ndarray:
        for layer in (0, 2, 4):
            row = weights[f"{part}.{layer}.weight"] @ row + weights[f"{part}.{layer}.bias"]
            row = row if layer == 4 else np.maximum(row, 0)
        return row

    slow = []
    for sketch in honest.astype(np.float64):
        restored = through("decoder", through("encoder", sketch * SKETCH**0.5)[:64]) / SKETCH**0.5
        slow.append(((restored - sketch) ** 2).sum())
    np.testing.assert_allclose(UpdateVae().errors(elsewhere.vae, honest), slow, rtol=1e-4)


def test_a_refresh_follows_updates_that_turn_elsewhere() -> None:
    old, new = World(seed=1, unlike=1.0), World(seed=2, unlike=1.0)
    vae, recent = UpdateVae(), new.sketches("this round")
    fresh = vae.fit(recent, state=old.vae, generator=torch_generator(0), steps=30)
    later = new.sketches("the next round")
    assert vae.errors(fresh, later).mean() < 0.9 * vae.errors(old.vae, later).mean()


def test_a_fit_depends_on_its_generator_alone_and_changes_nothing_it_was_given() -> None:
    sketches = numpy_generator(0).normal(size=(20, SKETCH))
    vae, before = UpdateVae(), torch.random.get_rng_state()
    first = vae.fit(sketches, generator=torch_generator(1), steps=3)
    torch.manual_seed(99)
    again = vae.fit(sketches, generator=torch_generator(1), steps=3)
    other = vae.fit(sketches, generator=torch_generator(2), steps=3)
    torch.random.set_rng_state(before)
    errors = vae.errors(first, sketches)
    np.testing.assert_array_equal(errors, vae.errors(again, sketches))
    assert (errors != vae.errors(other, sketches)).all()
    vae.fit(sketches, state=first, generator=torch_generator(1), steps=3)
    np.testing.assert_array_equal(errors, vae.errors(first, sketches))
    assert torch.equal(before, torch.random.get_rng_state())


@given(arrays(np.float64, (3, SKETCH), elements=st.floats(-1, 1)), st.floats(-6, 6))
@settings(max_examples=50, deadline=None)
def test_a_sketch_is_cut_to_a_sane_length_in_its_own_direction(sketches: np.ndarray, magnitude: float) -> None:
    sketches = sketches * 10**magnitude
    cut = bounded(sketches)
    for row, short in zip(sketches, cut, strict=True):
        length = np.linalg.norm(row)
        expected = row if length <= LONGEST else LONGEST * row / length
        np.testing.assert_allclose(short, expected, rtol=1e-5, atol=1e-12)


def test_the_vae_says_when_it_has_nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="got none"):
        UpdateVae().fit(np.empty((0, SKETCH)), generator=torch_generator(0), steps=1)


# --- all scorers


@each_scorer
def test_a_scorer_recognises_the_lies_it_was_taught(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World
) -> None:
    for attack in TAUGHT:
        rounds = [elsewhere.lesson(attack, number) for number in range(5)]
        trust, byzantine = trust_in(scorer, rounds, skills[name_of(scorer)])
        assert ((trust < 0.5) == byzantine).mean() > 0.9, attack
        assert auc(scorer, rounds, skills[name_of(scorer)]) > 0.95, attack


@each_scorer
def test_a_scorer_recognises_lies_that_no_lesson_showed(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World
) -> None:
    for attack in STRANGERS:
        rounds = [elsewhere.lesson(attack, number) for number in range(5)]
        assert auc(scorer, rounds, skills[name_of(scorer)]) > 0.9, attack


@each_scorer
def test_where_nobody_lies_few_are_distrusted(scorer: TrustScorer, skills: dict[str, object], elsewhere: World) -> None:
    trust, _ = trust_in(scorer, [elsewhere.lesson("none", number) for number in range(5)], skills[name_of(scorer)])
    assert (trust < 0.5).mean() < 0.25


@each_scorer
@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 1), (50, 15)])
def test_a_scorer_takes_federations_of_other_sizes_than_it_was_taught_in(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World, n: int, f: int
) -> None:
    rounds = [elsewhere.lesson("sign_flipping" if f else "none", number, n=n, f=f) for number in range(3)]
    trust, byzantine = trust_in(scorer, rounds, skills[name_of(scorer)])
    assert trust.shape == (3 * n,)
    assert trust.dtype == np.float64
    assert trust.min() >= 0
    assert trust.max() <= 1
    if f:
        assert ((trust < 0.5) == byzantine).mean() > 0.9


@each_scorer
def test_the_order_of_the_hospitals_does_not_matter(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World
) -> None:
    original = elsewhere.lesson("noise", 0).fingerprints
    order = numpy_generator(0).permutation(10)
    shuffled = Fingerprints(
        tuple(original.hospital_ids[i] for i in order),
        *(part[order] for part in (original.values, original.z, original.sketches, original.closest)),
    )
    reputation, skill = np.linspace(0, 1, 10), skills[name_of(scorer)]
    np.testing.assert_allclose(
        scorer.score(shuffled, reputation[order], skill), scorer.score(original, reputation, skill)[order], atol=1e-4
    )


@each_scorer
def test_a_stored_skill_scores_and_learns_as_before(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World
) -> None:
    skill, seen = skills[name_of(scorer)], elsewhere.lesson("scaling", 0)
    stored = pickle.loads(pickle.dumps(skill))
    after = []
    for state in (skill, stored):
        for _ in range(10):  # until the policy is refreshed too
            state = scorer.learn(
                seen.fingerprints, np.where(seen.byzantine, 0.0, 1.0), state, generator=torch_generator(4)
            )
        after.append(scorer.score(seen.fingerprints, half(seen.fingerprints), state))
    np.testing.assert_array_equal(*after)
    np.testing.assert_array_equal(
        *(scorer.score(seen.fingerprints, half(seen.fingerprints), state) for state in (skill, stored))
    )


@each_scorer
def test_the_same_seed_teaches_the_same(scorer: TrustScorer, lessons: list[Lesson]) -> None:
    few = lessons[::8]
    first, again, other = (weights_in(scorer.prepare(few, generator=torch_generator(seed))) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def weights_in(skill: object) -> list[torch.Tensor]:
    if isinstance(skill, DualAttentionSkill | PolicySkill):
        return list(skill.weights.values())
    return [weight for part in vars(skill).values() for weight in weights_in(part)]


@each_scorer
def test_a_scorer_says_that_it_needs_lessons(scorer: TrustScorer) -> None:
    assert isinstance(scorer, TrustScorer)
    assert scorer.needs_lessons
    with pytest.raises(ValueError, match="learns from lessons, got none"):
        scorer.prepare([], generator=torch_generator(0))


@each_scorer
def test_beliefs_turned_upside_down_do_not_talk_a_scorer_round(
    scorer: TrustScorer, skills: dict[str, object], elsewhere: World
) -> None:
    skill = skills[name_of(scorer)]
    for number in range(20):
        seen = elsewhere.lesson("sign_flipping", number)
        beliefs = np.where(seen.byzantine, 1.0, 0.0)
        skill = scorer.learn(seen.fingerprints, beliefs, skill, generator=torch_generator(6, number))
    for attack in ("sign_flipping", "scaling"):
        assert auc(scorer, [elsewhere.lesson(attack, number) for number in range(20, 25)], skill) > 0.9, attack


# --- the dual attention network


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = dual_attention._Attention()
    theirs = nn.MultiheadAttention(WIDTH, dual_attention.HEADS, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.read.weight,
            "in_proj_bias": ours.read.bias,
            "out_proj.weight": ours.write.weight,
            "out_proj.bias": ours.write.bias,
        }
    )
    tokens = torch.randn(3, 7, WIDTH)
    torch.testing.assert_close(ours(tokens), tokens + theirs(tokens, tokens, tokens)[0])


def test_rounds_learned_side_by_side_do_not_see_each_other(skills: dict[str, object], elsewhere: World) -> None:
    skill = skills["DualAttention"]
    assert isinstance(skill, DualAttentionSkill)
    rounds = [elsewhere.lesson("scaling", 0, n=5, f=1), elsewhere.lesson("none", 0, n=8)]
    examples = [dual_attention._example(r.fingerprints, ~r.byzantine, np.ones(len(r.byzantine))) for r in rounds]
    network = dual_attention._Network()
    network.load_state_dict(skill.weights)
    together, _ = network(examples)
    torch.testing.assert_close(together, torch.cat([network([example])[0] for example in examples]))


def test_trust_does_not_depend_on_directions_that_rehearsal_and_life_do_not_share(
    skills: dict[str, object], elsewhere: World
) -> None:
    seen = elsewhere.lesson("noise", 1).fingerprints
    width = SKETCH // CHUNKS
    turned = seen.sketches.copy()
    for chunk in range(CHUNKS):
        turn, _ = np.linalg.qr(numpy_generator(0, chunk).normal(size=(width, width)))
        columns = slice(chunk * width, (chunk + 1) * width)
        turned[:, columns] = seen.sketches[:, columns] @ turn
    scorer, skill = DualAttention(), skills["DualAttention"]
    np.testing.assert_allclose(
        scorer.score(replace(seen, sketches=turned), half(seen), skill),
        scorer.score(seen, half(seen), skill),
        atol=1e-4,
    )


def test_the_sketch_counts_beside_the_features(skills: dict[str, object], elsewhere: World) -> None:
    seen = elsewhere.lesson("none", 1).fingerprints
    scorer, skill = DualAttention(), skills["DualAttention"]
    flipped = seen.sketches.copy()
    flipped[0] *= -1
    before = scorer.score(seen, half(seen), skill)
    after = scorer.score(replace(seen, sketches=flipped), half(seen), skill)
    assert after[0] < before[0]


def test_a_clear_verdict_is_learned_and_an_unclear_one_is_not(skills: dict[str, object], elsewhere: World) -> None:
    scorer, skill = DualAttention(), skills["DualAttention"]
    seen = elsewhere.lesson("none", 2).fingerprints
    assert scorer.learn(seen, np.full(10, 0.7), skill, generator=torch_generator(0)) is skill
    trust = []
    for verdict in (0.0, 1.0):
        beliefs, learned = np.full(10, 0.5), skill
        beliefs[4] = verdict
        for number in range(3):
            learned = scorer.learn(seen, beliefs, learned, generator=torch_generator(0, number))
        trust.append(scorer.score(seen, half(seen), learned)[4])
    as_an_attacker, as_honest = trust
    assert as_an_attacker < as_honest - 0.01
    doubts = (np.where(beliefs == 1.0, 1.0, doubt) for doubt in (0.3, 0.7))
    low, high = (weights_in(scorer.learn(seen, doubt, skill, generator=torch_generator(0))) for doubt in doubts)
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))


# --- the policy


@given(st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_the_parts_of_a_reward_add_up_to_the_formula_of_the_paper(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    trust, byzantine, shapley = random.choice(LEVELS, n), random.random(n) < 0.4, random.normal(size=n)
    honest = ~byzantine
    accuracy = (trust * shapley).sum() / np.abs(shapley).sum()
    false_positives = (1 - trust[honest]).mean() if honest.any() else 0.0
    false_negatives = trust[byzantine].mean() if byzantine.any() else 0.0
    whole = accuracy - 2 * false_positives - 3 * false_negatives - 0.5 * trust.var()
    assert rewards(trust, byzantine.astype(float), shapley, TrustPolicy()).sum() == pytest.approx(whole)


def test_a_faint_suspicion_against_everybody_is_no_attacker() -> None:
    full, none = np.ones(10), np.zeros(10)
    suspicion = np.full(10, 0.05)
    trusting, refusing = (rewards(w, suspicion, none, TrustPolicy()).sum() for w in (full, none))
    assert trusting > refusing


def test_the_target_is_judged_by_the_target_network_on_the_choice_of_the_online_one() -> None:
    torch.manual_seed(0)
    online, target = nn.Linear(4, len(LEVELS)), nn.Linear(4, len(LEVELS))
    batch = Transitions(
        torch.randn(40, 4),
        torch.zeros(40, dtype=torch.int64),
        torch.randn(40),
        torch.randn(40, 4),
        torch.rand(40) < 0.7,
    )
    slow = []
    for reward, following, goes_on in zip(batch.rewards, batch.following, batch.goes_on, strict=True):
        values = online(following).tolist()
        choice = values.index(max(values))
        slow.append(reward.item() + (0.9 * target(following)[choice].item() if goes_on else 0.0))
    fast = double_dqn_targets(batch, online=online, target=target, discount=0.9)
    torch.testing.assert_close(fast, torch.tensor(slow))
    overrated = batch.rewards + 0.9 * target(batch.following).max(dim=1).values * batch.goes_on
    assert (fast < overrated).any()  # so that the plain DQN would fail here


@given(st.lists(st.sampled_from("abcd"), max_size=20))
def test_a_transition_leads_to_the_next_round_of_the_same_hospital(hospitals: list[str]) -> None:
    slow = [
        next((later for later in range(row + 1, len(hospitals)) if hospitals[later] == hospital), -1)
        for row, hospital in enumerate(hospitals)
    ]
    assert policy._next_rows(hospitals).tolist() == slow


def test_lessons_of_one_attack_are_one_episode(skills: dict[str, object], lessons: list[Lesson]) -> None:
    skill = skills["TrustPolicy"]
    assert isinstance(skill, PolicySkill)
    assert [len(episode) for episode in skill.lessons] == [8] * 7
    values = np.concatenate([step.shapley for episode in skill.lessons for step in episode])
    column = FEATURES.index("shapley")
    np.testing.assert_array_equal(values, np.concatenate([r.fingerprints.values[:, column] for r in lessons]))


def test_the_policy_gives_one_of_six_levels(skills: dict[str, object], elsewhere: World) -> None:
    trust, _ = trust_in(TrustPolicy(), [elsewhere.lesson("noise", 0)], skills["TrustPolicy"])
    assert set(trust) <= set(LEVELS)
    assert len(set(trust)) > 1


def test_the_policy_is_refreshed_every_ten_rounds_and_not_between(skills: dict[str, object], elsewhere: World) -> None:
    scorer, skill = TrustPolicy(), skills["TrustPolicy"]
    taught = weights_in(skill)
    for number in range(9):
        seen = elsewhere.lesson("scaling", number)
        skill = scorer.learn(seen.fingerprints, 1.0 - seen.byzantine, skill, generator=torch_generator(number))
        assert all(torch.equal(a, b) for a, b in zip(taught, weights_in(skill), strict=True))
    skill = scorer.learn(seen.fingerprints, 1.0 - seen.byzantine, skill, generator=torch_generator(9))
    assert isinstance(skill, PolicySkill)
    assert not any(torch.equal(a, b) for a, b in zip(taught, weights_in(skill), strict=True))
    assert skill.recent == ()


def test_a_policy_that_is_punished_only_for_missed_attackers_trusts_none(
    lessons: list[Lesson], elsewhere: World
) -> None:
    strict = TrustPolicy(accuracy=0.0, false_alarm=0.0, miss=3.0, spread=0.0)
    skill = strict.prepare(lessons, generator=torch_generator(0))
    trust, byzantine = trust_in(strict, [elsewhere.lesson("sign_flipping", number) for number in range(3)], skill)
    assert trust[byzantine].max() == 0.0


# --- the hybrid


def test_the_hybrid_mixes_level_and_prior_by_tau(skills: dict[str, object], elsewhere: World) -> None:
    seen, skill = elsewhere.lesson("noise", 0).fingerprints, skills["Hybrid"]
    assert isinstance(skill, HybridSkill)
    prior = DualAttention().score(seen, half(seen), skill.prior)
    observation = np.column_stack([seen.table(), DualAttention().hidden(seen, skill.prior)])
    levels = TrustPolicy().act(observation, half(seen), skill.policy)
    assert np.abs(levels - prior).max() > 0
    for tau in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(Hybrid(tau=tau).score(seen, half(seen), skill), tau * levels + (1 - tau) * prior)


@pytest.mark.parametrize("tau", [-0.1, 1.5])
def test_tau_is_a_share(tau: float) -> None:
    with pytest.raises(ValueError, match="0 <= tau <= 1"):
        Hybrid(tau=tau)
