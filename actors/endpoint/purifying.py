"""The deployment that sees flagged scans alone: purifier and vote; and the one that certifies, which is as dear."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import torch
from ray import serve

from actors.endpoint.arguments import EndpointArguments
from actors.endpoint.diagnostician import MODELS_AT_HAND, WAIT_S
from actors.endpoint.model_store import Model, ModelName, ModelStore, Treated
from fedplatform.defence import Certificate, Examination

SCANS_A_BATCH = 16  # each of them becomes as many copies as vote


@dataclass(frozen=True, eq=False)
class Flagged:
    """Scans (n, c, h, w) uint8 that are to be purified, and what was found in them."""

    scans: np.ndarray
    examination: Examination


def _scans(flagged: list[Flagged]) -> int:
    return sum(len(one.scans) for one in flagged)


@serve.deployment(max_ongoing_requests=64, max_queued_requests=64, health_check_period_s=2, health_check_timeout_s=30)
class Purifying:
    """Answers the second half of a diagnosis."""

    def __init__(self, arguments: EndpointArguments) -> None:
        torch.set_num_threads(1)
        self._store = ModelStore(arguments)

    @serve.multiplexed(max_num_models_per_replica=MODELS_AT_HAND)  # type: ignore[untyped-decorator]
    async def model(self, name: str) -> Model:
        """The model of a name, from memory or from the store."""
        return await asyncio.to_thread(self._store.load, ModelName.parse(name))

    async def warm(self) -> None:
        """Have the model of this call ready."""
        await self.model(serve.get_multiplexed_model_id())

    @serve.batch(max_batch_size=SCANS_A_BATCH, batch_wait_timeout_s=WAIT_S, batch_size_fn=_scans)
    async def treat(self, flagged: list[Flagged]) -> list[Treated]:
        """What is made of each item's scans; all of them are for the same model."""
        model = await self.model(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(_treat, model, flagged)

    async def certify(self, scan: np.ndarray, *, sigma: float, samples: int, seed: int) -> Certificate:
        """A certificate of one scan (1, c, h, w) uint8; raises ValueError for a sigma that was not learned."""
        model = await self.model(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(model.certify, scan, sigma=sigma, samples=samples, seed=seed)


def _treat(model: Model, flagged: list[Flagged]) -> list[Treated]:
    started = time.perf_counter()
    diagnoses, purified = model.treat(
        np.concatenate([one.scans for one in flagged]), Examination.cat([one.examination for one in flagged])
    )
    milliseconds = 1000 * (time.perf_counter() - started)
    answers = []
    first = 0
    for one in flagged:
        rows = slice(first, first + len(one.scans))
        first = rows.stop
        answers.append(Treated(diagnoses[rows], purified[rows].copy(), milliseconds))
    return answers
