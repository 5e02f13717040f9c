"""How long the replies after a message may take, all together."""

from __future__ import annotations

from types import SimpleNamespace

from maildirs import PEER

from preforkmx.body import whole
from preforkmx.delivery.nexthop.errors import NoReply
from preforkmx.delivery.nexthop.settings import Timeouts
from preforkmx.delivery.nexthop.transaction import Transaction
from preforkmx.model import Envelope


class _Clock:
    now = 1000.0

    def time(self) -> float:
        return self.now


class _SlowLink:
    """Each of its replies takes 40 s."""

    client = SimpleNamespace(awaits=4)

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self.patience: list[float] = []

    async def reply(self, seconds: float) -> str:
        self.patience.append(seconds)
        self._clock.now += 40
        if seconds < 40:
            raise NoReply("no reply in time")
        return "250"


def test_the_time_for_the_end_is_one_for_all_replies(run):
    async def test():
        pool = SimpleNamespace(settings=SimpleNamespace(timeouts=Timeouts(end=100)))
        transaction = Transaction(pool, Envelope("", whole(b"")), PEER, added=0)
        transaction._loop = clock = _Clock()
        link = _SlowLink(clock)
        replies = await transaction._replies(link)
        assert link.patience == [100, 60, 20]
        assert replies[:2] == ["250", "250"]
        assert [type(each) for each in replies[2:]] == [NoReply, NoReply]

    run(test())
