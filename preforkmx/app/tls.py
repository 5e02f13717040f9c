"""The TLS context of a generation."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preforkmx.config.schema import Tls

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def make_context(tls: Tls) -> ssl.SSLContext:
    """Return the server's context; to be made before the fork.

    All workers then share one key for session tickets, so a client resumes its session in
    whichever worker it reaches.

    :raises OSError: certificate and key do not load, although the configuration's check did.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.minimum_version]
    # A renegotiation lets a client make the server work for nothing, and mail has no use for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(tls.certificate, tls.key)
    return context
