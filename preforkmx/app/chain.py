"""From the tables of a configuration to the store, the middleware and the delivery."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from preforkmx.app import code
from preforkmx.app.cores import usable_cores
from preforkmx.app.resolver import resolver_of
from preforkmx.config import values
from preforkmx.config.delivery_tables import Discard, Lmtp, Maildir, NextHop, SiteDelivery, Smtp
from preforkmx.config.middleware_tables import (
    RBL,
    SPF,
    AuthenticationResults,
    Greylist,
    RateLimit,
    Recipients,
    RequireAuth,
    RequireTLS,
    SiteMiddleware,
    Users,
)
from preforkmx.config.values import BadValue
from preforkmx.delivery.callout import Callout
from preforkmx.delivery.discard import discard
from preforkmx.delivery.lmtp import lmtp
from preforkmx.delivery.maildir import maildir
from preforkmx.delivery.nexthop.options import Options
from preforkmx.delivery.nexthop.settings import Timeouts
from preforkmx.delivery.smtp import smtp
from preforkmx.middleware import greylist, rbl, spf
from preforkmx.middleware.auth import require_auth
from preforkmx.middleware.authentication_results import authentication_results
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.call_forward import CallForward
from preforkmx.middleware.harvest import Harvest
from preforkmx.middleware.rate_limit import rate_limit
from preforkmx.middleware.rbl_list import DNSList
from preforkmx.middleware.recipients import recipients
from preforkmx.middleware.recipients_file import read_recipients
from preforkmx.middleware.recipients_set import RecipientSet
from preforkmx.middleware.tls import require_tls
from preforkmx.middleware.users import MAX_THREADS, users
from preforkmx.state.decisions import Rate, running
from preforkmx.state.embedded.client import EmbeddedStore
from preforkmx.state.fallback import FallbackStore
from preforkmx.state.local import LocalStore
from preforkmx.state.looking import LookingStore
from preforkmx.state.redis import nodes_for
from preforkmx.state.redis import url as redis_url
from preforkmx.state.redis.store import RedisStore
from preforkmx.workers.seat import StoreReading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from preforkmx.app.resolver import SharedResolver
    from preforkmx.config.delivery_tables import AnyDelivery
    from preforkmx.config.middleware_tables import AnyMiddleware
    from preforkmx.config.schema import State
    from preforkmx.middleware.recipients_source import Source
    from preforkmx.state.decisions import Store
    from preforkmx.state.redis.url import Target
    from preforkmx.state.sets import Sets
    from preforkmx.workers.seat import WorkerSeat


def make_store(state: State, socket: Path | None, seat: WorkerSeat) -> Store:
    """Return the store of one worker: Redis, else this machine's store process, else its share.

    :param socket: of the store process; None for ``"local:"``.
    :param seat: says among how many the limits are divided while every store is away, and is
        told how to look at the stores.
    :raises BadValue: a file that ``state.url`` names cannot be used.
    """
    if socket is None:
        return LocalStore()
    target = redis_target(state)
    # No session waits longer than the deadline for all stores together.
    nearer = state.deadline if target is None else state.deadline / 3
    store = FallbackStore(
        EmbeddedStore(socket, deadline=nearer),
        LocalStore(),
        name="the store process",
        share=lambda: seat.count,
    )
    if target is not None:
        try:
            nodes = nodes_for(target, deadline=state.deadline - nearer)
        except OSError as error:
            raise BadValue("names a file that cannot be used", str(error)) from error
        store = FallbackStore(
            RedisStore(nodes, prefix=state.prefix), store, name=f"Redis at {target.shown}"
        )
    first = store.level

    def look() -> StoreReading:
        return StoreReading(not first.asked, first.steps_down, first.fell_back)

    seat.store = look
    return store


def redis_target(state: State) -> Target | None:
    """Return the Redis that ``state.url`` names, None when it names none."""
    scheme, mark, _ = state.url.partition("://")
    return redis_url.parse(state.url) if mark and scheme in redis_url.SCHEMES else None


def shown(state: State) -> str:
    """Return ``state.url`` without its passwords."""
    target = redis_target(state)
    return state.url if target is None else target.shown


def store_lifespan(store: Store) -> Middleware:
    """Return the Middleware that starts the store with its worker, and closes it."""
    return Middleware(lifespan=partial(running, store), name="store")


def make_middleware(
    table: AnyMiddleware,
    store: Store,
    number: int,
    resolver: SharedResolver,
    *,
    hostname: str = "",
    domains: Sequence[str] | None = None,
) -> Middleware:
    """Return the middleware of one ``[[middleware]]`` table.

    :param number: which of the tables of its kind it is, from 1: their counts are kept apart.
    :param resolver: for those that look names up: ``resolver_of(resolver)``.
    :param hostname: this server's name.
    :param domains: those whose recipients are taken.
    :raises ValueError: when it cannot be made; the text is for the operator.
    :raises ConfigError: with everything that is wrong with a file that it reads.
    """
    match table:
        case RateLimit():
            return _rate_limit(table, store, number)
        case Greylist():
            return greylist.Greylist(store, **_options(table)).middleware()
        case RBL():
            return _rbl(table, number, resolver)
        case SPF():
            options = _options(table)
            at = options.pop("at")
            return spf.SPF(resolver_of(resolver), **options).middleware(at=at)
        case RequireTLS():
            return require_tls(at=table.at)
        case RequireAuth():
            return require_auth(at=table.at)
        case Users():
            return _users(table, number)
        case Recipients():
            return _recipients(table, store, number, hostname, domains or ())
        case AuthenticationResults():
            return authentication_results(table.id or hostname, remove=table.remove)
        case SiteMiddleware():
            return code.to_middleware(code.find(table.use), table.options)


def make_delivery(table: AnyDelivery, hostname: str, store: Store) -> Middleware:
    """Return the delivery of ``[delivery]``.

    :param store: where it remembers who has a copy of what is to come again.

    :raises ValueError: when it cannot be made; the text is for the operator.
    """
    match table:
        case Maildir():
            return maildir(table.path, hostname=hostname)
        case Lmtp():
            return lmtp(table.servers, hostname=hostname, memory=store, **_next_hop(table))
        case Smtp():
            return smtp(table.servers, hostname=hostname, **_next_hop(table))
        case Discard():
            return discard()
        case SiteDelivery():
            return code.to_delivery(code.find(table.use), table.options)


def rates_of(table: RateLimit) -> dict[str, Rate]:
    """Return every rate of a ``rate_limit``, by its key."""
    rates = {
        key: Rate(value.count, value.period, value.count)
        for key in type(table).model_fields
        if isinstance(value := getattr(table, key), values.Rate)
    }
    if table.burst is not None and table.connections is not None:
        rates["connections"] = replace(rates["connections"], burst=table.burst)
    return rates


def name_of(use: str, number: int) -> str:
    """Return the name of the middleware of this kind with this number, from 1."""
    return use if number == 1 else f"{use} {number}"


def _rate_limit(table: RateLimit, store: Store, number: int) -> Middleware:
    rates: dict[str, Any] = {**rates_of(table)}
    return rate_limit(
        store,
        **rates,
        concurrent=table.concurrent,
        allow=table.allow,
        name=name_of(table.use, number),
    )


def _users(table: Users, number: int) -> Middleware:
    if number > 1:
        # All authenticators have to agree, so this would let in whom both files know.
        raise BadValue("stands here twice", "put all users into one file")
    threads = table.threads or min(MAX_THREADS, usable_cores())
    return users(table.file, threads=threads, waiting=table.waiting)


def _recipients(
    table: Recipients, store: Store, number: int, hostname: str, domains: Sequence[str]
) -> Middleware:
    name = name_of(table.use, number)
    sources: list[Source] = []
    if table.file is not None:
        sources.append(read_recipients(table.file, separator=table.separator))
    if table.redis_set is not None:
        sources.append(RecipientSet(_sets(store), table.redis_set))
    if table.call_forward is not None:
        back_end = Callout(
            table.call_forward,
            hostname=hostname,
            lmtp=table.call_forward_protocol == "lmtp",
            connections=table.call_forward_connections,
            deadline=table.call_forward_deadline,
        )
        sources.append(
            CallForward(
                back_end,
                plain=table.extension == "drop",
                known_for=table.known_for,
                unknown_for=table.unknown_for,
                deadline=table.call_forward_deadline,
                at_once=table.call_forward_connections,
            )
        )
    unknown = None
    if table.unknown is not None:
        rate = Rate(table.unknown.count, table.unknown.period, table.unknown.count)
        unknown = Harvest(rate, store, name=name, allow=table.allow)
    return recipients(
        sources,
        hostname=hostname,
        domains=table.domains or domains,
        separator=table.separator,
        extension=table.extension,
        unknown=unknown,
        vrfy=table.vrfy,
        name=name,
    )


def _sets(store: Store) -> Sets:
    """Return the Redis of a store, which is asked itself: no other has what is in it.

    :raises BadValue: there is none.
    """
    first: object = store
    if isinstance(store, FallbackStore):
        first = store.primary
    elif isinstance(store, LookingStore):
        first = store.sets
    if not isinstance(first, RedisStore):
        raise BadValue(
            "has no Redis for its redis_set", "give [state] the url of the Redis that has it"
        )
    return first


def _next_hop(table: NextHop) -> Options:
    return Options(
        tls=table.tls,
        ca=table.ca_file,
        tls_name=table.tls_name or "",
        certificate=table.certificate,
        key=table.key,
        user=table.user,
        password_file=table.password_file,
        connections=table.connections,
        idle=table.idle,
        reuse=table.reuse,
        chunking=table.chunking,
        forward=table.forward,
        timeouts=Timeouts(
            connect=table.connect_timeout,
            greeting=table.greeting_timeout,
            command=table.command_timeout,
            data=table.data_timeout,
            block=table.block_timeout,
            end=table.end_timeout,
        ),
        timeout=table.timeout,
    )


def _rbl(table: RBL, number: int, resolver: SharedResolver) -> Middleware:
    return rbl.RBL(
        [
            DNSList(
                zone=each.zone,
                kind=each.kind,
                codes=each.codes,
                weight=each.weight,
                name=each.name,
                reason=each.reason,
            )
            for each in table.list
        ],
        threshold=table.threshold,
        on_fail=table.on_fail,
        at=table.at,
        resolver=resolver_of(resolver),
        allow=table.allow,
        exempt_private=table.exempt_private,
        name=name_of(table.use, number),
    ).middleware()


def _options(table: Greylist | SPF) -> dict[str, Any]:
    return {key: getattr(table, key) for key in type(table).model_fields if key != "use"}
