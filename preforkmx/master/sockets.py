"""Sockets: bound with an error that an operator understands, and what Linux does for them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from preforkmx.master.errors import StartRefused
from preforkmx.session.queues import accept_syns, drop_syns, queue_length

__all__ = [
    "accept_syns",
    "bind_tcp",
    "bind_unix",
    "drop_syns",
    "dropped_segments",
    "longest_backlog",
    "queue_length",
]

_SO_MEMINFO = 55
_MEMINFO_OCTETS = 36
_DROPS_OFFSET = 32


def bind_tcp(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Return a bound, non-blocking socket that does not listen yet.

    SO_REUSEADDR is set: connections left over from an earlier run must not make a restart
    fail, and a live listener is still found. An IPv6 socket never takes IPv4 connections.

    :raises StartRefused: with a text for the operator.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shown = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StartRefused(f"{shown} cannot be bound: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartRefused(_explain(shown, port, error)) from error
    return sock


def _explain(shown: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{shown} is taken: another process listens there"
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = (
            f": a port below {_first_free_port()} takes root or CAP_NET_BIND_SERVICE"
            if port < _first_free_port()
            else ""
        )
        return f"{shown} is not permitted{hint}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{shown} cannot be bound: this machine does not have that address"
    return f"{shown} cannot be bound: {error.strerror}"


def _first_free_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    except (OSError, ValueError):
        return 1024


def bind_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """Return a bound, non-blocking unix socket in the place of a dead one.

    Whether somebody listens on the one that is replaced is not asked: the caller knows, by a
    lock or because it knocked. The folder is made where it is missing.

    :param mode: of the socket's file; who may write to it may connect.
    :raises StartRefused: the path cannot be bound.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise StartRefused(f"the socket {path} cannot be made: {error.strerror}") from error
    # Before the mask: a folder with mode 0600 is one that nobody can enter.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sock.close()
        raise StartRefused(
            f"the folder {path.parent} cannot be made: {error.strerror or error}"
        ) from error
    earlier = os.umask(0o777 & ~mode)
    try:
        if path.is_socket():
            path.unlink()
        sock.bind(str(path))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartRefused(
            f"the socket {path} cannot be made: {error.strerror or error}"
        ) from error
    finally:
        os.umask(earlier)
    return sock


def dropped_segments(sock: socket.socket) -> int:
    """Return how many segments a listening socket threw away since it was made.

    These are SYNs and last steps of handshakes that found its queue full, each counted again
    when the client repeats it, and what a filter dropped (``SK_MEMINFO_DROPS``). 0 where the
    kernel does not say.
    """
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_OCTETS)
        dropped: int = struct.unpack_from("I", info, _DROPS_OFFSET)[0]
    except (OSError, struct.error):
        return 0
    return dropped


def longest_backlog() -> int | None:
    """Return what the kernel cuts a longer backlog to; None where it does not say."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    except (OSError, ValueError):
        return None
