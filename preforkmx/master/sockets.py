"""Sockets: bound with an error that an operator understands, and what Linux does for them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

from preforkmx.master.errors import StartRefused

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_SO_MEMINFO = 55
_MEMINFO_OCTETS = 36
_DROPS_OFFSET = 32
_TCP_INFO = 11
_TCP_INFO_OCTETS = 104
_UNACKED_OFFSET = 24

#: Classic BPF over the TCP header: load octet 13, the flags; a SYN in them drops the segment,
#: everything else passes.
_DROP_SYNS = (
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 2),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


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
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
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


def drop_syns(sock: socket.socket) -> None:
    """Let no new connection begin on a listening socket; handshakes under way still end.

    A client whose SYN is dropped tries again a second later, and is refused if the port is
    closed by then: it never has a connection that is reset.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYNS)
    buffer = ctypes.create_string_buffer(program, len(program))
    argument = struct.pack("HP", len(_DROP_SYNS), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)


def accept_syns(sock: socket.socket) -> None:
    """Undo :func:`drop_syns`."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


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


def queue_length(sock: socket.socket) -> int:
    """Return how many connections wait in a listening socket to be accepted."""
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_OCTETS)
    length: int = struct.unpack_from("I", info, _UNACKED_OFFSET)[0]
    return length


def longest_backlog() -> int | None:
    """Return what the kernel cuts a longer backlog to; None where it does not say."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    except (OSError, ValueError):
        return None
