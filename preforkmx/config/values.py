"""The small languages of configuration values: durations, sizes, rates, networks, names.

Every ``parse_…`` takes whatever TOML gave and returns a plain value, or raises
:class:`BadValue` with a text for the operator. The ``format_…`` functions are their inverses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

_DURATION = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))? ?(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)", re.ASCII)
_RATE = re.compile(r"([0-9]{1,9}) ?/ ?([a-z]+)", re.ASCII)
_SIZE_RATE = re.compile(r"([^/]*)/ ?([a-z]+)", re.ASCII)

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPELLINGS = {"sec": "s", "min": "m", "hou": "h", "hr": "h", "day": "d", "mil": "ms", "mse": "ms"}
_OCTETS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_PERIODS = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)

LONGEST_DURATION = 3650 * 86400.0
"""Seconds: ten years. No deadline of a mail server is longer."""


class BadValue(ValueError):
    """A value that cannot be used.

    :param message: what the value must be.
    :param hint: what the operator may have meant, or ``""``.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events in a period: ``"60/min"`` is ``Rate(60, 60.0)``."""

    count: int
    """How many."""
    period: float
    """In how many seconds."""


def parse_duration(value: object) -> float:
    """Return the seconds of ``"300ms"``, ``"1.5h"``, ``"36d"``; resolution one millisecond."""
    wanted = 'a duration such as "300ms", "30s", "5m", "24h" or "36d"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise BadValue(f"must be {wanted}", f'did you mean "{value}s"?')
    if not isinstance(value, str):
        raise BadValue(f"must be {wanted}")
    match = _DURATION.fullmatch(value)
    if match is None:
        raise BadValue(f"must be {wanted}", _unit_hint(value))
    whole, fraction, unit = match.groups()
    scale = 10 ** len(fraction or "")
    scaled = (int(whole) * scale + int(fraction or 0)) * _MILLISECONDS[unit]
    milliseconds, finer = divmod(scaled, scale)
    if finer:
        raise BadValue("must be a whole number of milliseconds")
    seconds: float = milliseconds / 1000
    if seconds > LONGEST_DURATION:
        raise BadValue(f"must be at most {format_duration(LONGEST_DURATION)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest text that :func:`parse_duration` reads as `seconds`."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    if milliseconds == _MILLISECONDS["d"]:
        return "24h"
    unit = next(u for u in ("d", "h", "m", "s", "ms") if milliseconds % _MILLISECONDS[u] == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"


def parse_size(value: object) -> int:
    """Return the octets of ``"25MiB"``; a plain number is octets already."""
    wanted = 'a size such as "512KiB", "25MiB" or "1GiB", or a number of octets'
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise BadValue(f"must be {wanted}")
        return value
    if not isinstance(value, str):
        raise BadValue(f"must be {wanted}")
    match = _SIZE.fullmatch(value)
    if match is None:
        raise BadValue(f"must be {wanted}")
    number, unit = match.groups()
    if unit not in _OCTETS:
        binary = {"k": "KiB", "m": "MiB", "g": "GiB"}.get(unit[:1].lower())
        raise BadValue(f"must be {wanted}", f'did you mean "{number}{binary}"?' if binary else "")
    return int(number) * _OCTETS[unit]


def format_size(octets: int) -> str:
    """Return the shortest text that :func:`parse_size` reads as `octets`."""
    if octets == 0:
        return "0B"
    unit = next(u for u in ("GiB", "MiB", "KiB", "B") if octets % _OCTETS[u] == 0)
    return f"{octets // _OCTETS[unit]}{unit}"


def parse_rate(value: object) -> Rate:
    """Return count and period of ``"10/s"``, ``"60/min"``, ``"600/hour"`` or ``"5000/day"``."""
    wanted = 'a rate such as "10/s", "60/min", "600/hour" or "5000/day"'
    if not isinstance(value, str):
        raise BadValue(f"must be {wanted}")
    match = _RATE.fullmatch(value)
    if match is None:
        raise BadValue(f"must be {wanted}")
    number, unit = match.groups()
    period = _PERIODS.get(unit)
    if period is None:
        hint = f'did you mean "{number}/min"?' if unit == "m" else ""
        raise BadValue(f"must be {wanted}", hint)
    if int(number) == 0:
        raise BadValue("must allow at least one event", "leave the key out to switch it off")
    return Rate(int(number), period)


_UNITS = {1.0: "s", 60.0: "min", 3600.0: "hour", 86400.0: "day"}


def format_rate(rate: Rate) -> str:
    """Return the text that :func:`parse_rate` reads as `rate`."""
    return f"{rate.count}/{_UNITS[rate.period]}"


SMALLEST_SIZE_RATE = 1024
LARGEST_SIZE_RATE = 1 << 40


def parse_size_rate(value: object) -> Rate:
    """Return octets and period of ``"500MiB/hour"`` or ``"10GiB/day"``."""
    wanted = 'a size in a time such as "500MiB/hour" or "10GiB/day"'
    match = _SIZE_RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise BadValue(f"must be {wanted}")
    size, unit = match.groups()
    period = _PERIODS.get(unit)
    try:
        octets = parse_size(size.strip())
    except BadValue as error:
        raise BadValue(f"must be {wanted}", error.hint) from None
    if period is None:
        raise BadValue(f"must be {wanted}", f'did you mean "{size}/min"?' if unit == "m" else "")
    if not SMALLEST_SIZE_RATE <= octets <= LARGEST_SIZE_RATE:
        raise BadValue(
            f"must be at least {format_size(SMALLEST_SIZE_RATE)} and at most "
            f"{format_size(LARGEST_SIZE_RATE)}",
            "" if octets else "leave the key out to switch it off",
        )
    return Rate(octets, period)


def format_size_rate(rate: Rate) -> str:
    """Return the text that :func:`parse_size_rate` reads as `rate`."""
    return f"{format_size(rate.count)}/{_UNITS[rate.period]}"


def parse_network(value: object) -> Network:
    """Return the network of ``"192.0.2.0/24"``, ``"2001:db8::/32"`` or of one address."""
    wanted = 'a network such as "192.0.2.0/24", "2001:db8::/32" or one address'
    if not isinstance(value, str):
        raise BadValue(f"must be {wanted}")
    try:
        network = ip_network(value)
    except ValueError:
        try:
            loose = ip_network(value, strict=False)
        except ValueError:
            raise BadValue(f"must be {wanted}") from None
        raise BadValue(
            "has bits set behind its prefix length", f'did you mean "{loose}"?'
        ) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        # Peers that reach a socket as ::ffff:a.b.c.d are IPv4 everywhere in preforkmx.
        mapped = network.network_address.ipv4_mapped
        length = max(network.prefixlen - 96, 0)
        hint = f'write "{ip_network((int(mapped), length), strict=False)}"' if length else ""
        raise BadValue("must not be an IPv4-mapped IPv6 network", hint)
    return network


def parse_host_name(value: object) -> str:
    """Return a host or domain name in lower case, without a dot at its end (RFC 1123)."""
    wanted = 'a domain name such as "mx.example.com"'
    if not isinstance(value, str) or not value:
        raise BadValue(f"must be {wanted}")
    if not value.isascii():
        raise BadValue(f"must be {wanted}", 'write an international name in its "xn--" form')
    name = value.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadValue(f"must be {wanted}", "labels of letters, digits and hyphens, with dots")
    if labels[-1].isdigit():
        raise BadValue(f"must be {wanted}, not an IP address")
    return name.lower()


def parse_domain(value: object) -> str:
    """Return a recipient domain as it is compared: a name, an address literal, or ``"*"``.

    An address literal is written as in an address: ``"[192.0.2.1]"``, ``"[IPv6:2001:db8::1]"``
    (RFC 5321 section 4.1.3).
    """
    if value == "*":
        return "*"
    if isinstance(value, str) and value.startswith("["):
        inner = value[1:-1] if value.endswith("]") else ""
        six = inner.lower().startswith("ipv6:")
        try:
            address = ip_address(inner[5:] if six else inner)
        except ValueError:
            address = None
        if address is None or (address.version == 6) != six:
            raise BadValue('must be an address literal such as "[192.0.2.1]" or "[IPv6:::1]"')
        return value.lower()
    if isinstance(value, str) and "@" in value:
        raise BadValue("must be a domain, not an address", f'did you mean "{value.split("@")[-1]}"')
    if isinstance(value, str) and value.startswith(("*.", ".")):
        raise BadValue("must be a whole domain", "list each subdomain by its name")
    return parse_host_name(value)


def _unit_hint(value: str) -> str:
    number = re.match(r"[0-9]+", value)
    if number is None:
        return ""
    unit = value[number.end() :].strip().lower()
    meant = "s" if not unit else _SPELLINGS.get(unit[:3])
    return f'did you mean "{number.group()}{meant}"?' if meant else ""
