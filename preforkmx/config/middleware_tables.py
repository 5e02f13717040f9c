"""The tables of the built-in middleware, and of a site's own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (pydantic reads annotations)
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from preforkmx.config.names import (
    Addresses,
    ASCIIText,
    Code,
    Domains,
    File,
    HostName,
    HostNames,
    ListCodes,
    Networks,
    NextHops,
    SetName,
)
from preforkmx.config.quantities import (
    Choice,
    Duration,
    Flag,
    Integer,
    RateOf,
    SizeRateOf,
)
from preforkmx.config.table import Table, by_use
from preforkmx.config.values import Network, Rate  # noqa: TC001  (pydantic reads annotations)
from preforkmx.middleware.rbl_codes import DEFAULT_CODES

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
    by_use(MIDDLEWARE, ""),
]
