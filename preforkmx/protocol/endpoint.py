"""Octets in and octets out: what the protocol core has of a connection."""

from __future__ import annotations

from collections.abc import Callable

from preforkmx.protocol.framing import LineFramer

Trace = Callable[[str, bytes], None]
"""Called with ``"C"`` or ``"S"`` and a line or reply; credentials are redacted."""


class Endpoint:
    """Keeps what arrived and was not read, and what was written and not sent.

    :param normalize: see :class:`~preforkmx.protocol.framing.LineFramer`.
    :param trace: is told every line and reply, for debugging.
    """

    __slots__ = ("_eof", "_framer", "output", "receive_data", "trace")

    def __init__(self, *, normalize: bool, trace: Trace | None) -> None:
        self._framer = LineFramer(normalize=normalize)
        self.receive_data = self._framer.feed
        """Takes octets from the client."""
        self.output: list[bytes] = []
        """What was written and not sent: empty when there is nothing."""
        self._eof = False
        self.trace = trace

    @property
    def buffered(self) -> int:
        """Octets that arrived and were not read yet: what the caller has to bound."""
        framer = self._framer
        return len(framer.octets) - framer.position

    @property
    def eof(self) -> bool:
        """The client will send no more."""
        return self._eof

    def receive_eof(self) -> None:
        """The client will send no more."""
        self._eof = True

    def take_output(self) -> bytes:
        """Return, and forget, the octets to send."""
        output = self.output
        if not output:
            return b""
        octets = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return octets
