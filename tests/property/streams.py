"""Octet streams for the protocol core: random ones, sessions made at random, and the dialogues'
octets mutated. The same seed gives the same stream, on every machine.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dialogues.caller import Caller
from dialogues.language import dialogues_in, flights

from preforkmx.protocol.order import State
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

DIALOGUES = Path(__file__).parent.parent / "dialogues"

GREETINGS = (b"EHLO a.example\r\n", b"HELO a.example\r\n", b"ehlo [192.0.2.1] \r\n")
COMMANDS = (
    b"MAIL FROM:<a@example.org>\r\n",
    b"MAIL FROM:<> SIZE=10 BODY=8BITMIME\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"RCPT TO:<Postmaster>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY someone\r\n",
    b"HELP\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH LOGIN\r\n",
    b"AUTH LOGIN YQ==\r\n",
    b"AGEAYg==\r\n",
    b"YQ==\r\n",
    b"*\r\n",
    b"BDAT 5\r\nchunk",
    b"BDAT 7 LAST\r\nlast\r\n.",
    b"BDAT 0 LAST\r\n",
    b"MAIL FROM:<a@example.org> BODY=BINARYMIME\r\n",
)
WRONG = (
    b"\r\n",
    b"BOGUS\r\n",
    b"EHLO\r\n",
    b"MAIL FROM:<a\r\n",
    b"MAIL FROM:<a@example.org> SIZE=99999\r\n",
    b"RCPT TO:<>\r\n",
    b"DATA now\r\n",
    b"EXPN x\r\n",
    b"STARTTLS\r\n",
    b"AUTH X\r\n",
    b"NOOP\n",
    b"QUIT\r\n",
    b"BDAT 61\r\n" + b"x" * 61,
    b"BDAT 200 LAST\r\n",
    b"BDAT -1\r\n",
    b"GET / HTTP/1.1\r\n",
    b"LHLO a.example\r\n",
    b"XCLIENT ADDR=192.0.2.1\r\n",
    b"x" * 2047,
    b"x" * 2060 + b"\r\n",
    b"x" * 10240 + b"\r\n",
    b"x" * 12300 + b"\r\n",
)
BODY = (
    b"line\r\n",
    b"\r\n",
    b"..dot\r\n",
    b".\r\n",
    b"\r\n.\r\n",
    b".",
    b"\r",
    b"\n",
    b"\0",
    b"x",
    b"\r\n.\r",
    b"\n.\n",
    b"x" * 30,
)
MESSAGE = COMMANDS[0] + COMMANDS[2] + COMMANDS[4]
"""A transaction up to the 354."""
FRAGMENTS = (*GREETINGS, *COMMANDS, *WRONG, *BODY, MESSAGE, COMMANDS[0] + COMMANDS[2] * 5)

REFUSALS = (
    Reply(450, "Later", enhanced=(4, 7, 1)),
    Reply(550, "No", enhanced=(5, 7, 1)),
    Reply(421, "Enough", enhanced=(4, 3, 2)),
)


@dataclass(frozen=True)
class Stream:
    """What one client sends, in which pieces, to which listener."""

    octets: bytes
    cuts: tuple[int, ...]
    starttls: bool
    salt: int
    """Decides what the hooks say."""

    @property
    def pieces(self) -> list[bytes]:
        places = (0, *self.cuts, len(self.octets))
        return [self.octets[a:b] for a, b in itertools.pairwise(places)]


def decider(salt: int):
    """Hooks that refuse now and then: always the same way for the same salt."""
    count = 0

    def decide(phase: str, argument: str) -> Reply | None:
        nonlocal count
        count += 1
        if salt == 0 or phase == "connect":
            return None
        draw = zlib.crc32(f"{salt} {count} {phase} {argument}".encode("utf-8", "replace")) % 32
        return REFUSALS[draw] if draw < len(REFUSALS) else None

    return decide


def talk(
    pieces: Iterable[bytes], *, salt: int = 0, starttls: bool = False, **settings: int
) -> Caller:
    """Feed the core a session of `pieces`, then the client's end."""
    caller = Caller(small_settings(starttls=starttls, **settings), decider(salt), tls=not starttls)
    caller.connect()
    for piece in pieces:
        if caller.core.closed:
            break
        caller.send(piece)
        check(caller)
    caller.hang_up()
    return caller


def small_settings(**settings: int | bool) -> Settings:
    """Limits that a short stream reaches."""
    return Settings(
        hostname="mx.example.com",
        **{  # type: ignore[arg-type]
            "message_size": 60,
            "recipients": 3,
            "errors": 6,
            "auth_failures": 3,
            "auth": True,
            "allow_insecure_auth": True,
            **settings,
        },
    )


def check(caller: Caller) -> None:
    """What holds for every session after every piece: the core keeps no more than its bound."""
    core = caller.core
    if not core.closed:
        assert core.buffered <= (12288 if core.state is State.AUTH else 2048)
    if core._data is not None:
        assert len(core._data._scanner._carry) <= 4
    assert core.take_output() == b""


def random_stream(name: str) -> Stream:
    """The stream of this name."""
    rng = random.Random(name)
    kind = rng.randrange(4)
    if kind == 0:
        octets = rng.randbytes(rng.choice((1, 10, 100, 1000, 5000)))
        octets = rng.choice((b"", GREETINGS[0], GREETINGS[0] + MESSAGE)) + octets
    elif kind == 1:
        octets = GREETINGS[0] + b"".join(rng.choices(FRAGMENTS, k=rng.randrange(40)))
    else:
        octets = rng.choice(corpus())
        if rng.random() < 0.3:
            other = rng.choice(corpus())
            octets = octets[: rng.randrange(len(octets) + 1)] + other[rng.randrange(len(other)) :]
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            octets = mutated(rng, octets)
    cuts = sorted(rng.randrange(len(octets) + 1) for _ in range(rng.choice((0, 1, 2, 10))))
    if rng.random() < 0.05:
        cuts = list(range(1, len(octets)))
    return Stream(octets, tuple(cuts), starttls=rng.random() < 0.3, salt=rng.randrange(4))


def mutated(rng: random.Random, octets: bytes) -> bytes:
    """`octets` with one thing changed."""
    at = rng.randrange(len(octets) + 1)
    end = min(len(octets), at + rng.choice((1, 1, 2, 8, 64)))
    what = rng.randrange(7)
    if what == 0:
        return octets[:at] + rng.randbytes(end - at) + octets[end:]
    if what == 1:
        return octets[:at] + octets[end:]
    if what == 2:
        return octets[:at] + octets[at:end] * rng.choice((2, 3, 200)) + octets[end:]
    if what == 3:
        return octets[:at] + rng.choice(FRAGMENTS) + octets[at:]
    if what == 4:
        return octets[:at] + bytes((rng.choice(b'\r\n.\0\t <>@:="\\[]*'),)) + octets[at:]
    if what == 5 and at < len(octets):
        return octets[:at] + bytes((octets[at] ^ (1 << rng.randrange(8)),)) + octets[at + 1 :]
    return octets[:at]


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """The octets that the dialogues' clients send."""
    hello = GREETINGS[0]
    return tuple(
        hello + b"".join(flight.octets for flight in flights(dialogue))
        for dialogue in dialogues_in(DIALOGUES)
    )


def run(stream: Stream) -> None:
    """Run one stream. An AssertionError or any other exception is a bug."""
    caller = talk(stream.pieces, salt=stream.salt, starttls=stream.starttls)
    # Each event consumes octets, but the last ones of a piece.
    assert caller.events <= len(stream.octets) + 2 * len(stream.pieces) + 4
    lines = caller.output.split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert len(line) <= 510
        assert line[:3].isdigit()
        assert line[3:4] in b" -"
        assert line.isascii()
        assert line.decode().isprintable()
    if not stream.starttls:
        # How the octets are cut changes nothing.
        whole = talk((stream.octets,), salt=stream.salt)
        assert whole.happened == caller.happened
        assert whole.output == caller.output
        assert whole.traced == caller.traced
