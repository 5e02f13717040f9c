"""The file of recipients against a slow reader that goes character by character."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from preforkmx.middleware.addresses import comparable
from preforkmx.middleware.recipients_file import parse_line
from preforkmx.protocol.paths import PathError, parse_path

PIECES = st.sampled_from(
    [
        *("joe", "ann", "a.b", "a#b", "+", '"a b"', '"a\\"b"', '"a,b: c#d"', '""', "grå"),
        *("@", "@", "@", "@example.com", "@example.com", "@bücher.example", "@[192.0.2.1]"),
        *("example.com", "@[IPv6:2001:db8::1]", ":", ":", ",", ", ", " ", "\t", "#", " # ", "\r"),
        *("[", "]", '"', "\\", "<", ">", ";", "x" * 260),
    ]
)
LINES = st.lists(PIECES, max_size=10).map("".join) | st.text(max_size=20)
ADDRESSES = st.tuples(
    st.sampled_from(["joe", "Joe", '"a b"', "a+b", '"a:b,c"', "a#b"]),
    st.sampled_from(
        ["example.com", "Example.ORG", "[192.0.2.1]", "[IPv6:::1]", "xn--bcher-kva.de"]
    ),
).map("@".join)
SPACES = st.sampled_from(["", " ", "\t  "])


def reference(line: str) -> tuple[str, list[str]] | None:
    """Return name and targets of a line, None for none.

    :raises ValueError: it is wrong.
    """
    words = cut(line)
    if not words:
        return None
    name, *rest = words
    if name.startswith("@"):
        comparable_name = comparable(checked(f"x{name}"))[1:]
    else:
        comparable_name = comparable(checked(name))
        if comparable_name.startswith("@"):
            raise ValueError("empty")
    if not rest:
        return comparable_name, []
    if rest[0] != ":" or len(rest) % 2 or any(word != "," for word in rest[2::2]):
        raise ValueError("order")
    targets = {}
    for word in rest[1::2]:
        address = checked(word)
        if not address.rpartition("@")[0].isascii():
            raise ValueError("not ASCII")
        targets.setdefault(comparable(address), address)
    return comparable_name, list(targets)


def cut(line: str) -> list[str]:
    """Cut a line into its words."""
    words = []
    word = ""
    quotes = brackets = False
    characters = list(line.rstrip(" \t\r"))
    before = " "
    while characters:
        character = characters.pop(0)
        if quotes:
            word += character
            if character == "\\" and characters:
                word += characters.pop(0)
            elif character == '"':
                quotes = False
        elif brackets:
            word += character
            brackets = character != "]"
        elif character == "#" and not word and before in " \t":
            break
        elif character in " \t,:":
            words += [word] if word else []
            words += [character] if character in ",:" else []
            word = ""
        else:
            word += character
            quotes = word == '"'
            brackets = word.endswith("@[")
        before = character
    return [*words, word] if word else words


def checked(address: str) -> str:
    try:
        parsed, end = parse_path(f"<{address}>", smtputf8=True)
    except PathError as error:
        raise ValueError("no address") from error
    if parsed != address or end != len(address) + 2 or "@" not in address:
        raise ValueError("no address")
    return address


@given(LINES)
@example("joe@example.com: ann@example.com, @example.com")
@example("a@example.com:b@example.com,c@example.com#d")
@example('"a b"@example.com')
def test_a_line_is_read_as_the_slow_reader_reads_it(line: str) -> None:
    if "\n" in line:
        return
    try:
        expected = reference(line)
    except ValueError:
        expected = "wrong"  # type: ignore[assignment]
    try:
        read = parse_line(line)
    except ValueError:
        found = "wrong"
    else:
        found = None if read is None else (read.name, [*map(comparable, read.targets)])  # type: ignore[assignment]
    assert found == expected


@given(ADDRESSES, st.lists(ADDRESSES, max_size=4), st.lists(SPACES, min_size=12, max_size=12))
def test_what_is_written_is_read(name: str, targets: list[str], spaces: list[str]) -> None:
    space = iter(spaces)
    line = next(space) + name + next(space)
    if targets:
        line += ":" + ",".join(f"{next(space)}{each}{next(space)}" for each in targets)
    line += " # and a comment: joe@example.com"
    read = parse_line(line)
    assert read is not None
    assert read.name == comparable(name)
    assert [*map(comparable, read.targets)] == [*dict.fromkeys(map(comparable, targets))]
