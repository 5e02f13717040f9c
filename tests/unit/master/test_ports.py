"""Ports that come, grow, shrink and go, on real sockets of loopback and of a folder."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.master.changeover import Changeover
from preforkmx.master.errors import StartRefused
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.ports import TcpPort, UnixPort, address_key, match, open_ports
from preforkmx.master.sockets import bind_tcp, dropped_segments
from preforkmx.session.listener import Listener, split_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sockets() -> Iterator[ListenerSockets]:
    sockets = ListenerSockets([Listener("127.0.0.1:0")], 2)
    sockets.open()
    with closing(sockets):
        yield sockets


def number(port: object) -> int:
    assert isinstance(port, TcpPort)
    return split_address(port.listener.address)[1]


def free_address() -> str:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=False)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def reached(where: int) -> bool:
    """Whether a connection is made within a moment; one whose SYN is dropped is not."""
    with socket.socket() as client:
        client.settimeout(0.2)
        try:
            client.connect(("127.0.0.1", where))
        except (TimeoutError, ConnectionRefusedError):
            return False
        return True


def test_spellings_of_an_address_are_one() -> None:
    assert address_key("[::0]:25") == address_key("[0:0::]:25")
    assert address_key("127.0.0.1:25") != address_key("127.0.0.1:26")
    assert address_key("unix:/run/a") != address_key("unix:/run/b")


def test_a_listener_is_the_port_that_has_its_address() -> None:
    wanted = [Listener("127.0.0.1:0"), Listener("127.0.0.1:0")]
    ports = open_ports(wanted, 1)
    try:
        first, second = ports
        assert match(wanted, ports) == ports
        assert match(wanted[:1], ports) == [first]
        named = Listener(second.listener.address)
        assert match([named, Listener("127.0.0.1:0")], ports) == [second, first]
        assert match([named, named], ports) == [second, None]
        assert match([Listener("127.0.0.2:0")], ports) == [None]
    finally:
        for port in ports:
            port.close()


@given(st.permutations(range(4)), st.integers(0, 4))
def test_no_port_is_two_listeners(order: list[int], count: int) -> None:
    ports = [Named(f"127.0.0.1:{1000 + index}") for index in range(4)]
    wanted = [Listener(f"127.0.0.1:{1000 + index}") for index in order[:count]]
    found = match(wanted, ports)
    assert [port.asked for port in found if port is not None] == [each.address for each in wanted]


class Named(UnixPort):
    """A port that was never opened."""

    def __init__(self, address: str) -> None:
        self.asked = address
        self.listener = Listener(address)
        self.sockets = []


def test_a_held_port_lets_nobody_in_before_it_is_released() -> None:
    (port,) = open_ports([Listener("127.0.0.1:0")], 2, held=True)
    try:
        assert not reached(number(port))
        port.release()
        assert reached(number(port))
    finally:
        port.close()


def test_a_held_unix_socket_is_closed_to_all_before_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    (port,) = open_ports([Listener(f"unix:{path}")], 2, held=True)
    assert path.stat().st_mode & 0o777 == 0
    port.release()
    assert path.stat().st_mode & 0o777 == 0o666
    assert port.waiting() == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert (port.waiting(), port.waiting(0)) == (1, 0)
    port.end()
    assert not path.exists()


def test_the_slot_that_goes_is_out_of_the_group_though_a_worker_has_it_open() -> None:
    port = TcpPort(Listener("127.0.0.1:0"), 2)
    port.listen()
    with closing(port), closing(port.sockets[1].dup()) as workers, ExitStack() as clients:
        port.shrink()
        for _ in range(20):
            clients.enter_context(socket.create_connection(("127.0.0.1", number(port))))
        assert port.queued() == 20
        with pytest.raises(OSError) as refusal:
            workers.accept()
        assert refusal.value.errno == errno.EINVAL


def test_drops_are_counted_and_stay_counted_when_their_socket_goes() -> None:
    port = TcpPort(Listener("127.0.0.1:0", backlog=1), 2)
    port.hold()
    with closing(port):
        assert port.dropped() == 0
        assert not any(reached(number(port)) for _ in range(8))
        # Which socket a connection is led to is the kernel's choice.
        while not dropped_segments(port.sockets[1]):
            assert not reached(number(port))
        before = port.dropped()
        assert before >= 8
        port.shrink()
        assert port.dropped() >= before


def test_nobody_is_led_to_a_slot_that_has_just_come(sockets: ListenerSockets) -> None:
    (port,) = sockets.ports
    with ExitStack() as clients:
        sockets.grow(sockets.ports)
        for _ in range(20):
            clients.enter_context(socket.create_connection(("127.0.0.1", number(port))))
        assert [port.waiting(slot) for slot in range(3)][2] == 0
        assert port.waiting() == 20


def test_what_is_new_is_closed_again_when_the_reload_is_refused(
    sockets: ListenerSockets, tmp_path: Path
) -> None:
    path, before = tmp_path / "smtp.sock", sockets.ports[:]
    new = free_address()
    wanted = [*sockets.listeners, Listener(new), Listener(f"unix:{path}")]
    change = Changeover(sockets, wanted, 4)
    assert change.problems() == []
    assert change.ports == 3
    change.prepare()
    assert path.exists()
    assert sockets.count == 4
    change.undo()
    assert not path.exists()
    assert (sockets.ports, sockets.count) == (before, 2)
    assert len(before[0].sockets) == 2
    bind_tcp("127.0.0.1", split_address(new)[1], reuse_port=False).close()


def test_nothing_is_left_when_something_new_cannot_be_opened(sockets: ListenerSockets) -> None:
    before = sockets.ports[:]
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=False)) as other:
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        change = Changeover(
            sockets, [*sockets.listeners, Listener(free_address()), Listener(taken)], 3
        )
        assert change.problems() == [f"{taken} is taken: another process listens there"]
        with pytest.raises(StartRefused, match="is taken"):
            change.prepare()
    assert (sockets.ports, sockets.count) == (before, 2)
    assert len(before[0].sockets) == 2


def test_all_problems_of_new_listeners_are_named(sockets: ListenerSockets, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ours = sockets.listeners[0]
    wanted = [ours, ours, Listener("192.0.2.1:25"), Listener(f"unix:{tmp_path}/file")]
    problems = sockets.problems(wanted)
    assert len(problems) == 3
    assert "two listeners" in problems[0]
    assert "does not have that address" in problems[1]
    assert "no socket" in problems[2]


def test_an_address_that_one_of_ours_covers_can_be_opened() -> None:
    try:
        sockets = ListenerSockets([Listener("0.0.0.0:0")], 1)
        sockets.open()
    except StartRefused as refusal:
        pytest.skip(str(refusal))
    with closing(sockets):
        more = Listener(f"127.0.0.1:{number(sockets.ports[0])}")
        assert sockets.problems([*sockets.listeners, more]) == []


def test_an_address_beside_one_of_ours_on_the_same_port_is_not_shared_with_others(
    sockets: ListenerSockets,
) -> None:
    beside = f"127.0.0.2:{number(sockets.ports[0])}"
    with closing(bind_tcp(*split_address(beside), reuse_port=True)) as other:
        other.listen()
        assert sockets.problems([*sockets.listeners, Listener(beside)]) == [
            f"{beside} is taken: another process listens there"
        ]
    assert sockets.problems([*sockets.listeners, Listener(beside)]) == []


def test_a_changeover_brings_and_takes_listeners_slots_and_options(
    sockets: ListenerSockets,
) -> None:
    (goes,) = sockets.ports
    new = free_address()
    change = Changeover(sockets, [Listener(new, tls="off")], 1)
    change.prepare()
    assert sockets.listeners == (goes.listener,), "status shows the old ones until it is done"
    change.open()
    assert [listener.address for listener in sockets.listeners] == [new]
    assert change.part()
    with pytest.raises(IndexError):
        sockets.of_slot(1)
    assert not reached(number(goes))
    assert change.waiting() == 0
    change.finish()
    assert [port.listener.address for port in sockets.ports] == [new]
    assert sockets.of_slot(0)[0][1].tls == "off"
    assert sockets.count == 1
