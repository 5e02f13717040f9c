"""Real Redis servers on free ports of loopback: one, a sentinel trio, a cluster."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiredis import Reader, ReplyError, pack_command

from tests.integration.peers.programs import peer_program, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REDIS_SERVER = "redis-tools/usr/bin/redis-server"
#: What operators are given, and what is tested.
CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "redis"
#: The service that sentinel.conf names.
SERVICE = "preforkmx"
SLOTS = 16_384
ATTEMPTS = 5
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    # A test run that is killed leaves no server behind.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody has; somebody may take one before it is used."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


@dataclass(eq=False)
class Server:
    """A process of redis-server with a file of deploy/redis, its socket for the test's own questions, and its death."""

    configuration: str
    options: tuple[str, ...]
    folder: Path
    port: int = 0
    password: str = ""
    bus: bool = False
    bus_port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def path(self) -> Path:
        """The unix socket that every server has beside its port."""
        return self.folder / "redis.sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, on the port that it had, and wait until it answers."""
        again = bool(self.port)
        if not again:
            # After a failover Redis writes its own into them.
            for each in CONFIGURATIONS.iterdir():
                if not (self.folder / each.name).exists():
                    shutil.copy(each, self.folder)
        for _ in range(ATTEMPTS):
            if not again:
                self.port, self.bus_port = free_ports(2)
            if self._try():
                return
        raise AssertionError(f"redis-server does not start: {self.log}")

    def _try(self) -> bool:
        bus = ["--cluster-port", str(self.bus_port)] if self.bus else []
        ports = [
            option.replace("PORT", str(self.port))
            for option in (
                self.options if "--tls-port" in self.options else ("--port", "PORT", *self.options)
            )
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(peer_program(REDIS_SERVER), self.configuration, "--dir", self.folder),
                    *("--unixsocket", self.path, *bus, *ports),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - it takes no lock
            )
        process = self.process

        def answers() -> bool:
            if process.poll() is not None:
                return True
            with contextlib.suppress(OSError):
                self.ask("PING")
                return True
            return False

        until(answers, "redis-server", seconds=20)
        return process.poll() is None

    def ask(self, *words: str | bytes | int) -> Any:
        """Ask it one thing, on a connection of its own; an error is raised."""
        reader = Reader(encoding="utf-8", errors="replace")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.path))
            if self.password:
                client.sendall(pack_command(("AUTH", self.password)))
            client.sendall(pack_command(words))
            replies: list[Any] = []
            while len(replies) <= bool(self.password):
                reply = reader.gets()
                if reply is not False:
                    replies.append(reply)
                    continue
                data = client.recv(65_536)
                if not data:
                    raise ConnectionResetError("redis-server closed the connection")
                reader.feed(data)
        if isinstance(replies[-1], ReplyError):
            raise replies[-1]
        return replies[-1]

    def info(self, section: str) -> dict[str, str]:
        """Return what INFO says."""
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stand_still(self) -> None:
        """Stop it as a debugger does: its connections stay open, and nobody answers."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start servers, and end those that still run."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield


@contextlib.contextmanager
def _folders(count: int) -> Iterator[list[Path]]:
    # Not below pytest's own folder: the paths of the sockets would be too long.
    top = Path(tempfile.mkdtemp(prefix="redis-"))
    try:
        folders = [top / str(number) for number in range(count)]
        for folder in folders:
            folder.mkdir()
        yield folders
    finally:
        shutil.rmtree(top)


#: What tests have no use for.
_NO_FILES = ("--appendonly", "no")


@contextlib.contextmanager
def redis_server(*options: str, password: str = "") -> Iterator[Server]:
    """Run one server with deploy/redis/redis.conf, and these options besides.

    :param options: ``PORT`` in them is the free port; with ``--tls-port`` there is no other.
    """
    with _folders(1) as (folder,):
        secret = ("--requirepass", password) if password else ()
        server = Server(
            "redis.conf",
            (*_NO_FILES, *secret, *options),
            folder,
            password=password,
        )
        with running(server):
            yield server


@dataclass
class Trio:
    """A primary, its replica, and the sentinels that watch over them."""

    primary: Server
    replica: Server
    sentinels: list[Server]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(one.address for one in self.sentinels)}/{SERVICE}"

    def primary_port(self) -> int:
        """Return which port the first sentinel that runs takes for the primary's."""
        sentinel = next(one for one in self.sentinels if one.process is not None)
        return int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])


@contextlib.contextmanager
def sentinel_trio() -> Iterator[Trio]:
    """Run a primary, a replica, and three sentinels with deploy/redis/sentinel.conf."""
    with _folders(5) as folders, contextlib.ExitStack() as stack:
        primary = Server(
            "redis.conf",
            (*_NO_FILES, "--repl-diskless-sync-delay", "0"),
            folders[0],
        )
        stack.enter_context(running(primary))
        replica = Server(
            "redis.conf",
            (*_NO_FILES, "--replicaof", f"127.0.0.1 {primary.port}"),
            folders[1],
        )
        stack.enter_context(running(replica))
        until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica")
        text = (CONFIGURATIONS / "sentinel.conf").read_text()
        # Redis writes into it, and one primary cannot be named twice.
        text = text.replace(
            f"monitor {SERVICE} 192.0.2.10 6379", f"monitor {SERVICE} 127.0.0.1 {primary.port}"
        )
        text = text.replace(
            f"down-after-milliseconds {SERVICE} 2000", f"down-after-milliseconds {SERVICE} 500"
        )
        sentinels = []
        for folder in folders[2:]:
            (folder / "sentinel.conf").write_text(text)
            sentinels.append(Server("sentinel.conf", ("--sentinel",), folder))
            stack.enter_context(running(sentinels[-1]))

        def complete() -> bool:
            for sentinel in sentinels:
                found = sentinel.ask("SENTINEL", "MASTER", SERVICE)
                about = dict(zip(found[::2], found[1::2], strict=True))
                if (about["num-slaves"], about["num-other-sentinels"]) != ("1", "2"):
                    return False
            return True

        until(complete, "the sentinels to know each other", seconds=30)
        yield Trio(primary, replica, sentinels)


@dataclass
class Cluster:
    """Three primaries and three replicas; which is which changes with a failover."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def of_port(self, port: int) -> Server:
        return next(node for node in self.nodes if node.port == port)

    def owner(self, slot: int, *, seen_by: Server | None = None) -> Server:
        """Return the primary that has this slot, as a node that runs sees it."""
        asked = seen_by or next(node for node in self.nodes if node.process is not None)
        for first, last, primary, *_ in asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.of_port(primary[1])
        raise AssertionError(f"nobody has slot {slot}")

    def primaries(self) -> list[Server]:
        """Return all primaries that have slots."""
        asked = next(node for node in self.nodes if node.process is not None)
        return [self.of_port(row[2][1]) for row in asked.ask("CLUSTER", "SLOTS")]

    def identifier(self, node: Server) -> str:
        return str(node.ask("CLUSTER", "MYID"))


@contextlib.contextmanager
def redis_cluster(*options: str) -> Iterator[Cluster]:
    """Run three primaries and three replicas with deploy/redis/cluster.conf."""
    with _folders(6) as folders:
        nodes = [
            Server(
                "cluster.conf",
                (
                    *_NO_FILES,
                    *("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"),
                    # A replica is shown once it has received something.
                    *("--repl-ping-replica-period", "1"),
                    *options,
                ),
                folder,
                bus=True,
            )
            for folder in folders
        ]
        with running(*nodes):
            _join(nodes)
            yield Cluster(nodes)


def _join(nodes: Sequence[Server]) -> None:
    # What redis-cli --cluster create does, without its pauses.
    primaries, replicas = nodes[:3], nodes[3:]
    bounds = [number * SLOTS // 3 for number in range(4)]
    for number, node in enumerate(primaries):
        node.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    # Each is introduced to each: gossip would take its time.
    for number, node in enumerate(nodes):
        for other in nodes[:number]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
    deadline = time.monotonic() + 30
    for primary, replica in zip(primaries, replicas, strict=True):
        identifier = primary.ask("CLUSTER", "MYID")
        while True:
            try:
                replica.ask("CLUSTER", "REPLICATE", identifier)
                break
            except ReplyError:  # it has not heard of its primary yet
                assert time.monotonic() < deadline, replica.log
                time.sleep(0.02)

    def complete() -> bool:
        for node in nodes:
            about = dict(line.split(":") for line in node.ask("CLUSTER", "INFO").split())
            if (about["cluster_state"], about["cluster_slots_ok"]) != ("ok", str(SLOTS)):
                return False
            if about["cluster_known_nodes"] != "6":
                return False
            # Each shows each primary with its replica.
            if [len(row) for row in node.ask("CLUSTER", "SLOTS")] != [4, 4, 4]:
                return False
        return all(one.info("replication")["master_link_status"] == "up" for one in replicas)

    until(complete, "the cluster", seconds=30)
