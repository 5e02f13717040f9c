"""Users: AUTH against a file of names and Argon2 hashes (RFC 4954, RFC 9106)."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from argon2.exceptions import VerificationError

from preforkmx.errors import SMTPError
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.passwords import MAX_OCTETS, prepare_name, prepare_password, verify
from preforkmx.middleware.users_file import read_users
from preforkmx.protocol import replies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from preforkmx.context import Context
    from preforkmx.middleware.users_file import UserHashes
    from preforkmx.model import Peer

MAX_THREADS: Final = 4
"""Passwords that one process verifies at the same time, where nothing else is said."""
WAITING: Final = 64
"""Clients that wait for a thread, where nothing else is said."""


def users(file: Path | str, *, threads: int | None = None, waiting: int = WAITING) -> Middleware:
    """Let the users of `file` authenticate with their passwords.

    The file is read here, once: each line is ``name:hash``, as ``preforkmx hash-password``
    prints it. Names are compared exactly, in NFC; passwords in OpaqueString's form (RFC 8265
    section 4.2). An unknown user and a wrong password get the same 535 5.7.8 after the same
    work: the password of an unknown one is verified too, against a hash that nobody has, with
    the parameters that most of the file's hashes have.

    Passwords are verified in threads, so that nobody else's session waits. Each takes the memory
    that its hash asks for: at most `threads` times that in one process. Where `threads` are busy
    and `waiting` clients wait for one, a further client is told 454 4.7.0 at once.

    Nobody has to authenticate: that is :func:`~preforkmx.middleware.auth.require_auth`.

    :param threads: passwords that are verified at the same time; None is one for each core, at
        most 4.
    :param waiting: clients that wait for a thread at most.
    :raises ConfigError: with everything that is wrong with the file.
    :raises ValueError: `threads` or `waiting` is out of range.
    """
    if threads is None:
        threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    gate = Users(read_users(Path(file)), threads=threads, waiting=waiting)
    return Middleware(authenticate=gate.authenticate, lifespan=gate.lifespan, name="users")


class Users:
    """The hook of :func:`users`, and its threads while a worker runs.

    :param verifier: says whether a password has a hash; called in a thread.
    """

    def __init__(
        self,
        known: UserHashes,
        *,
        threads: int,
        waiting: int = WAITING,
        verifier: Callable[[str, bytes], bool] = verify,
    ) -> None:
        if threads < 1 or waiting < 0:
            raise ValueError("users needs at least one thread, and no less than 0 may wait")
        self._known = known
        self._threads = threads
        self._verifier = verifier
        # Given back where a job ends: in its thread, even when nobody waits for it any more.
        self._places = threading.BoundedSemaphore(threads + waiting)
        self._executor: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Have the threads until the worker stops."""
        self._executor = executor = ThreadPoolExecutor(
            self._threads, thread_name_prefix="preforkmx-users"
        )
        try:
            yield
        finally:
            self._executor = None
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)

    async def authenticate(self, ctx: Context, _peer: Peer, user: str, password: str) -> None:
        """Return if `password` is the one of `user`.

        :raises SMTPError: 535 5.7.8 if it is not; 454 4.7.0 (RFC 4954 section 6) if too many
            wait, or there was no memory.
        """
        executor = self._executor
        if executor is None:
            raise RuntimeError("the lifespan of this middleware was not entered")
        if not self._places.acquire(blocking=False):
            raise _temporary_failure()
        try:
            job = executor.submit(self._is_right, user, password)
        except BaseException:
            self._places.release()
            raise
        job.add_done_callback(lambda _: self._places.release())
        try:
            right = await asyncio.wrap_future(job)
        except VerificationError as error:
            ctx.logger.error("a password could not be verified: %s", error)
            raise _temporary_failure() from None
        if not right:
            failed = replies.AUTH_FAILED
            raise SMTPError(failed.code, failed.lines[0], enhanced=failed.enhanced)

    def _is_right(self, user: str, password: str) -> bool:
        """Say whether `password` is the one of `user`, after one verification in any case."""
        found = None
        secret = b""
        if len(user.encode()) <= MAX_OCTETS and len(password.encode()) <= MAX_OCTETS:
            found = self._known.hashes.get(prepare_name(user))
            secret = prepare_password(password)
        right = self._verifier(self._known.decoy if found is None else found, secret)
        return right and found is not None


def _temporary_failure() -> SMTPError:
    return SMTPError(454, "Temporary authentication failure", enhanced=(4, 7, 0))
