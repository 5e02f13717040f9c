from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import resource
import shutil
import stat
import threading
import time

import pytest
from maildirs import BODY, HOSTNAME, NOON, PEER, Maildirs, envelope

from preforkmx.body import wrap
from preforkmx.context import Context
from preforkmx.delivery import maildir_writers
from preforkmx.delivery.maildir import maildir
from preforkmx.delivery.trace import trace
from preforkmx.errors import BootError, ConnectionLost, MessageAborted
from preforkmx.middleware.base import PROMISES, Middleware

BIG = [os.urandom(60_000).replace(b"\n", b"x") for _ in range(40)]


def header(recipient: str | None = "joe@example.com") -> bytes:
    return trace(PEER, "from@example.org", recipient, transaction="T1", hostname=HOSTNAME, now=NOON)


def test_a_message_is_in_new_with_its_header_and_its_octets(maildirs):
    assert maildirs.deliver(envelope()) == [None]
    assert maildirs.message() == header() + BODY
    assert maildirs.mailboxes() == ["example.com/joe"]
    assert not maildirs.files("tmp")


def test_an_empty_message_is_a_message(maildirs):
    assert maildirs.deliver(envelope(body=())) == [None]
    assert maildirs.message() == header()


def test_a_large_message_is_written_while_it_arrives(maildirs):
    seen = []

    async def arrive():
        for chunk in BIG:
            yield chunk
            seen.append(sum(path.stat().st_size for path in maildirs.files("tmp")))

    message = envelope()
    message.data = wrap(arrive())
    assert maildirs.deliver(message) == [None]
    assert maildirs.message() == header() + b"".join(BIG)
    assert seen[-1] > len(BIG) * 60_000 - 3 * maildir_writers.WHOLE
    assert not maildirs.files("tmp")


def test_only_its_owner_can_read_a_message(maildirs):
    maildirs.deliver(envelope())
    (path,) = maildirs.files("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in list(path.parents)[:3]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_several_recipients_share_one_file_that_names_none_of_them(maildirs):
    recipients = ["joe@example.com", "ann@example.com", "joe@example.org"]
    assert maildirs.deliver(envelope(*recipients)) == [None]
    files = maildirs.files("new")
    assert len(files) == 3
    assert len({path.stat().st_ino for path in files}) == 1
    assert files[0].read_bytes() == header(None) + BODY
    assert not maildirs.files("tmp")


def test_a_recipient_that_stands_twice_in_an_envelope_gets_one_message(maildirs):
    same = ["joe@example.com", "JOE@Example.com", '"joe"@example.com']
    assert maildirs.deliver(envelope(*same)) == [None]
    assert maildirs.message() == header("joe@example.com") + BODY


def test_addresses_in_utf8_are_kept_in_the_header_and_lead_to_one_mailbox(maildirs):
    """What SMTPUTF8 promises (RFC 6531)."""
    recipients = ["jörg@bücher.example", "jörg@xn--bcher-kva.example"]
    assert maildirs.deliver(envelope(recipients[0], sender="δοκιμή@παράδειγμα.example")) == [None]
    assert maildirs.deliver(envelope(recipients[1])) == [None]
    assert maildirs.mailboxes() == ["xn--bcher-kva.example/j%C3%B6rg"]
    headers = sorted(path.read_bytes() for path in maildirs.files("new"))
    assert headers[1].startswith("Return-Path: <δοκιμή@παράδειγμα.example>\r\n".encode())
    assert "Delivered-To: jörg@bücher.example\r\n".encode() in headers[1]


def test_a_body_of_any_octets_is_stored_as_it_came(maildirs):
    """What BINARYMIME promises (RFC 3030)."""
    body = bytes(range(256)) + b"\r\n.\r\n\n.\n\rno line end"
    assert maildirs.deliver(envelope(body=(body[:100], body[100:]))) == [None]
    assert maildirs.message() == header() + body


def test_a_maildir_promises_what_it_can_keep(tmp_path):
    promised = maildir(tmp_path, hostname=HOSTNAME).extensions
    assert promised == {"BINARYMIME", "SMTPUTF8"}
    assert promised < PROMISES


def test_a_recipient_without_a_domain_is_the_servers_own(maildirs):
    maildirs.deliver(envelope("Postmaster"))
    assert maildirs.mailboxes() == ["mx.example.com/postmaster"]


@pytest.mark.parametrize(
    "address", ["../../x@example.com", "/etc/passwd@example.com", '".."@..', "a\0b@c/d"]
)
def test_no_address_leads_out_of_the_path(maildirs, tmp_path, address):
    maildirs.deliver(envelope(address))
    assert len(maildirs.files("new")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mail"]


def test_many_messages_at_once_all_arrive(maildirs):
    envelopes = [
        envelope(f"user{number % 7}@example.com", body=(b"%d\r\n" % number,))
        for number in range(300)
    ]
    assert maildirs.deliver(*envelopes) == [None] * 300
    bodies = {path.read_bytes().rpartition(b"+0000\r\n")[2] for path in maildirs.files("new")}
    assert bodies == {b"%d\r\n" % number for number in range(300)}
    assert not maildirs.files("tmp")


def test_every_name_is_used_once_and_says_which_host_it_came_from(maildirs):
    maildirs.deliver(*[envelope() for _ in range(20)])
    maildirs.deliver(*[envelope() for _ in range(20)])
    names = [path.name for path in maildirs.files("new")]
    assert len(set(names)) == 40
    pattern = rf"\d+\.M\d{{6}}P{os.getpid()}Q\d+R[0-9a-f]{{8}}\.mx\.example\.com"
    assert all(re.fullmatch(pattern, name) for name in names)


@pytest.mark.parametrize("body", [(BODY,), BIG])
def test_an_aborted_message_leaves_nothing_and_says_why(maildirs, body):
    reason = ConnectionLost("gone")
    with pytest.raises(ConnectionLost) as caught:
        maildirs.deliver(envelope(body=(*body, reason)))
    assert caught.value is reason
    assert maildirs.is_empty()


def test_an_aborted_message_does_not_disturb_the_others(maildirs):
    async def run():
        delivery = maildirs.delivery()
        async with delivery.lifespan():
            outcomes = await asyncio.gather(
                delivery.handle(Context(), PEER, envelope(body=(*BIG, MessageAborted("size")))),
                delivery.handle(Context(), PEER, envelope()),
                return_exceptions=True,
            )
        assert isinstance(outcomes[0], MessageAborted)
        assert outcomes[1] is None

    asyncio.run(run())
    assert maildirs.message() == header() + BODY
    assert not maildirs.files("tmp")


@pytest.mark.parametrize("body", [(BODY,), BIG])
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_cancelled_delivery_leaves_nothing_even_if_its_thread_is_in_the_middle(
    maildirs, monkeypatch, body, step
):
    """After the delivery's time was over the client had a 451: nothing may appear later."""
    entered, leave = threading.Event(), threading.Event()
    real = getattr(os, step)

    def slow(*arguments):
        result = real(*arguments)
        if threading.current_thread().name.startswith("preforkmx-maildir"):
            entered.set()
            assert leave.wait(20)
        return result

    async def run():
        delivery = maildirs.delivery()
        async with delivery.lifespan():
            await delivery.handle(Context(), PEER, envelope("first@example.com"))
            for path in maildirs.files("new"):
                path.unlink()
            monkeypatch.setattr(os, step, slow)
            task = asyncio.create_task(
                delivery.handle(Context(), PEER, envelope("first@example.com", body=body))
            )
            await asyncio.to_thread(entered.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            leave.set()
        assert maildirs.is_empty()

    asyncio.run(run())


def test_a_delivery_that_is_cancelled_while_its_message_arrives_leaves_nothing(maildirs):
    async def run():
        delivery = maildirs.delivery()
        arrived = asyncio.Event()

        async def arrive():
            for chunk in BIG:
                yield chunk
            arrived.set()
            await asyncio.Event().wait()

        message = envelope()
        message.data = wrap(arrive())
        async with delivery.lifespan():
            task = asyncio.create_task(delivery.handle(Context(), PEER, message))
            await arrived.wait()
            assert maildirs.files("tmp")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert maildirs.is_empty()

    asyncio.run(run())


def test_messages_take_no_more_memory_than_their_share(maildirs, monkeypatch):
    """Beyond the limit every chunk goes to the disk before the next one is taken."""
    monkeypatch.setattr(maildir_writers, "MEMORY", 500_000)
    peak = 0

    async def run():
        nonlocal peak
        delivery = maildirs.delivery()

        async def arrive():
            nonlocal peak
            for _ in range(20):
                yield b"x" * 10_000
                peak = max(peak, delivery._writers.held)

        async with delivery.lifespan():
            envelopes = [envelope() for _ in range(40)]
            for message in envelopes:
                message.data = wrap(arrive())
            await asyncio.gather(*(delivery.handle(Context(), PEER, e) for e in envelopes))
            assert delivery._writers.held == 0

    asyncio.run(run())
    assert 500_000 < peak <= 500_000 + 40 * 10_000
    sizes = {path.stat().st_size for path in maildirs.files("new")}
    assert sizes == {len(header()) + 200_000}
    assert len(maildirs.files("new")) == 40


def test_the_memory_of_failed_messages_is_free_again(maildirs):
    async def run():
        delivery = maildirs.delivery()
        async with delivery.lifespan():
            for body in ((BODY, ConnectionLost("gone")), (*BIG, ConnectionLost("gone"))):
                with pytest.raises(ConnectionLost):
                    await delivery.handle(Context(), PEER, envelope(body=body))
            assert delivery._writers.held == 0

    asyncio.run(run())


def test_a_mailbox_that_somebody_removed_is_made_again(maildirs):
    async def run():
        delivery = maildirs.delivery()
        async with delivery.lifespan():
            await delivery.handle(Context(), PEER, envelope())
            shutil.rmtree(maildirs.path / "example.com")
            await delivery.handle(Context(), PEER, envelope())

    asyncio.run(run())
    assert maildirs.message() == header() + BODY


def test_a_mailbox_may_be_a_link_to_another_file_system(maildirs, tmp_path, monkeypatch):
    """Where a file cannot have a second name, a second file is written."""

    def no_link(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", no_link)
    recipients = [f"u{number}@example.com" for number in range(3)]
    assert maildirs.deliver(envelope(*recipients, body=BIG)) == [None]
    files = maildirs.files("new")
    assert len({path.stat().st_ino for path in files}) == 3
    assert {path.read_bytes() for path in files} == {header(None) + b"".join(BIG)}
    assert not maildirs.files("tmp")


def test_a_file_that_is_too_large_for_the_process_is_451_and_logged_with_its_stack(
    maildirs, caplog
):
    """RLIMIT_FSIZE makes a real write fail; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        small, *large = maildirs.deliver(
            envelope(), envelope(body=(b"x" * 200_000,)), envelope(body=BIG)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert small is None
    assert [str(error) for error in large] == [
        "451 4.3.0 The message cannot be stored at the moment"
    ] * 2
    assert len(maildirs.files("new")) == 1
    assert not maildirs.files("tmp")
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 2
    assert all(record.exc_info and record.session == "s" for record in records)


def test_a_mailbox_that_cannot_be_a_directory_is_451_and_no_recipient_gets_the_message(maildirs):
    maildirs.deliver(envelope())
    (maildirs.path / "example.com" / "file").write_text("not a mailbox")
    (error,) = maildirs.deliver(envelope("ann@example.com", "file@example.com"))
    assert (error.code, error.enhanced) == (451, (4, 3, 0))
    assert len(maildirs.files("new")) == 1
    assert not maildirs.files("tmp")


def test_what_a_crash_left_in_tmp_is_removed_after_a_day_and_a_half(maildirs):
    maildirs.deliver(envelope())
    tmp = maildirs.path / "example.com" / "joe" / "tmp"
    for name, age in (("old", 37), ("young", 35)):
        (tmp / name).write_text("x")
        then = time.time() - age * 3600
        os.utime(tmp / name, (then, then))
    maildirs.deliver(envelope())
    assert [path.name for path in tmp.iterdir()] == ["young"]


def test_the_path_is_made_when_the_worker_boots(tmp_path):
    maildirs = Maildirs(tmp_path / "a" / "b" / "mail")
    assert maildirs.deliver() == []
    assert maildirs.path.is_dir()


def test_a_worker_does_not_boot_when_its_path_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "mail"):
        with pytest.raises(BootError, match="mail cannot be stored in"):
            Maildirs(path).deliver()


def test_a_handler_outside_of_its_lifespan_takes_no_message(maildirs):
    with pytest.raises(RuntimeError):
        asyncio.run(maildirs.delivery().handle(Context(), PEER, envelope()))


def test_no_thread_is_left_when_the_lifespan_ends(maildirs):
    maildirs.deliver(*[envelope() for _ in range(50)])
    assert not [t for t in threading.enumerate() if t.name.startswith("preforkmx-maildir")]


def test_the_middleware_has_a_handler_and_a_lifespan(tmp_path):
    delivery = maildir(tmp_path / "mail", hostname=HOSTNAME)
    assert isinstance(delivery, Middleware)
    assert delivery.name == "maildir"

    async def run():
        async with delivery.lifespan():
            await delivery.handler(Context(), PEER, envelope())

    asyncio.run(run())
    assert len(Maildirs(tmp_path / "mail").files("new")) == 1
