"""Exim sends with BDAT (RFC 3030): what it sent is in the Maildir, octet for octet."""

from __future__ import annotations

import re

import pytest

from tests.integration.mx import serving
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.exim import exim
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

HEADERS = b"""From: sender@example.org
To: box@example.com
Date: Tue, 14 Nov 2023 22:13:20 +0000
Message-ID: <exim-bdat@example.org>
Subject: chunks

"""

MEGABYTE = HEADERS + b"".join(b"%07d " % number + b"x" * 63 + b"\n" for number in range(14_563))
DOTS = HEADERS + b".\n..\n...\n.leading\n\n.\n\n" + b".\n" * 5_000 + b"QUIT\n.\nMAIL FROM:<>\n.\n"


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mx")
    with serving(directory, tls_table(directory) + '[log]\nlevel = "debug"\n') as mx:
        yield mx


def delivery_line(log):
    """Return the line of Exim's log about the delivery: ``=>`` and no ``**`` or ``==``."""
    lines = [line for line in log.splitlines() if " => " in line]
    assert len(lines) == 1, log
    return lines[0]


def stored(mx, recipient):
    (path,) = (mx.mail / "example.com" / recipient / "new").iterdir()
    return path.read_bytes()


def assert_whole(octets, message):
    """Before what was sent stand headers of the trace, and nothing else."""
    sent = message.replace(b"\n", b"\r\n")
    assert octets.endswith(sent), f"{len(octets)} octets are stored, {len(sent)} were sent"
    trace = octets.removesuffix(sent)
    names = [line.partition(b":")[0] for line in trace.splitlines() if line[:1] not in b" \t"]
    assert names == [b"Return-Path", b"Delivered-To", b"Received", b"Received"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "STARTTLS"])
@pytest.mark.parametrize("message", [MEGABYTE, DOTS], ids=["a megabyte", "dots"])
def test_what_exim_sends_in_chunks_is_stored_octet_for_octet(mx, message, tls):
    """Exim says that it used CHUNKING (``K``); dots are content, and no commands."""
    recipient = f"{len(message)}-{'tls' if tls else 'plain'}"
    with exim(mx.ports[0], tls=tls) as client:
        line = delivery_line(client.send(message, f"{recipient}@example.com"))
    assert " K " in line
    assert (" X=TLS1" in line) is tls
    assert_whole(stored(mx, recipient), message)


def test_the_dialogue_has_bdat_and_no_data(mx):
    """The server's own log shows what Exim said."""
    with exim(mx.ports[0]) as client:
        client.send(DOTS, "dialogue@example.com")

    def session():
        return re.search(r" session=(\S+) .*recipients=dialogue@example\.com ", mx.log)

    until(session, "the transaction's line in the log")
    said = re.findall(rf'message="C: (\w+)[^"]*".* session={session()[1]} ', mx.log)
    assert "BDAT" in said
    assert "DATA" not in said


def test_without_the_extension_exim_sends_with_data(tmp_path):
    """``chunking = false`` is not offered, and Exim stuffs the dots."""
    with (
        serving(tmp_path, "[extensions]\nchunking = false\n", workers=1) as mx,
        exim(mx.ports[0]) as client,
    ):
        line = delivery_line(client.send(DOTS, "data@example.com"))
        assert " K " not in line
        assert_whole(stored(mx, "data"), DOTS)
