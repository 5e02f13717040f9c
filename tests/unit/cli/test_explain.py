"""preforkmx explain: what it shows of each hook, what it leaves alone, how it exits."""

from __future__ import annotations

import json
import sys
from textwrap import dedent

import pytest
from click.testing import CliRunner

from preforkmx.app.demo_files import make_certificate
from preforkmx.cli import main

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "127.0.0.1:2525"
[admin]
control = "control.sock"
[state]
url = "local:"
{more}
[delivery]
use = "maildir"
path = "mail"
"""

CLIENT = ("--ip", "192.0.2.1", "--helo", "mail.example.org", "--from", "joe@example.org")
TO_ANN = (*CLIENT, "--rcpt", "ann@example.com")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Write a configuration with these tables, and a module of the site's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(more="", code=""):
        (tmp_path / "preforkmx.toml").write_text(SITE.format(more=more))
        if code:
            (tmp_path / "explained_site.py").write_text(dedent(code))

    yield write
    sys.modules.pop("explained_site", None)


def run(*arguments, status=0, octets=None):
    result = CliRunner().invoke(main, ["explain", *arguments], input=octets)
    assert result.exit_code == status, result.output
    return result.output


def run_json(*arguments, **options):
    return json.loads(run("--json", *arguments, **options))


def phase(document, name):
    return [each for each in document["phases"] if each["phase"] == name][-1]


def test_a_message_that_would_be_taken_is_shown_to_its_end_and_delivered_to_nobody(site, tmp_path):
    site()
    lines = run(*TO_ANN).splitlines()
    assert lines[0] == "connection from 192.0.2.1"
    assert "RCPT <ann@example.com>" in lines
    assert any("domains  passes" in line for line in lines)
    assert any("would have" in line and "ann@example.com" in line for line in lines)
    assert lines[-1].startswith("accepted: 250 2.0.0 Ok: queued as ")
    assert not (tmp_path / "mail").exists()


def test_who_refuses_is_named_and_who_would_have_come_after_is_not_asked(site):
    site('[[middleware]]\nuse = "greylist"')
    document = run_json(*CLIENT, "--rcpt", "ann@example.net", status=1)
    reply = "550 5.7.1 Relaying denied: mail for this domain is not taken here"
    assert (document["verdict"], document["by"], document["reply"]) == ("refused", "domains", reply)
    rcpt = phase(document, "rcpt")
    assert rcpt["not_asked"] == ["greylist"]
    [hook] = rcpt["hooks"]
    assert (hook["name"], hook["hook"], hook["verdict"], hook["reply"]) == (
        "domains",
        "check_recipient",
        "refuses",
        reply,
    )
    assert document["delivery"] is None
    assert any("verdict=refused" in line for line in document["log"])


def test_a_client_that_has_to_wait_is_deferred_and_one_that_is_known_is_not(site):
    site('[[middleware]]\nuse = "greylist"')
    document = run_json(*TO_ANN, status=1)
    assert (document["verdict"], document["by"]) == ("deferred", "greylist")
    why = phase(document, "rcpt")["hooks"][-1]["why"]
    assert why == ["new: 192.0.2.0/24 <joe@example.org> <ann@example.com>"]
    assert any("as if nobody were known" in note for note in document["notes"])
    assert run_json(*TO_ANN, "--known")["verdict"] == "accepted"


def test_some_of_several_recipients_is_not_all_of_them(site):
    site()
    output = run(*TO_ANN, "--rcpt", "joe@example.net", status=1)
    assert output.splitlines()[-1].startswith("accepted for 1 of 2: 250 ")
    assert run_json(*TO_ANN, "--rcpt", "joe@example.net", status=1)["verdict"] == "partly"


def test_results_and_header_fields_that_a_hook_adds_or_removes_are_shown(site, tmp_path):
    site(
        '[[middleware]]\nuse = "explained_site:found"\n'
        '[[middleware]]\nuse = "authentication_results"',
        """
        from preforkmx import Middleware
        from preforkmx.middleware import Result, with_result

        async def find(ctx, peer, address):
            ctx.logger.info("looked at %s", address)
            return with_result(ctx, Result("iprev", "pass", (("policy.iprev", "192.0.2.1"),)))

        found = Middleware(check_sender=find, name="found")
        """,
    )
    message = tmp_path / "message"
    message.write_text("Authentication-Results: mx.example.com; spf=pass\nSubject: x\n\nBody\n")
    document = run_json(*TO_ANN, str(message))
    [hook] = phase(document, "mail")["hooks"]
    assert hook["effects"] == ["sets result iprev=pass policy.iprev=192.0.2.1"]
    assert hook["why"] == ["looked at joe@example.org"]
    writer, delivery = phase(document, "message")["hooks"]
    assert sorted(writer["effects"]) == [
        "adds header Authentication-Results: mx.example.com; iprev=pass policy.iprev=192.0.2.1",
        "removes header Authentication-Results: mx.example.com; spf=pass",
    ]
    assert delivery["effects"] == []
    assert document["delivery"]["recipients"] == ["ann@example.com"]


def test_a_hook_that_crashes_is_shown_with_its_stack_and_what_the_client_gets(site):
    site(
        '[[middleware]]\nuse = "explained_site:broken"',
        """
        from preforkmx import Middleware

        async def break_down(ctx, peer, address):
            raise RuntimeError("oh no")

        broken = Middleware(check_recipient=break_down, name="broken")
        """,
    )
    document = run_json(*TO_ANN, status=1)
    assert document["by"] == "broken"
    assert document["reply"] == "451 4.3.0 Internal error, try again later"
    hook = phase(document, "rcpt")["hooks"][-1]
    assert hook["verdict"] == "crashes"
    assert "in break_down" in hook["stack"]
    assert "RuntimeError: oh no" in hook["stack"]
    assert "RuntimeError: oh no" in run(*TO_ANN, status=1)


def test_a_hook_that_does_not_start_is_named_with_its_stack_and_status_3(site):
    site(
        '[[middleware]]\nuse = "explained_site:late"',
        """
        from contextlib import asynccontextmanager
        from preforkmx import Middleware

        @asynccontextmanager
        async def connect():
            raise OSError("nobody there")
            yield

        late = Middleware(lifespan=connect, name="late")
        """,
    )
    output = run(*TO_ANN, status=3)
    assert "OSError: nobody there" in output
    assert output.splitlines()[-1] == "late could not start: a worker would not boot"


def test_a_wrong_configuration_is_told(site):
    site("[nonsense]")
    assert "nonsense" in run(*TO_ANN, status=2)


def test_tls_and_a_user_are_what_the_hooks_see(site, tmp_path):
    make_certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    site(
        """
        [tls]
        certificate = "certificate.pem"
        key = "key.pem"
        [[middleware]]
        use = "explained_site:users"
        [[middleware]]
        use = "require_auth"
        [[middleware]]
        use = "require_tls"
        """,
        """
        from preforkmx import SMTPError
        from preforkmx.middleware import authenticator

        @authenticator
        async def users(ctx, peer, user, password):
            raise SMTPError(535, "nobody", enhanced=(5, 7, 8))
        """,
    )
    plain = run_json(*TO_ANN, status=1)
    assert plain["reply"].startswith("530 5.7.")
    assert run_json(*TO_ANN, "--user", "ann", status=1)["phases"][-1]["phase"] == "auth"
    document = run_json(*TO_ANN, "--tls", "--user", "ann")
    assert phase(document, "auth")["hooks"][-1]["why"] == [
        "not asked: the password is taken for right"
    ]
    assert "proto=ESMTPSA" in document["log"][0]
    assert "user=ann" in document["log"][0]


def test_the_message_comes_from_standard_input_and_is_sent_as_it_is(site):
    site()
    dots = "Subject: dots\n\n.\n..\n.end\n"
    document = run_json(*TO_ANN, "-", octets=dots)
    assert document["delivery"]["size"] == len(dots) + dots.count("\n")
    bare = run_json(*TO_ANN, "-", octets="Subject: x\r\n\r\nbare\nline\r\n", status=1)
    assert bare["verdict"] == "refused"
    assert bare["by"] is None


def test_a_message_that_is_too_large_is_refused_at_mail(site):
    site('[limits]\nmessage_size = "64KiB"')
    document = run_json(*TO_ANN, "-", octets="x" * 70_000, status=1)
    assert document["phases"][-1]["phase"] == "mail"
    assert document["reply"].startswith("552 5.3.4")


@pytest.mark.parametrize(
    ("option", "value"), [("--ip", "mail.example.org"), ("--helo", "x\r\nRSET")]
)
def test_what_cannot_be_said_is_refused(site, option, value):
    site()
    run(*TO_ANN, option, value, status=2)


def test_the_answers_of_limits_are_looked_up_and_cost_nothing(site):
    site('[[middleware]]\nuse = "rate_limit"\nconnections = "1/hour"\nmessages = "1/hour"')
    for _ in range(2):
        document = run_json(*TO_ANN)
        [hook] = phase(document, "connection")["hooks"]
        assert hook["why"] == ["connections: 1 of 1 left", "messages: 1 of 1 left"]
