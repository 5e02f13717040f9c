"""What all sessions of one server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from preforkmx.context import Context, Signal
from preforkmx.errors import SMTPError
from preforkmx.middleware.chain import Chain
from preforkmx.observe.counters import Counters
from preforkmx.session.wire import Outbox
from preforkmx.state.networks import NetworkSet

if TYPE_CHECKING:
    import logging
    import ssl
    from collections.abc import Callable

    from preforkmx.model import Peer
    from preforkmx.observe.log import AccessLog
    from preforkmx.protocol.settings import Settings
    from preforkmx.session.listener import Listener
    from preforkmx.session.session import Session

HOOK_FAILURE = SMTPError(502, "Internal error", enhanced=(5, 3, 0))
"""The seed's answer when a hook raises something else than an SMTPError."""


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """What all sessions of one server share; a session changes nothing of it but the counts."""

    settings: Callable[[Listener, bool], Settings]
    """What a listener's sessions are held to; the flag: bare newlines are normalised for the
    client."""
    logger: logging.Logger
    tls: ssl.SSLContext | None = None
    access_log: AccessLog | None = None
    hook_failure: SMTPError = HOOK_FAILURE
    base_context: Context = field(default_factory=Context)
    conn_context: Callable[[Context, Peer], Context] | None = None
    hostname: str = "localhost"
    command_timeout: float = 60.0
    """Seconds for each wait for the client, and for the hooks of one phase."""
    delivery_timeout: float = 240.0
    """Seconds that delivery handlers have, not counting the waits for the client."""
    greeting_delay: float = 0.0
    """Seconds that a client has to be silent before it is greeted; 0: it is greeted at once."""
    minimum_rate: int = 0
    """Octets a second of a message, over a window; 0: any."""
    normalize_from: NetworkSet = field(default_factory=NetworkSet)
    """Clients whose bare newlines are normalised."""
    session_time: float | None = None
    """Seconds of a session, looked at between transactions."""
    max_sessions: int = 100

    chain: Chain = field(default_factory=Chain)
    counters: Counters = field(default_factory=Counters)
    draining: Signal = field(default_factory=Signal)
    ending: bool = False
    """`draining`, `retiring` or `aborting`: look closer at each turn."""
    retiring: bool = False
    """Every session gets 421 at its next command."""
    lame_duck: bool = False
    """Health checks get 421: the server is about to drain. Clients are served."""
    aborting: bool = False
    """The drain deadline: messages that still arrive are given up."""
    sessions: set[Session] = field(default_factory=set)
    outbox: Outbox = field(default_factory=Outbox)
    in_data: int = 0
    ids: count[int] = field(default_factory=lambda: count(1))
    id_prefix: str = ""
    """Makes session ids differ between processes and starts."""
