"""Message streams: what a handler reads, wraps and puts back."""

from __future__ import annotations

import pytest

from preforkmx import MessageAborted, MessageStream, SMTPError, prepend, whole, wrap


class Stream(MessageStream):
    """A stream of the chunks that it was made of; an exception among them is raised."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)
        self.asked = 0

    async def next_chunk(self):
        self.asked += 1
        if not self.chunks:
            return b""
        chunk = self.chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk


async def chunks(stream):
    return [chunk async for chunk in stream]


def test_iteration_yields_every_chunk_and_ends(run):
    assert run(chunks(Stream(b"a", b"bc"))) == [b"a", b"bc"]


def test_the_end_is_asked_for_once(run):
    async def test():
        stream = Stream(b"a")
        await chunks(stream)
        assert await chunks(stream) == []
        assert await stream.read(10) == b""
        return stream.asked

    assert run(test()) == 2


def test_read_takes_at_most_n_and_leaves_the_rest_to_the_next_reader(run):
    async def test():
        stream = Stream(b"abcdef", b"gh")
        assert await stream.read(0) == b""
        assert await stream.read(2) == b"ab"
        assert await stream.read(3) == b"cde"
        assert await stream.read(100) == b"f"
        assert await chunks(stream) == [b"gh"]

    run(test())


def test_read_without_a_number_reads_all_that_is_left(run):
    async def test():
        stream = Stream(b"abc", b"def")
        await stream.read(1)
        assert await stream.read() == b"bcdef"
        assert await stream.read() == b""

    run(test())


def test_a_part_that_was_read_is_not_iterated_again(run):
    async def test():
        stream = Stream(b"abc", b"def")
        await stream.read(1)
        return await chunks(stream)

    assert run(test()) == [b"bc", b"def"]


@pytest.mark.parametrize("read", [chunks, MessageStream.read, lambda s: s.read_all(100)])
def test_an_aborted_message_does_not_end_normally(run, read):
    with pytest.raises(MessageAborted):
        run(read(Stream(b"abc", MessageAborted("gone"))))


def test_read_all_returns_what_fits(run):
    assert run(Stream(b"abc", b"def").read_all(6)) == b"abcdef"


def test_read_all_refuses_what_does_not_fit_and_reads_no_further(run):
    async def test():
        stream = Stream(b"abc", b"def", b"ghi")
        with pytest.raises(SMTPError) as refusal:
            await stream.read_all(5)
        return refusal.value, stream.chunks

    error, left = run(test())
    assert (error.code, error.enhanced, left) == (552, (5, 3, 4), [b"ghi"])


def test_prepend_puts_octets_in_front(run):
    assert run(prepend(Stream(b"abc", b"def"), b"X: y\r\n").read()) == b"X: y\r\nabcdef"


def test_prepend_reads_nothing_ahead(run):
    async def test():
        source = Stream(b"abc")
        stream = prepend(prepend(source, b"2\r\n"), b"1\r\n")
        assert await stream.read(3) == b"1\r\n"
        assert await stream.read(3) == b"2\r\n"
        assert source.asked == 0
        return await stream.read()

    assert run(test()) == b"abc"


def test_prepend_of_nothing_changes_nothing(run):
    assert run(chunks(prepend(Stream(b"abc"), b""))) == [b"abc"]


def test_prepend_to_a_stream_that_was_read_in_part_goes_on_from_there(run):
    async def test():
        source = Stream(b"abc", b"def")
        await source.read(2)
        return await prepend(source, b"X\r\n").read()

    assert run(test()) == b"X\r\ncdef"


@pytest.mark.parametrize("change", [lambda s: prepend(s, b"X\r\n"), wrap])
def test_what_stops_the_inner_stream_stops_the_outer_one(run, change):
    with pytest.raises(MessageAborted):
        run(change(Stream(b"abc", MessageAborted("gone"))).read())


def test_wrap_takes_a_generator_and_skips_its_empty_chunks(run):
    async def upper(source):
        yield b""
        async for chunk in source:
            yield chunk.upper()
            yield b""

    assert run(chunks(wrap(upper(Stream(b"abc", b"def"))))) == [b"ABC", b"DEF"]


@pytest.mark.parametrize("octets", [b"", b"abc"])
def test_whole_is_a_stream_of_octets_in_memory(run, octets):
    async def test():
        stream = whole(octets)
        assert await stream.read() == octets
        assert await stream.read() == b""

    run(test())
