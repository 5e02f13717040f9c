"""Limits on clients: connections, what a host's sessions spend, and the rates of addresses.

The decision is the store's, so a limit holds over every process that shares the store. Whoever
was refused is remembered here until it may come again: an attacker who is blocked costs a
look-up, and the store nothing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, NoReturn

from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.allowance import (
    AUTH_FAILURES,
    MESSAGES,
    OCTETS_UNIT,
    RECIPIENTS,
    Allowance,
    longest_block,
)
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.blocked import Blocked, Refusal
from preforkmx.state.decisions import NOTHING, ConnectionLimits, Rate
from preforkmx.state.local import LocalStore
from preforkmx.state.networks import NetworkSet, host_octets, network_octets
from preforkmx.state.triplets import normalise_recipient, normalise_sender, short_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from preforkmx.context import Context
    from preforkmx.model import IPAddress, Peer
    from preforkmx.state.decisions import Admission, Store
    from preforkmx.state.networks import IPNetwork

_WHAT: Final = {
    "connections": "connections from your address",
    "network_connections": "connections from your network",
    "concurrent": "open connections from your address",
    "messages": "messages from your address",
    "recipients": "recipients from your address",
    "auth_failures": "failed authentications from your address",
    "octets": "octets from your address",
    "errors": "errors from your address",
    "per_sender": "messages from this sender",
    "per_recipient": "messages to this recipient",
    "per_user": "messages from this user",
}
"""What there is too much of, by the limit's name in the configuration."""


def _refuse_connection(refusal: Refusal) -> NoReturn:
    """:raises SMTPError: 421 4.7.0."""
    raise _no_connection(refusal)


def _no_connection(refusal: Refusal) -> SMTPError:
    limit, what = refusal.limit, _WHAT[refusal.limit]
    return SMTPError(
        421,
        f"Too many {what} (limit: {limit}), try again in {refusal.seconds} s",
        enhanced=(4, 7, 0),
        limit=limit,
    )


def _refuse_command(refusal: Refusal) -> NoReturn:
    """:raises SMTPError: 450 4.7.1."""
    limit, what = refusal.limit, _WHAT[refusal.limit]
    raise SMTPError(
        450,
        f"Too many {what} (limit: {limit}), try again in {refusal.seconds} s",
        enhanced=(4, 7, 1),
        limit=limit,
    )


def rate_limit(
    store: Store,
    *,
    connections: Rate | None = None,
    network_connections: Rate | None = None,
    concurrent: int | None = None,
    messages: Rate | None = None,
    recipients: Rate | None = None,
    auth_failures: Rate | None = None,
    octets: Rate | None = None,
    errors: Rate | None = None,
    per_sender: Rate | None = None,
    per_recipient: Rate | None = None,
    per_user: Rate | None = None,
    allow: Iterable[IPNetwork] = (),
    name: str = "rate_limit",
    clock: Callable[[], float] = time.monotonic,
) -> Middleware:
    """Limit what each host does: an IPv4 address or an IPv6 /64. None is no limit.

    What is above a limit is refused, with the limit's name and the seconds to wait: with 421
    4.7.0 at the connection and at AUTH, with 450 4.7.1 at MAIL and RCPT. While the store gives no
    answer nobody is refused; give it a :class:`~preforkmx.state.fallback.FallbackStore` to have
    limits then too.

    The budgets (`messages` to `errors`) hold over all sessions of a host, those that are open
    included. Messages, recipients and failures are reserved before they happen, so that any
    number of sessions at once keep the limit exactly; octets and errors are booked at the
    session's end, and when it has spent what was left of them. A session asks the store when it
    is opened and when it is closed, and between the two once for 2, 4, 8 … 64 messages, and for
    8, 16 … 256 recipients beyond the first. A host whose budget is exhausted cannot connect.

    A host that had too many open connections is refused for a second without asking again,
    or until one of its connections to this worker ends.

    :param connections: how often a host may connect.
    :param network_connections: how often a network may connect: an IPv4 /24, an IPv6 /48.
    :param concurrent: how many connections a host may have open.
    :param messages: accepted messages of a host.
    :param recipients: accepted forward paths of a host.
    :param auth_failures: refused credentials of a host.
    :param octets: octets of a host's messages, whatever became of them; counted in units of
        :data:`~preforkmx.middleware.allowance.OCTETS_UNIT`.
    :param errors: commands and messages of a host that were answered with 5xx.
    :param per_sender: MAIL commands with the same reverse path from anywhere, normalised as
        :func:`~preforkmx.state.triplets.normalise_sender` does it. The null one has no limit.
    :param per_recipient: RCPT commands with the same forward path, in any case.
    :param per_user: MAIL commands of the same authenticated user.
    :param allow: networks without limits. A client on a unix socket has none either, nor has a
        balancer's health check.
    :param name: keeps the counts of two rate limits on one store apart.
    :param clock: seconds, from any beginning.
    :raises ValueError: no limit is given, or one is out of range.
    """
    limits = connection_limits(
        name,
        connections=connections,
        network_connections=network_connections,
        concurrent=concurrent,
        messages=messages,
        recipients=recipients,
        auth_failures=auth_failures,
        octets=octets,
        errors=errors,
    )
    opens = limits.leases or connections is not None or network_connections is not None
    at_mail = any((messages, octets, errors, auth_failures))
    at_rcpt = any((recipients, errors))
    at_auth = any((auth_failures, errors))
    rates = any((per_sender, per_recipient, per_user))
    if not (opens or rates):
        raise ValueError(f"rate_limit needs a limit, at least one of {', '.join(_WHAT)}")
    allowed = NetworkSet(allow)
    blocked = Blocked(clock)
    blocked_addresses = Blocked(clock)
    key = object()

    async def check_connection(ctx: Context, peer: Peer) -> Context | None:
        # When the check runs again for the address that XCLIENT names, the new lease takes the
        # place of the old one.
        before: Allowance | None = ctx.value(key)
        allowance = await admit(ctx, peer)
        if before is not None:
            await finish(ctx, before)
        if allowance is None and before is None:
            return None
        return ctx.with_value(key, allowance)

    async def admit(ctx: Context, peer: Peer) -> Allowance | None:
        address = peer.address
        if address is None or peer.is_health_check or address in allowed:
            return None
        host = host_octets(address)
        admission = None
        if opens:
            refusal = look(host)
            if refusal is not None:
                _refuse_connection(refusal)
            try:
                admission = await store.open_connection(address, limits)
            except StoreUnavailable:
                admission = None
        if admission is not None:
            if not admission.admitted:
                block(host, admission)
            if admission.lease is not None:
                return Allowance(
                    host,
                    store,
                    ctx.usage,
                    clock,
                    lease=admission.lease,
                    grants=admission.grants,
                )
        # Without a lease there is nothing to keep but that it has no exemption.
        return Allowance(host, store, ctx.usage, clock) if rates else None

    def look(host: bytes) -> Refusal | None:
        refusal = blocked.look(host)
        if refusal is None and network_connections is not None:
            refusal = blocked.look(network_octets(host))
        return refusal

    def refused_already(address: IPAddress) -> SMTPError | None:
        refusal = look(host_octets(address))
        return None if refusal is None or address in allowed else _no_connection(refusal)

    def block(host: bytes, admission: Admission) -> NoReturn:
        if admission.limit == "network":
            refusal = Refusal("network_connections", admission.wait)
            blocked.block(network_octets(host), refusal, at_most=inf)
        else:
            refusal = Refusal(admission.limit, admission.wait)
            blocked.block(host, refusal, at_most=longest_block(refusal.limit))
        _refuse_connection(refusal)

    async def need(ctx: Context, allowance: Allowance, budget: int) -> Refusal | None:
        refusal = await allowance.need(ctx.usage, budget)
        if refusal is not None:
            blocked.block(allowance.host, refusal, at_most=longest_block(refusal.limit))
        return refusal

    async def take(rate: Rate, limit: str, address: str) -> None:
        taken = rate_name(name, limit, address)
        short = short_key(taken)
        refusal = blocked_addresses.look(short)
        if refusal is None:
            try:
                decision = await store.take(rate, taken)
            except StoreUnavailable:
                return
            if decision.allowed:
                return
            refusal = Refusal(limit, decision.wait)
            blocked_addresses.block(short, refusal, at_most=inf)
        _refuse_command(refusal)

    async def check_auth(ctx: Context, _peer: Peer) -> None:
        allowance: Allowance | None = ctx.value(key)
        if allowance is not None:
            refusal = await need(ctx, allowance, AUTH_FAILURES)
            if refusal is not None:
                _refuse_connection(refusal)

    async def check_sender(ctx: Context, peer: Peer, address: str) -> None:
        allowance: Allowance | None = ctx.value(key)
        if allowance is None:
            return
        if at_mail:
            refusal = await need(ctx, allowance, MESSAGES)
            if refusal is not None:
                _refuse_command(refusal)
        if per_user is not None and peer.username is not None:
            await take(per_user, "per_user", peer.username)
        if per_sender is not None and address:
            await take(per_sender, "per_sender", normalise_sender(address))

    async def check_recipient(ctx: Context, _peer: Peer, address: str) -> None:
        allowance: Allowance | None = ctx.value(key)
        if allowance is None:
            return
        if at_rcpt:
            refusal = await need(ctx, allowance, RECIPIENTS)
            if refusal is not None:
                _refuse_command(refusal)
        if per_recipient is not None:
            await take(per_recipient, "per_recipient", normalise_recipient(address))

    async def disconnect(ctx: Context, _peer: Peer, _error: BaseException | None) -> None:
        allowance: Allowance | None = ctx.value(key)
        if allowance is not None:
            await finish(ctx, allowance)

    async def finish(ctx: Context, allowance: Allowance) -> None:
        """Book what was spent, and give back the rest: who waits for it need not wait longer."""
        lease = allowance.lease
        if lease is None:
            return
        usage = ctx.usage
        blocked.free(allowance.host, {"concurrent", *allowance.unspent(usage)})
        spent = allowance.spent(usage) if any(limits.budgets) else NOTHING
        # A store that is away gives it back by itself.
        with suppress(StoreUnavailable):
            await store.close_connection(lease, spent)

    return Middleware(
        check_connection=check_connection,
        blocked=refused_already if opens else None,
        check_auth=check_auth if at_auth else None,
        check_sender=check_sender if at_mail or per_sender or per_user else None,
        check_recipient=check_recipient if at_rcpt or per_recipient else None,
        disconnect=disconnect if limits.leases else None,
        name=name,
    )


def connection_limits(
    name: str,
    *,
    connections: Rate | None = None,
    network_connections: Rate | None = None,
    concurrent: int | None = None,
    messages: Rate | None = None,
    recipients: Rate | None = None,
    auth_failures: Rate | None = None,
    octets: Rate | None = None,
    errors: Rate | None = None,
) -> ConnectionLimits:
    """Return what :func:`rate_limit` with these arguments asks the store about a host."""
    return ConnectionLimits(
        name,
        host=connections,
        network=network_connections,
        concurrent=concurrent,
        messages=messages,
        recipients=recipients,
        auth_failures=auth_failures,
        octets=None if octets is None else _in_units(octets),
        errors=errors,
    )


def rate_name(name: str, limit: str, address: str) -> str:
    """Return the key of ``take`` for one address.

    :param name: of the rate limit.
    :param limit: ``"per_sender"``, ``"per_recipient"`` or ``"per_user"``.
    :param address: normalised.
    """
    return f"{name}:{limit}:{address}"


def _in_units(octets: Rate) -> Rate:
    """Return a rate of octets as one of units, at least one of them."""
    return Rate(
        max(1, octets.count // OCTETS_UNIT), octets.period, max(1, octets.burst // OCTETS_UNIT)
    )


def ip_rate_limit(
    rate: float,
    burst: int,
    store: Store | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Context, Peer], Awaitable[None]]:
    """Return a check that limits each host to `rate` connections a second.

    Lift it to a phase: ``server.use(check_connection(ip_rate_limit(rate=1, burst=10)))``.
    What is above is refused with 421 4.7.0. A host is an IPv4 address or an IPv6 /64.

    :param rate: connections a second; ``1 / 60`` is one a minute.
    :param burst: connections at once after a time of silence.
    :param store: who counts; None counts in this process alone.
    :param clock: seconds, from any beginning.
    :raises ValueError: a value is out of range.
    """
    if not rate > 0:
        raise ValueError(f"{rate} is not a rate in connections a second")
    limit = Rate(count=1, period=1 / rate, burst=burst)
    # Two of them with different limits on one store count apart.
    prefix = f"ip_rate_limit:{limit.interval}:{burst}:"
    counting = store if store is not None else LocalStore()
    blocked = Blocked(clock)

    async def ip_rate_limit(_ctx: Context, peer: Peer) -> None:
        if peer.address is None or peer.is_health_check:
            return
        host = host_octets(peer.address)
        refusal = blocked.look(host)
        if refusal is not None:
            _refuse_connection(refusal)
        try:
            decision = await counting.take(limit, f"{prefix}{host.hex()}")
        except StoreUnavailable:
            return
        if not decision.allowed:
            refusal = Refusal("connections", decision.wait)
            blocked.block(host, refusal, at_most=inf)
            _refuse_connection(refusal)

    return ip_rate_limit
