"""The one writer of the audit log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ray import serve

from actors.endpoint.arguments import EndpointArguments
from fedplatform.serving.audit import Anchor, AuditEntry, AuditError, CertificateEntry
from fedplatform.serving.audit_log import AuditLog, BrokenLogError, rotate

REMEMBERED = 50  # diagnoses, of each hospital
PATIENCE_S = 20.0  # for the replica before this one to let go of the log

log = logging.getLogger("ray.serve")  # of which Serve keeps the files

Entries = tuple[AuditEntry | CertificateEntry, ...]


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    max_queued_requests=256,
    health_check_period_s=2,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 0},  # it waits for the disk
)
class Auditor:
    """Writes down what is about to be answered: an answer that could not be written is not given.

    A log that is rotated, cut or changed by somebody else goes on in a new file, chained to the end of the old one; see
    :class:`~fedplatform.serving.audit_log.AuditLog`. Where that fails the server is not ready until it succeeds.
    """

    def __init__(self, arguments: EndpointArguments) -> None:
        self._path = arguments.audit_log
        self._log = _opened(self._path)
        self._trouble = ""
        self._recent: dict[str, deque[AuditEntry]] = {}

    async def check_health(self) -> None:
        """Continue a log that was changed. Never raises: a fresh actor would not know where the old log ended."""
        with suppress(AuditError):
            await self._in_thread(self._log.check)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def append(self, entries: list[Entries]) -> list[None]:
        """Write the entries of several requests and wait for the disk once."""
        together = [entry for several in entries for entry in several]
        await self._in_thread(self._log.append, *together)
        for entry in together:
            if isinstance(entry, AuditEntry):
                self._recent.setdefault(entry.hospital_id, deque(maxlen=REMEMBERED)).append(entry)
        return [None] * len(entries)

    async def recent(self, hospital_ids: tuple[str, ...]) -> list[AuditEntry]:
        """The latest diagnoses for some hospitals since this actor was started, newest first."""
        found = [entry for name in hospital_ids for entry in self._recent.get(name, ())]
        return sorted(found, key=lambda entry: entry.time, reverse=True)[:REMEMBERED]

    async def head(self) -> str:
        """The present end of the log, to be kept where nobody who writes to the log can reach."""
        return str(await self._in_thread(self._log.check))

    async def _in_thread(self, use: Callable[..., Anchor], *entries: AuditEntry | CertificateEntry) -> Anchor:
        """Use the log beside the other requests, and tell the server's log of a trouble once."""
        try:
            head = await asyncio.to_thread(use, *entries)
        except AuditError as error:
            if str(error) != self._trouble:
                log.error("the audit log cannot be written, and nothing is answered: %s", error)
            self._trouble = str(error)
            raise
        self._trouble = ""
        return head


def _opened(path: Path) -> AuditLog:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return AuditLog(path)
        except BrokenLogError as error:  # changed while no actor was there to see it
            log.error("%s; it is set aside as %s", error, rotate(path, reason="its end was broken").name)
        except AuditError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
