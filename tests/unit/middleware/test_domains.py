from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from preforkmx.context import Context
from preforkmx.errors import SMTPError
from preforkmx.middleware.domains import accept_domains
from preforkmx.model import Peer

PEER = Peer(ip_address("192.0.2.1"), 4000, "mx.example.com", "0.0.0.0:25")


def check(domains, address, peer=PEER):
    hook = accept_domains(domains, "mx.example.com").check_recipient
    return asyncio.run(hook(Context(), peer, address))


def refused(domains, address, peer=PEER):
    """Say whether the recipient is refused, and with the right reply."""
    try:
        check(domains, address, peer)
    except SMTPError as error:
        return (error.code, error.enhanced, error.close) == (550, (5, 7, 1), False)
    return False


@pytest.mark.parametrize(
    "address",
    [
        "joe@example.com",
        "JOE@EXAMPLE.COM",
        "@example.org@example.com",
        '"a@b"@example.com',
        "joe@[192.0.2.9]",
        "joe@[IPv6:2001:DB8:0::1]",
    ],
)
def test_a_recipient_of_a_listed_domain_is_accepted(address):
    assert check(["Example.com", "[192.0.2.9]", "[ipv6:2001:db8::1]"], address) is None


@pytest.mark.parametrize(
    "address",
    [
        "joe@example.org",
        "joe@sub.example.com",
        "joe@example.com.",
        "joe@xexample.com",
        "joe@example.co",
        "joe%example.com@example.org",
        '"joe@example.com"@example.org',
        "joe@[192.0.2.9]",
        "joe@mx.example.com",
        "postmaster2@mx.example.com",
        "postmaster@example.org",
        "postmaster@",
        "joe@*",
        "joe@[",
    ],
)
def test_a_recipient_of_another_domain_is_refused(address):
    assert refused(["example.com"], address)


@pytest.mark.parametrize(
    "address",
    [
        "postmaster",
        "Postmaster",
        "postmaster@mx.example.com",
        "PostMaster@MX.example.com",
        '"postmaster"@mx.example.com',
    ],
)
def test_the_postmaster_of_the_host_is_always_accepted(address):
    assert check(["example.com"], address) is None


def test_an_authenticated_client_is_bound_too():
    assert refused(["example.com"], "joe@example.org", PEER._replace(username="joe"))


def test_the_star_takes_any_domain_and_costs_no_hook():
    assert accept_domains(["*"], "mx.example.com").check_recipient is None
