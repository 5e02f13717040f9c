"""The core: a session is the same however its octets were cut, its replies are well-formed,
and what it keeps is bounded.
"""

from __future__ import annotations

import streams
from dialogues.caller import Caller
from inputs import Choices, pieces

from preforkmx.protocol.events import Closing, Foreign, StartTLS
from preforkmx.protocol.paths import is_printable
from preforkmx.protocol.settings import Settings
from targets.hops import reference as hops_in

TOKENS = (
    *streams.GREETINGS,
    *streams.COMMANDS,
    *(token for token in streams.WRONG if len(token) < 80),
    *streams.BODY,
    streams.MESSAGE,
    b"Received: x\r\n",
    b"MAIL FROM:<\xc3\xbc@example.org> SMTPUTF8\r\n",
    b"RCPT TO:<\xc3\xbc@example.org> ORCPT=utf-8;\xc3\xbc@b NOTIFY=NEVER\r\n",
    b"VRFY \xc3\xbc SMTPUTF8\r\n",
    b"XCLIENT ADDR=192.0.2.1 NAME=a.example LOGIN=x\r\n",
    b"x" * 2047,
    b"x" * 2100,
)
OUTCOMES = {"open", "closed", "foreign", "starttls", "delivered", "lmtp delivered", "normalized"}
COUNT = 2500


def check(data: bytes) -> str:
    choices = Choices(data)
    listener, extensions, salt, cut = (choices.octet() for _ in range(4))
    octets = choices.rest()
    cuts = pieces(octets, cut)
    caller = _talk(cuts, listener, extensions, salt)
    # Each event consumes octets, but the last ones of a piece.
    assert caller.events <= len(octets) + 2 * len(cuts) + 4
    _check_output(caller.output)
    _check_events(caller)
    started = any(type(event) is StartTLS for event in caller.happened)
    if not started and not _strict(listener):
        # Both look at what came in the same piece: it is all there is to see.
        whole = _talk([octets], listener, extensions, salt)
        assert whole.happened == caller.happened
        assert whole.output == caller.output
        assert whole.traced == caller.traced
        assert whole.delivered == caller.delivered
    for _, recipients, body in caller.delivered:
        assert 1 <= len(recipients) <= 3
        assert len(body) <= 120
        assert hops_in(body) <= 2
    return _outcome(caller, listener, started=started)


def _strict(listener: int) -> bool:
    return listener & 0x30 == 0x30


def _talk(cuts: list[bytes], listener: int, extensions: int, salt: int) -> Caller:
    starttls = bool(listener & 1)
    settings = Settings(
        hostname="mx.example.com",
        message_size=60,
        recipients=3,
        errors=6,
        auth_failures=3,
        auth=True,
        allow_insecure_auth=True,
        starttls=starttls,
        lmtp=bool(listener & 2),
        bare_newline="normalize" if listener & 4 else "reject",
        hops=2,
        strict_flights=_strict(listener),
        commands=9 if listener & 0x40 else 0,
        transactions=3 if listener & 0x80 else 0,
        chunking=not extensions & 1,
        binarymime=not extensions & 2,
        smtputf8=bool(extensions & 4),
        dsn=bool(extensions & 8),
        requiretls=bool(extensions & 16),
    )
    caller = Caller(
        settings,
        streams.decider(salt % 4),
        tls=not starttls,
        may_forward=bool(listener & 8),
    )
    caller.connect()
    for piece in cuts:
        if caller.core.closed:
            break
        caller.send(piece)
        streams.check(caller)
    caller.hang_up()
    return caller


def _check_events(caller: Caller) -> None:
    """What the client said stands in log lines: it is one line, and all of it printable."""
    for said in caller.traced:
        assert not set(said.removesuffix(b"\r\n")) & set(b"\r\n") or said[:3].isdigit()
    for event in caller.happened:
        for name in ("name", "path", "text"):
            assert is_printable(getattr(event, name, ""))


def _check_output(output: bytes) -> None:
    lines = output.split(b"\r\n")
    assert lines.pop() == b""
    before = b""
    for line in lines:
        assert len(line) <= 510
        assert line.isascii()
        assert line.decode().isprintable()
        code, more = line[:3], line[3:4]
        assert code.isdigit()
        assert b"200" <= code < b"600"
        assert more in (b" ", b"-")
        # RFC 5321 section 4.2.1: the lines of one reply have one code.
        assert before in (b"", code)
        before = code if more == b"-" else b""
    assert before == b""


def _outcome(caller: Caller, listener: int, *, started: bool) -> str:
    if caller.delivered:
        if listener & 2:
            return "lmtp delivered"
        return "normalized" if listener & 4 else "delivered"
    if started:
        return "starttls"
    last = type(caller.happened[-1])
    return "foreign" if last is Foreign else "closed" if last is Closing else "open"
