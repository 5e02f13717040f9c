"""Reports: the master's status document, as another process gets it over its channel.

The document may be longer than a message of the channel: with 1024 workers it is. It comes as
``part`` messages, each with a piece of its JSON text. See :mod:`preforkmx.workers.channel`.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from preforkmx.errors import PreforkmxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.workers.channel import Channel, Message

FRESH_SECONDS = 1.0
"""How old a report may be that is shown again without asking."""
PATIENCE_SECONDS = 5.0
"""How long the master may take; it answers within one turn of its loop."""
PART_CHARACTERS = 30_000
"""Of ASCII text, in which the channel's own JSON at most doubles each character."""

Document = dict[str, Any]


class MasterSilent(PreforkmxError):
    """The master did not answer in time."""


def cut(document: Document, serial: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return type and values of the messages that bring a document.

    :param serial: what the question had, so that parts of two answers are not mixed up.
    """
    text = json.dumps(document, separators=(",", ":"))
    pieces = [text[at : at + PART_CHARACTERS] for at in range(0, len(text), PART_CHARACTERS)]
    for number, piece in enumerate(pieces):
        # A type of its own for each: of one type the channel keeps the last message only.
        yield f"part {number}", {"serial": serial, "of": len(pieces), "text": piece}


class Reports:
    """Asks the master for its status document, for all who want it at the moment together.

    It is made inside the loop.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._serial = 0
        self._parts: dict[str, str] = {}
        self._asked: asyncio.Future[Document] | None = None
        self._latest: Document | None = None
        self._taken = 0.0

    async def latest(self) -> Document:
        """Return the document, which was true a second ago at most.

        :raises MasterSilent: there was no answer within :data:`PATIENCE_SECONDS`.
        """
        if self._latest is not None and self._loop.time() - self._taken < FRESH_SECONDS:
            return self._latest
        if self._asked is None:
            self._ask()
        asked = self._asked
        assert asked is not None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(asked)
        except TimeoutError:
            # The next one asks again.
            if self._asked is asked:
                self._asked = None
            raise MasterSilent("the master does not answer") from None

    def _ask(self) -> None:
        self._serial += 1
        self._parts = {}
        self._asked = self._loop.create_future()
        self._channel.post("ask", serial=self._serial)

    def take(self, message: Message) -> None:
        """Take a part; one of an earlier answer is left out."""
        if self._asked is None or message.get("serial") != self._serial:
            return
        self._parts[message["type"]] = message["text"]
        count = message["of"]
        if len(self._parts) < count:
            return
        document = json.loads("".join(self._parts[f"part {number}"] for number in range(count)))
        self._latest, self._taken = document, self._loop.time()
        self._parts = {}
        asked, self._asked = self._asked, None
        asked.set_result(document)
