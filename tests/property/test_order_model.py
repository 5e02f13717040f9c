"""The order of commands against a small model of RFC 5321 section 4.1.4, told in its words
instead of a table: random commands, right and wrong, accepted and refused by hooks.
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
    "MAIL": b"MAIL FROM:<a@example.org>",
    "RCPT": b"RCPT TO:<b@example.com>",
    "DATA": b"DATA",
    "RSET": b"RSET",
    "NOOP": b"NOOP",
    "VRFY": b"VRFY someone",
    "EXPN": b"EXPN someone",
    "HELP": b"HELP",
    "STARTTLS": b"STARTTLS",
    "AUTH": b"AUTH PLAIN AGEAYg==",
    "QUIT": b"QUIT",
}
WRONG = {
    "HELO": b"HELO",
    "EHLO": b"EHLO two words",
    "MAIL": b"MAIL FROM:<a@>",
    "RCPT": b"RCPT TO:<>",
    "DATA": b"DATA now",
    "RSET": b"RSET now",
    "VRFY": b"VRFY",
    "STARTTLS": b"STARTTLS now",
    "AUTH": b"AUTH PLAIN !",
    "QUIT": b"QUIT now",
}
MESSAGES = {
    "good": (b"fine\r\n.\r\n", 250),
    "large": (b"x" * 101 + b"\r\n.\r\n", 552),
    "bare": (b"bad\nline\r\n.\r\n", 550),
}
# QUIT, and a message that closes the session, would make most sequences short.
verbs = st.sampled_from([verb for verb in COMMANDS if verb != "QUIT"]) | st.sampled_from(
    ["EHLO", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA", "QUIT"]
)
steps = st.tuples(
    verbs,
    st.sampled_from([True, True, True, False]),
    st.sampled_from([None, None, None, None, 450, 550]),
    st.sampled_from(["good", "good", "good", "large", "bare"]),
)


class Model:
    """A session as RFC 5321 tells it."""

    def __init__(self) -> None:
        self.greeted = False
        self.extended = False
        self.sender = False
        self.recipients = 0
        self.authenticated = False
        self.tls = False
        self.closed = False
        self.delivered = 0

    def step(self, verb: str, *, right: bool, verdict: int | None, message: str) -> list[int]:
        """The reply codes of a command."""
        if verb in ("NOOP", "HELP", "EXPN"):
            return [{"NOOP": 250, "HELP": 214, "EXPN": 502}[verb]]
        if verb in ("MAIL", "RCPT", "DATA", "STARTTLS", "AUTH") and not self.greeted:
            return [503]
        if verb == "MAIL" and self.sender:
            return [503]
        if verb in ("RCPT", "DATA") and not self.sender:
            return [503]
        if verb == "DATA" and not self.recipients:
            return [554]
        if verb in ("STARTTLS", "AUTH") and self.sender:
            return [503]
        if verb == "STARTTLS" and self.tls:
            return [503]
        if verb == "AUTH" and (not self.extended or self.authenticated):
            return [503]
        if not right:
            return [501]
        if verb == "DATA":
            return [354, self.end(verdict, message)]
        if verdict is not None and verb in ("HELO", "EHLO", "MAIL", "RCPT", "VRFY", "AUTH"):
            return [verdict]
        return [self.accepted(verb)]

    def accepted(self, verb: str) -> int:
        if verb in ("HELO", "EHLO"):
            self.greeted = True
            self.extended = verb == "EHLO"
        if verb in ("HELO", "EHLO", "RSET"):
            self.sender, self.recipients = False, 0
        if verb == "MAIL":
            self.sender = True
        if verb == "RCPT":
            self.recipients += 1
        if verb == "AUTH":
            self.authenticated = True
        if verb == "STARTTLS":
            self.tls = True
            self.greeted = self.extended = self.authenticated = False
        if verb == "QUIT":
            self.closed = True
        return {"VRFY": 252, "AUTH": 235, "STARTTLS": 220, "QUIT": 221}.get(verb, 250)

    def end(self, verdict: int | None, message: str) -> int:
        """The message is answered, and its transaction over."""
        self.sender, self.recipients = False, 0
        if message == "bare":
            self.closed = True
        if message != "good":
            return MESSAGES[message][1]
        if verdict is None:
            self.delivered += 1
        return verdict or 250


def codes(output: bytes) -> list[int]:
    """The codes of the replies, of a reply of several lines once."""
    return [int(code) for code in re.findall(rb"^(\d{3}) ", output, re.MULTILINE)]


@given(st.lists(steps, max_size=40))
@settings(deadline=None, max_examples=400)
def test_every_sequence_of_commands_is_answered_as_the_model_says(sequence):
    model = Model()
    verdicts = {"now": None}

    def decide(phase, _argument):
        code = verdicts["now"] if phase != "connect" else None
        return Reply(code, "No", enhanced=(code // 100, 0, 0)) if code is not None else None

    caller = Caller(
        Settings(
            hostname="mx.example.com",
            message_size=100,
            errors=1000,
            auth_failures=1000,
            starttls=True,
            auth=True,
            allow_insecure_auth=True,
        ),
        decide,
    )
    caller.connect()
    for verb, right, verdict, message in sequence:
        right = right or verb not in WRONG  # noqa: PLW2901
        expected = model.step(verb, right=right, verdict=verdict, message=message)
        verdicts["now"] = verdict
        output = caller.send((COMMANDS if right else WRONG)[verb] + b"\r\n")
        if codes(output) == [354]:
            output += caller.send(MESSAGES[message][0])
        assert codes(output) == expected
        has_enhanced = re.search(rb"^\d{3}[ -]\d\.\d+\.\d+ ", output) is not None
        if verb not in ("HELO", "EHLO", "STARTTLS") and expected != [354]:
            last = output.splitlines()[-1]
            assert (re.match(rb"\d{3} \d\.\d+\.\d+ ", last) is not None) == model.extended
        elif verb != "STARTTLS":
            assert not has_enhanced
        assert caller.core.closed == model.closed
        assert caller.core.in_transaction == (model.sender and not model.closed)
        assert len(caller.delivered) == model.delivered
        if model.closed:
            break
