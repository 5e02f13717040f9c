"""Credentials stay out of the dialogue in the log, in any spelling."""

from __future__ import annotations

from base64 import b64encode

import pytest

from preforkmx.protocol.commands import redact
from preforkmx.protocol.core import NEED_DATA, Core
from preforkmx.protocol.events import Credentials
from preforkmx.protocol.settings import Settings

SECRET = b64encode(b"\0alice\0wonderland")


def trace_of(*octets, allow=True):
    """What the core tells its trace."""
    lines = []
    settings = Settings(hostname="mx.example.com", auth=True, allow_insecure_auth=allow)
    core = Core(settings, trace=lambda side, octets: lines.append((side, octets)))
    core.greet()
    for piece in (b"EHLO client.example\r\n", *octets):
        core.receive_data(piece)
        while (event := core.next_event()) is not NEED_DATA:
            if isinstance(event, Credentials):
                assert "wonderland" not in repr(event)
            core.accept()
    return lines


@pytest.mark.parametrize(
    "line",
    [
        b"AUTH PLAIN " + SECRET,
        b"auth plain " + SECRET,
        b"AUTH\tPLAIN\t" + SECRET,
        b"\tAUTH PLAIN " + SECRET,
        b" \x0b\x0cAUTH PLAIN " + SECRET,
        b"AUTH" + SECRET,
        b"AUTH  PLAIN  " + SECRET,
        b"AUTH XOAUTH2 " + SECRET,
        b"\0AUTH PLAIN " + SECRET,
        b"AUT H " + SECRET,
        b"\xe2\x80\x8bAUTH PLAIN " + SECRET,
        SECRET,
    ],
)
@pytest.mark.parametrize("allow", [True, False])
def test_a_line_with_credentials_is_never_shown(line, allow):
    trace = trace_of(line + b"\r\n", allow=allow)
    assert [octets for _, octets in trace if SECRET in octets] == []
    # But that there was a line is.
    assert len([side for side, _ in trace if side == "C"]) == 2


def test_the_responses_of_an_exchange_are_never_shown():
    user, password = b64encode(b"alice"), b64encode(b"wonderland")
    trace = trace_of(b"AUTH LOGIN\r\n" + user + b"\r\n" + password + b"\r\n")
    assert [octets for side, octets in trace if side == "C"][2:] == [b"<credentials>"] * 2


def test_a_line_that_is_too_long_is_not_shown():
    trace = trace_of(SECRET * 200 + b"\r\n")
    assert ("C", b"<too long>") in trace
    assert not any(SECRET in octets for _, octets in trace)


def test_commands_and_replies_are_shown_as_they_are():
    assert trace_of(b"NOOP me\r\nVRFY b\r\n") == [
        ("S", b"220 mx.example.com ESMTP\r\n"),
        ("C", b"EHLO client.example"),
        (
            "S",
            b"".join(
                (
                    b"250-mx.example.com\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n",
                    (
                        b"250-8BITMIME\r\n250-AUTH PLAIN LOGIN\r\n250-ENHANCEDSTATUSCODES\r\n"
                        b"250-CHUNKING\r\n250-BINARYMIME\r\n250 LIMITS RCPTMAX=100\r\n"
                    ),
                )
            ),
        ),
        ("C", b"NOOP me"),
        ("S", b"250 2.0.0 Ok\r\n"),
        ("C", b"VRFY b"),
        ("S", b"250 2.0.0 Ok\r\n"),
    ]


def test_what_is_no_command_is_shown_by_its_length_alone():
    assert redact(b"BOGUS", known=False) == b"<5 octets, not a command>"
    assert redact(b"QUIT", known=True) == b"QUIT"
