"""What a message is answered with: once in SMTP, for each recipient in LMTP (RFC 2033)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from preforkmx.errors import SMTPError
    from preforkmx.model import Envelope

MAX_NAMED = 10
"""Refused recipients that an SMTP reply names; it counts the others."""


def answers_to(
    envelope: Envelope, count: int, refusal: Reply | None, *, lmtp: bool
) -> tuple[Reply, ...]:
    """Return the answers to a message, in the order of its recipients.

    :param count: the recipients that were accepted, whatever handlers made of the list.
    :param refusal: the message's, for everybody; None: it was taken.
    """
    rejections = envelope.rejections
    if lmtp:
        taken = refusal or replies.queued(envelope.id)
        return tuple(
            Reply.from_error(rejections[index])
            if refusal is None and index in rejections
            else taken
            for index in range(count)
        )
    if refusal is not None:
        return (refusal,)
    if rejections:
        return (_one_for_all(envelope, rejections, count),)
    return (replies.queued(envelope.id),)


def _one_for_all(envelope: Envelope, rejections: dict[int, SMTPError], count: int) -> Reply:
    """SMTP has one answer: the one that loses nothing."""
    in_order = [rejections[index] for index in sorted(rejections)]
    for error in in_order:
        if error.code < 500:
            # The client tries again for everybody: who has the message already has it twice,
            # unless the delivery remembers.
            return Reply.from_error(error)
    first = in_order[0]
    if len(in_order) >= count:
        return Reply.from_error(first)
    # A handler may have shortened the list since it refused one of them.
    indices = [index for index in sorted(rejections) if index < len(envelope.recipients)]
    named = ", ".join(f"<{envelope.recipients[index]}>" for index in indices[:MAX_NAMED])
    more = len(in_order) - len(indices[:MAX_NAMED])
    refused = " and ".join(filter(None, (named, f"{more} more" if more else "")))
    return Reply(
        first.code,
        f"{first.message} (not delivered to {refused}; the others have it)",
        enhanced=first.enhanced,
        close=first.close,
    )
