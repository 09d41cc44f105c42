"""One diagnosis through the deployments, each of which may be busy or gone: examine, purify, write down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from actors.endpoint.auditor import Entries
from actors.endpoint.diagnostician import SCANS_A_CALL, Question
from actors.endpoint.metrics import EndpointMetrics
from actors.endpoint.model_store import Examined, ModelName, Treated
from actors.endpoint.purifying import Flagged
from fedplatform.defence import Certificate, Diagnosis
from fedplatform.serving.audit import AuditEntry, AuditError

PATIENCE_S = 10.0  # for one stage; who waits longer is told to come back
TRIES = 2  # a stage is a pure function of the scan, so where a replica dies another one is asked


class Unavailable(Exception):  # noqa: N818 - an answer: come back
    """A part of the server is busy, or being restarted."""


@dataclass
class Stopwatch:
    """Milliseconds by stage."""

    metrics: EndpointMetrics
    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, 1000 * (time.perf_counter() - started))

    def add(self, name: str, milliseconds: float) -> None:
        """A stage that was measured elsewhere."""
        self.milliseconds[name] = round(milliseconds, 2)
        self.metrics.took(name, milliseconds)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one scan; ``purified`` (c, h, w) and ``errors`` (patches,) only where pictures were asked for."""

    diagnosis: Diagnosis
    parts: dict[str, float]
    purified: np.ndarray | None
    errors: np.ndarray | None


class Pipeline:
    """Handles of the deployments behind the ingress."""

    def __init__(
        self,
        diagnostician: DeploymentHandle[Any],
        purifying: DeploymentHandle[Any],
        auditor: DeploymentHandle[Any],
        metrics: EndpointMetrics,
    ) -> None:
        self._diagnostician = diagnostician
        self._purifying = purifying
        self._auditor = auditor
        self._metrics = metrics
        self._purifying_now = 0

    async def warm(self, name: ModelName) -> None:
        """Have a model ready before it is asked."""
        for handle in (self._diagnostician, self._purifying):
            model = handle.options(multiplexed_model_id=str(name))
            await _with_retries(lambda model=model: model.warm.remote())  # type: ignore[misc]

    async def is_ready(self) -> bool:
        """Whether the log can be written; the other deployments are restarted by Serve where they are not well."""
        try:
            await _with_retries(self._auditor.head.remote)
        except (Unavailable, AuditError):
            return False
        return True

    async def diagnose(
        self, name: ModelName, scans: np.ndarray, watch: Stopwatch, *, wants_pictures: bool
    ) -> list[Outcome]:
        """What becomes of scans (n, c, h, w) uint8, in their order; raises :class:`Unavailable`."""
        parts = np.split(scans, range(SCANS_A_CALL, len(scans), SCANS_A_CALL))
        outcomes = await asyncio.gather(
            *(self._diagnosed(name, part, watch, wants_pictures=wants_pictures) for part in parts)
        )
        return [outcome for several in outcomes for outcome in several]

    async def certify(self, name: ModelName, scan: np.ndarray, *, sigma: float, samples: int, seed: int) -> Certificate:
        """A certificate of one scan (1, c, h, w) uint8; raises :class:`Unavailable`, or the model's ValueError."""
        model = self._purifying.options(multiplexed_model_id=str(name))
        certificate: Certificate = await _with_retries(
            lambda: model.certify.remote(scan, sigma=sigma, samples=samples, seed=seed)
        )
        return certificate

    async def write_down(self, entries: Entries) -> None:
        """Have entries on the disk; raises :class:`Unavailable` where that cannot be promised."""
        # Not tried twice: a first try may have been written, and a line that stands twice tells of two answers.
        try:
            await _with_retries(lambda: self._auditor.append.remote(entries), tries=1)
        except AuditError as error:
            raise Unavailable from error

    async def recent(self, hospital_ids: tuple[str, ...]) -> list[AuditEntry]:
        """The latest diagnoses for some hospitals, newest first."""
        entries: list[AuditEntry] = await _with_retries(lambda: self._auditor.recent.remote(hospital_ids))
        return entries

    async def _diagnosed(
        self, name: ModelName, scans: np.ndarray, watch: Stopwatch, *, wants_pictures: bool
    ) -> list[Outcome]:
        diagnostician = self._diagnostician.options(multiplexed_model_id=str(name))
        question = Question(scans, wants_pictures)
        with watch.stage("examine"):
            examined: Examined = await _with_retries(lambda: diagnostician.examine.remote(question))
        watch.add("examine_compute", examined.milliseconds)
        diagnoses = list(examined.diagnoses)
        purified = list(scans.astype(np.float32) / 255) if wants_pictures else [None] * len(scans)
        if examined.examination is not None:
            rows = [row for row, diagnosis in enumerate(diagnoses) if diagnosis is None]
            purifying = self._purifying.options(multiplexed_model_id=str(name))
            flagged = Flagged(scans[rows], examined.examination)
            self._purifying_now += 1
            self._metrics.under_way("purify", self._purifying_now)
            try:
                with watch.stage("purify"):
                    treated: Treated = await _with_retries(lambda: purifying.treat.remote(flagged))
            finally:
                self._purifying_now -= 1
                self._metrics.under_way("purify", self._purifying_now)
            watch.add("purify_compute", treated.milliseconds)
            for place, row in enumerate(rows):
                diagnoses[row] = treated.diagnoses[place]
                if wants_pictures:
                    purified[row] = treated.purified[place]
        outcomes = []
        for row, diagnosis in enumerate(diagnoses):
            assert diagnosis is not None
            errors = None if examined.errors is None else examined.errors[row]
            outcomes.append(Outcome(diagnosis, examined.parts[row], purified[row], errors))
        return outcomes


async def _with_retries(ask: Callable[[], Any], *, tries: int = TRIES) -> Any:
    """The response of a deployment, from another replica where the first one died; raises :class:`Unavailable`."""
    for left in reversed(range(tries)):
        response = ask()
        try:
            return await asyncio.wait_for(response, PATIENCE_S)
        except TimeoutError as error:
            response.cancel()
            raise Unavailable from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise Unavailable from error
        except RayActorError as error:
            if not left:
                raise Unavailable from error
    raise AssertionError("unreachable")
