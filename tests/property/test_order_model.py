"""The order of commands against a small model of RFC 5321 section 4.1.4, told in its words
instead of a table, with those of RFC 3030 (BDAT), RFC 2033 (LMTP) and XCLIENT: random commands,
right and wrong, accepted and refused by hooks.
"""

from __future__ import annotations

import re

from dialogues.caller import Caller
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings

COMMANDS = {
    "HELO": b"HELO a.example",
    "EHLO": b"EHLO a.example",
    "LHLO": b"LHLO a.example",
    "MAIL": b"MAIL FROM:<a@example.org>",
    "BINARY": b"MAIL FROM:<binary@example.org> BODY=BINARYMIME",
    "RCPT": b"RCPT TO:<b@example.com>",
    "LATER": b"RCPT TO:<later@example.com>",
    "DATA": b"DATA",
    "RSET": b"RSET",
    "NOOP": b"NOOP",
    "VRFY": b"VRFY someone",
    "EXPN": b"EXPN someone",
    "HELP": b"HELP",
    "STARTTLS": b"STARTTLS",
    "AUTH": b"AUTH PLAIN AGEAYg==",
    "XCLIENT": b"XCLIENT ADDR=192.0.2.1",
    "QUIT": b"QUIT",
}
WRONG = {
    "HELO": b"HELO",
    "EHLO": b"EHLO two words",
    "LHLO": b"LHLO",
    "MAIL": b"MAIL FROM:<a@>",
    "BINARY": b"MAIL FROM:<binary@example.org> BODY=BINARY",
    "RCPT": b"RCPT TO:<>",
    "LATER": b"RCPT TO:<later@example.com> X=1",
    "DATA": b"DATA now",
    "RSET": b"RSET now",
    "VRFY": b"VRFY",
    "STARTTLS": b"STARTTLS now",
    "AUTH": b"AUTH PLAIN !",
    "XCLIENT": b"XCLIENT ADDR=a.example",
    "QUIT": b"QUIT now",
}
REFUSED = {"LATER": 555}
"""What a wrong command is refused with, where it is not 501."""
TEXTS = {
    "good": b"fine\r\n.\r\n",
    "large": b"x" * 101 + b"\r\n.\r\n",
    "bare": b"bad\nline\r\n.\r\n",
}
MESSAGES = {"good": None, "large": 552, "bare": 550}
"""What a message is refused with for its octets."""
LIMIT = 100
CHUNKS = {
    "part": (b"QUIT\r\n", False),
    "empty": (b"", False),
    "last": (b"RSET\r\n", True),
    "empty last": (b"", True),
    "half": (b"x" * 60, False),
    "large": (b"x" * 101, False),
    "large last": (b"DATA\n." * 17, True),
    "huge": (b"x" * 201, True),
}
"""What follows BDAT, and whether it is the last chunk."""
# QUIT, and a message or a chunk that closes the session, would make most sequences short.
rarely_wrong = st.sampled_from([True] * 5 + [False])
verdicts_of_hooks = st.sampled_from([None] * 5 + [450, 550])
commands = st.tuples(
    st.sampled_from([verb for verb in COMMANDS if verb != "QUIT"])
    | st.sampled_from(["EHLO", "LHLO", "MAIL", "RCPT", "LATER", "DATA", "MAIL", "RCPT", "DATA"])
    | st.sampled_from(["MAIL", "BINARY", "RCPT", "DATA", "QUIT"]),
    rarely_wrong,
    verdicts_of_hooks,
    st.sampled_from(["good", "good", "good", "large", "bare"]),
)
chunks = st.tuples(
    st.just("BDAT"),
    st.sampled_from([True] * 12 + [False]),
    verdicts_of_hooks,
    st.sampled_from(["part", "part", "last", "last", *[kind for kind in CHUNKS if kind != "huge"]])
    | st.sampled_from(sorted(CHUNKS)),
)
# A transaction in one piece: without it few sequences of random commands get as far as BDAT.
begun = st.sampled_from(["MAIL", "BINARY"]).map(
    lambda mail: [(verb, True, None, "good") for verb in ("EHLO", "LHLO", mail, "RCPT", "LATER")]
)
# And without it few get between two chunks.
asked = st.tuples(
    st.sampled_from(["VRFY", "EHLO", "LHLO"]), st.just(True), verdicts_of_hooks, st.just("good")
)
between = st.tuples(begun, commands | asked, chunks).map(
    lambda parts: [*parts[0], ("BDAT", True, None, "part"), parts[1], parts[2]]
)
sequences = st.lists(
    st.lists(commands, max_size=8) | st.lists(chunks, max_size=4) | begun | between, max_size=10
).map(lambda parts: [step for part in parts for step in part])


class Model:
    """A session as the RFCs tell it."""

    def __init__(self, *, lmtp: bool, trusted: bool) -> None:
        self.lmtp = lmtp
        self.trusted = trusted
        self.greeted = False
        self.extended = False
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.binary = False
        self.authenticated = False
        self.tls = False
        self.closed = False
        self.delivered: list[tuple[str, list[str], bytes]] = []
        # Of a message in chunks: its octets so far, None where none began; and what it will be
        # refused with.
        self.chunks: bytes | None = None
        self.size = 0
        self.failure: int | None = None

    def step(self, verb: str, *, right: bool, verdict: int | None, message: str) -> list[int]:
        """The reply codes of a command."""
        if verb == "BDAT":
            return self.chunk(message, verdict) if right else self.close(501)
        if verb in ("NOOP", "HELP", "EXPN"):
            return [{"NOOP": 250, "HELP": 214, "EXPN": 502}[verb]]
        if verb in ("HELO", "EHLO", "LHLO") and (verb == "LHLO") != self.lmtp:
            return [500]
        refusal = self.out_of_order(verb)
        if refusal is None and not right:
            refusal = REFUSED.get(verb, 501)
        if refusal is not None:
            return [refusal]
        if verb == "DATA":
            codes = [354, *self.end(MESSAGES[message], b"fine\r\n", verdict)]
            self.closed = message == "bare"
            return codes
        if verb == "VRFY" and self.chunks is not None:
            # The session is busy with the message.
            return [252]
        if verb in ("HELO", "EHLO", "LHLO") and self.chunks is not None:
            # The message is given up, whatever a hook says of the name.
            self.forget()
        asked = ("HELO", "EHLO", "LHLO", "MAIL", "BINARY", "RCPT", "LATER", "VRFY", "AUTH")
        if verdict is not None and verb in asked:
            return [verdict]
        return [self.accepted(verb)]

    def out_of_order(self, verb: str) -> int | None:
        """What the order of commands refuses this one with."""
        mail = verb in ("MAIL", "BINARY")
        rcpt = verb in ("RCPT", "LATER")
        if (mail or rcpt or verb in ("DATA", "BDAT", "STARTTLS", "AUTH")) and not self.greeted:
            return 503
        if mail and self.sender is not None:
            return 503
        if (rcpt or verb in ("DATA", "BDAT")) and self.sender is None:
            return 503
        if (rcpt or verb == "DATA") and self.chunks is not None:
            return 503
        if verb in ("DATA", "BDAT") and not self.recipients:
            return 503 if self.lmtp else 554
        if verb == "DATA" and self.binary:
            return 503
        if verb in ("STARTTLS", "AUTH", "XCLIENT") and self.sender is not None:
            return 503
        if verb == "STARTTLS" and self.tls:
            return 503
        if verb == "AUTH" and (not self.extended or self.authenticated):
            return 503
        if verb == "XCLIENT" and not self.trusted:
            return 550
        return None

    def accepted(self, verb: str) -> int:
        if verb in ("HELO", "EHLO", "LHLO"):
            self.greeted = True
            self.extended = verb != "HELO"
        if verb in ("HELO", "EHLO", "LHLO", "RSET"):
            self.forget()
        if verb in ("MAIL", "BINARY"):
            self.sender = "binary@example.org" if verb == "BINARY" else "a@example.org"
            self.binary = verb == "BINARY"
        if verb in ("RCPT", "LATER"):
            self.recipients.append("later@example.com" if verb == "LATER" else "b@example.com")
        if verb == "AUTH":
            self.authenticated = True
        if verb == "STARTTLS":
            self.tls = True
            self.authenticated = False
        if verb in ("STARTTLS", "XCLIENT"):
            self.greeted = self.extended = False
        if verb == "QUIT":
            self.closed = True
        codes = {"VRFY": 252, "AUTH": 235, "STARTTLS": 220, "XCLIENT": 220, "QUIT": 221}
        return codes.get(verb, 250)

    def chunk(self, kind: str, verdict: int | None) -> list[int]:
        """BDAT with its octets."""
        octets, last = CHUNKS[kind]
        refusal = self.out_of_order("BDAT")
        if refusal is not None:
            return [refusal] if len(octets) <= 2 * LIMIT else self.close(552)
        self.size += len(octets)
        if self.size > 2 * LIMIT:
            return self.close(552)
        if self.failure is None and self.size > LIMIT:
            self.failure = 552
        if self.chunks is None:
            self.chunks = b""
            # The handler is there from the first chunk on.
            self.failure = self.failure or verdict
        self.chunks += octets
        if last:
            return self.end(self.failure, self.chunks, verdict)
        return [self.failure or 250]

    def end(self, fault: int | None, body: bytes, verdict: int | None) -> list[int]:
        """The message is answered, and its transaction over."""
        code = fault or verdict
        sender, recipients = self.sender, self.recipients
        assert sender is not None
        assert recipients
        self.forget()
        if code is None:
            self.delivered.append((sender, recipients, body))
        if not self.lmtp:
            return [code or 250]
        return [code or (450 if path.startswith("later") else 250) for path in recipients]

    def forget(self) -> None:
        """There is no transaction."""
        self.sender, self.recipients, self.binary = None, [], False
        self.chunks, self.size, self.failure = None, 0, None

    def close(self, code: int) -> list[int]:
        """The last reply."""
        self.closed = True
        return [code]


def codes(output: bytes) -> list[int]:
    """The codes of the replies, of a reply of several lines once."""
    return [int(code) for code in re.findall(rb"^(\d{3}) ", output, re.MULTILINE)]


def octets_of(verb: str, message: str, *, right: bool) -> bytes:
    """What the client sends, up to where it has to wait."""
    if verb != "BDAT":
        return (COMMANDS if right else WRONG)[verb] + b"\r\n"
    octets, last = CHUNKS[message]
    size = b"%d" % len(octets) if right else b"-1"
    return b"BDAT %s%s\r\n" % (size, b" LAST" if last else b"") + octets


@given(sequences, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=600)
def test_every_sequence_of_commands_is_answered_as_the_model_says(sequence, lmtp, trusted):
    model = Model(lmtp=lmtp, trusted=trusted)
    verdicts = {"now": None}

    def decide(phase, argument):
        code = verdicts["now"] if phase != "connect" else None
        if phase == "deliver" and argument.startswith("later"):
            code = 450
        return Reply(code, "No", enhanced=(code // 100, 0, 0)) if code is not None else None

    caller = Caller(
        Settings(
            hostname="mx.example.com",
            message_size=LIMIT,
            errors=1000,
            auth_failures=1000,
            starttls=True,
            auth=True,
            allow_insecure_auth=True,
            lmtp=lmtp,
        ),
        decide,
        may_forward=trusted,
    )
    caller.connect()
    for verb, right, verdict, message in sequence:
        right = right or verb not in (*WRONG, "BDAT")  # noqa: PLW2901
        expected = model.step(verb, right=right, verdict=verdict, message=message)
        verdicts["now"] = verdict
        output = caller.send(octets_of(verb, message, right=right))
        if codes(output) == [354]:
            output += caller.send(TEXTS[message])
        assert codes(output) == expected
        has_enhanced = re.search(rb"^\d{3}[ -]\d\.\d+\.\d+ ", output) is not None
        if verb in ("HELO", "EHLO", "LHLO"):
            assert not has_enhanced
        elif expected != [220]:
            lines = [line for line in output.splitlines() if not line.startswith(b"354")]
            for line in lines:
                enhanced = re.match(rb"\d{3}[ -]\d\.\d+\.\d+ ", line) is not None
                assert enhanced == model.extended
        assert caller.core.closed == model.closed
        assert caller.core.in_transaction == (model.sender is not None and not model.closed)
        assert caller.delivered == model.delivered
        if model.closed:
            break
