"""Random and mutated octet streams neither crash nor hang the core, nor make it hold more than
its bound. ``TEST_FUZZ_STREAMS`` says how many; scripts/fuzz goes on for as long as one likes.
"""

from __future__ import annotations

import os

import pytest
import streams

COUNT = int(os.environ.get("TEST_FUZZ_STREAMS", "16000"))
BATCHES = 8


@pytest.mark.timeout(max(60, COUNT // 50))
@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_stream_of_octets_breaks_the_core(batch):
    for number in range(batch, COUNT, BATCHES):
        stream = streams.random_stream(f"ci:{number}")
        try:
            streams.run(stream)
        except Exception as error:
            raise AssertionError(f"scripts/fuzz --replay ci:{number}: {stream!r}") from error


def test_a_name_gives_always_the_same_stream():
    assert streams.random_stream("ci:7") == streams.random_stream("ci:7")
    assert len({streams.random_stream(f"ci:{number}").octets for number in range(50)}) > 40


def test_the_streams_get_everywhere():
    happened = set()
    replies = set()
    for number in range(2000):
        stream = streams.random_stream(f"ci:{number}")
        caller = streams.talk(stream.pieces, salt=stream.salt, starttls=stream.starttls)
        happened |= {type(event).__name__ for event in caller.happened}
        replies |= {int(line[:3]) for line in caller.output.splitlines()}
    assert happened >= {"Hello", "Mail", "Rcpt", "Data", "Reset", "Verify", "Credentials", "tuple"}
    assert replies >= {214, 220, 221, 235, 250, 252, 334, 354, 421, 450, 452, 500, 501, 502, 503}
    assert replies >= {504, 535, 550, 552, 554, 555}
