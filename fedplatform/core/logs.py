"""What is logged: lines of words or of JSON, to the terminal and into a run's folder; never a scan or a label.

A line may say of which round and hospital it is: ``log.info("trained", extra=of(round_number=3, hospital="st-mary"))``.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LOGGERS = ("fedplatform", "actors", "tune")
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("plain", "words", "json")
ROUND, HOSPITAL = "round_number", "hospital"
MOST_HELD = 1000  # lines that a process keeps until somebody fetches them; of more, the oldest are lost


def of(*, round_number: int | None = None, hospital: str = "") -> dict[str, object]:
    """What ``extra`` takes to say of which round and hospital a line is."""
    return {ROUND: round_number, HOSPITAL: hospital}


class Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and round and hospital where it is of one."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said = {"round": getattr(record, ROUND, None), "hospital": getattr(record, HOSPITAL, None)}
        return json.dumps(line | {name: value for name, value in said.items() if value}, ensure_ascii=False)


class Words(logging.Formatter):
    """Time, level, round and hospital where it is of one, and the message."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        number, hospital = getattr(record, ROUND, None), getattr(record, HOSPITAL, None)
        where = [f"round {number}"] if number else []
        where += [str(hospital)] if hospital else []
        told = f"{' '.join(where)}: " if where else ""
        return f"{_time(record)} {record.levelname.lower():7} {told}{record.getMessage()}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def formatter(name: str) -> logging.Formatter:
    """The formatter of one of :data:`FORMATS`; ``plain`` is the message alone, as warnings have it."""
    return {"plain": logging.Formatter, "words": Words, "json": Json}[name]()


def to_terminal(level: str, name: str) -> None:
    """Send lines from this level on to standard error, in one of :data:`FORMATS`."""
    handler = Terminal()
    handler.setFormatter(formatter(name))
    handler.setLevel(level.upper())
    for logger in map(logging.getLogger, LOGGERS):
        for before in [one for one in logger.handlers if isinstance(one, Terminal)]:
            logger.removeHandler(before)
    _add(handler)


class Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error, as :func:`to_terminal` set it; a second setting takes the place of the first."""


def to_file(path: Path) -> logging.Handler:
    """Append lines from ``info`` on to a file, as JSON. Several processes may write to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(Json())
    handler.setLevel(logging.INFO)
    _add(handler)
    return handler


@contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Meanwhile, append what is logged to a file; warnings go to standard error as they do without."""
    console: logging.Handler | None = None
    if not logging.getLogger(LOGGERS[0]).hasHandlers():  # or Python's last resort, which shows warnings, would go
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.WARNING)
        _add(console)
    file = to_file(path)
    try:
        yield
    finally:
        for handler in (file, console):
            if handler is not None:
                for name in LOGGERS:
                    logging.getLogger(name).removeHandler(handler)
                handler.close()


def _add(handler: logging.Handler) -> None:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(min(handler.level, logger.level or logging.WARNING))


@dataclass(frozen=True)
class Line:
    """A logged line as it travels from one process to another."""

    logger: str
    level: int
    created: float
    message: str
    round_number: int | None
    hospital: str

    def log_here(self) -> None:
        """Log it in this process, with the time at which it was logged first."""
        record = logging.makeLogRecord({"name": self.logger, "levelno": self.level, "msg": self.message})
        record.levelname, record.created = logging.getLevelName(self.level), self.created
        record.__dict__.update(of(round_number=self.round_number, hospital=self.hospital))
        logger = logging.getLogger(self.logger)
        if logger.isEnabledFor(self.level):
            logger.handle(record)


class Held(logging.Handler):
    """Keeps the lines of this process until somebody fetches them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[Line] = deque(maxlen=MOST_HELD)

    @classmethod
    def begin(cls) -> Held:
        """Hold what is logged from now on."""
        held = cls()
        _add(held)
        return held

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        number, hospital = getattr(record, ROUND, None), getattr(record, HOSPITAL, "")
        self._lines.append(
            Line(record.name, record.levelno, record.created, record.getMessage(), number, str(hospital or ""))
        )

    def fetch(self) -> Sequence[Line]:
        """The lines since the last time."""
        return [self._lines.popleft() for _ in range(len(self._lines))]
