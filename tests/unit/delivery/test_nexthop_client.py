"""The client's side of the protocol by dialogues: what it says, and what it takes for an answer."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from maildirs import PEER

from preforkmx.body import whole
from preforkmx.delivery.nexthop import commands
from preforkmx.delivery.nexthop.client import MAX_UNREAD, Client
from preforkmx.delivery.nexthop.errors import LinkLost, Nonsense
from preforkmx.delivery.nexthop.offers import Offers
from preforkmx.delivery.nexthop.proxy import proxy_header, xclient
from preforkmx.delivery.nexthop.servers import split
from preforkmx.errors import LocalProtocolError
from preforkmx.model import DSN, Envelope, RecipientDSN
from preforkmx.protocol.proxy import HeaderReader

EHLO = b"250-hop\r\n250-PIPELINING\r\n250-AUTH=LOGIN\r\n250-size 100\r\n250 CHUNKING\r\n"


def converse(client: Client, dialogue: str) -> None:
    """Play a dialogue: ``C:`` is what the client says, ``S:`` what it hears and takes."""
    said = b""
    for line in dialogue.strip().splitlines():
        side, _, text = line.strip().partition(": ")
        if side == "C":
            said += client.take_output()
            expected = text.encode() + b"\r\n"
            assert said.startswith(expected), said
            said = said[len(expected) :]
        else:
            assert not said
            client.receive_data(text.encode() + b"\r\n")
            if text[3:4] == " ":
                assert client.next_reply().code == int(text[:3])
    assert not said + client.take_output()


def ready(*, lmtp: bool = False) -> Client:
    client = Client(lmtp=lmtp)
    client.receive_data(b"220 hop\r\n" + EHLO)
    client.next_reply()
    client.hello("me")
    client.next_reply()
    client.take_output()
    return client


def in_transaction(*, lmtp: bool = False, recipients: int = 1) -> Client:
    client = ready(lmtp=lmtp)
    client.mail("MAIL FROM:<>")
    for number in range(recipients):
        client.rcpt(f"RCPT TO:<{number}@x>")
    client.take_output()
    client.receive_data(b"250 ok\r\n" * (1 + recipients))
    for _ in range(1 + recipients):
        client.next_reply()
    return client


def test_a_transaction_of_smtp():
    client = Client(lmtp=False)
    converse(client, "S: 220 hop")
    client.hello("me.example")
    converse(client, "C: EHLO me.example\nS: 250-hop\nS: 250 8BITMIME")
    assert "8BITMIME" in client.offers
    client.mail("MAIL FROM:<a@x>")
    converse(client, "C: MAIL FROM:<a@x>\nS: 250 ok")
    client.rcpt("RCPT TO:<b@x>")
    converse(client, "C: RCPT TO:<b@x>\nS: 251 elsewhere")
    client.data()
    converse(client, "C: DATA\nS: 354 go")
    client.content(b".dot\r\nend")
    client.end_of_data()
    converse(client, "C: ..dot\nC: end\nC: .\nS: 250 taken")
    assert client.reusable
    assert not client.in_transaction
    client.quit()
    converse(client, "C: QUIT\nS: 221 bye")
    assert not client.reusable


def test_lmtp_has_an_answer_for_each_accepted_recipient():
    client = in_transaction(lmtp=True, recipients=2)
    client.rcpt("RCPT TO:<c@x>")
    converse(client, "C: RCPT TO:<c@x>\nS: 550 no")
    client.data()
    converse(client, "C: DATA\nS: 354 go")
    client.end_of_data()
    assert client.awaits == 2
    converse(client, "C: .\nS: 250 one")
    assert not client.reusable
    converse(client, "S: 450 two")
    assert client.reusable


@pytest.mark.parametrize(
    "octets", [b"350 more\r\n", b"220 hello\r\n", b"99\r\n", b"\r\n", b"2500 x\r\n"]
)
def test_an_answer_that_data_cannot_have_is_nonsense(octets):
    client = in_transaction()
    client.data()
    client.receive_data(octets)
    with pytest.raises(Nonsense):
        client.next_reply()
    assert not client.reusable
    with pytest.raises(LinkLost):
        client.next_reply()


def test_an_answer_that_nobody_asked_for_ends_the_use_of_a_connection():
    client = ready()
    assert client.reusable
    client.receive_data(b"421 4.4.2 idle too long\r\n")
    assert not client.reusable
    with pytest.raises(Nonsense):
        client.next_reply()


def test_421_and_what_was_left_undone_end_the_use_of_a_connection():
    client = in_transaction()
    client.rcpt("RCPT TO:<c@x>")
    assert not client.reusable
    client.receive_data(b"421 bye\r\n")
    assert client.next_reply().code == 421
    assert not client.reusable


def test_a_message_that_has_no_end_is_never_followed_by_another():
    client = in_transaction()
    client.data()
    client.receive_data(b"354 go\r\n")
    client.next_reply()
    client.content(b"half")
    assert not client.reusable
    with pytest.raises(LocalProtocolError):
        client.mail("MAIL FROM:<>")
    chunked = in_transaction()
    chunked.chunk(b"half", last=False)
    chunked.receive_data(b"250 ok\r\n")
    chunked.next_reply()
    assert not chunked.reusable


def test_a_transaction_that_was_given_up_needs_rset():
    client = in_transaction()
    assert client.reusable
    assert client.in_transaction
    client.take_output()
    client.reset()
    converse(client, "C: RSET\nS: 250 ok")
    assert not client.in_transaction


def test_what_stands_behind_the_answer_to_starttls_is_an_attack():
    client = ready()
    client.starttls()
    client.receive_data(b"220 go\r\n250 injected\r\n")
    with pytest.raises(Nonsense):
        client.next_reply()


def test_what_was_offered_in_plain_text_is_forgotten_under_tls():
    client = ready()
    client.starttls()
    client.receive_data(b"220 go\r\n")
    client.next_reply()
    client.tls_started()
    assert "PIPELINING" not in client.offers
    assert not client.reusable


def test_a_server_that_talks_without_end_is_left():
    client = ready()
    with pytest.raises(Nonsense):
        for _ in range(MAX_UNREAD):
            client.receive_data(b"250-x\r\n")


def test_a_lost_connection_gives_the_replies_that_came_before():
    client = in_transaction()
    client.rcpt("RCPT TO:<c@x>")
    client.data()
    client.receive_data(b"250 ok\r\n354")
    client.receive_eof()
    assert client.next_reply().code == 250
    with pytest.raises(LinkLost):
        client.next_reply()


def test_offers_are_read_in_any_case_and_old_spellings():
    client = ready()
    assert client.offers.arguments("SIZE") == ("100",)
    assert client.offers.arguments("AUTH") == ("LOGIN",)
    assert client.offers.promises == frozenset()
    offers = Offers({"BINARYMIME": (), "CHUNKING": (), "DSN": ()})
    assert offers.promises == {"BINARYMIME", "DSN"}
    assert Offers({"BINARYMIME": ()}).promises == frozenset()


# --- parameters -----------------------------------------------------------------------------------


def envelope(**values) -> Envelope:
    return Envelope(**{"sender": "a@x", "data": whole(b""), **values})


def offers(*words) -> Offers:
    return Offers(dict.fromkeys(words, ()))


ALL = offers("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "AUTH", "REQUIRETLS", "CHUNKING", "BINARYMIME")


def test_mail_says_what_the_client_said_as_far_as_it_is_offered():
    asked = envelope(
        size=100,
        body="8BITMIME",
        smtputf8=True,
        require_tls=True,
        auth="j=e@x",
        dsn=DSN("HDRS", "id+1"),
    )
    assert commands.mail(asked, ALL, added=10, vouched=True) == (
        "MAIL FROM:<a@x> SIZE=110 BODY=8BITMIME SMTPUTF8 REQUIRETLS AUTH=j+3De@x RET=HDRS"
        " ENVID=id+2B1"
    )
    plain = envelope(size=100, body="8BITMIME", auth="", dsn=DSN("HDRS", None))
    assert commands.mail(plain, offers(), added=10, vouched=True) == "MAIL FROM:<a@x>"
    assert commands.mail(plain, ALL, added=0, vouched=False).count("AUTH") == 0
    assert commands.mail(plain, ALL, added=0, vouched=True).count("AUTH=<>") == 1


def test_rcpt_says_what_the_client_asked_about_notifications():
    asked = RecipientDSN(frozenset({"SUCCESS", "DELAY"}), ("rfc822", "b+c@x"))
    assert (
        commands.rcpt("b@x", asked, ALL)
        == "RCPT TO:<b@x> NOTIFY=DELAY,SUCCESS ORCPT=rfc822;b+2Bc@x"
    )
    assert commands.rcpt("b@x", asked, offers()) == "RCPT TO:<b@x>"
    utf8 = RecipientDSN(None, ("utf-8", "bü+@x"))
    assert commands.rcpt("b@x", utf8, ALL) == r"RCPT TO:<b@x> ORCPT=utf-8;b\x{FC}\x{2B}@x"


def test_what_a_message_cannot_do_without_is_named():
    def missing(words=(), *, verified=False, **values):
        return commands.missing(envelope(**values), offers(*words), verified=verified)

    assert missing(smtputf8=True) == "SMTPUTF8"
    assert missing(("SMTPUTF8",), smtputf8=True) is None
    assert missing(recipients=["bü@x"]) == "SMTPUTF8"
    assert missing(("BINARYMIME",), body="BINARYMIME") == "BINARYMIME"
    assert missing(("BINARYMIME", "CHUNKING"), body="BINARYMIME") is None
    assert missing(("REQUIRETLS",), require_tls=True) == "REQUIRETLS"
    assert missing(("REQUIRETLS",), require_tls=True, verified=True) is None
    assert missing(body="8BITMIME", dsn=DSN("FULL", "x")) is None


@pytest.mark.parametrize("address", ["a\r\nQUIT@x", "a\n@x", "a\0@x"])
def test_an_address_never_ends_its_line(address):
    with pytest.raises(LocalProtocolError):
        commands.mail(envelope(sender=address), ALL, added=0, vouched=False)
    with pytest.raises(LocalProtocolError):
        commands.rcpt(address, None, ALL)


# --- who the client is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "server"),
    [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2"), ("2001:db8::1", "192.0.2.1")],
)
def test_the_header_of_proxy_says_what_its_reader_reads(client, server):
    peer = PEER._replace(
        address=ip_address(client), port=4321, server_address=ip_address(server), server_port=25
    )
    info = HeaderReader()
    header = proxy_header(peer)
    read = None
    while header:
        size = info.wanted.octets
        read = info.feed(header[:size])
        header = header[size:]
    assert read.source == (ip_address(client), 4321)
    if ip_address(client).version == ip_address(server).version:
        assert read.destination == (ip_address(server), 25)


def test_nobody_in_particular_is_local():
    for peer in (None, PEER._replace(address=None)):
        reader = HeaderReader()
        header = proxy_header(peer)
        reader.feed(header[:12])
        reader.feed(header[12:15])
        assert reader.feed(header[15:]).local


def test_xclient_has_the_attributes_that_are_offered():
    peer = PEER._replace(name="mail example", username="joe")
    line = xclient(
        peer, Offers({"XCLIENT": ("NAME", "ADDR", "HELO", "LOGIN", "OTHER", "DESTADDR")})
    )
    assert line == (
        "XCLIENT NAME=mail+20example ADDR=192.0.2.1 HELO=mail.example.org LOGIN=joe"
        " DESTADDR=[UNAVAILABLE]"
    )
    six = xclient(PEER._replace(address=ip_address("2001:db8::1")), Offers({"XCLIENT": ("ADDR",)}))
    assert six == "XCLIENT ADDR=IPV6:2001:db8::1"
    assert xclient(peer, Offers({"XCLIENT": ("OTHER",)})) is None


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1:25", ("192.0.2.1", 25)),
        ("[2001:db8::1]:24", ("2001:db8::1", 24)),
        ("mail.example.com:2525", ("mail.example.com", 2525)),
        ("unix:/run/x", ("/run/x", 0)),
    ],
)
def test_servers_are_host_and_port_or_a_socket(address, place):
    assert split(address) == place


@pytest.mark.parametrize(
    "address",
    ["", ":25", "x", "x:", "x:0", "x:65536", "x:²5", "::1:25", "[1.2.3.4]:25", "unix:x", "a b:25"],
)
def test_what_is_no_server_is_refused(address):
    with pytest.raises(ValueError):
        split(address)


@pytest.mark.parametrize("early", [b"250 stray\r\n", b"452 full\r\n", b"421 bye\r\n"])
def test_what_comes_before_the_end_of_the_message_is_no_success_of_it(early):
    client = in_transaction()
    client.data()
    client.receive_data(b"354 go\r\n")
    client.next_reply()
    client.content(b"x\r\n")
    client.receive_data(early)
    client.end_of_data()
    if early.startswith(b"2"):
        with pytest.raises(Nonsense):
            client.next_reply()
    else:
        assert client.next_reply().code == int(early[:3])
    assert not client.reusable
