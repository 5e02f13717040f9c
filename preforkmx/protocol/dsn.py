"""What a client asks about delivery status notifications (RFC 3461): values, and their syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class RecipientDSN(NamedTuple):
    """What RCPT asked for one recipient."""

    notify: frozenset[str] | None = None
    """NOTIFY: ``NEVER`` alone, or of ``SUCCESS``, ``FAILURE`` and ``DELAY``; None: not said."""
    original: tuple[str, str] | None = None
    """ORCPT: the address type (``"rfc822"``, ``"utf-8"``, in lower case) and the address,
    decoded; None: not said."""


@dataclass(slots=True)
class DSN:
    """What a transaction asked; nobody here writes notifications, a delivery may."""

    ret: str | None = None
    """RET: ``"FULL"`` or ``"HDRS"``; None: not said."""
    envid: str | None = None
    """ENVID, decoded; None: not said."""
    recipients: dict[str, RecipientDSN] = field(default_factory=dict)
    """By their forward path as it stands in ``envelope.recipients``: only those that asked."""
