"""What a ``[state] url`` names when it names Redis."""

from __future__ import annotations

import enum
import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

#: The ports where nothing else is said.
PORT: Final = 6379
SENTINEL_PORT: Final = 26379
#: The most addresses in one URL.
MAX_ADDRESSES: Final = 64
#: The longest URL, in characters.
LONGEST_URL: Final = 4096
#: The highest database; Redis has 16 unless it is told otherwise.
HIGHEST_DATABASE: Final = 16_383

_TLS_OPTIONS: Final = ("ca", "cert", "key", "tls_name")
_SENTINEL_OPTIONS: Final = ("sentinel_user", "sentinel_password")


class Kind(enum.Enum):
    """How the server for a key is found."""

    SINGLE = "redis"
    """There is one, and its address is known."""
    SENTINEL = "redis+sentinel"
    """Sentinels know which of several is the primary."""
    CLUSTER = "redis+cluster"
    """Each of several primaries has a part of the keys, and all of them know which."""


class Address(NamedTuple):
    """Where one server listens: a host and a port, or the path of a unix socket and 0."""

    host: str
    port: int

    @property
    def is_path(self) -> bool:
        """Whether it is a unix socket."""
        return not self.port

    def __str__(self) -> str:
        if self.is_path:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the servers prove who they are, and this client who it is.

    The certificate of a server is always verified; its name as well.

    :param ca: file of the authorities to trust, PEM; ``""``: the system's.
    :param certificate: file of this client's certificate, PEM; ``""``: none.
    :param key: file of the certificate's key; ``""``: it is in the certificate's file.
    :param name: the name in every server's certificate; ``""``: the one that the server is
        addressed by. Sentinels and clusters often name their servers by IP addresses.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    name: str = ""

    def context(self) -> ssl.SSLContext:
        """Return a client's context.

        :raises OSError: a file cannot be read, or is none (:class:`ssl.SSLError`).
        """
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.certificate:
            # A key that asks for a pass phrase would ask the terminal for it.
            context.load_cert_chain(self.certificate, self.key or None, password="")
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """A Redis, and how to get in. Its text and its repr hold no password.

    :param addresses: the server; sentinels; or some nodes of a cluster, which know the others.
    :param user: an ACL user; ``""`` is Redis' default user.
    :param service: the name that sentinels know the primary by.
    """

    kind: Kind
    addresses: tuple[Address, ...]
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: Tls | None = None
    service: str = ""
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """The URL without its passwords: for logs and operators."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        options: list[tuple[str, str]] = []
        path = f"/{self.database}" if self.database else ""
        if self.addresses[0].is_path:
            scheme, where, path = "unix", quote(self.addresses[0].host), ""
            if self.database:
                options.append(("db", str(self.database)))
        else:
            scheme = self.kind.value
            if self.tls is not None:
                scheme = scheme.replace("redis", "rediss", 1)
            where = ",".join(map(str, self.addresses))
            if self.kind is Kind.SENTINEL:
                path = f"/{quote(self.service, safe='')}{path}"
        if self.tls is not None:
            tls = self.tls
            options += zip(_TLS_OPTIONS, (tls.ca, tls.certificate, tls.key, tls.name), strict=True)
        options.append(("sentinel_user", self.sentinel_user))
        query = "&".join(f"{name}={quote(value)}" for name, value in options if value)
        return f"{scheme}://{user}{where}{path}{'?' if query else ''}{query}"

    def __str__(self) -> str:
        return self.shown


_KINDS: Final = {
    "redis": (Kind.SINGLE, False),
    "rediss": (Kind.SINGLE, True),
    "unix": (Kind.SINGLE, False),
    "redis+sentinel": (Kind.SENTINEL, False),
    "rediss+sentinel": (Kind.SENTINEL, True),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
}
#: The schemes that :func:`parse` reads.
SCHEMES: Final = tuple(_KINDS)


def parse(url: str) -> Target:
    """Read a URL::

        redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]
        unix://[USER:PASSWORD@]/PATH[?db=DATABASE]
        redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DATABASE]
        redis+cluster://[USER:PASSWORD@]HOST[:PORT],…

    ``rediss`` in place of ``redis`` is TLS, with the options ``ca``, ``cert``, ``key`` (files)
    and ``tls_name``. ``:PASSWORD@`` alone is the default user's password; what sentinels want
    are the options ``sentinel_user`` and ``sentinel_password``. Everywhere ``%2F`` and its like
    stand for characters that would end a part.

    :raises ValueError: it is not one of these; the text says why, and holds nothing of the URL.
    """
    if len(url) > LONGEST_URL:
        raise ValueError(f"a URL has at most {LONGEST_URL} characters")
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in _KINDS:
        raise ValueError(f"a URL of Redis begins with one of {', '.join(SCHEMES)} and ://")
    kind, encrypted = _KINDS[scheme]
    if not url.isprintable() or " " in url or "#" in rest:
        raise ValueError("a URL has no spaces, control characters and #; write them as %20 and %23")
    rest, _, query = rest.partition("?")
    options = _options(query, scheme, encrypted=encrypted, kind=kind)
    authority, slash, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    user, password = _credentials(credentials) if at else ("", "")
    service = ""
    addresses: tuple[Address, ...]
    if scheme == "unix":
        addresses = (_socket(hosts, slash + path),)
        database = options.pop("db", "")
    else:
        if kind is Kind.SENTINEL:
            name, _, path = path.partition("/")
            service = _decoded(name)
            if not service:
                raise ValueError("behind the sentinels stands the name of the service: /NAME")
        default = SENTINEL_PORT if kind is Kind.SENTINEL else PORT
        addresses = tuple(_address(part, default) for part in hosts.split(","))
        if len(addresses) > MAX_ADDRESSES or (kind is Kind.SINGLE and len(addresses) > 1):
            raise ValueError(
                "one server has one address; several belong to redis+sentinel:// and redis+cluster://"
                if kind is Kind.SINGLE
                else f"a URL names at most {MAX_ADDRESSES} addresses"
            )
        if path and "db" in options:
            raise ValueError("the database stands in the URL twice")
        database = path or options.pop("db", "")
    return Target(
        kind,
        addresses,
        _database(database, kind),
        user,
        password,
        Tls(*(options.get(name, "") for name in _TLS_OPTIONS)) if encrypted else None,
        service,
        *(options.get(name, "") for name in _SENTINEL_OPTIONS),
    )


def _decoded(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("what stands as %XX in a URL is UTF-8") from None
    if "\0" in decoded:
        raise ValueError("a URL has no %00")
    return decoded


def _options(query: str, scheme: str, *, encrypted: bool, kind: Kind) -> dict[str, str]:
    allowed = ["db"]
    if encrypted:
        allowed += _TLS_OPTIONS
    if kind is Kind.SENTINEL:
        allowed += _SENTINEL_OPTIONS
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals or name not in allowed:
            raise ValueError(f"the options of {scheme}:// are NAME=VALUE of {', '.join(allowed)}")
        if name in options:
            raise ValueError(f"the option {name} stands in the URL twice")
        options[name] = _decoded(value)
    if options.get("key") and not options.get("cert"):
        raise ValueError("a key belongs to a certificate: cert=FILE is missing")
    if options.get("sentinel_user") and not options.get("sentinel_password"):
        raise ValueError("sentinel_user has no sentinel_password")
    return options


def _credentials(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not colon or not password:
        raise ValueError("before the @ stands USER:PASSWORD, or :PASSWORD")
    return _decoded(user), _decoded(password)


def _database(text: str, kind: Kind) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= HIGHEST_DATABASE):
        raise ValueError(f"a database is a number from 0 to {HIGHEST_DATABASE}")
    if kind is Kind.CLUSTER and int(text):
        raise ValueError("a cluster has only database 0")
    return int(text)


def _socket(host: str, path: str) -> Address:
    decoded = _decoded(path)
    if host or len(decoded) < 2 or len(decoded.encode()) > 107:
        raise ValueError("unix:// is followed by an absolute path of at most 107 octets")
    return Address(decoded, 0)


def _address(text: str, default: int) -> Address:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        try:
            good = bool(bracket) and ip_address(host).version == 6
        except ValueError:
            good = False
        if not good or (rest and not rest.startswith(":")):
            raise ValueError("between [ and ] stands an IPv6 address")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        host = _decoded(host)
        if not is_host(host):
            raise ValueError("a host is a name or an address (IPv6 in [ and ]), and several have ,")
    if not colon:
        return Address(host, default)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise ValueError("a port is a number from 1 to 65535")
    return Address(host, int(port))


def is_host(text: str) -> bool:
    """Say whether `text` may be a host's name or IPv4 address: letters, digits, ``-_.``."""
    return (
        0 < len(text) <= 253
        and text.isascii()
        and text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    )
