"""Unix listeners: one socket for all slots, with real sockets in a folder of the test."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from preforkmx.master.errors import StartRefused
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.sockets import bind_unix
from preforkmx.master.unix import UnixSocket, refuse_live
from preforkmx.session.listener import Listener

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "smtp.sock"


def opened(*paths: Path, count: int = 2) -> ListenerSockets:
    sockets = ListenerSockets([Listener(f"unix:{path}") for path in paths], count)
    sockets.probe()
    sockets.open()
    return sockets


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(5)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def test_all_slots_share_one_socket(path: Path) -> None:
    with closing(opened(path, count=3)) as sockets:
        assert len({sockets.of_slot(slot)[0][0].fileno() for slot in range(3)}) == 1
        assert not sockets.of_slot(0)[0][0].getblocking()
        assert sockets.of_slot(2)[0][1].address == f"unix:{path}"


def test_other_users_may_connect_if_they_may_enter_the_folder(path: Path) -> None:
    with closing(opened(path)):
        assert path.stat().st_mode & 0o777 == 0o666
        assert path.parent.is_dir()


def test_what_is_queued_when_one_process_closes_its_copy_is_there_for_the_others(
    path: Path,
) -> None:
    with closing(opened(path)) as sockets, connected(path):
        mine = sockets.of_slot(0)[0][0].dup()
        mine.close()
        served, _ = sockets.of_slot(1)[0][0].accept()
        served.close()


def test_a_shut_socket_finds_no_new_client_and_keeps_the_queued_ones(path: Path) -> None:
    with closing(opened(path)) as sockets, connected(path) as early:
        sockets.shut()
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            connected(path)
        served, _ = sockets.of_slot(0)[0][0].accept()
        with served:
            served.sendall(b"220 mx.example.com\r\n")
        assert early.recv(100) == b"220 mx.example.com\r\n"


def test_the_queue_of_a_unix_socket_is_not_known(path: Path) -> None:
    listeners = [Listener(f"unix:{path}"), Listener("127.0.0.1:0")]
    with closing(ListenerSockets(listeners, 2)) as sockets:
        assert sockets.queued() == [None, 0]
        sockets.open()
        with connected(path):
            assert sockets.queued() == [None, 0]
        sockets.shut()
        sockets.close()
        assert sockets.queued() == [None, 0]


def test_the_file_goes_with_the_master_and_not_with_a_child(path: Path) -> None:
    sockets = opened(path)
    kept = sockets.of_slot(0)[0][0]
    child = os.fork()
    if child == 0:
        sockets.leave(but=[kept])
        os._exit(0 if kept.fileno() >= 0 and path.exists() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert path.exists()
    sockets.close()
    assert not path.exists()


def test_a_live_socket_is_refused(path: Path) -> None:
    with closing(opened(path)):
        other = ListenerSockets([Listener(f"unix:{path}")], 1)
        with pytest.raises(StartRefused, match=rf"unix:{path} is taken: another process"):
            other.probe()
        with pytest.raises(StartRefused, match="is taken"):
            other.open()
        connected(path).close()


def test_a_live_socket_whose_queue_is_full_is_refused(path: Path) -> None:
    with closing(UnixSocket(path, 1).socket), ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(connected(path))
        with pytest.raises(StartRefused, match="another process listens there"):
            refuse_live(path)


def test_a_dead_socket_is_replaced(path: Path) -> None:
    left = opened(path)
    left.leave()
    assert path.is_socket()
    with closing(opened(path)):
        connected(path).close()


def test_a_file_that_is_no_socket_is_refused_and_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious", "utf-8")
    with pytest.raises(StartRefused, match="no socket"):
        ListenerSockets([Listener(f"unix:{path}")], 1).probe()
    assert path.read_text("utf-8") == "precious"


def test_the_file_of_a_next_server_is_not_removed(path: Path) -> None:
    sockets = opened(path)
    sockets.shut()
    with closing(opened(path)):
        sockets.close()
        connected(path).close()


def test_a_file_that_somebody_removed_does_not_disturb_the_end(path: Path) -> None:
    sockets = opened(path)
    path.unlink()
    path.parent.rmdir()
    sockets.close()


def test_a_path_that_two_listeners_name_is_refused(path: Path) -> None:
    listener = Listener(f"unix:{path}")
    with pytest.raises(StartRefused, match="two listeners"):
        ListenerSockets([listener, listener], 1).probe()


def test_no_file_is_left_when_another_listener_cannot_be_bound(path: Path) -> None:
    with closing(bind_unix(path.with_name("other.sock"))) as other:
        other.listen()
        with pytest.raises(StartRefused, match="is taken"):
            ListenerSockets(
                [Listener(f"unix:{path}"), Listener(f"unix:{path.with_name('other.sock')}")], 2
            ).open()
    assert not path.exists()
