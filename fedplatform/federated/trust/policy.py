"""A policy of trust levels, learned by a double DQN from rounds in which it is known who lied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedplatform.federated.trust.fingerprint import FEATURES, Fingerprints
from fedplatform.federated.trust.networks import Weights, adam, initialised, with_weights
from fedplatform.federated.trust.reputation import Reputation, Standing
from fedplatform.federated.trust.scorer import Lesson

LEVELS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
WIDTH = 64
SWEEPS = 10  # plays of all lessons, with ever fewer random levels
EPSILON = (1.0, 0.1)  # chance of a random level in the first sweep and in the last
STEPS_A_SWEEP = 40
BATCH = 128
LEARNING_RATE = 2e-3
REFRESHER_SWEEPS = 2
REFRESHER_RATE = 5e-4
NOISE = 0.1  # on what it sees while it learns: real rounds are not quite like rehearsed ones
REPUTATION = Reputation()  # by which hospitals of a lesson rise and fall with the levels that the policy gives them


@dataclass(frozen=True, eq=False)
class Step:
    """One round to act in: ``observation`` (n, k) float32 is what the policy sees of each hospital beside reputation.

    ``byzantine`` (n,) is the chance that it is Byzantine, 0 or 1 in a lesson; ``shapley`` (n,) its Shapley value.
    """

    hospital_ids: tuple[str, ...]
    observation: np.ndarray
    byzantine: np.ndarray
    shapley: np.ndarray


@dataclass(frozen=True, eq=False)
class Transitions:
    """What a policy has played, one row a hospital and round; ``following`` says nothing where nothing ``goes_on``.

    ``states`` and ``following`` are (m, k + 1) float32, ``actions`` (m,) int64 places in LEVELS, ``rewards`` (m,)
    float32, ``goes_on`` (m,) bool.
    """

    states: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    following: torch.Tensor
    goes_on: torch.Tensor


@dataclass(frozen=True, eq=False)
class PolicySkill:
    """The online network's weights, the lessons as episodes of steps, and the rounds since the last refresh."""

    weights: Weights
    lessons: tuple[tuple[Step, ...], ...]
    recent: tuple[Step, ...] = ()


@dataclass(frozen=True)
class TrustPolicy:
    """The trust policy of OptiGradTrust (arXiv 2507.23638), a double DQN (van Hasselt et al., AAAI 2016), as a scorer.

    One Q-network, the same for every hospital, gives each the level of LEVELS with the highest value. The reward of a
    round is ``accuracy`` * dACC - ``false_alarm`` * FPR - ``miss`` * FNR - ``spread`` * Var(w), split over hospitals by
    :func:`rewards`; ``discount`` is of the next round of the same attack. It is taught by playing the lessons over and
    over, and every ``refresh`` rounds plays them once more together with the federation's own rounds, in which the
    beliefs stand in for the truth.
    """

    accuracy: float = 1.0
    false_alarm: float = 2.0
    miss: float = 3.0
    spread: float = 0.5
    discount: float = 0.5
    refresh: int = 10

    skill_kinds: ClassVar[tuple[type, ...]] = (PolicySkill, Step)

    @property
    def needs_lessons(self) -> bool:
        """It has to be taught."""
        return True

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> PolicySkill:
        """Learn the lessons. Raises ValueError where there are none."""
        return self.practise(lessons, [lesson.fingerprints.table() for lesson in lessons], generator=generator)

    def practise(
        self, lessons: Sequence[Lesson], observations: Sequence[np.ndarray], *, generator: torch.Generator
    ) -> PolicySkill:
        """Learn lessons of whose hospitals the policy sees these ``observations``, one (n, k) float32 a lesson."""
        if not lessons:
            raise ValueError("TrustPolicy learns from lessons, got none")
        steps = [
            (lesson.attack, _step_of(lesson.fingerprints, observation, lesson.byzantine.astype(np.float64)))
            for lesson, observation in zip(lessons, observations, strict=True)
        ]
        episodes = tuple(tuple(s for _, s in group) for _, group in groupby(steps, key=lambda pair: pair[0]))
        weights = initialised(partial(_Network, observations[0].shape[1] + 1), generator)
        epsilons = np.linspace(*EPSILON, SWEEPS)
        weights = self._train(weights, episodes, epsilons, learning_rate=LEARNING_RATE, generator=generator)
        return PolicySkill(weights, episodes)

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) float64, each one of LEVELS."""
        return self.act(fingerprints.table(), reputation, skill)

    def act(self, observation: np.ndarray, reputation: np.ndarray, skill: object) -> np.ndarray:
        """The levels (n,) float64 of hospitals of whom the policy sees this (n, k) float32."""
        assert isinstance(skill, PolicySkill)
        network = with_weights(partial(_Network, observation.shape[1] + 1), skill.weights)
        with torch.inference_mode():
            values = network(_states(observation, reputation))
        levels: np.ndarray = LEVELS[values.argmax(dim=1).numpy()]
        return levels

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> PolicySkill:
        """The skill after a round."""
        return self.remember(fingerprints, fingerprints.table(), beliefs, skill, generator=generator)

    def remember(
        self,
        fingerprints: Fingerprints,
        observation: np.ndarray,
        beliefs: np.ndarray,
        skill: object,
        *,
        generator: torch.Generator,
    ) -> PolicySkill:
        """The skill after a round of whose hospitals the policy saw this (n, k) float32."""
        assert isinstance(skill, PolicySkill)
        recent = (*skill.recent, _step_of(fingerprints, observation, 1.0 - beliefs))
        if len(recent) < self.refresh:
            return replace(skill, recent=recent)
        epsilons = np.full(REFRESHER_SWEEPS, EPSILON[-1])
        weights = self._train(
            skill.weights, (*skill.lessons, recent), epsilons, learning_rate=REFRESHER_RATE, generator=generator
        )
        return replace(skill, weights=weights, recent=())

    def _train(
        self,
        weights: Weights,
        episodes: Sequence[Sequence[Step]],
        epsilons: np.ndarray,
        *,
        learning_rate: float,
        generator: torch.Generator,
    ) -> Weights:
        """Play all episodes once for each entry of ``epsilons``, and learn from all that was played so far.

        The target network is the online one as it was at the start of the sweep.
        """
        build = partial(_Network, episodes[0][0].observation.shape[1] + 1)
        online = with_weights(build, weights)
        optimizer = adam(online, learning_rate=learning_rate)
        played: list[Transitions] = []
        for epsilon in epsilons:
            played.extend(self._play(episode, online, epsilon, generator) for episode in episodes)
            replay = _joined(played)
            target = with_weights(build, dict(online.state_dict()))
            for _ in range(STEPS_A_SWEEP):
                batch = _rows(replay, torch.randint(len(replay.actions), (BATCH,), generator=generator))
                aims = double_dqn_targets(batch, online=online, target=target, discount=self.discount)
                values = online(batch.states).gather(1, batch.actions[:, None]).squeeze(1)
                loss = functional.mse_loss(values, aims)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return dict(online.state_dict())

    def _play(
        self, episode: Sequence[Step], online: nn.Module, epsilon: float, generator: torch.Generator
    ) -> Transitions:
        """Act through an episode, a random level with chance ``epsilon``; a reputation begins at random.

        It then follows the hospital's levels.
        """
        hospitals = [hospital for step in episode for hospital in step.hospital_ids]
        chances = torch.rand(len(hospitals), generator=generator).tolist()
        standings = {hospital: Standing(chance) for hospital, chance in zip(hospitals, chances, strict=True)}
        played: list[tuple[torch.Tensor, torch.Tensor, np.ndarray]] = []
        for step in episode:
            n = len(step.hospital_ids)
            states = _states(step.observation, np.array([standings[h].reputation for h in step.hospital_ids]))
            states[:, :-1] += NOISE * torch.randn(n, states.shape[1] - 1, generator=generator)
            with torch.inference_mode():
                greedy = online(states).argmax(dim=1)
            explores = torch.rand(n, generator=generator) < epsilon
            actions = torch.where(explores, torch.randint(len(LEVELS), (n,), generator=generator), greedy)
            levels = LEVELS[actions.numpy()]
            earned = n * rewards(levels, step.byzantine, step.shapley, self)  # times n: one size for every federation
            played.append((states, actions, earned))
            for hospital, level in zip(step.hospital_ids, levels.tolist(), strict=True):
                standings[hospital] = REPUTATION.after(standings[hospital], level)
        states = torch.cat([states for states, _, _ in played])
        actions = torch.cat([actions for _, actions, _ in played])
        earned = np.concatenate([earned for _, _, earned in played])
        following = _next_rows(hospitals)
        return Transitions(
            states, actions, torch.from_numpy(earned.astype(np.float32)), states[following], following >= 0
        )


def rewards(levels: np.ndarray, byzantine: np.ndarray, shapley: np.ndarray, policy: TrustPolicy) -> np.ndarray:
    """Each hospital's part (n,) float64 of a round's reward; their sum is the reward itself.

    ``levels`` (n,) are the trust given, ``byzantine`` (n,) the chance that it is Byzantine. dACC is the change of the
    root loss by the additivity of Shapley values, sum w phi / sum |phi|, so hospital k's part is its own term. FPR is
    the trust that the honest were refused over their number, FNR the trust that attackers were given over theirs; each
    is a sum over hospitals, and where beliefs stand in for the truth their numbers are expected ones, at least 1, so
    that a faint suspicion against everybody is no attacker. Var(w) is a mean over hospitals.
    """
    honest = 1.0 - byzantine
    helped = levels * shapley / max(float(np.abs(shapley).sum()), 1e-12)
    refused = honest * (1.0 - levels) / max(float(honest.sum()), 1.0)
    missed = byzantine * levels / max(float(byzantine.sum()), 1.0)
    varied = (levels - levels.mean()) ** 2 / len(levels)
    parts: np.ndarray = (
        policy.accuracy * helped - policy.false_alarm * refused - policy.miss * missed - policy.spread * varied
    )
    return parts


def double_dqn_targets(
    batch: Transitions,
    *,
    online: Callable[[torch.Tensor], torch.Tensor],
    target: Callable[[torch.Tensor], torch.Tensor],
    discount: float,
) -> torch.Tensor:
    """What the values of a batch are drawn to (van Hasselt et al., AAAI 2016): (m,) float32.

    r + discount * Q_target(s', argmax_a Q_online(s', a)): one network chooses and the other judges, so that no level is
    chosen for being overrated. Nothing is added where nothing goes on.
    """
    with torch.no_grad():
        chosen = online(batch.following).argmax(dim=1, keepdim=True)
        later = target(batch.following).gather(1, chosen).squeeze(1)
        return batch.rewards + discount * later * batch.goes_on


def _step_of(fingerprints: Fingerprints, observation: np.ndarray, byzantine: np.ndarray) -> Step:
    shapley = fingerprints.values[:, FEATURES.index("shapley")]
    return Step(fingerprints.hospital_ids, observation, byzantine, shapley)


def _states(observation: np.ndarray, reputation: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.column_stack([observation, reputation]).astype(np.float32))


def _next_rows(hospitals: Sequence[str]) -> torch.Tensor:
    """For each row the next one of the same hospital, -1 where there is none: (m,) int64."""
    upcoming: dict[str, int] = {}
    rows = torch.full((len(hospitals),), -1)
    for row in reversed(range(len(hospitals))):
        rows[row] = upcoming.get(hospitals[row], -1)
        upcoming[hospitals[row]] = row
    return rows


def _joined(parts: Sequence[Transitions]) -> Transitions:
    return Transitions(
        torch.cat([part.states for part in parts]),
        torch.cat([part.actions for part in parts]),
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.following for part in parts]),
        torch.cat([part.goes_on for part in parts]),
    )


def _rows(replay: Transitions, rows: torch.Tensor) -> Transitions:
    return Transitions(
        replay.states[rows], replay.actions[rows], replay.rewards[rows], replay.following[rows], replay.goes_on[rows]
    )


class _Network(nn.Sequential):
    """Q-values: (m, inputs) to (m, len(LEVELS))."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(LEVELS))
        )
