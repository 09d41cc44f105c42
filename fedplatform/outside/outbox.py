"""The last message that a hospital sealed, on its own disk: sent again as it is, however often the line breaks."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from fedplatform.core.files import write_durably
from fedplatform.outside.envelope import Envelope
from fedplatform.outside.refusal import Refusal
from fedplatform.outside.work import Task


class Outbox:
    """``message.json``, the envelope, and ``message.safetensors``, the body."""

    def __init__(self, folder: Path) -> None:
        self._envelope, self._body = folder / "message.json", folder / "message.safetensors"

    def find(self, task: Task, *, run: str) -> tuple[Envelope, bytes] | None:
        """The message that answers a task, made in this launch of the server or in one before."""
        try:
            envelope, body = Envelope.read(self._envelope.read_bytes()), self._body.read_bytes()
        except (FileNotFoundError, Refusal):
            return None
        header = envelope.header
        wanted = (run, task.kind, task.round, task.base, sha256(body).hexdigest())
        return (
            (envelope, body) if (header.run, header.kind, header.round, header.base, header.digest) == wanted else None
        )

    def keep(self, envelope: Envelope, body: bytes) -> None:
        """Put a message in, in place of the one before."""
        self._envelope.unlink(missing_ok=True)
        write_durably(self._body, body)
        write_durably(self._envelope, envelope.wire())
