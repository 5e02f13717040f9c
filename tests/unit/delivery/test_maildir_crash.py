"""kill -9 at every step of a delivery, and in the middle of many."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest
from maildirs import BODY, PEER, envelope, in_child

from preforkmx.context import Context

# Python 3.12 and later warn about a fork beside threads (those of xdist): these children only
# use threads that they start themselves.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

CALLS = ("mkdir", "open", "write", "fsync", "close", "link", "rename")


def die_at(step: int) -> None:
    """Let this process be killed when a delivery makes its call number `step`."""
    count = 0

    def killing(real):
        def call(*arguments, **options):
            nonlocal count
            if threading.current_thread().name.startswith("preforkmx-maildir"):
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, killing(getattr(os, name)))


@pytest.mark.parametrize("body", [(BODY,), [b"x" * 60_000] * 10], ids=["small", "large"])
def test_a_process_that_is_killed_at_any_step_leaves_no_half_message_in_new(maildirs, body):
    killed, complete = 0, b"".join(body)
    while True:

        def work(step=killed):
            die_at(step)
            assert maildirs.deliver(envelope("joe@d", "ann@d", body=body)) == [None]

        status = in_child(work)
        files = maildirs.files("new")
        assert all(path.read_bytes().endswith(b"\r\n" + complete) for path in files)
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        # Both or none, but for a death between the two renames: then the client, who has no
        # 250, sends the message again.
        assert len(files) in {0, 1, 2}
        for path in (*files, *maildirs.files("tmp")):
            path.unlink()
        killed += 1
    assert os.WEXITSTATUS(status) == 0
    assert killed > 20
    assert len(files) == 2


def test_every_message_that_was_acknowledged_outlives_a_kill_under_load(maildirs):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            asyncio.run(deliver_for_ever(maildirs, writer))
        finally:
            os._exit(70)
    os.close(writer)
    acknowledged = b""
    while acknowledged.count(b"\n") < 300:
        acknowledged += os.read(reader, 65536)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    while octets := os.read(reader, 65536):
        acknowledged += octets
    os.close(reader)
    bodies = set()
    for path in maildirs.files("new"):
        body = path.read_bytes().rpartition(b"+0000\r\n")[2]
        assert body.startswith(b"begin ")
        assert body.endswith(b" end\r\n")
        bodies.add(body.split()[1])
    # The last line may be cut: then its message was not acknowledged.
    assert set(acknowledged.split(b"\n")[:-1]) <= bodies


async def deliver_for_ever(maildirs, writer: int) -> None:
    delivery = maildirs.delivery()
    number = 0

    async def client(user: int) -> None:
        nonlocal number
        while True:
            number += 1
            mine = b"%d" % number
            # Every tenth is large enough for the other way to the disk.
            filler = b"x" * 50_000 if number % 10 == 0 else b"x"
            body = (b"begin ", mine, *[b" " + filler] * 7, b" end\r\n")
            await delivery.handle(Context(), PEER, envelope(f"u{user}@d", body=body))
            os.write(writer, mine + b"\n")

    async with delivery.lifespan():
        await asyncio.gather(*map(client, range(20)))
