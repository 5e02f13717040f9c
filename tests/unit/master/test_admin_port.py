"""The admin process's port, its place in the pool, and its questions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from test_plan import PLAN

from preforkmx.master.admin_port import AdminPort
from preforkmx.master.errors import StartRefused
from preforkmx.master.pool import Pool


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_without_an_address_there_is_no_socket() -> None:
    port = AdminPort("")
    assert port.sock is None
    assert port.address == ""
    port.close()
    port.leave()


def test_who_connects_waits_before_anybody_serves() -> None:
    port = AdminPort("127.0.0.1:0")
    assert not port.address.endswith(":0")
    assert connects(port.address)
    port.close()
    assert not connects(port.address)


def test_a_taken_address_is_refused_and_named(taken: str) -> None:
    with pytest.raises(StartRefused, match=rf"\[admin\] address: {taken} is taken"):
        AdminPort(taken)


def test_a_second_server_does_not_join_in_silence() -> None:
    port = AdminPort("127.0.0.1:0")
    with pytest.raises(StartRefused, match="is taken"):
        AdminPort(port.address)
    port.close()


def test_the_same_address_changes_nothing() -> None:
    port = AdminPort("127.0.0.1:0")
    before = port.sock
    port.prepare("127.0.0.1:0")
    assert not port.take_over()
    assert port.sock is before
    port.close()


def test_a_change_is_prepared_beside_the_old_port_and_taken_over() -> None:
    port = AdminPort("127.0.0.1:0")
    old = port.address
    port.prepare("127.0.0.2:0")
    assert port.address == old
    assert port.take_over()
    assert port.address.startswith("127.0.0.2:")
    assert connects(port.address)
    assert not connects(old)
    port.prepare("")
    assert port.take_over()
    assert port.sock is None
    port.prepare("127.0.0.1:0")
    assert port.take_over()
    assert connects(port.address)
    port.close()


def test_a_refused_change_leaves_the_old_port_and_nothing_else(taken: str) -> None:
    port = AdminPort("127.0.0.1:0")
    with pytest.raises(StartRefused):
        port.prepare(taken)
    port.undo()
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = f"127.0.0.1:{free.getsockname()[1]}"
    port.prepare(other)
    assert connects(other)
    port.undo()
    assert not connects(other)
    assert not port.take_over()
    assert connects(port.address)
    port.close()


def test_another_host_of_the_same_port_is_refused_as_its_own() -> None:
    port = AdminPort("127.0.0.1:0")
    number = port.address.rpartition(":")[2]
    before = port.sock
    with pytest.raises(StartRefused, match=rf"0\.0\.0\.0:{number} .* this server's own"):
        port.prepare(f"0.0.0.0:{number}")
    port.prepare(port.address)
    assert not port.take_over(), "it is the same port by its real number"
    assert port.sock is before
    port.prepare(f"127.0.0.2:{number}")
    assert port.take_over(), "a host beside it is free"
    port.close()


def test_a_child_keeps_no_socket_but_its_own() -> None:
    """As the admin process: what a reload has prepared is not held open by it."""
    port = AdminPort("127.0.0.1:0")
    port.prepare("127.0.0.2:0")
    assert port.sock is not None
    port.leave(but=[port.sock])
    assert connects(port.address)
    port.leave()
    assert not connects(port.address)


class Process:
    """A child without a process."""

    def __init__(self) -> None:
        self.state = "ready"
        self.name, self.pid, self.end = "admin", 1, "exit status 0"
        self.healthy_seconds = 0.0
        self.problems: list[str] = []
        self.wants_replacement = self.hung = self.aborted = False
        self.orders: list[str] = []

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    def stop(self) -> None:
        self.orders.append("stop")

    def retire(self, _seconds: float) -> None:
        self.orders.append("retire")

    def kill_by(self, when: float) -> None:
        self.orders.append(f"kill by {when:g}")


class Agency:
    """Hires."""

    def __init__(self) -> None:
        self.hired: list[Process] = []

    def admin(self, _plan: Any, _generation: int) -> Process:
        self.hired.append(Process())
        return self.hired[-1]


def pool(address: str) -> tuple[Pool, Agency]:
    agency = Agency()
    plan = replace(PLAN, count=0, store=None, admin_address=address)
    return Pool(plan, cast("Any", agency), lambda: 10.0), agency


def test_the_place_is_filled_and_filled_again_after_a_crash() -> None:
    staff, agency = pool("127.0.0.1:8025")
    staff.supervise()
    staff.reconcile()
    (first,) = agency.hired
    first.state = "gone"
    staff.reconcile()
    assert len(agency.hired) == 2
    assert cast("Any", staff.admin.holder) is agency.hired[1]
    agency.hired[1].state = "gone"
    staff.reconcile()
    # The second crash waits its time, as a worker's does.
    assert len(agency.hired) == 2
    assert staff.next_refill() == 10.25


def test_without_an_address_the_place_stays_empty() -> None:
    staff, agency = pool("")
    staff.supervise()
    staff.reconcile()
    assert agency.hired == []
    assert staff.next_refill() is None


def test_a_change_of_the_address_replaces_the_process_and_bounds_the_old_one() -> None:
    staff, agency = pool("127.0.0.1:8025")
    staff.supervise()
    staff.reconcile()
    staff.plan = replace(staff.plan, admin_address="127.0.0.1:8026")
    staff.change_admin()
    staff.reconcile()
    old, new = agency.hired
    assert cast("Any", staff.admin.holder) is new
    assert "kill by 15" in old.orders
    old.state = "gone"
    staff.reconcile()
    assert len(staff.admin) == 1
    assert staff.crashes == 0
    staff.plan = replace(staff.plan, admin_address="")
    staff.change_admin()
    new.state = "gone"
    staff.reconcile()
    assert len(staff.admin) == 0
    assert len(agency.hired) == 2
