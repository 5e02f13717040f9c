"""Version 2 of the PROXY protocol: addresses and TLVs in binary."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.errors import ProxyError
from preforkmx.protocol.crc32c import crc32c
from preforkmx.protocol.proxy import V2_SIGNATURE, HeaderReader, ProxyInfo, ProxyTLS

INET = bytes.fromhex("c0000201 c6336407 9c40 0019")
SOURCE = (ip_address("192.0.2.1"), 40000)
DESTINATION = (ip_address("198.51.100.7"), 25)


def header(*parts, command=0x21, family=0x11):
    rest = b"".join(parts)
    return V2_SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


def tlv(kind, value):
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def read(octets):
    reader = HeaderReader()
    while True:
        piece = octets[reader.received :][: reader.wanted.octets]
        assert piece, "more is wanted than there is"
        info = reader.feed(piece)
        if info is not None:
            assert reader.received == len(octets)
            return info


def with_checksum(*before, behind=b""):
    whole = header(INET, *before, tlv(3, bytes(4)), behind)
    at = len(whole) - len(behind) - 4
    return whole[:at] + crc32c(whole).to_bytes(4, "big") + whole[at + 4 :]


def test_the_checksum_is_the_one_of_castagnoli():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("family", [0x10, 0x11])
def test_ipv4(family):
    info = read(header(INET, family=family))
    assert info == ProxyInfo(2, source=SOURCE, destination=DESTINATION)


def test_ipv6():
    block = (
        ip_address("2001:db8::1").packed + ip_address("2001:db8::2").packed + b"\x9c\x40\x00\x19"
    )
    assert read(header(block, family=0x21)) == ProxyInfo(
        2,
        source=(ip_address("2001:db8::1"), 40000),
        destination=(ip_address("2001:db8::2"), 25),
    )


def test_an_ipv4_mapped_address_is_ipv4():
    mapped = ip_address("::ffff:192.0.2.1").packed + ip_address("::ffff:198.51.100.7").packed
    info = read(header(mapped, b"\x9c\x40\x00\x19", family=0x21))
    assert (info.source, info.destination) == (SOURCE, DESTINATION)


@pytest.mark.parametrize(("family", "block"), [(0x00, b""), (0x01, b""), (0x31, b"/" * 216)])
def test_without_an_internet_address_the_sockets_own_hold_and_tlvs_are_read(family, block):
    info = read(header(block, tlv(5, b"id"), family=family))
    assert info == ProxyInfo(2, unique_id=b"id", tlvs=((5, b"id"),))


@pytest.mark.parametrize(("family", "size"), [(0x11, 12), (0x21, 36), (0x31, 216)])
def test_addresses_that_are_cut_off_are_an_error(family, size):
    for short in (0, 1, size - 1):
        with pytest.raises(ProxyError, match="addresses are cut off"):
            read(header(bytes(short), family=family))


@pytest.mark.parametrize("family", [0x00, 0x11, 0x12, 0x21, 0x55, 0xFF])
@pytest.mark.parametrize("rest", [b"", b"\1", INET, INET + tlv(3, b"bad!"), b"\xff" * 300])
def test_of_local_nothing_is_read_but_its_length(family, rest):
    assert read(header(rest, command=0x20, family=family)) == ProxyInfo(2, local=True)


def test_the_tlvs_stand_on_the_info_and_raw_in_their_order():
    tlvs = (
        (0x01, b"\0smtp"),
        (0x02, "mx.exämple".encode()),
        (0x04, b"\0" * 5),
        (0x05, b"\x01\x02"),
        (0x30, b"blue"),
        (0xEA, b"\x01vpce-08d2bf15fac5001c9"),
        (0xEE, b"\x01\x04\x03\x02\x01"),
        (0xEE, b""),
        (0x77, b"\xff"),
    )
    assert read(header(INET, *(tlv(kind, value) for kind, value in tlvs))) == ProxyInfo(
        2,
        source=SOURCE,
        destination=DESTINATION,
        alpn=b"\0smtp",
        authority="mx.exämple",
        unique_id=b"\x01\x02",
        namespace="blue",
        tlvs=tlvs,
    )


@pytest.mark.parametrize(
    "value", [b"\xff", b"a\r\nb", b"a\0", b"\x1b[2J", b"\x7f", "\x85".encode(), "\u2028".encode()]
)
def test_a_text_that_could_harm_a_log_is_in_its_raw_tlv_only(value):
    inner = b"".join(tlv(kind, value) for kind in range(0x21, 0x26))
    raw = bytes([1, 0, 0, 0, 0]) + inner
    info = read(header(INET, tlv(2, value), tlv(0x30, value), tlv(0x20, raw)))
    assert info.authority is None
    assert info.namespace is None
    assert info.tls == ProxyTLS(True, False, False)
    assert info.tlvs == ((2, value), (0x30, value), (0x20, raw))


def test_where_a_type_comes_twice_the_first_holds():
    info = read(header(INET, tlv(2, b"one"), tlv(2, b"two")))
    assert info.authority == "one"
    assert info.tlvs == ((2, b"one"), (2, b"two"))


def test_a_unique_id_has_at_most_128_octets():
    assert read(header(INET, tlv(5, b"x" * 128))).unique_id == b"x" * 128
    with pytest.raises(ProxyError, match="unique id"):
        read(header(INET, tlv(5, b"x" * 129)))


@pytest.mark.parametrize(
    "rest", [b"\x04", b"\x04\0", b"\x04\0\1", b"\x04\xff\xff", b"\x04\0\0\x04"]
)
def test_a_tlv_that_is_cut_off_is_an_error(rest):
    with pytest.raises(ProxyError, match="TLV is cut off"):
        read(header(INET, rest))


def test_a_checksum_covers_the_whole_header():
    good = with_checksum(tlv(2, b"mx.example"), behind=tlv(4, b"pad"))
    assert read(good).authority == "mx.example"
    kind = good.index(b"\x03\0\x04")
    for at in (12, 13, *(at for at in range(16, len(good)) if at != kind)):
        bad = bytearray(good)
        bad[at] ^= 0x40
        with pytest.raises(ProxyError):
            read(bytes(bad))


def test_a_wrong_checksum_is_an_error():
    good = with_checksum()
    with pytest.raises(ProxyError, match="the checksum is wrong"):
        read(good[:-1] + bytes([good[-1] ^ 1]))


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_checksum_has_4_octets(size):
    with pytest.raises(ProxyError, match="checksum has not 4 octets"):
        read(header(INET, tlv(3, bytes(size))))


def test_a_second_checksum_is_an_error():
    with pytest.raises(ProxyError, match="two checksums"):
        read(with_checksum(tlv(3, bytes(4))))


def test_a_tls_layer_with_all_its_sub_tlvs():
    value = bytes([0x07, 0, 0, 0, 0]) + b"".join(
        (
            tlv(0x21, b"TLSv1.3"),
            tlv(0x22, "Jürgen".encode()),
            tlv(0x23, b"TLS_AES_256_GCM_SHA384"),
            tlv(0x24, b"SHA256"),
            tlv(0x25, b"RSA2048"),
            tlv(0x28, b"\x30\x82"),
        )
    )
    assert read(header(INET, tlv(0x20, value))).tls == ProxyTLS(
        client_ssl=True,
        client_certificate=True,
        verified=True,
        version="TLSv1.3",
        common_name="Jürgen",
        cipher="TLS_AES_256_GCM_SHA384",
        signature_algorithm="SHA256",
        key_algorithm="RSA2048",
    )


@pytest.mark.parametrize(
    ("client", "verify", "tls"),
    [
        (0, 0, ProxyTLS(False, False, False)),
        (1, 0, ProxyTLS(True, False, False)),
        (1, 1, ProxyTLS(True, False, False)),
        (3, 0, ProxyTLS(True, True, True)),
        (5, 0, ProxyTLS(True, True, True)),
        (3, 1, ProxyTLS(True, True, False)),
        (5, 0x01000000, ProxyTLS(True, True, False)),
    ],
)
def test_only_a_certificate_that_was_presented_is_verified(client, verify, tls):
    value = bytes([client]) + verify.to_bytes(4, "big")
    assert read(header(INET, tlv(0x20, value))).tls == tls


@pytest.mark.parametrize("value", [b"", b"\1\0\0\0", b"\1\0\0\0\0\x21", b"\1\0\0\0\0\x21\0\2v"])
def test_a_tls_layer_that_is_cut_off_is_an_error(value):
    with pytest.raises(ProxyError, match="cut off"):
        read(header(INET, tlv(0x20, value)))
