"""The score of a client, as far as it is known, and when the rest cannot change the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from preforkmx.middleware.rbl_list import Listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Address

    from preforkmx.middleware.rbl_list import DNSList, Question

    Answers = Mapping[str, tuple[IPv4Address, ...]]
    """What was answered, by the questions' names; nothing where nobody is listed, or that failed."""


class Entry(NamedTuple):
    """A list, and who is looked for in it."""

    list: DNSList
    questions: tuple[Question, ...]


class Score(NamedTuple):
    """The score of the lists that answered, and the bounds that the others leave.

    A list counts once, however many of the client's names it lists.
    """

    known: int
    lowest: int
    highest: int
    waiting: bool
    """Some list did not answer everything yet."""

    def is_refused(self, threshold: int) -> bool:
        """Say whether the client is refused, whatever is not known yet."""
        return self.lowest >= threshold

    def decides(self, threshold: int) -> bool:
        """Say whether what is not known yet cannot change whether the client is refused."""
        return self.lowest >= threshold or self.highest < threshold

    def decides_all(self, threshold: int) -> bool:
        """The same, and whether anybody vouches for it: the score is below zero."""
        return self.decides(threshold) and (self.lowest >= 0 or self.highest < 0)


def score(entries: Iterable[Entry], answers: Answers) -> Score:
    """Return the score of what stands in `answers`."""
    known = lowest = highest = 0
    waiting = False
    for entry in entries:
        weight = entry.list.weight
        if listing(entry, answers) is not None:
            known += weight
            lowest += weight
            highest += weight
        elif any(question.name not in answers for question in entry.questions):
            waiting = True
            lowest += min(weight, 0)
            highest += max(weight, 0)
    return Score(known, lowest, highest, waiting)


def listing(entry: Entry, answers: Answers) -> Listing | None:
    """Return what the list says, of the first of its questions that it says something to."""
    for question in entry.questions:
        found = answers.get(question.name)
        # Most clients are listed nowhere.
        if found and (codes := tuple(filter(entry.list.counted.__contains__, found))):
            return Listing(entry.list.shown, question.subject, codes, entry.list.weight)
    return None


def listings(entries: Sequence[Entry], answers: Answers) -> tuple[Listing, ...]:
    """Return what all lists say, in their order."""
    return tuple(found for entry in entries if (found := listing(entry, answers)) is not None)
