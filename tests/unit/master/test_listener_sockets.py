"""The listening sockets, on real ports of loopback."""

from __future__ import annotations

import contextlib
import logging
import resource
import select
import socket
from contextlib import ExitStack, closing
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from preforkmx.master.errors import StartRefused
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.sockets import bind_tcp, bind_unix, drop_syns, queue_length
from preforkmx.session.listener import Listener, split_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def opened(*addresses: str, count: int = 2) -> ListenerSockets:
    sockets = ListenerSockets([Listener(address) for address in addresses], count)
    sockets.probe()
    sockets.open()
    return sockets


def port_of(sockets: ListenerSockets, index: int = 0) -> int:
    return split_address(sockets.listeners[index].address)[1]


def test_every_slot_has_a_socket_of_its_own_on_the_same_port() -> None:
    with closing(opened("127.0.0.1:0", count=3)) as sockets:
        held = [sockets.of_slot(slot)[0][0] for slot in range(3)]
        assert len({sock.fileno() for sock in held}) == 3
        assert {sock.getsockname()[1] for sock in held} == {port_of(sockets)}
        assert not any(sock.getblocking() for sock in held)


def test_another_generation_may_trust_others_on_the_same_sockets() -> None:
    with closing(opened("127.0.0.1:0", count=1)) as sockets:
        trusting = Listener("127.0.0.1:0", xclient_from=(ip_network("192.0.2.0/24"),))
        ((before, _),) = sockets.of_slot(0)
        ((after, listener),) = sockets.of_slot(0, [trusting])
        assert after is before
        assert listener.xclient_from == trusting.xclient_from
        assert listener.address == sockets.listeners[0].address


def test_port_0_becomes_the_port_in_what_workers_and_status_are_told() -> None:
    with closing(opened("127.0.0.1:0")) as sockets:
        sock, listener = sockets.of_slot(1)[0]
        assert listener.address == f"127.0.0.1:{sock.getsockname()[1]}"
        assert port_of(sockets) > 0


def test_connections_go_to_every_slot() -> None:
    with closing(opened("127.0.0.1:0")) as sockets, ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(sockets))))
        lengths = [queue_length(sockets.of_slot(slot)[0][0]) for slot in range(2)]
        assert sum(lengths) == 40
        assert min(lengths) > 0
        assert sockets.queued() == [40]


def test_a_port_on_which_somebody_listens_is_refused_even_when_he_shares_it() -> None:
    with closing(opened("127.0.0.1:0")) as sockets:
        other = ListenerSockets([Listener(f"127.0.0.1:{port_of(sockets)}")], 1)
        with pytest.raises(StartRefused, match=r"127\.0\.0\.1:\d+ is taken"):
            other.probe()


def test_a_port_that_another_server_opens_after_the_probe_is_not_shared_with_it() -> None:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=True)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [ListenerSockets([Listener(address)], 2) for _ in range(2)]
    for sockets in both:
        sockets.probe()
    with closing(both[0]):
        both[0].open()
        with pytest.raises(StartRefused, match="is taken"):
            both[1].open()
        assert both[1].ports == []


@contextlib.contextmanager
def no_descriptor_to_be_had() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_descriptor_every_kind_of_socket_is_a_clear_refusal(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    tcp = ListenerSockets([Listener("127.0.0.1:0")], 1)
    unix = ListenerSockets([Listener(f"unix:{path}")], 1)
    for attempt in (tcp.open, unix.open, unix.probe, lambda: bind_unix(path)):
        with no_descriptor_to_be_had(), pytest.raises(StartRefused, match="Too many open files"):
            attempt()


def test_connections_left_over_from_an_earlier_run_do_not_make_a_start_fail() -> None:
    sockets = opened("127.0.0.1:0", count=1)
    port = port_of(sockets)
    client = socket.create_connection(("127.0.0.1", port))
    served, _ = sockets.of_slot(0)[0][0].accept()
    # This side closes first, so this side keeps the connection in TIME_WAIT.
    served.close()
    client.recv(1)
    client.close()
    sockets.close()
    opened(f"127.0.0.1:{port}").close()


def test_an_address_that_is_not_this_machines_is_a_clear_refusal() -> None:
    sockets = ListenerSockets([Listener("192.0.2.1:2525")], 1)
    with pytest.raises(StartRefused, match="does not have that address"):
        sockets.probe()


def test_an_address_that_two_listeners_name_is_refused() -> None:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=False)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StartRefused, match="two listeners"):
        ListenerSockets([Listener(address), Listener(address)], 1).probe()


def test_nothing_is_left_open_when_one_of_several_cannot_be_bound() -> None:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=False)) as taken:
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        sockets = ListenerSockets([Listener("127.0.0.1:0"), Listener(address)], 2)
        with pytest.raises(StartRefused, match="is taken"):
            sockets.open()
        sockets.close()
        assert (sockets.queued(), sockets.dropped()) == ([0, 0], [0, 0])
        assert sockets.ports == []


def test_every_ipv6_address_leaves_ipv4_to_others() -> None:
    try:
        sockets = opened("[::]:0", count=1)
    except StartRefused as refusal:
        pytest.skip(str(refusal))
    with closing(sockets):
        assert sockets.listeners[0].address == f"[::]:{port_of(sockets)}"
        with closing(bind_tcp("0.0.0.0", port_of(sockets), reuse_port=False)) as other:
            other.listen()


def test_a_backlog_that_the_kernel_cuts_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sockets = ListenerSockets([Listener("127.0.0.1:0", backlog=10**6)], 1)
    with caplog.at_level(logging.WARNING), closing(sockets):
        sockets.open()
    assert "somaxconn" in caplog.text


def test_a_child_keeps_only_its_own_sockets() -> None:
    sockets = opened("127.0.0.1:0", "127.0.0.1:0")
    mine = [sock for sock, _ in sockets.of_slot(1)]
    others = [sock for sock, _ in sockets.of_slot(0)]
    sockets.leave(but=mine)
    assert all(sock.fileno() >= 0 for sock in mine)
    assert all(sock.fileno() < 0 for sock in others)
    for sock in mine:
        sock.close()


def test_behind_the_filter_nobody_begins_and_what_is_queued_stays() -> None:
    with closing(opened("127.0.0.1:0", count=1)) as sockets, ExitStack() as stack:
        early = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(sockets))))
        sockets.shut()
        late = stack.enter_context(socket.socket())
        late.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            late.connect(("127.0.0.1", port_of(sockets)))
        _, writable, _ = select.select([], [late], [], 0.2)
        assert writable == [], "the SYN was dropped: neither connected nor refused"
        assert sockets.queued() == [1]
        served, _ = sockets.of_slot(0)[0][0].accept()
        with served:
            served.sendall(b"220 mx.example.com\r\n")
            assert early.recv(100) == b"220 mx.example.com\r\n"
            early.sendall(b"QUIT\r\n")
            served.settimeout(5)
            assert served.recv(100) == b"QUIT\r\n"
        assert sockets.queued() == [0]


def test_what_was_dropped_is_still_known_when_all_is_closed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sockets = stack.enter_context(
            closing(opened("127.0.0.1:0", f"unix:{tmp_path}/smtp.sock", count=1))
        )
        sockets.shut()
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", port_of(sockets)))
        before = sockets.dropped()
        assert before[0] is not None
        assert before[0] >= 3
        for _ in range(2):
            sockets.close()
            after = sockets.dropped()
            assert after[0] is not None
            assert after[0] >= before[0], "a SYN may be repeated meanwhile"
            assert after[1] is None


def test_the_filter_can_be_set_twice() -> None:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=True)) as sock:
        sock.listen()
        drop_syns(sock)
        drop_syns(sock)


def test_a_unix_socket_is_its_owners_alone_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "store.sock"
    bind_unix(path).close()
    with bind_unix(path):
        assert path.stat().st_mode & 0o777 == 0o600
    with bind_unix(path, 0o666):
        assert path.stat().st_mode & 0o777 == 0o666


def test_a_file_that_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "store.sock"
    path.write_text("precious", "utf-8")
    with pytest.raises(StartRefused, match="cannot be made"):
        bind_unix(path)
    assert path.read_text("utf-8") == "precious"


def test_a_path_that_is_too_long_for_a_socket_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="too long"):
        bind_unix(tmp_path / ("x" * 120))
