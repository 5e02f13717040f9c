"""Builds the server of one worker from a configuration, with the site's own code."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from preforkmx.app import chain, code
from preforkmx.app.resolver import SharedResolver, resolver_lifespan
from preforkmx.errors import ConfigError, SMTPError
from preforkmx.middleware.domains import accept_domains
from preforkmx.observe.log import AccessLog
from preforkmx.server import Server
from preforkmx.state.local import LocalStore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from preforkmx.config.keys import Path as KeyPath
    from preforkmx.config.load import Loaded
    from preforkmx.middleware.base import Middleware
    from preforkmx.state.decisions import Store
    from preforkmx.workers.seat import WorkerSeat

HOOK_FAILURE = SMTPError(451, "Internal error, try again later", enhanced=(4, 3, 0))
"""The reply when a hook raises something else than an SMTPError: a bug never bounces mail."""

_Made = TypeVar("_Made")


class Builder:
    """Builds one server, and collects everything that is wrong on the way.

    The chain is: the store's lifespan, the check of the recipients' domains, the resolver's
    lifespan where something looks names up, the ``[[middleware]]`` in its order, then the
    application's own.

    :param app: ``MODULE:OBJECT`` of an application, or None.
    :param tls: the context that the master made before the fork.
    :param store_socket: of the store process, or None for ``"local:"``.
    :param store: takes the place of the one that ``[state] url`` names.
    """

    def __init__(
        self,
        loaded: Loaded,
        app: str | None,
        *,
        tls: ssl.SSLContext | None,
        store_socket: Path | None,
        seat: WorkerSeat,
        store: Store | None = None,
    ) -> None:
        self._loaded = loaded
        self._config = loaded.config
        self._app = app
        self._tls = tls
        self._access_log = AccessLog(
            seat.log.write,
            self._config.log.format,
            worker=str(seat.slot),
            level=self._config.log.level,
            colour=seat.log.colour,
        )
        self._problems: list[str] = []
        # Without it the rest is looked at all the same: every problem is told.
        self._store = (
            store
            or self._attempt(
                ("state", "url"),
                self._config.state.url,
                partial(chain.make_store, self._config.state, store_socket, seat),
            )
            or LocalStore()
        )

    def build(self) -> Server:
        """Return the server.

        :raises ConfigError: with every reason why there is none.
        """
        server = self._own_server() if self._app is None else self._apps_server(self._app)
        if server is None or self._problems:
            raise ConfigError(self._problems)
        return server

    def _own_server(self) -> Server | None:
        config = self._config
        limits, extensions = config.limits, config.extensions
        # The rules of the configuration have seen to it.
        assert config.hostname is not None
        assert config.delivery is not None
        hostname, table = config.hostname, config.delivery
        first = self._first(hostname)
        delivery = self._attempt(
            ("delivery", "use"),
            table.use,
            partial(chain.make_delivery, table, hostname, self._store),
        )
        if delivery is None:
            return None
        self._look_at_promises(delivery)
        server = Server(
            hostname=hostname,
            tls=self._tls,
            handler=delivery,
            hook_failure=HOOK_FAILURE,
            message_size=limits.message_size,
            recipients=limits.recipients,
            command_timeout=limits.command_timeout,
            session_time=limits.session_time,
            errors=limits.errors,
            auth_failures=limits.auth_failures,
            bare_newline=limits.bare_newline,
            normalize_from=limits.normalize_from,
            hops=limits.hops,
            commands=limits.commands,
            transactions=limits.transactions,
            strict_flights=limits.strict_flights,
            greeting_delay=limits.greeting_delay,
            minimum_rate=limits.minimum_rate,
            smtputf8=extensions.smtputf8,
            dsn=extensions.dsn,
            chunking=extensions.chunking,
            requiretls=extensions.requiretls,
            delivery_timeout=table.timeout,
            max_sessions=config.workers.max_sessions,
            access_log=self._access_log,
        )
        server.use(*first)
        return server

    def _look_at_promises(self, delivery: Middleware) -> None:
        """A promise that was switched on by hand is kept: a site's delivery says so itself.

        SMTPUTF8 and BINARYMIME, which are on by default, are only not offered then. Where a next
        hop decides, which is not asked here, everything is offered only as long as it does.
        """
        kept = delivery.extensions
        if kept is None or callable(kept):
            return
        for key in ("dsn", "requiretls"):
            if getattr(self._config.extensions, key) and key.upper() not in kept:
                self._problem(
                    ("extensions", key),
                    "cannot be kept by the delivery",
                    f"its extensions are without {key.upper()}",
                    value=True,
                )

    def _apps_server(self, app: str) -> Server | None:
        config = self._config
        try:
            server = code.to_server(code.find(app))
        except ValueError as error:
            hint = getattr(error, "hint", "")
            self._problems.append(f"--app {app}: {error}" + (f" ({hint})" if hint else ""))
            return None
        if config.hostname is not None and config.hostname != server.hostname:
            self._problem(
                ("hostname",),
                "is not the application's",
                f"it says {server.hostname}",
                config.hostname,
            )
        if self._tls is None and server.tls is None:
            for index, listener in enumerate(config.listener):
                if listener.tls == "implicit":
                    self._problem(
                        ("listener", index, "tls"),
                        "needs a certificate",
                        "add [tls] with certificate and key, or give the application's Server "
                        "a context",
                        listener.tls,
                    )
        server.host(
            first=self._first(server.hostname),
            tls=self._tls,
            hook_failure=HOOK_FAILURE,
            max_sessions=config.workers.max_sessions,
            access_log=self._access_log,
        )
        return server

    def _first(self, hostname: str) -> list[Middleware]:
        """Return what runs before the delivery, or before the application's middleware."""
        config = self._config
        first = [chain.store_lifespan(self._store)]
        if config.domains is not None:
            first.append(accept_domains(config.domains, hostname))
        resolver = SharedResolver(config.dns)
        checks = []
        numbers: Counter[str] = Counter()
        for index, table in enumerate(config.middleware):
            numbers[table.use] += 1
            made = self._attempt(
                ("middleware", index, "use"),
                table.use,
                partial(
                    chain.make_middleware,
                    table,
                    self._store,
                    numbers[table.use],
                    resolver,
                    hostname=hostname,
                    domains=config.domains,
                ),
            )
            if made is not None:
                checks.append(made)
        dns = resolver_lifespan(resolver)
        if dns is not None:
            first.append(dns)
        return first + checks

    def _attempt(self, path: KeyPath, value: str, make: Callable[[], _Made]) -> _Made | None:
        try:
            return make()
        except ConfigError as error:
            # A file that the table names has lines of its own.
            self._problems += error.problems
            return None
        except ValueError as error:
            self._problem(path, str(error), getattr(error, "hint", ""), value)
            return None

    def _problem(self, path: KeyPath, message: str, hint: str, value: object) -> None:
        self._problems.append(self._loaded.problem(path, message, hint, value=value))
