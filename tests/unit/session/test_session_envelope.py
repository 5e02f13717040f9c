"""What MAIL, RCPT and VRFY say, as hooks and handlers see it; and what is offered at all."""

from __future__ import annotations

import pytest

from preforkmx import Middleware, Server, SMTPError, Verification
from preforkmx.middleware.base import PROMISES
from preforkmx.testing import Client, Recorder, running

LOGIN = "AUTH PLAIN AGpvZQBzZWNyZXQ="
OPTIONS = {"smtputf8": True, "dsn": True, "requiretls": True}


@pytest.fixture
def recorder():
    return Recorder(authenticate=True)


def converse(run, server, dialogue, *, client_tls=None):
    async def test():
        async with (
            running(server, tls="implicit" if client_tls else "starttls") as address,
            await Client.connect(address, tls=client_tls) as client,
        ):
            return await dialogue(client)

    return run(test())


def envelope_of(run, recorder, mail, *rcpts, login=False, client_tls=None, **options):
    async def dialogue(client):
        await client.hello()
        if login:
            assert (await client.command(LOGIN)).code == 235
        assert (await client.command(f"MAIL FROM:{mail}")).code == 250
        for rcpt in rcpts or ("<b@example.com>",):
            assert (await client.command(f"RCPT TO:{rcpt}")).code == 250
        assert (await client.command("BDAT 0 LAST")).code == 250

    server = Server(handler=recorder, allow_insecure_auth=True, **{**OPTIONS, **options})
    converse(run, server, dialogue, client_tls=client_tls)
    return recorder.of("handler")[0].arguments[0]


# --- parameters -----------------------------------------------------------------------------------


def test_a_plain_transaction_asks_for_nothing(run, recorder):
    envelope = envelope_of(run, recorder, "<a@example.org>")
    assert (envelope.size, envelope.body, envelope.auth) == (None, "7BIT", None)
    assert (envelope.smtputf8, envelope.require_tls, envelope.dsn) == (False, False, None)


def test_everything_that_mail_and_rcpt_say_is_in_the_envelope(run, recorder):
    envelope = envelope_of(
        run,
        recorder,
        "<a@example.org> SIZE=100 BODY=binarymime SMTPUTF8 RET=hdrs ENVID=a+2Bb AUTH=c@example.org",
        "<b@example.com> NOTIFY=success,FAILURE ORCPT=rfc822;b+2Bx@example.com",
        "<c@example.com>",
        "<d@example.com> NOTIFY=NEVER",
        login=True,
    )
    assert (envelope.size, envelope.body, envelope.smtputf8) == (100, "BINARYMIME", True)
    assert envelope.auth == "c@example.org"
    dsn = envelope.dsn
    assert (dsn.ret, dsn.envid) == ("HDRS", "a+b")
    assert list(dsn.recipients) == ["b@example.com", "d@example.com"]
    asked = dsn.recipients["b@example.com"]
    assert asked.notify == {"SUCCESS", "FAILURE"}
    assert asked.original == ("rfc822", "b+x@example.com")
    assert dsn.recipients["d@example.com"].notify == {"NEVER"}


def test_a_recipient_may_ask_where_mail_did_not(run, recorder):
    envelope = envelope_of(run, recorder, "<>", "<b@example.com> NOTIFY=DELAY")
    assert (envelope.dsn.ret, envelope.dsn.envid) == (None, None)
    assert envelope.dsn.recipients["b@example.com"].notify == {"DELAY"}


def test_what_one_transaction_asked_is_not_in_the_next(run, recorder):
    async def dialogue(client):
        await client.hello()
        for parameters in (" SMTPUTF8 RET=FULL BODY=8BITMIME SIZE=5", ""):
            await client.command(f"MAIL FROM:<a@example.org>{parameters}")
            await client.command("RCPT TO:<b@example.com>")
            assert (await client.command("BDAT 0 LAST")).code == 250

    converse(run, Server(handler=recorder, **OPTIONS), dialogue)
    second = recorder.of("handler")[1].arguments[0]
    assert (second.smtputf8, second.dsn, second.body, second.size) == (False, None, "7BIT", None)


@pytest.mark.parametrize(
    ("login", "said", "auth"),
    [
        (True, " AUTH=c@example.org", "c@example.org"),
        (True, " AUTH=<>", ""),
        (True, "", None),
        (False, " AUTH=c@example.org", ""),
        (False, " AUTH=<>", ""),
        (False, "", None),
    ],
)
def test_auth_of_a_client_that_did_not_authenticate_is_nobody(run, recorder, login, said, auth):
    assert envelope_of(run, recorder, f"<a@example.org>{said}", login=login).auth == auth


def test_requiretls_is_asked_under_tls_only(run, recorder, server_tls, client_tls):
    async def plain(client):
        await client.hello()
        return (await client.command("MAIL FROM:<> REQUIRETLS")).code

    assert converse(run, Server(tls=server_tls, **OPTIONS), plain) == 555
    envelope = envelope_of(run, recorder, "<> REQUIRETLS", tls=server_tls, client_tls=client_tls)
    assert envelope.require_tls


def test_smtputf8_addresses_are_what_the_client_wrote(run, recorder):
    envelope = envelope_of(
        run, recorder, "<jos\xe9@ex\xe4mple.org> SMTPUTF8", "<\u03b4\u03bf\u03ba@example.com>"
    )
    assert envelope.sender == "jos\xe9@ex\xe4mple.org"
    assert envelope.recipients == ["\u03b4\u03bf\u03ba@example.com"]


# --- what is offered ------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", sorted(PROMISES))
@pytest.mark.parametrize("wished", [True, False])
@pytest.mark.parametrize("kept", ["all", "this", "others", "none"])
def test_an_extension_is_offered_where_it_is_wished_and_can_be_kept(
    run, server_tls, client_tls, extension, wished, kept
):
    wish = {
        "BINARYMIME": {"chunking": wished},
        "DSN": {"dsn": wished},
        "REQUIRETLS": {"requiretls": wished},
        "SMTPUTF8": {"smtputf8": wished},
    }[extension]
    extensions = {
        "all": None,
        "this": frozenset({extension}),
        "others": PROMISES - {extension},
        "none": frozenset(),
    }[kept]
    parameter = {
        "BINARYMIME": "BODY=BINARYMIME",
        "DSN": "RET=FULL",
        "REQUIRETLS": "REQUIRETLS",
        "SMTPUTF8": "SMTPUTF8",
    }[extension]

    async def dialogue(client):
        lines = (await client.hello()).lines
        return lines, (await client.command(f"MAIL FROM:<a@example.org> {parameter}")).code

    delivery = Middleware(extensions=extensions)
    server = Server(tls=server_tls, handler=delivery, **{**OPTIONS, **wish})
    lines, code = converse(run, server, dialogue, client_tls=client_tls)
    offered = wished and kept in ("all", "this")
    assert (extension in lines) is offered
    assert (code == 250) is offered
    # Chunks promise nothing of the way after this server.
    assert ("CHUNKING" in lines) is (wished or extension != "BINARYMIME")


def test_middleware_before_the_delivery_promises_nothing(run):
    async def dialogue(client):
        return (await client.hello()).lines

    server = Server(**OPTIONS)
    server.use(Middleware(extensions=frozenset()))
    assert {"SMTPUTF8", "DSN", "BINARYMIME"} <= set(converse(run, server, dialogue))


# --- VRFY -----------------------------------------------------------------------------------------


def verify(run, mailbox, command="VRFY joe", *, greeting="EHLO x", **options):
    """Say `command` to a server whose verify hook names `mailbox`; return its raw answer."""

    async def hook(ctx, peer, text):
        asked.append(text)
        return mailbox if not isinstance(mailbox, str) else Verification(mailbox)

    async def dialogue(client):
        await client.reply()
        await client.command(greeting)
        await client.send(command.encode() + b"\r\nQUIT\r\n")
        return (await client.rest()).partition(b"\r\n221 ")[0].decode()

    asked = []
    server = Server(**options)
    server.use(Middleware(verify=hook))
    return converse(run, server, dialogue), asked


def test_a_mailbox_in_utf8_is_named_to_who_asked_for_smtputf8(run):
    answer, asked = verify(run, "jos\xe9@ex\xe4mple.org", "VRFY jos\xe9 SMTPUTF8", smtputf8=True)
    assert (answer, asked) == ("250 2.1.5 <jos\xe9@ex\xe4mple.org>", ["jos\xe9"])


@pytest.mark.parametrize("smtputf8", [True, False])
def test_a_mailbox_in_utf8_is_not_named_to_others(run, smtputf8):
    answer, _ = verify(run, "jos\xe9@example.org", smtputf8=smtputf8)
    # RFC 6531 section 3.7.4.2.
    assert answer == "252 2.6.8 The answer needs SMTPUTF8 (RFC 6531)"


def test_an_ascii_mailbox_is_named_with_and_without_smtputf8(run):
    for command in ("VRFY joe", "VRFY joe SMTPUTF8"):
        answer, asked = verify(run, "joe@example.org", command, smtputf8=True)
        assert (answer, asked) == ("250 2.1.5 <joe@example.org>", ["joe"])


@pytest.mark.parametrize(
    "mailbox",
    ['"joe smith"@example.org', "joe@[192.0.2.1]", "joe+tag@a_b.example", '"a\\"b"@example.org'],
)
def test_every_mailbox_of_the_grammar_is_one(run, mailbox):
    assert verify(run, mailbox)[0] == f"250 2.1.5 <{mailbox}>"


@pytest.mark.parametrize(
    "mailbox",
    [
        "",
        "joe",
        "postmaster",
        "Joe Smith <joe@example.org>",
        "joe@example.org> <evil@example.org",
        "<joe@example.org>",
        "@a.example:joe@example.org",
        "joe@example.org\r\n250 evil",
        "joe@example.org ",
        "joe@\u202eexample.org",
        "joe@" + "x" * 300,
        "joe@-example.org",
    ],
)
def test_what_is_no_mailbox_is_not_named(run, caplog, mailbox):
    answer, _ = verify(run, mailbox, "VRFY joe SMTPUTF8", smtputf8=True)
    assert answer == "252 2.5.0 Cannot VRFY the user, but will take messages for it"
    assert [record.getMessage() for record in caplog.records] == ["hook named no mailbox"]


def test_a_verify_hook_that_returns_something_else_has_crashed(run, caplog):
    answer, _ = verify(run, 7)
    assert answer.startswith("502 ")
    assert isinstance(caplog.records[0].exc_info[1], TypeError)


def test_a_verify_hook_may_refuse(run):
    async def refuse(ctx, peer, text):
        raise SMTPError(550, "No such user", enhanced=(5, 1, 1))

    async def dialogue(client):
        await client.hello()
        return (await client.command("VRFY joe")).text

    server = Server()
    server.use(Middleware(verify=refuse))
    assert converse(run, server, dialogue) == "5.1.1 No such user"
