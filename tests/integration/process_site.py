"""The server that test_processes.py runs: ``python process_site.py SETTINGS.json``.

A real Master with real workers. What it is to do, and what is to go wrong, stands in the
settings, which are read again at each reload. When every slot is ready the status document is
printed, as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preforkmx.errors import BootError, ConfigError, SMTPError
from preforkmx.master.plan import Plan, StorePlan
from preforkmx.master.supervisor import Master
from preforkmx.middleware.base import Middleware
from preforkmx.server import Server
from preforkmx.session.listener import Listener

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer
    from preforkmx.workers.seat import WorkerSeat


async def misbehave(ctx: Context, peer: Peer, address: str) -> None:
    """Do what the reverse path asks for."""
    word = address.partition("@")[0]
    if word == "hang":
        # The whole loop, and not only this session, stands still.
        time.sleep(60)  # noqa: ASYNC251
    if word.startswith("sleep-"):
        time.sleep(float(word.removeprefix("sleep-")))  # noqa: ASYNC251
    if word == "refuse":
        raise SMTPError(550, "as asked")


async def deliver(ctx: Context, peer: Peer, envelope: Envelope) -> None:
    """Read the message, slowly where the reverse path asks for it, and note it."""
    octets = b"".join([chunk async for chunk in envelope.data])
    if (envelope.sender or "").startswith("slow"):
        await asyncio.sleep(1.0)
    messages = SETTINGS.get("messages")
    if messages:
        (Path(messages) / envelope.id).write_bytes(octets)


def build_server(seat: WorkerSeat) -> Server:
    """Build the server of one worker."""
    # A file, since only a reload reads the settings again.
    if seat.slot == 0 and Path(SETTINGS.get("crash_slot_0_while", "/none")).exists():
        os._exit(9)
    if SETTINGS.get("boot_failure_in_slot") == seat.slot:
        raise BootError(SETTINGS["boot_failure"])
    server = Server(
        hostname=SETTINGS["hostname"],
        handler=deliver,
        max_sessions=SETTINGS["max_sessions"],
        command_timeout=SETTINGS["command_timeout"],
    )
    server.use(Middleware(check_sender=misbehave))
    return server


def check() -> None:
    """Be the check of a checker process."""
    time.sleep(SETTINGS.get("check_takes", 0))
    if SETTINGS.get("check_problems"):
        raise ConfigError(SETTINGS["check_problems"])


def load() -> Plan:
    """Read the settings again."""
    SETTINGS.update(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    if SETTINGS.get("problems"):
        raise ConfigError(SETTINGS["problems"])
    store = SETTINGS.get("store")
    return Plan(
        hostname=SETTINGS["hostname"],
        listeners=tuple(Listener(address) for address in SETTINGS["listeners"]),
        count=SETTINGS["count"],
        loop=SETTINGS["loop"],
        build_server=build_server,
        check=check,
        store=None
        if store is None
        else StorePlan(Path(store, "store.sock"), Path(store, "greylist.db")),
        state_url="local:" if store is None else "embedded:",
        drain_seconds=SETTINGS["drain_seconds"],
        hang_seconds=SETTINGS["hang_seconds"],
        max_sessions=SETTINGS["max_sessions"],
        recycle_after_messages=SETTINGS.get("recycle_after_messages", 0),
        log_format="logfmt",
        log_level="debug",
    )


def announce(status: dict[str, Any]) -> None:
    """Tell the test that everything is ready."""
    sys.stdout.write(json.dumps(status) + "\n")
    sys.stdout.flush()


SETTINGS: dict[str, Any] = {
    "hostname": "mx.example.com",
    "listeners": ["127.0.0.1:0"],
    "count": 2,
    "loop": "auto",
    "drain_seconds": 5.0,
    "hang_seconds": 30.0,
    "max_sessions": 500,
    "command_timeout": 30.0,
}

if __name__ == "__main__":
    sys.exit(Master(load(), control=Path(SETTINGS["control"]), load=load, announce=announce).run())
