"""The dual attention network: a prior of trust from what an update looks like and from who sent one like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedplatform.federated.trust.fingerprint import SKETCH, Fingerprints
from fedplatform.federated.trust.networks import Weights, adam, initialised, with_weights
from fedplatform.federated.trust.scorer import Lesson
from fedplatform.federated.trust.update_vae import bounded

CHUNKS = 8
HEADS = 4
WIDTH = 32
FEATURES_OF_A_ROUND = 13  # columns of Fingerprints.table()
STEPS = 150
HOSPITALS_A_STEP = 80
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1.0
NOISE = 0.1  # on the table while it learns: real rounds are not quite like rehearsed ones
REFRESHER_STEPS = 4
LESSONS_A_REFRESHER_STEP = 7
REFRESHER_RATE = 5e-4
CLEAR = 0.1  # a belief this near to 0 or 1 is a verdict to learn from


@dataclass(frozen=True, eq=False)
class Example:
    """A round as the network sees it, with its answer.

    ``chunks`` (n, CHUNKS, 2) say how long each chunk of a sketch is and how far it points where the round points,
    ``table`` (n, 13) is that of the fingerprints, ``cosines`` (n, n) are of the sketches; ``honest`` (n,) is 1 or 0 and
    ``weights`` (n,) how much each answer counts. All float32. No number here changes when the sketches of a round are
    turned together, chunk by chunk: of directions, which rehearsal and life do not share, nothing can be learned.
    """

    chunks: torch.Tensor
    table: torch.Tensor
    cosines: torch.Tensor
    honest: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, eq=False)
class DualAttentionSkill:
    """What the network has learned, and the lessons that it repeats so as not to forget them."""

    weights: Weights
    lessons: tuple[Example, ...]


@dataclass(frozen=True)
class DualAttention:
    """The dual attention network of OptiGradTrust (arXiv 2507.23638) as a trust scorer.

    Local attention over the chunks of a hospital's sketch and global attention over the round's hospitals give g; the
    features f are gated, alpha = softmax(W_f f + b), f_att = alpha * f; h = tanh(W_g g + W_f f_att + b); the trust is
    sigmoid(u.h + b). Trained by cross-entropy on lessons, attackers and honest hospitals counting the same in sum.
    During the run it takes a few steps after every round on the hospitals whose verdict was clear, each time among
    lessons, so that nobody can talk it round. The order of the hospitals does not matter.
    """

    skill_kinds: ClassVar[tuple[type, ...]] = (DualAttentionSkill, Example)

    @property
    def needs_lessons(self) -> bool:
        """It has to be taught."""
        return True

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> DualAttentionSkill:
        """Learn the lessons. Raises ValueError where there are none."""
        if not lessons:
            raise ValueError("DualAttention learns from lessons, got none")
        byzantine = np.concatenate([lesson.byzantine for lesson in lessons])
        byzantine_weight = float((~byzantine).sum() / max(byzantine.sum(), 1))
        examples = tuple(
            _example(lesson.fingerprints, ~lesson.byzantine, np.where(lesson.byzantine, byzantine_weight, 1.0))
            for lesson in lessons
        )
        network = with_weights(_Network, initialised(_Network, generator))
        optimizer = adam(network, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        count = max(1, round(HOSPITALS_A_STEP * len(lessons) / len(byzantine)))
        for _ in range(STEPS):
            _step(network, optimizer, _drawn(examples, count, generator), generator)
        return DualAttentionSkill(dict(network.state_dict()), examples)

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) float64, from this round alone: a prior knows no reputation."""
        logits, _ = _answer(fingerprints, skill)
        trust: np.ndarray = torch.sigmoid(logits.double()).numpy()
        return trust

    def hidden(self, fingerprints: Fingerprints, skill: object) -> np.ndarray:
        """The h behind the trust: (n, WIDTH) float32, -1 to 1."""
        hidden: np.ndarray = _answer(fingerprints, skill)[1].numpy()
        return hidden

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> DualAttentionSkill:
        """The skill after a round; unchanged where no verdict was clear."""
        assert isinstance(skill, DualAttentionSkill)
        clear = np.abs(beliefs - 0.5) > 0.5 - CLEAR
        if not clear.any():
            return skill
        own = _example(fingerprints, beliefs > 0.5, clear.astype(np.float64))
        network = with_weights(_Network, skill.weights)
        optimizer = adam(network, learning_rate=REFRESHER_RATE)
        for _ in range(REFRESHER_STEPS):
            _step(network, optimizer, [own, *_drawn(skill.lessons, LESSONS_A_REFRESHER_STEP, generator)], generator)
        return replace(skill, weights=dict(network.state_dict()))


def _example(fingerprints: Fingerprints, honest: np.ndarray, weights: np.ndarray) -> Example:
    sketches = bounded(fingerprints.sketches).astype(np.float64)
    norms = np.linalg.norm(sketches, axis=1)
    units = sketches / np.maximum(norms, 1e-12)[:, None]
    chunks = sketches.reshape(len(sketches), CHUNKS, SKETCH // CHUNKS)
    lengths = np.linalg.norm(chunks, axis=2)
    consensus = units.mean(axis=0).reshape(CHUNKS, SKETCH // CHUNKS)  # of units: nobody buys it by length
    scale = np.maximum(lengths * np.linalg.norm(consensus, axis=1), 1e-12)
    seen = np.stack(
        [
            np.tanh(np.log(np.maximum(lengths, 1e-12) * CHUNKS**0.5)),
            np.einsum("nce,ce->nc", chunks, consensus) / scale,
        ],
        axis=2,
    )
    return Example(
        torch.from_numpy(seen.astype(np.float32)),
        torch.from_numpy(fingerprints.table()),
        torch.from_numpy(np.einsum("ie,je->ij", units, units).astype(np.float32)),
        torch.from_numpy(honest.astype(np.float32)),
        torch.from_numpy(weights.astype(np.float32)),
    )


def _answer(fingerprints: Fingerprints, skill: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(skill, DualAttentionSkill)
    nobody = np.zeros(len(fingerprints.hospital_ids))
    network = with_weights(_Network, skill.weights)
    with torch.inference_mode():
        logits, hidden = network([_example(fingerprints, nobody, nobody)])
    return logits, hidden


def _drawn(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    return [examples[i] for i in torch.randint(len(examples), (count,), generator=generator).tolist()]


def _step(
    network: _Network, optimizer: torch.optim.Optimizer, batch: Sequence[Example], generator: torch.Generator
) -> None:
    noisy = [
        replace(example, table=example.table + NOISE * torch.randn(example.table.shape, generator=generator))
        for example in batch
    ]
    logits, _ = network(noisy)
    honest = torch.cat([example.honest for example in batch])
    weights = torch.cat([example.weights for example in batch])
    errors = functional.binary_cross_entropy_with_logits(logits, honest, reduction="none")
    loss = (weights * errors).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class _Attention(nn.Module):
    """Multi-head self-attention with a residual: (..., t, WIDTH) to the same; ``bias`` is added to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, 3 * WIDTH)
        self.write = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        split = self.read(tokens).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        queries, keys, values = split.movedim(-3, 0).transpose(-3, -2)
        logits = queries @ keys.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        seen = torch.softmax(logits if bias is None else logits + bias, dim=-1) @ values
        return tokens + self.write(seen.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chunk = nn.Linear(2, WIDTH)
        self.local_attention = _Attention()
        self.global_attention = _Attention()
        self.nearness = nn.Parameter(torch.zeros(HEADS))  # how much a cosine draws attention, one slope a head
        self.gate = nn.Linear(FEATURES_OF_A_ROUND, FEATURES_OF_A_ROUND)
        self.from_sketch = nn.Linear(WIDTH, WIDTH, bias=False)
        self.from_features = nn.Linear(FEATURES_OF_A_ROUND, WIDTH)
        self.trust = nn.Linear(WIDTH, 1)

    def forward(self, rounds: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """The logit (N,) and the hidden state (N, WIDTH) of all hospitals of all rounds, in order.

        The rounds stand beneath each other, so that they need not be of one size, and global attention is cut to
        within each.
        """
        same_round = torch.block_diag(*[torch.ones_like(r.cosines) for r in rounds]) > 0
        cosines = torch.block_diag(*[r.cosines for r in rounds])
        bias = (self.nearness[:, None, None] * cosines).masked_fill(~same_round, -torch.inf)
        pieces = torch.cat([r.chunks for r in rounds])
        alone = self.local_attention(functional.relu(self.chunk(pieces))).mean(dim=1)
        sketch = self.global_attention(alone, bias)
        features = torch.cat([r.table for r in rounds])
        # Times their number, so that an even gate leaves the features as they are.
        gated = FEATURES_OF_A_ROUND * torch.softmax(self.gate(features), dim=1) * features
        hidden = torch.tanh(self.from_sketch(sketch) + self.from_features(gated))
        return self.trust(hidden).squeeze(1), hidden
