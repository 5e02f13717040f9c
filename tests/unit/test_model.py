"""Peer and Envelope, Middleware's own checks, and the errors that hooks raise."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx import Envelope, Peer, SMTPError, TLSInfo, whole


def peer(**fields):
    return Peer(ip_address("192.0.2.1"), 1025, "mx.example.com", "0.0.0.0:25", **fields)


def test_a_peer_knows_nothing_but_its_address_at_first():
    at_first = peer()
    assert (at_first.helo_name, at_first.protocol) == ("", "")
    assert (at_first.tls, at_first.username) == (None, None)


def test_a_peer_is_replaced_and_never_changed():
    before = peer()
    after = before._replace(helo_name="client.example")
    assert before.helo_name == ""
    assert after.helo_name == "client.example"
    with pytest.raises(AttributeError):
        before.helo_name = "other.example"


def test_a_peer_s_host_is_its_address_as_text():
    assert peer().host == "192.0.2.1"
    assert Peer(ip_address("2001:db8::1"), 1, "mx", "[::]:25").host == "2001:db8::1"
    assert Peer(None, 0, "mx", "unix").host == "unix"


def test_tls_info_names_what_both_sides_agreed_on():
    tls = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
    assert (tls.version, tls.cipher, tls.bits) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)


def test_envelopes_do_not_share_their_recipients():
    first, second = Envelope("", whole(b"")), Envelope("", whole(b""))
    first.recipients.append("a@example.com")
    assert second.recipients == []


def test_an_envelope_takes_no_attribute_of_anybody_s():
    with pytest.raises(AttributeError):
        Envelope("", whole(b"")).recipient = "a typo"


# --- SMTPError ------------------------------------------------------------------------------------


def test_an_error_without_an_enhanced_code_has_that_of_its_class():
    assert SMTPError(550, "No").enhanced == (5, 0, 0)
    assert SMTPError(451, "Later").enhanced == (4, 0, 0)
    assert str(SMTPError(550, "No", enhanced=(5, 7, 1))) == "550 5.7.1 No"


def test_421_always_closes_and_others_when_told_to():
    assert SMTPError(421, "Bye").close
    assert not SMTPError(550, "No").close
    assert SMTPError(550, "No", close=True).close


@pytest.mark.parametrize("code", [0, 250, 354, 399, 600])
def test_an_error_has_the_code_of_an_error(code):
    with pytest.raises(ValueError, match="400 to 599"):
        SMTPError(code, "Fine")


def test_an_enhanced_code_belongs_to_its_reply_code():
    with pytest.raises(ValueError, match="does not belong"):
        SMTPError(550, "No", enhanced=(4, 7, 1))
