"""The map of recipients: who is there, and whose mail goes to somebody else."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from preforkmx.middleware.addresses import Recipient, comparable
from preforkmx.middleware.recipients_source import Found

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST_TARGETS: Final = 1000
"""The most addresses that one alias may stand for."""

#: How many of a circle's aliases an error names.
_SHOWN: Final = 5


class AliasError(ValueError):
    """Aliases that cannot be followed.

    :param problems: the name of each, and what is wrong with it.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name} {problem}" for name, problem in problems))
        self.problems = problems


class RecipientMap:
    """Recipients by name. A :class:`~preforkmx.middleware.recipients_source.Source`.

    :param entries: by :func:`~preforkmx.middleware.addresses.comparable` address, or ``@`` and
        a domain for all that have no entry of their own: whom the mail goes to, nothing for the
        address itself. A target that is an alias is followed, one that is its own alias is
        where it ends; catch-alls are not followed.
    :param separator: what an extension begins with; ``""``: there are none.
    :raises AliasError: aliases go in circles, or stand for too many.
    """

    def __init__(self, entries: Mapping[str, tuple[str, ...]], *, separator: str = "+") -> None:
        self._separator = separator
        self._entries = entries
        self._targets: dict[str, tuple[str, ...]] = {}
        problems: list[tuple[str, str]] = []
        for name, targets in entries.items():
            if targets and name not in self._targets:
                self._follow(name, problems)
        if problems:
            raise AliasError(problems)

    def __len__(self) -> int:
        return len(self._entries)

    async def look_up(self, recipient: Recipient) -> Found | None:
        """Return what the map has: for the address, without its extension, or for its domain."""
        return self.find(recipient)

    def find(self, recipient: Recipient) -> Found | None:
        """Return what :meth:`look_up` does."""
        for name in (recipient.name, recipient.base, f"@{recipient.domain}"):
            if name in self._entries:
                targets = self._targets.get(name, ())
                return Found(targets, extended=name == recipient.base != recipient.name)
        return None

    def _alias_of(self, target: str) -> str | None:
        """Return the name of the alias that `target` is, None when it is none."""
        recipient = Recipient.of(target, self._separator)
        for name in (recipient.name, recipient.base):
            if name in self._entries:
                return name if self._entries[name] else None
        return None

    def _follow(self, alias: str, problems: list[tuple[str, str]]) -> None:
        """Set the targets of `alias`, and of those that it leads to.

        Without recursion: a chain may be as long as the file.
        """
        done = self._targets
        way = [_Step(alias, self._ends(alias))]
        on_the_way = {alias}
        while way:
            step = way[-1]
            for target, further in step.ahead:
                if further is None:
                    step.add((target,))
                elif further in done:
                    step.add(done[further])
                elif further in on_the_way:
                    names = [each.alias for each in way]
                    problems.append((step.alias, _circle(names[names.index(further) :])))
                else:
                    # Its targets are this one's, once they are known.
                    step.ahead = chain([(target, further)], step.ahead)
                    way.append(_Step(further, self._ends(further)))
                    on_the_way.add(further)
                    break
            else:
                way.pop()
                on_the_way.discard(step.alias)
                done[step.alias] = tuple(step.targets.values())
                if len(step.targets) > MOST_TARGETS:
                    done[step.alias] = ()
                    problems.append((step.alias, f"stands for more than {MOST_TARGETS} addresses"))

    def _ends(self, alias: str) -> Iterator[tuple[str, str | None]]:
        """Return each target, and the alias that it is; None: it is none, or `alias` itself."""
        for target in self._entries[alias]:
            further = self._alias_of(target)
            yield target, None if further == alias else further


class _Step:
    """An alias whose targets are followed."""

    __slots__ = ("ahead", "alias", "targets")

    def __init__(self, alias: str, ahead: Iterator[tuple[str, str | None]]) -> None:
        self.alias = alias
        self.ahead = ahead
        # By their comparable address: nobody gets a message twice.
        self.targets: dict[str, str] = {}

    def add(self, targets: Iterable[str]) -> None:
        for target in targets:
            self.targets.setdefault(comparable(target), target)


def _circle(names: list[str]) -> str:
    shown = [*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else []), names[0]]
    return f"goes in a circle: {' -> '.join(shown)}"
