"""The lines of MAIL and RCPT with their parameters, as far as a server offers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.errors import LocalProtocolError
from preforkmx.protocol import xtext

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.offers import Offers
    from preforkmx.model import Envelope, RecipientDSN


def missing(envelope: Envelope, offers: Offers, *, verified: bool) -> str | None:
    """Name the extension without which `envelope` cannot be handed to a server; None: none.

    BODY=8BITMIME is not among them: servers that do not offer it let the eighth bit pass, and
    a gateway that rewrites messages breaks their signatures. Neither is DSN: a server without it
    notifies as it always does (RFC 3461 section 5.2.2).

    :param verified: the server's certificate was (RFC 8689 section 4.2.1).
    """
    if envelope.require_tls and not (verified and "REQUIRETLS" in offers):
        return "REQUIRETLS"
    if envelope.body == "BINARYMIME" and "BINARYMIME" not in offers.promises:
        return "BINARYMIME"
    addresses = (envelope.sender, *envelope.recipients)
    if "SMTPUTF8" not in offers and (
        # A transaction that only asked for it may hold headers in UTF-8 (RFC 6531 section 3.2).
        envelope.smtputf8 or not all(map(str.isascii, addresses))
    ):
        return "SMTPUTF8"
    return None


def mail(envelope: Envelope, offers: Offers, *, added: int, vouched: bool) -> str:
    """Return the MAIL command.

    :param added: octets that this server puts in front of the message.
    :param vouched: this client authenticated, so that its AUTH parameter means something
        (RFC 4954 section 5).
    """
    words = [f"MAIL FROM:<{_safe(envelope.sender)}>"]
    if envelope.size is not None and "SIZE" in offers:
        words.append(f"SIZE={envelope.size + added}")
    if envelope.body == "BINARYMIME" or (envelope.body != "7BIT" and "8BITMIME" in offers):
        words.append(f"BODY={envelope.body}")
    if envelope.smtputf8:
        words.append("SMTPUTF8")
    if envelope.require_tls:
        words.append("REQUIRETLS")
    if envelope.auth is not None and vouched and "AUTH" in offers:
        words.append(f"AUTH={xtext.encode(envelope.auth.encode()) or '<>'}")
    if envelope.dsn is not None and "DSN" in offers:
        if envelope.dsn.ret is not None:
            words.append(f"RET={envelope.dsn.ret}")
        if envelope.dsn.envid is not None:
            words.append(f"ENVID={xtext.encode(envelope.dsn.envid.encode())}")
    return " ".join(words)


def rcpt(recipient: str, dsn: RecipientDSN | None, offers: Offers) -> str:
    """Return the RCPT command.

    :param dsn: what the client asked about notifications.
    """
    words = [f"RCPT TO:<{_safe(recipient)}>"]
    if dsn is not None and "DSN" in offers:
        if dsn.notify:
            words.append(f"NOTIFY={','.join(sorted(dsn.notify))}")
        if dsn.original is not None:
            kind, address = dsn.original
            words.append(f"ORCPT={kind};{_original(kind, address)}")
    return " ".join(words)


def _original(kind: str, address: str) -> str:
    if kind != "utf-8":
        return xtext.encode(address.encode())
    # utf-8-addr-xtext (RFC 6533 section 3) is ASCII, so that it fits every transaction.
    return "".join(
        character
        if "!" <= character <= "~" and character not in "+=\\"
        else f"\\x{{{ord(character):X}}}"
        for character in address
    )


def _safe(address: str) -> str:
    """Return an address that cannot end its line; the parser of commands lets no other through.

    :raises LocalProtocolError: a handler before this delivery made one.
    """
    if any(character in address for character in "\r\n\0"):
        raise LocalProtocolError("an address has a line break")
    return address
