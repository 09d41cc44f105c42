"""The deployment that sees every scan: classifier and detector."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import torch
from ray import serve

from actors.endpoint.arguments import EndpointArguments
from actors.endpoint.model_store import Examined, Model, ModelName, ModelStore

MODELS_AT_HAND = 16  # a replica keeps; the one that was not asked for longest goes first
SCANS_A_BATCH = 32
WAIT_S = 0.002  # for company: while one batch is computed the next one gathers anyway
SCANS_A_CALL = 16


@dataclass(frozen=True, eq=False)
class Question:
    """At most :data:`SCANS_A_CALL` scans (n, c, h, w) uint8 of one upload."""

    scans: np.ndarray
    wants_map: bool


def _scans(questions: list[Question]) -> int:
    return sum(len(question.scans) for question in questions)


@serve.deployment(max_ongoing_requests=64, max_queued_requests=64, health_check_period_s=2, health_check_timeout_s=30)
class Diagnostician:
    """Answers the first half of a diagnosis, the questions of one model as one batch."""

    def __init__(self, arguments: EndpointArguments) -> None:
        torch.set_num_threads(1)  # sums must run in one order, and replicas are many
        self._store = ModelStore(arguments)

    @serve.multiplexed(max_num_models_per_replica=MODELS_AT_HAND)  # type: ignore[untyped-decorator]
    async def model(self, name: str) -> Model:
        """The model of a name, from memory or from the store."""
        return await asyncio.to_thread(self._store.load, ModelName.parse(name))

    async def warm(self) -> None:
        """Have the model of this call ready."""
        await self.model(serve.get_multiplexed_model_id())

    @serve.batch(max_batch_size=SCANS_A_BATCH, batch_wait_timeout_s=WAIT_S, batch_size_fn=_scans)
    async def examine(self, questions: list[Question]) -> list[Examined]:
        """What is made of each question's scans; all of them are for the same model."""
        model = await self.model(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(_examine, model, questions)


def _examine(model: Model, questions: list[Question]) -> list[Examined]:
    started = time.perf_counter()
    examination, diagnoses = model.examine(np.concatenate([question.scans for question in questions]))
    milliseconds = 1000 * (time.perf_counter() - started)
    answers = []
    first = 0
    for question in questions:
        rows = slice(first, first + len(question.scans))
        first = rows.stop
        deep = examination[rows]
        answers.append(
            Examined(
                diagnoses=diagnoses[rows],
                parts=tuple(
                    {name: float(values[row]) for name, values in deep.parts.items()} for row in range(len(deep.depth))
                ),
                examination=deep[deep.depth.nonzero().flatten()] if deep.depth.any() else None,
                errors=model.patch_errors(question.scans) if question.wants_map else None,
                milliseconds=milliseconds,
            )
        )
    return answers
