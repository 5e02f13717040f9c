"""Real clients deliver: what they were told was taken is in the Maildirs, all of it."""

from __future__ import annotations

import os
import smtplib
import ssl
import subprocess

import pytest
import trustme

from tests.integration.mx import program, serving

pytestmark = pytest.mark.integration

LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
"""

# A whole run has 5000 messages; CI's is shorter. TEST_MESSAGES=5000 is the whole.
MESSAGES = int(os.environ.get("TEST_MESSAGES", "1500"))


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mx")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(directory / "chain.pem", append=True)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    tls = f'[tls]\ncertificate = "{directory}/chain.pem"\nkey = "{directory}/key.pem"\n'
    with serving(directory, LISTENERS + tls) as mx:
        yield mx


def new_messages(mx, recipient):
    return list((mx.mail / "example.com" / recipient / "new").glob("*"))


def swaks(port, *arguments):
    return subprocess.run(
        [
            program("swaks"),
            *("--server", "127.0.0.1", "--port", str(port), "--helo", "client.example"),
            *("--from", "sender@example.org", "--body", "hello"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_swaks_delivers_in_plain_text(mx):
    """swaks' default dialogue is accepted, and the file has what it sent."""
    result = swaks(mx.ports[0], "--to", "plain@example.com", "--header", "Subject: from swaks")
    assert result.returncode == 0, result.stdout
    (message,) = new_messages(mx, "plain")
    text = message.read_text()
    assert "Subject: from swaks" in text
    assert "Return-Path: <sender@example.org>" in text
    assert "with ESMTP id" in text


def test_swaks_delivers_over_starttls(mx):
    """STARTTLS works with OpenSSL on the other side, and Received says so."""
    result = swaks(mx.ports[0], "--to", "starttls@example.com", "--tls")
    assert result.returncode == 0, result.stdout
    (message,) = new_messages(mx, "starttls")
    assert "with ESMTPS" in message.read_text()


def test_swaks_delivers_over_implicit_tls(mx):
    """The second listener begins with TLS."""
    result = swaks(mx.ports[1], "--to", "implicit@example.com", "--tls-on-connect")
    assert result.returncode == 0, result.stdout
    (message,) = new_messages(mx, "implicit")
    assert "with ESMTPS" in message.read_text()


def test_swaks_is_refused_for_another_domain(mx):
    """No open relay: 550 at RCPT, nothing is stored."""
    result = swaks(mx.ports[0], "--to", "someone@elsewhere.example")
    assert "550 5.7.1" in result.stdout
    assert not (mx.mail / "elsewhere.example").exists()


def test_smtplib_delivers_to_several_recipients(mx):
    """Each recipient has the message once; none of the files names the others."""
    names = [f"several-{number}" for number in range(5)]
    context = ssl.create_default_context(cafile=mx.directory / "ca.pem")
    with smtplib.SMTP("127.0.0.1", mx.ports[0]) as client:
        client.starttls(context=context)
        refused = client.sendmail(
            "sender@example.org",
            [f"{name}@example.com" for name in names],
            "Subject: x\r\n\r\n.dot\r\n..dots\r\n",
        )
    assert refused == {}
    for name in names:
        (message,) = new_messages(mx, name)
        assert message.read_bytes().endswith(b"\r\n\r\n.dot\r\n..dots\r\n")
        assert b"several-" not in message.read_bytes()


@pytest.mark.parametrize("kept", [True, False], ids=["kept connections", "one connection each"])
def test_smtp_source_loses_and_doubles_nothing(mx, kept):
    """`smtp-source -s 50`: as many files as messages were acknowledged (it stops at an error)."""
    recipient = "kept" if kept else "each"
    result = subprocess.run(
        [
            program("smtp-source"),
            *("-s", "50", "-m", str(MESSAGES), "-l", "1000", *(["-d"] if kept else [])),
            *("-f", "sender@example.org", "-t", f"{recipient}@example.com"),
            f"127.0.0.1:{mx.ports[0]}",
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(new_messages(mx, recipient)) == MESSAGES
    assert list((mx.mail / "example.com" / recipient / "tmp").iterdir()) == []
