"""What a worker and the store process say to each other.

A worker's commands are frames: one octet with the length of what follows (1 to 255), one octet
with the command, and its fields, integers little-endian and durations in µs. So no frame needs
more than 256 octets of buffer, whoever sends it::

    HELLO     version u16, token 16 octets                              → GREETED version
    OPEN      lease u64, host interval and tolerance u64 u64, network   → outcome, wait
              interval and tolerance u64 u64, concurrent u32, length of
              the host u8, host, name
    CLOSE     lease u64
    HOLD      lease u64, key
    TAKE      cost u64, tolerance u64, key                              → 0 or 1, wait
    GREYLIST  delay, window, life u64 u64 u64, auto_allow_after u16,    → state, left, waited
              spacing u64, triplet 16 octets, network

Commands with an arrow have one reply, in their order: a record of fixed size, a code and two
numbers. HELLO comes first. Its token names the worker: a second connection with the same token
takes the place of the first, whose leases end at once. Leases have numbers of the worker's
choice; they end with CLOSE or with the connection, and HOLD counts one again after a restart.

Both sides are of one version and one machine. Anything malformed closes the connection.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from preforkmx.state.decisions import ConnectionLimits

VERSION: Final = 1
TOKEN_SIZE: Final = 16

HELLO: Final = 1
OPEN: Final = 2
CLOSE: Final = 3
HOLD: Final = 4
TAKE: Final = 5
GREYLIST: Final = 6

#: The code of the reply to HELLO: no decision has it.
GREETED: Final = 255

# The bodies of the commands behind length and command octet; "x" below stands for those two.
HELLO_BODY: Final = Struct(f"<2xH{TOKEN_SIZE}s")
OPEN_BODY: Final = Struct("<2xQQQQQIB")
LEASE_BODY: Final = Struct("<2xQ")
TAKE_BODY: Final = Struct("<2xQQ")
GREYLIST_BODY: Final = Struct("<2xQQQHQ16s")

#: A reply: a code and two numbers.
REPLY: Final = Struct("<BQQ")

_HELLO: Final = Struct(f"<BBH{TOKEN_SIZE}s")
_OPEN: Final = Struct("<BBQQQQQIB")
_LEASE: Final = Struct("<BBQ")
_TAKE: Final = Struct("<BBQQ")
_GREYLIST: Final = Struct("<BBQQQHQ16s")


def hello(token: bytes) -> bytes:
    """Return the frame that begins a connection."""
    return _HELLO.pack(_HELLO.size - 1, HELLO, VERSION, token)


def open_connection(lease: int, host: bytes, limits: ConnectionLimits) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.open_connection`."""
    size = _OPEN.size - 1 + len(host) + len(limits.key)
    return _OPEN.pack(size, OPEN, lease, *limits.numbers[:5], len(host)) + host + limits.key


def close(lease: int) -> bytes:
    """Return the frame that gives a lease back."""
    return _LEASE.pack(_LEASE.size - 1, CLOSE, lease)


def hold(lease: int, key: bytes) -> bytes:
    """Return the frame that counts a lease again."""
    return _LEASE.pack(_LEASE.size - 1 + len(key), HOLD, lease) + key


def take(cost: int, tolerance: int, key: bytes) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.take`."""
    return _TAKE.pack(_TAKE.size - 1 + len(key), TAKE, cost, tolerance) + key


def greylist(numbers: tuple[int, int, int, int, int], triplet: bytes, network: bytes) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.greylist`."""
    size = _GREYLIST.size - 1 + len(network)
    return _GREYLIST.pack(size, GREYLIST, *numbers, triplet) + network
