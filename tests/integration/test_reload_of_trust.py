"""A reload brings new lists of trusted networks to the sockets that there are."""

from __future__ import annotations

import smtplib
import time

import pytest

from tests.integration.mx import serving

pytestmark = pytest.mark.integration


def offers_xclient(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        return client.has_extn("xclient")


def test_whom_to_believe_is_reloaded(tmp_path):
    with serving(tmp_path, '[[listener]]\naddress = "127.0.0.1:0"\n') as mx:
        [port] = mx.ports
        assert not offers_xclient(port)
        first = mx.config.read_text()
        address = 'address = "127.0.0.1:0"\n'
        mx.config.write_text(first.replace(address, f'{address}xclient_from = ["127.0.0.1"]\n'))
        answer = mx.run("reload")
        assert answer.returncode == 0, answer.stderr
        assert mx.status()["listeners"][0]["address"] == f"127.0.0.1:{port}"
        # The workers of before have no session, so they are gone soon.
        deadline = time.monotonic() + 30
        while any(worker["generation"] == 1 for worker in mx.status()["workers"]):
            assert time.monotonic() < deadline, mx.log
        assert offers_xclient(port)
