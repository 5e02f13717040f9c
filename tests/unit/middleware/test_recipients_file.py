"""The file of recipients."""

from __future__ import annotations

import os

import pytest

from preforkmx.errors import ConfigError
from preforkmx.middleware.addresses import Recipient
from preforkmx.middleware.recipients_file import parse_line, read_recipients
from preforkmx.middleware.recipients_map import MOST_TARGETS
from preforkmx.middleware.recipients_source import Found


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "recipients"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def found(known, address, separator="+"):
    return known.find(Recipient.of(address, separator))


def problems_of(path):
    with pytest.raises(ConfigError) as caught:
        read_recipients(path)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


def test_each_line_is_an_address_an_alias_or_a_domain(write):
    known = read_recipients(
        write(
            "# who is here\n"
            "\n"
            "joe@example.com\r\n"
            "  ann@example.com   # on leave\n"
            "info@example.com: joe@example.com, ann@example.com\n"
            "@example.net\n"
            "@example.org : ann@example.com\n"
        )
    )
    assert len(known) == 5
    assert found(known, "joe@example.com") == Found()
    assert found(known, "INFO@example.com") == Found(("joe@example.com", "ann@example.com"))
    assert found(known, "anybody@example.net") == Found()
    assert found(known, "anybody@example.org") == Found(("ann@example.com",))
    assert found(known, "anybody@example.com") is None
    assert found(known, "joe@mail.example.com") is None


def test_the_address_comes_before_its_base_and_that_before_its_domain(write):
    known = read_recipients(
        write(
            "joe+bills@example.com: ann@example.com\njoe@example.com\n@example.com: any@example.com\n"
        )
    )
    assert found(known, "joe+bills@example.com") == Found(("ann@example.com",))
    assert found(known, "joe+other@example.com") == Found(extended=True)
    assert found(known, "joe+bills@example.com", separator="") == Found(("ann@example.com",))
    assert found(known, "joe+other@example.com", separator="") == Found(("any@example.com",))
    assert found(known, "jo@example.com") == Found(("any@example.com",))


def test_an_alias_of_an_alias_is_followed_and_nobody_is_named_twice(write):
    known = read_recipients(
        write(
            "all@example.com: staff@example.com, Joe@Example.com\n"
            "staff@example.com: joe@example.com, ann+work@example.com\n"
            "ann@example.com: ann@example.net\n"
            "joe@example.com\n"
        )
    )
    # ann+work is there because ann is, and so is followed too.
    assert found(known, "all@example.com") == Found(("joe@example.com", "ann@example.net"))


def test_an_alias_that_names_itself_is_a_mailbox_with_copies(write):
    known = read_recipients(write("joe@example.com: joe@example.com, archive@example.com\n"))
    assert found(known, "joe@example.com") == Found(("joe@example.com", "archive@example.com"))


def test_a_target_never_goes_to_the_catch_all(write):
    known = read_recipients(write("@example.com: any@example.com\na@example.com: b@example.com\n"))
    assert found(known, "any@example.com") == Found(("any@example.com",))
    assert found(known, "a@example.com") == Found(("b@example.com",))


def test_names_are_compared_without_case_quotes_and_spelling_of_the_domain(write):
    known = read_recipients(
        write(
            '"J Doe"@Bücher.example\ngrå@example.com\n"a:b, c # d"@example.com: joe@bücher.example\n'
        )
    )
    assert found(known, '"j doe"@xn--bcher-kva.example') == Found()
    assert found(known, "grå@EXAMPLE.com") == Found()
    # A target's domain is in ASCII: mail without SMTPUTF8 goes there too.
    assert found(known, '"A:b, c # d"@example.com') == Found(("joe@xn--bcher-kva.example",))


def test_everything_that_is_wrong_is_told_with_its_line(write):
    path = write(
        b"joe\n"
        b"joe@example.com\n"
        b"joe@example.com ann@example.com\n"
        b"joe@example.com:\n"
        b"a@example.com: b@example.com,\n"
        b"a@example.com: , b@example.com\n"
        b"a@example.com: b@example.com c@example.com\n"
        b"a@example.com: @example.net\n"
        b"a@example.com: gr\xc3\xa5@example.com\n"
        b": a@example.com\n"
        b"JOE@example.com\n"
        b'""@example.com\n'
        b"\xff@example.com\n"
        b"a@exam ple.com\n"
        b"a@-example.com#x\n" + b"x" * 256 + b"@example.com\n"
        b"@@example.com\n"
        b"<joe@example.com>\n"
        b"@[300.0.0.1]\n"
    )
    assert problems_of(path) == [
        ":1: has 'joe', which is no address",
        ":3: has 'ann@example.com' where \":\" should be",
        ':4: has no address behind its ":"',
        ':5: has no address behind its last ","',
        ":6: has ',' where an address should be",
        ":7: has 'c@example.com' where \",\" should be",
        ":8: has '@example.net' where mail goes: it takes an address",
        ":9: sends mail to 'gr\\xe5@example.com', whose local part is not ASCII",
        ':10: begins with ":", and not with an address',
        ":11: joe@example.com stands in line 2 already",
        ":12: has an empty local part: '\"\"@example.com'",
        ":13: is not UTF-8",
        ":14: has 'ple.com', which is no address",
        ":15: has 'a@-example.com#x', which is no address",
        f":16: has '{'x' * 80}\\u2026', which is too long",
        ":17: has '@@example.com', which is no address",
        ":18: has '<joe@example.com>', which is no address",
        ":19: has '@[300.0.0.1]', which is no address",
    ]


def test_aliases_that_go_in_circles_are_refused_each_circle_once(write):
    path = write(
        "a@x.example: b@x.example\n"
        "b@x.example: c@x.example, d@x.example\n"
        "c@x.example: A+x@X.example\n"
        "d@x.example: e@x.example\n"
        "e@x.example: d@x.example\n"
    )
    assert problems_of(path) == [
        (
            ":3: c@x.example goes in a circle: "
            "a@x.example -> b@x.example -> c@x.example -> a@x.example"
        ),
        ":5: e@x.example goes in a circle: d@x.example -> e@x.example -> d@x.example",
    ]


def test_a_chain_may_be_as_long_as_the_file(write):
    chain = "".join(f"a{n}@x.example: a{n + 1}@x.example\n" for n in range(3000))
    known = read_recipients(write(chain))
    assert found(known, "a0@x.example") == Found(("a3000@x.example",))


def test_a_long_circle_is_named_in_short(write):
    circle = "".join(f"a{n}@x.example: a{(n + 1) % 50}@x.example\n" for n in range(50))
    (problem,) = problems_of(write(circle))
    assert problem.endswith("a3@x.example -> a4@x.example -> … -> a0@x.example")


def test_an_alias_for_too_many_is_refused_on_one_line_and_over_several(write):
    names = [f"n{number}@x.example" for number in range(MOST_TARGETS + 1)]
    assert problems_of(write(f"a@x.example: {', '.join(names)}\n")) == [
        f":1: has more than {MOST_TARGETS} addresses"
    ]
    halves = f"b@x.example: {', '.join(names[:600])}\nc@x.example: {', '.join(names[600:])}\n"
    assert problems_of(write(f"a@x.example: b@x.example, c@x.example\n{halves}")) == [
        f":1: a@x.example stands for more than {MOST_TARGETS} addresses"
    ]


def test_a_file_of_something_else_is_complained_of_a_hundred_times(write):
    problems = problems_of(write("nothing of this\n" * 500))
    assert len(problems) == 101
    assert problems[-1] == ": and 400 more"


def test_a_file_without_a_recipient_is_refused(write):
    assert problems_of(write("# nobody\n")) == [": names no recipient"]


def test_what_is_no_file_is_refused_at_once(tmp_path):
    assert problems_of(tmp_path / "none") == [": cannot be read: No such file or directory"]
    os.mkfifo(tmp_path / "fifo")
    assert problems_of(tmp_path / "fifo") == [": is no regular file"]


def test_a_line_says_nothing_where_it_is_empty_or_a_comment():
    assert [parse_line(line) for line in ("", " \t", "#", "  # joe@example.com", "\r")] == [
        None
    ] * 5
