"""HAProxy stands in front: who connects is known, and its health checks disturb nothing."""

from __future__ import annotations

import re
import smtplib
import ssl
from pathlib import Path

import pytest

from tests.integration.mx import serving
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.haproxy import Route, haproxy, is_valid
from tests.integration.peers.programs import until
from tests.integration.peers.site import SITE, noted

pytestmark = pytest.mark.integration

LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
"""
# Far fewer than the health checks that a test waits for.
LIMIT = 3
LIMITS = f"""
[[middleware]]
use = "rate_limit"
connections = "{LIMIT}/hour"
"""
CHECKS = 12
CHECK = "check check-send-proxy inter 100ms"
SMTP_CHECK = "    option smtpchk EHLO balancer.example"
PP2_TYPE_AUTHORITY, PP2_TYPE_CRC32C, PP2_TYPE_UNIQUE_ID, PP2_TYPE_SSL = 0x02, 0x03, 0x05, 0x20


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mx")
    notes = f'[[middleware]]\nuse = "{SITE}:notes"\npath = "{directory}/notes"\n'
    unix = f'[[listener]]\naddress = "unix:{directory}/smtp"\nproxy_protocol = true\n'
    with serving(directory, LISTENERS + unix + LIMITS + notes + tls_table(directory)) as mx:
        yield mx


@pytest.fixture(scope="module")
def proxy(mx):
    plain, implicit = (f"127.0.0.1:{port}" for port in mx.ports)
    crt = f"ssl crt {mx.directory}/both.pem"
    options = "proxy-v2-options ssl,unique-id,crc32c,authority"
    with haproxy(
        Route("v1", plain, "send-proxy"),
        Route("v2", plain, "send-proxy-v2"),
        Route("tlvs", plain, f"send-proxy-v2 {options}"),
        Route("ends-tls", plain, f"send-proxy-v2 {options}", bind=crt),
        Route("unix", f"unix@{mx.directory}/smtp", "send-proxy-v2"),
        Route("passes-tls-v1", implicit, "send-proxy"),
        Route("passes-tls-v2", implicit, "send-proxy-v2"),
        Route("checked", plain, f"send-proxy-v2 {CHECK}", backend=SMTP_CHECK),
        Route("checked-tcp", plain, f"send-proxy-v2 {CHECK}"),
        Route(
            "checked-tls",
            implicit,
            f"send-proxy-v2 {CHECK} check-ssl verify none",
            backend=SMTP_CHECK,
        ),
    ) as running:
        yield running


class Deliver:
    """Sends a message through a route, from an address of the client's own."""

    def __init__(self, mx, proxy):
        self._mx = mx
        self._proxy = proxy
        self._context = ssl.create_default_context(cafile=mx.directory / "ca.pem")

    def __call__(self, route, source, *, tls="off"):
        recipient = f"{route}-{tls}"
        options = {"source_address": (source, 0), "timeout": 20, "local_hostname": "client.example"}
        port = self._proxy.ports[route]
        if tls == "implicit":
            client = smtplib.SMTP_SSL("localhost", port, context=self._context, **options)
        else:
            client = smtplib.SMTP("127.0.0.1", port, **options)
        with client:
            ours = client.sock.getsockname()
            if tls == "starttls":
                client.starttls(context=self._context)
            client.sendmail("a@example.org", f"{recipient}@example.com", "Subject: x\n\nhello\n")
        (path,) = (self._mx.mail / "example.com" / recipient / "new").iterdir()
        assert f"[{source}]" in path.read_text()
        self._assert_logged(recipient, source, ours[1])
        (note,) = (
            note for note in noted(self._mx.directory / "notes", "mail") if note["host"] == source
        )
        assert note["port"] == ours[1]
        assert note["to"] == ["127.0.0.1", port]
        assert note["health_check"] is False
        return note, path.read_text()

    def _assert_logged(self, recipient, source, port):
        def lines():
            return [line for line in self._mx.log.splitlines() if f"{recipient}@" in line]

        until(lines, f"the log's line about {recipient}")
        assert f"peer={source} port={port} " in lines()[-1]


@pytest.fixture
def deliver(mx, proxy):
    return Deliver(mx, proxy)


@pytest.mark.parametrize(
    ("route", "source", "tls"),
    [
        ("v1", "127.0.0.11", "off"),
        ("v1", "127.0.0.12", "starttls"),
        ("v2", "127.0.0.13", "off"),
        ("v2", "127.0.0.14", "starttls"),
        ("unix", "127.0.0.17", "off"),
        ("passes-tls-v1", "127.0.0.15", "implicit"),
        ("passes-tls-v2", "127.0.0.16", "implicit"),
    ],
)
def test_the_client_is_who_connected_to_haproxy(deliver, route, source, tls):
    """Peer, log and Received have the client's address, on plain ports and before TLS."""
    note, text = deliver(route, source, tls=tls)
    assert note["version"] == (1 if "v1" in route else 2)
    assert ("with ESMTPS id" in text) is (tls != "off")


def test_the_documented_configuration_is_one_that_haproxy_takes(tmp_path):
    """docs/how-to/behind-haproxy.md shows it."""
    page = (Path(__file__).parents[2] / "docs/how-to/behind-haproxy.md").read_text()
    blocks = re.findall(r"^```haproxy\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        (tmp_path / "haproxy.cfg").write_text(block)
        valid, said = is_valid(tmp_path / "haproxy.cfg")
        assert valid, said


def test_the_tlvs_of_version_2_stand_on_the_peer(deliver):
    """unique-id is its value; crc32c was checked; no TLS between client and proxy."""
    note, _text = deliver("tlvs", "127.0.0.21")
    assert note["unique_id"] == f"127.0.0.21:{note['port']}"
    assert {PP2_TYPE_CRC32C, PP2_TYPE_UNIQUE_ID} <= set(note["tlvs"])
    assert note["client_ssl"] is False


def test_tls_that_haproxy_ended_stands_on_the_peer(deliver):
    """PP2_TYPE_SSL says which version, PP2_TYPE_AUTHORITY which name was asked for (SNI)."""
    note, text = deliver("ends-tls", "127.0.0.22", tls="implicit")
    assert (note["client_ssl"], note["tls"]) == (True, "TLSv1.3")
    assert note["authority"] == "localhost"
    assert {PP2_TYPE_AUTHORITY, PP2_TYPE_CRC32C, PP2_TYPE_SSL} <= set(note["tlvs"])
    # It is the proxy's word, and this server's own connection had none.
    assert "with ESMTP id" in text


@pytest.mark.parametrize(
    ("route", "status"), [("checked", "L7OK"), ("checked-tcp", "L4OK"), ("checked-tls", "L7OK")]
)
def test_health_checks_keep_the_server_up_whatever_the_limits_are(mx, proxy, route, status):
    """LOCAL: the checks are exempt from rate_limit, or one of the first would be refused."""

    def checks():
        return [
            note for note in noted(mx.directory / "notes", "connection") if note["health_check"]
        ]

    already = len(checks())
    until(lambda: len(checks()) >= already + CHECKS, "health checks", seconds=20)
    row = proxy.server(route)
    assert row["status"] == "UP", (row, proxy.log)
    assert row["check_status"] == status
    assert row["chkdown"] == "0"
    assert {note["host"] for note in checks()} == {"127.0.0.1"}


def test_clients_behind_the_proxy_have_limits_of_their_own(proxy):
    """The limit counts the client's address: one is refused, and its neighbour is not."""

    def greeting(source):
        address = ("127.0.0.1", proxy.ports["v2"])
        try:
            with smtplib.SMTP(*address, timeout=20, source_address=(source, 0)):
                return 220
        except smtplib.SMTPConnectError as error:
            return error.smtp_code

    assert [greeting("127.0.0.31") for _ in range(LIMIT + 1)] == [220] * LIMIT + [421]
    assert greeting("127.0.0.32") == 220


def test_a_full_server_stays_up_and_its_clients_are_told_421(tmp_path):
    """Its checks are answered: the server's other workers may have room for clients."""
    notes = f'[[middleware]]\nuse = "{SITE}:notes"\npath = "{tmp_path}/notes"\n'
    toml = f"[workers]\ncount = 1\nmax_sessions = 1\n{LISTENERS}{notes}{tls_table(tmp_path)}"

    def checks():
        return sum(note["health_check"] for note in noted(tmp_path / "notes", "connection"))

    with serving(tmp_path, toml) as mx, smtplib.SMTP(timeout=20) as inside:
        plain, implicit = (f"127.0.0.1:{port}" for port in mx.ports)
        # The interval is a check's time-out too: on a busy machine 100 ms are none of the server's.
        check = CHECK.replace("100ms", "1s") + " fastinter 100ms"
        tls = f"send-proxy-v2 {check} check-ssl verify none"
        with haproxy(
            Route("plain", plain, f"send-proxy-v2 {check}", backend=SMTP_CHECK),
            Route("implicit", implicit, tls, backend=SMTP_CHECK),
        ) as proxy:
            address = ("127.0.0.1", proxy.ports["plain"])

            def greeted():
                inside.close()
                return inside.connect(*address)[0] == 220

            # A check may have the only place for a moment.
            until(greeted, "a session")
            already = checks()
            until(lambda: checks() >= already + CHECKS, "health checks", seconds=20)
            with smtplib.SMTP(timeout=20) as outside:
                assert outside.connect(*address)[0] == 421
            for route in proxy.ports:
                row = proxy.server(route)
                last = row["check_status"].removeprefix("* ")  # one is under way
                assert (row["status"], last) == ("UP", "L7OK"), (row, proxy.log)
                assert (row["chkfail"], row["chkdown"]) == ("0", "0"), row
            assert inside.noop()[0] == 250
