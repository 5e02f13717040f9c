"""The kinds of names: hosts, networks, addresses, files, URLs, code."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from preforkmx.config import values
from preforkmx.config.kinds import Kind, meant
from preforkmx.config.values import BadValue
from preforkmx.delivery.nexthop.servers import split
from preforkmx.middleware.rbl_codes import parse_codes
from preforkmx.session.listener import MAX_UNIX_PATH, split_address
from preforkmx.state.redis import url as redis_url
from preforkmx.state.redis.keys import Keys

_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")


@dataclass(frozen=True)
class HostName(Kind):
    """A host's or a domain's name."""

    def parse(self, value: Any) -> str:
        return values.parse_host_name(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "hostname"}

    @property
    def words(self) -> str:
        return "a host name"


@dataclass(frozen=True)
class AccountName(Kind):
    """The name of a user or group of this machine; "" is none.

    :param what: ``"user"`` or ``"group"``.
    """

    what: str

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or (value and not _ACCOUNT.fullmatch(value)):
            raise BadValue(f"must be {self.words}", 'such as "preforkmx"; "" is none')
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({_ACCOUNT.pattern})?$"}

    @property
    def words(self) -> str:
        return f"the name of a {self.what}"


@dataclass(frozen=True)
class _ListOf(Kind):
    """An array; each bad element is named by its index."""

    def read_element(self, element: Any) -> Any:
        raise NotImplementedError

    def parse(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue(f"must be {self.words}", _in_brackets(value))
        found: list[Any] = []
        bad: dict[int, BadValue] = {}
        for index, element in enumerate(value):
            try:
                found.append(self.read_element(element))
            except BadValue as error:
                bad[index] = error
        if bad:
            raise BadElements(bad)
        return tuple(found)

    def show(self, value: tuple[Any, ...]) -> list[str]:
        return [str(element) for element in value]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}


class BadElements(BadValue):
    """Bad values inside an array, by their index."""

    def __init__(self, bad: dict[int, BadValue]) -> None:
        super().__init__("; ".join(f"[{index}] {error}" for index, error in bad.items()))
        self.bad = bad


@dataclass(frozen=True)
class Domains(_ListOf):
    """Recipient domains, or ``"*"`` alone."""

    def read_element(self, element: Any) -> str:
        return values.parse_domain(element)

    def parse(self, value: Any) -> tuple[str, ...]:
        if value == []:
            raise BadValue("must name at least one domain", '["*"] takes mail for any domain')
        domains: tuple[str, ...] = super().parse(value)
        if "*" in domains and len(domains) > 1:
            raise BadValue('must be ["*"] alone, or domains without "*"')
        return domains

    @property
    def words(self) -> str:
        return "an array of domain names"


@dataclass(frozen=True)
class Networks(_ListOf):
    """Networks in CIDR notation, or single addresses."""

    def read_element(self, element: Any) -> values.Network:
        return values.parse_network(element)

    @property
    def words(self) -> str:
        return "an array of networks"


@dataclass(frozen=True)
class ListCodes(_ListOf):
    """Codes of a list in the DNS, and ranges of them; at least one."""

    def read_element(self, element: Any) -> str:
        if not isinstance(element, str):
            raise BadValue('must be a code such as "127.0.0.2" or "127.0.0.4-127.0.0.7"')
        try:
            parse_codes(element)
        except ValueError as error:
            _, _, reason = str(error).partition(repr(element))
            raise BadValue(reason.strip()) from None
        return element

    def parse(self, value: Any) -> tuple[str, ...]:
        codes: tuple[str, ...] = super().parse(value)
        if not codes:
            raise BadValue("must name at least one code")
        return codes

    @property
    def words(self) -> str:
        return "an array of codes, and of ranges of them"


@dataclass(frozen=True)
class ASCIIText(Kind):
    """One line of printable ASCII; "" is none."""

    most: int

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise BadValue(f"must be {self.words}")
        if len(value) > self.most:
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.most, "pattern": "^[ -~]*$"}

    @property
    def words(self) -> str:
        return f"a text of at most {self.most} printable ASCII characters"


@dataclass(frozen=True)
class DNSServers(_ListOf):
    """Resolvers, each ``HOST:PORT``; at most 8."""

    MOST = 8

    def read_element(self, element: Any) -> str:
        wanted = 'must be an address such as "127.0.0.1:53" or "[::1]:53"'
        if not isinstance(element, str):
            raise BadValue(wanted)
        try:
            _, port = split_address(element)
        except ValueError:
            raise BadValue(wanted, _with_port(element)) from None
        if not port:
            raise BadValue("must have a port from 1 to 65535")
        return element

    def parse(self, value: Any) -> tuple[str, ...]:
        servers: tuple[str, ...] = super().parse(value)
        if len(servers) > self.MOST:
            raise BadValue(f"must be at most {self.MOST} servers")
        return servers

    @property
    def words(self) -> str:
        return "an array of addresses with ports"


@dataclass(frozen=True)
class NextHops(_ListOf):
    """Servers that mail is handed to, each ``HOST:PORT`` or ``unix:PATH``; 1 to 16."""

    MOST = 16

    def read(self, value: Any, folder: Path) -> tuple[str, ...]:
        servers: tuple[str, ...] = self.parse(value)
        return tuple(
            f"unix:{os.path.normpath(folder.absolute() / server.removeprefix('unix:'))}"
            if server.startswith("unix:")
            else server
            for server in servers
        )

    def read_element(self, element: Any) -> str:
        wanted = 'must be an address such as "192.0.2.10:25", "[::1]:24" or "unix:/PATH"'
        if not isinstance(element, str):
            raise BadValue(wanted)
        if element.startswith("unix:") and not element.startswith("unix:/"):
            if element == "unix:":
                raise BadValue(wanted)
            return element
        try:
            split(element)
        except ValueError as error:
            hint = f'did you mean "unix:{element}"?' if element.startswith("/") else str(error)
            raise BadValue(wanted, hint) from None
        return element

    def parse(self, value: Any) -> tuple[str, ...]:
        servers: tuple[str, ...] = super().parse(value)
        if not 1 <= len(servers) <= self.MOST:
            raise BadValue(f"must name 1 to {self.MOST} servers")
        if len(set(servers)) < len(servers):
            raise BadValue("names a server twice")
        return servers

    @property
    def words(self) -> str:
        return "an array of addresses with ports, or unix:PATH"


@dataclass(frozen=True)
class UserName(Kind):
    """A name for AUTH; "" is none."""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > 255:
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": 255}

    @property
    def words(self) -> str:
        return "a name of at most 255 printable characters"


@dataclass(frozen=True)
class SetName(Kind):
    """The name of a set in Redis."""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
            raise BadValue(f"must be {self.words}", 'such as "mail:recipients"')
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 512}

    @property
    def words(self) -> str:
        return "a key of at most 512 printable characters"


@dataclass(frozen=True)
class HostNames(_ListOf):
    """Names of hosts or domains."""

    def read_element(self, element: Any) -> str:
        return values.parse_host_name(element)

    @property
    def words(self) -> str:
        return "an array of host names"


@dataclass(frozen=True)
class Addresses(_ListOf):
    """Recipients, ``"joe@example.com"``, or whole domains, ``"@example.com"``."""

    def read_element(self, element: Any) -> str:
        if not isinstance(element, str) or not element.rpartition("@")[1]:
            raise BadValue('must be an address, or "@" and a domain')
        return element

    @property
    def words(self) -> str:
        return "an array of addresses"


@dataclass(frozen=True)
class _PathOf(Kind):
    def read(self, value: Any, folder: Path) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise BadValue(f"must be {self.words}")
        if "\n" in value:
            raise BadValue(f"must be {self.words}", "its name, not what is in it")
        return Path(os.path.normpath(folder / value))

    def show(self, value: Path) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class File(_PathOf):
    """A file; relative to the configuration file's folder."""

    @property
    def words(self) -> str:
        return "a file"


@dataclass(frozen=True)
class Folder(_PathOf):
    """A folder; relative to the configuration file's folder."""

    @property
    def words(self) -> str:
        return "a folder"


@dataclass(frozen=True)
class SocketFile(_PathOf):
    """A unix socket; its name, with what is added to it, must fit into a socket address."""

    def read(self, value: Any, folder: Path) -> Path:
        path = super().read(value, folder)
        # sun_path holds 108 octets with its end; ".store" is the longest name put beside it.
        if len(os.fsencode(path)) + len(".store") > 107:
            raise BadValue("must be at most 101 octets long: it names a unix socket")
        return path

    @property
    def words(self) -> str:
        return "a unix socket's path"


@dataclass(frozen=True)
class ListenAddress(Kind):
    """``HOST:PORT``, or ``unix:PATH``; a relative path is in the configuration file's folder."""

    def read(self, value: Any, folder: Path) -> str:
        if not isinstance(value, str):
            hint = f'did you mean "0.0.0.0:{value}"?' if type(value) is int else ""
            raise BadValue(f"must be {self.words}", hint)
        if value.startswith("unix:"):
            return self._unix(value.removeprefix("unix:"), folder)
        try:
            split_address(value)
        except ValueError as error:
            hint = f'did you mean "unix:{value}"?' if value.startswith("/") else str(error)
            raise BadValue(f"must be {self.words}", hint) from None
        return value

    def _unix(self, name: str, folder: Path) -> str:
        if not name or "\0" in name or "\n" in name:
            raise BadValue(f"must be {self.words}")
        # normpath leaves two slashes at the beginning, as POSIX lets it; they mean nothing here.
        path = "/" + os.path.normpath(folder.absolute() / name).lstrip("/")
        try:
            octets = len(path.encode())
        except UnicodeEncodeError:
            # A variable of the environment may hold octets that are no UTF-8.
            raise BadValue(f"must be {self.words}") from None
        if octets > MAX_UNIX_PATH:
            raise BadValue(f"must have a path of at most {MAX_UNIX_PATH} octets (unix(7))")
        return f"unix:{path}"

    def schema(self) -> dict[str, Any]:
        tcp = r"([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
        return {"type": "string", "pattern": f"^({tcp}|unix:.+)$"}

    @property
    def words(self) -> str:
        return 'an address such as "0.0.0.0:25", "[::]:25" or "unix:/PATH"'


@dataclass(frozen=True)
class HTTPAddress(Kind):
    """``HOST:PORT``, or ``""`` for none."""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str):
            hint = f'did you mean "127.0.0.1:{value}"?' if type(value) is int else ""
            raise BadValue(f"must be {self.words}", hint)
        if value:
            try:
                split_address(value)
            except ValueError as error:
                raise BadValue(f"must be {self.words}", str(error)) from None
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^(([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})?$"}

    @property
    def words(self) -> str:
        return 'an address such as "127.0.0.1:8025", or "" for none'


@dataclass(frozen=True)
class StateURL(Kind):
    """Where the shared state is."""

    def read(self, value: Any, folder: Path) -> str:
        if isinstance(value, str):
            scheme, colon, rest = value.partition(":")
            if colon and scheme in redis_url.SCHEMES:
                try:
                    redis_url.parse(value)
                except ValueError as error:
                    raise BadValue("is no URL of Redis", str(error)) from None
                return value
            if value == "local:" or (colon and scheme == "embedded" and "\0" not in rest):
                return f"embedded:{os.path.normpath(folder / rest)}" if rest else value
        known = ("embedded:", "local:", *(f"{scheme}://" for scheme in redis_url.SCHEMES))
        raise BadValue(f"must be {self.words}", meant(value, known))

    def schema(self) -> dict[str, Any]:
        schemes = "|".join(re.escape(scheme) for scheme in redis_url.SCHEMES)
        return {"type": "string", "pattern": f"^(embedded:.*|local:|({schemes})://.+)$"}

    @property
    def words(self) -> str:
        return '"embedded:", "embedded:PATH", "local:" or a URL of Redis'


@dataclass(frozen=True)
class KeyPrefix(Kind):
    """What the keys of one site begin with in Redis."""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str):
            raise BadValue(f"must be {self.words}")
        try:
            Keys(value)
        except ValueError:
            raise BadValue(f"must be {self.words}") from None
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}

    @property
    def words(self) -> str:
        return "1 to 64 letters, digits, and . _ : -"


@dataclass(frozen=True)
class Code(Kind):
    """``MODULE:OBJECT``, or the name of an entry point."""

    entry_points: bool = False

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise BadValue(f"must be {self.words}")
        module, colon, name = value.partition(":")
        parts = [*module.split("."), *(name.split(".") if colon else ())]
        if not all(part.isidentifier() for part in parts) and (colon or not self.entry_points):
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    @property
    def words(self) -> str:
        return "MODULE:OBJECT" + (" or the name of an entry point" if self.entry_points else "")


def _with_port(text: str) -> str:
    """Return the hint for an address of a DNS server that has no port."""
    try:
        address = ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return ""
    host = f"[{address}]" if address.version == 6 else str(address)
    return f'did you mean "{host}:53"?'


def _in_brackets(value: Any) -> str:
    return f'did you mean ["{value}"]?' if isinstance(value, str) else ""
