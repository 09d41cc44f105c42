"""Messages on their way in, one a hospital, on the disk: a broken upload goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from fedplatform.core.files import write_durably
from fedplatform.outside.envelope import Envelope
from fedplatform.outside.refusal import Refusal


class Uploads:
    """What has come so far of the message that each hospital has announced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def begin(self, hospital_id: str, envelope: Envelope) -> int:
        """Expect a message, in place of another that was announced; how many bytes of it are here already.

        It may come under a new envelope, where the server went back to the round before.
        """
        before = self.announced(hospital_id)
        if before != envelope:
            if before is None or before.header.digest != envelope.header.digest:
                self.drop(hospital_id)
            write_durably(self._envelope(hospital_id), envelope.wire())
        return self.received(hospital_id)

    def announced(self, hospital_id: str) -> Envelope | None:
        """The message that is expected."""
        try:
            return Envelope.read(self._envelope(hospital_id).read_bytes())
        except (FileNotFoundError, Refusal):
            return None

    def received(self, hospital_id: str) -> int:
        """Bytes of it that are here."""
        body = self._body(hospital_id)
        return body.stat().st_size if body.exists() else 0

    def append(self, hospital_id: str, piece: bytes) -> int:
        """Add a piece; how many bytes are here now."""
        with self._body(hospital_id).open("ab") as file:
            file.write(piece)
        return self.received(hospital_id)

    def take(self, hospital_id: str) -> bytes:
        """The whole message, which is no longer expected."""
        body = self._body(hospital_id).read_bytes()
        self.drop(hospital_id)
        return body

    def drop(self, hospital_id: str) -> None:
        """Expect nothing."""
        self._envelope(hospital_id).unlink(missing_ok=True)
        self._body(hospital_id).unlink(missing_ok=True)

    def _envelope(self, hospital_id: str) -> Path:
        return self._folder / f"{hospital_id}.json"

    def _body(self, hospital_id: str) -> Path:
        return self._folder / f"{hospital_id}.part"
