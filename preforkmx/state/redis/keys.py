"""The names of the keys in Redis.

``PREFIX:{TAG}:KIND…``: what stands in braces, and nothing else, decides which node of a cluster
has the key, so the keys of one decision have one tag. docs/reference/redis.md lists them.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Final
from urllib.parse import quote

from preforkmx.state.marks import GROUP_SIZE
from preforkmx.state.networks import network_octets

#: What a prefix is made of: no brace, since it stands before the tag, and no character that
#: means something in a pattern of an ACL or of SCAN.
PREFIX_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-"
)
LONGEST_PREFIX: Final = 64

#: What is not escaped in a part of a key that others choose: printable, without the braces, and
#: without what means something in a pattern.
_SAFE: Final = "@/:+=,;!~#$&'()<>|"


def escaped(octets: bytes) -> bytes:
    """Return `octets` as a part of a key: as they are, or with some as ``%XX``.

    Different octets make different parts, and none is empty: braces with nothing between them
    are no tag.
    """
    return quote(octets, safe=_SAFE).encode() or b"%"


class Keys:
    """The names of one site's keys.

    :param prefix: what every key begins with.
    :raises ValueError: the prefix is empty, too long, or has a character that it must not have.
    """

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str) -> None:
        if not 1 <= len(prefix) <= LONGEST_PREFIX or not PREFIX_CHARACTERS.issuperset(prefix):
            raise ValueError(
                f"a prefix has 1 to {LONGEST_PREFIX} letters, digits, and . _ : -, not {prefix!r}"
            )
        self._prefix = prefix.encode()

    def connection(self, name: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
        """Return the keys of a host's arrival times, its network's one, and its leases.

        :param name: :attr:`ConnectionLimits.key
            <preforkmx.state.decisions.ConnectionLimits.key>`.
        :param host: :func:`~preforkmx.state.networks.host_octets`.
        """
        tag = network_octets(host).hex().encode()
        begin, name, end = b"%b:{%b}:" % (self._prefix, tag), escaped(name), host.hex().encode()
        return (
            b"%bh:%b:%b" % (begin, name, end),
            b"%bn:%b" % (begin, name),
            b"%bl:%b:%b" % (begin, name, end),
        )

    def rate(self, key: bytes) -> bytes:
        """Return the key of a limit on any key (:func:`~preforkmx.state.triplets.short_key`)."""
        return b"%b:{%b}:t" % (self._prefix, escaped(key))

    def mark(self, mark: bytes) -> bytes:
        """Return the key of a mark: those that begin alike have one tag."""
        group, rest = mark[:GROUP_SIZE], mark[GROUP_SIZE:]
        return b"%b:{%b}:d:%b" % (
            self._prefix,
            group.hex().encode(),
            urlsafe_b64encode(rest).rstrip(b"="),
        )

    def greylist(self, network: bytes, triplet: bytes) -> tuple[bytes, bytes, bytes]:
        """Return the keys of a network's passes, of a triplet, and of the network's new ones.

        :param network: its :func:`~preforkmx.state.triplets.short_key`.
        :param triplet: :func:`~preforkmx.state.triplets.triplet_key`.
        """
        begin = b"%b:{%b}:" % (self._prefix, escaped(network))
        return (
            begin + b"a",
            b"%bg:%b" % (begin, urlsafe_b64encode(triplet).rstrip(b"=")),
            begin + b"n",
        )
