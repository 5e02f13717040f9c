"""TLS, AUTH and what is offered: between this server and its next hop."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
import trustme
from next_hops import backend, client_of, relay

from preforkmx import Middleware, Server, SMTPError
from preforkmx.delivery.discard import discard
from preforkmx.delivery.smtp import smtp
from preforkmx.testing import Client, Recorder, running

AWAY = (451, "4.4.1 The next hop is not available, try again later")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An authority, a certificate of a client's, and a password."""
    folder = tmp_path_factory.mktemp("files")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(
        folder / "client.pem"
    )
    (folder / "password").write_text("s3cret\n")
    return folder, authority


def context_of(authority, *names, client=False):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


@asynccontextmanager
async def behind(**options):
    """A server of ours as the next hop: its recorder and its address."""
    recorder = Recorder()
    server = Server(hostname="behind", handler=discard(), smtputf8=True, **options)
    server.use(recorder)
    async with running(server) as address:
        yield recorder, f"{address.host}:{address.port}"


async def offered(client, sender="a@example.org"):
    reply = await client.deliver(b"x\r\n", sender=sender, recipients=["b@example.com"])
    return reply.code, reply.text


@pytest.mark.parametrize(
    ("mode", "names", "trusted", "works"),
    [
        ("off", ("127.0.0.1",), True, None),
        ("may", ("elsewhere.example",), False, "TLS"),
        ("must", ("elsewhere.example",), False, "TLS"),
        ("verify", ("127.0.0.1",), True, "TLS"),
        ("verify", ("127.0.0.1",), False, False),
        ("verify", ("elsewhere.example",), True, False),
    ],
)
def test_tls_is_as_strict_as_it_is_told(run, files, mode, names, trusted, works):
    async def test():
        folder, authority = files
        options = {"ca": folder / "ca.pem"} if trusted else {}
        async with (
            behind(tls=context_of(authority, *names)) as (recorder, address),
            client_of(
                Server(handler=smtp([address], hostname="mx", tls=mode, **options))
            ) as client,
        ):
            answer = await offered(client)
            if works is False:
                assert answer == AWAY
                assert recorder.messages == []
            else:
                assert answer[0] == 250
                assert bool(recorder.messages[0].peer.tls) is (works == "TLS")

    run(test())


def test_a_name_may_be_given_for_the_certificate(run, files):
    async def test():
        folder, authority = files
        options = {"ca": folder / "ca.pem", "tls": "verify", "tls_name": "hop.example"}
        async with (
            behind(tls=context_of(authority, "hop.example")) as (_, address),
            client_of(Server(handler=smtp([address], hostname="mx", **options))) as client,
        ):
            assert (await offered(client))[0] == 250

    run(test())


@pytest.mark.parametrize("mode", ["must", "verify"])
def test_nothing_is_sent_in_plain_text_where_tls_is_a_must(run, mode):
    async def test():
        async with (
            behind() as (recorder, address),
            client_of(Server(handler=smtp([address], hostname="mx", tls=mode))) as client,
        ):
            assert await offered(client) == AWAY
            assert "check_sender" not in recorder.phases

    run(test())


def test_may_goes_on_in_plain_text_where_the_handshake_fails(run):
    async def test():
        async with backend(keywords=("STARTTLS",)) as hop:
            hop.answers["STARTTLS"] = "220 go\r\nand what is this"
            async with client_of(Server(handler=smtp([hop.address], hostname="mx"))) as client:
                # Something in plain text behind the 220 is an attack, and not a failure.
                assert await offered(client) == AWAY
            hop.answers["STARTTLS"] = "454 4.7.0 Not now"
            async with client_of(Server(handler=smtp([hop.address], hostname="mx"))) as client:
                assert (await offered(client))[0] == 250

    run(test())


def test_a_certificate_of_ours_is_shown(run, files):
    async def test():
        folder, authority = files
        context = context_of(authority, "127.0.0.1", client=True)
        async with behind(tls=context) as (_, address):
            options = {"tls": "must", "certificate": folder / "client.pem"}
            async with client_of(
                Server(handler=smtp([address], hostname="mx", **options))
            ) as client:
                assert (await offered(client))[0] == 250

    run(test())


@pytest.mark.parametrize("mechanisms", ["PLAIN LOGIN", "LOGIN", "CRAM-MD5"])
def test_auth_with_what_is_offered(run, files, mechanisms):
    folder, _ = files

    async def test():
        async with backend(keywords=(f"AUTH {mechanisms}",)) as hop:
            hop.answers["AUTH PLAIN"] = "235 2.7.0 ok"
            hop.answers["AUTH LOGIN"] = "334 VXNlcm5hbWU6"
            hop.answers["bXg="] = "334 UGFzc3dvcmQ6"
            hop.answers["czNjcmV0"] = "235 2.7.0 ok"
            options = {"user": "mx", "password_file": folder / "password"}
            async with client_of(
                Server(handler=smtp([hop.address], hostname="mx", **options))
            ) as client:
                answer = await offered(client)
                if mechanisms == "CRAM-MD5":
                    assert answer == AWAY
                    return
                assert answer[0] == 250
                said = hop.said
                if "PLAIN" in mechanisms:
                    assert "AUTH PLAIN AG14AHMzY3JldA==" in said
                else:
                    at = said.index("AUTH LOGIN")
                    assert said[at : at + 3] == ["AUTH LOGIN", "bXg=", "czNjcmV0"]

    run(test())


def test_a_password_that_is_refused_is_451(run, files):
    folder, _ = files

    async def test():
        async with backend(keywords=("AUTH PLAIN",)) as hop:
            hop.answers["AUTH"] = "535 5.7.8 Wrong"
            options = {"user": "mx", "password_file": folder / "password"}
            async with client_of(
                Server(handler=smtp([hop.address], hostname="mx", **options))
            ) as client:
                assert await offered(client) == AWAY

    run(test())


def test_a_password_is_never_sent_in_plain_text_over_a_network(run, files, monkeypatch):
    folder, _ = files
    monkeypatch.setattr("preforkmx.delivery.nexthop.servers.Server.private", False)

    async def test():
        async with backend(keywords=("AUTH PLAIN",)) as hop:
            options = {"user": "mx", "password_file": folder / "password"}
            async with client_of(
                Server(handler=smtp([hop.address], hostname="mx", **options))
            ) as client:
                assert await offered(client) == AWAY
                assert "AUTH" not in hop.verbs()

    run(test())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"user": "mx"}, "belong together"),
        ({"user": "mx", "password_file": "nowhere"}, "cannot be read"),
        ({"user": "mx", "password_file": "empty"}, "no password"),
        ({"ca": "nowhere"}, "cannot be read"),
        ({"certificate": "empty"}, "not what TLS needs"),
    ],
)
def test_files_that_cannot_be_used_are_told_at_once(tmp_path, options, reason):
    (tmp_path / "empty").touch()
    options = {key: tmp_path / value if key != "user" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=reason):
        smtp(["127.0.0.1:25"], hostname="mx", **options)


# --- promises -------------------------------------------------------------------------------------


async def keywords(server) -> str:
    async with running(server) as address, await Client.connect(address) as client:
        text = (await client.hello()).text
        await client.command("QUIT")
        return text


def test_what_the_next_hop_offers_is_offered(run):
    async def test():
        async with backend() as hop:
            text = await keywords(relay(hop))
            assert {"SMTPUTF8", "DSN", "BINARYMIME"} <= set(text.split())
            hop.keywords = ("DSN",)
            text = await keywords(relay(hop))
            assert {"SMTPUTF8", "BINARYMIME"}.isdisjoint(text.split())
            assert "DSN" in text

    run(test())


def test_of_several_servers_all_must_offer_it_and_without_any_nothing_is(run):
    async def test():
        async with backend() as first, backend(keywords=("SMTPUTF8",)) as second:
            text = await keywords(relay(first, second))
            assert "SMTPUTF8" in text
            assert "DSN" not in text
            address = first.address
            await first.stop()
            assert "SMTPUTF8" not in await keywords(relay(address))
            await first.start()

    run(test())


@pytest.mark.parametrize("mode", ["must", "verify"])
def test_requiretls_is_a_promise_where_certificates_are_verified(run, files, mode):
    async def test():
        folder, authority = files
        tls = context_of(authority, "127.0.0.1")
        async with behind(tls=tls, requiretls=True) as (_, address):
            delivery = smtp([address], hostname="mx", tls=mode, ca=folder / "ca.pem")
            async with running(Server(handler=delivery)):
                assert ("REQUIRETLS" in delivery.extensions()) is (mode == "verify")

    run(test())


def test_utf8_and_notifications_pass(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            reply = await client.command(
                "MAIL FROM:<ü@example.org> SMTPUTF8 BODY=8BITMIME SIZE=10 RET=HDRS ENVID=x"
            )
            assert reply.code == 250
            reply = await client.command("RCPT TO:<b@example.com> NOTIFY=NEVER")
            assert reply.code == 250
            assert hop.said[-2:] == [
                "MAIL FROM:<ü@example.org> SIZE=266 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x",
                "RCPT TO:<b@example.com> NOTIFY=NEVER",
            ]

    run(test())


def test_a_message_that_needs_what_went_away_is_451(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            hop.keywords = ("PIPELINING",)
            hop.drop_all()
            reply = await client.command("MAIL FROM:<a@example.org> SMTPUTF8")
            assert reply.code == 451

    run(test())


# --- BDAT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("PIPELINING", "CHUNKING"), ("CHUNKING",)])
def test_chunks_carry_the_octets_as_they_are(run, words):
    async def test():
        async with (
            backend(keywords=words) as hop,
            client_of(relay(hop, chunking=True)) as client,
        ):
            await client.command("MAIL FROM:<a@example.org>")
            await client.command("RCPT TO:<b@example.com>")
            octets = b"bare\nand\r.\r\n.\r\n" * 20_000
            half = len(octets) // 2
            await client.send(b"BDAT %d\r\n" % half + octets[:half])
            assert (await client.reply()).code == 250
            await client.send(b"BDAT %d LAST\r\n" % (len(octets) - half) + octets[half:])
            assert (await client.reply()).code == 250
            ((_, _, message),) = hop.messages
            assert message.endswith(octets)
            assert sum(line.startswith("BDAT ") for line in hop.said) > 2

    run(test())


def test_a_refused_chunk_is_the_message_s_refusal(run):
    async def test():
        async with (
            backend(keywords=("CHUNKING", "BINARYMIME")) as hop,
            client_of(relay(hop)) as client,
        ):
            hop.answers["BDAT"] = "552 5.3.4 Too large"
            await client.command("MAIL FROM:<a@example.org> BODY=BINARYMIME")
            await client.command("RCPT TO:<b@example.com>")
            await client.send(b"BDAT 100000 LAST\r\n" + b"x" * 100_000)
            reply = await client.reply()
            assert (reply.code, reply.text) == (552, "5.3.4 Too large")
            assert hop.messages == []

    run(test())


def test_bare_newlines_become_lines_where_data_carries_them(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            await client.command("MAIL FROM:<a@example.org>")
            await client.command("RCPT TO:<b@example.com>")
            octets = b"x\n.\r\nQUIT\n.\n"
            await client.send(b"BDAT %d LAST\r\n" % len(octets) + octets)
            assert (await client.reply()).code == 250
            ((_, _, message),) = hop.messages
            assert message.endswith(b"\r\nx\r\n.\r\nQUIT\r\n.\r\n")
            assert "QUIT" not in hop.verbs()

    run(test())


def test_middleware_in_front_is_asked_first(run):
    async def test():
        async def refuse(ctx, peer, address):
            raise SMTPError(550, "Not here")

        async with backend() as hop:
            server = relay(hop)
            server.use(Middleware(check_recipient=refuse))
            async with client_of(server) as client:
                await client.command("MAIL FROM:<a@example.org>")
                assert (await client.command("RCPT TO:<b@example.com>")).code == 550
                await asyncio.sleep(0)
            assert "RCPT" not in hop.verbs()

    run(test())
