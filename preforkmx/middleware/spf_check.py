"""One SPF check: RFC 7208's check_host(), without a thread and without blocking."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, cast

from preforkmx.errors import DNSNameError
from preforkmx.middleware.spf_names import MOST_TERMS, names_in_answer
from preforkmx.protocol.domains import to_ascii
from preforkmx.protocol.paths import split_mailbox

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from preforkmx.dns import Answer, RecordType
    from preforkmx.middleware.spf_names import Key

SPFVerdict = Literal["pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"]
"""The results of RFC 7208 section 2.6."""

#: Seconds for one check (RFC 7208 section 4.6.4 wants at least 20).
TIMEOUT: Final = 20.0
#: Seconds for which names that may be needed next are waited for beside the one that is.
_GRACE: Final = 0.1
#: Characters that are kept of an explanation, and of a reason.
MAX_EXPLANATION: Final = 255
MAX_REASON: Final = 200
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")


class LooksUp(Protocol):
    """What is wanted of a :class:`~preforkmx.dns.Resolver`."""

    def known(self, name: str, rdtype: RecordType, /) -> Answer | None:
        """Return what is known without asking anybody."""

    async def query(self, name: str, rdtype: RecordType, /) -> Answer:
        """Return what there is, or raise a DNSError."""


class SPFResult(NamedTuple):
    """What SPF says of one client and one name.

    Its texts come from the client and from the DNS. Those that are not the client's own are
    printable ASCII, and bounded.
    """

    result: SPFVerdict
    identity: Literal["mailfrom", "helo"]
    """Which name was checked: the null reverse path is checked by HELO (RFC 7208 section 2.4)."""
    domain: str
    """The domain that was asked, in lower case, as A-labels; as it came where it is no domain."""
    sender: str
    """The reverse path; for HELO ``postmaster@`` its name."""
    helo: str
    """The name of HELO."""
    address: IPv4Address | IPv6Address
    reason: str
    """Why, in a few words: the term of the record that matched, or what is wrong."""
    matched: bool = False
    """`reason` is a term of the record."""
    explanation: str = ""
    """What the domain says about a fail, for the client to read; ``""``: nothing."""
    lookups: int = 0
    """Terms that asked the DNS: the limit is ten (RFC 7208 section 4.6.4)."""

    @property
    def passed(self) -> bool:
        """The domain allows the client to send for it."""
        return self.result == "pass"


def load_pyspf() -> None:
    """Import pyspf now: a worker does it at its boot, and no session waits for it."""
    import_module("preforkmx.middleware.spf_query")


async def check_host(
    resolver: LooksUp,
    address: IPv4Address | IPv6Address,
    helo: str,
    sender: str,
    *,
    receiver: str = "unknown",
    timeout: float = TIMEOUT,
) -> SPFResult:
    """Check whether a client may send for a domain (RFC 7208 section 4).

    :param address: the client's; an IPv4-mapped one counts as IPv4.
    :param helo: the name that the client gave at HELO.
    :param sender: the reverse path without brackets; ``""`` checks the name of HELO.
    :param receiver: this server's name, for explanations.
    :param timeout: seconds; then the result is temperror.
    :raises Exception: never for what a client sends or the DNS answers: that is a result.
    """
    from preforkmx.middleware import spf_query  # noqa: PLC0415 - who never checks has no pyspf

    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    identity: Literal["mailfrom", "helo"] = "mailfrom" if sender else "helo"
    if not sender:
        sender = f"postmaster@{helo}"
    local, name = split_mailbox(sender)
    domain = _domain(name)
    if domain is None:
        # RFC 7208 section 4.3.
        shown = _harmless(name, MAX_REASON)
        return SPFResult("none", identity, name, sender, helo, address, f"no domain: {shown}")
    question = spf_query.Question(address, local or "postmaster", domain, helo, receiver)
    answers = spf_query.Answers(resolver.known)
    lookups = _LookUps(resolver, address, answers)
    try:
        async with asyncio.timeout(timeout):
            while (found := spf_query.evaluate(question, answers)) is None:
                await lookups.fetch(cast("Key", answers.missing))
    except TimeoutError:
        reason = f"no result within {timeout:g} s"
        return SPFResult("temperror", identity, domain, sender, helo, address, reason)
    finally:
        await lookups.close()
    return SPFResult(
        cast("SPFVerdict", found.result),
        identity,
        domain,
        sender,
        helo,
        address,
        _reason(found),
        bool(found.mechanism),
        _harmless(found.explanation, MAX_EXPLANATION),
        found.lookups,
    )


class _LookUps:
    """Asks for names: for those that are needed, and for those that probably will be."""

    def __init__(self, resolver: LooksUp, address: IPv4Address | IPv6Address, answers: Any) -> None:
        self._resolver = resolver
        self._address = address
        self._answers = answers
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._next: deque[Key] = deque()
        # A record cannot make us ask ahead for more than it may ask for at all.
        self._ahead = MOST_TERMS

    async def fetch(self, key: Key) -> None:
        """Look `key` up, and beside it what the records so far lead to."""
        if not self._next and not self._tasks:
            await self._fetch(key)
            return
        for each in (key, *self._next):
            if each not in self._answers and each not in self._tasks:
                self._tasks[each] = asyncio.create_task(self._fetch(each))
        self._next.clear()
        await self._tasks[key]
        if self._tasks:
            # Each that comes a moment later would be a run of its own.
            await asyncio.wait(self._tasks.values(), timeout=_GRACE)

    async def close(self) -> None:
        """Stop waiting for what is not needed any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _fetch(self, key: Key) -> None:
        answers = self._answers
        try:
            answer: Answer = await self._resolver.query(*key)
        except DNSNameError:
            # RFC 7208 section 4.8: what is no name has no records.
            answers.put(key, None)
        except Exception as error:
            answers.put(key, error)
        else:
            answers.put(key, answer)
            self._look_ahead(key, answer)
        finally:
            self._tasks.pop(key, None)

    def _look_ahead(self, key: Key, answer: Answer) -> None:
        for each in names_in_answer(key, answer, self._address):
            if each in self._answers or each in self._tasks or each in self._next:
                continue
            if key[1] == "TXT":
                if self._ahead == 0:
                    break
                self._ahead -= 1
            self._next.append(each)


def _domain(name: str) -> str | None:
    """Return a domain as it is asked for, None for what is none, or has one label only."""
    try:
        domain = to_ascii(name.removesuffix("."))
    except ValueError:
        return None
    return domain if "." in domain and domain[:1] != "[" else None


def _reason(found: Any) -> str:
    if found.problem:
        return _harmless(found.problem, MAX_REASON)
    if found.mechanism:
        return _harmless(found.mechanism, MAX_REASON)
    return "no SPF record" if found.result == "none" else "no term matches"


def _harmless(text: str, most: int) -> str:
    """Return `text` in printable ASCII, at most so many characters of it."""
    text = _UNPRINTABLE.sub("?", text[: 2 * most]).strip()
    return text if len(text) <= most else f"{text[: most - 3]}..."
