"""docs/reference/wire.md says what the code does, all of it and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.order import TABLE, State, Verb
from preforkmx.protocol.replies import Reply

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/wire.md"

_LINK = re.compile(r"\[[^\]]+\]\(([^)]+)\)")


@pytest.fixture(autouse=True)
def _scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


def named():
    return {name for name, value in vars(replies).items() if isinstance(value, Reply)}


def anchors(text):
    """Headings as GitHub makes anchors of them, and those that are written out."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
    } | set(re.findall(r'<a id="([^"]+)">', text))


def test_the_page_is_current():
    from reference.wire import wire

    assert PAGE.read_text("utf-8") == wire(), "run: scripts/docs"


def test_every_reply_of_the_catalogue_is_on_the_page_and_says_when_it_is_sent():
    from reference.catalogue import by_name

    rows = by_name()
    made = {"greeting", "hello", "queued", "chunk_taken", "verified"}
    assert named() <= set(rows)
    assert made <= set(rows)
    assert [name for name, row in rows.items() if not row.when.endswith(".")] == []
    # A sentence that was copied is about another reply.
    assert [when for when, n in Counter(row.when for row in rows.values()).items() if n > 1] == []


def test_every_reply_of_the_catalogue_can_leave_the_server():
    used = Counter(
        word
        for path in (ROOT / "preforkmx").rglob("*.py")
        for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text("utf-8"))
    )
    assert [name for name in named() if used[name] < 2] == []


def test_only_the_greetings_and_the_continuations_have_no_enhanced_code():
    from reference.catalogue import by_name

    without = {name for name, row in by_name().items() if row.reply.enhanced is None}
    assert without == {"greeting", "hello"} | {
        name for name in named() if getattr(replies, name).code in (334, 354)
    }


def test_every_keyword_of_ehlo_says_when_it_is_offered():
    from reference.wire import offered
    from reference.words import KEYWORDS

    assert list(offered()) == list(KEYWORDS)


def test_every_smtperror_of_the_package_says_when_it_is_sent():
    from reference.refusals import refusals
    from reference.wire import written
    from reference.words import REFUSALS

    assert {(refusal.module, written(refusal)) for refusal in refusals()} == set(REFUSALS)


def test_every_module_that_makes_replies_of_errors_says_how():
    from reference.refusals import makers
    from reference.words import MAKERS

    assert makers() == set(MAKERS)


def test_an_smtperror_with_a_code_that_cannot_be_read_is_an_error(monkeypatch):
    import ast

    from reference import refusals

    def raising(source):
        monkeypatch.setattr(refusals, "modules", lambda: [("x.py", ast.parse(source))])
        return refusals.refusals()

    assert raising("raise SMTPError(550, f'no {why(1, x.reason)} here', close=True)") == [
        refusals.Refusal("x.py", 550, (5, 0, 0), "no {reason} here", close=True)
    ]
    assert raising("raise errors.SMTPError(421, 'go', enhanced=(4, 7, 1))") == [
        refusals.Refusal("x.py", 421, (4, 7, 1), "go", close=True)
    ]
    assert raising("a = replies.OK\nraise SMTPError(a.code, a.text)") == []
    assert refusals.repeated() == [("x.py", "OK")]
    with pytest.raises(LookupError, match=r"^x\.py:1: the code"):
        raising("raise SMTPError(code, 'x')")


def test_the_table_has_a_cell_for_every_state_and_command():
    from reference.states import table

    header, _, *rows = [line.strip("|").split("|") for line in table()]
    verbs = [verb for cell in header[1:] for verb in cell.strip().split("<br>")]
    assert sorted(verbs) == sorted(verb.value for verb in Verb)
    assert [row[0].strip() for row in rows] == [f"**{state.value}**" for state in TABLE]
    for row, cells in zip(rows, TABLE.values(), strict=True):
        for cell, heads in zip(row[1:], header[1:], strict=True):
            for verb in heads.strip().split("<br>"):
                target = cells[Verb(verb)]
                if isinstance(target, State):
                    assert cell.strip() == target.value
                else:
                    name = re.fullmatch(r" (\d+) \[(\w+)\]\(#(\w+)\) ", cell)
                    assert getattr(replies, name[2]) is target
                    assert (int(name[1]), name[3]) == (target.code, name[2].lower())


def test_the_diagram_leads_to_every_state_in_which_a_session_may_be():
    from reference.states import diagram

    reached = {line.split(" --> ")[1].partition(":")[0] for line in diagram() if "-->" in line}
    # Left out: QUIT, an exchange of AUTH, and a chunk that leaves the state as it was.
    assert {state.value for state in State} - reached == {"closed", "auth", "skip"}


def test_every_link_of_the_page_leads_somewhere():
    text = PAGE.read_text("utf-8")
    for link in _LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (PAGE.parent / path).resolve() if path else PAGE
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link
