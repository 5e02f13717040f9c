"""What a message is answered with."""

from __future__ import annotations

import pytest

from preforkmx import SMTPError
from preforkmx.body import whole
from preforkmx.model import Envelope
from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply
from preforkmx.session.answers import MAX_NAMED, answers_to

FULL = SMTPError(452, "Mailbox full", enhanced=(4, 2, 2))
UNKNOWN = SMTPError(550, "No such user", enhanced=(5, 1, 1))
SPAM = Reply(554, "Spam", enhanced=(5, 7, 1))


def envelope(count=3, **rejections):
    made = Envelope(
        "a@example.org", whole(b""), [f"r{i}@example.com" for i in range(count)], id="s.1"
    )
    for name, error in rejections.items():
        made.reject_recipient(int(name[1:]), error)
    return made


def texts(made, *, count=3, refusal=None, lmtp=False):
    return [reply.text for reply in answers_to(made, count, refusal, lmtp=lmtp)]


QUEUED = "250 2.0.0 Ok: queued as s.1"


def test_smtp_has_one_answer_whatever_the_number_of_recipients():
    assert texts(envelope()) == [QUEUED]
    assert texts(envelope(), refusal=SPAM) == ["554 5.7.1 Spam"]


def test_lmtp_answers_each_recipient_in_order():
    assert texts(envelope(r1=UNKNOWN), lmtp=True) == [QUEUED, "550 5.1.1 No such user", QUEUED]
    assert texts(envelope(), refusal=SPAM, lmtp=True) == ["554 5.7.1 Spam"] * 3


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_refused_message_is_refused_for_everybody(lmtp):
    made = envelope(r0=FULL, r2=UNKNOWN)
    assert set(texts(made, refusal=SPAM, lmtp=lmtp)) == {"554 5.7.1 Spam"}


def test_lmtp_has_as_many_answers_as_recipients_were_accepted():
    made = envelope(3, r2=UNKNOWN)
    made.recipients.append("alias@example.com")
    made.reject_recipient(3, FULL)
    assert texts(made, lmtp=True) == [QUEUED, QUEUED, "550 5.1.1 No such user"]
    made.recipients.clear()
    assert len(texts(made, lmtp=True)) == 3


def test_in_smtp_a_temporary_rejection_wins():
    assert texts(envelope(r0=UNKNOWN, r2=FULL)) == ["452 4.2.2 Mailbox full"]


def test_in_smtp_the_first_rejection_is_the_first_recipient_s_and_not_the_first_made():
    first, second = SMTPError(451, "one"), SMTPError(452, "two")
    assert texts(envelope(r2=second, r1=first)) == ["451 4.0.0 one"]


def test_in_smtp_a_rejection_for_some_names_them():
    assert texts(envelope(r1=UNKNOWN)) == [
        "550 5.1.1 No such user (not delivered to <r1@example.com>; the others have it)"
    ]


def test_in_smtp_a_rejection_for_all_needs_no_names():
    made = envelope(r0=UNKNOWN, r1=UNKNOWN, r2=SMTPError(554, "Other"))
    assert texts(made) == ["550 5.1.1 No such user"]


def test_in_smtp_many_refused_recipients_are_counted():
    count = MAX_NAMED + 5
    made = envelope(count, **{f"r{i}": UNKNOWN for i in range(1, count)})
    (text,) = texts(made, count=count)
    assert text.count("@") == MAX_NAMED
    assert "<r10@example.com> and 4 more; the others have it" in text
    (reply,) = answers_to(made, count, None, lmtp=False)
    assert all(len(line) <= 510 for line in reply.octets(extended=True).split(b"\r\n"))


def test_a_handler_may_shorten_the_list_after_it_refused_a_recipient():
    made = envelope(r0=UNKNOWN, r2=UNKNOWN)
    del made.recipients[1:]
    (text,) = texts(made)
    assert "(not delivered to <r0@example.com> and 1 more; the others have it)" in text
    made.recipients.clear()
    assert "(not delivered to 2 more;" in texts(made)[0]


def test_a_rejection_that_closes_closes():
    (reply,) = answers_to(envelope(r0=SMTPError(421, "Bye")), 3, None, lmtp=False)
    assert reply.close
    (reply,) = answers_to(envelope(r0=SMTPError(550, "Bye", close=True)), 3, None, lmtp=False)
    assert reply.close


@pytest.mark.parametrize("index", [3, -1, 100])
def test_a_recipient_that_is_none_cannot_be_rejected(index):
    with pytest.raises(IndexError):
        envelope().reject_recipient(index, UNKNOWN)


def test_the_last_rejection_of_a_recipient_holds():
    made = envelope(1, r0=FULL)
    made.reject_recipient(0, UNKNOWN)
    assert texts(made, count=1, lmtp=True) == ["550 5.1.1 No such user"]


def test_a_refusal_of_the_message_is_the_reply_itself():
    assert (
        answers_to(envelope(), 3, replies.NOT_DELIVERED, lmtp=True) == (replies.NOT_DELIVERED,) * 3
    )
