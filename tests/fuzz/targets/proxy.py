"""PROXY headers: against a slow reading of the whole, whatever the pieces; never an octet that
is not the header's; and what is written is read again.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

from inputs import Choices

from preforkmx.errors import ProxyError
from preforkmx.protocol.crc32c import crc32c
from preforkmx.protocol.proxy import (
    V2_SIGNATURE,
    HeaderReader,
    ProxyInfo,
    ProxyTLS,
)

TOKENS = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1024 25\r\n",
    b"PROXY UNKNOWN\r\n",
    b" 65536",
    b" 025",
    b"%eth0",
    b"\r\n",
    b"\n",
    V2_SIGNATURE,
    b"\x20\x00\x00\x00",
    b"\x21\x11\x00\x0c",
    b"\x21\x21\x00\x24",
    bytes(10) + b"\xff\xff\xc0\0\2\1",
    b"\x01\x00\x02h2",
    b"\x02\x00\x09a.example",
    b"\x03\x00\x04\0\0\0\0",
    b"\x05\x00\x80" + b"u" * 128,
    b"\x05\x00\x81" + b"u" * 129,
    b"\x20\x00\x0f\x07\0\0\0\0\x21\x00\x07TLSv1.3",
    b"\x30\x00\x02ns",
    b"\xea\x00\x01\x01",
)
OUTCOMES = {"refused", "unfinished", "line", "unknown", "local", "addresses", "tls", "checksum"}
COUNT = 8000

_FIXED = 16
# Said here once more: the reading below believes nothing of the code.
V1_LIMIT, V2_LIMIT, UNIQUE_ID_LIMIT = 107, 16384, 128


def check(data: bytes) -> str:
    choices = Choices(data)
    repairs, cut = choices.octet(), choices.octet()
    octets = choices.rest()
    if repairs & 1:
        octets = _with_length(octets)
    if repairs & 2:
        octets = _with_checksum(octets)
    info, end = _read(octets, 1 << 16)
    for most in (1, cut + 1):
        in_pieces, in_pieces_end = _read(octets, most)
        if isinstance(info, str):
            # It may be known before the last octet that was wanted, and for another reason.
            assert isinstance(in_pieces, str)
            assert in_pieces_end <= end
        else:
            assert (in_pieces, in_pieces_end) == (info, end)
    size, expected = reference(octets)
    if size is None:
        # The end of such a header has not come; what is wrong with it already may be known.
        assert not isinstance(info, ProxyInfo)
        return "unfinished" if info is None else "refused"
    if expected is None:
        assert isinstance(info, str)
        # The first 12 octets are read at once, and no good header is shorter.
        assert end <= max(size, len(V2_SIGNATURE))
        return "refused"
    assert isinstance(info, ProxyInfo)
    assert end == size
    assert info == expected
    again, _ = _read(_written(info), 1 << 16)
    assert again == info or (info.version == 2 and _but_checksum(again) == _but_checksum(info))
    return _outcome(info)


def _read(octets: bytes, most: int) -> tuple[ProxyInfo | str | None, int]:
    """Read a header in pieces of at most `most` octets: what it says or is refused with."""
    reader = HeaderReader()
    while reader.received < len(octets):
        wanted, until_lf = reader.wanted
        assert wanted >= 1
        assert reader.received + wanted <= _FIXED + V2_LIMIT
        piece = octets[reader.received :][: min(wanted, most)]
        if until_lf and b"\n" in piece:
            piece = piece[: piece.index(b"\n") + 1]
        try:
            info = reader.feed(piece)
        except ProxyError as error:
            return str(error), reader.received
        if info is not None:
            return info, reader.received
    return None, reader.received


def reference(octets: bytes) -> tuple[int | None, ProxyInfo | None]:
    """Return the header's octets, and what it says.

    None for the first: its end has not come; None for the second: it is no good header.
    """
    if octets.startswith(b"PROXY "):
        line, lf, _ = octets[:V1_LIMIT].partition(b"\n")
        if not lf:
            return None, None
        return len(line) + 1, _line(line)
    if not octets.startswith(V2_SIGNATURE) or len(octets) < _FIXED:
        return None, None
    size = _FIXED + int.from_bytes(octets[14:16], "big")
    if len(octets) < size:
        return None, None
    return size, None if size > _FIXED + V2_LIMIT else _binary(octets[:size])


def _line(line: bytes) -> ProxyInfo | None:
    if line[-1:] != b"\r":
        return None
    _, family, *words = line[:-1].decode("latin-1").split(" ")
    if family == "UNKNOWN":
        return ProxyInfo(1)
    kind = {"TCP4": socket.AF_INET, "TCP6": socket.AF_INET6}.get(family)
    if kind is None or len(words) != 4 or not all(word.isascii() for word in words):
        return None
    for port in words[2:]:
        if not port.isdigit() or str(int(port)) != port or int(port) > 65535:
            return None
    try:
        source, destination = (socket.inet_pton(kind, word) for word in words[:2])
    except (OSError, ValueError):
        return None
    return ProxyInfo(
        1,
        source=(_address(source), int(words[2])),
        destination=(_address(destination), int(words[3])),
    )


def _address(packed: bytes) -> IPv4Address | IPv6Address:
    if packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _binary(header: bytes) -> ProxyInfo | None:
    if header[12] == 0x20:
        return ProxyInfo(2, local=True)
    family, transport = divmod(header[13], 16)
    if header[12] != 0x21 or family > 3 or transport > 1:
        return None
    block = Choices(header[_FIXED:])
    source = destination = None
    if family in (1, 2):
        size = 4 if family == 1 else 16
        packed = block.take(size), block.take(size)
        ports = block.take(2), block.take(2)
        if len(ports[1]) < 2:
            return None
        source = _address(packed[0]), int.from_bytes(ports[0], "big")
        destination = _address(packed[1]), int.from_bytes(ports[1], "big")
    elif family == 3 and len(block.take(216)) < 216:
        return None
    rest = block.rest()
    tlvs = _tlvs(rest)
    if tlvs is None or not _sum_is_right(header, len(header) - len(rest), tlvs):
        return None
    unique_id = _first(tlvs, 0x05)
    tls = _first(tlvs, 0x20)
    if len(unique_id or b"") > UNIQUE_ID_LIMIT:
        return None
    told = None
    if tls is not None:
        inner = _tlvs(tls[5:])
        if len(tls) < 5 or inner is None:
            return None
        certificate = tls[0] & 6 != 0
        told = ProxyTLS(
            bool(tls[0] & 1),
            certificate,
            certificate and tls[1:5] == bytes(4),
            *(_text(_first(inner, kind)) for kind in range(0x21, 0x26)),
        )
    return ProxyInfo(
        2,
        source=source,
        destination=destination,
        alpn=_first(tlvs, 0x01),
        authority=_text(_first(tlvs, 0x02)),
        unique_id=unique_id,
        tls=told,
        tlvs=tuple(tlvs),
        namespace=_text(_first(tlvs, 0x30)),
    )


def _tlvs(octets: bytes) -> list[tuple[int, bytes]] | None:
    tlvs = []
    block = Choices(octets)
    while block.left:
        kind, length = block.octet(), block.take(2)
        value = block.take(int.from_bytes(length, "big"))
        if len(length) < 2 or len(value) < int.from_bytes(length, "big"):
            return None
        tlvs.append((kind, value))
    return tlvs


def _first(tlvs: list[tuple[int, bytes]], wanted: int) -> bytes | None:
    return next((value for kind, value in tlvs if kind == wanted), None)


def _text(value: bytes | None) -> str | None:
    text = "\n" if value is None else value.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else None


def _sum_is_right(header: bytes, begin: int, tlvs: list[tuple[int, bytes]]) -> bool:
    sums = [value for kind, value in tlvs if kind == 0x03]
    if not sums:
        return True
    if len(sums) > 1 or len(sums[0]) != 4:
        return False
    before = begin + sum(3 + len(value) for _, value in tlvs[: tlvs.index((0x03, sums[0]))])
    zeroed = header[: before + 3] + bytes(4) + header[before + 7 :]
    return slow_crc32c(zeroed) == int.from_bytes(sums[0], "big")


def slow_crc32c(octets: bytes) -> int:
    """Divide bit by bit."""
    remainder = 0xFFFFFFFF
    for octet in octets:
        for place in range(8):
            bit = (remainder ^ octet >> place) & 1
            remainder = remainder >> 1 ^ (0x82F63B78 if bit else 0)
    return remainder ^ 0xFFFFFFFF


def _with_length(octets: bytes) -> bytes:
    """Let a header of version 2 tell the length of what there is."""
    if len(octets) < _FIXED or not octets.startswith(V2_SIGNATURE):
        return octets
    return octets[:14] + (len(octets) - _FIXED).to_bytes(2, "big") + octets[_FIXED:]


def _with_checksum(octets: bytes) -> bytes:
    """Make the checksum of a header of version 2 right, where it has one."""
    if len(octets) < _FIXED or octets[13] >> 4 > 3:
        return octets
    at = _FIXED + (0, 12, 36, 216)[octets[13] >> 4]
    size = _FIXED + int.from_bytes(octets[14:16], "big")
    while at + 7 <= size <= len(octets):
        length = int.from_bytes(octets[at + 1 : at + 3], "big")
        if octets[at] == 3 and length == 4:
            zeroed = octets[: at + 3] + bytes(4) + octets[at + 7 : size]
            return zeroed[: at + 3] + crc32c(zeroed).to_bytes(4, "big") + octets[at + 7 :]
        at += 3 + length
    return octets


def _written(info: ProxyInfo) -> bytes:
    """Write the header that says `info`."""
    if info.local:
        return V2_SIGNATURE + b"\x20\0\0\0"
    if info.source is None or info.destination is None:
        if info.version == 1:
            return b"PROXY UNKNOWN\r\n"
        family, addresses = 0, b""
    else:
        ends = info.source, info.destination
        # A family of its own has the pair of an address that was mapped and one that was not.
        wide = any(address.version == 6 for address, _ in ends)
        if info.version == 1:
            words = [f"::ffff:{a}" if wide and a.version == 4 else str(a) for a, _ in ends]
            words += [str(port) for _, port in ends]
            return f"PROXY TCP{6 if wide else 4} {' '.join(words)}\r\n".encode()
        family = 2 if wide else 1
        addresses = b"".join(
            (bytes(10) + b"\xff\xff" if wide and a.version == 4 else b"") + a.packed
            for a, _ in ends
        ) + b"".join(port.to_bytes(2, "big") for _, port in ends)
    for kind, value in info.tlvs:
        addresses += bytes((kind,)) + len(value).to_bytes(2, "big") + value
    fixed = V2_SIGNATURE + bytes((0x21, family << 4 | 1)) + len(addresses).to_bytes(2, "big")
    return _with_checksum(fixed + addresses)


def _but_checksum(info: ProxyInfo | str | None) -> ProxyInfo:
    """`info` without the one value that is about the header's octets, not their meaning."""
    assert isinstance(info, ProxyInfo)
    return info._replace(tlvs=tuple(tlv for tlv in info.tlvs if tlv[0] != 3))


def _outcome(info: ProxyInfo) -> str:
    if info.local:
        return "local"
    if info.version == 1:
        return "unknown" if info.source is None else "line"
    if any(kind == 3 for kind, _ in info.tlvs):
        return "checksum"
    if info.tls is not None:
        return "tls"
    return "addresses" if info.source is not None else "unknown"
