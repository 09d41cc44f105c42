"""Lines of the log: as words, as JSON, in a file, and from one process to another."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fedplatform.core import logs

HERE = "fedplatform.core.test_logs"


@pytest.fixture(autouse=True)
def _as_it_was() -> None:
    for name in logs.LOGGERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.NOTSET)


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": HERE, "levelno": logging.INFO, "levelname": "INFO", "created": 0.25})
    made.msg = "trained"
    made.__dict__.update(extra)
    return made


def test_a_line_says_when_and_of_which_round_and_hospital() -> None:
    of = logs.of(round_number=3, hospital="st-mary")
    assert logs.Words().format(record(**of)) == "1970-01-01T00:00:00.250+00:00 info    round 3 st-mary: trained"
    assert logs.Words().format(record()) == "1970-01-01T00:00:00.250+00:00 info    trained"
    assert json.loads(logs.Json().format(record(**of))) == {
        **{"time": "1970-01-01T00:00:00.250+00:00", "level": "info", "logger": HERE, "message": "trained"},
        **{"round": 3, "hospital": "st-mary"},
    }
    assert set(json.loads(logs.Json().format(record()))) == {"time", "level", "logger", "message"}


def test_a_file_gets_what_the_terminal_does_not_and_warnings_go_to_both(tmp_path: Path) -> None:
    script = f"""
import logging
import subprocess
import sys
from pathlib import Path
from fedplatform.core import logs
here = logging.getLogger("fedplatform.somewhere")
with logs.kept_in(Path({str(tmp_path)!r}) / "folder/run.log"):
    here.info("quiet")
    here.warning("loud")
    here.debug("not at all")
here.warning("as before")
"""
    # In a process of its own: pytest listens to the loggers of this one.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [json.loads(line)["message"] for line in (tmp_path / "folder/run.log").read_text().splitlines()]
    assert lines == ["quiet", "loud"]
    assert done.stderr == "loud\nas before\n"


def test_a_terminal_that_was_asked_for_is_not_doubled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_terminal("info", "plain")
    with logs.kept_in(tmp_path / "run.log"):
        logging.getLogger(HERE).info("once")
    assert capsys.readouterr().err == "once\n"


def test_lines_of_another_process_keep_their_time_and_are_fetched_once() -> None:
    held = logs.Held.begin()
    logging.getLogger(HERE).info("trained on %d scans", 7, extra=logs.of(round_number=2, hospital="a"))
    (line,) = held.fetch()
    assert (line.message, line.round_number, line.hospital) == ("trained on 7 scans", 2, "a")
    assert not held.fetch()
    line.log_here()
    (again,) = held.fetch()
    assert again == line
    for number in range(logs.MOST_HELD + 5):
        logging.getLogger(HERE).info("%d", number)
    assert held.fetch()[0].message == "5", "of too many lines the oldest go"
