"""Test points: recipients of the demo that show how a server behaves when things go wrong.

| recipient | does |
|---|---|
| ``451@``, ``550@``, any code from 400 to 599 | is refused with this code; ``421@`` closes |
| ``data-451@``, ``data-550@``, any code | is accepted, and the message refused with this code |
| ``slow@`` | is answered after :data:`SLOW_SECONDS` |
| ``data-slow@`` | its message is answered after :data:`DATA_SLOW_SECONDS` |
| ``crash@``, ``data-crash@`` | meets a hook with a bug |

Only the demo's configuration names this middleware.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from preforkmx.errors import SMTPError
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.verdicts import ALLOW_LISTED

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

SLOW_SECONDS: Final = 5.0
DATA_SLOW_SECONDS: Final = 10.0

_POINT: Final = re.compile(r"(?P<data>data-)?(?P<what>[45][0-9][0-9]|slow|crash)@", re.ASCII)
_NAME: Final = "a test point"


async def _meet(what: str, seconds: float) -> None:
    if what == "slow":
        await asyncio.sleep(seconds)
    elif what == "crash":
        raise RuntimeError("this is the bug of the demo's test point crash@")
    else:
        raise SMTPError(int(what), "This is a test point of the demo")


async def _check_recipient(ctx: Context, _peer: Peer, address: str) -> Context | None:
    point = _POINT.match(address.lower())
    if point is None:
        # Whoever comes behind a test point is greylisted as before.
        was_one = ctx.value(ALLOW_LISTED) == _NAME
        return ctx.with_value(ALLOW_LISTED, None) if was_one else None
    if not point["data"]:
        await _meet(point["what"], SLOW_SECONDS)
    return ctx.with_value(ALLOW_LISTED, _NAME)


async def _handler(_ctx: Context, _peer: Peer, envelope: Envelope) -> None:
    for address in envelope.recipients:
        point = _POINT.match(address.lower())
        if point is not None and point["data"]:
            await _meet(point["what"], DATA_SLOW_SECONDS)


test_points = Middleware(check_recipient=_check_recipient, handler=_handler, name="test points")
