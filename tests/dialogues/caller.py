"""Drives the bare protocol core as a session does, without a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.core import Core
from preforkmx.protocol.events import (
    Bdat,
    Chunk,
    Closing,
    Credentials,
    Data,
    End,
    Foreign,
    Forwarded,
    Gone,
    Hello,
    Mail,
    NeedData,
    Pause,
    Quit,
    Rcpt,
    Reset,
    StartTLS,
    Verify,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.protocol.events import Event
    from preforkmx.protocol.replies import Reply
    from preforkmx.protocol.settings import Settings


def let_pass(_phase: str, _argument: str) -> None:
    """Refuse nothing."""


class Caller:
    """One session with the core.

    :param decide: ``(phase, argument)`` → the reply that the phase's hooks give, None to let
        pass; phases are ``connect``, ``helo``, ``mail``, ``rcpt``, ``begin`` (the message,
        before it is read), ``data`` (at its end), ``deliver`` (a recipient, in LMTP), ``vrfy``,
        ``vrfy-utf8`` (VRFY with SMTPUTF8) and ``auth`` (user NUL password).

    It keeps what happened in a form that does not depend on how the octets were split:
    :attr:`happened` has the events in their order with a message's chunks joined (left out
    where the message had a fault), and :attr:`output` all octets that the core wrote.
    """

    def __init__(
        self,
        settings: Settings,
        decide: Callable[[str, str], Reply | None] = let_pass,
        *,
        tls: bool = False,
        may_forward: bool = False,
    ) -> None:
        self.traced: list[bytes] = []
        self.core = Core(
            settings,
            tls=tls,
            may_forward=may_forward,
            trace=lambda _side, octets: self.traced.append(octets),
        )
        self._lmtp = settings.lmtp
        # A message is on its way in chunks.
        self._chunks = False
        self.decide = decide
        self.happened: list[object] = []
        self.output = b""
        self.delivered: list[tuple[str, list[str], bytes]] = []
        self.events = 0
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._body: list[bytes] = []
        # What nobody wanted to read the message for.
        self._unwanted: Reply | None = None
        self._user: str | None = None
        self._messages = 0

    def connect(self) -> bytes:
        """Run the connection hooks, greet or refuse; return what the core says."""
        refusal = self.decide("connect", "")
        if refusal is None:
            self.core.greet()
        else:
            self.core.shut(refusal)
        return self._pump()

    def send(self, octets: bytes) -> bytes:
        """Feed `octets`, answer every event, return what the core says."""
        self.core.receive_data(octets)
        return self._pump()

    def hang_up(self) -> bytes:
        """The client closes its side."""
        self.core.receive_eof()
        return self._pump()

    def _pump(self) -> bytes:
        while True:
            event = self.core.next_event()
            self.events += 1
            if type(event) is NeedData:
                break
            if type(event) is Pause:
                continue
            if type(event) in (Gone, Closing, Foreign):
                # Asked again, it says so again.
                if not self.happened or self.happened[-1] != event:
                    self.happened.append(event)
                break
            self._answer(event)
        output = self.core.take_output()
        self.output += output
        return output

    def _answer(self, event: Event) -> None:
        core = self.core
        if type(event) is Chunk:
            assert event.octets
            self._body.append(event.octets)
            return
        if type(event) is End:
            self._end(event)
            return
        self.happened.append(event)
        if self._chunks:
            # Only these come between two chunks, and none of them leaves a transaction.
            assert type(event) in (Hello, Reset, Quit)
            core.give_up_chunks()
            self._chunks = False
            self._sender, self._recipients, self._body = None, [], []
        if type(event) is Hello:
            self._settle(self.decide("helo", event.name))
        elif type(event) is Mail:
            if self._settle(self.decide("mail", event.path)):
                self._sender = event.path
                self._recipients = []
        elif type(event) is Rcpt:
            if self._settle(self.decide("rcpt", event.path)):
                self._recipients.append(event.path)
        elif type(event) is Data or type(event) is Bdat:
            assert self._sender is not None
            assert self._recipients
            self._body = []
            self._chunks = type(event) is Bdat
            core.accept()
            self._unwanted = self.decide("begin", self._sender)
            if self._unwanted is not None:
                core.fail_chunks(self._unwanted)
        elif type(event) is Forwarded:
            core.accept()
            self._sender, self._recipients = None, []
            if "LOGIN" in event.client.given:
                self._user = event.client.login
            core.authenticated = self._user is not None
            refusal = self.decide("connect", "")
            if refusal is None:
                core.greet()
            else:
                core.shut(refusal)
        elif type(event) is Credentials:
            if self._settle(self.decide("auth", f"{event.username}\0{event.password}")):
                self._user = event.username
        elif type(event) is Verify:
            phase = "vrfy-utf8" if event.smtputf8 else "vrfy"
            self._settle(self.decide(phase, event.text) or replies.CANNOT_VERIFY)
        elif type(event) is Reset:
            self._settle(None)
        elif type(event) is Quit:
            core.accept()
        else:
            assert type(event) is StartTLS
            core.accept()
            if not core.closed:
                core.tls_started()
                self._user = None

    def _settle(self, reply: Reply | None) -> bool:
        """Refuse with `reply`, or accept; a refusal before MAIL's success changes nothing."""
        if reply is not None and reply.code >= 400:
            self.core.refuse(reply)
            return False
        happened = self.happened[-1]
        if type(happened) in (Hello, Reset):
            self._sender, self._recipients = None, []
        self.core.accept(reply)
        return True

    def _end(self, event: End) -> None:
        body = b"".join(self._body)
        assert self._sender is not None, "a message without an accepted MAIL"
        assert self._recipients, "a message without an accepted RCPT"
        reply = event.fault or self._unwanted or self.decide("data", body.decode("latin-1"))
        self.happened.append(("message", None if event.fault else (event.size, body), reply))
        if reply is None:
            self._messages += 1
            self.delivered.append((self._sender, self._recipients, body))
            reply = replies.queued(f"1.{self._messages}")
        answers = [reply]
        if self._lmtp:
            answers = [
                (self.decide("deliver", path) if reply.code == 250 else None) or reply
                for path in self._recipients
            ]
        self._sender, self._recipients, self._body = None, [], []
        self._chunks = False
        self.core.finish(*answers)
