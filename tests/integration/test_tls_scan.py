"""sslyze looks at both kinds of TLS: nothing old is spoken, and no known hole is open."""

from __future__ import annotations

import json

import pytest

from tests.integration.mx import program, serving
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.programs import peer_program, run

pytestmark = pytest.mark.integration

LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
[[listener]]
address = "127.0.0.1:0"
"""
OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")


@pytest.fixture(scope="module")
def mx(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mx")
    with serving(directory, LISTENERS + tls_table(directory)) as mx:
        yield mx


@pytest.fixture(scope="module")
def scans(mx):
    """Return what sslyze found, by kind of TLS."""
    return {
        "implicit": scan(mx, mx.ports[0]),
        "STARTTLS": scan(mx, mx.ports[1], "--starttls", "smtp"),
    }


def scan(mx, port, *options):
    report = mx.directory / f"{port}.json"
    ran = run(
        *(peer_program("sslyze/bin/python"), "-m", "sslyze", "--json_out", report, *options),
        f"127.0.0.1:{port}",
        seconds=50,
    )
    # Its exit status judges the certificate too, which nobody trusts.
    assert report.exists(), ran.stdout
    (result,) = json.loads(report.read_text())["server_scan_results"]
    assert result["connectivity_status"] == "COMPLETED", ran.stdout
    return result["scan_result"]


@pytest.fixture(params=["implicit", "STARTTLS"])
def found(request, scans):
    """Return what one scan says about a question."""

    def ask(question):
        answer = scans[request.param][question]
        assert answer["status"] == "COMPLETED", answer
        return answer["result"]

    return ask


def test_nothing_below_tls_1_2_is_spoken(found):
    for version in OLD:
        assert found(f"{version}_cipher_suites")["accepted_cipher_suites"] == [], version
    for version in ("tls_1_2", "tls_1_3"):
        assert found(f"{version}_cipher_suites")["accepted_cipher_suites"] != [], version


def test_every_cipher_suite_has_forward_secrecy_and_is_not_weak(found):
    """ECDHE or TLS 1.3, 128 bits and more, authenticated, and none of the broken ciphers."""
    for suite in found("tls_1_2_cipher_suites")["accepted_cipher_suites"]:
        name = suite["cipher_suite"]["name"]
        assert "_ECDHE_" in name or "_DHE_" in name
        assert not any(weak in name for weak in ("RC4", "3DES", "NULL", "EXPORT", "_MD5"))
        assert suite["cipher_suite"]["is_anonymous"] is False
        assert suite["cipher_suite"]["key_size"] >= 128


def test_the_server_is_not_vulnerable_to_heartbleed(found):
    assert found("heartbleed")["is_vulnerable_to_heartbleed"] is False


def test_the_server_is_not_vulnerable_to_ccs_injection(found):
    assert found("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"] is False


def test_the_server_is_not_vulnerable_to_robot(found):
    assert found("robot")["robot_result"].startswith("NOT_VULNERABLE")


def test_nothing_is_compressed(found):
    """CRIME."""
    assert found("tls_compression")["supports_compression"] is False


def test_a_downgrade_is_noticed(found):
    """TLS_FALLBACK_SCSV (RFC 7507)."""
    assert found("tls_fallback_scsv")["supports_fallback_scsv"] is True


def test_renegotiation_is_secure_and_not_the_clients_to_ask_for(found):
    """RFC 5746; a client that renegotiates over and over costs the server much."""
    result = found("session_renegotiation")
    assert result["supports_secure_renegotiation"] is True
    assert result["is_vulnerable_to_client_renegotiation_dos"] is False


@pytest.mark.parametrize(
    ("number", "options"),
    [(0, []), (1, ["-starttls", "smtp", "-name", "client.example"])],
    ids=["implicit", "STARTTLS"],
)
def test_no_early_data_is_taken(mx, number, options):
    """0-RTT can be replayed, and a message would come twice: no ticket allows it.

    sslyze would ask in HTTP; OpenSSL's client shows the tickets.
    """
    address = ("-connect", f"127.0.0.1:{mx.ports[number]}")
    command = (program("openssl"), "s_client", "-tls1_3", "-ign_eof", *address, *options)
    ran = run(*command, input="QUIT\r\n")
    tickets = [line.strip() for line in ran.stdout.splitlines() if "Max Early Data" in line]
    assert tickets, ran.stdout
    assert set(tickets) == {"Max Early Data: 0"}


def test_the_chain_is_in_order(found):
    """The server's own certificate comes first (RFC 8446 section 4.4.2)."""
    (deployment,) = found("certificate_info")["certificate_deployments"]
    assert deployment["received_chain_has_valid_order"] is True
