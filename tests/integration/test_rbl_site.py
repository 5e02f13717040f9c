"""A site that asks lists, from its file to its log; rbldnsd has the lists."""

from __future__ import annotations

import smtplib
import socket

import pytest

from tests.integration.mx import serving
from tests.integration.peers.rbldnsd import rbldnsd
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

SOA = "$SOA 300 ns.example.org hostmaster.example.org 1 3600 600 86400 60\n"
LISTS = {
    "s3cret.bl.example.org": ("ip4set", SOA + ":127.0.0.4:Open proxy $\n192.0.2.0/24\n"),
    "dbl.example.org": ("dnset", SOA + ":127.0.1.2:$ is bad\n.bad.example.net\n"),
    "wl.example.org": ("ip4set", SOA + ":127.0.5.1:Known\n192.0.2.77\n"),
    "error.example.org": ("ip4trie", SOA + ":127.255.255.254:Not you\n0.0.0.0/0\n"),
}
SITE = """
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
[dns]
servers = ["{address}"]
[[middleware]]
use = "rbl"
threshold = 2
[[middleware.list]]
zone = "s3cret.bl.example.org"
codes = ["127.0.0.4-127.0.0.7"]
name = "bl"
weight = 2
[[middleware.list]]
zone = "wl.example.org"
weight = -2
[[middleware.list]]
zone = "error.example.org"
weight = 2
[[middleware]]
use = "rbl"
on_fail = "mark"
[[middleware.list]]
zone = "dbl.example.org"
kind = "domain"
"""


class Behind(smtplib.SMTP):
    """A client as a proxy in front names it."""

    def __init__(self, port, address):
        self._address = address
        super().__init__("127.0.0.1", port, local_hostname="client.example.net", timeout=20)

    def _get_socket(self, host, port, timeout):
        sock = socket.create_connection((host, port), timeout)
        sock.sendall(f"PROXY TCP4 {self._address} 127.0.0.1 40000 25\r\n".encode())
        return sock


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    with rbldnsd(LISTS) as lists, serving(directory, SITE.format(address=lists.address)) as mx:
        yield mx


def test_a_listed_client_is_refused_and_the_log_says_by_which_list(site):
    with pytest.raises(smtplib.SMTPConnectError) as caught:
        Behind(site.ports[0], "192.0.2.1")
    assert caught.value.args == (554, b"192.0.2.1 is listed by bl: Open proxy 192.0.2.1")
    until(lambda: "event=refused" in site.log, "the refusal is in the log")
    assert "rbl refused: score 2 of 2: bl (127.0.0.4) 192.0.2.1 +2" in site.log
    [line] = [line for line in site.log.splitlines() if "event=refused" in line]
    assert "by=rbl " in line
    assert "peer=192.0.2.1" in line
    # A zone may hold a key.
    assert "s3cret" not in site.log


def test_a_client_that_is_vouched_for_is_let_in_though_it_is_listed(site):
    with Behind(site.ports[0], "192.0.2.77") as client:
        assert client.noop()[0] == 250


def test_a_bad_sender_is_marked_in_the_message(site):
    with Behind(site.ports[0], "203.0.113.1") as client:
        client.sendmail("joe@bad.example.net", ["ann@example.com"], "Subject: x\r\n\r\nx\r\n")
    [message] = site.delivered()
    text = message.read_text()
    assert "X-RBL: score=1 by mx.example.com;\n\tdbl.example.org (127.0.1.2) bad.exam" in text


def test_the_error_of_a_list_is_one_warning_of_each_worker(site):
    for _ in range(4):
        with Behind(site.ports[0], "203.0.113.2") as client:
            assert client.noop()[0] == 250
    warnings = [line for line in site.log.splitlines() if "127.255.255.254" in line]
    assert 1 <= len(warnings) <= 2
    assert all("level=warning" in line for line in warnings)
