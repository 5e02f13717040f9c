"""What a server counts. A counter only grows; a worker sends what it added to its master."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _counts(what: str) -> Any:
    """Declare a counter, and what it counts: one sentence, the HELP text of its metric."""
    return field(default=0, metadata={"help": what})


@dataclass(slots=True)
class Counters:
    """Totals since the start. Every name is one metric, ``preforkmx_<name>_total``."""

    connections: int = _counts("Connections taken from the listeners.")
    connections_refused: int = _counts(
        "Sessions that check_connection refused, or that came when the worker was full."
    )
    transactions: int = _counts("MAIL commands that were accepted.")
    messages: int = _counts("Messages answered with 250.")
    messages_refused: int = _counts("Messages answered with 4xx or 5xx after their data.")
    messages_aborted: int = _counts(
        "Messages that never became complete: lost connections and drain deadlines."
    )
    recipients: int = _counts("RCPT commands that were accepted.")
    octets: int = _counts("Octets of messages as they came over the wire.")
    commands_refused: int = _counts("Commands answered with 4xx or 5xx.")
    early_talkers: int = _counts("Sessions ended because the client sent before it was its turn.")
    wrong_protocol: int = _counts(
        "Connections of HTTP clients, and of TLS clients on a plain port."
    )
    proxy_failures: int = _counts(
        "Connections without a PROXY header that could be believed, where one is expected."
    )
    auth_successes: int = _counts("AUTH commands that let the client in.")
    auth_failures: int = _counts("AUTH commands that were refused: wrong names or passwords.")
    tls_handshakes: int = _counts("TLS handshakes that succeeded, implicit and after STARTTLS.")
    tls_failures: int = _counts("TLS handshakes that failed or took too long.")
    hook_failures: int = _counts("Hooks and handlers that raised something else than an SMTPError.")
    timeouts: int = _counts(
        "Sessions ended because the client, or the time a session has, was over."
    )

    store_outages: int = _counts(
        "Times that a worker stopped asking the configured store, which did not answer."
    )
    store_fallbacks: int = _counts(
        "Decisions of a nearer store, or of one worker alone, since the configured one was away."
    )

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


HELP: dict[str, str] = {each.name: each.metadata["help"] for each in fields(Counters)}
"""What each counter counts, by its name."""
