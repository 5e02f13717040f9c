"""A link: a connection to one server that is made again whenever it is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hiredis import ReplyError

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis.connection import Connection, printable
from preforkmx.state.redis.resolve import Resolver
from preforkmx.state.redis.script import pack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from preforkmx.state.redis.script import Call, Command, Script, Word
    from preforkmx.state.redis.url import Address

_log = logging.getLogger("preforkmx.state")

#: How long an attempt to connect may take, in seconds, and each reply of the greeting as long as
#: any. Nobody waits for it: while there is no connection every call fails at once.
CONNECT_SECONDS: Final = 1.0
#: The pauses between attempts to connect, in seconds: the first, then twice as long each time.
#: Up to half of each is left out at random, so that a fleet does not come back all at once.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
#: A server that refuses the greeting is complained of once in so many seconds.
COMPLAINT_SECONDS: Final = 60.0
#: What CLIENT LIST shows of us.
CLIENT_NAME: Final = "preforkmx"

#: Asked of each new connection: a server that pauses or refuses scripts is none that answers.
_PROBE: Final = pack(b"EVAL", b"return 1", 0)
_ASKING: Final = pack(b"ASKING")


class Unreachable(Exception):
    """No connection: the text says why, without a password."""


class Refused(Unreachable):
    """There is a server, and it does not let us in or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to get in where a server is.

    :param tls: the context to connect with; None is no TLS.
    :param tls_name: the name in the server's certificate, ``""`` is its address.
    :param scripts: the server is asked to run a script before anybody else may ask it.
    :param primary: the server must be a primary.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    tls_name: str = ""
    scripts: bool = True
    primary: bool = False


class Link:
    """One server, and the connection to it.

    A lost connection is made again in the background, with growing pauses; meanwhile every call
    fails at once. So it does while a connection is overdue
    (:class:`~preforkmx.state.redis.connection.Connection`): a server that stands still costs
    the questions that are under way one deadline, and then nothing.

    :param locate: where the server is; asked before each attempt to connect.
        :class:`Unreachable` says that nobody knows.
    :param deadline: how long a reply may take, in seconds.
    :param on_change: called when :attr:`ready` has changed.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        access: Access,
        deadline: float,
        *,
        on_change: Callable[[Link], None] | None = None,
    ) -> None:
        self._locate = locate
        self._access = access
        self._deadline = deadline
        self._on_change = on_change
        self._connection: Connection | None = None
        self._connector: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()
        self._up = asyncio.Event()
        self._was_ready = False
        self._resolvers: dict[str, Resolver] = {}
        self._complained = -COMPLAINT_SECONDS
        # How often each script was sent whole on this connection.
        self._sent_whole: dict[Script | Command, int] = {}
        #: Where the connection leads, or the last attempt led.
        self.address: Address | None = None
        #: Why there is no connection.
        self.why = "it was not connected yet"

    @property
    def ready(self) -> bool:
        """Whether a call would be sent."""
        return self._connection is not None and self._connection.answering

    @property
    def connected(self) -> bool:
        """Whether there is a connection; it may be overdue."""
        return self._connection is not None

    def start(self) -> None:
        """Begin to connect, in the running loop."""
        if self._connector is None:
            self._connector = asyncio.create_task(self._stay_connected())

    async def attempted(self) -> None:
        """Return after the first attempt to connect."""
        await self._attempted.wait()

    async def up(self) -> None:
        """Return as soon as there is a connection."""
        await self._up.wait()

    async def close(self) -> None:
        """Close the connection, and make no other."""
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.cancel()
            with suppress(asyncio.CancelledError):
                await connector

    def reconnect(self, why: str) -> None:
        """Give the connection up for a new one, perhaps to another server."""
        if self._connection is not None:
            self._connection.abort(why)

    def ask(self, command: bytes, *, asking: bool = False) -> asyncio.Future[Any]:
        """Send a command; the future's result is as in :meth:`Connection.ask`.

        :param asking: put ASKING before it: the slot is on its way to this node.
        :raises StoreUnavailable: at once, when there is nobody to ask.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"{self}: {self.why}")
        if asking:
            connection.tell(_ASKING)
        return connection.ask(command)

    def tell(self, command: bytes, answer: Callable[[Any], None] | None = None) -> None:
        """Send a command for whose reply nobody waits.

        :raises StoreUnavailable: at once, when there is nobody to tell.
        """
        if self._connection is None:
            raise StoreUnavailable(f"{self}: {self.why}")
        self._connection.tell(command, answer)

    def command(self, call: Call, sent: int = 0) -> tuple[bytes, int]:
        """Return the command that runs a script, to be sent now, and how often the script was
        sent whole on this connection.

        It is sent whole the first time, since one that the server does not know would have to be
        asked again, and what was sent behind it would have overtaken it. Of all who are told that
        the server has lost it (SCRIPT FLUSH) the first one sends it again; for those behind it
        the server has it then.

        :param sent: what was returned for the command that was answered with NOSCRIPT.
        """
        times = self._sent_whole.get(call.script, 0)
        if times > sent or (times and not sent):
            return call.by_name(), times
        self._sent_whole[call.script] = times + 1
        return call.whole(), times + 1

    def __str__(self) -> str:
        return str(self.address) if self.address is not None else "Redis"

    async def _stay_connected(self) -> None:
        pause = FIRST_PAUSE
        try:
            while True:
                if await self._connect():
                    pause = FIRST_PAUSE
                # Nothing secret about it.
                await asyncio.sleep(pause * (1 - random.random() / 2))  # noqa: S311
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._attempted.set()
            for resolver in self._resolvers.values():
                resolver.close()

    async def _connect(self) -> bool:
        """Connect, and return when the connection is lost: whether there was one."""
        connection = None
        try:
            self.address = address = await self._locate()
            connection = await connect(
                address, self._access, self._deadline, self._resolver(address), self._changed
            )
            self._connection = connection
            self._sent_whole.clear()
            self._up.set()
            self._changed()
            self._attempted.set()
            await connection.lost.wait()
            self.why = connection.why
            return True
        except Refused as exc:
            self.why = str(exc)
            self._complain()
        except Unreachable as exc:
            self.why = str(exc)
        except Exception as exc:
            # What a library may come up with must not end the attempts.
            self.why = f"{type(exc).__name__}: {exc}"
            self._complain()
        finally:
            self._connection = None
            self._up.clear()
            if connection is not None:
                connection.abort("closed")
            self._changed()
            self._attempted.set()
        return False

    def _resolver(self, address: Address) -> Resolver:
        if address.host not in self._resolvers:
            for resolver in self._resolvers.values():
                resolver.close()
            self._resolvers = {address.host: Resolver(address.host)}
        return self._resolvers[address.host]

    def _changed(self) -> None:
        if self.ready is not self._was_ready:
            self._was_ready = self.ready
            if self._connection is not None and not self.ready:
                self.why = "the server does not answer in time"
            if self._on_change is not None:
                self._on_change(self)

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAINT_SECONDS:
            self._complained = now
            _log.error("Redis at %s cannot be used: %s", self, self.why)


async def connect(
    address: Address,
    access: Access,
    deadline: float,
    resolver: Resolver | None = None,
    on_change: Callable[[], None] | None = None,
) -> Connection:
    """Return a connection to `address` on which everything is said that comes first.

    :raises Unreachable: there is none within :data:`CONNECT_SECONDS`.
    """
    if resolver is None:
        resolver = Resolver(address.host)
    connections: list[Connection] = []

    def protocol() -> Connection:
        connections.append(Connection(deadline, on_change))
        return connections[-1]

    ready = False
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await _reach(address, access, resolver, protocol)
            await _greet(connections[-1], access)
        ready = True
        return connections[-1]
    except TimeoutError:
        raise Unreachable(f"no connection within {CONNECT_SECONDS:g} s") from None
    except ssl.SSLCertVerificationError as exc:
        raise Refused(f"the server's certificate is not good: {exc.verify_message}") from exc
    except ssl.SSLError as exc:
        raise Refused(f"TLS failed: {exc.reason or 'no reason given'}") from exc
    except StoreUnavailable as exc:
        raise Unreachable(str(exc)) from exc
    except OSError as exc:
        raise Unreachable(_reason(exc)) from exc
    finally:
        for connection in connections if not ready else connections[:-1]:
            connection.abort("closed")


def _reason(exc: OSError) -> str:
    if exc.errno is not None and exc.errno > 0:  # asyncio puts its own text over the system's
        return os.strerror(exc.errno)
    return exc.strerror or str(exc)


async def _reach(
    address: Address, access: Access, resolver: Resolver, protocol: Callable[[], Connection]
) -> None:
    loop = asyncio.get_running_loop()
    if address.is_path:
        await loop.create_unix_connection(protocol, address.host)
        return
    hosts = await resolver.addresses()
    for number, host in enumerate(hosts):
        left = len(hosts) - number
        try:
            # An address that swallows packets leaves time for the others.
            async with asyncio.timeout(CONNECT_SECONDS / left):
                await loop.create_connection(
                    protocol,
                    host,
                    address.port,
                    ssl=access.tls,
                    server_hostname=(access.tls_name or address.host) if access.tls else None,
                )
            return
        except ssl.SSLError:
            raise
        except OSError:  # and TimeoutError
            if left == 1:
                raise


async def _greet(connection: Connection, access: Access) -> None:
    """Say everything that comes first, in one write."""
    words: list[tuple[str | int, ...]] = []
    if access.password:
        words.append(("AUTH", *([access.user] if access.user else []), access.password))
    if access.database:
        words.append(("SELECT", access.database))
    words.append(("CLIENT", "SETNAME", CLIENT_NAME))
    if access.primary:
        words.append(("ROLE",))
    futures = [(command[0], connection.ask(pack(*command))) for command in words]
    if access.scripts:
        futures.append(("EVAL", connection.ask(_PROBE)))
    for command, future in futures:
        reply = await future
        if isinstance(reply, StoreUnavailable):
            # A server that is none closes the connection, or says what is no reply.
            raise (Refused if "not a reply" in str(reply) else Unreachable)(str(reply))
        if isinstance(reply, ReplyError):
            if command == "CLIENT":
                continue
            # No more of its text: one that is not Redis may repeat what it was told.
            code = str(reply).partition(" ")[0]
            code = code if code.isascii() and code.isupper() and len(code) < 20 else "an error"
            hint = _HINTS.get(code, "")
            raise (Unreachable if code in _PASSING else Refused)(
                f"{command} was answered with {code}{hint}"
            )
        if command == "ROLE" and (not isinstance(reply, list) or reply[:1] != [b"master"]):
            raise Unreachable("it is not a primary")
        if command == "EVAL" and reply != 1:
            raise Refused("it did not answer as Redis does")


_HINTS: Final = {
    "WRONGPASS": ": user or password is wrong, or the user is disabled",
    "NOAUTH": ": it wants a password",
    "NOPERM": ": the user has no right to this command",
    "LOADING": ": it still reads its data",
}
#: What passes by itself.
_PASSING: Final = frozenset({"LOADING", "BUSY", "MASTERDOWN"})


async def ask_once(
    address: Address,
    access: Access,
    deadline: float,
    *words: Word,
    resolver: Resolver | None = None,
) -> Any:
    """Connect, ask one thing, close, and return the reply.

    :raises Unreachable: there is no connection, no reply in time, or an error.
    """
    connection = await connect(address, access, deadline, resolver)
    try:
        reply = await connection.ask(pack(*words))
    except StoreUnavailable as exc:
        raise Unreachable(str(exc)) from exc
    finally:
        connection.abort("closed")
    if isinstance(reply, StoreUnavailable):
        raise Unreachable(str(reply))
    if isinstance(reply, ReplyError):
        raise Refused(printable(reply))
    return reply
