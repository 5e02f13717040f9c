"""Signals of the master."""

from __future__ import annotations

import os
import select
import signal
from contextlib import closing

from preforkmx.master.signals import SignalInbox


def test_signals_come_in_their_order_and_wake_a_selector() -> None:
    with closing(SignalInbox([signal.SIGUSR1, signal.SIGUSR2])) as inbox:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        readable, _, _ = select.select([inbox], [], [], 5)
        assert readable == [inbox]
        assert inbox.take() == [signal.SIGUSR2, signal.SIGUSR1]
        assert inbox.take() == []


def test_a_signal_that_was_blocked_before_is_taken_too() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with closing(SignalInbox([signal.SIGUSR1])) as inbox:
            os.kill(os.getpid(), signal.SIGUSR1)
            select.select([inbox], [], [], 5)
            assert inbox.take() == [signal.SIGUSR1]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_a_flood_of_signals_neither_blocks_nor_warns() -> None:
    with closing(SignalInbox([signal.SIGUSR1])) as inbox:
        for _ in range(5000):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert set(inbox.take()) == {signal.SIGUSR1}


def test_the_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    SignalInbox([signal.SIGUSR1]).close()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert signal.set_wakeup_fd(-1) == -1
