"""What a hospital is told of a gateway whose certificate is not in order, by a real TLS server for each case."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from actors.cluster.certificates import AUTHORITY, AUTHORITY_KEY, CERTIFICATE, KEY, make_authority, make_certificate
from actors.gateway.http_transport import HttpTransport
from fedplatform.core.settings import ExperimentError
from fedplatform.outside.agent import Unreachable

DAY = timedelta(days=1)


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """A TLS server that shakes hands and says nothing; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            while True:
                try:
                    line, _ = door.accept()
                except OSError:
                    return
                with suppress(OSError), context.wrap_socket(line, server_side=True):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield door.getsockname()[1]
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def certified(folder: Path, *, address: str = "127.0.0.1", begins: timedelta = -DAY, ends: timedelta = DAY) -> Path:
    """An authority and a certificate of it for an address, valid from so long before now until so long after."""
    make_authority(folder)
    make_certificate(folder, folder / "node", addresses=[address])
    made = x509.load_pem_x509_certificate((folder / "node" / CERTIFICATE).read_bytes())
    signer = serialization.load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=made.issuer,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)]),
        public_key=made.public_key(),  # type: ignore[arg-type]
        serial_number=x509.random_serial_number(),
        not_valid_before=now + begins,
        not_valid_after=now + ends,
        extensions=list(made.extensions),
    )
    changed = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    (folder / "node" / CERTIFICATE).write_bytes(changed.public_bytes(serialization.Encoding.PEM))
    return folder / "node"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"begins": -2 * DAY, "ends": -DAY}, "has expired; the operator of the federation has to renew it"),
        ({"begins": DAY, "ends": 2 * DAY}, "is not valid yet; is this machine's clock right?"),
        ({"address": "127.0.0.9"}, "is for another name than the one in the URL"),
    ],
)
def test_each_fault_of_a_certificate_has_its_own_sentence(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    folder = certified(tmp_path, **settings)  # type: ignore[arg-type]
    with served(folder) as port, pytest.raises(ExperimentError, match="the certificate of") as caught:
        HttpTransport(f"https://127.0.0.1:{port}", authority=folder / AUTHORITY).hello()
    assert said in str(caught.value)


def test_a_certificate_of_an_unknown_authority_asks_for_ca(tmp_path: Path) -> None:
    folder = certified(tmp_path)
    with served(folder) as port, pytest.raises(ExperimentError, match="--ca FILE names the authority"):
        HttpTransport(f"https://127.0.0.1:{port}", authority=None).hello()


def test_a_good_certificate_is_trusted_and_the_line_may_break_all_the_same(tmp_path: Path) -> None:
    folder = certified(tmp_path)
    with served(folder) as port, pytest.raises(Unreachable):
        HttpTransport(f"https://127.0.0.1:{port}", authority=folder / AUTHORITY).hello()


def test_http_where_there_is_tls_is_told_and_not_tried_for_a_day(tmp_path: Path) -> None:
    with served(certified(tmp_path)) as port, pytest.raises(ExperimentError, match="speaks TLS") as caught:
        HttpTransport(f"http://127.0.0.1:{port}", authority=None).hello()
    assert f"https://127.0.0.1:{port}" in str(caught.value)


def test_nobody_at_all_may_be_there_in_a_moment() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(Unreachable):
        HttpTransport(f"http://127.0.0.1:{port}", authority=None).hello()
