"""How updates travel: what each way keeps, what it refuses, and that nobody can make the server unpack a bomb."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedplatform.core.messages import Update
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.federated.arrivals import malformation
from fedplatform.federated.transport import TRANSPORTS, Half, Lossless, Packed, Transport, TransportError

HALF, LOSSLESS = Half(), Lossless()
unhurried = settings(deadline=None)
EVERY = st.sampled_from(list(TRANSPORTS.values()))
UPDATES = arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**127), 2.0**127, width=32))
WHATEVER = arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal entry by entry, zeros by sign, NaN to NaN."""
    return np.array_equal(one, other, equal_nan=True) and np.array_equal(np.signbit(one), np.signbit(other))


def slowly_halved(delta: np.ndarray) -> list[float]:
    """Each number by itself: as a fraction of the least power of two above all, rounded by Python to half precision."""
    above = max(int(np.frexp(np.abs(delta).max())[1]), -112)
    unit = 2.0 ** (above - 15)
    return [struct.unpack("<e", struct.pack("<e", float(entry) / unit))[0] * unit for entry in delta]


@unhurried
@given(UPDATES)
def test_half_is_what_python_rounds_number_by_number(delta: np.ndarray) -> None:
    np.testing.assert_array_equal(HALF.received(delta), np.array(slowly_halved(delta), np.float32))


@unhurried
@given(UPDATES)
def test_half_keeps_eleven_bits_of_every_entry_however_small_the_update(delta: np.ndarray) -> None:
    exact, largest = delta.astype(np.float64), np.abs(delta).max()
    error = np.abs(HALF.received(delta) - exact)
    assert (error <= np.maximum(2.0**-11 * np.abs(exact), 2.0**-39 * largest)).all()
    near = np.abs(exact) * 2.0**25 >= largest
    assert (error[near] <= 2.0**-11 * np.abs(exact[near])).all()


@unhurried
@given(UPDATES)
def test_what_was_rounded_once_is_not_rounded_again(delta: np.ndarray) -> None:
    once = HALF.received(delta)
    assert HALF.received(once).tobytes() == once.tobytes()


@unhurried
@given(WHATEVER, st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0))
def test_what_is_not_finite_stays_so_and_is_refused_in_the_same_words(
    delta: np.ndarray, spoilt: float, at: int
) -> None:
    delta[at % delta.size] = spoilt
    complaints = set()
    for transport in TRANSPORTS.values():
        received = transport.received(delta)
        usual = np.abs(delta) < 2.0**127
        assert same(received[~np.isfinite(delta)], delta[~np.isfinite(delta)])
        assert np.isfinite(received[usual]).all()
        if (usual | ~np.isfinite(delta)).all():
            complaints.add(malformation(Update("a", 1, received, 5, 0.5, 1.0), size=delta.size, round_number=1))
    assert len(complaints) < 2
    assert all("NaN or infinite" in complaint for complaint in complaints)


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)
def test_an_update_of_zeros_stays_one(transport: Transport) -> None:
    assert not transport.unpack(transport.pack(np.zeros(7, np.float32)), size=7).any()


@unhurried
@given(st.binary(min_size=4, max_size=200).map(lambda data: data[: len(data) // 4 * 4]))
def test_lossless_gives_back_every_bit_whatever_it_says(data: bytes) -> None:
    delta = np.frombuffer(data, np.float32)
    assert LOSSLESS.unpack(LOSSLESS.pack(delta), size=delta.size).tobytes() == data


@unhurried
@given(WHATEVER, EVERY)
def test_what_did_not_have_to_travel_is_what_would_have_arrived(delta: np.ndarray, transport: Transport) -> None:
    arrived = Packed.of(Update("a", 3, delta, 5, 0.25, 1.5), transport).open(transport, size=delta.size)
    assert same(arrived.delta, transport.received(delta))
    assert arrived.delta.dtype == np.float32
    assert (arrived.hospital_id, arrived.round_number, arrived.num_examples) == ("a", 3, 5)


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)
@pytest.mark.parametrize("size", [1, 50, 5_000, 300_000])
def test_no_update_has_more_bytes_than_is_said(transport: Transport, size: int) -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(4 * size), np.float32)
    parts = transport.pack(noise)
    assert {name: part.dtype for name, part in parts.items()} == transport.kinds
    assert sum(part.nbytes for part in parts.values()) <= transport.most_bytes(size)


def test_the_difference_of_two_models_packs_to_less_and_halves_to_half() -> None:
    random = np.random.default_rng(0)
    before = random.normal(0, 0.1, 100_000).astype(np.float32)
    delta = (before + random.normal(0, 0.001, before.size).astype(np.float32)) - before
    weight = {
        name: sum(part.nbytes for part in transport.pack(delta).values()) / delta.nbytes
        for name, transport in TRANSPORTS.items()
    }
    assert weight["exact"] == 1
    assert weight["lossless"] < 0.75
    assert weight["half"] == pytest.approx(0.5, abs=1e-4)


def bomb(blocks: int) -> np.ndarray:
    """A Zstandard frame (RFC 8878) of so many blocks of 128 KiB of zeros; each takes four bytes."""
    block = (1 << 1 | (2**17) << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | (2**17) << 3).to_bytes(3, "little") + b"\0"
    return np.frombuffer(b"\x28\xb5\x2f\xfd\x00\x38" + block * (blocks - 1) + last, np.uint8)


def test_a_bomb_is_refused_and_takes_no_memory() -> None:
    plane = next(iter(LOSSLESS.kinds))
    right = LOSSLESS.pack(np.zeros(2**17, np.float32))
    assert not LOSSLESS.unpack({**right, plane: bomb(1)}, size=2**17).any(), "a bomb of the right size is none"
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(TransportError, match="unpacks to 131072 bytes; what came does not"):
        LOSSLESS.unpack({**right, plane: bomb(8192)}, size=2**17)
    assert pa.default_memory_pool().max_memory() < before + 2**20


@unhurried
@given(st.integers(1, 100), st.integers(1, 100))
def test_an_update_of_another_size_is_refused(sent: int, due: int) -> None:
    parts = LOSSLESS.pack(np.arange(sent, dtype=np.float32))
    if sent == due:
        assert LOSSLESS.unpack(parts, size=due).size == due
    else:
        with pytest.raises(TransportError, match=f"unpacks to {due} bytes"):
            LOSSLESS.unpack(parts, size=due)


@unhurried
@given(st.binary(max_size=60), st.integers(0, 3))
def test_bytes_that_nobody_packed_are_refused_or_numbers_and_nothing_else_happens(data: bytes, plane: int) -> None:
    parts = {**LOSSLESS.pack(np.ones(10, np.float32))}
    parts[list(parts)[plane]] = np.frombuffer(data, np.uint8)
    with suppress(TransportError):
        assert LOSSLESS.unpack(parts, size=10).shape == (10,)


@unhurried
@given(st.binary(min_size=2, max_size=40).map(lambda data: data[: len(data) // 2 * 2]), st.integers(-128, 127))
def test_any_halves_under_any_power_of_two_are_numbers(data: bytes, exponent: int) -> None:
    sent = np.frombuffer(data, np.float16)
    got = HALF.unpack({"delta": sent, "exponent": np.array([exponent], np.int8)}, size=sent.size)
    wanted = [float(number) * 2.0**exponent for number in sent]
    finite = np.abs(wanted) < 2.0**128
    assert np.array_equal(got[finite], np.array(wanted)[finite].astype(np.float32))
    assert not np.isfinite(got[~finite]).any()


@pytest.mark.parametrize("exponent", [[], [1, 1], [[1]]])
def test_half_has_one_power_of_two(exponent: list[int]) -> None:
    with pytest.raises(TransportError, match="exponent has shape"):
        HALF.unpack({"delta": np.ones(3, np.float16), "exponent": np.array(exponent, np.int8)}, size=3)


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"transport": "half", "privacy": "grouped(size=3)"}, "masks hide whole numbers: .* exact, got half"),
        ({"transport": "lossless", "privacy": "grouped(size=3)"}, "masks hide whole numbers: .* exact, got lossless"),
        ({"transport": "gzip"}, "transport: .*'half', got 'gzip'"),
    ],
)
def test_an_experiment_says_how_its_updates_can_travel(chosen: dict[str, object], complaint: str) -> None:
    with pytest.raises(ExperimentError, match=complaint) as caught:
        Experiment.from_settings({"hospitals": 9, "byzantine": 0, "rule": "mean", **chosen})
    assert "\n" not in str(caught.value)


def test_a_run_of_rounded_updates_goes_on_from_its_checkpoint_to_the_same_bits(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(transport="half", attack="alie", f=1)
    with InProcessEngine().launch(experiment, shards, state_folder=tmp_path / "whole") as federation:
        assert len(list(federation.reports())) == 2
        weights = federation.outcome().weights
    kept = {"state_folder": tmp_path / "broken", "checkpoints": tmp_path / "checkpoints"}
    with InProcessEngine().launch(experiment, shards, **kept) as federation:
        next(federation.reports())
    with InProcessEngine().launch(experiment, shards, **kept) as federation:
        assert len(list(federation.reports())) == 1
        assert federation.outcome().weights.tobytes() == weights.tobytes()
