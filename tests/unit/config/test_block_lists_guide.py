"""What the guide to block lists shows can be used as it stands there; tables inside of tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.app.chain import make_middleware
from preforkmx.app.resolver import SharedResolver
from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import RBL
from preforkmx.config.schema import Dns
from preforkmx.config.show import show
from preforkmx.errors import ConfigError
from preforkmx.middleware import rbl_health, rbl_lookup
from preforkmx.middleware.rbl import DEADLINE
from preforkmx.state.local import LocalStore

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "use-block-lists.md"

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "0.0.0.0:25"
[delivery]
use = "discard"
"""

TABLE = (
    SITE
    + """
[[middleware]]
use = "rbl"
[[middleware.list]]
zone = "a.example.org"
[[middleware.list]]
zone = "b.example.org"
codes = ["127.0.0.2"]
"""
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def loaded(text, environ=None):
    return load(Document(text, "guide", Path("/etc/mx")), environ or {}, look_at_files=False)


def made(text):
    """The RBL tables of a configuration, and the middleware that is made of them."""
    tables = [table for table in loaded(text).config.middleware if type(table) is RBL]
    shared = SharedResolver(Dns())
    return tables, [
        make_middleware(table, LocalStore(), number, shared)
        for number, table in enumerate(tables, 1)
    ]


def test_the_configurations_of_the_guide_are_right():
    first, *others = blocks("toml")
    [table], [middleware] = made(SITE + first)
    assert [each.weight for each in table.list] == [3, 2, 2, -2]
    assert (table.threshold, len(table.allow)) == (3, 1)
    assert middleware.check_connection is not None
    assert middleware.check_helo is not None
    assert middleware.name == "rbl"
    [table], [middleware] = made(SITE + others[0])
    assert middleware.check_connection is None
    assert middleware.check_sender is not None
    [table], _ = made(SITE + others[1])
    assert table.list[0].name == "zen.example.org"


def test_two_tables_have_names_of_their_own_and_share_the_workers_resolver():
    text = SITE + "".join(blocks("toml")[1:])
    shared = SharedResolver(Dns())
    names = [
        make_middleware(table, LocalStore(), number, shared).name
        for number, table in enumerate(loaded(text).config.middleware, 1)
    ]
    assert names == ["rbl", "rbl 2"]
    assert shared.made is not None


def test_the_program_of_the_guide_runs():
    [program] = blocks("python")
    namespace = {}
    exec(compile(program, str(GUIDE), "exec"), namespace)
    assert namespace["server"].middleware


def test_the_numbers_of_the_guide_are_those_of_the_code():
    text = " ".join(GUIDE.read_text().split())
    assert f"waits {DEADLINE:g} s in all" in text
    assert f"for {rbl_health.REST_SECONDS:g} s; then one" in text
    assert f"for {rbl_health.ERROR_SECONDS / 60:g} minutes" in text
    assert f"at most {rbl_lookup.MAX_TEXT} characters" in text
    assert rbl_health.MAX_FAILED == 5


def test_the_environment_reaches_a_list():
    variables = {
        "PREFORKMX_MIDDLEWARE__0__LIST__1__WEIGHT": "4",
        "PREFORKMX_MIDDLEWARE__0__LIST__1__ZONE": "c.example.org",
    }
    [table] = loaded(TABLE, variables).config.middleware
    assert [(each.zone, each.weight) for each in table.list] == [
        ("a.example.org", 1),
        ("c.example.org", 4),
    ]
    with pytest.raises(ConfigError, match="PREFORKMX_MIDDLEWARE__0__LIST__0__WEIGHT"):
        loaded(TABLE, {"PREFORKMX_MIDDLEWARE__0__LIST__0__WEIGHT": "0"})


def test_lists_are_shown_below_their_table_with_where_they_came_from():
    text = show(loaded(TABLE))
    assert text.count("[[middleware.list]]") == 2
    line = TABLE.splitlines().index('codes = ["127.0.0.2"]') + 1
    assert re.search(rf'codes = \["127.0.0.2"\] +# guide:{line}\n', text)
    assert loaded(text).config == loaded(TABLE).config
