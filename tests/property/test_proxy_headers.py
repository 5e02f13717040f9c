"""PROXY headers and XCLIENT: what is written is read again, and nothing breaks a parser."""

from __future__ import annotations

from ipaddress import IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.errors import ProxyError
from preforkmx.protocol import xtext
from preforkmx.protocol.crc32c import crc32c
from preforkmx.protocol.proxy import V1_LIMIT, V2_SIGNATURE, HeaderReader, ProxyInfo
from preforkmx.protocol.replies import XCLIENT_SYNTAX
from preforkmx.protocol.xclient import ATTRIBUTES, XClient, parse

ports = st.integers(0, 65535)
ipv4 = st.ip_addresses(v=4)
ipv6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)
pairs = st.tuples(ipv4, ipv4) | st.tuples(ipv6, ipv6)
# Types that have no rule of their own.
opaque = st.sampled_from([0x01, 0x02, 0x04, 0x30, 0x77, 0xE0, 0xEA, 0xEE, 0xFF])
tlvs = st.lists(st.tuples(opaque, st.binary(max_size=300)), max_size=8)


def read(octets, cuts=(1,)):
    """Read one header in pieces of at most `cuts` octets, in turn: what it says, and its end."""
    reader = HeaderReader()
    turn = 0
    while reader.received < len(octets):
        most, until_lf = reader.wanted
        piece = octets[reader.received :][: min(most, cuts[turn % len(cuts)])]
        if until_lf and b"\n" in piece:
            piece = piece[: piece.index(b"\n") + 1]
        turn += 1
        info = reader.feed(piece)
        if info is not None:
            return info, reader.received
        assert reader.wanted.octets >= 1
    return None, reader.received


sizes = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@st.composite
def lines(draw):
    source, destination = draw(pairs)
    ports_ = draw(ports), draw(ports)
    line = f"PROXY TCP{source.version} {source} {destination} {ports_[0]} {ports_[1]}\r\n"
    info = ProxyInfo(1, source=(source, ports_[0]), destination=(destination, ports_[1]))
    return line.encode(), info


def encode(source, destination, source_port, destination_port, values, *, checksum):
    block = source.packed + destination.packed
    block += source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    at = None
    for kind, value in values:
        block += bytes([kind]) + len(value).to_bytes(2, "big") + value
        if kind == 3:
            at = 16 + len(block) - 4
    family = 0x11 if source.version == 4 else 0x21
    header = V2_SIGNATURE + bytes([0x21, family]) + len(block).to_bytes(2, "big") + block
    if checksum:
        header = header[:at] + crc32c(header).to_bytes(4, "big") + header[at + 4 :]
    return header


@st.composite
def binaries(draw):
    source, destination = draw(pairs)
    ports_ = draw(ports), draw(ports)
    values = draw(tlvs)
    checksum = draw(st.booleans())
    if checksum:
        values.insert(draw(st.integers(0, len(values))), (3, bytes(4)))
    header = encode(source, destination, *ports_, values, checksum=checksum)
    return header, source, destination, ports_, values


@given(lines(), st.binary(max_size=20), sizes)
@settings(deadline=None)
def test_version_1_is_read_as_it_was_written(line, behind, cuts):
    octets, info = line
    assert read(octets + behind, cuts) == (info, len(octets))


@given(binaries(), st.binary(max_size=20), sizes)
@settings(deadline=None)
def test_version_2_is_read_as_it_was_written(binary, behind, cuts):
    octets, source, destination, ports_, values = binary
    info, end = read(octets + behind, cuts)
    assert end == len(octets)
    assert info.source == (source, ports_[0])
    assert info.destination == (destination, ports_[1])
    assert [(kind, value) for kind, value in info.tlvs if kind != 3] == [
        (kind, value) for kind, value in values if kind != 3
    ]
    assert len(info.tlvs) == len(values)


@given(binaries(), st.data())
@settings(deadline=None)
def test_a_flipped_bit_under_a_checksum_is_never_believed(binary, data):
    octets, *_, values = binary
    kinds = [kind for kind, _ in values]
    if 3 not in kinds:
        return
    whole, _ = read(octets)
    bit = data.draw(st.integers(0, 8 * len(octets) - 1))
    bad = bytearray(octets)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        info, _ = read(bytes(bad))
    except ProxyError:
        return
    # None: longer now, or LOCAL, or the checksum's own type or place was hit: never the same
    # header with another client in it.
    if info is not None and not info.local and 3 in [kind for kind, _ in info.tlvs]:
        raise AssertionError(f"{whole} became {info}")


@given(lines().map(lambda line: line[0]) | binaries().map(lambda binary: binary[0]), st.data())
@settings(deadline=None)
def test_of_every_prefix_of_a_good_header_more_is_needed(header, data):
    cut = data.draw(st.integers(0, len(header) - 1))
    assert read(header[:cut], (len(header),)) == (None, cut)


@given(
    st.binary(max_size=200)
    | st.binary(max_size=100).map(lambda octets: b"PROXY " + octets)
    | st.builds(
        lambda family, words: b"PROXY " + family + b" " + b" ".join(words) + b"\r\n",
        st.sampled_from([b"TCP4", b"TCP6"]),
        st.lists(st.sampled_from([b"1.2.3.4", b"::1", b"25", b"", b"\0"]) | st.binary(max_size=6)),
    )
    | st.builds(
        lambda fixed, rest: V2_SIGNATURE + fixed + len(rest).to_bytes(2, "big") + rest,
        st.tuples(st.sampled_from([0x20, 0x21]), st.sampled_from([0, 1, 0x11, 0x21, 0x31])).map(
            bytes
        ),
        st.binary(max_size=400),
    ),
    sizes,
)
@settings(deadline=None, max_examples=400)
def test_nothing_but_a_proxy_error_comes_of_random_octets(octets, cuts):
    try:
        info, end = read(octets, cuts)
    except ProxyError as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert error.reason.isprintable()
        assert not error.closed
        return
    assert info is not None or end == len(octets)
    if info is not None and info.version == 1:
        assert end <= V1_LIMIT
        assert octets[:end].endswith(b"\r\n")
    for text in () if info is None else (info.authority, info.namespace, *(info.tls or ())):
        assert not isinstance(text, str) or text.isprintable()


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60).filter(
    lambda text: text.upper() not in {"[UNAVAILABLE]", "[TEMPUNAVAIL]"}
)
said = {
    "NAME": words,
    "ADDR": ipv4 | ipv6,
    "PORT": ports,
    "PROTO": st.sampled_from(["SMTP", "ESMTP"]),
    "HELO": words,
    "LOGIN": st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=60),
    "DESTADDR": ipv4 | ipv6,
    "DESTPORT": ports,
}
FIELDS = dict(zip(ATTRIBUTES, XClient._fields[1:], strict=True))


def attribute(name, value):
    text = f"IPV6:{value}" if isinstance(value, IPv6Address) else str(value)
    return f"{name}={xtext.encode(text.encode())}".encode()


@given(st.fixed_dictionaries({}, optional=said))
@settings(deadline=None)
def test_xclient_is_read_as_it_was_written(values):
    values = {name: value for name, value in values.items() if len(str(value).encode()) <= 255}
    argument = b" ".join(map(attribute, values, values.values()))
    expected = XClient(
        given=frozenset(values), **{FIELDS[name]: value for name, value in values.items()}
    )
    assert parse(argument) == (expected if values else XCLIENT_SYNTAX)


@given(
    st.binary(max_size=200)
    | st.lists(
        st.builds(
            lambda name, value: name.encode() + b"=" + value,
            st.sampled_from(ATTRIBUTES),
            st.binary(max_size=40)
            | st.sampled_from(
                [b"1", b"1.2.3.4", b"IPV6:::1", b"SMTP", b"+41", b"+", b"[unavailable]"]
            ),
        ),
        max_size=6,
    ).map(b" ".join)
)
@settings(deadline=None, max_examples=400)
def test_nothing_that_xclient_is_told_breaks_it(argument):
    told = parse(argument)
    if told is XCLIENT_SYNTAX:
        return
    assert told.given
    for text in (told.name, told.helo, told.login):
        assert text is None or text.isprintable()
