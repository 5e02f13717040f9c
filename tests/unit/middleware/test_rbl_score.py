"""When the rest of the lists cannot change the verdict, against trying everything they may say."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from preforkmx.middleware.rbl_list import DNSList, Question
from preforkmx.middleware.rbl_score import Entry, listings, score

LISTED = (IPv4Address("127.0.0.2"),)
OTHER = (IPv4Address("127.0.0.9"),)

WEIGHTS = st.integers(-4, 4).filter(bool)


@st.composite
def situations(draw):
    """A few lists, some of which were asked about two names, and what is known of them."""
    entries = []
    answers = {}
    for number, weight in enumerate(draw(st.lists(WEIGHTS, min_size=1, max_size=5))):
        zone = f"list{number}.example.org"
        entry = DNSList(zone=zone, weight=weight, codes=("127.0.0.2",))
        subjects = draw(st.sampled_from([(), ("192.0.2.1",), ("192.0.2.1", "192.0.2.2")]))
        questions = tuple(Question.about_address(zone, ip_address(subject)) for subject in subjects)
        entries.append(Entry(entry, questions))
        for question in questions:
            answer = draw(st.sampled_from([None, (), LISTED, OTHER]))
            if answer is not None:
                answers[question.name] = answer
    return entries, answers


def reference(entries, answers):
    """The score once everything is known."""
    return sum(
        entry.list.weight
        for entry in entries
        if any(LISTED[0] in answers[question.name] for question in entry.questions)
    )


def every_end(entries, answers):
    """Every score that may come of what is not known yet."""
    unknown = [q.name for entry in entries for q in entry.questions if q.name not in answers]
    for said in product([(), LISTED], repeat=len(unknown)):
        yield reference(entries, {**answers, **dict(zip(unknown, said, strict=True))})


@given(situations(), st.integers(1, 6))
def test_the_score_is_decided_exactly_when_all_that_may_come_agrees(situation, threshold):
    entries, answers = situation
    ends = set(every_end(entries, answers))
    total = score(entries, answers)
    assert (total.lowest, total.highest) == (min(ends), max(ends))
    assert total.decides(threshold) == (len({end >= threshold for end in ends}) == 1)
    assert total.is_refused(threshold) == all(end >= threshold for end in ends)
    verdicts = {(end >= threshold, end < 0) for end in ends}
    assert total.decides_all(threshold) == (len(verdicts) == 1)


@given(situations())
def test_when_nothing_is_waited_for_the_score_is_that_of_the_listings(situation):
    entries, answers = situation
    total = score(entries, answers)
    assert total.known == sum(each.weight for each in listings(entries, answers))
    if not total.waiting:
        assert {total.lowest, total.highest, *every_end(entries, answers)} == {total.known}


def test_a_list_counts_once_however_many_names_it_lists():
    questions = tuple(Question.about_name("d.example.org", name) for name in ("a.test", "b.test"))
    entry = Entry(DNSList(zone="d.example.org", kind="domain", weight=2), questions)
    answers = {question.name: LISTED for question in questions}
    assert score([entry], answers).known == 2
    assert [each.subject for each in listings([entry], answers)] == ["a.test"]
