"""The trust rule, whole: who counts, who does not, what is remembered, and what can never happen."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import ATTACKS
from fedplatform.core.messages import Aggregate, Evidence, Rehearsal
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.rule_text import describe_rule, parse_rule
from fedplatform.experiments.run import run
from fedplatform.federated.trust import SCORERS, OptiGradTrust
from fedplatform.federated.trust.descent import Descent, at_most
from fedplatform.federated.trust.optigradtrust import TrustMemory
from fedplatform.federated.trust.rehearsal import honest_sketches, lessons_from
from fedplatform.federated.trust.update_vae import UpdateVae

D = 600


@dataclass(frozen=True, eq=False)
class Valley:
    """A root set whose loss is the squared distance to a place that honest hospitals walk to."""

    place: np.ndarray

    @property
    def delta(self) -> np.ndarray:
        return np.float32(0.5) * self.place

    def losses(self, steps: np.ndarray) -> np.ndarray:
        return ((steps - self.place).astype(np.float64) ** 2).mean(axis=1)

    def gradient(self, step: np.ndarray) -> np.ndarray:
        return 2 * (step - self.place) / len(self.place)

    def rehearse(self, *, num_hospitals: int, num_rounds: int, generator: torch.Generator) -> Sequence[Rehearsal]:
        rounds = []
        for _ in range(num_rounds):
            honest = self.place + torch.randn(num_hospitals, len(self.place), generator=generator).numpy()
            rounds.append(Rehearsal(honest, np.float32(-0.3) * honest, self.delta, np.zeros_like(self.place), self))
        return rounds


def valley(seed: int = 0) -> Valley:
    return Valley(torch.randn(D, generator=torch.Generator().manual_seed(seed)).numpy())


def honest_updates(n: int, root: Valley, *, seed: int, noise: float = 1.0) -> np.ndarray:
    return (
        root.place + np.float32(noise) * torch.randn(n, D, generator=torch.Generator().manual_seed(seed + 100)).numpy()
    )


def evidence(n: int, root: Valley, *, memory: object = None, number: int = 1, counts: Sequence[int] = ()) -> Evidence:
    return Evidence(
        hospital_ids=tuple(f"h{row}" for row in range(n)),
        num_examples=np.array(counts or [100] * n),
        previous_delta=np.zeros(D, np.float32),
        generator=torch.Generator().manual_seed(number),
        round_number=number,
        root_delta=root.delta,
        root=root,
        memory=memory,
    )


def rounds(rule: OptiGradTrust, updates: Sequence[np.ndarray], root: Valley) -> list[Aggregate]:
    memory: object = None
    aggregates = []
    for number, deltas in enumerate(updates, start=1):
        aggregates.append(rule(deltas, evidence(len(deltas), root, memory=memory, number=number)))
        memory = aggregates[-1].memory
    return aggregates


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_names_attackers_it_was_not_taught_and_nobody_else(scorer: str) -> None:
    root = valley()
    rule = parse_rule(f"{scorer}+trust", f=3)
    assert isinstance(rule, OptiGradTrust)
    played = []
    for number in range(3):
        deltas = honest_updates(10, root, seed=number)
        deltas[:3] *= -4
        played.append(deltas)
    last = rounds(rule.without("sign_flip"), played, root)[-1]
    assert last.hostile.tolist() == [True] * 3 + [False] * 7
    assert last.weights[:3].sum() == 0
    assert last.delta @ root.place / np.linalg.norm(last.delta) / np.linalg.norm(root.place) > 0.8


@pytest.mark.parametrize("scorer", SCORERS)
def test_with_nobody_lying_nobody_is_shut_out_and_all_count_about_the_same(scorer: str) -> None:
    root = valley(1)
    rule = parse_rule(f"{scorer}+trust", f=3)
    last = rounds(rule, [honest_updates(10, root, seed=number) for number in range(3)], root)[-1]  # type: ignore[arg-type]
    assert not last.hostile.any()
    assert last.weights.min() > 0.02
    assert last.weights.max() < 0.21


def test_without_permutations_there_are_no_shapley_values_and_attackers_are_still_named() -> None:
    @dataclass(frozen=True, eq=False)
    class Costly(Valley):
        """A root set that nobody may ask what coalitions are worth."""

        def losses(self, steps: np.ndarray) -> np.ndarray:
            raise AssertionError("a coalition was valued")

    root = Costly(valley().place)
    updates = honest_updates(8, root, seed=1)
    updates[0] *= -1
    aggregate = OptiGradTrust(permutations=0)(updates, evidence(8, root))
    assert aggregate.hostile.tolist() == [True] + [False] * 7
    assert {judgement.shapley for judgement in aggregate.judgements} == {0.0}
    assert {judgement.z_shapley for judgement in aggregate.judgements} == {0.0}


def test_with_everybody_distrusted_the_step_is_zero_and_finite() -> None:
    @dataclass(frozen=True)
    class TrustsNobody:
        needs_lessons: bool = False

        def prepare(self, lessons: object, *, generator: torch.Generator) -> None: ...

        def score(self, fingerprints: object, reputation: np.ndarray, skill: object) -> np.ndarray:
            return np.zeros(len(reputation))

        def learn(self, *_: object, generator: torch.Generator) -> None: ...

    root = valley()
    for aggregate in rounds(OptiGradTrust(scorer=TrustsNobody()), [honest_updates(5, root, seed=0)] * 4, root):
        assert not aggregate.delta.any()
        assert not aggregate.weights.any()
        assert aggregate.hostile.all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), scale=st.sampled_from([0.0, 1e-30, 1.0, 1e6, 1e17]), byzantine=st.integers(0, 4))
def test_the_step_is_finite_and_bounded_whatever_a_minority_sends(seed: int, scale: float, byzantine: int) -> None:
    root = valley(seed)
    deltas = honest_updates(9, root, seed=seed)
    longest = float(np.linalg.norm(deltas, axis=1).max())
    deltas[:byzantine] = scale * torch.randn(byzantine, D, generator=torch.Generator().manual_seed(seed)).numpy()
    aggregate = OptiGradTrust()(deltas, evidence(9, root))
    assert np.isfinite(aggregate.delta).all()
    assert np.linalg.norm(aggregate.delta) <= 2.0 * longest * (1 + 1e-6)
    assert aggregate.weights.min() >= 0
    assert float(aggregate.weights.sum()) == pytest.approx(1.0)


def test_copies_have_one_vote_together_and_are_named() -> None:
    root = valley()
    deltas = honest_updates(8, root, seed=1)
    deltas[5:] = deltas[5]
    aggregate = OptiGradTrust(root_steps=0)(deltas, evidence(8, root))
    assert aggregate.hostile.tolist() == [False] * 5 + [True] * 3
    assert float(aggregate.weights[5:].sum()) == pytest.approx(float(aggregate.weights[0]))
    assert "same update" in aggregate.judgements[6].reason


def test_a_hospital_that_claims_a_million_scans_counts_little_more_than_others() -> None:
    root = valley()
    deltas = honest_updates(6, root, seed=2)
    weights = OptiGradTrust(root_steps=0)(deltas, evidence(6, root, counts=[100] * 5 + [10**6])).weights
    assert float(weights[5] / weights[0]) == pytest.approx(2.0)


def test_a_sleeper_is_shut_out_in_the_round_it_strikes_and_comes_back_when_it_behaves() -> None:
    root = valley()
    played = [honest_updates(8, root, seed=number) for number in range(24)]
    for number in range(5, 10):
        played[number] = played[number].copy()
        played[number][0] *= -4
    aggregates = rounds(OptiGradTrust(), played, root)
    out = [bool(aggregate.hostile[0]) for aggregate in aggregates]
    assert out[:5] == [False] * 5
    assert all(out[5:10])
    assert not out[-1]
    reasons = [aggregate.judgements[0].reason for aggregate in aggregates]
    assert any(reason.startswith("excluded: ") and "root update" in reason for reason in reasons)
    assert any(reason.startswith("reinstated") for reason in reasons)


def test_a_hospital_that_misses_rounds_keeps_its_reputation() -> None:
    root = valley()
    deltas = honest_updates(6, root, seed=0)
    deltas[0] *= -4
    memory: object = None
    for number in (1, 2, 3):
        memory = OptiGradTrust()(deltas, evidence(6, root, memory=memory, number=number)).memory
    assert isinstance(memory, TrustMemory)
    gone = evidence(6, root, memory=memory, number=4)
    without = replace(gone, hospital_ids=gone.hospital_ids[1:], num_examples=gone.num_examples[1:])
    after = OptiGradTrust()(deltas[1:], without).memory
    assert isinstance(after, TrustMemory)
    assert after.standings["h0"] == memory.standings["h0"]
    assert after.standings["h0"].excluded


@pytest.mark.parametrize("scorer", SCORERS)
def test_what_is_remembered_can_be_stored_and_gives_the_same_bits(scorer: str) -> None:
    root = valley()
    rule = parse_rule(f"{scorer}+trust", f=2)
    first = rule(honest_updates(7, root, seed=0), evidence(7, root))
    deltas = honest_updates(7, root, seed=1)
    kept = rule(deltas, evidence(7, root, memory=first.memory, number=2))
    stored = rule(deltas, evidence(7, root, memory=pickle.loads(pickle.dumps(first.memory)), number=2))
    assert kept.delta.tobytes() == stored.delta.tobytes()


def test_the_rehearsal_never_plays_the_attack_that_it_must_not_know() -> None:
    root = valley()
    played = root.rehearse(num_hospitals=6, num_rounds=2, generator=torch.Generator().manual_seed(0))
    state = UpdateVae().fit(np.random.default_rng(0).normal(size=(8, 512)), generator=torch.Generator(), steps=1)

    sketches = honest_sketches(played)

    def taught(unseen: str) -> set[str]:
        generator = torch.Generator().manual_seed(1)
        lessons = lessons_from(
            played, sketches=sketches, unseen=unseen, vae=UpdateVae(), state=state, generator=generator
        )
        return {lesson.attack for lesson in lessons}

    everything = taught("")
    assert everything <= {"none", *ATTACKS}
    assert {"none", "sign_flip", "alie", "label_flip"} <= everything
    assert taught("alie") == everything - {"alie"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12), st.floats(1.0, 4.0))
@example([1.0, 5e-324], 1.0)
@example([1.0, 1.0, 5e-324], 1.0)
def test_a_cap_leaves_a_sum_of_one_and_nobody_above_it(raw: list[float], most: float) -> None:
    weights = np.array(raw)
    if not weights.sum() > 1e-6:
        return
    weights /= weights.sum()  # before they are counted: the smallest may become zero
    counted = np.count_nonzero(weights)
    capped = at_most(most / counted, weights)
    assert capped.sum() == pytest.approx(1.0)
    assert capped.max() <= most / counted + 1e-9
    assert (capped[weights == 0] == 0).all()


def test_the_descent_takes_weight_from_who_harms_the_root_set_and_lowers_its_loss() -> None:
    root = valley()
    deltas = honest_updates(8, root, seed=4)
    deltas[0] = -root.place
    even = np.full(8, 1 / 8)
    moved = Descent()(even, np.ones(8), deltas, root)
    assert moved[0] < 0.5 / 8
    before, after = root.losses(np.stack([even, moved]) @ deltas)
    assert after < before


def test_a_rule_is_read_and_written_as_the_same_text() -> None:
    for text in ("trust", "network+trust", "hybrid+trust(clip=3.0)", "trust(fall=0.5, unseen='alie')"):
        assert describe_rule(parse_rule(text, f=3)) == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "trust", "root_size": 0}, "needs the server's own clean scans"),
        ({"rule": "nnm+network+trust"}, "one scorer"),
        ({"rule": "netwrk+trust"}, "did you mean 'network'"),
    ],
)
def test_a_trust_rule_that_cannot_work_is_refused_in_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        Experiment.from_settings(changes)


def test_a_run_leaves_trust_reputation_and_fingerprints_behind(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(rule="trust", attack="sign_flip", rounds=3)
    folder, _ = run(experiment, engine=InProcessEngine(), runs=tmp_path, name="trusted", shards=shards)
    table = pd.read_parquet(folder.path / "hospitals.parquet")
    features = ["reconstruction_error", "root_cosine", "peer_cosine", "norm", "sign_agreement", "shapley"]
    for column in ["trust", "reputation", *features, *(f"z_{name}" for name in features)]:
        assert np.isfinite(table[column]).all(), column
    byzantine = table[table["is_byzantine"]]
    assert byzantine["trust"].mean() < table[~table["is_byzantine"]]["trust"].mean()
    assert (byzantine["reason"] != "").all()
    page = (folder.path / "report.html").read_text()
    assert "Trust over rounds" in page
    assert "Fingerprints of the updates" in page
