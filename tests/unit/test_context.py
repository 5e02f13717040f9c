"""Context: immutable values, and the two things that a session waits for."""

from __future__ import annotations

import asyncio
import logging

import pytest

from preforkmx import Context
from preforkmx.context import SessionInfo, Signal


class Key:
    pass


def test_with_value_leaves_the_context_as_it_was():
    before = Context()
    after = before.with_value(Key, 1)
    assert before.value(Key) is None
    assert before.value(Key, "default") == "default"
    assert after.value(Key) == 1


def test_a_later_value_hides_an_earlier_one_and_the_others_stay():
    context = Context({"a": 1, "b": 2}).with_value("a", 3)
    assert (context.value("a"), context.value("b")) == (3, 2)


def test_none_is_a_value_too():
    assert Context().with_value(Key, None).value(Key, "default") is None


def test_a_sender_comes_and_goes_and_the_values_stay():
    context = Context({"a": 1}).with_sender("a@example.org")
    assert (context.sender, context.value("a")) == ("a@example.org", 1)
    assert context.with_value("b", 2).sender == "a@example.org"
    assert context.with_sender(None).sender is None
    assert Context().sender is None


def test_bind_gives_a_session_its_own_and_keeps_the_values():
    draining, closed = Signal(), Signal()
    base = Context({"a": 1}).with_sender("left@over.example")
    bound = base.bind(SessionInfo("s1", logging.getLogger("x"), draining, closed))
    assert (bound.session_id, bound.sender, bound.value("a")) == ("s1", None, 1)
    assert (bound.draining, bound.closed) == (draining, closed)
    derived = bound.with_value("b", 2)
    assert (derived.session_id, derived.draining, derived.closed) == ("s1", draining, closed)
    assert base.session_id == ""


def test_records_of_the_logger_carry_the_session_and_what_the_caller_adds(caplog):
    context = Context(session_id="s1", logger=logging.getLogger("preforkmx.test.context"))
    context.logger.warning("plain")
    context.with_value("a", 1).logger.warning("more", extra={"user": "joe"})
    plain, more = caplog.records
    assert plain.session == more.session == "s1"
    assert more.user == "joe"


def test_a_context_outside_a_session_never_drains_and_never_closes():
    context = Context()
    assert not context.draining
    assert not context.closed


def test_a_context_says_what_it_holds():
    assert repr(Context({"a": 1}, session_id="s1")) == "<Context s1 sender=None {'a': 1}>"


# --- Signal ---------------------------------------------------------------------------------------


def test_a_signal_is_false_until_it_is_set_and_wakes_everybody(run):
    async def test():
        signal = Signal()
        waiters = [asyncio.ensure_future(asyncio.wait_for(signal, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not signal
        signal.set()
        signal.set()
        assert signal
        await asyncio.gather(*waiters)
        # Awaiting it again returns at once.
        await signal

    run(test())


def test_a_wait_for_a_signal_may_be_given_up(run):
    async def test():
        signal = Signal()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(signal, 0.01)
        # Nobody is remembered who does not wait any more.
        assert signal._waiters == []
        signal.set()

    run(test())


def test_a_signal_says_whether_it_is_set():
    signal = Signal()
    assert repr(signal) == "<Signal not set>"
    signal.set()
    assert repr(signal) == "<Signal set>"
