"""What a server counts. A counter only grows; a worker sends what it added to its master."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Totals since the start. Every name is one metric, ``preforkmx_<name>_total``."""

    connections: int = 0
    """Connections taken from the listeners."""
    connections_refused: int = 0
    """Sessions that check_connection refused, or that came when the worker was full."""
    transactions: int = 0
    """MAIL commands that were accepted."""
    messages: int = 0
    """Messages answered with 250."""
    messages_refused: int = 0
    """Messages answered with 4xx or 5xx after their data."""
    messages_aborted: int = 0
    """Messages that never became complete: lost connections and drain deadlines."""
    recipients: int = 0
    """RCPT commands that were accepted."""
    octets: int = 0
    """Octets of messages as they came over the wire."""
    commands_refused: int = 0
    """Commands answered with 4xx or 5xx."""
    early_talkers: int = 0
    """Sessions ended because the client sent before it was its turn."""
    wrong_protocol: int = 0
    """Connections of HTTP clients, and of TLS clients on a plain port."""
    proxy_failures: int = 0
    """Connections without a PROXY header that could be believed, where one is expected."""
    auth_successes: int = 0
    auth_failures: int = 0
    tls_handshakes: int = 0
    tls_failures: int = 0
    hook_failures: int = 0
    """Hooks and handlers that raised something else than an SMTPError."""
    timeouts: int = 0
    """Sessions ended because the client, or the time a session has, was over."""

    def as_dict(self) -> dict[str, int]:
        """Return every counter by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def since(self, earlier: dict[str, int]) -> dict[str, int]:
        """Return what was added since `earlier`, an :meth:`as_dict` of this object; no zeros."""
        return {
            name: value - earlier.get(name, 0)
            for name, value in self.as_dict().items()
            if value != earlier.get(name, 0)
        }
