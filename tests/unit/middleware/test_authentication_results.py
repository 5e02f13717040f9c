"""Authentication-Results: the field that is written, and what is taken out of the message."""

from __future__ import annotations

import asyncio
from email.parser import BytesParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx import Middleware, Server
from preforkmx.context import Context
from preforkmx.middleware import authenticator
from preforkmx.middleware.authentication_results import (
    LONGEST_VALUE,
    Result,
    authentication_results,
    header_field,
    results_of,
    with_result,
    without_results,
)
from preforkmx.testing import Client, Recorder, running

SPF = Result("spf", "pass", (("smtp.mailfrom", "example.org"),))
FORGED = b"Authentication-Results: mx.example.com; spf=pass smtp.mailfrom=bank.example\r\n"
OTHERS = b"Authentication-Results: mx.example.net; dkim=fail\r\n"


def field(*results, name="mx.example.com", **options):
    return header_field(name, results, **options).decode()


def test_each_result_stands_on_its_line():
    auth = Result("auth", "pass", (("smtp.auth", "joe"),))
    assert field(auth, SPF) == (
        "Authentication-Results: mx.example.com;\r\n"
        "\tauth=pass smtp.auth=joe;\r\n"
        "\tspf=pass smtp.mailfrom=example.org\r\n"
    )


def test_without_a_result_it_says_none():
    # RFC 8601 section 2.2: no-result.
    assert field() == "Authentication-Results: mx.example.com; none\r\n"


def test_a_long_result_is_folded_between_its_words():
    result = Result(
        "spf",
        "softfail",
        (("smtp.mailfrom", "a" * 40 + "@example.org"), ("smtp.helo", "h" * 30 + ".example.org")),
        reason="not one of its hosts",
    )
    assert field(result) == (
        "Authentication-Results: mx.example.com;\r\n"
        '\tspf=softfail reason="not one of its hosts"\r\n'
        f"\t\tsmtp.mailfrom={'a' * 40}@example.org\r\n"
        f"\t\tsmtp.helo={'h' * 30}.example.org\r\n"
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("example.org", "example.org"),
        ("joe@example.org", "joe@example.org"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("a;b=c (d)", '"a;b=c (d)"'),
        ("a\r\nX-Evil: yes", '"a??X-Evil: yes"'),
        ("a\u2028b\u202ec", '"a?b?c"'),
        ("grå", '"gr?"'),
    ],
)
def test_a_value_is_quoted_where_it_must_be_and_ends_no_line(value, written):
    assert field(Result("x", "pass", (("smtp.auth", value),))).endswith(f"smtp.auth={written}\r\n")


def test_in_a_message_with_utf8_values_stand_as_they_are():
    result = Result("x", "pass", (("smtp.auth", "grå"),))
    assert field(result, utf8=True).endswith('smtp.auth="grå"\r\n')


@given(st.text(), st.booleans())
def test_no_value_breaks_the_field(value, utf8):
    octets = header_field("a.example", [Result("x", "pass", (("p.q", value),), value)], utf8=utf8)
    lines = octets.split(b"\r\n")
    assert lines.pop() == b""
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert all(b"\r" not in line and b"\n" not in line for line in lines)
    assert all(len(line) <= 2 * LONGEST_VALUE + 100 for line in lines)
    assert octets.isascii() or utf8
    octets.decode()


@pytest.mark.parametrize(
    ("method", "result", "name"),
    [
        ("s p f", "pass", "smtp.mailfrom"),
        ("spf", "pass;", "smtp.mailfrom"),
        ("", "pass", "smtp.mailfrom"),
        ("spf", "", "smtp.mailfrom"),
        ("spf", "pass", "mailfrom"),
        ("spf", "pass", "smtp.mail from"),
    ],
)
def test_what_is_no_result_is_refused_where_it_is_made(method, result, name):
    with pytest.raises(ValueError, match="is no"):
        Result(method, result, ((name, "x"),))


@pytest.mark.parametrize("name", ["", "a b", "a;b", "joe@example.com", 'a"'])
def test_what_is_no_authserv_id_is_refused(name):
    with pytest.raises(ValueError, match="authserv-id"):
        authentication_results(name)


def test_of_two_results_about_the_same_the_later_one_counts():
    helo = Result("spf", "none", (("smtp.helo", "client.example"),))
    ctx = with_result(with_result(Context(), helo), SPF)
    fail = Result("spf", "fail", (("smtp.mailfrom", "example.net"),))
    assert results_of(with_result(ctx, fail)) == (helo, fail)
    assert results_of(ctx) == (helo, SPF)
    assert results_of(without_results(ctx, "spf")) == ()
    assert without_results(ctx, "dkim") is ctx


# --- over the wire ------------------------------------------------------------------------------


def received(*messages, middleware=(), send=None, **options):
    """Send messages; return them as the delivery has them."""
    recorder = Recorder()
    server = Server(hostname="mx.example.com", handler=recorder, **options)
    server.use(*middleware, authentication_results("mx.example.com", remove=["example.com"]))

    async def scenario():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            if send is not None:
                await send(client)
            for message in messages:
                assert (await client.deliver(message, sender="joe@example.org")).code == 250

    asyncio.run(scenario())
    return [message.octets for message in recorder.messages]


NONE = b"Authentication-Results: mx.example.com; none\r\n"


def test_forged_fields_are_taken_out_and_others_stay():
    message = (
        b"From: joe@example.org\r\n"
        + FORGED
        + OTHERS
        + b"authentication-results:\r\n (a comment)\r\n\tEXAMPLE.com;\r\n\tspf=pass\r\n"
        + b"Subject: hello\r\n\r\n"
        + FORGED
    )
    left = b"From: joe@example.org\r\n" + OTHERS + b"Subject: hello\r\n\r\n" + FORGED
    assert received(message) == [NONE + left]


def test_results_of_each_transaction_are_its_own():
    async def check_sender(ctx, _peer, address):
        return with_result(ctx, Result("spf", "pass", (("smtp.mailfrom", address),)))

    async def send(client):
        for sender in ("a@example.org", "b@example.org"):
            assert (await client.deliver(b"x\r\n", sender=sender)).code == 250

    messages = received(middleware=[Middleware(check_sender=check_sender)], send=send)
    for message, sender in zip(messages, ("a@example.org", "b@example.org"), strict=True):
        parsed = BytesParser().parsebytes(message)
        assert parsed.get_all("Authentication-Results") == [
            f"mx.example.com;\r\n\tspf=pass smtp.mailfrom={sender}"
        ]


def test_who_authenticated_is_named():
    async def anybody(_ctx, _peer, _user, _password):
        pass

    async def send(client):
        # joe, secret
        assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235

    (message,) = received(
        b"Subject: x\r\n\r\n",
        middleware=[authenticator(anybody)],
        send=send,
        allow_insecure_auth=True,
    )
    assert message.startswith(
        b"Authentication-Results: mx.example.com;\r\n\tauth=pass smtp.auth=joe\r\n"
    )


@pytest.mark.parametrize("cut", [0, 1, 30, len(FORGED), len(FORGED) + 1, len(FORGED) + 2])
def test_bdat_of_binary_octets_passes_but_for_the_forged_field(cut):
    body = bytes(range(256)) + b"\r\n.\r\n" + FORGED + b"\0\n\r"
    message = FORGED + b"\r\n" + body

    async def send(client):
        await client.command("MAIL FROM:<> BODY=BINARYMIME")
        await client.command("RCPT TO:<postmaster>")
        first, last = message[:cut], message[cut:]
        await client.send(b"BDAT %d\r\n%b" % (len(first), first))
        assert (await client.reply()).code == 250
        await client.send(b"BDAT %d LAST\r\n%b" % (len(last), last))
        assert (await client.reply()).code == 250

    assert received(send=send) == [NONE + b"\r\n" + body]


def test_a_message_without_a_header_or_without_an_end_of_it():
    assert received(b"", b"\r\nbody\r\n", FORGED, b"From: x\r\n" + FORGED) == [
        NONE,
        NONE + b"\r\nbody\r\n",
        NONE,
        NONE + b"From: x\r\n",
    ]
