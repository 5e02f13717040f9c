"""From a configuration to what an operator may look at and change in its store."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Final

from preforkmx.app import chain
from preforkmx.app.site import store_socket
from preforkmx.config.middleware_tables import Greylist, RateLimit
from preforkmx.errors import ConfigError
from preforkmx.middleware.rate_limit import connection_limits, rate_name
from preforkmx.state.decisions import GreylistSettings
from preforkmx.state.embedded.operator import EmbeddedOperator
from preforkmx.state.networks import PRIVATE, NetworkSet
from preforkmx.state.redis import nodes_for
from preforkmx.state.redis.operator import RedisOperator
from preforkmx.state.triplets import network_of, normalise_recipient, normalise_sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from preforkmx.config.load import Loaded
    from preforkmx.config.schema import Config
    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, Rate
    from preforkmx.state.networks import IPNetwork
    from preforkmx.state.operator import GreylistView, HostView, Left, Operator

#: How long one question may take, in seconds: an operator waits longer than a session.
DEADLINE: Final = 5.0
#: The shortest prefixes that can be allowed at once: both are 256 networks.
SHORTEST_IPV4: Final = 16
SHORTEST_IPV6: Final = 56

_PER_ADDRESS: Final[tuple[str, ...]] = ("per_sender", "per_recipient", "per_user")


class NoSharedState(Exception):
    """The state is in the memory of each worker, where nobody else can look."""


@dataclass(frozen=True, slots=True)
class Whom:
    """Whom an operator asks about: an address, and what else is known of a message.

    :param sender: its reverse path, ``""`` the null one; None is not known.
    """

    address: IPAddress
    sender: str | None = None
    recipient: str | None = None
    user: str | None = None

    @property
    def triplet(self) -> tuple[str, str] | None:
        """The reverse and the forward path as greylisting has them, where both are known."""
        if self.sender is None or self.recipient is None:
            return None
        return normalise_sender(self.sender), normalise_recipient(self.recipient)

    def named(self) -> dict[str, str]:
        """Return what each limit of one address counts, as far as it is known."""
        found = {
            "per_sender": None if not self.sender else normalise_sender(self.sender),
            "per_recipient": None if not self.recipient else normalise_recipient(self.recipient),
            "per_user": self.user or None,
        }
        return {limit: address for limit, address in found.items() if address is not None}


@dataclass(frozen=True, slots=True)
class LimitSet:
    """One ``rate_limit`` of the configuration."""

    name: str
    limits: ConnectionLimits
    rates: dict[str, Rate]
    """Those of single addresses, by their key."""
    allow: NetworkSet


@dataclass(frozen=True, slots=True)
class LimitsShown:
    """What one ``rate_limit`` knows of somebody.

    :param exempt: no limit of it is asked about this address.
    """

    name: str
    exempt: bool
    host: HostView
    concurrent: int | None
    rates: dict[str, Left]

    def lines(self) -> Iterator[tuple[str, Left]]:
        """Yield each limit under its key in the configuration."""
        for name, left in self.host.limits.items():
            yield ("network_connections" if name == "network" else name), left
        yield from self.rates.items()


@dataclass(frozen=True, slots=True)
class GreylistShown:
    """What one ``greylist`` knows of somebody."""

    network: str
    exempt: bool
    view: GreylistView


class Desk:
    """Where an operator stands: one configuration and its store.

    :param operator: of the store; it is started already.
    """

    def __init__(self, config: Config, operator: Operator) -> None:
        self._operator = operator
        self._sets = list(_limit_sets(config))
        self._greylists = [table for table in config.middleware if isinstance(table, Greylist)]

    async def show(self, whom: Whom) -> tuple[list[LimitsShown], list[GreylistShown]]:
        """Return what the store knows of somebody; changes nothing."""
        return (
            [await self._show_limits(each, whom) for each in self._sets],
            [await self._show_greylist(table, whom) for table in self._greylists],
        )

    async def forget(self, whom: Whom) -> bool:
        """Forget somebody's limits, network and triplet; return whether anything was known."""
        known = False
        for each in self._sets:
            known |= await self._operator.forget_host(whom.address, each.limits)
            for limit, address in whom.named().items():
                if limit in each.rates:
                    key = rate_name(each.name, limit, address)
                    known |= await self._operator.forget_rate(key)
        if self._greylists:
            network = network_of(whom.address)
            known |= await self._operator.forget_greylist(network, whom.triplet)
        return known

    async def allow(self, networks: list[str], days: float | None) -> None:
        """Let networks pass the greylist.

        :param days: how long at least; None is as long as one that earned it.
        :raises ValueError: there is no greylist.
        """
        if not self._greylists:
            raise ValueError('there is no [[middleware]] with use = "greylist"')
        settings = max(map(_settings, self._greylists), key=lambda settings: settings.life)
        seconds = settings.life if days is None else days * 86_400
        for network in networks:
            await self._operator.allow_network(network, seconds, settings)

    async def _show_limits(self, each: LimitSet, whom: Whom) -> LimitsShown:
        rates = {
            limit: await self._operator.look_at_rate(
                each.rates[limit], rate_name(each.name, limit, address)
            )
            for limit, address in whom.named().items()
            if limit in each.rates
        }
        return LimitsShown(
            each.name,
            whom.address in each.allow,
            await self._operator.look_at_host(whom.address, each.limits),
            each.limits.concurrent,
            rates,
        )

    async def _show_greylist(self, table: Greylist, whom: Whom) -> GreylistShown:
        network, settings = network_of(whom.address), _settings(table)
        exempt = whom.address in NetworkSet(table.allow) or (
            table.exempt_private and whom.address in PRIVATE
        )
        view = await self._operator.look_at_greylist(network, whom.triplet, settings)
        return GreylistShown(network, exempt, view)


def networks_of(network: IPNetwork) -> list[str]:
    """Return the networks that greylisting knows instead of `network`: its /24s, or its /64s.

    One that is smaller stands for the one that it lies in.

    :raises ValueError: it is larger than 256 of them.
    """
    if isinstance(network, IPv4Network):
        shortest, one = SHORTEST_IPV4, 24
    else:
        shortest, one = SHORTEST_IPV6, 64
    if network.prefixlen < shortest:
        raise ValueError(f"is too large: at most a /{shortest} can be allowed at once")
    parts: Iterator[IPv4Network] | Iterator[IPv6Network] | list[IPNetwork]
    if network.prefixlen > one:
        parts = [ip_network((network.network_address, one), strict=False)]
    else:
        parts = network.subnets(new_prefix=one)
    return [network_of(part.network_address) for part in parts]


@asynccontextmanager
async def desk(loaded: Loaded) -> AsyncIterator[Desk]:
    """Connect to the store of a configuration.

    :raises NoSharedState: it is ``"local:"``.
    :raises ConfigError: a file that ``[state] url`` names cannot be used.
    """
    config = loaded.config
    async with _started(loaded) as operator:
        yield Desk(config, operator)


@asynccontextmanager
async def _started(loaded: Loaded) -> AsyncIterator[Operator]:
    """Start the operator of a configuration's store; the errors are those of :func:`desk`."""
    operator = make_operator(loaded)
    await operator.start()
    try:
        yield operator
    finally:
        await operator.close()


def make_operator(loaded: Loaded) -> Operator:
    """Return the operator of a configuration's store, not started.

    The errors are those of :func:`desk`.
    """
    state = loaded.config.state
    if state.url == "local:":
        raise NoSharedState
    target = chain.redis_target(state)
    if target is None:
        return EmbeddedOperator(store_socket(loaded.config.admin.control), deadline=DEADLINE)
    try:
        nodes = nodes_for(target, deadline=DEADLINE)
    except OSError as error:
        what = "names a file that cannot be used"
        raise ConfigError(
            [loaded.problem(("state", "url"), what, str(error), value=target.shown)]
        ) from error
    return RedisOperator(nodes, prefix=state.prefix)


def _limit_sets(config: Config) -> Iterator[LimitSet]:
    numbers: Counter[str] = Counter()
    for table in config.middleware:
        numbers[table.use] += 1
        if isinstance(table, RateLimit):
            name, rates = chain.name_of(table.use, numbers[table.use]), chain.rates_of(table)
            of_addresses: dict[str, Rate] = {
                limit: rates.pop(limit) for limit in _PER_ADDRESS if limit in rates
            }
            of_host: dict[str, Any] = {**rates}
            limits = connection_limits(name, concurrent=table.concurrent, **of_host)
            yield LimitSet(name, limits, of_addresses, NetworkSet(table.allow))


def _settings(table: Greylist) -> GreylistSettings:
    return GreylistSettings(delay=table.delay, window=table.window, life=table.life)
