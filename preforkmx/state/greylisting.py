"""The engine of greylisting: what became of each triplet, and of each network.

It never awaits and reads no clock; times are whole microseconds since 1970. Three bounded maps,
kept apart so that a flood of new triplets pushes out other new ones, but nobody who is known:

``pending``
    triplet → (expiry, first try): deferred, waiting for its retry within the window.
``known``
    triplet → expiry: passed, and remembered for its life.
``networks``
    network → (expiry, passes, last pass): how often triplets of a network passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preforkmx.state.decisions import MICROSECONDS, GreylistState, Rate
from preforkmx.state.expiring import ExpiringMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.limits import Limits

Pending = tuple[int, int]
Network = tuple[int, int, int]

#: New triplets that one network may have remembered: what is above is deferred all the same,
#: but not written down, so a spray of made-up addresses cannot fill the store.
NEW_TRIPLETS = Rate(count=1000, period=3600.0, burst=1000)

_NEW = GreylistState.NEW.value
_EARLY = GreylistState.EARLY.value
_PASSED = GreylistState.PASSED.value
_KNOWN = GreylistState.KNOWN.value
_AUTO_ALLOWED = GreylistState.AUTO_ALLOWED.value

_AT_REST = (0, 0)
_HOUR = 3600 * MICROSECONDS


def _new_key(network: bytes) -> bytes:
    return b"g" + network


def _first(value: tuple[int, ...]) -> int:
    return value[0]


class Greylisting:
    """The three maps and the rule over them.

    :param limits: where new triplets of a network are counted.
    :param pending: the most deferred triplets.
    :param known: the most known triplets.
    :param networks: the most networks with a pass.
    :param journal: keep the keys that changed, for
        :meth:`~preforkmx.state.saved.Saved.take_changes`.
    """

    __slots__ = ("_limits", "known", "networks", "pending", "tables")

    def __init__(
        self, limits: Limits, *, pending: int, known: int, networks: int, journal: bool = False
    ) -> None:
        self._limits = limits
        self.pending: ExpiringMap[bytes, Pending] = ExpiringMap(pending, _first, journal=journal)
        self.known: ExpiringMap[bytes, int] = ExpiringMap(known, int, journal=journal)
        self.networks: ExpiringMap[bytes, Network] = ExpiringMap(networks, _first, journal=journal)
        #: The three, in the order in which they are saved.
        self.tables: tuple[ExpiringMap[bytes, Any], ...] = (self.pending, self.known, self.networks)

    def decide(
        self,
        network: bytes,
        triplet: bytes,
        numbers: Sequence[int],
        now: int,
    ) -> tuple[int, int, int]:
        """Return the state's number, the µs left of the delay, and the µs waited.

        :param numbers: :attr:`GreylistSettings.numbers
            <preforkmx.state.decisions.GreylistSettings.numbers>`. Each decision goes by its
            own, so a new delay counts at once for what is deferred already.
        """
        delay, window, life, auto_allow_after, spacing = numbers
        passes = self.networks.get(network, now)
        if passes is not None and 0 < auto_allow_after <= passes[1]:
            if _stale(passes[0], life, now):
                self.networks.put(network, (now + life, passes[1], passes[2]), now)
            return _AUTO_ALLOWED, 0, 0
        expiry = self.known.get(triplet, now)
        if expiry is not None:
            if _stale(expiry, life, now):
                self.known.put(triplet, now + life, now)
            return _KNOWN, 0, 0
        pending = self.pending.get(triplet, now)
        if pending is None:
            if not self._limits.take(
                _new_key(network), NEW_TRIPLETS.interval, NEW_TRIPLETS.tolerance, now
            ):
                self.pending.put(triplet, (now + window, now), now)
            return _NEW, delay, 0
        if pending[1] > now:
            # The clock was set back: begin again, sooner than it would come round.
            self.pending.put(triplet, (now + window, now), now)
            return _EARLY, delay, 0
        waited = now - pending[1]
        if waited < delay:
            return _EARLY, delay - waited, 0
        self.pending.put(triplet, _AT_REST, now)
        self.known.put(triplet, now + life, now)
        self._count_pass(network, passes, life, spacing, now)
        return _PASSED, 0, waited

    def _count_pass(
        self, network: bytes, passes: Network | None, life: int, spacing: int, now: int
    ) -> None:
        if passes is None:
            self.networks.put(network, (now + life, 1, now), now)
            return
        _, count, last = passes
        if last > now:
            last = now  # the clock was set back
        elif now - last >= spacing:
            count, last = count + 1, now
        self.networks.put(network, (now + life, count, last), now)

    def look(self, network: bytes, triplet: bytes, now: int) -> tuple[int, int, int, int, int]:
        """Return a network's expiry, passes and last pass, and a triplet's expiry and first try.

        What is not there, or has expired, is 0; so is the first try of a triplet that is known.
        """
        passes = self.networks.get(network, now) or (0, 0, 0)
        expiry, first = self.known.get(triplet, now) or 0, 0
        if not expiry:
            expiry, first = self.pending.get(triplet, now) or (0, 0)
        return (*passes, expiry, first)

    def forget_network(self, network: bytes, now: int) -> bool:
        """Forget the passes of a network, and its new triplets' count. Whether there were any."""
        passes = self.networks.get(network, now)
        if passes is not None:
            self.networks.put(network, (0, 0, 0), now)
        return self._limits.forget(_new_key(network), now) or passes is not None

    def forget_triplet(self, triplet: bytes, now: int) -> bool:
        """Make a stranger of a triplet. Whether it was none."""
        known, pending = self.known.get(triplet, now), self.pending.get(triplet, now)
        if known is not None:
            self.known.put(triplet, 0, now)
        if pending is not None:
            self.pending.put(triplet, _AT_REST, now)
        return known is not None or pending is not None

    def allow(self, network: bytes, passes: int, life: int, now: int) -> None:
        """Write down that so many triplets of a network passed, the last of them now."""
        self.networks.put(network, (now + life, passes, now), now)


def _stale(expiry: int, life: int, now: int) -> bool:
    """Whether an entry with this expiry is due to be noted as seen again.

    Not each time: a busy triplet would be written to the disk every second for 36 days.
    """
    return now + life - expiry > min(life >> 6, _HOUR)
