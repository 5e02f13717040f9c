"""Paths, and the arguments of MAIL and RCPT around them: against the grammar read by hand."""

from __future__ import annotations

from inputs import Choices
from test_paths_reference import parsed, reference

from preforkmx.protocol import commands
from preforkmx.protocol.events import Mail, Rcpt
from preforkmx.protocol.paths import split_mailbox
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings

TOKENS = (
    b"<a@example.org>",
    b"<@one.example,@two.example:a@b.example>",
    b'"a b\\"c"@',
    b"[192.0.2.1]",
    b"[IPv6:2001:db8::1]",
    b"<>",
    b"<Postmaster>",
    b"x" * 63,
    b"\xc3\xbc",
    b"\xe3\x80\x82",
    b"\xc5\xbf",
    b"\xe2\x80\xae",
    b" SIZE=10",
    b" BODY=8BITMIME",
    b" BODY=BINARYMIME",
    b" SMTPUTF8",
    b" REQUIRETLS",
    b" RET=HDRS",
    b" ENVID=a+2Bb",
    b" AUTH=<>",
    b" AUTH=a@b.example",
    b" NOTIFY=SUCCESS,DELAY",
    b" NOTIFY=NEVER",
    b" ORCPT=rfc822;a@b.example",
    b" ORCPT=utf-8;\\x{FC}@b.example",
)
OUTCOMES = {"refused", "mail", "rcpt"}
COUNT = 3000

SETTINGS = Settings(
    hostname="mx.example.com",
    message_size=1000,
    auth=True,
    allow_insecure_auth=True,
    smtputf8=True,
    dsn=True,
    requiretls=True,
)


def check(data: bytes) -> str:
    choices = Choices(data)
    kind = choices.octet()
    rcpt, smtputf8, tls = bool(kind & 1), bool(kind & 2), bool(kind & 4)
    octets = choices.rest()
    text = octets.decode("utf-8", "replace")
    for utf8 in (False, True):
        path, expected = parsed(text, utf8=utf8), reference(text, utf8=utf8)
        # Of two reasons to refuse a path, either is right.
        assert path == expected or (isinstance(path, str) and isinstance(expected, str))
    event: object
    if rcpt:
        event = commands.rcpt(b"TO:" + octets, SETTINGS, smtputf8=smtputf8)
    else:
        event = commands.mail(b"FROM:" + octets, SETTINGS, tls=tls)
    if type(event) is Reply:
        assert event.code >= 500
        return "refused"
    line = octets.decode().lstrip(" ")
    assert isinstance(event, Rcpt if rcpt else Mail)
    _check_path(event, line)
    _check_keywords(line)
    if isinstance(event, Mail):
        _check_mail(event, line, tls=tls)
        return "mail"
    assert isinstance(event, Rcpt)
    if event.dsn is not None and event.dsn.original is not None:
        assert _stands_in_a_line(event.dsn.original[1])
    assert smtputf8 or line.isascii()
    return "rcpt"


def _check_path(event: Mail | Rcpt, line: str) -> None:
    expected = reference(line, utf8=not line.isascii())
    assert isinstance(expected, tuple)
    path, end = expected
    assert line[end : end + 1] in ("", " ")
    if isinstance(event, Rcpt) and "@" not in path:
        path += "@mx.example.com"
    assert event.path == path
    assert _stands_in_a_line(path)
    local, domain = split_mailbox(path)
    assert len(local.encode()) <= 255
    assert len(domain.encode()) <= 255


def _check_keywords(line: str) -> None:
    parameters = line[line.rindex(">") + 1 :] if "AUTH=<" not in line.upper() else ""
    keywords = [word.partition("=")[0].upper() for word in parameters.split(" ") if word]
    assert len(keywords) == len(set(keywords))


def _check_mail(event: Mail, line: str, *, tls: bool) -> None:
    parameters = event.parameters
    assert parameters.smtputf8 or line.isascii()
    assert parameters.size is None or 0 <= parameters.size <= 1000
    assert parameters.body in ("7BIT", "8BITMIME", "BINARYMIME")
    assert parameters.ret in (None, "FULL", "HDRS")
    assert tls or not parameters.require_tls
    for text in (parameters.auth, parameters.envid):
        assert text is None or _stands_in_a_line(text)
        assert text is None or parameters.smtputf8 or text.isascii()


def _stands_in_a_line(text: str) -> bool:
    return not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)
