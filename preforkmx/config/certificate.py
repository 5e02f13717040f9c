"""Looks at a certificate and its key before anything uses them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from preforkmx.config.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.config.schema import Tls

# OpenSSL's reasons; a key of another type than the certificate's has had all three.
_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_WEAKNESSES = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})


class _Encrypted(Exception):
    """The key has a passphrase."""


def certificate_problems(tls: Tls) -> Iterator[Problem]:
    """Yield what is wrong with the files of ``[tls]``.

    Certificate and key are loaded into a scratch context: a pair that does not match would
    spoil a context that is in use.
    """
    readable = True
    for key, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            readable = False
            yield Problem(("tls", key), f"cannot be read: {error.strerror}", value=str(path))
    if readable:
        yield from _pair_problems(tls)


def _pair_problems(tls: Tls) -> Iterator[Problem]:
    def passphrase() -> str:
        raise _Encrypted

    scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = ("tls", "certificate"), ("tls", "key")
    try:
        scratch.load_verify_locations(cafile=tls.certificate)
    except ssl.SSLError:
        yield Problem(certificate, "holds no PEM certificate", value=str(tls.certificate))
        return
    try:
        scratch.load_cert_chain(tls.certificate, tls.key, password=passphrase)
    except _Encrypted:
        hint = "a server cannot be asked for one at each start"
        yield Problem(key, "is protected by a passphrase", hint, value=str(tls.key))
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            hint = f"not the key of {tls.certificate}"
            yield Problem(key, "does not belong to the certificate", hint, value=str(tls.key))
        elif error.reason in _WEAKNESSES:
            hint = error.reason.replace("_", " ").lower()
            yield Problem(certificate, "is too weak for OpenSSL", hint, value=str(tls.certificate))
        else:
            yield Problem(key, "holds no PEM private key", value=str(tls.key))
