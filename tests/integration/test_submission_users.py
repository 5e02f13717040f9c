"""A submission server: real clients authenticate against the file of users."""

from __future__ import annotations

import base64
import smtplib
import ssl
import subprocess

import pytest
import trustme

from preforkmx.middleware.passwords import hash_password, prepare_password
from tests.integration.mx import COMMAND, program, serving

pytestmark = pytest.mark.integration

SITE = """
hostname = "submit.example.com"
domains = ["*"]
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
[tls]
certificate = "chain.pem"
key = "key.pem"
[log]
level = "debug"
[[middleware]]
use = "users"
file = "users"
threads = 1
[[middleware]]
use = "require_auth"
"""
JOE, ANN = "s3cret of joe", "pa\u00df\u03c9\u00f3rd"


def write_users(directory, **passwords):
    lines = [
        f"{name}:{hash_password(prepare_password(each))}\n" for name, each in passwords.items()
    ]
    new = directory / "users.new"
    new.touch(0o600)
    new.write_text("".join(lines))
    new.rename(directory / "users")


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    directory = tmp_path_factory.mktemp("submission")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(directory / "chain.pem", append=True)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    write_users(directory, joe=JOE, ann=ANN)
    with serving(directory, SITE) as mx:
        yield mx


def swaks(mx, *arguments, implicit=False):
    return subprocess.run(
        [
            program("swaks"),
            *("--server", "127.0.0.1", "--port", str(mx.ports[implicit])),
            *("--tls-on-connect" if implicit else "--tls",),
            *("--helo", "client.example", "--from", "joe@example.com", "--body", "hello"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def messages_for(mx, recipient):
    return list((mx.mail / "example.org" / recipient / "new").glob("*"))


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit TLS"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_authenticates_and_sends_anywhere(submission, mechanism, implicit):
    """The right password opens the server, also for domains that are not its own."""
    recipient = f"{mechanism.lower()}-{int(implicit)}"
    result = swaks(
        submission,
        *("--auth", mechanism, "--auth-user", "joe", "--auth-password", JOE),
        *("--to", f"{recipient}@example.org"),
        implicit=implicit,
    )
    assert result.returncode == 0, result.stdout
    assert "235 2.7.0" in result.stdout
    [message] = messages_for(submission, recipient)
    assert "with ESMTPSA id" in message.read_text()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_is_told_the_same_for_a_wrong_password_and_an_unknown_user(submission, mechanism):
    """And sends nothing."""
    refusals = []
    for user, password in (("joe", "wr0ng"), ("nobody", JOE)):
        result = swaks(
            submission,
            *("--auth", mechanism, "--auth-user", user, "--auth-password", password),
            *("--to", "refused@example.org"),
        )
        assert result.returncode != 0
        refusals.append([line for line in result.stdout.splitlines() if " 535 " in line])
    assert refusals[0] == refusals[1]
    assert refusals[0][0].endswith("535 5.7.8 Authentication credentials invalid")
    assert messages_for(submission, "refused") == []


def test_swaks_without_a_password_is_refused_at_mail(submission):
    result = swaks(submission, "--to", "refused@example.org")
    assert "530 5.7.0" in result.stdout
    assert messages_for(submission, "refused") == []


def connect(mx):
    client = smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=30)
    client.starttls(context=ssl.create_default_context(cafile=mx.directory / "ca.pem"))
    client.ehlo()
    return client


def login(mx, user, password):
    """Return the code of the reply; smtplib's login() knows ASCII only."""
    with connect(mx) as client:
        credentials = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        return client.docmd("AUTH", f"PLAIN {credentials}")[0]


def test_smtplib_authenticates(submission):
    with connect(submission) as client:
        assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login("joe", "wr0ng")
        assert caught.value.smtp_code == 535
        assert client.login("joe", JOE)[0] == 235
        assert client.sendmail("joe@example.com", "smtplib@example.org", "Subject: x\n\nx\n") == {}
    assert len(messages_for(submission, "smtplib")) == 1


def test_a_password_may_be_any_unicode(submission):
    assert login(submission, "ann", ANN) == 235
    # The same with its accent as a character of its own.
    assert login(submission, "ann", "pa\u00df\u03c9o\u0301rd") == 235


def test_auth_is_not_offered_in_plain_text(submission):
    with smtplib.SMTP("127.0.0.1", submission.ports[0], timeout=30) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH", "PLAIN AGpvZQBzZWNyZXQ=")[0] == 538


def test_failures_end_the_session(submission):
    with connect(submission) as client:
        codes = [client.docmd("AUTH", "PLAIN AGpvZQB3cm9uZw==")[0] for _ in range(3)]
    assert codes == [535, 535, 421]


def test_a_reload_reads_the_file_again_and_a_wrong_one_refuses_it(submission):
    """With every reason; the workers go on with the users that they have."""
    right = (submission.directory / "users").read_text()
    users = submission.directory / "users"
    try:
        users.write_text(f"{right}eve:s3cret\njoe\n")
        for verb in ("reload", "check-config"):
            refused = submission.run(verb)
            assert refused.returncode == 2
            assert f"{users}:3: what follows the name is no Argon2 hash" in refused.stderr
            assert f"{users}:4: must be name:hash" in refused.stderr
            assert "s3cret" not in refused.stderr
        assert login(submission, "joe", JOE) == 235

        write_users(submission.directory, joe="an0ther")
        assert submission.run("reload").returncode == 0
        assert login(submission, "joe", "an0ther") == 235
        assert login(submission, "joe", JOE) == 535
        assert login(submission, "ann", ANN) == 535
    finally:
        users.write_text(right)
    assert submission.run("reload").returncode == 0
    assert login(submission, "ann", ANN) == 235


def test_a_server_does_not_start_with_a_file_that_is_wrong(submission, tmp_path):
    for name in ("chain.pem", "key.pem"):
        (tmp_path / name).write_bytes((submission.directory / name).read_bytes())
    config = tmp_path / "preforkmx.toml"
    rest = '[delivery]\nuse = "discard"\n[admin]\naddress = ""\ncontrol = "control.sock"\n'
    config.write_text(SITE + rest)
    (tmp_path / "users").touch(0o600)
    (tmp_path / "users").write_text("joe:s3cret\n")
    result = subprocess.run(
        [*COMMAND, "serve", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert f"{tmp_path}/users:1: what follows the name is no Argon2 hash" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


def test_the_log_has_no_password_in_any_spelling(submission):
    """At the level debug, which shows the dialogue."""
    with connect(submission) as client:
        client.docmd("auth", "\tplain\t" + base64.b64encode(b"\0joe\0t0psecret").decode())
        client.docmd("AUTH", "LOGIN")
        client.docmd(base64.b64encode(b"joe").decode())
        client.docmd(base64.b64encode(b"t0psecret").decode())
    log = submission.log
    assert "credentials" in log
    for secret in (JOE, "wr0ng", "t0psecret", "an0ther"):
        assert secret not in log
        for octets in (secret.encode(), b"\0joe\0" + secret.encode()):
            assert base64.b64encode(octets).decode() not in log
    assert "argon2" not in log
