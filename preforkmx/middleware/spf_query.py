"""The bridge to pyspf, which evaluates records but does not wait: it is synchronous.

:func:`evaluate` lets it run with the answers that are known. Where it asks for another one it is
stopped, and the caller runs it again when that has come. Importing this module imports pyspf and
dnspython's resolver: 1.7 MiB, and 50 ms.
"""

from __future__ import annotations

import time
import warnings
from contextvars import ContextVar
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from preforkmx.dns import MX
from preforkmx.middleware.spf_names import is_spf_record, is_too_costly

with warnings.catch_warnings():
    # Where Python has not compiled it yet, the escapes in its docstrings are warned of.
    warnings.simplefilter("ignore")
    import spf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address, IPv6Address

    from preforkmx.dns import Answer
    from preforkmx.middleware.spf_names import Key

#: Seconds of CPU that the runs of one check may take together: a thousand times what a record
#: needs that somebody wrote on purpose.
MAX_CPU: Final = 0.25
#: Names that one check may ask for: the ten terms of RFC 7208 section 4.6.4, each with ten
#: addresses, the record itself, ``%{p}`` with its ten, and the explanation come to 123.
MAX_NAMES: Final = 128
#: Characters of a domain name, and so of a macro string that expands to one.
_MAX_NAME: Final = 253
#: Characters of an explanation before its macros are expanded.
_MAX_EXPLANATION: Final = 512


class Question(NamedTuple):
    """What is asked of check_host() (RFC 7208 section 4.1)."""

    address: IPv4Address | IPv6Address
    local: str
    domain: str
    """Checked, and a domain name of at least two labels."""
    helo: str
    receiver: str
    """This server's name."""


class Evaluated(NamedTuple):
    """What pyspf found."""

    result: str
    """Of RFC 7208 section 2.6."""
    mechanism: str
    """The term that matched, as it stands in the domain's record; ``""``: none did."""
    problem: str
    """What is wrong, for permerror and temperror."""
    explanation: str
    """What the domain says about a fail (RFC 7208 section 6.2); ``""``: nothing."""
    lookups: int
    """Terms that asked the DNS: the limit is ten."""


class _Missing(BaseException):
    """An answer is not known. pyspf lets what is no Exception pass, but for one bare except."""


class Answers:
    """What one check has learnt from the DNS.

    :param known: gives an answer that need not be waited for, or None.
    """

    def __init__(self, known: Callable[[str, Any], Answer | None]) -> None:
        self._cached = known
        self._values: dict[Key, list[Any] | Exception] = {}
        self.missing: Key | None = None
        self.spent = 0.0
        """Seconds of CPU that the runs before took."""
        self._began = 0.0

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: Key, answer: Answer | Exception | None) -> None:
        """Take an answer, an error in its place, or None: nobody can have such a name."""
        if answer is None:
            self._values[key] = []
        elif isinstance(answer, Exception):
            self._values[key] = answer
        else:
            self._values[key] = [_for_pyspf(record) for record in answer.records]

    def begin(self) -> None:
        """A run begins."""
        self.missing = None
        self._began = time.thread_time()

    def end(self) -> None:
        """It is over."""
        self.spent += time.thread_time() - self._began

    def look_up(self, name: str, rdtype: str) -> Iterable[tuple[tuple[str, str], Any]]:
        """Answer pyspf, or stop it."""
        if self.spent + time.thread_time() - self._began > MAX_CPU:
            raise spf.PermError("The records take too long to evaluate")
        key = cast("Key", (_fitting(name), rdtype))
        values = self._values.get(key)
        if values is None:
            values = self._otherwise(key)
        if isinstance(values, Exception):
            raise spf.TempError(f"{key[0]} {rdtype}: {values}")
        if rdtype == "TXT":
            for (text,) in values:
                if is_spf_record(text) and is_too_costly(text):
                    raise spf.PermError("The record is too long", name)
        return [((name, rdtype), value) for value in values]

    def _otherwise(self, key: Key) -> list[Any] | Exception:
        if not key[0].isascii():
            # RFC 8616 section 4: a local part that is not ASCII makes its macros match nothing.
            return []
        if len(self._values) >= MAX_NAMES:
            raise spf.PermError("Too many names")
        cached = self._cached(*key)
        if cached is None:
            self.missing = key
            raise _Missing
        self.put(key, cached)
        return self._values[key]


_answers: ContextVar[Answers | None] = ContextVar("preforkmx_spf_answers", default=None)
_look_up_alone = spf.DNSLookup


def _look_up(name: str, qtype: str, strict: bool = True, timeout: float = 20) -> Any:  # noqa: FBT001, FBT002 - pyspf's
    answers = _answers.get()
    if answers is None:
        # Somebody else in this process uses pyspf too.
        return _look_up_alone(name, qtype, strict, timeout)
    return answers.look_up(name, qtype)


# The one place where pyspf asks the DNS. A run never gives the loop back, so the answers are those
# of the check that runs.
spf.DNSLookup = _look_up


class _Explanation:
    """Where the text is that says why; it is asked for only once it is needed."""

    def __init__(self, name: str, domain: str) -> None:
        self.name = name
        self.domain = domain


class _Query(spf.query):  # type: ignore[misc]  # pyspf has no types
    """pyspf's, whose names of one letter are the macros of RFC 7208 section 7.2."""

    def __init__(self, question: Question) -> None:
        super().__init__(
            i=str(question.address),
            s=f"{question.local}@{question.domain}",
            h=question.helo,
            receiver=question.receiver,
        )
        # pyspf ends the local part at the first "@", which may stand in quotes.
        self.l = question.local
        self.o = self.d = question.domain
        self.number = int(self.ipaddr)

    def get_explanation(self, spec: str) -> Any:
        """Note where it is: pyspf would look it up even for a pass."""
        return _Explanation(spec, self.d)

    def explanation(self, found: object) -> str:
        """Return the text (RFC 7208 section 6.2), ``""`` when there is none that can be used."""
        if not isinstance(found, _Explanation):
            return ""
        self.d = found.domain
        try:
            texts = self.dns_txt(found.name, ignore_void=True)
            if len(texts) != 1 or len(texts[0]) > _MAX_EXPLANATION:
                return ""
            words = texts[0].decode("ascii").split(" ")
            # Word by word: pyspf makes room in whatever is longer than a domain name may be.
            return " ".join(self.expand(word, stripdot=False) for word in words)
        except Exception:
            return ""

    def cidrmatch(self, ipaddrs: Iterable[int | str], n: int) -> bool:
        """Say whether the client is in one of the networks. pyspf makes two objects of each."""
        shift = self.cidrmax - n
        own = self.number >> shift
        for each in ipaddrs:
            try:
                number = each if isinstance(each, int) else int(ip_address(each))
            except ValueError as error:
                raise spf.PermError(str(error)) from None
            if number >> shift == own:
                return True
        return False


def evaluate(question: Question, answers: Answers) -> Evaluated | None:
    """Let pyspf run once; None: :attr:`Answers.missing` has to be looked up first."""
    token = _answers.set(answers)
    answers.begin()
    try:
        query = _Query(question)
        result, _, text = query.check()
        explanation = query.explanation(text) if result == "fail" else ""
    except _Missing:
        return None
    except Exception as error:
        if answers.missing is not None:
            return None
        return Evaluated("temperror", "", f"{type(error).__name__}: {error}", "", 0)
    finally:
        answers.end()
        _answers.reset(token)
    if answers.missing is not None:
        return None
    problem = ""
    if result in {"permerror", "temperror"}:
        problem = str(text).partition("Error: ")[2]
    return Evaluated(result, query.mechanism or "", problem, explanation, query.lookups)


def _for_pyspf(record: Any) -> Any:
    if isinstance(record, bytes):
        return (record,)
    if isinstance(record, MX):
        return (record.preference, record.exchange)
    return record if isinstance(record, str) else int(record)


def _fitting(name: str) -> str:
    """Return `name` without as many labels as it has too many (RFC 7208 section 7.3)."""
    while len(name) > _MAX_NAME and "." in name:
        name = name.partition(".")[2]
    return name
