"""Certificates for a cluster of one's own: an authority, and for every node a certificate that it has signed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY, AUTHORITY_KEY = "ca.crt", "ca.key"
CERTIFICATE, KEY = "tls.crt", "tls.key"  # the names that a Kubernetes TLS secret has
LIFE_OF_AUTHORITY, LIFE_OF_CERTIFICATE = timedelta(days=3650), timedelta(days=365)
CLOCK_SKEW = timedelta(minutes=5)
SOON = timedelta(days=30)  # before its end a person is warned


def make_authority(folder: Path) -> None:
    """Make ``ca.crt`` and ``ca.key`` where there are none; whoever has the key can let anybody in."""
    if (folder / AUTHORITY).exists() and (folder / AUTHORITY_KEY).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedplatform authority")])
    certificate = (
        _builder(name, name, key, LIFE_OF_AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / AUTHORITY_KEY, key)
    (folder / AUTHORITY).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_certificate(
    authority: Path, folder: Path, *, addresses: Sequence[str], life: timedelta = LIFE_OF_CERTIFICATE
) -> None:
    """Write ``tls.crt``, ``tls.key`` and the authority's ``ca.crt`` for the node at ``addresses``, IPs or names.

    One certificate serves both ways, for each node of a Ray cluster is server and client to the others, and each must
    show one. Raises OSError where the authority is not there.
    """
    signer_key = serialization.load_pem_private_key((authority / AUTHORITY_KEY).read_bytes(), password=None)
    assert isinstance(signer_key, ec.EllipticCurvePrivateKey)
    signer = x509.load_pem_x509_certificate((authority / AUTHORITY).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, addresses[0])])
    both_ways = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        _builder(name, signer.subject, key, life)
        .add_extension(x509.SubjectAlternativeName([_general_name(address) for address in addresses]), critical=False)
        .add_extension(both_ways, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer_key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_key(folder / KEY, key)
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / AUTHORITY).write_bytes((authority / AUTHORITY).read_bytes())


def expiry(certificate: Path) -> datetime:
    """When a certificate ends. Raises ValueError where the file holds none."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
