"""What a worker and the store process say to each other.

A worker's commands are frames: one octet with the length of what follows (1 to 255), one octet
with the command, and its fields, integers little-endian and durations in µs. So no frame needs
more than 256 octets of buffer, whoever sends it::

    HELLO          version u16, token 16 octets                         → GREETED version
    OPEN           lease u64, host interval and tolerance u64 u64,      → outcome, wait
                   network interval and tolerance u64 u64, concurrent
                   u32, length of the host u8, host, name
    CLOSE          lease u64
    HOLD           lease u64, key
    TAKE           cost u64, tolerance u64, key                         → 0 or 1, wait
    GREYLIST       delay, window, life u64 u64 u64, auto_allow_after    → state, left, waited
                   u16, spacing u64, triplet 16 octets, network
    OPEN_ACCOUNT   as OPEN, with interval and tolerance u64 u64 of each → grants, outcome, wait
                   of the five budgets before the length of the host
    SETTLE         lease u64, spent of each budget 5 u64, wanted of     → grants, code, wait
                   each prepaid one 3 i64
    CLOSE_ACCOUNT  lease u64, spent of each budget 5 u64
    HOLD_ACCOUNT   lease u64, 1 where open connections are limited u8,
                   interval and tolerance u64 u64 of each budget,
                   length of the host u8, host, name
    REMEMBER       life u64, up to 12 marks of 20 octets                → 0
    KNOWN          up to 12 marks of 20 octets                          → 0, bits: the lowest
                                                                          is the first mark's
    FORGET_MARKS   up to 12 marks of 20 octets                          → 0

What operators ask (``preforkmx state``), of keys of the engine, which begin with their kind::

    LOOK           key: h, n, M, R, A, O, E, t a rate's, c that of     → 0, number, time
                   leases
    LOOK_GREYLIST  triplet 16 octets, network                          → grants, 0, time
    FORGET         key: of a rate                                      → 0 or 1
    FORGET_GREYLIST triplet 16 octets, network                         → 0 or 1
    ALLOW          passes u16, life u64, network                       → 0

Where LOOK_GREYLIST's reply has its grants stand expiry, passes and last pass of the network, and
expiry and first try of the triplet. A triplet of zeros is none.

Commands with an arrow have one reply, in their order: a record of fixed size, a code and two
numbers. Before it come, where a session has an account of its budgets, three records GRANTS:
their six numbers are what it may spend of each budget, and a 0. A connection that is refused
has none.

HELLO comes first. Its token names the worker: a second connection with the same token takes the
place of the first, whose leases end at once. Leases have numbers of the worker's choice; they
end with their CLOSE or with the connection, and HOLD counts one again after a restart. What was
reserved for a lease is given back when it ends, whatever ends it; one that is held again has
nothing reserved, and what it spends is charged when it settles.

Both sides are of one version and one machine. Anything malformed closes the connection.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from preforkmx.state.decisions import PREPAID
from preforkmx.state.marks import MARK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.decisions import ConnectionLimits, Spent

VERSION: Final = 4
TOKEN_SIZE: Final = 16

HELLO: Final = 1
OPEN: Final = 2
CLOSE: Final = 3
HOLD: Final = 4
TAKE: Final = 5
GREYLIST: Final = 6
OPEN_ACCOUNT: Final = 7
SETTLE: Final = 8
CLOSE_ACCOUNT: Final = 9
HOLD_ACCOUNT: Final = 10
LOOK: Final = 11
LOOK_GREYLIST: Final = 12
FORGET: Final = 13
FORGET_GREYLIST: Final = 14
ALLOW: Final = 15
REMEMBER: Final = 16
KNOWN: Final = 17
FORGET_MARKS: Final = 18

#: The most marks of one frame.
MARKS: Final = 12

#: In the place of a triplet: none is meant.
NO_TRIPLET: Final = bytes(16)
#: The kinds of keys that stand for rates.
RATES: Final = frozenset((b"h", b"n", b"M", b"R", b"A", b"O", b"E", b"t"))
#: The kind of keys that stand for leases.
LEASES: Final = b"c"

#: The code of the records of grants before a reply; no decision has it, nor a higher one.
GRANTS: Final = 254
#: The code of the reply to HELLO.
GREETED: Final = 255

# The bodies of the commands behind length and command octet; "x" below stands for those two.
HELLO_BODY: Final = Struct(f"<2xH{TOKEN_SIZE}s")
OPEN_BODY: Final = Struct("<2xQQQQQIB")
LEASE_BODY: Final = Struct("<2xQ")
TAKE_BODY: Final = Struct("<2xQQ")
GREYLIST_BODY: Final = Struct("<2xQQQHQ16s")
OPEN_ACCOUNT_BODY: Final = Struct("<2xQQQQQI10QB")
SETTLE_BODY: Final = Struct("<2xQ5Q3q")
CLOSE_ACCOUNT_BODY: Final = Struct("<2xQ5Q")
HOLD_ACCOUNT_BODY: Final = Struct("<2xQB10QB")

TRIPLET_BODY: Final = Struct("<2x16s")
ALLOW_BODY: Final = Struct("<2xHQ")
REMEMBER_BODY: Final = Struct("<2xQ")

#: A reply: a code and two numbers.
REPLY: Final = Struct("<BQQ")
#: A reply with its grants.
REPLY_WITH_GRANTS: Final = Struct("<BQQBQQBQQBQQ")

_HELLO: Final = Struct(f"<BBH{TOKEN_SIZE}s")
_OPEN: Final = Struct("<BBQQQQQIB")
_LEASE: Final = Struct("<BBQ")
_TAKE: Final = Struct("<BBQQ")
_GREYLIST: Final = Struct("<BBQQQHQ16s")
_OPEN_ACCOUNT: Final = Struct("<BBQQQQQI10QB")
_SETTLE: Final = Struct("<BBQ5Q3q")
_CLOSE_ACCOUNT: Final = Struct("<BBQ5Q")
_HOLD_ACCOUNT: Final = Struct("<BBQB10QB")
_TRIPLET: Final = Struct("<BB16s")
_ALLOW: Final = Struct("<BBHQ")
_REMEMBER: Final = Struct("<BBQ")


def hello(token: bytes) -> bytes:
    """Return the frame that begins a connection."""
    return _HELLO.pack(_HELLO.size - 1, HELLO, VERSION, token)


def open_connection(lease: int, host: bytes, limits: ConnectionLimits) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.open_connection`."""
    key = limits.key
    if limits.budget_numbers:
        size = _OPEN_ACCOUNT.size - 1 + len(host) + len(key)
        return (
            _OPEN_ACCOUNT.pack(size, OPEN_ACCOUNT, lease, *limits.numbers, len(host)) + host + key
        )
    size = _OPEN.size - 1 + len(host) + len(key)
    return _OPEN.pack(size, OPEN, lease, *limits.connection_numbers, len(host)) + host + key


def settle(lease: int, spent: Spent, want: Spent) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.settle`."""
    return _SETTLE.pack(_SETTLE.size - 1, SETTLE, lease, *spent, *want[:PREPAID])


def close(lease: int) -> bytes:
    """Return the frame that gives a lease without an account back, or one nobody spent on."""
    return _LEASE.pack(_LEASE.size - 1, CLOSE, lease)


def close_account(lease: int, spent: Spent) -> bytes:
    """Return the frame that books what a session spent, and gives its lease back."""
    return _CLOSE_ACCOUNT.pack(_CLOSE_ACCOUNT.size - 1, CLOSE_ACCOUNT, lease, *spent)


def hold(lease: int, key: bytes) -> bytes:
    """Return the frame that counts a lease again."""
    return _LEASE.pack(_LEASE.size - 1 + len(key), HOLD, lease) + key


def hold_account(lease: int, host: bytes, limits: ConnectionLimits) -> bytes:
    """Return the frame that counts a lease with an account again."""
    key = limits.key
    size = _HOLD_ACCOUNT.size - 1 + len(host) + len(key)
    counted = 0 if limits.concurrent is None else 1
    return (
        _HOLD_ACCOUNT.pack(size, HOLD_ACCOUNT, lease, counted, *limits.budget_numbers, len(host))
        + host
        + key
    )


def take(cost: int, tolerance: int, key: bytes) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.take`."""
    return _TAKE.pack(_TAKE.size - 1 + len(key), TAKE, cost, tolerance) + key


def greylist(numbers: tuple[int, int, int, int, int], triplet: bytes, network: bytes) -> bytes:
    """Return the frame of :meth:`~preforkmx.state.decisions.Store.greylist`."""
    size = _GREYLIST.size - 1 + len(network)
    return _GREYLIST.pack(size, GREYLIST, *numbers, triplet) + network


def look(key: bytes) -> bytes:
    """Return the frame that asks for a rate's arrival time, or how many leases are held."""
    return bytes((1 + len(key), LOOK)) + key


def look_at_greylist(triplet: bytes, network: bytes) -> bytes:
    """Return the frame that asks what is known of a triplet and a network."""
    return _TRIPLET.pack(_TRIPLET.size - 1 + len(network), LOOK_GREYLIST, triplet) + network


def forget(key: bytes) -> bytes:
    """Return the frame that puts a rate at rest."""
    return bytes((1 + len(key), FORGET)) + key


def forget_greylist(triplet: bytes, network: bytes) -> bytes:
    """Return the frame that makes strangers of a network and a triplet."""
    return _TRIPLET.pack(_TRIPLET.size - 1 + len(network), FORGET_GREYLIST, triplet) + network


def allow(passes: int, life: int, network: bytes) -> bytes:
    """Return the frame that allows a network."""
    return _ALLOW.pack(_ALLOW.size - 1 + len(network), ALLOW, passes, life) + network


def remember(life: int, marks: Sequence[bytes]) -> bytes:
    """Return the frame that makes up to :data:`MARKS` marks known."""
    size = _REMEMBER.size - 1 + MARK_SIZE * len(marks)
    return _REMEMBER.pack(size, REMEMBER, life) + b"".join(marks)


def known(marks: Sequence[bytes]) -> bytes:
    """Return the frame that asks which of up to :data:`MARKS` marks are known."""
    return bytes((1 + MARK_SIZE * len(marks), KNOWN)) + b"".join(marks)


def forget_marks(marks: Sequence[bytes]) -> bytes:
    """Return the frame that makes up to :data:`MARKS` marks forgotten."""
    return bytes((1 + MARK_SIZE * len(marks), FORGET_MARKS)) + b"".join(marks)


def marks_in(frame: bytes, start: int) -> list[bytes]:
    """Return the marks of a frame, which begin at `start`.

    :raises ValueError: the frame has no whole number of them, or none.
    """
    octets = len(frame) - start
    if octets < MARK_SIZE or octets % MARK_SIZE:
        raise ValueError("it sent a part of a mark")
    return [frame[at : at + MARK_SIZE] for at in range(start, len(frame), MARK_SIZE)]


def reply_with_grants(code: int, wait: int, grants: Sequence[int]) -> bytes:
    """Return a reply and, before it, what the session may spend of each budget."""
    messages, recipients, auth_failures, octets, errors = grants
    return REPLY_WITH_GRANTS.pack(
        *(GRANTS, messages, recipients),
        *(GRANTS, auth_failures, octets),
        *(GRANTS, errors, 0),
        *(code, wait, 0),
    )
