"""The replies of a round as they are written down: in any order, each once, and nothing kept but the table."""

from __future__ import annotations

import subprocess
import sys
import weakref

import numpy as np
import pytest

from fedplatform.core import mapped
from fedplatform.core.messages import HospitalState, Reply, Update
from fedplatform.federated.arrivals import Arrivals

HOSPITALS = tuple("abcde")


def reported(name: str, delta: np.ndarray) -> Reply:
    return Reply(name, HospitalState.REPORTED, Update(name, 1, delta, 10, 0.5, 1.0))


def numbers(name: str) -> np.ndarray:
    return np.arange(7, dtype=np.float32) + 100 * HOSPITALS.index(name)


def arrivals() -> Arrivals:
    return Arrivals(HOSPITALS, num_shared=5, size=7, round_number=1)


@pytest.fixture(params=["in memory", "in a file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in a file":
        monkeypatch.setattr(mapped, "HELD_BYTES", 0)
    return request.param


def test_rows_are_in_the_hospitals_order_and_not_in_that_of_arrival(place: str) -> None:
    found = arrivals()
    for name in "dbaec":
        found.add(reported(name, numbers(name)))
    deltas, statistics = found.table()
    assert (mapped.file_of(deltas) is not None) == (place == "in a file")
    np.testing.assert_array_equal(np.hstack([deltas, statistics]), [numbers(name) for name in HOSPITALS])
    assert [reply.hospital_id for reply in found.replies] == list(HOSPITALS)


@pytest.mark.usefixtures("place")
def test_whoever_sent_nothing_usable_has_a_reply_and_no_row() -> None:
    found = arrivals()
    found.add(reported("e", numbers("e")))
    found.add(Reply("a", HospitalState.LATE, reason="slow"))
    found.add(reported("b", numbers("b")))
    found.add(reported("c", numbers("c") * np.nan))
    found.add(reported("d", numbers("d")))
    deltas, statistics = found.table()
    np.testing.assert_array_equal(np.hstack([deltas, statistics]), [numbers(name) for name in "bde"])
    assert [update.hospital_id for update in found.updates] == ["b", "d", "e"]
    states = {reply.hospital_id: str(reply.state) for reply in found.replies}
    assert states == {"a": "late", "b": "reported", "c": "malformed", "d": "reported", "e": "reported"}


def test_an_update_that_was_written_down_is_not_kept() -> None:
    found, delta = arrivals(), numbers("a").copy()
    watched = weakref.ref(delta)
    found.add(reported("a", delta))
    del delta
    assert watched() is None


# In a process of its own: the pages of a file that it looks at count as its memory until it lets go of them.
LOOKING = """
import sys
import numpy as np
from fedplatform.core.mapped import scratch
from fedplatform.experiments.rule_text import parse_rule

updates = scratch(64, 1_000_000, at_most=0)
for row in range(len(updates)):
    updates[row] = row
    if row % 16 == 15:
        updates.base.madvise(4)  # MADV_DONTNEED
rule = parse_rule(sys.argv[1], f=8)
rule(np.zeros((64, 10), np.float32))

def megabytes(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

before = megabytes("VmRSS")
rule(updates)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mean", "median", "krum", "bulyan"])
def test_a_rule_over_updates_in_a_file_holds_blocks_of_them(rule: str) -> None:
    """Of 244 MB; what is read together is 64 MB, and the system may map some pages beside each that is touched."""
    output = subprocess.run([sys.executable, "-c", LOOKING, rule], capture_output=True, text=True, check=True)
    assert float(output.stdout) < 215
