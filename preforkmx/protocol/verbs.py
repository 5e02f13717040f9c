"""What each command does, once it may come: the event or the refusal that it is.

A command whose answer needs nobody's decision is answered here, and gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from preforkmx.protocol import commands, replies, xclient
from preforkmx.protocol.events import Data, Event, Forwarded, Mail, Quit, Rcpt, Reset, StartTLS
from preforkmx.protocol.extensions import auth_offered
from preforkmx.protocol.order import LMTP_REPLIES, TABLE, WORK, State, Verb
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from preforkmx.protocol.core import Core

# Events without fields.
_DATA = Data()
_QUIT = Quit()
_RESET = Reset()


def _helo(_core: Core, argument: bytes) -> Event | Reply | None:
    return commands.hello(argument, extended=False)


def _ehlo(_core: Core, argument: bytes) -> Event | Reply | None:
    return commands.hello(argument, extended=True)


def _other_greeting(core: Core, _argument: bytes) -> Event | Reply | None:
    # RFC 2033 section 4.1: never a completion reply to HELO and EHLO.
    return replies.SEND_LHLO if core.settings.lmtp else replies.SEND_EHLO


def _mail(core: Core, argument: bytes) -> Event | Reply | None:
    if 0 < core.settings.transactions <= core.transactions:
        return replies.TOO_MANY_TRANSACTIONS
    event = commands.mail(argument, core.settings, tls=core.tls)
    if type(event) is Mail:
        parameters = event.parameters
        core.smtputf8 = parameters.smtputf8
        core.binarymime = parameters.body == "BINARYMIME"
    return event


def _rcpt(core: Core, argument: bytes) -> Event | Reply | None:
    event = commands.rcpt(argument, core.settings, smtputf8=core.smtputf8)
    if core.recipients >= core.settings.recipients and type(event) is Rcpt:
        return replies.TOO_MANY_RECIPIENTS
    return event


def _data(core: Core, argument: bytes) -> Event | Reply | None:
    if core.binarymime:
        # RFC 3030 section 3.
        return replies.BINARY_NEEDS_CHUNKS
    return replies.NO_ARGUMENT if argument else _DATA


def _rset(_core: Core, argument: bytes) -> Event | Reply | None:
    return replies.NO_ARGUMENT if argument else _RESET


def _noop(core: Core, _argument: bytes) -> Event | Reply | None:
    core.write(replies.OK)
    return None


def _quit(_core: Core, argument: bytes) -> Event | Reply | None:
    return replies.NO_ARGUMENT if argument else _QUIT


def _vrfy(core: Core, argument: bytes) -> Event | Reply | None:
    event = commands.vrfy(argument, core.settings)
    if core.state is State.CHUNKS and type(event) is not Reply:
        # The session is busy with the message; RFC 5321 section 7.3 makes this right.
        core.write(replies.CANNOT_VERIFY)
        return None
    return event


def _expn(_core: Core, _argument: bytes) -> Event | Reply | None:
    return replies.NOT_IMPLEMENTED


def _help(core: Core, _argument: bytes) -> Event | Reply | None:
    core.write(replies.LMTP_HELP if core.settings.lmtp else replies.HELP)
    return None


def _starttls(core: Core, argument: bytes) -> Event | Reply | None:
    if core.tls:
        return replies.ALREADY_TLS
    if not core.settings.starttls:
        return replies.NOT_IMPLEMENTED
    return replies.NO_ARGUMENT if argument else StartTLS()


def _xclient(core: Core, argument: bytes) -> Event | Reply | None:
    if not core.may_forward:
        return replies.XCLIENT_NOT_FOR_YOU
    client = xclient.parse(argument)
    return client if type(client) is Reply else Forwarded(client)  # type: ignore[arg-type]


def _auth(core: Core, argument: bytes) -> Event | Reply | None:
    if not core.settings.auth:
        return replies.NOT_IMPLEMENTED
    if not core.extended:
        return replies.SEND_EHLO_FIRST
    if core.authenticated:
        return replies.ALREADY_AUTHENTICATED
    if not auth_offered(core.settings, tls=core.tls):
        return replies.AUTH_NEEDS_TLS
    return core.ask_on(core.authentication.begin(argument))


Parse = Callable[["Core", bytes], Event | Reply | None]
"""``(core, argument)``: called when the table of the order lets the command come."""
Commands = dict[bytes, tuple[Verb, Parse]]


class Command(NamedTuple):
    """A command, as it is in one state of a session."""

    verb: Verb
    parse: Parse
    works: bool
    """It brings a message nearer (:data:`~preforkmx.protocol.order.WORK`)."""
    after: State | Reply
    """The state after it, or the reply that refuses it here."""


def _in_every_state(
    commands: Commands, replies: Mapping[Reply, Reply]
) -> dict[State, dict[bytes, Command]]:
    """Join the verbs with the table of the order: one look-up tells all of a command.

    :param replies: what the table's refusals are in this protocol, where they differ.
    """
    return {
        state: {
            word: Command(verb, parse, verb in WORK, _refusal(row[verb], replies))
            for word, (verb, parse) in commands.items()
        }
        for state, row in TABLE.items()
    }


def _refusal(after: State | Reply, replies: Mapping[Reply, Reply]) -> State | Reply:
    return replies.get(after, after) if type(after) is Reply else after


_SHARED: Commands = {
    b"MAIL": (Verb.MAIL, _mail),
    b"RCPT": (Verb.RCPT, _rcpt),
    b"DATA": (Verb.DATA, _data),
    # Its parser is another: it needs to know what the table says.
    b"BDAT": (Verb.BDAT, _data),
    b"RSET": (Verb.RSET, _rset),
    b"NOOP": (Verb.NOOP, _noop),
    b"QUIT": (Verb.QUIT, _quit),
    b"VRFY": (Verb.VRFY, _vrfy),
    b"EXPN": (Verb.EXPN, _expn),
    b"HELP": (Verb.HELP, _help),
    b"STARTTLS": (Verb.STARTTLS, _starttls),
    b"AUTH": (Verb.AUTH, _auth),
    b"XCLIENT": (Verb.XCLIENT, _xclient),
}
_SMTP: Commands = _SHARED | {
    b"HELO": (Verb.HELO, _helo),
    b"EHLO": (Verb.EHLO, _ehlo),
    b"LHLO": (Verb.EHLO, _other_greeting),
}
_LMTP: Commands = _SHARED | {
    b"LHLO": (Verb.EHLO, _ehlo),
    b"HELO": (Verb.HELO, _other_greeting),
    b"EHLO": (Verb.EHLO, _other_greeting),
}

SMTP = _in_every_state(_SMTP, {})
"""The commands of SMTP, by state and by word in upper case."""
LMTP = _in_every_state(_LMTP, LMTP_REPLIES)
"""The commands of LMTP."""
