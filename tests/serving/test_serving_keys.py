from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.core.private_files import OwnedFileError
from fedplatform.serving.api_keys import Keys, KeysError, doubts, expiry, today
from fedplatform.serving.rate import TokenBucket
from fedplatform.serving.secret import open_secret, read_secret


def test_a_key_opens_its_hospital_and_no_other_secret_opens_anything(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    first, second = keys.add("lyon"), keys.add("utrecht")
    opened = keys.opened_by(first)
    assert opened is not None
    assert opened.hospital_id == "lyon"
    assert keys.opened_by(second) != opened
    for wrong in (
        "",
        first[:-1],
        first + "x",
        first.upper(),
        second[:13] + first[13:],
        "fed_",
        "\udc80é\x00",
        "x" * 10**6,
    ):
        assert keys.opened_by(wrong) is None, wrong[:40]


def test_a_secret_says_what_it_is_and_the_file_keeps_its_hash_beside_the_name_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "folders" / "that" / "are new" / "keys.json"
    keys = Keys.load(path)
    secrets = [keys.add(hospital) for hospital in ("lyon", "utrecht", "lyon")]
    assert all(re.fullmatch(r"fed_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    assert len({secret[-43:] for secret in secrets}) == 3
    assert json.loads(path.read_text()) == [
        {
            "key_id": secret.split("_")[1],
            "hospital_id": hospital,
            "sha256": hashlib.sha256(secret.encode()).hexdigest(),
            "revoked": False,
            "expires": None,
        }
        for secret, hospital in zip(secrets, ("lyon", "utrecht", "lyon"), strict=True)
    ]
    assert [key.hospital_id for key in keys] == ["lyon", "utrecht", "lyon"], "in the order in which they were added"


def test_to_revoke_a_key_leaves_the_others_and_its_own_line(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    secrets = [keys.add(hospital) for hospital in ("lyon", "utrecht", "nice")]
    names = [key.key_id for key in keys]
    keys.revoke(names[1])
    assert [key.key_id for key in keys] == names
    assert [key.revoked for key in keys] == [False, True, False]
    assert [keys.opened_by(secret) is None for secret in secrets] == [False, True, False]
    with pytest.raises(KeysError, match=f"^no key 'x'; there are: {', '.join(names)}$"):
        keys.revoke("x")


def test_a_key_opens_its_model_until_the_day_on_which_it_expires(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    for days, opens in ((-1, False), (0, False), (1, True), (400, True)):
        secret = keys.add("lyon", expires=today() + timedelta(days=days))
        assert (keys.opened_by(secret) is not None) == opens, days
    assert [key.expires for key in Keys.load(tmp_path / "keys.json")] == [
        today() + timedelta(days=days) for days in (-1, 0, 1, 400)
    ]


def test_a_key_lasts_a_year_unless_another_day_is_named() -> None:
    assert expiry(None) == today() + timedelta(days=365)
    assert expiry("never") is None
    assert expiry("2999-12-31") == date(2999, 12, 31)
    for wrong in ("tomorrow", "31.12.2999", "", str(today())):
        with pytest.raises(KeysError, match="expires"):
            expiry(wrong)


def test_the_keeper_of_the_keys_is_told_of_those_that_let_nobody_in(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    day = today()
    assert doubts(keys, ["lyon"], day=day) == ["no key is open, so nobody can ask: fedplatform keys add HOSPITAL"]
    keys.add("lyon", expires=day + timedelta(days=100))
    assert doubts(keys, ["lyon"], day=day) == []
    keys.add("lyno")
    keys.add("lyon", expires=day + timedelta(days=3))
    keys.add("lyon", expires=day - timedelta(days=3))
    _, typo, soon, gone = keys
    assert doubts(keys, ["lyon", "nice"], day=day) == [
        f"key {typo.key_id} is for 'lyno', which has no model here: lyon, nice",
        f"key {soon.key_id} of lyon expires on {soon.expires}",
        f"key {gone.key_id} of lyon expired on {gone.expires}",
    ]
    keys.revoke(typo.key_id)
    assert len(doubts(keys, ["lyon"], day=day)) == 2, "of a key that was revoked nobody needs to be told"


@given(st.text())
def test_no_text_at_all_opens_anything_without_keys(text: str) -> None:
    assert Keys.load(Path("/nowhere/keys.json")).opened_by(text) is None


def test_the_file_holds_no_secret_and_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = Keys.load(path).add("lyon")
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()
    assert secret.split("_", 2)[2] not in path.read_text()
    assert [entry["hospital_id"] for entry in json.loads(path.read_text())] == ["lyon"]
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_a_key_that_is_revoked_elsewhere_opens_nothing_in_a_server_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = Keys.load(path).add("lyon")
    server = Keys.load(path)
    key = server.opened_by(secret)
    assert key is not None
    Keys.load(path).revoke(key.key_id)
    assert server.opened_by(secret) is None
    assert [one.revoked for one in server] == [True]
    later = Keys.load(path).add("lyon")
    assert server.opened_by(later) is not None
    path.unlink()
    assert server.opened_by(later) is None


def test_keys_that_others_may_read_or_that_are_broken_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = Keys.load(path)
    secret = keys.add("lyon")
    path.chmod(0o640)
    for use in (lambda: Keys.load(path), lambda: keys.opened_by(secret), lambda: keys.add("x")):
        with pytest.raises(KeysError, match="may be read by others"):
            use()
    path.chmod(0o600)
    assert keys.opened_by(secret) is not None
    for broken in ("", "{", "[1]", '[{"key_id": "a"}]', "\xff"):
        path.write_text(broken)
        with pytest.raises(KeysError, match="no file of keys"):
            Keys.load(path)
    with pytest.raises(KeysError, match="cannot be"):
        Keys.load(tmp_path / "keys.json" / "inside").add("x")


def test_an_unknown_key_cannot_be_revoked_and_a_key_needs_a_hospital(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    with pytest.raises(KeysError, match="there are: none"):
        keys.revoke("nobody")
    with pytest.raises(KeysError, match="got no hospital"):
        keys.add("")


def test_keys_that_are_added_by_several_processes_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code = (
        "import sys; from pathlib import Path; from fedplatform.serving.api_keys import Keys; "
        "keys = Keys.load(Path(sys.argv[1])); [keys.add(sys.argv[2]) for _ in range(20)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("lyon", "utrecht")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(list(Keys.load(path))) == 40


def test_a_secret_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "lyon.secret"
    with pytest.raises(OwnedFileError, match="cannot be read"):
        read_secret(path)
    secret = open_secret(path)
    assert len(secret) == 32
    assert open_secret(path) == read_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_secret(tmp_path / "other.secret") != secret
    path.chmod(0o644)
    with pytest.raises(OwnedFileError, match="chmod 600"):
        open_secret(path)
    for broken in ("", "00", "zz" * 32, "00" * 33, "é" * 64):
        path.write_text(broken)
        path.chmod(0o600)
        with pytest.raises(OwnedFileError, match="holds no secret"):
            open_secret(path)


def test_a_secret_in_a_place_that_cannot_be_written_is_one_clear_line(read_only: Path) -> None:
    with pytest.raises(OwnedFileError, match="cannot be written"):
        open_secret(read_only / "lyon.secret")


@given(
    st.floats(0.01, 100),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 60)), min_size=1, max_size=60),
)
def test_in_no_stretch_of_time_more_is_taken_than_the_burst_and_what_flows_in(
    rate: float, burst: int, asked: list[tuple[float, int]]
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 0.0, []
    for pause, n in asked:
        now += pause
        wait = bucket.take(now, n)
        if wait == 0:
            taken.append((now, n))
        elif n > burst:
            assert wait == math.inf
        else:
            assert 0 < wait <= burst / rate * (1 + 1e-9)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            stretch = taken[last][0] - taken[first][0]
            assert sum(n for _, n in taken[first : last + 1]) <= (burst + rate * stretch) * (1 + 1e-9)


@given(st.floats(0.01, 100), st.integers(1, 50), st.integers(1, 50))
def test_who_waits_as_long_as_was_said_is_let_through(rate: float, burst: int, n: int) -> None:
    bucket = TokenBucket(rate, burst)
    assert bucket.take(0.0, burst) == 0.0
    n = min(n, burst)
    wait = bucket.take(0.0, n)
    assert bucket.take(wait * (1 - 1e-3), n) > 0
    assert bucket.take(wait * (1 + 1e-9), n) == 0.0


def test_a_clock_that_runs_backwards_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(1.0, 2)
    assert bucket.take(100.0, 2) == 0.0
    assert bucket.take(50.0, 1) == pytest.approx(1.0)
    assert bucket.take(101.0, 1) == 0.0


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.inf)])
def test_a_bucket_that_would_never_fill_or_never_end_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(rate, burst)


def test_root_is_no_exception_to_the_mode_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lyon.secret"
    open_secret(path)
    path.chmod(0o604)
    with pytest.raises(OwnedFileError, match="mode 604"):
        read_secret(path)
