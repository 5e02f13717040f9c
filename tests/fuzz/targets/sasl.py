"""AUTH: the exchanges themselves against their grammar, and a session that says nothing of what
the client sent in one.
"""

from __future__ import annotations

import binascii
import unicodedata
from base64 import b64decode, b64encode

from dialogues.caller import Caller
from inputs import Choices, pieces

from preforkmx.protocol import replies, sasl
from preforkmx.protocol.events import Credentials
from preforkmx.protocol.sasl import Identity, Login, Plain
from preforkmx.protocol.settings import Settings

TOKENS = (
    b"\0user\0secret word",
    b"user\0user\0secret word",
    b"a\0",
    b"\0",
    b"*",
    b"=",
    b"\n",
    b"\n\n",
    b"\xff",
    b"\xc3\xbc",
    b"AGEAYg==",
    b"AGEAYg=",
    b"AUTH PLAIN AGEAYg==",
    b"RSET",
)
OUTCOMES = {"identity", "refused", "asked", "no base64"}
COUNT = 4000

SETTINGS = Settings(
    hostname="mx.example.com", auth=True, allow_insecure_auth=True, auth_failures=3, errors=50
)
MAX_USERNAME = 1024
SECRET = b"Zq7!never-to-be-seen"


def check(data: bytes) -> str:
    choices = Choices(data)
    kind, cut = choices.octet(), choices.octet()
    responses = choices.rest().split(b"\n")
    _check_session(responses, kind, cut)
    raw = responses[0]
    response = sasl.decode(raw)
    assert response == _decoded(raw)
    outcome = _check_exchanges(responses)
    return "no base64" if response is None and kind & 128 else outcome


def _decoded(line: bytes) -> bytes | None:
    """Decode base64 by writing it again: each octet string has one spelling."""
    if line == b"=":
        return b""
    try:
        octets = b64decode(line)
    except binascii.Error:
        return None
    # The last bits of a final group that is not whole are nobody's (RFC 4648 section 3.5).
    again = b64encode(octets)
    body = line.rstrip(b"=")
    same = len(again) == len(line) and again.rstrip(b"=")[:-1] == body[:-1]
    alphabet = all(chr(octet).isalnum() or octet in b"+/" for octet in body) and body.isascii()
    return octets if same and alphabet and len(body) == len(again.rstrip(b"=")) else None


def _check_exchanges(responses: list[bytes]) -> str:
    """Plain takes the first response, Login the first two."""
    result = Plain().respond(responses[0])
    parts = responses[0].split(b"\0")
    good = len(parts) == 3 and parts[0] in (b"", parts[1])
    identity = _identity(parts[1], parts[2]) if good else None
    _compare(result, identity)
    login = Login()
    assert login.prompt is replies.USERNAME_PROMPT
    assert login.respond(responses[0]) is None
    assert login.prompt is replies.PASSWORD_PROMPT
    if len(responses) > 1:
        identity = _identity(responses[0], responses[1])
        _compare(login.respond(responses[1]), identity)
        return "refused" if identity is None else "identity"
    return "asked" if identity is None else "identity"


def _identity(username: bytes, password: bytes) -> Identity | None:
    if not (username and password and len(username) <= MAX_USERNAME):
        return None
    try:
        name, word = username.decode(), password.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in name + word else Identity(unicodedata.normalize("NFC", name), word)


def _compare(result: Identity | replies.Reply | None, expected: Identity | None) -> None:
    if expected is None:
        assert result in (replies.AUTH_FAILED, replies.AUTH_BAD_BASE64)
    else:
        assert result == expected


def _check_session(responses: list[bytes], kind: int, cut: int) -> None:
    """Run the responses in a session: those of an exchange stand in no trace and no reply."""
    login, initial, coded = kind & 1, kind & 2, not kind & 4
    lines = [b64encode(response + SECRET) if coded else response for response in responses]
    if not coded:
        # As they are, but for what would be two lines, or a wrong one.
        lines = [line.replace(b"\r", b"") for line in lines]
    stream = b"EHLO a.example\r\nAUTH " + (b"LOGIN" if login else b"PLAIN")
    stream += b" " if initial else b"\r\n"
    stream += b"".join(line + b"\r\n" for line in lines)
    caller = Caller(SETTINGS, lambda _phase, _argument: None)
    caller.connect()
    for piece in pieces(stream, cut):
        if caller.core.closed:
            break
        caller.send(piece)
        assert caller.core.buffered <= sasl.RESPONSE_LIMIT
    seen = b"\n".join(caller.traced) + caller.output
    if coded:
        # What the client sent in vain, where no exchange was left, is hidden too.
        assert SECRET not in seen
        for line in lines:
            assert line not in seen
        # Behind its last response an exchange takes no line.
        assert caller.traced.count(b"<credentials>") <= (2 if login else 1)
    credentials = [event for event in caller.happened if type(event) is Credentials]
    # A second one needs another AUTH, which is refused behind an accepted one.
    assert len(credentials) <= 1
    for event in credentials:
        assert event.username
        assert event.password
        shown = f"Credentials(username={event.username!r}, mechanism={event.mechanism!r})"
        assert repr(event) == shown
        assert event.mechanism == ("LOGIN" if login else "PLAIN") or not coded
        if coded:
            octets = [response + SECRET for response in responses]
            told = octets if login else octets[0].split(b"\0")[1:]
            assert (event.username, event.password) == _identity(told[0], told[1])
