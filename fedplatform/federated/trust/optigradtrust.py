"""OptiGradTrust: fingerprint, score, remember, clip, and weigh; the trust-scoring aggregation rule, whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch

from fedplatform.core.messages import Aggregate, Evidence, Judgement, Root
from fedplatform.core.vectors import combine, cosines_from, shrinkage
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates
from fedplatform.federated.trust.anomaly import AnomalyDetection
from fedplatform.federated.trust.descent import Descent
from fedplatform.federated.trust.fingerprint import (
    COPY,
    FEATURES,
    Fingerprints,
    Measurements,
    measure,
    relative_sketches,
    take,
)
from fedplatform.federated.trust.idling import WORDS, idling
from fedplatform.federated.trust.rehearsal import HOSPITALS, ROUNDS, honest_sketches, lessons_from
from fedplatform.federated.trust.reputation import Reputation, Standing
from fedplatform.federated.trust.robust import RobustScores
from fedplatform.federated.trust.scorer import TrustScorer
from fedplatform.federated.trust.shapley import GuidedShapley
from fedplatform.federated.trust.update_vae import UpdateVae, VaeState
from fedplatform.federated.trust.worth import worth_of

FIRST_STEPS = 60  # of the update VAE before the first round
REFRESH_EVERY = 20  # rounds between its refreshments (the paper's)
REFRESH_STEPS = 40
KEPT_SKETCHES = 400
DISTRUSTED = 0.2  # the lowest positive trust level of the paper; below it nothing of an update is used
BY_RULE = RobustScores()


@dataclass(frozen=True, eq=False)
class TrustMemory:
    """What the rule carries over rounds: standings and smoothed Shapley values by hospital, and what it has learned.

    ``sketches`` (m, SKETCH) are of the updates that were believed, for the VAE to be refreshed with.
    """

    standings: dict[str, Standing]
    shapley: dict[str, float]
    vae: VaeState
    sketches: np.ndarray
    skill: object


@dataclass(frozen=True)
class OptiGradTrust(Aggregator):
    """OptiGradTrust (Karami et al., arXiv 2507.23638) with reputation (after ITEGAM-JETIA 2026).

    Every update gets a six-feature fingerprint; a scorer turns it into this round's trust, and reputation carries that
    over rounds. A free rider (:func:`~fedplatform.federated.trust.idling.idling`) earns none. Hospitals that are
    distrusted now, or excluded by their reputation, do not count; the others count by trust times reputation, and by
    claimed examples up to ``count_cap`` times the median claim. Updates are cut to ``clip`` times the median norm of
    those who count. Updates that are copies of one another have one vote together. At last the weights themselves go
    down the root loss (:class:`Descent`): whoever lies so well that no feature shows it still has to help the root set
    in order to count.

    Hostile are the distrusted, the excluded and the copies. With everybody distrusted the step and the weights are
    zero. Knows nothing of f. Raises ValueError for n = 0 and without ``Evidence.root`` and its ``root_delta``.

    ``fall`` and ``rise`` are of :class:`Reputation`, whose value enters to the power ``reputation_power`` (0 forgets:
    it neither weighs nor excludes). ``permutations`` and ``smoothing`` are of the Shapley values: how many orders a
    round (0: none, and every value is 0), and how much of the newest value enters their moving average. ``root_steps``
    are of the descent (0: none). ``unseen`` names an attack that the rehearsal leaves out, for tables in which no
    scorer may have seen the attack that it is judged by.

    >>> from fedplatform.core.messages import Rehearsal
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> class Valley:  # a root set whose loss is the squared distance of a step to (1, ..., 1)
    ...     delta = np.ones(64, np.float32)
    ...     def losses(self, steps):
    ...         return ((steps - self.delta) ** 2).mean(axis=1)
    ...     def gradient(self, step):
    ...         return 2 * (step - self.delta) / 64
    ...     def rehearse(self, *, num_hospitals, num_rounds, generator):
    ...         rounds = 1 + torch.randn(num_rounds, num_hospitals, 64, generator=generator).numpy()
    ...         return [Rehearsal(honest, -honest, self.delta, 0 * self.delta, self) for honest in rounds]
    >>> updates = 1 + np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    >>> updates[0] *= -5
    >>> evidence = replace(default_evidence(updates), root=Valley(), root_delta=Valley.delta)
    >>> aggregate = OptiGradTrust()(updates, evidence)
    >>> aggregate.hostile.tolist(), aggregate.weights[0]
    ([True, False, False, False, False], np.float64(0.0))
    >>> aggregate.judgements[0].reason.split("; ")[:2]
    ['norm 4.8 times the median', 'points away from the root update']
    """

    scorer: TrustScorer = BY_RULE
    fall: float = 0.4
    rise: float = 0.2
    reputation_power: float = 1.0
    permutations: int = 10
    smoothing: float = 0.5
    clip: float = 2.0
    count_cap: float = 2.0
    root_steps: int = 3
    unseen: str = ""

    needs_root: ClassVar[bool] = True

    @property
    def memory_kinds(self) -> tuple[type, ...]:  # type: ignore[override]  # of an object and not of the class
        """What its memory is made of, for checkpoints.

        Raises ValueError for a scorer that learns and does not say what its skill is made of.
        """
        scorer = self.scorer
        if scorer.needs_lessons and not hasattr(scorer, "skill_kinds"):
            raise ValueError(f"{type(scorer).__name__} learns and must say what its skill is made of: skill_kinds")
        return (TrustMemory, Standing, VaeState, *getattr(scorer, "skill_kinds", ()))

    @property
    def reputation(self) -> Reputation:
        """How reputation is carried over rounds."""
        return Reputation(fall=self.fall, rise=self.rise)

    def without(self, attack: str) -> Self:
        """The same rule, never taught this attack."""
        return replace(self, unseen=attack)

    def require(self, *, hospitals: int, has_root: bool) -> None:
        """Raise ValueError where the rule cannot work."""
        if not has_root:
            raise ValueError("OptiGradTrust needs the server's own clean scans, got root_size=0")
        if hospitals < 3:
            raise ValueError(f"OptiGradTrust compares hospitals with their median and needs n >= 3, got n={hospitals}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, ids = len(deltas), evidence.hospital_ids
        require_updates(self, n)
        if evidence.root is None or evidence.root_delta is None:
            raise ValueError("OptiGradTrust needs evidence.root and its root_delta, got None")
        memory = evidence.memory
        if not isinstance(memory, TrustMemory):
            memory = self._prepare(evidence.root, evidence.generator)
        measured = measure(deltas, evidence.root_delta)
        shapley = self._shapley(deltas, measured, evidence, memory)
        sketches = relative_sketches(measured)
        fingerprints = take(
            measured,
            hospital_ids=ids,
            errors=UpdateVae().errors(memory.vae, sketches),
            shapley=np.array([shapley[name] for name in ids]),
        )
        before = [memory.standings.get(name) for name in ids]
        carried = np.array([standing.reputation if standing else self.reputation.start for standing in before])
        idle = idling(deltas, evidence.root_delta, evidence.previous_delta)
        trust = self.scorer.score(fingerprints, carried, memory.skill) * (1 - idle)
        after = [self.reputation.after(*pair) for pair in zip(before, trust.tolist(), strict=True)]
        if not self.reputation_power:
            after = [replace(standing, excluded=False) for standing in after]
        hostile = (trust < DISTRUSTED) | np.array([standing.excluded for standing in after])
        copies = cosines_from(measured.gram) >= COPY
        alone = copies.sum(axis=1) <= 1
        reputation = np.array([standing.reputation for standing in after])
        earned = np.where(hostile, 0.0, trust * reputation**self.reputation_power)
        weights = self._weights(earned, evidence.num_examples, copies=copies)
        factors = self._clipping(weights, measured.norms)
        weights = Descent(self.root_steps)(weights, factors, deltas, evidence.root)
        memory = TrustMemory(
            standings={**memory.standings, **dict(zip(ids, after, strict=True))},
            shapley={**memory.shapley, **shapley},
            vae=memory.vae,
            sketches=np.concatenate([memory.sketches, sketches[weights > 0]])[-KEPT_SKETCHES:],
            skill=self.scorer.learn(fingerprints, trust, memory.skill, generator=evidence.generator),
        )
        if evidence.round_number % REFRESH_EVERY == 0:
            memory = self._refreshed(memory, evidence.generator)
        return Aggregate(
            delta=combine(weights * factors, deltas),
            weights=weights,
            hostile=hostile | ~alone,
            judgements=_judgements(fingerprints, trust, before, after, idle),
            memory=memory,
        )

    def _prepare(self, root: Root, generator: torch.Generator) -> TrustMemory:
        """Rehearse, and learn from it what an honest update looks like and, where the scorer asks, what a lie does."""
        rounds = root.rehearse(num_hospitals=HOSPITALS, num_rounds=ROUNDS, generator=generator)
        sketches, vae = honest_sketches(rounds), UpdateVae()
        state = vae.fit(sketches, generator=generator, steps=FIRST_STEPS)
        lessons = (
            lessons_from(rounds, sketches=sketches, unseen=self.unseen, vae=vae, state=state, generator=generator)
            if self.scorer.needs_lessons
            else []
        )
        return TrustMemory({}, {}, state, sketches, self.scorer.prepare(lessons, generator=generator))

    def _shapley(
        self, deltas: np.ndarray, measured: Measurements, evidence: Evidence, memory: TrustMemory
    ) -> dict[str, float]:
        """This round's Shapley values, smoothed over rounds."""
        assert evidence.root is not None
        if not self.permutations:
            return dict.fromkeys(evidence.hospital_ids, 0.0)
        worth = worth_of(deltas, measured.norms, evidence.root)
        estimate = GuidedShapley(self.permutations)(worth, len(deltas), generator=evidence.generator)
        return {
            name: value + (1 - self.smoothing) * (memory.shapley.get(name, value) - value)
            for name, value in zip(evidence.hospital_ids, estimate.values.tolist(), strict=True)
        }

    def _weights(self, earned: np.ndarray, claims: np.ndarray, *, copies: np.ndarray) -> np.ndarray:
        """How much each hospital counts, (n,), summing to 1 or all zero, by what it has earned and what it claims."""
        counts = np.minimum(claims, self.count_cap * np.median(claims))
        votes = copies.sum(axis=1).clip(min=1)
        weights = earned * counts / votes
        total = weights.sum()
        shares: np.ndarray = weights / total if total > 0 else weights
        return shares

    def _clipping(self, weights: np.ndarray, norms: np.ndarray) -> np.ndarray:
        """The factors (n,) that leave no update longer than ``clip`` times the median of those that count."""
        counted = norms[weights > 0]
        return shrinkage(norms, self.clip * float(np.median(counted))) if len(counted) else np.zeros_like(norms)

    @staticmethod
    def _refreshed(memory: TrustMemory, generator: torch.Generator) -> TrustMemory:
        state = UpdateVae().fit(memory.sketches, state=memory.vae, generator=generator, steps=REFRESH_STEPS)
        return replace(memory, vae=state)


def _judgements(
    fingerprints: Fingerprints,
    trust: np.ndarray,
    before: list[Standing | None],
    after: list[Standing],
    idle: np.ndarray,
) -> tuple[Judgement, ...]:
    """What is thought of each hospital, and why, in words."""
    anomalies = AnomalyDetection()(fingerprints)
    judgements = []
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        words = "; ".join(filter(None, (WORDS if idle[row] > 0 else "", anomalies.words(row))))
        was_excluded = old is not None and old.excluded
        if new.excluded and not was_excluded:
            words = f"excluded: {words or 'its reputation fell too low'}"
        elif was_excluded and not new.excluded:
            words = "reinstated: its updates have been good again"
        elif new.excluded:
            words = f"still excluded: {words or 'its reputation is still low'}"
        elif trust[row] < DISTRUSTED:
            words = words or "distrusted by the scorer"
        features = dict(zip(FEATURES, fingerprints.values[row].tolist(), strict=True))
        scores = {f"z_{name}": score for name, score in zip(FEATURES, fingerprints.z[row].tolist(), strict=True)}
        judgements.append(
            Judgement(trust=float(trust[row]), reputation=new.reputation, **features, **scores, reason=words)
        )
    return tuple(judgements)
