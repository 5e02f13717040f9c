"""The channel between the master and one of its processes.

An ``AF_UNIX`` ``SOCK_SEQPACKET`` socket pair: message boundaries are kept, and end-of-file
says that the other side is dead. A message is one JSON object with a ``type``:

=========  ================  ==========================================================
type       from              meaning
=========  ================  ==========================================================
ready      process → master  it serves
failed     process → master  it could not start, or a check found ``problems`` (texts)
stats      process → master  ``counters``: what was added since the last such message
replace    process → master  give my slot to another one, then retire me
ask        process → master  ``serial``: tell me how things are (the admin process does)
part …     master → process  a part of the answer, see :mod:`preforkmx.workers.reports`
retire     master → process  close your listeners; 421 at the next command after ``seconds``
drain      master → process  close your listeners; 421 when idle; give up after ``seconds``
lame_duck  master → process  refuse health checks: a load balancer shall send no more clients
stop       master → process  abort every session and exit
=========  ================  ==========================================================

Neither side ever waits for the other. What the socket does not take, because it is full or the
kernel has no memory, stays here, one message of each type, and goes out with a later call, which
every process makes again and again; counters that wait are added up.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

Message = dict[str, Any]

MESSAGE_OCTETS = 65_536
"""The longest message that is read; a longer one is not understood, and dropped."""
PROBLEMS = 50
"""How many problems a ``failed`` message carries at most."""
PROBLEM_CHARACTERS = 2000
"""How long each of them is at most; less where all of them would not fit one message."""
_MESSAGES_A_CALL = 32
_OUT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})
"""The kernel has none for a message at the moment."""

_logger = logging.getLogger("preforkmx.workers")


class Channel:
    """One end.

    :param unsent: messages that an earlier owner of this end could not send.
    :ivar ended: the other side is gone; what it sent before has been received.
    :ivar dropped: messages received that were none.
    """

    def __init__(self, sock: socket.socket, unsent: Iterable[Message] = ()) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._waiting: dict[str, Message] = {message["type"]: message for message in unsent}
        self._counters: dict[str, int] = {}
        self.ended = False
        self.dropped = 0

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends of a new channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """Return the descriptor to wait on; -1 once it is closed."""
        return self._socket.fileno()

    def unsent(self) -> list[Message]:
        """Return the messages that wait, in their order."""
        return list(self._waiting.values())

    def post(self, kind: str, **values: Any) -> None:
        """Send a message now, or with a later call when the socket is full.

        A message that waits is replaced by a later one of the same type.
        """
        self._waiting.pop(kind, None)
        self._waiting[kind] = {"type": kind, **values}
        self.flush()

    def post_failure(self, problems: Iterable[str]) -> None:
        """Send ``failed`` with as many of `problems` as one message holds."""
        texts = list(problems)
        if len(texts) > PROBLEMS:
            more = len(texts) - PROBLEMS + 1
            texts[PROBLEMS - 1 :] = [f"… and {more} more"]
        characters = PROBLEM_CHARACTERS
        texts = [text[:characters] for text in texts]
        while len(_render({"type": "failed", "problems": texts})) > MESSAGE_OCTETS:
            characters //= 2
            texts = [text[:characters] for text in texts]
        self.post("failed", problems=texts)

    def post_counters(self, added: dict[str, int]) -> None:
        """Send what was added to the counters, with all that could not be sent before."""
        for name, value in added.items():
            self._counters[name] = self._counters.get(name, 0) + value
        self.flush()

    def flush(self) -> bool:
        """Send what waits; False when some of it still does."""
        while self._waiting:
            kind = next(iter(self._waiting))
            if not self._send(self._waiting[kind]):
                return False
            del self._waiting[kind]
        if self._counters:
            if not self._send({"type": "stats", "counters": self._counters}):
                return False
            self._counters = {}
        return True

    def _send(self, message: Message) -> bool:
        try:
            self._socket.send(_render(message))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _OUT_OF_MEMORY:
                return False
            if error.errno == errno.EMSGSIZE:
                # It would never go out, and keep what waits behind it.
                _logger.error("a message (%s) is too long to be sent: dropped", message["type"])
            # Else nobody is there to read it; receive() finds the end-of-file.
            return True
        return True

    def receive(self) -> list[Message]:
        """Return the messages that are here, at most 32 a call; see :attr:`ended`."""
        messages: list[Message] = []
        reset = False
        while len(messages) < _MESSAGES_A_CALL and not self.ended:
            try:
                octets = self._socket.recv(MESSAGE_OCTETS)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The other side died with messages of ours unread. Linux says so once, ahead
                # of what it had sent, which is still there.
                self.ended = reset
                reset = True
                continue
            except OSError:
                self.ended = True
                break
            if not octets:
                self.ended = True
                break
            message = _parse(octets)
            if message is None:
                self.dropped += 1
            else:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Close this end; the other side receives end-of-file."""
        self._socket.close()


def _render(message: Message) -> bytes:
    # backslashreplace: a lone surrogate becomes the escape that JSON has for it.
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _parse(octets: bytes) -> Message | None:
    """Return the message, or None: a process that was broken into may send anything."""
    try:
        message = json.loads(octets)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        return None
    return message
