"""Every table and key of the configuration, declared once, with its documentation.

The tables that are chosen by their ``use`` are in
:mod:`~preforkmx.config.middleware_tables` and :mod:`~preforkmx.config.delivery_tables`.

The loader reads tables with these models; ``config example``, ``config schema`` and
docs/reference/configuration.md are printed from them. A key that is documented for a later
version stands in its table's ``later`` and is refused as "not yet available".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import Field

from preforkmx.config.delivery_tables import DELIVERIES, AnyDelivery, Maildir, SiteDelivery
from preforkmx.config.kinds import kind_of
from preforkmx.config.middleware_tables import (
    MIDDLEWARE,
    AnyMiddleware,
    DNSListTable,
    SiteMiddleware,
)
from preforkmx.config.names import (
    AccountName,
    DNSServers,
    Domains,
    File,
    HostName,
    HTTPAddress,
    KeyPrefix,
    ListenAddress,
    Networks,
    SocketFile,
    StateURL,
)
from preforkmx.config.quantities import (
    Choice,
    CoreCount,
    Duration,
    Flag,
    Integer,
    Seconds,
    Size,
)
from preforkmx.config.table import Table
from preforkmx.config.values import Network  # noqa: TC001  (pydantic reads annotations)

if TYPE_CHECKING:
    from preforkmx.config.keys import Path as ConfigPath


class Workers(Table):
    """The worker processes."""

    count: Annotated[int | Literal["auto"], CoreCount(1, 1024)] = Field(
        default="auto",
        description='How many worker processes. `"auto"` is one for each core that the process '
        "may use: its affinity and its cgroup's quota count.",
    )
    loop: Annotated[Literal["auto", "uvloop", "asyncio"], Choice(("auto", "uvloop", "asyncio"))] = (
        Field(
            default="auto",
            description='The event loop: `"auto"` is uvloop where it is installed, else asyncio.',
        )
    )
    max_sessions: Annotated[int, Integer(1, 1_000_000)] = Field(
        default=10_000,
        description="Open sessions in each worker; a client beyond them is told 421. It must fit "
        "the process' limit of open files.",
    )
    drain_seconds: Annotated[float, Seconds(0, 86400)] = Field(
        default=60.0,
        description="How long a session inside a transaction may go on after a drain began. Then "
        "it is told 421, and a message that is still arriving is not accepted.",
    )
    lame_duck_seconds: Annotated[float, Seconds(0, 3600)] = Field(
        default=0.0,
        description="For how long TERM and `preforkmx drain` go on serving clients while health "
        "checks are refused, so that a load balancer sends no more of them before the port "
        "closes: its `fall` times its `inter`, and a margin. 0 without a balancer.",
        examples=[10],
    )
    hang_seconds: Annotated[float, Seconds(5, 3600)] = Field(
        default=30.0,
        description="A worker whose event loop stays silent for so long is killed and replaced.",
    )
    recycle_after_messages: Annotated[int, Integer(0, 1_000_000_000)] = Field(
        default=0,
        description="A worker that has accepted about so many messages is replaced, one worker at "
        "a time: the next one is ready before it retires. Each draws its own number, up to a tenth "
        "more or less. For code of a site's that leaks memory. 0 is never.",
        examples=[100_000],
    )
    user: Annotated[str, AccountName("user")] = Field(
        default="",
        description="The user as which everything but the master runs: workers, store and "
        "admin process, and the check before a start or reload. The master, started by root, "
        "stays root, to bind ports and read keys. Files that the site names must be readable, and "
        "its mailboxes writable, for that user. Empty: the user that starts the server.",
        examples=["preforkmx"],
    )
    group: Annotated[str, AccountName("group")] = Field(
        default="",
        description="Its primary group; empty: the user's own. It keeps its supplementary groups.",
        examples=["mail"],
    )


class ListenerTable(Table):
    """One address that takes mail. There may be many."""

    address: Annotated[str, ListenAddress()] = Field(
        description="IP address and port; an IPv6 address stands in brackets. `0.0.0.0` is every "
        "IPv4 address and `[::]` every IPv6 one (and no IPv4 one). Port 0 is any free port; "
        "`preforkmx status` shows which. Or `unix:` and the path of a socket: it has mode 0666, "
        "so whoever may enter its folder may connect; the folder is made if it is missing.",
        examples=["0.0.0.0:25"],
    )
    protocol: Annotated[Literal["smtp", "lmtp"], Choice(("smtp", "lmtp"))] = Field(
        default="smtp",
        description='What is spoken on it: `"smtp"`, or `"lmtp"` (RFC 2033: one reply for each '
        "recipient), for a mail server in front of this one; never on port 25.",
    )
    tls: Annotated[
        Literal["starttls", "implicit", "off"], Choice(("starttls", "implicit", "off"))
    ] = Field(
        default="starttls",
        description='`"starttls"` offers STARTTLS where `[tls]` is given, `"implicit"` begins '
        'with TLS (port 465, RFC 8314), `"off"` stays in plain text.',
    )
    backlog: Annotated[int, Integer(1, 65535)] = Field(
        default=1024,
        description="The length of the queue of connections that no worker has taken yet; the "
        "kernel caps it at net.core.somaxconn.",
    )
    proxy_protocol: Annotated[bool, Flag()] = Field(
        default=False,
        description="Each connection begins with a PROXY header, version 1 or 2, in front of any "
        "TLS; the client is whom it names. A connection without one is closed.",
        examples=[True],
    )
    proxy_from: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(),
        description="The proxies whose headers are believed; others are closed. Required with "
        "`proxy_protocol`, but for a unix socket: there it is everybody who may connect.",
        examples=[["10.0.0.0/8"]],
    )
    xclient_from: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(),
        description="The clients that may use XCLIENT; behind a proxy the address that its header "
        "names counts.",
        examples=[["192.0.2.10"]],
    )


class Tls(Table):
    """The certificate, for STARTTLS and implicit TLS."""

    certificate: Annotated[Path, File()] = Field(
        description="PEM file: the certificate, then the chain that leads to its authority.",
        examples=["fullchain.pem"],
    )
    key: Annotated[Path, File()] = Field(
        description="PEM file: the private key, without a passphrase.", examples=["privkey.pem"]
    )
    minimum_version: Annotated[Literal["1.2", "1.3"], Choice(("1.2", "1.3"))] = Field(
        default="1.2", description="The oldest version of TLS that is spoken."
    )


class Limits(Table):
    """What one session may use."""

    message_size: Annotated[int, Size(1 << 16, 1 << 40)] = Field(
        default=25 << 20,
        description="The largest message, as it comes over the wire. SIZE announces it.",
    )
    recipients: Annotated[int, Integer(100, 1_000_000)] = Field(
        default=1000,
        description="Recipients of one message; a further one is told 452. RFC 5321 wants at "
        "least 100.",
    )
    command_timeout: Annotated[float, Duration(1.0, 86400.0)] = Field(
        default=300.0, description="How long a client may be silent."
    )
    session_time: Annotated[float, Duration(1.0, 7 * 86400.0)] = Field(
        default=3600.0,
        description="How long a session may last; a transaction that is under way is finished.",
    )
    errors: Annotated[int, Integer(1, 1_000_000)] = Field(
        default=20,
        description="Refused commands in one session; at that many it is closed with 421.",
    )
    auth_failures: Annotated[int, Integer(1, 1000)] = Field(
        default=3,
        description="Failed AUTH commands in one session; at that many it is closed with 421.",
    )
    bare_newline: Annotated[Literal["reject", "normalize"], Choice(("reject", "normalize"))] = (
        Field(
            default="reject",
            description="What happens to a CR or LF that stands alone, in commands and messages: "
            '`"reject"` refuses it (a message with 550 5.5.2), because two mail servers may read '
            'it as different messages; `"normalize"` makes a CRLF of it. Only CRLF `.` CRLF ever '
            "ends a message.",
        )
    )
    normalize_from: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(),
        description="Networks whose clients get `normalize` although the others get `reject`.",
        examples=[["192.0.2.0/24"]],
    )
    hops: Annotated[int, Integer(1, 10_000)] = Field(
        default=100,
        description="Received headers of a message; one with more is in a loop, and refused with "
        "554 5.4.6.",
    )
    commands: Annotated[int, Integer(0, 1_000_000)] = Field(
        default=2000,
        description="Commands since the last delivered message, accepted MAIL, RCPT, DATA and "
        "BDAT not counted; beyond them the session is closed with 421. 0 is no limit.",
    )
    transactions: Annotated[int, Integer(0, 1_000_000)] = Field(
        default=0,
        description="Accepted MAIL commands in one session; beyond them it is closed with 421. 0 "
        "is no limit.",
    )
    strict_flights: Annotated[bool, Flag()] = Field(
        default=True,
        description="A client that sends on where it must wait for a reply (after EHLO, DATA, "
        "STARTTLS, AUTH and others; RFC 2920 section 3.1) is refused with 554 5.5.0, and its "
        "session closed.",
    )
    greeting_delay: Annotated[float, Duration(0.0, 60.0)] = Field(
        default=0.0,
        description="How long the greeting waits for a client that talks first: it gets 554 "
        '5.5.0 instead, and is closed. `"0s"` is off.',
    )
    minimum_rate: Annotated[int, Integer(0, 1_000_000)] = Field(
        default=500,
        description="Octets a second that a client must send, over each minute in which this "
        "server waits for its message; a slower one is closed with 421. 0 is off.",
    )


class Extensions(Table):
    """The extensions of SMTP that are offered, where a listener and a client may have them.

    SMTPUTF8 and BINARYMIME are offered only where the delivery can keep their promise.
    """

    smtputf8: Annotated[bool, Flag()] = Field(
        default=True, description="SMTPUTF8 (RFC 6531): addresses and headers in UTF-8."
    )
    dsn: Annotated[bool, Flag()] = Field(
        default=False,
        description="DSN (RFC 3461): the sender says which notifications it wants. Only for a "
        "delivery that sends them, or passes the wish on: `maildir` does neither.",
    )
    chunking: Annotated[bool, Flag()] = Field(
        default=True, description="CHUNKING and BINARYMIME (RFC 3030): BDAT."
    )
    requiretls: Annotated[bool, Flag()] = Field(
        default=False,
        description="REQUIRETLS (RFC 8689), under TLS: the message goes on over verified TLS or "
        "not at all. Only for a delivery that sees to it: `maildir` does not.",
    )


class Dns(Table):
    """How names are looked up, for the checks that need the DNS."""

    servers: Annotated[tuple[str, ...], DNSServers()] = Field(
        default=(),
        description="Resolvers (not authoritative servers), asked in this order; one that does "
        "not answer is left out for a while. An IPv6 address stands in brackets. Empty: those of "
        "/etc/resolv.conf, and without any there 127.0.0.1:53. A resolver on the same machine is "
        "best: block lists refuse the public ones.",
        examples=[["127.0.0.1:53"]],
    )
    timeout: Annotated[float, Duration(0.1, 60.0)] = Field(
        default=4.0,
        description="How long one look-up may take, all tries together; each of two tries has "
        "half of it.",
    )


class State(Table):
    """What the workers know together: rate limits, the greylist, what LMTP delivered in part."""

    url: Annotated[str, StateURL()] = Field(
        default="embedded:",
        description='`"embedded:"` is a store process of this server; it keeps the greylist, and '
        'what LMTP delivered in part, in a file beside the control socket. `"embedded:PATH"` names '
        "that file. A URL of Redis "
        "(`redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`: "
        "redis.md) is for several machines, and the store process counts while that is away. "
        '`"local:"` is in the memory of each worker: limits then hold in each worker, not over '
        "all of them.",
    )
    prefix: Annotated[str, KeyPrefix()] = Field(
        default="preforkmx",
        description="What every key in Redis begins with: one for each site that has limits of "
        "its own.",
        examples=["mx.example.com"],
    )
    deadline: Annotated[float, Duration(0.01, 10.0)] = Field(
        default=0.3,
        description="How long a session waits for the store. Without an answer its worker "
        "decides by its own share of the limits.",
    )


class Admin(Table):
    """How operators reach the running server."""

    address: Annotated[str, HTTPAddress()] = Field(
        default="127.0.0.1:8025",
        description="IP address and port on which an admin process answers over HTTP: `/healthz`, "
        "`/readyz`, `/status.json` and `/metrics`. Everything is read-only, and for everybody who "
        "can connect: never let the internet reach it. Port 0 is any free one, which "
        '`preforkmx status` shows; `""` is off.',
    )
    control: Annotated[Path, SocketFile()] = Field(
        default=Path("/run/preforkmx/control.sock"),
        description="The control socket, for `preforkmx status`, `reload`, `drain` and `stop`. "
        "Only the user that runs the server may use it. The lock, the store's socket and its "
        "file stand beside it.",
    )


class Log(Table):
    """Logs, on standard error."""

    format: Annotated[
        Literal["logfmt", "json", "console"], Choice(("logfmt", "json", "console"))
    ] = Field(
        default="logfmt",
        description='`"logfmt"` and `"json"` are for programs, `"console"` is for people.',
    )
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Choice(("debug", "info", "warning", "error"))
    ] = Field(
        default="info",
        description='The least important lines that are written; `"debug"` shows the dialogue, '
        "without credentials.",
    )


class Config(Table):
    """The whole configuration."""

    hostname: Annotated[str | None, HostName()] = Field(
        default=None,
        description="This server's name: in the greeting, in Received and in the log. Required "
        "without `--app`.",
        examples=["mx.example.com"],
    )
    domains: Annotated[tuple[str, ...] | None, Domains()] = Field(
        default=None,
        description="The domains whose recipients are taken; others are refused with 550. "
        '`["*"]` takes any domain. `postmaster@` the host name is always taken. Required without '
        "`--app`.",
        examples=[["example.com"]],
    )
    workers: Workers = Field(default=Workers(), description="The worker processes.")
    listener: tuple[ListenerTable, ...] = Field(
        default=(), description="The addresses that take mail; at least one."
    )
    tls: Tls | None = Field(default=None, description="The certificate.")
    limits: Limits = Field(default=Limits(), description="What one session may use.")
    extensions: Extensions = Field(
        default=Extensions(), description="The extensions of SMTP that are offered."
    )
    dns: Dns = Field(default=Dns(), description="How names are looked up.")
    state: State = Field(default=State(), description="What the workers know together.")
    middleware: tuple[AnyMiddleware, ...] = Field(
        default=(), description="Checks, in the order in which they run."
    )
    delivery: AnyDelivery | None = Field(
        default=None, description="Where messages go. Required without `--app`."
    )
    admin: Admin = Field(default=Admin(), description="How operators reach the server.")
    log: Log = Field(default=Log(), description="Logs.")


def inner_tables(model: type[Table]) -> dict[str, type[Table]]:
    """Return the arrays of tables inside a table: by key, the model of their elements."""
    return {
        key: get_args(about.annotation)[0]
        for key, about in model.model_fields.items()
        if get_origin(about.annotation) is tuple and kind_of(about) is None
    }


def table_model(path: ConfigPath, table: Any) -> type[Table] | None:
    """Return the model of the table at `path`, None where there should be none.

    :param table: what stands there; its ``use`` chooses the middleware or the delivery.
    """
    use = table.get("use") if isinstance(table, dict) else None
    match path:
        case ():
            return Config
        case ("listener", int()):
            return ListenerTable
        case ("middleware", int()):
            return MIDDLEWARE.get(use, SiteMiddleware) if isinstance(use, str) else SiteMiddleware
        case ("middleware", int(), "list", int()):
            return DNSListTable
        case ("delivery",):
            known = DELIVERIES.get(use) if isinstance(use, str) else Maildir
            return known or SiteDelivery
        case (str(name),) if name in Config.model_fields:
            annotation = Config.model_fields[name].annotation
            for inner in (annotation, *get_args(annotation)):
                if isinstance(inner, type) and issubclass(inner, Table):
                    return inner
    return None
