"""The PROXY protocol, versions 1 and 2: what a header says of the client.

The rules are those of HAProxy's proxy-protocol.txt, whose sections are named below. A header
stands before everything else on its connection, a TLS handshake too, and whatever follows it
may come in the same segment. :class:`HeaderReader` therefore says before each read how much may
be read, so that its caller never takes an octet that is not the header's.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from preforkmx.errors import LocalProtocolError, ProxyError
from preforkmx.protocol.crc32c import crc32c

V1_LIMIT = 107
"""Octets of a header of version 1, CRLF included (section 2.1)."""
V2_LIMIT = 16384
"""Octets that may follow the first 16 of a header of version 2. The format allows 65,535; real
headers have some hundreds, and a client certificate in a TLV some thousands."""
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""What version 2 begins with (section 2.2)."""
UNIQUE_ID_LIMIT = 128
"""Octets of PP2_TYPE_UNIQUE_ID (section 2.2.5)."""

_V1_PREFIX = b"PROXY "
_V2_FIXED = 16
# The types of section 2.2, and the sub-types of PP2_TYPE_SSL (section 2.2.6).
_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _NETNS = 0x01, 0x02, 0x03, 0x05, 0x20, 0x30
_SSL_VERSION, _SSL_CN, _SSL_CIPHER, _SSL_SIG_ALG, _SSL_KEY_ALG = range(0x21, 0x26)
_CLIENT_SSL, _CLIENT_CERT_CONN, _CLIENT_CERT_SESS = 0x01, 0x02, 0x04
# Octets of both addresses and ports, by the address family: AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX.
_ADDRESS_BLOCK = (0, 12, 36, 216)

_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")

Endpoint = tuple[IPv4Address | IPv6Address, int]


class ProxyTLS(NamedTuple):
    """PP2_TYPE_SSL: the TLS layer between the client and the proxy.

    A text that is not printable UTF-8 is None.
    """

    client_ssl: bool
    """The client connected with TLS."""
    client_certificate: bool
    """The client presented a certificate, on this connection or in this TLS session."""
    verified: bool
    """The certificate was presented, and verified."""
    version: str | None = None
    common_name: str | None = None
    cipher: str | None = None
    signature_algorithm: str | None = None
    key_algorithm: str | None = None


class ProxyInfo(NamedTuple):
    """What a PROXY header said."""

    version: int
    """1 or 2."""
    local: bool = False
    """``LOCAL`` (version 2): the proxy's own connection, a health check."""
    source: Endpoint | None = None
    """The client's address and port; None: the header named none (UNKNOWN, LOCAL, a unix
    socket), and the socket's own hold."""
    destination: Endpoint | None = None
    """The address and port that the client connected to."""
    alpn: bytes | None = None
    authority: str | None = None
    """The host name that the client asked for; None also where it is not printable UTF-8."""
    unique_id: bytes | None = None
    tls: ProxyTLS | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Every TLV of version 2 in its order, raw: those of AWS (0xEA) and Azure (0xEE) too."""
    namespace: str | None = None
    """PP2_TYPE_NETNS; None also where it is not printable UTF-8."""


class Wanted(NamedTuple):
    """What may be read next."""

    octets: int
    """At most so many; at least one."""
    until_lf: bool
    """… and nothing behind the first LF among them."""


class HeaderReader:
    """Reads one header, octet by octet or at once.

    The caller reads as much as :attr:`wanted` allows, gives it to :meth:`feed`, and does so
    again until feed returns what the header says. Then, and only then, the connection stands
    at the first octet behind the header. After an error the reader is of no more use.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._size = len(V2_SIGNATURE)
        self._text = False

    @property
    def wanted(self) -> Wanted:
        """What may be read next."""
        return Wanted(self._size - len(self._header), self._text)

    @property
    def received(self) -> int:
        """How many octets of the header were fed."""
        return len(self._header)

    def feed(self, octets: bytes) -> ProxyInfo | None:
        """Take the next octets of the header: what it says, or None while it is not whole.

        :raises ProxyError: this is no header, or not a good one.
        :raises LocalProtocolError: `octets` are more than was wanted.
        """
        wanted = self.wanted
        if len(octets) > wanted.octets or (wanted.until_lf and b"\n" in octets[:-1]):
            raise LocalProtocolError("octets were read that may not be the header's")
        self._header += octets
        header = self._header
        if not self._text and self._size == len(V2_SIGNATURE):
            # The shortest headers have 15 octets (version 1) and 16: 12 are no one else's.
            if header.startswith(_V1_PREFIX):
                self._text, self._size = True, V1_LIMIT
            elif header == V2_SIGNATURE:
                self._size = _V2_FIXED
            elif not (V2_SIGNATURE.startswith(header) or _V1_PREFIX.startswith(header)):
                raise ProxyError("it does not begin like a PROXY header")
        if self._text:
            return self._line()
        if self._size == _V2_FIXED and len(header) == _V2_FIXED:
            self._size += _v2_length(header)
        return _v2(bytes(header)) if len(header) == self._size else None

    def _line(self) -> ProxyInfo | None:
        end = self._header.find(b"\n")
        if end >= 0:
            return _v1(bytes(self._header))
        if len(self._header) == V1_LIMIT:
            raise ProxyError(f"no CRLF within {V1_LIMIT} octets")
        return None


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return `address`, as IPv4 where it is an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _v1(line: bytes) -> ProxyInfo:
    """Read a whole line of version 1 (section 2.1)."""
    if not line.endswith(b"\r\n") or line.count(b"\n") > 1:
        raise ProxyError("the line does not end with CRLF")
    family, space, rest = line[len(_V1_PREFIX) : -2].partition(b" ")
    if family == b"UNKNOWN":
        # Section 2.1: anything may follow, and has to be ignored.
        return ProxyInfo(1)
    if family not in {b"TCP4", b"TCP6"} or not space:
        raise ProxyError("the protocol is none of TCP4, TCP6 and UNKNOWN")
    if not rest.isascii():
        raise ProxyError("the line is not ASCII")
    words = rest.decode("ascii").split(" ")
    if len(words) != 4:
        raise ProxyError("there are not two addresses and two ports with single spaces")
    read = _ipv4 if family == b"TCP4" else _ipv6
    source, destination, source_port, destination_port = words
    return ProxyInfo(
        1,
        source=(read(source), _port(source_port)),
        destination=(read(destination), _port(destination_port)),
    )


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ProxyError("an address is not an IPv4 address") from None


def _ipv6(text: str) -> IPv4Address | IPv6Address:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise ProxyError("an address is not an IPv6 address") from None
    if address.scope_id is not None:
        # A zone means something on one machine only, and may hold anything.
        raise ProxyError("an IPv6 address has a zone")
    return unmapped(address)


def _port(text: str) -> int:
    if _NUMBER.fullmatch(text) is None or (port := int(text)) > 65535:
        raise ProxyError("a port is not a decimal number from 0 to 65535 without leading zeros")
    return port


def _v2_length(fixed: bytearray) -> int:
    """Check the first 16 octets of version 2 and return how many follow."""
    version, command = fixed[12] >> 4, fixed[12] & 15
    if version != 2:
        raise ProxyError(f"the version is {version}")
    if command > 1:
        raise ProxyError(f"the command is {command}, neither LOCAL nor PROXY")
    if command == 1:
        family, transport = fixed[13] >> 4, fixed[13] & 15
        if family >= len(_ADDRESS_BLOCK):
            raise ProxyError(f"the address family is {family}")
        if transport > 1:
            raise ProxyError(f"the transport is {transport}, not a stream")
    length = int.from_bytes(fixed[14:16], "big")
    if length > V2_LIMIT:
        raise ProxyError(f"the header has {length} octets, and {V2_LIMIT} are the limit")
    return length


def _v2(header: bytes) -> ProxyInfo:
    """Read a whole header of version 2 whose first 16 octets were checked (section 2.2)."""
    if header[12] & 15 == 0:
        # Section 2.2: of a LOCAL header the receiver discards everything that follows.
        return ProxyInfo(2, local=True)
    family = header[13] >> 4
    begin = _V2_FIXED + _ADDRESS_BLOCK[family]
    if len(header) < begin:
        raise ProxyError("the addresses are cut off")
    source, destination = _endpoints(family, header[_V2_FIXED:begin])
    tlvs = _tlvs(header, begin)
    _check_sum(header, begin, tlvs)
    # Nothing is said of a type that comes twice: the first holds, and all are in `tlvs`.
    first = dict(reversed(tlvs))
    unique_id = first.get(_UNIQUE_ID)
    if unique_id is not None and len(unique_id) > UNIQUE_ID_LIMIT:
        raise ProxyError(f"the unique id has more than {UNIQUE_ID_LIMIT} octets")
    tls = first.get(_SSL)
    return ProxyInfo(
        2,
        source=source,
        destination=destination,
        alpn=first.get(_ALPN),
        authority=_text(first.get(_AUTHORITY)),
        unique_id=unique_id,
        tls=None if tls is None else _tls(tls),
        tlvs=tlvs,
        namespace=_text(first.get(_NETNS)),
    )


def _endpoints(family: int, block: bytes) -> tuple[Endpoint | None, Endpoint | None]:
    ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
    if family == 1:
        return (IPv4Address(block[:4]), ports[0]), (IPv4Address(block[4:8]), ports[1])
    if family == 2:
        source, destination = IPv6Address(block[:16]), IPv6Address(block[16:32])
        return (unmapped(source), ports[0]), (unmapped(destination), ports[1])
    return None, None


def _tlvs(octets: bytes, begin: int) -> tuple[tuple[int, bytes], ...]:
    """Split what stands from `begin` on into types and values (section 2.2)."""
    tlvs = []
    while begin < len(octets):
        value = begin + 3
        end = value + int.from_bytes(octets[begin + 1 : value], "big")
        if end > len(octets):
            raise ProxyError("a TLV is cut off")
        tlvs.append((octets[begin], octets[value:end]))
        begin = end
    return tuple(tlvs)


def _check_sum(header: bytes, begin: int, tlvs: tuple[tuple[int, bytes], ...]) -> None:
    """Check PP2_TYPE_CRC32C, where it is present (section 2.2.3)."""
    at = 0
    for kind, value in tlvs:
        begin += 3
        if kind == _CRC32C:
            if at:
                raise ProxyError("there are two checksums")
            if len(value) != 4:
                raise ProxyError("the checksum has not 4 octets")
            at = begin
        begin += len(value)
    if not at:
        return
    zeroed = header[:at] + bytes(4) + header[at + 4 :]
    if crc32c(zeroed) != int.from_bytes(header[at : at + 4], "big"):
        raise ProxyError("the checksum is wrong")


def _tls(octets: bytes) -> ProxyTLS:
    """Read the value of PP2_TYPE_SSL (section 2.2.6)."""
    if len(octets) < 5:
        raise ProxyError("the SSL TLV is cut off")
    client, verify = octets[0], octets[1:5]
    first = dict(reversed(_tlvs(octets, 5)))
    presented = bool(client & (_CLIENT_CERT_CONN | _CLIENT_CERT_SESS))
    return ProxyTLS(
        client_ssl=bool(client & _CLIENT_SSL),
        client_certificate=presented,
        # Zero means verified, but also stands where there was nothing to verify.
        verified=presented and not any(verify),
        version=_text(first.get(_SSL_VERSION)),
        common_name=_text(first.get(_SSL_CN)),
        cipher=_text(first.get(_SSL_CIPHER)),
        signature_algorithm=_text(first.get(_SSL_SIG_ALG)),
        key_algorithm=_text(first.get(_SSL_KEY_ALG)),
    )


def _text(value: bytes | None) -> str | None:
    """Return text that may stand in a log line, else None; the octets are in the raw TLV."""
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None
