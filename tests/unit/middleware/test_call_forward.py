"""Call-forward: what is remembered, joined and bounded."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from preforkmx.errors import SMTPError
from preforkmx.middleware.addresses import Recipient
from preforkmx.middleware.call_forward import BackEndAnswer, BackEndAway, CallForward, Verdict
from preforkmx.middleware.recipients_source import Found

KNOWN, UNKNOWN = BackEndAnswer(Verdict.KNOWN), BackEndAnswer(Verdict.UNKNOWN)
FULL = BackEndAnswer(Verdict.REFUSED, SMTPError(552, "Mailbox full", enhanced=(5, 2, 2)))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class BackEnd:
    """Answers what it is told to, once it is let go."""

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.asked = []
        self.go = asyncio.Event()
        self.go.set()
        self.at_once = self.most_at_once = 0

    @asynccontextmanager
    async def lifespan(self):
        yield

    async def ask(self, address):
        self.asked.append(address)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        answer = self.answers.get(address, UNKNOWN)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def look(source, address):
    """Return what the source says, an error as code and enhanced code."""
    try:
        return await source.look_up(Recipient.of(address, "+"))
    except SMTPError as error:
        return error.code, error.enhanced


async def until(condition):
    """Let the others have their turns."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come")


AWAY = (451, (4, 4, 1))


def test_an_answer_is_remembered_for_its_time():
    async def scenario():
        clock, back_end = Clock(), BackEnd({"joe@x.example": KNOWN, "full@x.example": FULL})
        source = CallForward(back_end, known_for=60, unknown_for=10, clock=clock)
        for _ in range(3):
            assert await look(source, "joe@x.example") == Found()
            assert await look(source, "JOE@X.example") == Found()
            assert await look(source, "jo@x.example") is None
            assert await look(source, "full@x.example") == (552, (5, 2, 2))
        assert back_end.asked == ["joe@x.example", "jo@x.example", "full@x.example"]
        clock.now += 10
        for name in ("joe", "jo", "full"):
            await look(source, f"{name}@x.example")
        assert back_end.asked[3:] == ["jo@x.example", "full@x.example"]
        clock.now += 50
        await look(source, "joe@x.example")
        assert back_end.asked[5:] == ["joe@x.example"]

    asyncio.run(scenario())


def test_what_is_no_answer_is_not_remembered_and_said_once_a_minute(caplog):
    async def scenario():
        clock = Clock()
        back_end = BackEnd({"joe@x.example": BackEndAway("nobody there")})
        source = CallForward(back_end, clock=clock)
        for _ in range(3):
            assert await look(source, "joe@x.example") == AWAY
        assert len(back_end.asked) == 3
        assert len(caplog.records) == 1
        clock.now += 60
        assert await look(source, "joe@x.example") == AWAY
        assert [record.getMessage() for record in caplog.records] == [
            "recipients cannot be asked for at the back end: nobody there"
        ] * 2

    asyncio.run(scenario())


def test_questions_for_one_recipient_are_joined_and_a_client_that_leaves_ends_none():
    async def scenario():
        back_end = BackEnd({"joe@x.example": KNOWN})
        back_end.go.clear()
        source = CallForward(back_end)
        waiting = [asyncio.create_task(look(source, "joe@x.example")) for _ in range(5)]
        await until(lambda: back_end.asked)
        waiting[0].cancel()
        await asyncio.sleep(0)
        back_end.go.set()
        assert await asyncio.gather(*waiting[1:]) == [Found()] * 4
        assert back_end.asked == ["joe@x.example"]
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]

    asyncio.run(scenario())


def test_an_answer_that_nobody_waits_for_any_more_is_remembered():
    async def scenario():
        back_end = BackEnd({"joe@x.example": KNOWN})
        back_end.go.clear()
        source = CallForward(back_end)
        task = asyncio.create_task(look(source, "joe@x.example"))
        await until(lambda: back_end.asked)
        task.cancel()
        back_end.go.set()
        await until(lambda: not source._asking)
        assert await look(source, "joe@x.example") == Found()
        assert len(back_end.asked) == 1

    asyncio.run(scenario())


def test_so_many_are_asked_for_at_once_so_many_wait_and_the_next_is_told_451():
    async def scenario():
        back_end = BackEnd()
        back_end.go.clear()
        source = CallForward(back_end, at_once=3, waiting=4)
        tasks = [asyncio.create_task(look(source, f"n{n}@x.example")) for n in range(7)]
        await until(lambda: len(source._asking) == 7 and back_end.at_once == 3)
        assert await look(source, "n7@x.example") == AWAY
        # Who joins a question is none more.
        joined = asyncio.create_task(look(source, "n0@x.example"))
        back_end.go.set()
        assert await asyncio.gather(*tasks, joined) == [None] * 8
        assert back_end.most_at_once == 3
        assert len(back_end.asked) == 7

    asyncio.run(scenario())


def test_a_back_end_that_never_answers_costs_its_deadline():
    async def scenario():
        back_end = BackEnd()
        back_end.go.clear()
        source = CallForward(back_end, deadline=0.01, at_once=1)
        names = [f"n{n}@x.example" for n in range(3)]
        assert await asyncio.gather(*(look(source, name) for name in names)) == [AWAY] * 3
        # Those that waited for their turn were never asked for.
        assert back_end.asked == names[:1]
        assert not source._asking

    asyncio.run(scenario())


def test_the_answers_that_are_remembered_are_bounded():
    async def scenario():
        back_end = BackEnd()
        source = CallForward(back_end, remembered=10)
        for number in range(50):
            await look(source, f"{'n' * 200}{number}@x.example")
        assert len(source._answers) <= 10

    asyncio.run(scenario())


def test_where_extensions_are_dropped_the_base_is_asked_for():
    async def scenario():
        back_end = BackEnd({"joe@x.example": KNOWN})
        plain = CallForward(back_end, plain=True)
        assert await look(plain, "joe+a@x.example") == Found(extended=True)
        assert await look(plain, "joe+b@x.example") == Found(extended=True)
        assert await look(plain, "joe@x.example") == Found()
        assert back_end.asked == ["joe@x.example"]
        back_end.asked.clear()
        assert await look(CallForward(back_end), "joe+a@x.example") is None
        assert back_end.asked == ["joe+a@x.example"]

    asyncio.run(scenario())


def test_a_bug_of_the_back_end_is_everybodys_who_waits_and_nobodys_after():
    async def scenario():
        back_end = BackEnd({"joe@x.example": RuntimeError("bug")})
        source = CallForward(back_end)
        with pytest.raises(RuntimeError):
            await look(source, "joe@x.example")
        back_end.answers["joe@x.example"] = KNOWN
        assert await look(source, "joe@x.example") == Found()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "options", [{"deadline": 0}, {"at_once": 0}, {"known_for": -1}, {"waiting": -1}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="call-forward"):
        CallForward(BackEnd(), **options)
