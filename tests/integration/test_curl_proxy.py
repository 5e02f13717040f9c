"""curl sends mail behind a PROXY header of its own: version 1, before any TLS."""

from __future__ import annotations

import pytest

from tests.integration.mx import program, serving
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.programs import run
from tests.integration.peers.site import SITE, noted

pytestmark = pytest.mark.integration

LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["127.0.0.0/8"]
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
proxy_protocol = true
proxy_from = ["127.0.0.0/8"]
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["192.0.2.0/24"]
"""
SSL_CONNECT_ERROR = 35  # curl's
MESSAGE = b"Subject: from curl\r\n\r\n.dot\r\nhello\r\n"


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mx")
    notes = f'[[middleware]]\nuse = "{SITE}:notes"\npath = "{directory}/notes"\n'
    with serving(directory, LISTENERS + notes + tls_table(directory)) as mx:
        (directory / "message").write_bytes(MESSAGE)
        yield mx


def curl(mx, url, recipient, *arguments):
    return run(
        *(program("curl"), "--silent", "--show-error", "--max-time", 20),
        *("--interface", "127.0.0.5", "--cacert", mx.directory / "ca.pem"),
        *("--mail-from", "sender@example.org", "--mail-rcpt", f"{recipient}@example.com"),
        *("--upload-file", mx.directory / "message", *arguments, url),
    )


@pytest.mark.parametrize(
    ("number", "scheme", "options"),
    [(0, "smtp", []), (0, "smtp", ["--ssl-reqd"]), (1, "smtps", [])],
    ids=["plain", "STARTTLS", "implicit"],
)
def test_curl_delivers_behind_its_header(mx, number, scheme, options):
    """The header says what curl's own socket has; the message is whole."""
    recipient = f"{scheme}{len(options)}"
    url = f"{scheme}://127.0.0.1:{mx.ports[number]}"
    result = curl(mx, url, recipient, "--haproxy-protocol", *options)
    assert result.returncode == 0, result.stdout
    (path,) = (mx.mail / "example.com" / recipient / "new").iterdir()
    assert path.read_bytes().endswith(b"\r\n" + MESSAGE)
    last = noted(mx.directory / "notes", "mail")[-1]
    assert (last["host"], last["version"]) == ("127.0.0.5", 1)
    assert last["to"] == ["127.0.0.1", mx.ports[number]]


def test_without_the_header_the_connection_is_closed_without_a_word(mx):
    """A PROXY listener takes nobody who does not begin with one: a ClientHello is none."""
    result = curl(mx, f"smtps://127.0.0.1:{mx.ports[1]}", "headless")
    assert result.returncode == SSL_CONNECT_ERROR, result.stdout
    assert not (mx.mail / "example.com" / "headless").exists()


def test_a_header_from_a_stranger_is_not_believed(mx):
    """127.0.0.5 is not in proxy_from: closed, nothing is stored."""
    result = curl(mx, f"smtp://127.0.0.1:{mx.ports[2]}", "stranger", "--haproxy-protocol")
    assert result.returncode != 0
    assert not (mx.mail / "example.com" / "stranger").exists()
