"""Which command may come when: the whole order of RFC 5321 section 4.1.4, as one table.

A row is a state, a column a command; what stands there is the state after the command was
accepted, or the reply that refuses it. A command that is refused, by this table or by a
hook, leaves the state as it was (RFC 5321 section 4.1.1.1 asks that of EHLO).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from preforkmx.protocol import replies

if TYPE_CHECKING:
    from preforkmx.protocol.replies import Reply


class _Identity(Enum):
    # The members are keys on the path of every command, and Enum's own hash is a Python call.
    __hash__ = object.__hash__


class State(_Identity):
    """Where a session stands."""

    CONNECTED = "connected"
    """Before the greeting: nothing is read."""
    GREETED = "greeted"
    """220 was sent, no HELO or EHLO yet."""
    READY = "ready"
    """HELO or EHLO was accepted; no transaction."""
    MAIL = "mail"
    """The reverse path was accepted; no recipient yet."""
    RCPT = "rcpt"
    """At least one recipient was accepted."""
    MESSAGE = "message"
    """354 was sent; octets belong to the message."""
    CHUNK = "chunk"
    """Octets belong to a chunk of the message."""
    CHUNKS = "chunks"
    """A chunk was answered, and it was not the last."""
    SKIP = "skip"
    """Octets belong to a chunk that is refused, outside of any message."""
    DELIVERY = "delivery"
    """The message is complete and not yet answered."""
    AUTH = "auth"
    """334 was sent; the next line is a response of the client."""
    TLS = "tls"
    """220 to STARTTLS was sent; the next octets are a TLS handshake."""
    CLOSED = "closed"
    """The last reply was written: nothing is read any more."""


class Verb(_Identity):
    """The commands that the table knows."""

    HELO = "HELO"
    EHLO = "EHLO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BDAT = "BDAT"
    RSET = "RSET"
    NOOP = "NOOP"
    QUIT = "QUIT"
    VRFY = "VRFY"
    EXPN = "EXPN"
    HELP = "HELP"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    XCLIENT = "XCLIENT"


WORK = frozenset({Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BDAT, Verb.QUIT})
"""What a client is here for; of anything else there may be too much."""

LAST_IN_FLIGHT = frozenset(
    {
        Verb.HELO,
        Verb.EHLO,
        Verb.DATA,
        Verb.VRFY,
        Verb.EXPN,
        Verb.NOOP,
        Verb.STARTTLS,
        Verb.AUTH,
        Verb.XCLIENT,
    }
)
"""Commands whose answer a client has to wait for before it sends more (RFC 2920 section 3.1,
RFC 3207 section 4, RFC 4954 section 4)."""

_ALWAYS = (Verb.NOOP, Verb.VRFY, Verb.EXPN, Verb.HELP)

TABLE: dict[State, dict[Verb, State | Reply]] = {
    State.GREETED: {
        **dict.fromkeys(_ALWAYS, State.GREETED),
        Verb.HELO: State.READY,
        Verb.EHLO: State.READY,
        Verb.MAIL: replies.SEND_HELLO_FIRST,
        Verb.RCPT: replies.SEND_HELLO_FIRST,
        Verb.DATA: replies.SEND_HELLO_FIRST,
        Verb.BDAT: replies.SEND_HELLO_FIRST,
        Verb.RSET: State.GREETED,
        Verb.QUIT: State.CLOSED,
        Verb.STARTTLS: replies.SEND_EHLO_FIRST,
        Verb.AUTH: replies.SEND_EHLO_FIRST,
        # The session begins again, and is greeted again.
        Verb.XCLIENT: State.CONNECTED,
    },
    State.READY: {
        **dict.fromkeys(_ALWAYS, State.READY),
        Verb.HELO: State.READY,
        Verb.EHLO: State.READY,
        Verb.MAIL: State.MAIL,
        Verb.RCPT: replies.NEED_MAIL,
        Verb.DATA: replies.NEED_MAIL,
        Verb.BDAT: replies.NEED_MAIL,
        Verb.RSET: State.READY,
        Verb.QUIT: State.CLOSED,
        Verb.STARTTLS: State.TLS,
        # The state after the exchange; on the way there it is State.AUTH.
        Verb.AUTH: State.READY,
        Verb.XCLIENT: State.CONNECTED,
    },
    State.MAIL: {
        **dict.fromkeys(_ALWAYS, State.MAIL),
        Verb.HELO: State.READY,
        Verb.EHLO: State.READY,
        Verb.MAIL: replies.NESTED_MAIL,
        Verb.RCPT: State.RCPT,
        Verb.DATA: replies.NO_VALID_RECIPIENTS,
        Verb.BDAT: replies.NO_VALID_RECIPIENTS,
        Verb.RSET: State.READY,
        Verb.QUIT: State.CLOSED,
        Verb.STARTTLS: replies.NOT_IN_TRANSACTION,
        Verb.AUTH: replies.NOT_IN_TRANSACTION,
        Verb.XCLIENT: replies.NOT_IN_TRANSACTION,
    },
    State.RCPT: {
        **dict.fromkeys(_ALWAYS, State.RCPT),
        Verb.HELO: State.READY,
        Verb.EHLO: State.READY,
        Verb.MAIL: replies.NESTED_MAIL,
        Verb.RCPT: State.RCPT,
        Verb.DATA: State.MESSAGE,
        Verb.BDAT: State.CHUNK,
        Verb.RSET: State.READY,
        Verb.QUIT: State.CLOSED,
        Verb.STARTTLS: replies.NOT_IN_TRANSACTION,
        Verb.AUTH: replies.NOT_IN_TRANSACTION,
        Verb.XCLIENT: replies.NOT_IN_TRANSACTION,
    },
    # RFC 3030 section 2: a message that BDAT began is ended by BDAT, and takes no recipients.
    State.CHUNKS: {
        **dict.fromkeys(_ALWAYS, State.CHUNKS),
        Verb.HELO: State.READY,
        Verb.EHLO: State.READY,
        Verb.MAIL: replies.NESTED_MAIL,
        Verb.RCPT: replies.CHUNKS_BEGAN,
        Verb.DATA: replies.CHUNKS_BEGAN,
        Verb.BDAT: State.CHUNK,
        Verb.RSET: State.READY,
        Verb.QUIT: State.CLOSED,
        Verb.STARTTLS: replies.NOT_IN_TRANSACTION,
        Verb.AUTH: replies.NOT_IN_TRANSACTION,
        Verb.XCLIENT: replies.NOT_IN_TRANSACTION,
    },
}

LMTP_REPLIES: dict[Reply, Reply] = {
    replies.SEND_HELLO_FIRST: replies.SEND_LHLO_FIRST,
    replies.SEND_EHLO_FIRST: replies.SEND_LHLO_FIRST,
    # RFC 2033 section 4.2 wants a 503 here.
    replies.NO_VALID_RECIPIENTS: replies.LMTP_NO_RECIPIENTS,
}
"""What the table's refusals are in LMTP, where they differ."""
