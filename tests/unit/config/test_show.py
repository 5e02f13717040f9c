from __future__ import annotations

import grp
import json
import os
import pwd
import re
import tomllib
from datetime import date, time
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.config.delivery_tables import DELIVERIES
from preforkmx.config.example import example
from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import MIDDLEWARE
from preforkmx.config.reference import reference
from preforkmx.config.schema import Config
from preforkmx.config.show import json_schema, show
from preforkmx.config.table import Table
from preforkmx.config.toml import dump_key, dump_value, excerpt, mask

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"

GIVEN = """\
hostname = "mx.example.com"
domains = ["example.com"]
[workers]
drain_seconds = 5
[[listener]]
address = "127.0.0.1:2525"
[[listener]]
address = "127.0.0.1:2526"
tls = "off"
[[listener]]
address = "unix:smtp.sock"
protocol = "lmtp"
proxy_protocol = true
[[middleware]]
use = "rate_limit"
connections = "60/minute"
allow = ["192.0.2.1"]
[[middleware]]
use = "mymx:Check"
api_token = "hunter2"
backend = "https://user:hunter2@example.com/x"
deep = { password = "hunter2", list = ["redis://:hunter2@h"] }
[delivery]
path = "/var/mail"
"""


def loaded(text, environ=None):
    return load(Document(text, "my.toml", Path("/etc")), environ or {})


def origins(text):
    """The origin of each line that has one, by what stands before it."""
    return dict(re.split(r" +# ", line) for line in text.splitlines() if "  # " in line)


def test_every_value_is_shown_with_where_it_came_from():
    shown = origins(show(loaded(GIVEN, {"PREFORKMX_LIMITS__ERRORS": "7"})))
    assert shown['hostname = "mx.example.com"'] == "my.toml:1"
    assert shown["drain_seconds = 5"] == "my.toml:4"
    assert shown["errors = 7"] == "environment variable PREFORKMX_LIMITS__ERRORS"
    assert shown["max_sessions = 10000"] == "default"
    assert shown['message_size = "25MiB"'] == "default"
    assert shown['connections = "60/min"'] == "my.toml:16"
    assert shown['allow = ["192.0.2.1/32"]'] == "my.toml:17"
    assert shown['tls = "off"'] == "my.toml:9"
    assert shown['address = "unix:/etc/smtp.sock"'] == "my.toml:11"
    assert shown["proxy_protocol = true"] == "my.toml:13"
    assert shown["minimum_rate = 500"] == "default"
    assert shown['tls = "starttls"'] == "default"


def test_no_secret_is_shown():
    text = show(loaded(GIVEN))
    assert "hunter2" not in text
    assert 'api_token = "***"' in text
    assert 'backend = "https://***@example.com/x"' in text


def test_what_is_shown_is_the_same_configuration():
    first = loaded(GIVEN)
    second = loaded(show(first))
    assert re.sub(" +#.*", "", show(second)) == re.sub(" +#.*", "", show(first))


def test_the_example_is_a_configuration():
    assert loaded(example()).config.hostname == "mx.example.com"


def test_every_line_of_the_example_can_be_switched_on(tmp_path):
    pair = trustme.CA().issue_cert("mx.example.com")
    pair.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    text = re.sub(r"^# ", "", example(), flags=re.MULTILINE)
    # The pair that the example names, and the accounts: this machine must have them.
    us = pwd.getpwuid(os.getuid())
    text = text.replace('user = "preforkmx"', f'user = "{us.pw_name}"')
    text = text.replace('group = "mail"', f'group = "{grp.getgrgid(us.pw_gid).gr_name}"')
    # A configuration has one [delivery]: they are tried one by one.
    tables = text.split("\n\n")
    deliveries = [table for table in tables if "[delivery]" in table.splitlines()]
    assert len(deliveries) == len(DELIVERIES) + 1
    for delivery in deliveries:
        chosen = [table for table in tables if table not in deliveries or table == delivery]
        load(Document("\n\n".join(chosen), "example.toml", tmp_path), {})


def test_the_example_has_every_key():
    text = example()
    for model in [Config, *Table.__subclasses__()]:
        for key, about in model.model_fields.items():
            assert re.search(
                rf"^(# )?(\[*(?:middleware\.)?{key}\b|{key} = )", text, re.MULTILINE
            ), key
            assert about.description, key


def test_the_reference_is_current():
    assert REFERENCE.read_text() == reference(), "run: python -m preforkmx.config.reference"


def test_the_reference_has_every_key_with_its_words():
    text = reference()
    for model in [*Table.__subclasses__()]:
        for key, about in model.model_fields.items():
            if model is not Config or key in ("hostname", "domains"):
                assert key == "use" or f"| `{key}` |" in text
                assert key == "use" or str(about.description) in text
    for use in [*MIDDLEWARE, *DELIVERIES]:
        assert f'`use = "{use}"`' in text


def test_the_json_schema_describes_every_table_with_defaults_as_toml_has_them():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)
    limits = schema["$defs"]["Limits"]["properties"]
    assert limits["message_size"]["default"] == "25MiB"
    assert limits["command_timeout"]["default"] == "5m"
    assert re.fullmatch(limits["command_timeout"]["pattern"], "5m")
    assert schema["$defs"]["Workers"]["properties"]["drain_seconds"]["default"] == 60
    uses = {
        ref["$ref"].rpartition("/")[2]
        for ref in schema["properties"]["middleware"]["items"]["oneOf"]
    }
    assert uses == {model.__name__ for model in MIDDLEWARE.values()} | {"SiteMiddleware"}


_values = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text(), _values)
def test_every_value_survives_being_written_as_toml(key, value):
    assert tomllib.loads(f"{dump_key(key)} = {dump_value(value)}") == {key: value}


def test_what_toml_does_not_have_cannot_be_written():
    with pytest.raises(TypeError, match="TOML has no NoneType"):
        dump_value(None)


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("state", "url"), "redis://:pw@h/0", "redis://***@h/0"),
        (("state", "url"), "redis+sentinel://me:p@w@h1,h2/x", "redis+sentinel://***@h1,h2/x"),
        (("state", "url"), "redis://h/0", "redis://h/0"),
        (("middleware", 0, "api_key"), 5, "***"),
        (("tls", "key"), "-----BEGIN PRIVATE KEY-----", "***"),
        (("tls", "key"), "privkey.pem", "privkey.pem"),
        (("limits", "errors"), 5, 5),
    ],
)
def test_secrets_are_masked(path, value, shown):
    assert mask(path, value) == shown


def test_a_long_value_is_cut_in_a_message():
    assert len(excerpt(("x",), "a" * 1000)) == 80
    assert excerpt(("x",), {"d": date(2024, 1, 2), "t": time(3, 4)}) == (
        "{ d = 2024-01-02, t = 03:04:00 }"
    )
