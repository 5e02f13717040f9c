"""Documents that are longer than a message of the channel, and masters that do not answer."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.workers import reports
from preforkmx.workers.channel import MESSAGE_OCTETS, Channel, _render
from preforkmx.workers.reports import MasterSilent, Reports, cut


class Master:
    """The master's end of a channel, which answers when it is told to."""

    def __init__(self):
        self.channel, self._theirs = Channel.pair()
        self.reports = Reports(self._theirs)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._theirs.fileno(), self._hear)

    def _hear(self):
        for message in self._theirs.receive():
            self.reports.take(message)

    def asked(self):
        return [message["serial"] for message in self.channel.receive()]

    def answer(self, document, serial):
        for kind, values in cut(document, serial):
            self.channel.post(kind, **values)

    def close(self):
        self._loop.remove_reader(self._theirs.fileno())
        self.channel.close()
        self._theirs.close()


async def begin(*coroutines):
    """Start tasks and let each come to its first wait."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


def test_all_who_want_a_report_at_once_ask_once(run):
    async def main():
        master = Master()
        first, second = await begin(master.reports.latest(), master.reports.latest())
        (serial,) = master.asked()
        master.answer({"state": "ready"}, serial)
        assert await first == await second == {"state": "ready"}
        assert await master.reports.latest() == {"state": "ready"}
        assert master.asked() == []
        master.close()

    run(main())


def test_a_report_that_is_older_than_a_second_is_asked_for_again(run, monkeypatch):
    async def main():
        monkeypatch.setattr(reports, "FRESH_SECONDS", 0.0)
        master = Master()
        for state in ("ready", "draining"):
            (task,) = await begin(master.reports.latest())
            (serial,) = master.asked()
            master.answer({"state": state}, serial)
            assert await task == {"state": state}
        master.close()

    run(main())


def test_a_report_of_many_workers_arrives_whole(run, until):
    """With 1024 workers and as many that drain it is longer than what the socket takes."""

    async def main():
        document = {"workers": [{"slot": n, "state": 'a "quoted" \\ é'} for n in range(9000)]}
        master = Master()
        (task,) = await begin(master.reports.latest())
        (serial,) = master.asked()
        master.answer(document, serial)
        await until(lambda: master.channel.flush() and task.done())
        assert await task == document
        master.close()

    run(main())


def test_a_master_that_is_silent_is_told_of_and_asked_again(run, monkeypatch):
    async def main():
        monkeypatch.setattr(reports, "PATIENCE_SECONDS", 0.01)
        master = Master()
        with pytest.raises(MasterSilent):
            await master.reports.latest()
        monkeypatch.setattr(reports, "PATIENCE_SECONDS", 10.0)
        (task,) = await begin(master.reports.latest())
        late, again = master.asked()
        # The answer to the first question is too late: its parts are not the second one's.
        master.answer({"state": "late"}, late)
        master.answer({"state": "ready"}, again)
        assert await task == {"state": "ready"}
        master.close()

    run(main())


@given(
    st.dictionaries(st.text(max_size=50), st.text(max_size=500), max_size=20),
    st.integers(0, 2**63),
    st.integers(1, 2000),
)
def test_every_document_fits_messages_and_is_put_together_again(document, serial, times):
    """Whatever characters a host name or a path has."""
    document = {"long": "".join(document) * times, **document}
    parts = list(cut(document, serial))
    assert len({kind for kind, _ in parts}) == len(parts)
    for kind, values in parts:
        assert len(_render({"type": kind, **values})) <= MESSAGE_OCTETS
    ours, theirs = Channel.pair()
    try:

        async def main():
            taking = Reports(theirs)
            taking._serial = serial - 1
            (task,) = await begin(taking.latest())
            for kind, values in parts:
                taking.take({"type": kind, **values})
            return await task

        assert asyncio.run(main()) == document
    finally:
        ours.close()
        theirs.close()
