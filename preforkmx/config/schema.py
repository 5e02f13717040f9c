"""Every table and key of the configuration, declared once, with its documentation.

The loader reads tables with these models; ``config example``, ``config schema`` and
docs/reference/configuration.md are printed from them. A key that is documented for a later
version stands in its table's ``later`` and is refused as "not yet available".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from preforkmx.config.kinds import kind_of
from preforkmx.config.names import (
    AccountName,
    Addresses,
    ASCIIText,
    Code,
    DNSServers,
    Domains,
    File,
    Folder,
    HostName,
    HostNames,
    HTTPAddress,
    KeyPrefix,
    ListCodes,
    ListenAddress,
    Networks,
    NextHops,
    SetName,
    SocketFile,
    StateURL,
    UserName,
)
from preforkmx.config.quantities import (
    Choice,
    CoreCount,
    Duration,
    Flag,
    Integer,
    RateOf,
    Seconds,
    Size,
    SizeRateOf,
)
from preforkmx.config.values import Network, Rate  # noqa: TC001  (pydantic reads annotations)
from preforkmx.middleware.rbl_codes import DEFAULT_CODES

if TYPE_CHECKING:
    from preforkmx.config.keys import Path as ConfigPath


class Table(BaseModel):
    """A TOML table. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys of a later version."""


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


_USE = "Which middleware it is."


class RateLimit(Table):
    """What clients may do, over all workers and everybody else on the same store.

    What is above a limit is refused with 421 (a connection, AUTH) or 450 (MAIL, RCPT), the
    limit's name and the seconds to wait. A host is an IPv4 address or an IPv6 /64. What is left
    out is not limited.
    """

    use: Literal["rate_limit"] = Field(description=_USE)
    connections: Annotated[Rate | None, RateOf()] = Field(
        default=None, description="New connections of a host.", examples=["60/min"]
    )
    burst: Annotated[int | None, Integer(1, 1_000_000)] = Field(
        default=None,
        description="How many of `connections` may come at once. Default: the rate's own count.",
        examples=[120],
    )
    network_connections: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="New connections of a network: an IPv4 /24, an IPv6 /48.",
        examples=["600/min"],
    )
    concurrent: Annotated[int | None, Integer(1, 1_000_000)] = Field(
        default=None, description="Open connections of a host.", examples=[50]
    )
    messages: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="Messages that are accepted from a host, over all its sessions.",
        examples=["600/hour"],
    )
    recipients: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="Recipients that are accepted from a host, over all its sessions.",
        examples=["6000/hour"],
    )
    auth_failures: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="Refused credentials of a host, over all its sessions; then no more are "
        "looked at.",
        examples=["10/hour"],
    )
    octets: Annotated[Rate | None, SizeRateOf()] = Field(
        default=None,
        description="Octets of a host's messages, refused ones included; a session that is above "
        "it is refused at its next MAIL.",
        examples=["1GiB/hour"],
    )
    errors: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="Commands and messages of a host that are answered with 5xx.",
        examples=["200/hour"],
    )
    per_sender: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="MAIL with the same reverse path, from any host. Case of the domain, "
        "`+extension` and the serial numbers of mailing lists do not count, and digits count as "
        "one. The null reverse path has no limit.",
        examples=["600/hour"],
    )
    per_recipient: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="RCPT with the same forward path, from any host.",
        examples=["1000/hour"],
    )
    per_user: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="MAIL of the same authenticated user, from any host.",
        examples=["200/hour"],
    )
    allow: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(), description="Networks without limits.", examples=[["192.0.2.0/24"]]
    )


class Greylist(Table):
    """Defers the first message of an unknown sender, recipient and network with 451.

    Clients that authenticated are not deferred.
    """

    use: Literal["greylist"] = Field(description=_USE)
    delay: Annotated[float, Duration(1.0, 86400.0)] = Field(
        default=300.0, description="How soon after the first try another one is taken."
    )
    window: Annotated[float, Duration(1.0, 30 * 86400.0)] = Field(
        default=86400.0, description="How long after the first try another one is waited for."
    )
    life: Annotated[float, Duration(1.0, 366 * 86400.0)] = Field(
        default=36 * 86400.0,
        description="How long one that passed is remembered after its last message.",
    )
    on_store_failure: Annotated[Literal["accept", "tempfail"], Choice(("accept", "tempfail"))] = (
        Field(
            default="accept",
            description='While the store is away: `"accept"` lets everybody pass, `"tempfail"` '
            "defers everybody with 451.",
        )
    )
    allow: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(), description="Networks that are not deferred.", examples=[["192.0.2.0/24"]]
    )
    exempt_private: Annotated[bool, Flag()] = Field(
        default=True,
        description="Private networks are not deferred, loopback among them (RFC 1918, RFC 4193).",
    )
    exempt_recipients: Annotated[tuple[str, ...], Addresses()] = Field(
        default=(),
        description='Recipients whose mail is not deferred; `"@example.com"` is a whole domain.',
        examples=[["abuse@example.com", "@lists.example.com"]],
    )


class SPF(Table):
    """Checks whether a client may send for the domain that it names (RFC 7208).

    What is not refused is marked, with a header Received-SPF. Never checked are clients that
    authenticated, and health checks. How: check-spf.md.
    """

    use: Literal["spf"] = Field(description=_USE)
    at: Annotated[Literal["helo", "mail", "data"], Choice(("helo", "mail", "data"))] = Field(
        default="mail",
        description='What is checked, and when: `"helo"` the name of HELO; `"mail"` the reverse '
        'path, or the name of HELO where that is null; `"data"` the same when the message comes: '
        "unknown recipients then cost no look-up, and the greylist does not learn of a pass.",
    )
    on_fail: Annotated[Literal["reject", "mark"], Choice(("reject", "mark"))] = Field(
        default="reject",
        description='The domain says that this client may not send for it (`-all`): `"reject"` '
        'refuses with 550 5.7.23 and the domain\'s explanation, `"mark"` lets pass.',
    )
    on_softfail: Annotated[Literal["reject", "mark"], Choice(("reject", "mark"))] = Field(
        default="mark", description="The domain says so, and is not sure (`~all`): the same."
    )
    on_permerror: Annotated[Literal["reject", "mark"], Choice(("reject", "mark"))] = Field(
        default="mark",
        description='The domain\'s record is wrong: `"reject"` refuses with 550 5.7.24.',
    )
    on_temperror: Annotated[Literal["tempfail", "accept"], Choice(("tempfail", "accept"))] = Field(
        default="tempfail",
        description='It cannot be looked up now: `"tempfail"` defers with 451 4.7.24, `"accept"` '
        "lets pass.",
    )
    allow: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(),
        description="Networks that are not checked: hosts that forward mail to this server, and "
        "do not write its reverse path anew.",
        examples=[["192.0.2.0/24"]],
    )
    exempt_private: Annotated[bool, Flag()] = Field(
        default=True,
        description="Private networks are not checked, loopback among them (RFC 1918, RFC 4193).",
    )


class DNSListTable(Table):
    """One list. There may be many, and several of one zone whose codes weigh differently."""

    zone: Annotated[str, HostName()] = Field(
        description="The name below which the list stands in the DNS.",
        examples=["zen.example.org"],
    )
    kind: Annotated[Literal["ip", "domain"], Choice(("ip", "domain"))] = Field(
        default="ip",
        description='What it lists: `"ip"` addresses, IPv4 and IPv6; `"domain"` names: it is asked '
        "for the name of HELO and for the domain of the reverse path.",
    )
    codes: Annotated[tuple[str, ...], ListCodes()] = Field(
        default=DEFAULT_CODES,
        description="The answers that count, single ones and ranges. Whatever stands here, "
        "127.255.255.0/24 is an error of the list: it is not asked for 10 minutes then.",
        examples=[["127.0.0.2", "127.0.0.4-127.0.0.7"]],
    )
    weight: Annotated[int, Integer(-1000, 1000)] = Field(
        default=1,
        description="What a listing adds to the score. Below zero it vouches for a client, as "
        "DNSWL does; only lists of addresses can.",
    )
    name: Annotated[str, ASCIIText(100)] = Field(
        default="",
        description="What replies, headers and logs call it; empty: its zone. For a zone that "
        "holds your key, which is nobody's business.",
        examples=["zen"],
    )
    reason: Annotated[str, ASCIIText(300)] = Field(
        default="",
        description="What a refused client is told instead of the list's TXT record; "
        "`{address}` is the address or name that is listed. Empty: the TXT record.",
        examples=["see https://example.com/listed?{address}"],
    )


class RBL(Table):
    """Refuses or marks clients that lists in the DNS know: block lists, and lists that vouch.

    All lists are asked at once, and their weights are added up. A list that fails, or is silent
    for 4 s, lists nobody. Never asked about are clients that authenticated, and health checks.
    How, and what to know of lists: use-block-lists.md.
    """

    use: Literal["rbl"] = Field(description=_USE)
    threshold: Annotated[int, Integer(1, 1000)] = Field(
        default=1, description="The score that is refused or marked."
    )
    on_fail: Annotated[Literal["reject", "mark"], Choice(("reject", "mark"))] = Field(
        default="reject",
        description='`"reject"` refuses with 554 5.7.1, the list\'s name and its text; `"mark"` '
        "writes a header X-RBL.",
    )
    at: Annotated[
        Literal["connection", "mail", "rcpt"] | None, Choice(("connection", "mail", "rcpt"))
    ] = Field(
        default=None,
        description='Where it begins to refuse. Default: `"connection"`, instead of the greeting, '
        'and `"mail"` where it marks. `"mail"` where clients authenticate on the same listener: '
        "lists know the addresses of most of them.",
        examples=["mail"],
    )
    allow: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(), description="Networks that are not asked about.", examples=[["192.0.2.0/24"]]
    )
    exempt_private: Annotated[bool, Flag()] = Field(
        default=True,
        description="Private networks are not asked about, loopback among them (RFC 1918, "
        "RFC 4193).",
    )
    list: tuple[DNSListTable, ...] = Field(default=(), description="The lists; at least one.")


Phase = Literal["mail", "rcpt", "data"]
_PHASES = Choice(("mail", "rcpt", "data"))


class RequireTLS(Table):
    """Refuses mail in plain text."""

    use: Literal["require_tls"] = Field(description=_USE)
    at: Annotated[Phase, _PHASES] = Field(
        default="mail", description="The command that is refused."
    )


class RequireAuth(Table):
    """Refuses mail from clients that did not authenticate."""

    later = frozenset({"relay"})

    use: Literal["require_auth"] = Field(description=_USE)
    at: Annotated[Phase, _PHASES] = Field(
        default="mail", description="The command that is refused."
    )


class Users(Table):
    """Lets clients authenticate with the names and passwords of a file, under TLS (AUTH).

    Each line of the file is `name:hash`, as `preforkmx hash-password --user NAME` prints it. It
    is read again on each reload. Nobody has to authenticate: that is `require_auth`.
    """

    use: Literal["users"] = Field(description=_USE)
    file: Annotated[Path, File()] = Field(
        description="The file of users. Others must not be able to read it; its group may.",
        examples=["users"],
    )
    threads: Annotated[int | None, Integer(1, 64)] = Field(
        default=None,
        description="Passwords that one worker verifies at the same time; each takes the memory "
        "that its hash asks for, 64 MiB where `hash-password` made it. Default: one for each "
        "core, at most 4.",
        examples=[2],
    )
    waiting: Annotated[int, Integer(0, 10_000)] = Field(
        default=64,
        description="Clients of one worker that wait for a thread; a further one is told 454.",
    )


Separator = Literal["+", "-", "_", "=", ""]
_SEPARATORS = Choice(("+", "-", "_", "=", ""))


class Recipients(Table):
    """Refuses recipients that are not there with 550 5.1.1, and delivers aliases' mail to others.

    Who is there is known by a file, a set in Redis and a server behind this one, which are asked
    in this order. Where none of them has the recipient and one cannot be asked, the answer is
    451. Case, quotes and the spelling of an international domain do not matter. `postmaster` is
    always there. docs/how-to/check-recipients.md.
    """

    use: Literal["recipients"] = Field(description=_USE)
    domains: Annotated[tuple[str, ...] | None, Domains()] = Field(
        default=None,
        description="The domains that this table answers for; recipients of others pass it. "
        "Default: the top-level `domains`.",
        examples=[["example.com"]],
    )
    file: Annotated[Path | None, File()] = Field(
        default=None,
        description="The file of recipients. Each line is `name@example.com`, or "
        "`alias@example.com: target@example.com, …`, or `@example.com` for a whole domain, with or "
        "without targets. It is read again on each reload.",
        examples=["recipients"],
    )
    redis_set: Annotated[str | None, SetName()] = Field(
        default=None,
        description="The key of a set in the Redis of `[state] url`, without the prefix. Its "
        "members are addresses in lower case, and `@example.com` for a whole domain. A set that "
        "is not there is one that cannot be asked.",
        examples=["mail:recipients"],
    )
    call_forward: Annotated[tuple[str, ...] | None, NextHops()] = Field(
        default=None,
        description="Servers that are asked with MAIL FROM:<> and RCPT, the one to prefer first.",
        examples=[["unix:/run/dovecot/lmtp"]],
    )
    call_forward_protocol: Annotated[Literal["smtp", "lmtp"], Choice(("smtp", "lmtp"))] = Field(
        default="smtp", description="What they speak."
    )
    call_forward_deadline: Annotated[float, Duration(0.1, 300.0)] = Field(
        default=10.0, description="How long a client waits for their answer; then it is told 451."
    )
    call_forward_connections: Annotated[int, Integer(1, 1000)] = Field(
        default=10, description="Connections of one worker to them at most."
    )
    known_for: Annotated[float, Duration(0.0, 7 * 86400.0)] = Field(
        default=3600.0, description="How long a worker remembers that they know a recipient."
    )
    unknown_for: Annotated[float, Duration(0.0, 7 * 86400.0)] = Field(
        default=300.0, description="How long a worker remembers that they refuse one."
    )
    separator: Annotated[Separator, _SEPARATORS] = Field(
        default="+",
        description="What an extension begins with: `joe+lists@example.com` is there if "
        '`joe@example.com` is. `""`: there are no extensions.',
    )
    extension: Annotated[Literal["keep", "drop"], Choice(("keep", "drop"))] = Field(
        default="keep",
        description='`"drop"` delivers to `joe@example.com` then, `"keep"` to '
        "`joe+lists@example.com`.",
    )
    unknown: Annotated[Rate | None, RateOf()] = Field(
        default=None,
        description="Unknown recipients of a host (an IPv4 address or an IPv6 /64), over all its "
        "sessions; above it every RCPT is answered with 450, without a look at the address.",
        examples=["20/hour"],
    )
    allow: Annotated[tuple[Network, ...], Networks()] = Field(
        default=(), description="Networks without that limit.", examples=[["192.0.2.0/24"]]
    )
    vrfy: Annotated[bool, Flag()] = Field(
        default=False,
        description="Answer VRFY in the same way, within the same limit. Else it is told 252.",
    )


class AuthenticationResults(Table):
    """Writes what the middleware in front of it found out into one header field (RFC 8601).

    `Authentication-Results` of the same name that a message brings along are taken out of its
    header. docs/explanation/authentication-results.md.
    """

    use: Literal["authentication_results"] = Field(description=_USE)
    id: Annotated[str | None, HostName()] = Field(
        default=None,
        description="The name of whoever says so: a host, or a domain for all of its hosts. "
        "Default: `hostname`.",
        examples=["example.com"],
    )
    remove: Annotated[tuple[str, ...], HostNames()] = Field(
        default=(),
        description="More names whose fields are taken out.",
        examples=[["mx2.example.com"]],
    )


class SiteMiddleware(Table):
    """Middleware of your own: `MODULE:OBJECT`, or an entry point `preforkmx.middleware`.

    The object is a `Middleware`, or something that gives one when it is called with the other
    keys of its table as keyword arguments. Only workers import it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    use: Annotated[str, Code(entry_points=True)] = Field(
        description="Where it is.", examples=["mymx.checks:reject_null_sender"]
    )

    @property
    def options(self) -> dict[str, Any]:
        """The table's other keys."""
        return dict(self.model_extra or {})


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


MIDDLEWARE: dict[str, type[Table]] = {
    "rate_limit": RateLimit,
    "greylist": Greylist,
    "rbl": RBL,
    "spf": SPF,
    "require_tls": RequireTLS,
    "require_auth": RequireAuth,
    "users": Users,
    "recipients": Recipients,
    "authentication_results": AuthenticationResults,
}
"""The built-in middleware by its name."""
LATER_MIDDLEWARE: frozenset[str] = frozenset()

DELIVERIES: dict[str, type[Table]] = {
    "maildir": Maildir,
    "lmtp": Lmtp,
    "smtp": Smtp,
    "discard": Discard,
}
"""The built-in deliveries by their name."""
LATER_DELIVERIES: frozenset[str] = frozenset()


def _tag(known: dict[str, type[Table]], default: str) -> Discriminator:
    def tag(table: Any) -> str:
        use = table.get("use", default) if isinstance(table, dict) else table.use
        return use if use in known else "site"

    return Discriminator(tag)


AnyMiddleware = Annotated[
    Annotated[RateLimit, Tag("rate_limit")]
    | Annotated[Greylist, Tag("greylist")]
    | Annotated[RBL, Tag("rbl")]
    | Annotated[SPF, Tag("spf")]
    | Annotated[RequireTLS, Tag("require_tls")]
    | Annotated[RequireAuth, Tag("require_auth")]
    | Annotated[Users, Tag("users")]
    | Annotated[Recipients, Tag("recipients")]
    | Annotated[AuthenticationResults, Tag("authentication_results")]
    | Annotated[SiteMiddleware, Tag("site")],
    _tag(MIDDLEWARE, ""),
]
AnyDelivery = Annotated[
    Annotated[Maildir, Tag("maildir")]
    | Annotated[Lmtp, Tag("lmtp")]
    | Annotated[Smtp, Tag("smtp")]
    | Annotated[Discard, Tag("discard")]
    | Annotated[SiteDelivery, Tag("site")],
    _tag(DELIVERIES, "maildir"),
]


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
