from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from preforkmx.observe.log import LogWriter

# Python 3.12 and later warn about a fork beside threads; what a child may do then is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

F_SETPIPE_SZ = 1031


@contextmanager
def pipe():
    """A pipe of two pages, as descriptors (read, write).

    One page would do, but a pipe with one octet in its only page polls as full.
    """
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 8192)
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with suppress(OSError):
                os.close(descriptor)


def read_lines(reader: int, count: int) -> list[bytes]:
    """Read until there are `count` whole lines."""
    octets = b""
    while octets.count(b"\n") < count:
        octets += os.read(reader, 65536)
    return octets.splitlines()


def test_a_line_is_written_at_once_before_the_start():
    with pipe() as (reader, descriptor):
        LogWriter(descriptor).write("one")
        assert os.read(reader, 100) == b"one\n"


def test_a_thread_writes_after_the_start_and_the_caller_again_after_the_close():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor)
        writer.start()
        writer.write("one")
        assert writer.flush()
        assert os.read(reader, 100) == b"one\n"
        writer.write("two")
        writer.close()
        assert os.read(reader, 100) == b"two\n"
        assert not any(thread.name == "preforkmx-log" for thread in threading.enumerate())
        writer.write("three")
        assert os.read(reader, 100) == b"three\n"


def test_a_line_arrives_without_anybody_flushing():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor)
        writer.start()
        try:
            writer.write("one")
            assert os.read(reader, 100) == b"one\n"
            writer.write("two")
            assert os.read(reader, 100) == b"two\n"
        finally:
            writer.close()


def test_the_writer_can_be_started_again():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor)
        for number in range(3):
            writer.start()
            writer.start()
            writer.write(str(number))
            writer.close()
            writer.close()
            assert os.read(reader, 100) == f"{number}\n".encode()


def test_a_stuck_reader_blocks_nobody_and_what_does_not_fit_is_counted_and_reported():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor, limit=20_000)
        writer.report_drops_as(lambda count: f"dropped {count}")
        writer.start()
        began = time.monotonic()
        for number in range(10_000):
            writer.write(f"line {number:04d}")
        assert time.monotonic() - began < 5
        assert not writer.flush(0.05)
        dropped = writer.dropped
        # 2,000 lines of 10 characters fit, and those that the pipe took before it was full.
        assert 7_000 < dropped <= 8_000
        kept = 10_000 - dropped
        lines = read_lines(reader, kept + 1)
        assert writer.flush()
        writer.close()
        assert lines[0] == b"line 0000"
        assert lines[-1] == b"dropped %d" % dropped
        assert len(lines) == kept + 1
        assert writer.dropped == dropped


def test_there_is_room_again_once_the_reader_reads():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor, limit=100)
        writer.start()
        writer.write("x" * 200)
        assert writer.dropped == 1
        writer.write("y" * 50)
        assert writer.flush()
        writer.write("z" * 90)
        writer.close()
        # One line for what did not fit, in the writer's own words, after what did.
        assert os.read(reader, 4096).splitlines() == [
            b"y" * 50,
            b"1 log lines were dropped: the log could not be written",
            b"z" * 90,
        ]


def test_a_stuck_reader_costs_a_writer_without_a_thread_a_quarter_of_a_second_once():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor, limit=100_000)
        began = time.monotonic()
        for _ in range(1000):
            writer.write("x" * 99)
        assert time.monotonic() - began < 5
        assert not writer.flush()
        total = 0
        while not writer.flush() or total < 100_000:
            total += len(os.read(reader, 65536))
        assert total == 100_000
        assert writer.dropped == 0


def test_closing_does_not_wait_for_a_reader_that_is_stuck():
    with pipe() as (_, descriptor):
        writer = LogWriter(descriptor)
        writer.start()
        writer.write("x" * 10_000)
        began = time.monotonic()
        writer.close(0.1)
        assert time.monotonic() - began < 5
        assert not any(thread.name == "preforkmx-log" for thread in threading.enumerate())


def test_a_reader_that_is_gone_loses_lines_and_raises_nothing():
    with pipe() as (reader, descriptor):
        os.close(reader)
        writer = LogWriter(descriptor)
        writer.write("one")
        writer.start()
        writer.write("two")
        assert writer.flush()
        writer.close()
        assert writer.dropped == 2


def test_a_descriptor_that_is_closed_loses_lines_and_raises_nothing():
    with pipe() as (_, descriptor):
        os.close(descriptor)
        writer = LogWriter(descriptor)
        writer.write("one")
        assert writer.dropped == 1
        assert not writer.colour


def test_what_a_full_disk_refused_is_reported_when_it_has_room_again():
    full = os.open("/dev/full", os.O_WRONLY)
    target = os.dup(full)
    with pipe() as (reader, descriptor):
        writer = LogWriter(target)
        writer.write("lost")
        writer.write("lost too")
        os.dup2(descriptor, target)
        writer.write("kept")
        os.close(target)
        os.close(full)
        assert os.read(reader, 4096).splitlines() == [
            b"kept",
            b"2 log lines were dropped: the log could not be written",
        ]


def test_a_descriptor_that_does_not_block_gets_every_line():
    with pipe() as (reader, descriptor):
        os.set_blocking(descriptor, False)
        writer = LogWriter(descriptor)
        writer.start()
        for number in range(2000):
            writer.write(f"line {number:04d}")
        lines = read_lines(reader, 2000)
        writer.close()
        assert lines == [b"line %04d" % number for number in range(2000)]


def test_lines_of_several_processes_on_one_pipe_never_mix():
    with pipe() as (reader, descriptor):
        children = []
        for letter in "abc":
            child = os.fork()
            if child == 0:
                try:
                    writer = LogWriter(descriptor)
                    writer.start()
                    for length in range(1, 300):
                        writer.write(letter * length)
                    writer.flush(20)
                finally:
                    os._exit(0)
            children.append(child)
        lines = read_lines(reader, 3 * 299)
        for child in children:
            os.waitpid(child, 0)
        expected = [(letter * length).encode() for letter in "abc" for length in range(1, 300)]
        assert sorted(lines) == sorted(expected)


def test_a_forked_child_writes_nothing_of_its_parents_twice_and_can_start_its_own_thread():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor)
        os.set_blocking(descriptor, True)
        writer.write("f" * 4095)
        writer.write("f" * 4095)  # the pipe is full
        writer.start()
        writer.write("parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                writer.start()
                writer.write("child")
                os.read(reader, 8192)
                status = 0 if writer.flush(10) else 2
                writer.close()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        writer.close()
        assert sorted(read_lines(reader, 2)) == [b"child", b"parent"]


def test_many_threads_lose_no_line():
    with pipe() as (reader, descriptor):
        writer = LogWriter(descriptor)
        writer.start()

        def log(letter: str) -> None:
            for number in range(500):
                writer.write(f"{letter}{number}")

        threads = [threading.Thread(target=log, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        lines = read_lines(reader, 2000)
        for thread in threads:
            thread.join()
        writer.close()
        assert len(set(lines)) == 2000
        for letter in b"abcd":
            numbers = [int(line[1:]) for line in lines if line[0] == letter]
            assert numbers == list(range(500))


def test_a_line_that_is_no_unicode_ends_nothing():
    with pipe() as (reader, descriptor):
        LogWriter(descriptor).write("x\udcffy")
        assert os.read(reader, 100) == b"x\\udcffy\n"


def test_a_terminal_has_colours_unless_it_says_no(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    master, terminal = os.openpty()
    try:
        writer = LogWriter(terminal)
        assert writer.colour
        monkeypatch.setenv("TERM", "dumb")
        assert not writer.colour
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        assert not writer.colour
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize("size", [100, 5000, 200_000])
def test_a_file_gets_lines_of_any_length_in_their_order(tmp_path, size):
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writer = LogWriter(descriptor)
    writer.start()
    for letter in "abc":
        writer.write(letter * size)
    writer.close()
    os.close(descriptor)
    assert path.read_text().splitlines() == [letter * size for letter in "abc"]
