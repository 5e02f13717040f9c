"""What goes wrong with a next hop. None of it reaches a client as it is.

::

    NextHopError              nothing was decided about the message: 451
    ├── LinkLost              the connection is gone
    ├── NoConnection          no connection was made
    ├── NoReply               no reply, or no room for octets, within a phase's time
    ├── Nonsense              what came is no reply, or none that this command can have
    ├── NotReady              the server cannot be used: its greeting, EHLO, TLS or AUTH
    └── AllAway               no server can be reached, or no connection is free
    Refused                   the server's own answer to MAIL, RCPT, DATA or the message
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.errors import PreforkmxError

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.replies import Reply


class NextHopError(PreforkmxError):
    """The next hop said nothing about the message that counts; the text is for the log."""


class LinkLost(NextHopError):
    """The connection is gone."""


class NoConnection(NextHopError):
    """No connection was made."""


class NoReply(NextHopError):
    """The time of a phase passed."""


class Nonsense(NextHopError):
    """The other side does not speak the protocol."""


class NotReady(NextHopError):
    """The other side, or what lies before it, is not in a state to take messages."""


class AllAway(NextHopError):
    """Nobody is there to ask."""


class Refused(PreforkmxError):
    """The next hop answered MAIL, RCPT, DATA or the message with 4xx or 5xx."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply
