"""The rows: what is measured, how often, and which budget it has.

Each row starts its servers, gives them turns in every round, and stops them. Turns make what
else the machine does fall on all of them alike; a figure is the middle one of its rounds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import policy as policies
from benchmarks.load import idle_connections, may_open, smtp_source
from benchmarks.name_peers import LOOKERS_UP, NameServer, check_spf, look_up
from benchmarks.peers import Aiosmtpd, Postfix, SMTPSink
from benchmarks.preforkmx_server import Preforkmx
from benchmarks.profiler import profiling, summary
from benchmarks.report import Figure
from benchmarks.server import Failed, NotHere, Server

if TYPE_CHECKING:
    from pathlib import Path

CPU_PER_MESSAGE = "µs of CPU per message"
_SETTLE = 0.3
_SESSIONS = 20


@dataclass(frozen=True)
class Plan:
    """How much is done.

    :param folder: for the servers' files, on the disk that the durable row is about.
    """

    folder: Path
    rounds: int = 3
    kept: int = 20_000
    one_each: int = 6_000
    large: int = 40
    idle: int = 4_000
    durable: int = 3_000
    names: int = 8_000
    profile: bool = False

    @classmethod
    def quick(cls, folder: Path, *, profile: bool) -> Plan:
        """Return the plan for a first look: about a tenth of the load."""
        return cls(folder, 2, 4_000, 1_000, 10, 1_000, 600, 1_500, profile)


def say(text: str) -> None:
    """Tell the one who waits."""
    print(text, file=sys.stderr, flush=True)


def started(stack: ExitStack, *servers: Server) -> list[Server]:
    """Start the servers that can run here."""
    running = []
    for server in servers:
        try:
            running.append(stack.enter_context(server))
        except NotHere as reason:
            say(f"  without {server.name}: {reason}")
    return running


@dataclass(frozen=True)
class Load:
    """One run of smtp-source."""

    messages: int
    kept: bool
    size: int = 1_000
    sessions: int = _SESSIONS

    def run(self, server: Server) -> tuple[float, float]:
        """Return the seconds that it took, and the CPU that the server used, in seconds."""
        before = server.tree.cpu()
        seconds = smtp_source(
            server.port,
            messages=self.messages,
            sessions=self.sessions,
            size=self.size,
            kept=self.kept,
        )
        time.sleep(_SETTLE)
        return seconds, server.tree.cpu().since(before)


def _cpu_figures(profile: str, servers: list[Server], load: Load, rounds: int) -> dict[str, Figure]:
    """Measure the CPU per message of each server."""
    figures = {server.name: Figure(profile, server.name, CPU_PER_MESSAGE) for server in servers}
    for server in servers:
        Load(200, load.kept).run(server)
    for turn in range(rounds):
        say(f"  {profile}: round {turn + 1} of {rounds}")
        for server in servers:
            seconds, cpu = load.run(server)
            figures[server.name].values.append(cpu / load.messages * 1e6)
            figures[server.name].rates.append(load.messages / seconds)
    return figures


def sink(plan: Plan) -> list[Figure]:
    """One worker, no middleware, discard, logging on."""
    found = []
    with ExitStack() as stack:
        ours = Preforkmx(plan.folder / "sink-preforkmx")
        servers = started(
            stack,
            SMTPSink(plan.folder / "sink-smtp-sink"),
            ours,
            Aiosmtpd(plan.folder / "sink-aiosmtpd"),
        )
        for name, load in (
            ("sink, kept connection", Load(plan.kept, kept=True)),
            ("sink, a connection each", Load(plan.one_each, kept=False)),
        ):
            figures = _cpu_figures(name, servers, load, plan.rounds)
            if SMTPSink.name in figures:
                figures[ours.name].at_most(2, figures[SMTPSink.name], of="smtp-sink")
            found += figures.values()
        if plan.profile:
            for load in (Load(plan.kept * 2, kept=True), Load(plan.one_each * 3, kept=False)):
                _profile(plan, ours, load)
    return found


def _profile(plan: Plan, server: Preforkmx, load: Load) -> None:
    name = "kept" if load.kept else "one-each"
    raw = plan.folder.parent / f"preforkmx-bench-{name}.raw"
    worker = server.busiest_worker()
    with profiling(worker, raw):
        load.run(server)
    print(f"\nprofile of a worker, {name} ({raw}):\n{summary(raw)}")


def large(plan: Plan) -> list[Figure]:
    """Messages of 9 MB, discarded."""
    size = 9_000_000
    profile = "large, 9 MB messages"
    with ExitStack() as stack:
        ours = Preforkmx(plan.folder / "large-preforkmx")
        servers = started(
            stack,
            SMTPSink(plan.folder / "large-smtp-sink"),
            ours,
            Aiosmtpd(plan.folder / "large-aiosmtpd"),
        )
        figures = {
            server.name: Figure(profile, server.name, "ms of CPU per MB", rate_unit="MB/s")
            for server in servers
        }
        for turn in range(plan.rounds):
            say(f"  {profile}: round {turn + 1} of {plan.rounds}")
            for server in servers:
                # aiosmtpd takes ten times as long: a few messages say enough.
                count = plan.large if server.name != Aiosmtpd.name else max(4, plan.large // 5)
                seconds, cpu = Load(count, kept=True, size=size, sessions=4).run(server)
                megabytes = count * size / 1e6
                figures[server.name].values.append(cpu / megabytes * 1e3)
                figures[server.name].rates.append(megabytes / seconds)
    if SMTPSink.name in figures:
        figures[ours.name].at_most(1, figures[SMTPSink.name], of="smtp-sink")
    return list(figures.values())


def idle(plan: Plan) -> list[Figure]:
    """Connections that have said EHLO and then nothing."""
    found = []
    count = may_open(plan.idle)
    for profile, server, tls, budget in (
        ("idle, plain", SMTPSink(plan.folder / "idle-smtp-sink"), False, None),
        ("idle, plain", Preforkmx(plan.folder / "idle-preforkmx"), False, 6),
        ("idle, plain", Aiosmtpd(plan.folder / "idle-aiosmtpd"), False, None),
        ("idle, TLS", Preforkmx(plan.folder / "idle-tls-preforkmx", tls=True), True, 40),
    ):
        say(f"  {profile}: {count:,} connections, {server.name}")
        with ExitStack() as stack:
            if not started(stack, server):
                continue
            port = server.tls_port if isinstance(server, Preforkmx) and tls else server.port
            used = asyncio.run(_memory_of_idle(server, port, count, tls=tls))
        figure = Figure(profile, server.name, "KiB of memory per connection", [used / 1024])
        if budget is not None:
            figure.at_most(budget)
        found.append(figure)
    return found


async def _memory_of_idle(server: Server, port: int, count: int, *, tls: bool) -> float:
    # A few connections first: what the first ones load and allocate is not theirs.
    async with idle_connections(port, 20, tls=tls):
        pass
    await asyncio.sleep(_SETTLE)
    before = server.tree.memory()
    async with idle_connections(port, count, tls=tls):
        await asyncio.sleep(_SETTLE)
        return (server.tree.memory() - before) / count


def scale(plan: Plan) -> list[Figure]:
    """Two workers beside one."""
    found = []
    with ExitStack() as stack:
        one = Preforkmx(plan.folder / "scale-1")
        two = Preforkmx(plan.folder / "scale-2", workers=2)
        servers = started(stack, one, two)
        for name, load in (
            ("scale, kept connection", Load(plan.kept, kept=True)),
            ("scale, a connection each", Load(plan.one_each, kept=False)),
        ):
            figures = _cpu_figures(name, servers, load, plan.rounds)
            figures[two.name].at_most(1.15, figures[one.name], of="one worker")
            found += figures.values()
    return found


def durable(plan: Plan) -> list[Figure]:
    """Messages accepted and delivered to a Maildir, synced."""
    profile = "durable, Maildir"
    with ExitStack() as stack:
        ours = Preforkmx(plan.folder / "durable-preforkmx", workers=2, delivery="maildir")
        servers = started(stack, ours, Postfix(plan.folder / "durable-postfix"))
        figures = {
            server.name: Figure(
                profile, server.name, "messages per second", rate_unit="µs of CPU per message"
            )
            for server in servers
        }
        for turn in range(plan.rounds):
            say(f"  {profile}: round {turn + 1} of {plan.rounds}")
            for server in servers:
                seconds, cpu = _deliver(server, plan.durable)
                figures[server.name].values.append(plan.durable / seconds)
                figures[server.name].rates.append(cpu / plan.durable * 1e6)
    if Postfix.name in figures:
        figures[ours.name].at_least(4, figures[Postfix.name], of="Postfix")
    return list(figures.values())


def _deliver(server: Server, messages: int) -> tuple[float, float]:
    """Send messages, and wait until all of them are in the Maildir.

    :returns: seconds, and seconds of CPU.
    """
    assert isinstance(server, Preforkmx | Postfix)
    expected = _delivered(server.mail) + messages
    before = server.tree.cpu()
    began = time.monotonic()
    smtp_source(server.port, messages=messages, sessions=40, size=1_000, kept=True)
    while (there := _delivered(server.mail)) < expected:
        if time.monotonic() > began + 120:
            raise Failed(f"{server.name} delivered {messages - expected + there} of {messages}")
        time.sleep(0.05)
    seconds = time.monotonic() - began
    if there > expected:
        raise Failed(f"{server.name} delivered {there - expected} messages twice")
    return seconds, server.tree.cpu().since(before)


def _delivered(mail: Path) -> int:
    return sum(1 for _ in mail.glob("*/*/new/*"))


def dns(plan: Plan) -> list[Figure]:
    """Names looked up by one worker's resolver, and by dnspython's."""
    unit, rate_unit = "µs of CPU per query", "queries/s"
    fresh, cached = "dns, fresh names", "dns, cache hits"
    figures = {
        (profile, who): Figure(profile, who, unit, rate_unit=rate_unit)
        for profile in (fresh, cached)
        for who in LOOKERS_UP
    }
    with NameServer(plan.folder / "dns") as server:
        for turn in range(plan.rounds):
            say(f"  dns: round {turn + 1} of {plan.rounds}")
            for who in LOOKERS_UP:
                turns = look_up(who, server.port, plan.names)
                for profile, (seconds, cpu) in zip((fresh, cached), turns, strict=True):
                    figures[profile, who].values.append(cpu / plan.names * 1e6)
                    figures[profile, who].rates.append(plan.names / seconds)
    figures[fresh, "preforkmx"].at_most(120)
    return list(figures.values())


def spf(plan: Plan) -> list[Figure]:
    """SPF checks of domains with eight includes each, by one worker."""
    figures = [
        Figure(profile, "preforkmx", "µs of CPU per check", rate_unit="checks/s")
        for profile in ("spf, fresh domains", "spf, cache hits")
    ]
    checks = max(100, plan.names // 16)
    with NameServer(plan.folder / "spf") as server:
        for turn in range(plan.rounds):
            say(f"  spf: round {turn + 1} of {plan.rounds}")
            for figure, (seconds, cpu) in zip(figures, check_spf(server.port, checks), strict=True):
                figure.values.append(cpu / checks * 1e6)
                figure.rates.append(checks / seconds)
    return figures


def policy(plan: Plan) -> list[Figure]:
    """Limits and a known greylist triplet in Redis, and what Redis costs its client."""
    try:
        return [
            *policies.policy(plan.folder, plan.rounds, plan.one_each),
            *policies.clients(plan.folder, plan.rounds, plan.one_each * 2),
        ]
    except NotHere as reason:
        raise Failed(str(reason)) from reason


def blocked(plan: Plan) -> list[Figure]:
    """Connections that a limit in Redis refuses."""
    try:
        return policies.blocked(plan.folder, plan.rounds, plan.one_each)
    except NotHere as reason:
        raise Failed(str(reason)) from reason


ROWS = {
    "sink": sink,
    "large": large,
    "idle": idle,
    "scale": scale,
    "durable": durable,
    "policy": policy,
    "blocked": blocked,
    "dns": dns,
    "spf": spf,
}
