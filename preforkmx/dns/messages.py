"""Queries and answers as octets (RFC 1035 section 4).

Reading names, which may be compressed, is dnspython's business. The rest of an answer is not: its
``message.from_wire`` makes an object of every record and takes about five times as long, and a
record that nobody asked for need not be read.

An answer is hostile input. It may have :data:`MAX_RECORDS` records and :data:`MAX_NAME_OCTETS`
octets of names; what goes beyond is malformed.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.exception
import dns.name

from preforkmx.dns.answer import MX
from preforkmx.dns.names import labels_of, wire_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.dns.answer import Record, RecordType
    from preforkmx.dns.names import Labels

#: The largest UDP answer that we ask for (EDNS0): one that no path has to fragment.
UDP_PAYLOAD: Final = 1232
#: The most records in all sections of an answer.
MAX_RECORDS: Final = 256
#: The most octets of all names that are read in an answer, uncompressed. Each octet of a name
#: costs about a microsecond, and compression makes 255 of them out of two.
MAX_NAME_OCTETS: Final = 8192
#: The longest chain of CNAME records.
MAX_CHAIN: Final = 8

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

_TYPES: Final[dict[RecordType, int]] = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
}
_IN: Final = 1
_CNAME: Final = 5
_SOA: Final = 6
_OPT: Final = 41

_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_TRUNCATED: Final = 0x0200
_RECURSE: Final = 0x0100

_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_PAIR = struct.Struct("!HH")
_NUMBER = struct.Struct("!H")
_LONG = struct.Struct("!L")
_TO_QUESTION: Final = b"\xc0\x0c"
# RFC 6891 section 6.1.2: the root, OPT, our size, extended rcode and flags, no options.
_EDNS = b"\0" + _FIXED.pack(_OPT, UDP_PAYLOAD, 0, 0)


class Malformed(Exception):
    """An answer that does not follow RFC 1035, or goes beyond the limits."""


class Reading(NamedTuple):
    """What stands in an answer."""

    rcode: int
    """With the upper bits of EDNS."""
    truncated: bool = False
    """There is more than this; the rest of the reading is left out."""
    records: tuple[Record, ...] = ()
    ttl: int | None = None
    """Seconds; of an answer without records the time for which that may be believed (RFC 2308
    section 5), None if nothing says how long."""


class Question:
    """A name and type, and their octets.

    :param name: as :func:`~preforkmx.dns.names.normal_name` gives it.
    :raises DNSNameError: it is no name.
    """

    __slots__ = ("labels", "name", "rdtype", "section", "type")

    def __init__(self, name: str, rdtype: RecordType) -> None:
        self.name = name
        self.rdtype = rdtype
        self.type = _TYPES[rdtype]
        self.labels = labels_of(name)
        #: The question section: name, type and class.
        self.section = wire_name(self.labels) + _PAIR.pack(self.type, _IN)

    def query(self, number: int, *, edns: bool) -> bytes:
        """Return the query with this id."""
        header = _HEADER.pack(number, _RECURSE, 1, 0, 0, 1 if edns else 0)
        return header + self.section + (_EDNS if edns else b"")

    def is_answered_by(self, wire: bytes) -> bool:
        """Return whether `wire` is an answer to this question; its id is the caller's business.

        An error may leave the question out: some servers do not repeat what they cannot read.
        """
        if len(wire) < _HEADER.size:
            return False
        _, flags, questions, answers, _, _ = _HEADER.unpack_from(wire)
        if flags & (_RESPONSE | _OPCODE) != _RESPONSE:
            return False
        if not questions:
            return not answers and flags & 0xF in {FORMERR, SERVFAIL, NOTIMP, REFUSED}
        end = _HEADER.size + len(self.section)
        # The octets in front of labels are below "A": lower() changes no length.
        return (
            questions == 1
            and wire[12 : end - 4].lower() == self.section[:-4]
            and wire[end - 4 : end] == self.section[-4:]
        )


def id_of(wire: bytes) -> int:
    """Return the id of a message, -1 for one that has none."""
    return int(_NUMBER.unpack_from(wire)[0]) if len(wire) >= 2 else -1


def read(wire: bytes, question: Question) -> Reading:
    """Return what `wire` says to `question`, which it answers.

    Records count for the name that was asked for and those that its CNAME records lead to;
    others are not taken, whatever section they are in.

    :raises Malformed: it cannot be read.
    """
    _, flags, questions, answers, authorities, more = _HEADER.unpack_from(wire)
    rcode = flags & 0xF
    if flags & _TRUNCATED:
        return Reading(rcode, truncated=True)
    if rcode not in {NOERROR, NXDOMAIN}:
        return Reading(rcode)
    if answers + authorities + more > MAX_RECORDS:
        raise Malformed("too many records")
    begin = _HEADER.size + (len(question.section) if questions else 0)
    try:
        return _Reader(wire, question).read(rcode, begin, answers, authorities, more)
    except (IndexError, struct.error, dns.exception.DNSException) as error:
        raise Malformed(f"an answer of {len(wire)} octets: {type(error).__name__}") from None


class _Found(NamedTuple):
    """A record that may be wanted; its data is read if it is."""

    ttl: int
    begin: int
    end: int


class _Reader:
    """Reads one answer."""

    __slots__ = ("_names", "_octets", "_question", "_wire")

    def __init__(self, wire: bytes, question: Question) -> None:
        self._wire = wire
        self._question = question
        self._octets = MAX_NAME_OCTETS
        self._names: dict[bytes, Labels] = {_TO_QUESTION: question.labels}

    def read(self, rcode: int, at: int, answers: int, authorities: int, more: int) -> Reading:
        wire = self._wire
        wanted = self._question.type
        found: dict[Labels, list[_Found]] = {}
        aliases: dict[Labels, _Found] = {}
        for _ in range(answers):
            owner, at = self._owner(at)
            rdtype, rdclass, ttl, length = _FIXED.unpack_from(wire, at)
            at += _FIXED.size
            record = _Found(_seconds(ttl), at, at + length)
            at += length
            if rdclass != _IN:
                continue
            if rdtype == wanted:
                found.setdefault(owner, []).append(record)
            elif rdtype == _CNAME:
                aliases.setdefault(owner, record)
        authority = at
        for _ in range(authorities):
            at = self._after(at)
        # Only the upper bits of the rcode are wanted from here (RFC 6891 section 6.1.3).
        for _ in range(more):
            fixed = self._after_name(at)
            rdtype, _, extended, length = _FIXED.unpack_from(wire, fixed)
            at = fixed + _FIXED.size + length
            if rdtype == _OPT:
                rcode |= extended >> 24 << 4
        if at > len(wire):
            raise Malformed("a record ends behind the answer")
        if rcode not in {NOERROR, NXDOMAIN}:
            return Reading(rcode)
        return self._follow(rcode, found, aliases, authority, authorities)

    def _follow(
        self,
        rcode: int,
        found: dict[Labels, list[_Found]],
        aliases: dict[Labels, _Found],
        authority: int,
        authorities: int,
    ) -> Reading:
        name = self._question.labels
        ttls = []
        for _ in range(MAX_CHAIN + 1):
            # RFC 6604 section 3: NXDOMAIN is about the end of the chain.
            if rcode == NOERROR and (records := found.get(name)):
                ttls += [record.ttl for record in records]
                return Reading(rcode, records=tuple(map(self._data, records)), ttl=min(ttls))
            alias = aliases.get(name)
            if alias is None:
                negative = self._negative_ttl(name, authority, authorities)
                return Reading(rcode, ttl=None if negative is None else min([*ttls, negative]))
            ttls.append(alias.ttl)
            name = self._name_in(alias.begin, alias.end)
        raise Malformed("a chain of CNAME records that is too long, or a circle")

    def _negative_ttl(self, name: Labels, at: int, authorities: int) -> int | None:
        """Return how long it may be believed that there is nothing (RFC 2308 section 5).

        The SOA record must be of a zone that `name` can be in.
        """
        for _ in range(authorities):
            owner, at = self._owner(at)
            rdtype, rdclass, ttl, length = _FIXED.unpack_from(self._wire, at)
            at += _FIXED.size + length
            if rdtype == _SOA and rdclass == _IN and name[-len(owner) :] == owner:
                if length < 22:
                    raise Malformed("an SOA record that is too short")
                minimum: int = _LONG.unpack_from(self._wire, at - 4)[0]
                return min(_seconds(ttl), _seconds(minimum))
        return None

    def _data(self, record: _Found) -> Record:
        return _DATA[self._question.rdtype](self, record.begin, record.end)

    def _owner(self, at: int) -> tuple[Labels, int]:
        known = self._names.get(self._wire[at : at + 2])
        return (known, at + 2) if known is not None else self._labels(at)

    def _labels(self, at: int) -> tuple[Labels, int]:
        name, length = self._name(at)
        labels = tuple(label.lower() for label in name.labels)
        if length == 2 and self._wire[at] >= 0xC0:
            self._names[self._wire[at : at + 2]] = labels
        return labels, at + length

    def _name(self, at: int) -> tuple[dns.name.Name, int]:
        name, length = dns.name.from_wire(self._wire, at)
        self._octets -= sum(map(len, name.labels)) + len(name.labels)
        if self._octets < 0:
            raise Malformed("names that are too long together")
        return name, length

    def _name_in(self, begin: int, end: int) -> Labels:
        labels, after = self._labels(begin)
        if after != end:
            raise Malformed("a name that does not fill its record")
        return labels

    def _after_name(self, at: int) -> int:
        wire = self._wire
        while length := wire[at]:
            if length >= 0xC0:
                return at + 2
            if length > 63:
                raise Malformed("a label of a kind that does not exist")
            at += length + 1
        return at + 1

    def _after(self, at: int) -> int:
        fixed = self._after_name(at)
        length: int = _FIXED.unpack_from(self._wire, fixed)[3]
        return fixed + _FIXED.size + length

    def name_data(self, begin: int, end: int) -> str:
        name, length = self._name(begin)
        if begin + length != end:
            raise Malformed("a name that does not fill its record")
        return name.to_text(omit_final_dot=True)

    def address_data(self, begin: int, end: int) -> IPv4Address:
        if end - begin != 4:
            raise Malformed("an A record without four octets")
        return IPv4Address(self._wire[begin:end])

    def long_address_data(self, begin: int, end: int) -> IPv6Address:
        if end - begin != 16:
            raise Malformed("an AAAA record without sixteen octets")
        return IPv6Address(self._wire[begin:end])

    def exchanger_data(self, begin: int, end: int) -> MX:
        preference: int = _NUMBER.unpack_from(self._wire, begin)[0]
        return MX(preference, self.name_data(begin + 2, end))

    def text_data(self, begin: int, end: int) -> bytes:
        wire, strings = self._wire, []
        while begin < end:
            after = begin + 1 + wire[begin]
            strings.append(wire[begin + 1 : after])
            begin = after
        if begin != end or not strings:
            raise Malformed("a TXT record whose strings do not fill it")
        return b"".join(strings)


_DATA: Final[dict[RecordType, Callable[[_Reader, int, int], Record]]] = {
    "A": _Reader.address_data,
    "AAAA": _Reader.long_address_data,
    "CNAME": _Reader.name_data,
    "MX": _Reader.exchanger_data,
    "NS": _Reader.name_data,
    "PTR": _Reader.name_data,
    "TXT": _Reader.text_data,
}


def _seconds(ttl: int) -> int:
    """Return a TTL; one with the highest bit set is 0 (RFC 2181 section 8)."""
    return ttl if ttl < 1 << 31 else 0
