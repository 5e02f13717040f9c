"""The tables of the built-in deliveries, and of a site's own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (pydantic reads annotations)
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from preforkmx.config.names import (
    Code,
    File,
    Folder,
    HostName,
    NextHops,
    UserName,
)
from preforkmx.config.quantities import (
    Choice,
    Duration,
    Flag,
    Integer,
)
from preforkmx.config.table import Table, by_use

_TIMEOUT = "How long a delivery may take; then the message is answered with 451."
DeliveryTimeout = Annotated[float, Duration(1.0, 3600.0)]


class Maildir(Table):
    """Writes each message into a Maildir, `<path>/<domain>/<local part>/{tmp,new,cur}`.

    It is on stable storage before the 250.
    """

    use: Literal["maildir"] = Field(default="maildir", description="Where messages go.")
    path: Annotated[Path, Folder()] = Field(
        description="The folder that holds the Maildirs.", examples=["/var/mail/preforkmx"]
    )
    timeout: DeliveryTimeout = Field(default=240.0, description=_TIMEOUT)


class Discard(Table):
    """Accepts every message and forgets it: for measurements only."""

    use: Literal["discard"] = Field(description="Where messages go.")
    timeout: DeliveryTimeout = Field(default=240.0, description=_TIMEOUT)


TLSMode = Literal["off", "may", "must", "verify"]
_TLS_MODES = Choice(("off", "may", "must", "verify"))
Forward = Literal["no", "xclient", "proxy"]
_FORWARDS = Choice(("no", "xclient", "proxy"))


class NextHop(Table):
    """What `lmtp` and `smtp` have in common."""

    servers: Annotated[tuple[str, ...], NextHops()] = Field(
        description="Where they are, the one to prefer first. The first that works is asked; one "
        "that failed rests for a second, and twice as long each time, up to a minute. A host may "
        "be a name; no MX records are looked up.",
        examples=[["192.0.2.10:24", "unix:/run/dovecot/lmtp"]],
    )
    tls: Annotated[TLSMode, _TLS_MODES] = Field(
        default="may",
        description='`"may"` uses STARTTLS where it is offered, and takes any certificate; '
        '`"must"` sends nothing without it; `"verify"` also wants a certificate of an authority '
        'that is trusted, for the server\'s name; `"off"` stays in plain text.',
    )
    ca_file: Annotated[Path | None, File()] = Field(
        default=None,
        description="PEM file: the authorities that `verify` trusts. Default: the system's.",
        examples=["ca.pem"],
    )
    tls_name: Annotated[str | None, HostName()] = Field(
        default=None,
        description="The name in the servers' certificates. Default: the host in `servers`.",
        examples=["mail.example.com"],
    )
    certificate: Annotated[Path | None, File()] = Field(
        default=None,
        description="PEM file: this server's certificate, for servers that ask for one.",
        examples=["client.pem"],
    )
    key: Annotated[Path | None, File()] = Field(
        default=None,
        description="PEM file: its key. Default: it is in the file of the certificate.",
        examples=["client-key.pem"],
    )
    user: Annotated[str, UserName()] = Field(
        default="",
        description="Whom to authenticate as, with AUTH PLAIN or LOGIN: under TLS, or to a server "
        "on this machine. Empty: nobody.",
        examples=["mx"],
    )
    password_file: Annotated[Path | None, File()] = Field(
        default=None,
        description="The file whose first line is the password.",
        examples=["password"],
    )
    connections: Annotated[int, Integer(1, 10_000)] = Field(
        default=50,
        description="Connections of one worker at most. One is in use from MAIL to the end of the "
        "message; a client that waits longer than 5 s before its message can lose its connection "
        "to another client, and gets one again when it goes on.",
    )
    idle: Annotated[float, Duration(0.0, 3600.0)] = Field(
        default=30.0,
        description='How long a connection is kept for the next message; `"0s"`: not at all.',
    )
    reuse: Annotated[int, Integer(1, 1_000_000)] = Field(
        default=100, description="Messages that one connection may carry."
    )
    chunking: Annotated[bool, Flag()] = Field(
        default=False,
        description="BDAT instead of DATA where it is offered. A message with BODY=BINARYMIME "
        "goes with BDAT in any case.",
    )
    forward: Annotated[Forward, _FORWARDS] = Field(
        default="no",
        description='How the servers learn who the client is: `"xclient"`, where they offer '
        'XCLIENT; `"proxy"`, a PROXY header (version 2) before everything else, and a connection '
        'for each message; `"no"`.',
    )
    connect_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=30.0, description="For a connection, and for a TLS handshake."
    )
    greeting_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=300.0,
        description="For the greeting, and the replies to EHLO, STARTTLS and AUTH. This one and "
        "those that follow are RFC 5321's, and each is shortened to nine tenths of `timeout`.",
    )
    command_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=300.0, description="For the replies to MAIL, RCPT and RSET."
    )
    data_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=120.0, description="For the reply to DATA."
    )
    block_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=180.0, description="Until the server takes octets of the message again."
    )
    end_timeout: Annotated[float, Duration(0.1, 3600.0)] = Field(
        default=600.0, description="For the reply after the message, or for each of them."
    )
    timeout: DeliveryTimeout = Field(default=240.0, description=_TIMEOUT)


class Lmtp(NextHop):
    """Hands each message to a server over LMTP while it arrives, Dovecot say.

    Its answers to MAIL, RCPT and the message are the client's: docs/explanation/delivery.md.
    """

    use: Literal["lmtp"] = Field(description="Where messages go.")


class Smtp(NextHop):
    """Relays each message to a server over SMTP while it arrives.

    Its answers to MAIL, RCPT and the message are the client's: docs/explanation/delivery.md.
    """

    use: Literal["smtp"] = Field(description="Where messages go.")


class SiteDelivery(Table):
    """A delivery of your own: `MODULE:OBJECT`.

    The object is a handler (a coroutine function), a `Middleware` with one, or something that
    gives either when it is called with the other keys of its table as keyword arguments.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    use: Annotated[str, Code()] = Field(
        description="Where it is.", examples=["mymx.delivery:deliver"]
    )
    timeout: DeliveryTimeout = Field(default=240.0, description=_TIMEOUT)

    @property
    def options(self) -> dict[str, Any]:
        """The table's other keys."""
        return dict(self.model_extra or {})


DELIVERIES: dict[str, type[Table]] = {
    "maildir": Maildir,
    "lmtp": Lmtp,
    "smtp": Smtp,
    "discard": Discard,
}
"""The built-in deliveries by their name."""

AnyDelivery = Annotated[
    Annotated[Maildir, Tag("maildir")]
    | Annotated[Lmtp, Tag("lmtp")]
    | Annotated[Smtp, Tag("smtp")]
    | Annotated[Discard, Tag("discard")]
    | Annotated[SiteDelivery, Tag("site")],
    by_use(DELIVERIES, "maildir"),
]
