"""Ray's token is asked for unless somebody says otherwise, TLS is one setting, certificates serve both ways."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actors.cluster import doctor, security
from actors.cluster.certificates import expiry, make_authority, make_certificate
from actors.cluster.doctor import State
from actors.cluster.jobs import entrypoint
from actors.cluster.node import ray_start


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and an environment that asks for one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    make_authority(tmp_path / "authority")
    make_certificate(tmp_path / "authority", tmp_path / "tls", addresses=["127.0.0.1", "node.example"])
    return tmp_path / "tls"


def test_the_token_is_asked_for_unless_somebody_says_otherwise() -> None:
    assert security.settings({})["RAY_AUTH_MODE"] == "token"
    assert security.settings({"RAY_AUTH_MODE": "disabled"})["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_USE_TLS" not in security.settings({})


def test_a_new_token_is_for_its_owners_eyes_and_is_kept(home: Path) -> None:
    with pytest.raises(security.AccessError, match="none is here"):
        security.require_token()
    security.require_token(make=True)
    made = security.token()
    assert len(made) >= 32
    assert stat.S_IMODE((home / ".ray/auth_token").stat().st_mode) == 0o600
    security.require_token(make=True)
    assert security.token() == made
    assert doctor.token().state is State.GOOD
    (home / ".ray/auth_token").chmod(0o644)
    assert doctor.token().remedy.startswith("chmod 600")


def test_tls_is_one_folder(certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(certified.parent)
    wanted = security.settings({security.TLS: certified.name})
    assert wanted[security.TLS] == str(certified.resolve()), "jobs and workers stand in other folders"
    assert wanted["RAY_USE_TLS"] == "1"
    assert all(Path(wanted[f"RAY_TLS_{name}"]).is_file() for name in ("SERVER_CERT", "SERVER_KEY", "CA_CERT"))
    (certified / "tls.key").unlink()
    with pytest.raises(security.AccessError, match=r"lacks .*tls\.key"):
        security.settings({security.TLS: str(certified)})


def test_a_certificate_convinces_both_sides(certified: Path) -> None:
    server, client = (ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    for context in (server, client):
        context.load_cert_chain(certified / "tls.crt", certified / "tls.key")
        context.load_verify_locations(certified / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client_side, server_side]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    assert timedelta(days=364) < expiry(certified / "tls.crt") - datetime.now(UTC) < timedelta(days=366)
    for name in ("authority/ca.key", "tls/tls.key"):
        assert stat.S_IMODE((certified.parent / name).stat().st_mode) == 0o600


def test_an_authority_that_is_there_is_not_replaced(certified: Path) -> None:
    authority = certified.parent / "authority"
    before = (authority / "ca.crt").read_bytes()
    make_authority(authority)
    assert (authority / "ca.crt").read_bytes() == before


def test_a_head_binds_its_dashboard_to_loopback_and_stays_in_the_foreground() -> None:
    head = ray_start(address=None, hospital=None, in_background=False, more=[])
    assert {"--head", "--dashboard-host=127.0.0.1", "--block"} <= set(head)
    node = ray_start(address="h:1", hospital="a", in_background=True, more=["--num-cpus=2"])
    assert node[-3:] == ["--address=h:1", "--labels=fedplatform/hospital=a", "--num-cpus=2"]


def test_a_jobs_words_are_quoted_and_home_is_the_heads() -> None:
    assert entrypoint(["run", "a b.yaml", "--runs", "~/my runs", "$(reboot)"]) == (
        """exec fedplatform run 'a b.yaml' --runs "$HOME"/'my runs' '$(reboot)'"""
    )


def test_nobody_at_home_is_told_of_at_once(home: Path) -> None:
    with pytest.raises(security.AccessError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 with TLS off"):
        security.knock("127.0.0.1:1")
