"""Addresses of a host's name, without piling up look-ups that hang."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Final

#: The most names that are kept; a cluster has as many nodes at most.
MAX_HOSTS: Final = 1024


class Resolver:
    """Looks one name up again and again, never twice at once.

    The C library's look-up occupies a thread for as long as it likes. Whoever gives up waiting
    leaves it running, and who comes next waits for the same one.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._running: asyncio.Task[list[str]] | None = None
        try:
            self._known: str | None = str(ip_address(host))
        except ValueError:
            self._known = None

    async def addresses(self) -> list[str]:
        """Return the host's IP addresses, in the order in which to try them.

        :raises OSError: it has none, or nobody knows.
        """
        if self._known is not None:
            return [self._known]
        if self._running is None:
            self._running = asyncio.create_task(self._look_up())
            # Nobody may be there any more to see how it failed.
            self._running.add_done_callback(lambda task: task.cancelled() or task.exception())
        task = self._running
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and self._running is task:
                self._running = None

    def close(self) -> None:
        """Let go of a look-up that nobody waits for."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    async def _look_up(self) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Resolvers:
    """One :class:`Resolver` for each name."""

    def __init__(self) -> None:
        self._by_host: dict[str, Resolver] = {}

    def of(self, host: str) -> Resolver:
        """Return the one for `host`."""
        if host not in self._by_host:
            if len(self._by_host) >= MAX_HOSTS:
                self.close()
            self._by_host[host] = Resolver(host)
        return self._by_host[host]

    def close(self) -> None:
        """Let go of all look-ups."""
        while self._by_host:
            self._by_host.popitem()[1].close()
