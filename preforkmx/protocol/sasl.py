"""SASL PLAIN (RFC 4616) and LOGIN, as exchanges of the server's side (RFC 4954)."""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from base64 import b64decode
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

from preforkmx.protocol import replies

if TYPE_CHECKING:
    from preforkmx.protocol.replies import Reply

RESPONSE_LIMIT = 12288
"""Octets of a line in an exchange (RFC 4954 section 4)."""


MAX_USERNAME = 1024
"""Octets of a user name; a longer one is nobody's."""


class Identity(NamedTuple):
    """Who the client says it is, and its proof."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Identity(username={self.username!r})"


class Exchange(ABC):
    """One exchange: fed with the client's decoded responses until it knows who it is."""

    prompt: Reply
    """The 334 reply that asks for the next response."""

    @abstractmethod
    def respond(self, response: bytes) -> Identity | Reply | None:
        """Take a response: an identity, or the reply that refuses it, or None: ask again."""


class Plain(Exchange):
    """PLAIN: authorization identity NUL authentication identity NUL password."""

    prompt = replies.EMPTY_CHALLENGE

    def respond(self, response: bytes) -> Identity | Reply | None:
        parts = response.split(b"\0")
        if len(parts) != 3:
            return replies.AUTH_BAD_BASE64
        authorize, username, password = parts
        if authorize and authorize != username:
            # Nobody may act for somebody else here.
            return replies.AUTH_FAILED
        return _identity(username, password)


class Login(Exchange):
    """LOGIN: the user name, then the password."""

    def __init__(self) -> None:
        self._username: bytes | None = None
        self.prompt = replies.USERNAME_PROMPT

    def respond(self, response: bytes) -> Identity | Reply | None:
        if self._username is None:
            self._username = response
            self.prompt = replies.PASSWORD_PROMPT
            return None
        return _identity(self._username, response)


def _identity(username: bytes, password: bytes) -> Identity | Reply:
    if not username or not password or len(username) > MAX_USERNAME:
        # RFC 4616 section 2: both have at least one character. There are directories that
        # take an empty password for an anonymous bind, which succeeds.
        return replies.AUTH_FAILED
    if b"\0" in username or b"\0" in password:
        # PLAIN cannot say it, so LOGIN must not.
        return replies.AUTH_FAILED
    try:
        # One user, one spelling (RFC 8265 section 3.3): limits and logs count by it.
        return Identity(normalize("NFC", username.decode()), password.decode())
    except UnicodeDecodeError:
        return replies.AUTH_BAD_BASE64


MECHANISMS: dict[bytes, type[Exchange]] = {b"PLAIN": Plain, b"LOGIN": Login}
"""By their names in upper case, in the order in which EHLO lists them."""


def decode(line: bytes) -> bytes | None:
    """Decode a base64 response, strictly; ``=`` is the empty one; None when it is not base64."""
    if line == b"=":
        return b""
    try:
        octets = b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        return None
    # The library lets padding pass behind a group that is whole (RFC 4648 section 4).
    return octets if len(line) == (len(octets) + 2) // 3 * 4 else None
