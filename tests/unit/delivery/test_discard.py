from __future__ import annotations

import asyncio

import pytest
from maildirs import PEER, envelope

from preforkmx.context import Context
from preforkmx.delivery.discard import discard
from preforkmx.errors import ConnectionLost
from preforkmx.middleware.base import PROMISES


def test_a_message_is_read_to_its_end():
    message = envelope(body=(b"one", b"two"))
    asyncio.run(discard().handler(Context(), PEER, message))
    assert asyncio.run(message.data.read()) == b""


def test_an_aborted_message_is_not_accepted():
    message = envelope(body=(b"one", ConnectionLost("gone")))
    with pytest.raises(ConnectionLost):
        asyncio.run(discard().handler(Context(), PEER, message))


def test_what_goes_nowhere_may_be_promised_everything():
    assert discard().extensions == PROMISES
