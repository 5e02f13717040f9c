"""What the protocol core promises its caller, and what it asks of it."""

from __future__ import annotations

import pytest

from preforkmx.errors import LocalProtocolError
from preforkmx.protocol import replies
from preforkmx.protocol.core import COMMANDS_A_TURN, GONE, NEED_DATA, PAUSE, Core
from preforkmx.protocol.events import (
    Chunk,
    Closing,
    Credentials,
    Data,
    End,
    Hello,
    Mail,
    Quit,
    Rcpt,
    Reset,
    StartTLS,
    Verify,
)
from preforkmx.protocol.order import State
from preforkmx.protocol.parameters import MailParameters
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
NO = Reply(550, "No", enhanced=(5, 7, 1))


def core(*octets, **settings):
    """A core that was greeted, has accepted all commands of `octets`, and said so."""
    options = {"starttls": True, "auth": True, "allow_insecure_auth": True, **settings}
    core = Core(Settings(hostname="mx.example.com", **options))
    core.greet()
    for piece in octets:
        core.receive_data(piece)
        while (event := core.next_event()) is not NEED_DATA:
            if type(event) is not Chunk:
                core.accept()
    core.take_output()
    return core


def ask(core, octets):
    """Feed `octets`; return the next event."""
    core.receive_data(octets)
    return core.next_event()


EVENTS = [
    ((), b"HELO a.example\r\n", Hello("a.example", extended=False)),
    ((), b"EHLO a.example\r\n", Hello("a.example", extended=True)),
    ((HELLO,), MAIL, Mail("a@example.org", MailParameters())),
    ((HELLO, MAIL), RCPT, Rcpt("b@example.com")),
    ((HELLO, MAIL, RCPT), b"DATA\r\n", Data()),
    ((HELLO,), b"RSET\r\n", Reset()),
    ((HELLO,), b"VRFY some one\r\n", Verify("some one")),
    ((HELLO,), b"QUIT\r\n", Quit()),
    ((HELLO,), b"STARTTLS\r\n", StartTLS()),
    ((HELLO,), b"AUTH PLAIN AGEAYg==\r\n", Credentials("a", "b", "PLAIN")),
    ((HELLO,), b"AUTH LOGIN YQ==\r\nYg==\r\n", Credentials("a", "b", "LOGIN")),
]
every_event = pytest.mark.parametrize(("before", "octets", "event"), EVENTS)


@every_event
def test_a_command_becomes_one_event_and_waits_for_its_answer(before, octets, event):
    it = core(*before)
    assert ask(it, octets) == event
    with pytest.raises(LocalProtocolError):
        it.next_event()
    it.accept()
    assert it.next_event() != event


@every_event
def test_a_refused_command_leaves_the_state_and_writes_its_refusal(before, octets, event):
    it = core(*before)
    state = it.state
    assert ask(it, octets) == event
    it.take_output()
    it.refuse(NO)
    assert it.state is state
    enhanced = it.extended and type(event) is not Hello
    assert it.take_output() == NO.octets(extended=enhanced)
    assert it.next_event() is NEED_DATA
    assert it.patience.refusals == 1


@every_event
def test_an_answer_is_given_once(before, octets, event):
    for answer in (Core.accept, lambda it: it.refuse(NO)):
        it = core(*before)
        ask(it, octets)
        answer(it)
        with pytest.raises(LocalProtocolError):
            it.accept()
        with pytest.raises(LocalProtocolError):
            it.refuse(NO)


@every_event
def test_a_session_can_be_shut_while_a_command_waits(before, octets, event):
    it = core(*before)
    ask(it, octets + b"NOOP\r\n")
    it.take_output()
    it.shut(replies.SHUTTING_DOWN)
    enhanced = it.extended and type(event) is not Hello
    assert it.take_output() == replies.SHUTTING_DOWN.octets(extended=enhanced)
    assert it.next_event() == Closing(replies.SHUTTING_DOWN)
    assert it.next_event() == Closing(replies.SHUTTING_DOWN)
    assert it.closed


@every_event
def test_a_refusal_that_closes_ends_the_session(before, octets, event):
    it = core(*before)
    ask(it, octets + b"NOOP\r\n")
    it.take_output()
    last = Reply(421, "Enough", enhanced=(4, 3, 2))
    it.refuse(last)
    assert it.next_event() == Closing(last)
    assert it.take_output().count(b"\r\n") == 1


@pytest.mark.parametrize(
    "octets", [b"", b"NOOP", b"EHLO a.example\r\nMAIL FR", b"AUTH LOGIN\r\n", b"\r"]
)
def test_the_end_of_the_client_comes_after_what_it_sent(octets):
    it = core(HELLO)
    it.receive_data(octets)
    it.receive_eof()
    assert it.eof
    while it.next_event() is not GONE:
        it.accept()
    assert it.next_event() is GONE


def test_a_client_that_is_gone_before_the_greeting_is_gone():
    it = Core(Settings(hostname="mx.example.com"))
    assert it.next_event() is NEED_DATA
    it.receive_eof()
    assert it.next_event() is GONE


def test_nothing_is_read_before_the_greeting():
    it = Core(Settings(hostname="mx.example.com"))
    assert ask(it, b"EHLO a.example\r\n") is NEED_DATA
    assert it.take_output() == b""
    it.greet()
    assert it.next_event() == Hello("a.example", extended=True)


def test_the_greeting_comes_once():
    it = core()
    with pytest.raises(LocalProtocolError):
        it.greet()


def test_a_session_may_end_instead_of_its_greeting():
    it = Core(Settings(hostname="mx.example.com"))
    it.shut(NO)
    assert it.take_output() == b"550 No\r\n"
    assert it.next_event() == Closing(NO)
    with pytest.raises(LocalProtocolError):
        it.greet()


def test_shut_ends_a_message_too():
    it = core(HELLO, MAIL, RCPT, b"DATA\r\n")
    assert ask(it, b"half a message") == Chunk(b"half a message")
    it.shut(replies.SHUTTING_DOWN)
    it.receive_data(b"\r\n.\r\n")
    assert it.next_event() == Closing(replies.SHUTTING_DOWN)
    assert not it.in_transaction


def test_a_message_comes_in_chunks_then_its_end_and_waits_for_finish():
    it = core(HELLO, MAIL, RCPT, b"DATA\r\n")
    assert ask(it, b"one\r\ntwo\r\n.\r\nNOOP\r\n") == Chunk(b"one\r\ntwo\r\n")
    assert it.next_event() == End(10, None)
    for answer in (it.next_event, it.accept, lambda: it.refuse(NO)):
        with pytest.raises(LocalProtocolError):
            answer()
    it.finish(replies.queued("1"))
    with pytest.raises(LocalProtocolError):
        it.finish(replies.queued("1"))
    assert it.next_event() is NEED_DATA
    assert it.take_output() == b"250 2.0.0 Ok: queued as 1\r\n250 2.0.0 Ok\r\n"


def test_a_fault_comes_with_the_end_and_after_no_further_chunk():
    it = core(HELLO, MAIL, RCPT, b"DATA\r\n")
    assert ask(it, b"bad\nline") is NEED_DATA
    assert ask(it, b"\r\nmore\r\n.\r\n") == End(16, replies.BARE_NEWLINE)


def test_finish_comes_after_the_end():
    it = core(HELLO, MAIL, RCPT, b"DATA\r\n")
    with pytest.raises(LocalProtocolError):
        it.finish(replies.queued("1"))


def test_a_transaction_lasts_from_mail_to_the_reply_after_the_message():
    it = core(HELLO)
    assert not it.in_transaction
    for octets in (MAIL, RCPT, b"DATA\r\n"):
        ask(it, octets)
        it.accept()
        assert it.in_transaction
    ask(it, b".\r\n")
    assert it.in_transaction
    it.finish(NO)
    assert not it.in_transaction


def test_the_output_is_one_piece_and_is_given_once():
    it = core(HELLO)
    assert ask(it, b"NOOP\r\nHELP\r\nNOOP\r\n") is NEED_DATA
    assert it.take_output().count(b"\r\n") == 4
    assert it.take_output() == b""


@pytest.mark.parametrize("command", [b"NOOP\r\n", b"DATA\r\n", b"RCPT\r\n", b"AUTH PLAIN !\r\n"])
def test_a_flood_of_commands_that_ask_nobody_is_answered_in_turns(command):
    it = core(HELLO, errors=1000)
    it.receive_data(command * (2 * COMMANDS_A_TURN + 1))
    replies_so_far = 0
    for _ in range(2):
        assert it.next_event() is PAUSE
        replies_so_far += it.take_output().count(b"\r\n")
    assert it.next_event() is NEED_DATA
    assert replies_so_far + it.take_output().count(b"\r\n") == 2 * COMMANDS_A_TURN + 1


def test_an_answer_may_replace_the_usual_reply():
    it = core(HELLO)
    ask(it, b"VRFY b\r\n")
    it.accept(replies.verified("b@example.com"))
    assert it.take_output() == b"250 2.1.5 <b@example.com>\r\n"


def test_tls_begins_only_after_starttls():
    it = core(HELLO)
    with pytest.raises(LocalProtocolError):
        it.tls_started()


def test_commands_in_the_flight_of_starttls_end_the_session():
    it = core(HELLO)
    assert ask(it, b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\n") == StartTLS()
    it.accept()
    assert it.next_event() == Closing(replies.TLS_INJECTION)
    assert it.buffered == 0
    with pytest.raises(LocalProtocolError):
        it.tls_started()


def test_octets_between_starttls_and_the_handshake_are_never_read():
    it = core(HELLO)
    ask(it, b"STARTTLS\r\n")
    it.accept()
    it.take_output()
    assert ask(it, b"EHLO evil.example\r\n") is NEED_DATA
    it.tls_started()
    assert it.next_event() is NEED_DATA
    assert it.take_output() == b""
    assert ask(it, b"EHLO good.example\r\n") == Hello("good.example", extended=True)


def test_tls_forgets_what_was_learnt_in_plain_text():
    it = core(HELLO, b"AUTH PLAIN AGEAYg==\r\n", b"STARTTLS\r\n")
    assert it.authenticated
    it.tls_started()
    assert (it.tls, it.extended, it.authenticated) == (True, False, False)
    assert it.state is State.GREETED


@pytest.mark.parametrize("starttls", [True, False])
@pytest.mark.parametrize("auth", [True, False])
@pytest.mark.parametrize("insecure", [True, False])
@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("xclient", [True, False])
@pytest.mark.parametrize("options", [True, False])
def test_ehlo_lists_what_holds_at_this_point(starttls, auth, insecure, tls, xclient, options):
    settings = Settings(
        hostname="mx.example.com",
        message_size=5,
        starttls=starttls,
        auth=auth,
        allow_insecure_auth=insecure,
        chunking=options,
        smtputf8=options,
        dsn=options,
        requiretls=options,
        recipients=1000 if options else 1_000_000,
        transactions=7 if options else 0,
    )
    it = Core(settings, tls=tls, may_forward=xclient)
    it.greet()
    it.take_output()
    ask(it, HELLO)
    it.accept()
    first, *keywords = it.take_output().decode().splitlines()
    expected = {"PIPELINING", "SIZE 5", "8BITMIME", "ENHANCEDSTATUSCODES"}
    if starttls and not tls:
        expected.add("STARTTLS")
    if auth and (tls or insecure):
        expected.add("AUTH PLAIN LOGIN")
    if options:
        expected |= {"CHUNKING", "BINARYMIME", "SMTPUTF8", "DSN"}
        # RFC 9422 section 4 has no room for more than six digits.
        expected.add("LIMITS RCPTMAX=1000 MAILMAX=7")
        if tls:
            expected.add("REQUIRETLS")
    if xclient:
        expected.add("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
    assert first == "250-mx.example.com"
    assert len(keywords) == len(expected)
    assert {keyword[4:] for keyword in keywords} == expected


@pytest.mark.parametrize("last", [b"Yg==\r\n", b"*\r\n", b"!\r\n", b"A" * 13000 + b"\r\n"])
def test_an_exchange_has_a_state_of_its_own(last):
    it = core(HELLO)
    assert ask(it, b"AUTH LOGIN\r\n") is NEED_DATA
    assert it.state is State.AUTH
    assert ask(it, b"YQ==\r\n") is NEED_DATA
    assert it.state is State.AUTH
    it.receive_data(last)
    if it.next_event() is not NEED_DATA:
        it.accept()
    assert it.state is State.READY


def test_a_hook_that_cannot_tell_now_is_no_failed_authentication():
    it = core(HELLO, auth_failures=1)
    later = Reply(454, "Temporary authentication failure", enhanced=(4, 7, 0))
    for _ in range(5):
        ask(it, b"AUTH PLAIN AGEAYg==\r\n")
        it.refuse(later)
        assert it.take_output() == b"454 4.7.0 Temporary authentication failure\r\n"
    ask(it, b"AUTH PLAIN AGEAYg==\r\n")
    it.refuse(replies.AUTH_FAILED)
    assert it.next_event() == Closing(replies.TOO_MANY_AUTH_FAILURES)


@pytest.mark.parametrize(("code", "counts"), [(400, False), (499, False), (500, True), (599, True)])
def test_a_permanent_refusal_is_an_error_and_a_failed_authentication(code, counts):
    refusal = Reply(code, "No", enhanced=(code // 100, 0, 0))
    it = core(HELLO, errors=0)
    ask(it, MAIL)
    it.refuse(refusal)
    assert it.closed == counts
    it = core(HELLO, auth_failures=1)
    ask(it, b"AUTH PLAIN AGEAYg==\r\n")
    it.refuse(refusal)
    assert it.closed == counts


def test_refusals_of_every_kind_are_counted():
    it = core(HELLO)
    for count, octets in enumerate(
        (b"BOGUS\r\n", b"DATA\r\n", b"MAIL\r\n", b"x" * 2050 + b"\r\n", b"AUTH PLAIN !\r\n"),
        start=1,
    ):
        assert ask(it, octets) is NEED_DATA
        assert it.patience.refusals == count


def test_what_waits_is_told_to_the_caller():
    it = core(HELLO)
    ask(it, MAIL + RCPT)
    assert it.buffered == len(RCPT)
    it.accept()
    it.next_event()
    assert it.buffered == 0


@pytest.mark.parametrize("state", [(), (HELLO,), (HELLO, MAIL), (HELLO, MAIL, RCPT)])
def test_a_closed_session_reads_nothing(state):
    it = core(*state)
    it.shut(replies.TIMED_OUT)
    it.take_output()
    it.receive_data(b"NOOP\r\nEHLO a.example\r\n")
    assert it.next_event() == Closing(replies.TIMED_OUT)
    assert it.take_output() == b""
