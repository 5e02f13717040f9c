"""Handling a message: the handlers run while it arrives, and it gets its one answer."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from preforkmx.errors import ConnectionLost, MessageAborted, SMTPError
from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply
from preforkmx.session.answers import answers_to
from preforkmx.session.incoming import IncomingMessage, TooSlow
from preforkmx.session.record import verdict

if TYPE_CHECKING:
    from preforkmx.model import Envelope
    from preforkmx.session.session import Session


async def handle_message(session: Session, envelope: Envelope) -> None:
    """Run the handlers on the message that begins now, and answer it.

    What is wrong with its octets wins over whatever the handlers said.
    """
    service = session.service
    message = IncomingMessage(session)
    envelope.data = message
    message.tap = envelope.tap
    session.by = None
    service.in_data += 1
    try:
        reply = await _run_handlers(session, envelope)
        if message.end is None and message.aborted is None:
            if reply is not None:
                session.core.fail_chunks(reply)
            await message.drain()
    finally:
        service.in_data -= 1
    message.close()
    end = message.end
    if end is None:
        service.counters.messages_aborted += 1
        _give_up(session, message.aborted, reply)
        return
    service.counters.octets += end.size
    session.info.octets += end.size
    # A chunk behind the one at which a handler failed is refused with what the handler said.
    if end.fault is not None and end.fault is not reply:
        reply, session.by = end.fault.closing() if reply and reply.close else end.fault, None
    if session.lmtp or envelope.rejections:
        answers = answers_to(envelope, session.core.recipients, reply, lmtp=session.lmtp)
        # The best of them tells what became of the message.
        reply = min(answers, key=lambda answer: answer.code)
    else:
        reply = reply or replies.queued(envelope.id)
        answers = (reply,)
    if reply.code < 400:
        service.counters.messages += 1
        session.info.messages += 1
    else:
        service.counters.messages_refused += 1
    session.core.finish(*answers)
    session.end_transaction(
        verdict(reply),
        reply=reply,
        by=session.by,
        size=end.size,
        rejected=len(envelope.rejections) or None,
    )
    if service.chain.reset:
        session.flush()
        failure = await session.ask(service.chain.reset)
        if failure is not None and not session.core.closed:
            session.core.shut(replies.INTERNAL_ERROR)


async def _run_handlers(session: Session, envelope: Envelope) -> Reply | None:
    """Run the handlers: None, or the reply that refuses the message."""
    service = session.service
    session.expired = False
    session.deadline = session.now() + service.delivery_timeout
    name = ""
    try:
        for name, handler in service.chain.handler:  # noqa: B007 - named in the log below
            context = await handler(session.context, session.peer, envelope)
            if context is not None:
                session.take_context(context)
    except SMTPError as error:
        session.by = name
        return Reply.from_error(error)
    except MessageAborted:
        # The message's own fault is found there; a handler that gave up a message that was
        # good gets it offered again.
        session.by = name
        return replies.NOT_DELIVERED
    except BaseException as error:
        if not session.timed_out(error):
            return session.crashed(name, error)
        session.by = name
        service.logger.error("delivery took too long", extra={"session": session.id, "by": name})
        return replies.DELIVERY_TIMEOUT
    finally:
        session.deadline = inf
    return None


def _give_up(session: Session, reason: MessageAborted | None, reply: Reply | None) -> None:
    """The message will never be complete: no 250, and the session ends.

    Not where a command came between two chunks of it: that is answered next.

    :param reply: what the handlers said.
    """
    if session.held is not None:
        session.core.give_up_chunks()
        session.end_transaction("aborted", error=str(reason))
        session.reset_is_due = True
        if reply is not None and reply.close and not session.core.closed:
            # A handler that crashed ends its session.
            session.held = None
            session.core.shut(reply)
        return
    if session.service.aborting and not isinstance(reason, ConnectionLost):
        session.ended = "shutdown"
        session.core.shut(replies.SHUTTING_DOWN)
        return
    if session.error is None:
        session.error = reason
    if isinstance(reason, ConnectionLost):
        session.ended = "lost"
        session.core.shut(replies.INTERNAL_ERROR)
    else:
        session.service.counters.timeouts += 1
        session.ended = "timeout"
        slow = isinstance(reason, TooSlow)
        session.core.shut(replies.TOO_SLOW if slow else replies.TIMED_OUT)
