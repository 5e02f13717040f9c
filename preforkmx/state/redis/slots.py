"""Which node of a cluster has which keys: hash slots, the table of them, and redirections."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any, Final, NamedTuple

from preforkmx.state.redis.url import Address

#: The parts that a cluster's keys are divided into.
SLOTS: Final = 16_384
#: The most nodes of a cluster that are believed, replicas included.
MAX_NODES: Final = 1024


def slot_of(key: bytes) -> int:
    """Return the hash slot of a key: that of its tag in braces, if it has one."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


class Range(NamedTuple):
    """Slots from `first` to `last`, both included, and who has them."""

    first: int
    last: int
    primary: Address
    replicas: tuple[Address, ...]


def read_slots(reply: Any, asked: str) -> list[Range]:
    """Read the reply to CLUSTER SLOTS.

    :param asked: the host that was asked: a node which does not know its own address leaves the
        host out, and means the one that it was reached by. All nodes of a cluster behind one
        address do so.
    :raises ValueError: it is not such a reply, or there is no slot in it.
    """
    try:
        ranges = [_range(row, asked) for row in reply]
    except (TypeError, ValueError, IndexError, UnicodeDecodeError):
        raise ValueError("the table of slots cannot be read") from None
    if not ranges:
        raise ValueError("the node belongs to no cluster")
    nodes = {address for one in ranges for address in (one.primary, *one.replicas)}
    if len(nodes) > MAX_NODES:
        raise ValueError(f"a cluster has at most {MAX_NODES} nodes")
    return ranges


def _range(row: list[Any], asked: str) -> Range:
    first, last, primary, *replicas = row
    if not 0 <= first <= last < SLOTS:
        raise ValueError
    return Range(
        first, last, _node(primary, asked), tuple(_node(replica, asked) for replica in replicas)
    )


def _node(row: list[Any], asked: str) -> Address:
    host, port = row[0], row[1]
    # "?": the node has no host name, and names are preferred. Its IP address stands behind.
    if host == b"?" and len(row) > 3 and isinstance(row[3], list):
        details = dict(zip(row[3][::2], row[3][1::2], strict=False))
        host = details.get(b"ip") or b""
    if host is None:
        host = b""
    if not isinstance(host, bytes):
        raise TypeError
    return _address(host, port, asked)


def read_redirection(text: str, asked: str) -> tuple[int, Address]:
    """Read the error ``MOVED SLOT HOST:PORT`` or ``ASK SLOT HOST:PORT``.

    :raises ValueError: it is none.
    """
    try:
        _, slot, where = text.split(" ")[:3]
        host, _, port = where.rpartition(":")
        number = int(slot)
        if not 0 <= number < SLOTS:
            raise ValueError
        return number, _address(host.encode(), int(port), asked)
    except ValueError:
        raise ValueError("the redirection cannot be read") from None


def _address(host: bytes, port: Any, asked: str) -> Address:
    if not isinstance(port, int) or not 0 < port < 1 << 16:
        raise ValueError
    name = host.decode("ascii")
    return Address(asked if name in {"", "?"} else name, port)
