"""What :func:`~preforkmx.delivery.lmtp.lmtp` and :func:`~preforkmx.delivery.smtp.smtp` take."""

from __future__ import annotations

import ssl
from pathlib import Path  # noqa: TC003 - a TypedDict's annotations are looked at
from typing import TYPE_CHECKING, TypedDict

from preforkmx.delivery.nexthop.delivery import NextHopDelivery
from preforkmx.delivery.nexthop.opening import tls_context
from preforkmx.delivery.nexthop.servers import split
from preforkmx.delivery.nexthop.settings import (
    SHARE,
    Credentials,
    Forward,
    Settings,
    Timeouts,
    TLSMode,
)
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.delivery.nexthop.delivered import DeliveredMemory


class Options(TypedDict, total=False):
    """The options of both."""

    tls: TLSMode
    """``"may"`` (the default): STARTTLS where it is offered, with any certificate. ``"must"``: or
    nothing is sent. ``"verify"``: and the certificate must be for the server's name, and of an
    authority that is trusted. ``"off"``: plain text."""
    ca: Path | None
    """PEM file of the authorities that are trusted; None: the system's."""
    tls_name: str
    """The name in the servers' certificates; "" is the host that is connected to."""
    certificate: Path | None
    """PEM file: this server's own certificate, for a next hop that asks for one."""
    key: Path | None
    """PEM file: its key; None where the certificate's file has it."""
    user: str
    """Whom to authenticate as (AUTH PLAIN or LOGIN), under TLS or on this machine only; "" is
    nobody."""
    password_file: Path | None
    """The password is its first line."""
    connections: int
    """Connections of one process at most (50)."""
    idle: float
    """Seconds for which one is kept for the next message (30); 0: it is not."""
    reuse: int
    """Messages that one may carry (100)."""
    chunking: bool
    """Use BDAT where it is offered (False). BODY=BINARYMIME uses it in any case."""
    forward: Forward
    """How the next hop learns who the client is: ``"xclient"``, where it offers XCLIENT;
    ``"proxy"``, a PROXY header (version 2) before everything else, and a connection for each
    message; ``"no"``."""
    timeouts: Timeouts
    """For each phase; none is longer than nine tenths of `timeout`."""
    timeout: float
    """Seconds that the server gives this delivery (240)."""


def next_hop(
    servers: Sequence[str],
    *,
    hostname: str,
    lmtp: bool,
    memory: DeliveredMemory | None,
    options: Options,
) -> Middleware:
    """Return the delivery to `servers`.

    :raises ValueError: as the functions say that call this one.
    """
    if not servers:
        raise ValueError("a next hop has at least one server")
    for server in servers:
        split(server)
    timeout = options.get("timeout", 240.0)
    timeouts = options.get("timeouts", Timeouts()).within(timeout)
    tls = options.get("tls", "may")
    settings = Settings(
        hostname=hostname,
        lmtp=lmtp,
        tls=tls,
        context=None if tls == "off" else _context(tls, options),
        tls_name=options.get("tls_name", ""),
        credentials=_credentials(options),
        forward=options.get("forward", "no"),
        chunking=options.get("chunking", False),
        connections=options.get("connections", 50),
        idle=options.get("idle", 30.0),
        reuse=options.get("reuse", 100),
        timeouts=timeouts,
        patience=timeout * SHARE,
    )
    delivery = NextHopDelivery(servers, settings, memory=memory)
    return Middleware(
        check_sender=delivery.check_sender,
        check_recipient=delivery.check_recipient,
        handler=delivery.handle,
        reset=delivery.reset,
        disconnect=delivery.disconnect,
        lifespan=delivery.lifespan,
        name="lmtp" if lmtp else "smtp",
        extensions=delivery.promises,
    )


def _context(tls: TLSMode, options: Options) -> ssl.SSLContext:
    ca, certificate, key = (options.get(name) for name in ("ca", "certificate", "key"))
    try:
        return tls_context(
            verify=tls == "verify",
            ca=None if ca is None else str(ca),
            certificate=None if certificate is None else str(certificate),
            key=None if key is None else str(key),
        )
    except ssl.SSLError as error:
        named = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        raise ValueError(f"{named}: not what TLS needs there ({error.reason})") from error
    except OSError as error:
        named = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        raise ValueError(f"{named} cannot be read: {error.strerror}") from error


def _credentials(options: Options) -> Credentials | None:
    user, file = options.get("user", ""), options.get("password_file")
    if not user and file is None:
        return None
    if not user or file is None:
        raise ValueError("user and password_file belong together")
    return Credentials.read(user, file)
