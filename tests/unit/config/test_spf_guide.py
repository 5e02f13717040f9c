"""What the guide to SPF shows can be used as it stands there, and is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.app.chain import make_middleware
from preforkmx.app.resolver import SharedResolver
from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import SPF
from preforkmx.config.schema import Dns
from preforkmx.errors import ConfigError
from preforkmx.middleware import spf_check, spf_names, spf_query
from preforkmx.state.local import LocalStore

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "check-spf.md"

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "0.0.0.0:25"
[delivery]
use = "discard"
"""


def loaded(text):
    return load(Document(SITE + text, "guide", Path("/etc/mx")), {}, look_at_files=False)


def tables(text):
    return [table for table in loaded(text).config.middleware if isinstance(table, SPF)]


def test_the_tables_of_the_guide_can_be_used():
    blocks = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (first,), second = map(tables, blocks)
    assert [table.at for table in second] == ["helo", "mail"]
    shared = SharedResolver(Dns())
    for table in (first, *second):
        made = make_middleware(table, LocalStore(), 1, shared)
        assert made.name == "spf"
    # Their resolver is the worker's, whose lifespan is not theirs.
    assert shared.made is not None
    assert made.lifespan is None
    hooks = {
        at: make_middleware(SPF(use="spf", at=at), LocalStore(), 1, shared)
        for at in ("helo", "mail", "data")
    }
    assert hooks["helo"].check_helo
    assert hooks["mail"].check_sender
    assert not hooks["data"].check_sender
    assert all(made.handler for made in hooks.values())


def test_the_guides_table_has_the_defaults():
    block = re.search(r"^use = \"spf\"\n(.*?)^allow", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (table,) = tables(f'[[middleware]]\nuse = "spf"\n{block[1]}')
    assert table == SPF(use="spf")


def test_the_bounds_of_the_guide_are_those_of_the_code():
    text = GUIDE.read_text()
    for bound in (
        f"| names that one check asks for | {spf_query.MAX_NAMES} |",
        f"| a check | {spf_check.TIMEOUT:g} s, and 4 s for each look-up",
        f"| CPU of a check | {spf_query.MAX_CPU:g} s |",
        f"{spf_names.MAX_RECORD:,} octets; {spf_names.MAX_TERM}; {spf_names.MAX_MACROS} |",
        f"| 512 octets of text, {spf_check.MAX_EXPLANATION} of it shown",
    ):
        assert bound in text


@pytest.mark.parametrize(
    "line", ['at = "rcpt"', 'on_fail = "tempfail"', 'on_temperror = "reject"', "timeout = 3"]
)
def test_what_is_wrong_in_the_table_is_told(line):
    with pytest.raises(ConfigError) as caught:
        loaded(f'[[middleware]]\nuse = "spf"\n{line}\n')
    assert line.split(" ", maxsplit=1)[0] in str(caught.value.problems)
