"""swaks speaks what surrounds a message: AUTH, XCLIENT, PROXY in both versions, LMTP."""

from __future__ import annotations

import base64

import pytest

from tests.integration.mx import serving
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.programs import swaks
from tests.integration.peers.site import PASSWORD, SITE, USER, noted
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

# By name, in the order of the configuration; the one on a unix socket comes last.
TCP = {
    "plain": "",
    "implicit": 'tls = "implicit"',
    "xclient": 'xclient_from = ["127.0.0.1"]',
    "proxy": 'proxy_protocol = true\nproxy_from = ["127.0.0.1"]',
    "proxy, implicit": 'tls = "implicit"\nproxy_protocol = true\nproxy_from = ["127.0.0.1"]',
    "proxy, of others": 'proxy_protocol = true\nproxy_from = ["192.0.2.0/24"]',
    "proxy, xclient": (
        'proxy_protocol = true\nproxy_from = ["127.0.0.1"]\nxclient_from = ["192.0.2.8"]'
    ),
    "lmtp": 'protocol = "lmtp"',
}
# swaks' exit statuses, and how it shows a greeting.
AUTH_FAILED = 28
XCLIENT_FAILED = 33
GREETING = "<-  220"


def listeners(directory):
    tcp = "".join(f'[[listener]]\naddress = "127.0.0.1:0"\n{keys}\n' for keys in TCP.values())
    return f'{tcp}[[listener]]\naddress = "unix:{directory}/lmtp"\nprotocol = "lmtp"\n'


class Site:
    """A server with all of the listeners, and what its middleware noted."""

    def __init__(self, mx):
        self.mx = mx

    def swaks(self, listener, recipient, *arguments):
        port = self.mx.ports[list(TCP).index(listener)]
        to = ("--server", "127.0.0.1", "--port", port, "--to", f"{recipient}@example.com")
        return swaks(*to, *arguments)

    def delivered(self, recipient):
        """Return the only message of a recipient."""
        (path,) = (self.mx.mail / "example.com" / recipient / "new").iterdir()
        return path.read_text()

    def took_nothing(self, recipient):
        return not (self.mx.mail / "example.com" / recipient).exists()

    def last(self, event):
        """Return what was noted last of ``connection`` or ``mail``."""
        return noted(self.mx.directory / "notes", event)[-1]

    def logged(self, recipient):
        """Return the log's line about the message of a recipient."""

        def lines():
            return [
                line
                for line in self.mx.log.splitlines()
                if f"recipients={recipient}@example.com" in line and "event=transaction" in line
            ]

        until(lines, f"the log's line about {recipient}")
        return lines()[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    # A unix socket's path is short.
    directory = tmp_path_factory.mktemp("s")
    middleware = (
        f'[[middleware]]\nuse = "{SITE}:users"\n'
        f'[[middleware]]\nuse = "{SITE}:notes"\npath = "{directory}/notes"\n'
    )
    toml = listeners(directory) + middleware + tls_table(directory) + '[log]\nlevel = "debug"\n'
    with serving(directory, toml) as mx:
        yield Site(mx)


def auth(mechanism, password=PASSWORD):
    return ("--auth", mechanism, "--auth-user", USER, "--auth-password", password)


# --- AUTH -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    ("listener", "tls"), [("plain", "--tls"), ("implicit", "--tls-on-connect")], ids=["587", "465"]
)
def test_swaks_authenticates_under_tls(site, mechanism, listener, tls):
    """The user is the Peer's, and Received says ESMTPSA (RFC 3848)."""
    recipient = f"auth-{mechanism.lower()}-{listener}"
    result = site.swaks(listener, recipient, tls, *auth(mechanism))
    assert result.returncode == 0, result.stdout
    assert "with ESMTPSA" in site.delivered(recipient)
    assert site.last("mail")["user"] == USER
    assert f"user={USER}" in site.logged(recipient)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_wrong_password_is_refused(site, mechanism):
    result = site.swaks("plain", "wrong-password", "--tls", *auth(mechanism, "guessed"))
    assert result.returncode == AUTH_FAILED, result.stdout
    assert "535 5.7.8" in result.stdout
    assert site.took_nothing("wrong-password")


def test_auth_is_not_offered_in_plain_text(site):
    """swaks finds no mechanism, and sends no password."""
    result = site.swaks("plain", "plain-text", *auth("PLAIN"))
    assert result.returncode == AUTH_FAILED, result.stdout
    assert "AUTH PLAIN" not in result.stdout


def test_passwords_are_not_in_the_log_of_the_dialogue(site):
    """Level debug shows AUTH without what it carries, in no spelling (RFC 4954 section 4)."""
    encoded = base64.b64encode(PASSWORD.encode()).decode()
    plain = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    for mechanism in ("PLAIN", "LOGIN"):
        result = site.swaks("plain", f"log-{mechanism.lower()}", "--tls", *auth(mechanism))
        assert plain in result.stdout or encoded in result.stdout
        site.logged(f"log-{mechanism.lower()}")
    log = site.mx.log
    assert "C: AUTH" in log
    for secret in (PASSWORD, encoded, plain):
        assert secret not in log


# --- XCLIENT ----------------------------------------------------------------------------------


def test_xclient_gives_a_session_another_client(site):
    """The connection checks ran again for it; log and Received name it."""
    result = site.swaks(
        *("xclient", "other-client"),
        *("--xclient-addr", "192.0.2.7", "--xclient-port", "4711"),
        *("--xclient-name", "mail.example.net", "--xclient-destaddr", "198.51.100.1"),
        *("--xclient-destport", "25"),
    )
    assert result.returncode == 0, result.stdout
    for event in ("connection", "mail"):
        note = site.last(event)
        assert (note["host"], note["port"]) == ("192.0.2.7", 4711)
        assert note["name"] == "mail.example.net"
        assert note["to"] == ["198.51.100.1", 25]
    assert "[192.0.2.7]" in site.delivered("other-client")
    assert "peer=192.0.2.7 " in site.logged("other-client")


def test_xclient_takes_an_ipv6_address(site):
    """Postfix writes ``IPV6:`` in front of it."""
    result = site.swaks("xclient", "ipv6-client", "--xclient-addr", "IPV6:2001:db8::7")
    assert result.returncode == 0, result.stdout
    assert site.last("mail")["host"] == "2001:db8::7"


def test_xclient_gives_a_session_its_user(site):
    """LOGIN: the user authenticated to the proxy."""
    result = site.swaks(
        "xclient", "proxied-user", "--xclient-login", USER, "--xclient-addr", "192.0.2.7"
    )
    assert result.returncode == 0, result.stdout
    assert site.last("mail")["user"] == USER


def test_xclient_works_under_starttls(site):
    """swaks says XCLIENT after STARTTLS, and EHLO once more after it."""
    result = site.swaks("xclient", "xclient-tls", "--tls", "--xclient-addr", "192.0.2.9")
    assert result.returncode == 0, result.stdout
    assert site.last("mail")["host"] == "192.0.2.9"
    assert "with ESMTPS" in site.delivered("xclient-tls")


@pytest.mark.parametrize("name", ["plain", "lmtp"])
def test_xclient_is_not_for_everybody(site, name):
    """It is not announced to a client that is not trusted: swaks does not try."""
    protocol = ("--protocol", "LMTP" if name == "lmtp" else "ESMTP")
    arguments = (*protocol, "--xclient-addr", "192.0.2.7")
    result = site.swaks(name, "untrusted", *arguments)
    assert "XCLIENT" not in result.stdout.replace("did not advertise XCLIENT", "")
    assert result.returncode == XCLIENT_FAILED, result.stdout
    assert site.took_nothing("untrusted")


# --- PROXY ------------------------------------------------------------------------------------


def proxy(version, family, source="192.0.2.8", destination="198.51.100.2"):
    return (
        *("--proxy-version", version, "--proxy-family", family, "--proxy-source", source),
        *("--proxy-source-port", 4712, "--proxy-dest", destination, "--proxy-dest-port", 25),
    )


@pytest.mark.parametrize(
    ("listener", "tls"),
    [("proxy", None), ("proxy", "--tls"), ("proxy, implicit", "--tls-on-connect")],
    ids=["plain", "STARTTLS", "implicit"],
)
@pytest.mark.parametrize(
    ("version", "family", "source", "destination"),
    [
        (1, "TCP4", "192.0.2.8", "198.51.100.2"),
        (1, "TCP6", "2001:db8::8", "2001:db8::25"),
        (2, "AF_INET", "192.0.2.8", "198.51.100.2"),
        (2, "AF_INET6", "2001:db8::8", "2001:db8::25"),
    ],
)
def test_a_proxy_header_names_the_client(site, version, family, source, destination, listener, tls):
    """Both versions and families, in front of plain text and of the ClientHello."""
    recipient = f"proxy-{family.lower()}-{(tls or '').strip('-')}"
    result = site.swaks(
        listener, recipient, *proxy(version, family, source, destination), *([tls] if tls else [])
    )
    assert result.returncode == 0, result.stdout
    note = site.last("mail")
    assert (note["host"], note["port"], note["version"]) == (source, 4712, version)
    assert note["to"] == [destination, 25]
    assert f"peer={source} " in site.logged(recipient).replace('"', "")
    assert ("with ESMTPS" in site.delivered(recipient)) is (tls is not None)


def test_proxy_unknown_keeps_the_addresses_of_the_socket(site):
    result = site.swaks("proxy", "unknown", "--proxy-version", 1, "--proxy", "UNKNOWN")
    assert result.returncode == 0, result.stdout
    note = site.last("mail")
    assert (note["host"], note["version"], note["health_check"]) == ("127.0.0.1", 1, False)


def test_a_proxy_that_is_not_trusted_is_closed_without_a_reply(site):
    result = site.swaks("proxy, of others", "other-proxy", *proxy(1, "TCP4"))
    assert result.returncode != 0
    assert GREETING not in result.stdout
    assert site.took_nothing("other-proxy")


def test_a_header_that_says_nothing_is_closed_without_a_reply(site):
    result = site.swaks("proxy", "no-header", "--proxy-version", 1, "--proxy", "NONSENSE 1 2 3")
    assert result.returncode != 0
    assert GREETING not in result.stdout
    assert site.took_nothing("no-header")


def test_a_header_is_not_believed_where_none_is_expected(site):
    """A listener without proxy_protocol takes nobody's word."""
    site.swaks("plain", "no-proxy", *proxy(1, "TCP4", source="192.0.2.99"))
    hosts = {note["host"] for note in noted(site.mx.directory / "notes", "connection")}
    assert "192.0.2.99" not in hosts


def test_xclient_is_believed_from_the_address_behind_the_proxy(site):
    """xclient_from matches what PROXY named, and not the proxy itself."""
    trusted = ("--xclient-addr", "203.0.113.1")
    result = site.swaks("proxy, xclient", "trusted-behind", *proxy(2, "AF_INET"), *trusted)
    assert result.returncode == 0, result.stdout
    assert site.last("mail")["host"] == "203.0.113.1"
    stranger = proxy(2, "AF_INET", source="192.0.2.9")
    result = site.swaks("proxy, xclient", "strange-behind", *stranger, *trusted)
    assert result.returncode == XCLIENT_FAILED, result.stdout


# --- LMTP -------------------------------------------------------------------------------------


def replies_to_the_message(output):
    """Return the server's replies behind the dot."""
    after = output.split(" -> .\n", 1)[1].split(" -> QUIT")[0]
    return [line[4:].strip() for line in after.splitlines() if line.startswith("<")]


def test_lmtp_answers_each_recipient_on_tcp(site):
    result = site.swaks(
        *("lmtp", "unused", "--protocol", "LMTP"),
        *("--to", "lmtp-1@example.com,lmtp-2@example.com,lmtp-3@example.com"),
    )
    assert result.returncode == 0, result.stdout
    assert "LHLO" in result.stdout
    assert [reply[:3] for reply in replies_to_the_message(result.stdout)] == ["250"] * 3
    for number in (1, 2, 3):
        assert "with LMTP id" in site.delivered(f"lmtp-{number}")


def test_lmtp_is_spoken_on_a_unix_socket(site):
    result = swaks(
        *("--socket", site.mx.directory / "lmtp", "--protocol", "LMTP"),
        *("--to", "unix@example.com"),
    )
    assert result.returncode == 0, result.stdout
    assert "with LMTP id" in site.delivered("unix")
    assert site.last("mail")["host"] == "unix"


def test_lmtp_works_under_starttls(site):
    result = site.swaks("lmtp", "lmtp-tls", "--protocol", "LMTP", "--tls")
    assert result.returncode == 0, result.stdout
    assert "with LMTPS id" in site.delivered("lmtp-tls")


@pytest.mark.parametrize(("listener", "protocol"), [("lmtp", "ESMTP"), ("plain", "LMTP")])
def test_each_listener_has_its_own_greeting(site, listener, protocol):
    """EHLO and HELO on LMTP, and LHLO on SMTP: 500 (RFC 2033 section 4.1)."""
    result = site.swaks(listener, f"not-{protocol}", "--protocol", protocol)
    _greeting, replies = result.stdout.split(f"-> {'LHLO' if protocol == 'LMTP' else 'EHLO'} ")
    assert "<** 500 " in replies.splitlines()[1]
    # For EHLO swaks then tries HELO, which LMTP has not either.
    assert result.returncode != 0
    assert site.took_nothing(f"not-{protocol}")


@pytest.mark.parametrize("protocol", ["esmtp", "lmtp"])
def test_a_recipient_can_be_refused_after_the_message(tmp_path, protocol):
    """LMTP has a reply for each recipient; SMTP has one, and a 4xx brings the message again."""
    toml = (
        f'[[listener]]\naddress = "127.0.0.1:0"\nprotocol = "{protocol.removeprefix("e")}"\n'
        f'[delivery]\nuse = "{SITE}:picky"\n'
    )
    with serving(tmp_path, toml, workers=1) as mx:
        result = swaks(
            *("--server", "127.0.0.1", "--port", mx.ports[0], "--protocol", protocol),
            *("--to", "a@example.com,full@example.com,b@example.com"),
        )
    codes = [reply[:9] for reply in replies_to_the_message(result.stdout)]
    if protocol == "lmtp":
        assert [code[:3] for code in codes] == ["250", "452", "250"], result.stdout
        assert codes[1] == "452 4.2.2"
    else:
        assert codes == ["452 4.2.2"], result.stdout
