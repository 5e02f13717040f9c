"""What a reply looks like on the wire: RFC 5321 section 4.2, RFC 2034."""

from __future__ import annotations

import re

import pytest

from preforkmx.errors import SMTPError
from preforkmx.protocol import replies
from preforkmx.protocol.replies import LINE_LIMIT, Reply

CATALOGUE = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
CONTROLS = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029"]

every_reply = pytest.mark.parametrize("name", CATALOGUE)


def test_a_reply_is_its_code_a_space_its_text_and_crlf():
    assert Reply(250, "Ok").octets(extended=False) == b"250 Ok\r\n"


def test_the_enhanced_code_stands_before_the_text_for_a_client_that_sent_ehlo():
    reply = Reply(550, "No", enhanced=(5, 1, 1))
    assert reply.octets(extended=True) == b"550 5.1.1 No\r\n"
    assert reply.octets(extended=False) == b"550 No\r\n"


def test_all_lines_but_the_last_have_a_hyphen_and_all_have_the_enhanced_code():
    reply = Reply(214, "one", "two", "three", enhanced=(2, 0, 0))
    assert reply.octets(extended=True) == b"214-2.0.0 one\r\n214-2.0.0 two\r\n214 2.0.0 three\r\n"
    assert reply.octets(extended=False) == b"214-one\r\n214-two\r\n214 three\r\n"


def test_a_reply_without_text_still_has_its_space():
    assert Reply(334, "").octets(extended=True) == b"334 \r\n"
    assert Reply(334).octets(extended=True) == b"334 \r\n"


def test_an_empty_line_among_others_stays():
    assert Reply(250, "a", "", "b").octets(extended=False) == b"250-a\r\n250-\r\n250 b\r\n"


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("lines", [1, 2])
def test_every_control_character_becomes_a_space(control, lines):
    octets = Reply(550, *[f"a{control}b"] * lines).octets(extended=False)
    assert octets.splitlines() == [b"550-a b", b"550 a b"][-lines:]


def test_a_line_break_in_a_hooks_text_makes_no_second_reply():
    error = SMTPError(550, "no\r\n250 Ok\r\n", enhanced=(5, 7, 1))
    assert Reply.from_error(error).octets(extended=True) == b"550 5.7.1 no  250 Ok  \r\n"


@pytest.mark.parametrize("text", ["é", "日", "\U0001f600", "\ud800", "\xa0"])
def test_what_is_not_ascii_becomes_a_question_mark(text):
    assert Reply(550, f"a{text}b").octets(extended=False) == b"550 a?b\r\n"
    assert Reply(550, f"a{text}b", "x").octets(extended=False) == b"550-a?b\r\n550 x\r\n"


@pytest.mark.parametrize("enhanced", [None, (5, 7, 1), (5, 999, 999)])
@pytest.mark.parametrize("length", [0, 1, 499, 500, 501, 505, 506, 507, 1000, 1012, 2000])
@pytest.mark.parametrize("lines", [1, 3])
def test_no_line_exceeds_512_octets_and_no_text_is_lost(enhanced, length, lines):
    text = "".join(chr(33 + i % 90) for i in range(length))
    octets = Reply(550, *[text] * lines, enhanced=enhanced).octets(extended=True)
    *first, last, empty = octets.split(b"\r\n")
    assert empty == b""
    assert all(len(line) + 2 <= LINE_LIMIT for line in (*first, last))
    prefix = b".".join(b"%d" % n for n in enhanced) + b" " if enhanced else b""
    assert all(line.startswith(b"550-" + prefix) for line in first)
    assert last.startswith(b"550 " + prefix)
    got = b"".join(line[4 + len(prefix) :] for line in (*first, last))
    assert got.decode() == text * lines


def test_a_line_of_512_octets_is_not_continued():
    assert Reply(250, "x" * 506).octets(extended=False) == b"250 " + b"x" * 506 + b"\r\n"


def test_a_421_always_closes():
    assert Reply(421, "Bye").close
    assert Reply.from_error(SMTPError(421, "Bye")).close
    assert not Reply(450, "Later").close


def test_a_hooks_error_keeps_its_code_and_its_wish_to_close():
    reply = Reply.from_error(SMTPError(554, "Go", enhanced=(5, 7, 1), close=True))
    assert reply == Reply(554, "Go", enhanced=(5, 7, 1), close=True)


@pytest.mark.parametrize(("code", "enhanced"), [(450, (4, 0, 0)), (550, (5, 0, 0))])
def test_an_error_without_an_enhanced_code_takes_that_of_its_class(code, enhanced):
    assert Reply.from_error(SMTPError(code, "No")).enhanced == enhanced


def test_replies_are_equal_when_all_of_them_is():
    reply = Reply(550, "No", enhanced=(5, 1, 1))
    assert reply == Reply(550, "No", enhanced=(5, 1, 1))
    assert hash(reply) == hash(Reply(550, "No", enhanced=(5, 1, 1)))
    for other in (
        Reply(551, "No", enhanced=(5, 1, 1)),
        Reply(550, "Yes", enhanced=(5, 1, 1)),
        Reply(550, "No", enhanced=(5, 1, 2)),
        Reply(550, "No", enhanced=(5, 1, 1), close=True),
        "550 5.1.1 No",
    ):
        assert reply != other


def test_the_log_has_the_reply_on_one_line():
    assert Reply(250, "a", "b").text == "250 a b"
    assert Reply(550, "No\r\n", enhanced=(5, 1, 1)).text == "550 5.1.1 No  "


@every_reply
def test_the_catalogue_gives_every_reply_an_enhanced_code_of_its_class(name):
    reply = CATALOGUE[name]
    if reply.code in (334, 354):
        assert reply.enhanced is None
    else:
        assert reply.enhanced is not None
        assert reply.enhanced[0] == reply.code // 100


@every_reply
def test_the_catalogue_is_printable_ascii_and_fits_its_lines(name):
    octets = CATALOGUE[name].octets(extended=True)
    assert re.fullmatch(rb"(?:\d{3}-[ -~]*\r\n)*\d{3} [ -~]*\r\n", octets)
    assert octets.count(b"\r\n") == len(CATALOGUE[name].lines)


@every_reply
def test_only_a_421_and_the_last_replies_close(name):
    closing = {
        "BYE",
        "LINE_ENDLESS",
        "BARE_NEWLINE_IN_COMMAND",
        "TOO_LARGE_TO_READ",
        "BARE_NEWLINE",
        "TLS_INJECTION",
        "HOOK_TIMEOUT",
        "BDAT_SYNTAX",
        "SENT_TOO_EARLY",
    }
    reply = CATALOGUE[name]
    assert reply.close == (reply.code == 421 or name in closing)


def test_the_greeting_begins_with_the_host_name_and_has_no_enhanced_code():
    greeting = replies.greeting("mx.example.com").octets(extended=True)
    assert greeting == b"220 mx.example.com ESMTP\r\n"


def test_ehlo_has_a_keyword_a_line_and_no_enhanced_code():
    hello = replies.hello("mx.example.com", "PIPELINING", "SIZE 10")
    expected = b"250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 10\r\n"
    assert hello.octets(extended=True) == expected


def test_the_reply_to_a_message_names_its_id():
    assert replies.queued("5f.2").octets(extended=True) == b"250 2.0.0 Ok: queued as 5f.2\r\n"


def test_a_verified_mailbox_stands_in_angle_brackets():
    assert replies.verified("a@example.com").octets(extended=False) == b"250 <a@example.com>\r\n"


def test_a_reply_can_be_made_the_last_one():
    assert Reply(552, "Big", "ger", enhanced=(5, 3, 4)).closing() == Reply(
        552, "Big", "ger", enhanced=(5, 3, 4), close=True
    )


@pytest.mark.parametrize(
    ("name", "code", "enhanced"),
    [
        ("SHUTTING_DOWN", 421, (4, 3, 2)),
        ("TIMED_OUT", 421, (4, 4, 2)),
        ("SESSION_TOO_LONG", 421, (4, 4, 2)),
        ("TOO_MANY_SESSIONS", 421, (4, 3, 2)),
        ("INTERNAL_ERROR", 421, (4, 3, 0)),
        ("NOT_DELIVERED", 451, (4, 3, 0)),
        ("DELIVERY_TIMEOUT", 451, (4, 3, 0)),
        ("HOOK_TIMEOUT", 451, (4, 3, 0)),
        ("TOO_MANY_RECIPIENTS", 452, (4, 5, 3)),
        ("TOO_MANY_ERRORS", 421, (4, 7, 0)),
        ("TOO_MANY_AUTH_FAILURES", 421, (4, 7, 0)),
    ],
)
def test_what_may_be_different_next_time_is_no_permanent_error(name, code, enhanced):
    assert (CATALOGUE[name].code, CATALOGUE[name].enhanced) == (code, enhanced)
