"""Clients that speak SMTPUTF8 (RFC 6531): aiosmtplib and Python's own smtplib."""

from __future__ import annotations

import asyncio
import smtplib
from email.message import EmailMessage
from email.policy import SMTPUTF8

import aiosmtplib
import pytest

from tests.integration.mx import serving

pytestmark = pytest.mark.integration

TOP = """
hostname = "mx.example.com"
domains = ["example.com", "xn--bcher-kva.example"]
"""


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("mx"), TOP) as mx:
        yield mx


@pytest.fixture(scope="module")
def ascii_mx(tmp_path_factory):
    toml = "[extensions]\nsmtputf8 = false\n"
    with serving(tmp_path_factory.mktemp("ascii"), toml, workers=1) as mx:
        yield mx


def letter(sender, recipient):
    message = EmailMessage()
    message["From"] = f"Jürgen <{sender}>"
    message["To"] = recipient
    message["Subject"] = "Grüße — приве́т — 你好"
    message.set_content("Straße\n", cte="8bit")
    return message


def with_aiosmtplib(port, sender, recipient):
    async def send():
        async with aiosmtplib.SMTP(
            hostname="127.0.0.1", port=port, start_tls=False, timeout=20
        ) as client:
            await client.sendmail(
                sender,
                [recipient],
                letter(sender, recipient).as_bytes(policy=SMTPUTF8),
                mail_options=["SMTPUTF8", "BODY=8BITMIME"],
            )

    asyncio.run(send())


def with_smtplib(port, sender, recipient):
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.send_message(letter(sender, recipient), sender, [recipient])


CLIENTS = pytest.mark.parametrize("send", [with_aiosmtplib, with_smtplib])


def delivered(mx, domain, name):
    """Return the messages of a mailbox, emptying it."""
    texts = []
    for path in (mx.mail / domain / name / "new").iterdir():
        texts.append(path.read_bytes().decode())
        path.unlink()
    return texts


@CLIENTS
@pytest.mark.parametrize(
    ("recipient", "name"),
    [("jörg@example.com", "j%C3%B6rg"), ("почта@example.com", "%D0%BF%D0%BE%D1%87%D1%82%D0%B0")],
)
def test_a_local_part_in_utf8_has_its_mailbox(mx, send, recipient, name):
    """Its octets name the folder; headers and trace hold UTF-8 as it came."""
    send(mx.ports[0], "jürgen@example.org", recipient)
    (text,) = delivered(mx, "example.com", name)
    assert "Return-Path: <jürgen@example.org>" in text
    assert f"Delivered-To: {recipient}" in text
    assert "Subject: Grüße — приве́т — 你好\r\n" in text
    assert text.endswith("\r\n\r\nStraße\r\n")
    # RFC 6531 section 4.3.
    assert "with UTF8SMTP id" in text


@CLIENTS
def test_both_spellings_of_an_international_domain_lead_to_one_folder(mx, send):
    """IDNA: the A-label and the U-label are one domain."""
    send(mx.ports[0], "a@example.org", "jörg@bücher.example")
    with smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=20) as client:
        client.ehlo("client.example")
        client.sendmail("a@example.org", ["joe@xn--bcher-kva.example"], "Subject: x\n\n")
    assert len(delivered(mx, "xn--bcher-kva.example", "j%C3%B6rg")) == 1
    assert len(delivered(mx, "xn--bcher-kva.example", "joe")) == 1


@CLIENTS
def test_a_domain_in_utf8_that_is_not_ours_is_no_way_to_relay(mx, send):
    with pytest.raises(
        (aiosmtplib.SMTPRecipientsRefused, smtplib.SMTPRecipientsRefused)
    ) as refused:
        send(mx.ports[0], "a@example.org", "jörg@müller.example")
    assert "5.7.1" in str(refused.value)


def test_without_the_parameter_utf8_is_refused(mx):
    """RFC 6531 section 3.5: 550 or 553 with 5.6.7, at MAIL and at RCPT."""
    with smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=20) as client:
        client.ehlo("client.example")
        client.command_encoding = "utf-8"
        assert_no_utf8(client.docmd("MAIL FROM:<jürgen@example.org>"))
        assert client.docmd("MAIL FROM:<a@example.org>")[0] == 250
        assert_no_utf8(client.docmd("RCPT TO:<jörg@example.com>"))


def assert_no_utf8(reply):
    code, text = reply
    assert code in {550, 553}
    assert text.startswith(b"5.6.7 ")


def test_where_it_is_not_offered_clients_keep_the_message(ascii_mx):
    """``smtputf8 = false``: both clients find no SMTPUTF8, and know that they may not send."""
    with pytest.raises(aiosmtplib.SMTPException):
        with_aiosmtplib(ascii_mx.ports[0], "jürgen@example.org", "jörg@example.com")
    with pytest.raises(smtplib.SMTPException):
        with_smtplib(ascii_mx.ports[0], "jürgen@example.org", "jörg@example.com")
    assert ascii_mx.delivered() == []
