"""The one writer of the audit log."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path

from ray import serve

from actors.endpoint.arguments import EndpointArguments
from fedplatform.serving.audit import AuditEntry, AuditError, AuditLog, CertificateEntry

REMEMBERED = 50  # diagnoses, of each hospital
PATIENCE_S = 20.0  # for the replica before this one to let go of the log

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
    """Writes down what is about to be answered: an answer that could not be written is not given."""

    def __init__(self, arguments: EndpointArguments) -> None:
        self._path = arguments.audit_log
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._log = _opened(self._path)
        self._inode = self._path.stat().st_ino
        self._recent: dict[str, deque[AuditEntry]] = {}

    def check_health(self) -> None:
        """A log that was moved away under its writer would swallow what is written: start anew instead."""
        if not self._path.is_file() or self._path.stat().st_ino != self._inode:
            self._log.close()
            raise AuditError(f"{self._path} is not the file that was opened")

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def append(self, entries: list[Entries]) -> list[None]:
        """Write the entries of several requests and wait for the disk once."""
        together = [entry for several in entries for entry in several]
        await asyncio.to_thread(self._log.append, *together)
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
        return str(self._log.head)


def _opened(path: Path) -> AuditLog:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return AuditLog(path)
        except AuditError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
