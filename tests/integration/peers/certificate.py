"""A certificate for the servers of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


def tls_table(directory: Path) -> str:
    """Write chain.pem, key.pem, both.pem and ca.pem, and return the ``[tls]`` table for them."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(directory / "chain.pem", append=True)
    # HAProxy wants both in one file.
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return f'[tls]\ncertificate = "{directory}/chain.pem"\nkey = "{directory}/key.pem"\n'
