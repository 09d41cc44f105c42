"""Every message that was refused, with its reason: lines that are on the disk before the sender hears of it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from fedplatform.core.files import sync_folder
from fedplatform.outside.refusal import Refusal


class Ledger:
    """An append-only file of JSON lines: time, reason, sentence, and what the message claimed to be."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        sync_folder(path.parent)

    def write_down(self, refusal: Refusal, **claimed: object) -> None:
        """Add one line; it outlives a power cut once this returns. Raises OSError."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "reason": refusal.reason,
            "sentence": refusal.sentence,
            **claimed,
        }
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
