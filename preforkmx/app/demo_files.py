"""The demo's folder, with a self-signed certificate for localhost."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from preforkmx.app.demo import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

VALID_DAYS = 365
RENEWED_BEFORE_DAYS = 7


def prepare() -> None:
    """Make the demo's folder, for this user alone, and its certificate.

    :raises OSError: when they cannot be written.
    """
    folder = FOLDER.absolute()
    folder.mkdir(mode=0o700, exist_ok=True)
    make_certificate(folder / "certificate.pem", folder / "key.pem")


def make_certificate(certificate: Path, key: Path) -> None:
    """Make both files where they are missing, do not belong together, or end within a week.

    The key's file has mode 0600.

    :raises OSError: when they cannot be written.
    """
    if not _usable(certificate, key):
        key_octets, certificate_octets = _self_signed()
        _write(key, key_octets, 0o600)
        _write(certificate, certificate_octets, 0o644)


def _usable(certificate: Path, key: Path) -> bool:
    """Say whether both are there, belong together, and last a while yet."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return False
    left = loaded.not_valid_after_utc - dt.datetime.now(dt.UTC)
    return left > dt.timedelta(days=RENEWED_BEFORE_DAYS)


def _self_signed() -> tuple[bytes, bytes]:
    """Return a new key and a certificate for localhost, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("localhost"),
            x509.IPAddress(ip_address("127.0.0.1")),
            x509.IPAddress(ip_address("::1")),
        ]
    )
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock that is a little behind must not find it invalid.
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def _write(path: Path, octets: bytes, mode: int) -> None:
    """Write a file that is there whole or not at all, and never readable by more than `mode`."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(octets)
    new.replace(path)
