"""SPF as a session meets it: refusals, marks, and what other middleware learns."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest
from zone import Zone

from preforkmx import Middleware, Server
from preforkmx.context import Context
from preforkmx.errors import DNSTimeout, SMTPError
from preforkmx.middleware import SPF, check_data, check_helo, check_sender, spf_result
from preforkmx.middleware.authentication_results import authentication_results, results_of
from preforkmx.middleware.spf_check import SPFResult
from preforkmx.middleware.spf_header import received_spf
from preforkmx.middleware.verdicts import SPF_PASSED
from preforkmx.model import Peer, ProxyInfo
from preforkmx.observe.log import AccessLog
from preforkmx.testing import Client, Recorder, running

CLIENT = ip_address("127.0.0.1")
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture
def zone():
    return Zone(
        {
            "pass.example": [("TXT", "v=spf1 ip4:127.0.0.1 -all")],
            "fail.example": [("TXT", "v=spf1 -all exp=why.fail.example")],
            "why.fail.example": [("TXT", "see http://fail.example/?%{i}")],
            "soft.example": [("TXT", "v=spf1 ~all")],
            "wrong.example": [("TXT", "v=spf1 nonsense")],
            "away.example": ["TIMEOUT"],
        }
    )


def spf(zone, **options):
    return SPF(zone, exempt_private=False, **options)


def peer(address="127.0.0.1", helo="pass.example", **more):
    return Peer(
        address=None if address is None else ip_address(address),
        port=40000,
        server_name="mx.example.com",
        listener="127.0.0.1:25",
        helo_name=helo,
        **more,
    )


def mail(check, sender, *, ctx=None, peer=peer()):  # noqa: B008 - a value
    """MAIL; returns the Context that the session goes on with."""
    ctx = ctx if ctx is not None else Context()
    return asyncio.run(check.sender_check(ctx, peer, sender)) or ctx


async def session(server, *senders, helo="pass.example"):
    """One session with a message for each sender; returns the code and text of each reply."""
    replies = []
    async with running(server) as address, await Client.connect(address) as client:
        await client.reply()
        replies.append(await client.command(f"EHLO {helo}"))
        for sender in senders:
            for line in (f"MAIL FROM:<{sender}>", "RCPT TO:<ann@example.com>", "DATA"):
                reply = await client.command(line)
                if reply.code >= 400:
                    break
            else:
                await client.send(MESSAGE + b".\r\n")
                reply = await client.reply()
            replies.append(reply)
            await client.command("RSET")
        await client.command("QUIT")
    return [(reply.code, " ".join(reply.lines)) for reply in replies]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def server(recorder):
    return Server(hostname="mx.example.com", handler=recorder)


def test_at_mail_a_fail_is_refused_with_the_domains_own_words(run, server, recorder, zone):
    server.use(spf(zone).middleware())
    hello, failed, passed = run(session(server, "joe@fail.example", "joe@pass.example"))
    assert hello[0] == 250
    assert failed[0] == 550
    assert failed[1] == (
        "5.7.23 SPF fail: fail.example does not let 127.0.0.1 send its mail; "
        "fail.example explains: see http://fail.example/?127.0.0.1"
    )
    assert passed[0] == 250
    assert [each.sender for each in recorder.messages] == ["joe@pass.example"]


def test_at_helo_its_name_is_checked_and_a_fail_refuses_the_greeting(run, server, zone):
    server.use(spf(zone).middleware(at="helo"))
    replies = run(session(server, helo="fail.example"))
    assert replies[0][0] == 550
    assert "SPF fail: HELO fail.example does not let" in replies[0][1]
    assert ("fail.example", "TXT") in zone.asked


def test_at_data_nothing_is_asked_before_the_message(run, server, recorder, zone):
    async def refuse(_ctx, _peer, address):
        assert not zone.asked
        raise SMTPError(550, "unknown", enhanced=(5, 1, 1))

    server.use(Middleware(check_recipient=refuse), spf(zone).middleware(at="data"))
    assert run(session(server, "joe@fail.example"))[1][0] == 550
    assert not zone.asked
    other = Server(hostname="mx.example.com", handler=recorder)
    other.use(spf(zone).middleware(at="data"))
    replies = run(session(other, "joe@fail.example", "joe@pass.example"))
    assert [code for code, _ in replies] == [250, 550, 250]
    assert "5.7.23" in replies[1][1]
    (message,) = recorder.messages
    assert message.octets.startswith(b"Received-SPF: pass (mx.example.com: domain of pass.example")


def test_the_header_says_what_was_checked_and_stands_in_front_of_the_message(
    run, server, recorder, zone
):
    server.use(spf(zone).middleware())
    run(session(server, "joe@pass.example", "joe@soft.example", "joe@none.example", ""))
    first, second, third, null = [each.octets.decode() for each in recorder.messages]
    assert first == (
        "Received-SPF: pass (mx.example.com: domain of pass.example designates 127.0.0.1 as"
        " permitted sender)\r\n\tclient-ip=127.0.0.1;\r\n"
        '\tenvelope-from="joe@pass.example";\r\n\thelo=pass.example;\r\n'
        "\treceiver=mx.example.com;\r\n\tidentity=mailfrom;\r\n"
        '\tmechanism="ip4:127.0.0.1"\r\n' + MESSAGE.decode()
    )
    assert second.startswith("Received-SPF: softfail (")
    assert "\tmechanism=~all\r\n" in second
    assert third.startswith("Received-SPF: none (")
    assert "identity=helo" in null
    assert "envelope-from" not in null


def test_results_are_in_authentication_results_and_are_those_of_their_message(
    run, server, recorder, zone
):
    server.use(
        spf(zone).middleware(at="helo"),
        spf(zone, on_fail="mark").middleware(),
        authentication_results("mx.example.com"),
    )
    run(session(server, "joe@fail.example", "", "joe@pass.example"))
    fields = [message.octets.decode().partition("Received-SPF")[0] for message in recorder.messages]
    helo = "Authentication-Results: mx.example.com;\r\n\tspf=pass smtp.helo=pass.example"
    assert fields == [
        f"{helo};\r\n\tspf=fail smtp.mailfrom=joe@fail.example\r\n",
        f"{helo}\r\n",
        f"{helo};\r\n\tspf=pass smtp.mailfrom=joe@pass.example\r\n",
    ]
    assert [message.octets.count(b"Received-SPF:") for message in recorder.messages] == [2, 1, 2]


def test_what_passed_is_known_to_others_until_the_next_mail(zone):
    check = spf(zone, on_fail="mark", on_temperror="accept")
    ctx = mail(check, "joe@PASS.example")
    assert ctx.value(SPF_PASSED) == "pass.example"
    assert spf_result(ctx).passed
    for sender in ("joe@fail.example", "joe@soft.example", "joe@away.example", "joe@none.example"):
        after = mail(check, sender, ctx=ctx)
        assert after.value(SPF_PASSED) is None
        assert spf_result(after).sender == sender
    assert mail(check, "", ctx=ctx).value(SPF_PASSED) == "pass.example"


def test_a_pass_of_helo_says_nothing_of_the_reverse_path(zone):
    ctx = asyncio.run(spf(zone).helo_check(Context(), peer()))
    assert spf_result(ctx).identity == "helo"
    assert ctx.value(SPF_PASSED) is None
    after = mail(spf(zone, on_fail="mark"), "joe@fail.example", ctx=ctx)
    assert spf_result(after).result == "fail"


def test_a_result_is_forgotten_with_its_transaction(run, server, zone):
    seen = []

    async def look(ctx, _peer, _address):
        seen.append((spf_result(ctx), ctx.value(SPF_PASSED), results_of(ctx)))

    server.use(Middleware(check_recipient=look), spf(zone).middleware(at="data"))
    run(session(server, "joe@pass.example", "joe@soft.example", "joe@pass.example"))
    assert seen == [(None, None, ())] * 3


@pytest.mark.parametrize(
    ("sender", "options", "reply"),
    [
        ("joe@soft.example", {"on_softfail": "reject"}, "550 5.7.23 SPF softfail: soft.example"),
        ("joe@soft.example", {}, None),
        ("joe@fail.example", {"on_fail": "mark"}, None),
        (
            "joe@wrong.example",
            {"on_permerror": "reject"},
            "550 5.7.24 The SPF record of wrong.example cannot be used: Unknown mechanism found",
        ),
        ("joe@wrong.example", {}, None),
        ("joe@away.example", {}, "451 4.7.24 SPF of away.example cannot be checked now"),
        ("joe@away.example", {"on_temperror": "accept"}, None),
        ("joe@none.example", {"on_softfail": "reject", "on_permerror": "reject"}, None),
    ],
)
def test_what_is_refused_is_what_the_site_wants(zone, sender, options, reply):
    check = spf(zone, **options)
    if reply is None:
        assert spf_result(mail(check, sender)) is not None
        return
    with pytest.raises(SMTPError) as caught:
        mail(check, sender)
    assert str(caught.value).startswith(reply)


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({}, peer(None)),
        ({}, peer("198.51.100.1", username="joe")),
        ({}, peer("198.51.100.1", proxy=ProxyInfo(version=2, local=True))),
        ({"allow": [ip_network("198.51.100.0/24")]}, peer("198.51.100.1")),
        ({"exempt_private": True}, peer("10.0.0.1")),
        ({"exempt_private": True}, peer("::1")),
    ],
)
def test_who_is_left_out_is_not_checked_and_has_no_result_of_another(zone, options, who):
    check = SPF(zone, **{"exempt_private": False, **options})
    assert asyncio.run(check.sender_check(Context(), who, "joe@fail.example")) is None
    assert asyncio.run(check.helo_check(Context(), who)) is None
    assert not zone.asked


def test_who_is_left_out_from_now_on_has_no_result_of_before(zone):
    check = spf(zone)
    ctx = mail(check, "joe@pass.example")
    after = mail(check, "joe@pass.example", ctx=ctx, peer=peer(username="joe"))
    assert (spf_result(after), after.value(SPF_PASSED), results_of(after)) == (None, None, ())


def test_plain_checks_refuse_too(run, server, zone):
    server.use(check_helo(spf(zone).helo_check))
    assert run(session(server, helo="fail.example"))[0][0] == 550
    for lifted in (check_sender(spf(zone).sender_check), check_data(spf(zone).data_check)):
        other = Server(hostname="mx.example.com", handler=Recorder())
        other.use(lifted)
        codes = [code for code, _ in run(session(other, "joe@fail.example", "joe@pass.example"))]
        assert codes == [250, 550, 250]


def test_without_a_resolver_it_has_one_of_its_own_for_as_long_as_it_runs(run):
    check = SPF(exempt_private=False)
    server = Server(hostname="mx.example.com", handler=Recorder())
    server.use(check.middleware())

    async def scenario():
        async with running(server):
            first = await check._look_ups.ready()
            assert await check._look_ups.ready() is first
            assert first.servers
        # Another loop, or another start: another resolver.
        async with running(server):
            assert await check._look_ups.ready() is not first

    run(scenario())


def test_a_resolver_that_never_answers_costs_its_session_the_deadline_and_others_nothing(run):
    class Silent(Zone):
        async def wait(self, name):
            if name == "slow.example":
                await asyncio.Event().wait()

    zone = Silent({"pass.example": [("TXT", "v=spf1 ip4:127.0.0.1 -all")]})
    server = Server(hostname="mx.example.com", handler=Recorder())
    server.use(spf(zone, timeout=0.5).middleware())

    async def scenario():
        async with running(server) as address:
            slow = await Client.connect(address)
            await slow.hello()
            await slow.send(b"MAIL FROM:<joe@slow.example>\r\n")
            async with await Client.connect(address) as client:
                await client.hello()
                for _ in range(20):
                    reply = await client.command("MAIL FROM:<joe@pass.example>")
                    assert reply.code == 250
                    await client.command("RSET")
            reply = await slow.reply()
            assert (reply.code, reply.text[:6]) == (451, "4.7.24")
            # It may go on.
            assert (await slow.command("MAIL FROM:<joe@pass.example>")).code == 250
            await slow.close()

    run(scenario())


def test_an_error_of_the_dns_defers(zone):
    class Away(Zone):
        async def wait(self, _name):
            raise DNSTimeout("127.0.0.1:53: no answer in time")

    with pytest.raises(SMTPError) as caught:
        mail(spf(Away()), "joe@pass.example")
    # Where this server asks is nobody's business.
    assert str(caught.value) == (
        "451 4.7.24 SPF of pass.example cannot be checked now, try again later"
    )


# --- the header -----------------------------------------------------------------------------------


def result(**changes):
    return SPFResult(
        "pass", "mailfrom", "example.org", "joe@example.org", "h.example", CLIENT, "ip4:1.2.3.4"
    )._replace(**changes)


def test_what_a_client_or_a_domain_says_opens_no_line_of_the_header():
    evil = '"\\\r\nX: y(\x00;)\u2028'
    field = received_spf(
        result(sender=f"{evil}@example.org", helo=evil, domain=evil, reason=evil, matched=True),
        "mx.example.com",
    )
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert field.count(b"\r") == field.count(b"\n") == len(lines)
    assert b"\x00" not in field
    assert lines[0].count(b"(") == lines[0].count(b")") == 1
    assert b'helo="\\"\\\\??X: y(?;)?"' in field


def test_a_line_of_the_header_is_never_too_long():
    field = received_spf(
        result(
            sender='"' * 255 + "@" + "a" * 255, helo="\\" * 2000, reason='"' * 200, matched=True
        ),
        "m" * 255,
    )
    assert max(map(len, field.split(b"\r\n"))) < 998


def test_an_ipv6_address_is_quoted_and_utf8_is_written_where_it_may_stand():
    found = result(sender="jürgen@example.org", address=ip_address("2001:db8::1"))
    assert b'client-ip="2001:db8::1"' in received_spf(found, "mx.example.com")
    assert b'envelope-from="j?rgen@example.org"' in received_spf(found, "mx.example.com")
    assert "jürgen".encode() in received_spf(found, "mx.example.com", utf8=True)
    # No term matched.
    assert b"mechanism=default\r\n" in received_spf(result(result="neutral"), "mx.example.com")


def test_the_log_has_each_result_on_its_transactions_line(run, zone):
    lines = []
    server = Server(
        hostname="mx.example.com", handler=Recorder(), access_log=AccessLog(lines.append)
    )
    server.use(spf(zone).middleware(at="helo"), spf(zone).middleware())
    run(session(server, "joe@soft.example", "joe@fail.example"))
    marked, refused = [line for line in lines if "event=transaction" in line]
    assert 'results="spf=pass(helo) spf=softfail(mailfrom)"' in marked
    # The reply says it.
    assert "by=spf" in refused
    assert "5.7.23 SPF fail: fail.example" in refused
