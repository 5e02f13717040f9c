from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.config.delivery_tables import Discard, Maildir
from preforkmx.config.load import LARGEST_FILE, Document, load, read_document
from preforkmx.config.middleware_tables import Greylist, RateLimit, SiteMiddleware
from preforkmx.config.schema import Config
from preforkmx.config.values import Rate
from preforkmx.errors import ConfigError

SMALL = """\
hostname = "MX.Example.com"
domains = ["example.com"]

[[listener]]
address = "127.0.0.1:2525"

[delivery]
path = "mail"
"""


def from_text(text, environ=None, **options):
    return load(Document(text, "file.toml", Path("/etc/mx")), environ or {}, **options)


def problems_of(text, environ=None, **options):
    with pytest.raises(ConfigError) as caught:
        from_text(text, environ, **options)
    return list(caught.value.problems)


def test_what_is_not_given_has_its_default():
    config = from_text(SMALL).config
    assert config.workers.max_sessions == 10_000
    assert config.limits.message_size == 25 << 20
    assert config.limits.session_time == 3600.0
    assert config.state.url == "embedded:"
    assert config.tls is None
    assert config.listener[0].tls == "starttls"
    assert isinstance(config.delivery, Maildir)


def test_values_become_what_the_program_works_with():
    config = from_text(
        SMALL
        + """
        [[middleware]]
        use = "rate_limit"
        connections = "60/min"
        allow = ["192.0.2.0/24", "::1"]
        [[middleware]]
        use = "greylist"
        delay = "4s"
        [[middleware]]
        use = "mymx.checks:Quota"
        limit = 3
        users = { a = [1] }
        [workers]
        drain_seconds = 1.5
        """
    ).config
    assert config.hostname == "mx.example.com"
    limits, greylist, site = config.middleware
    assert isinstance(limits, RateLimit)
    assert limits.connections == Rate(60, 60.0)
    assert list(map(str, limits.allow)) == ["192.0.2.0/24", "::1/128"]
    assert isinstance(greylist, Greylist)
    assert (greylist.delay, greylist.window) == (4.0, 86400.0)
    assert isinstance(site, SiteMiddleware)
    assert site.options == {"limit": 3, "users": {"a": [1]}}
    assert config.workers.drain_seconds == 1.5


def test_relative_paths_begin_at_the_files_folder():
    config = from_text(
        SMALL + '[admin]\ncontrol = "run/../control.sock"\n[state]\nurl = "embedded:greylist.db"'
    ).config
    assert config.delivery.path == Path("/etc/mx/mail")
    assert config.admin.control == Path("/etc/mx/control.sock")
    assert config.state.url == "embedded:/etc/mx/greylist.db"


def test_a_relative_path_of_a_unix_listener_begins_at_the_files_folder():
    listener = '[[listener]]\naddress = "unix:run/../smtp.sock"\n'
    config = from_text(SMALL + listener).config
    assert config.listener[1].address == "unix:/etc/mx/smtp.sock"


def test_a_listener_behind_a_proxy_names_whom_it_believes():
    listener = from_text(
        SMALL
        + """
        [[listener]]
        address = "127.0.0.1:2526"
        proxy_protocol = true
        proxy_from = ["10.0.0.0/8", "2001:db8::1"]
        xclient_from = ["192.0.2.10"]
        """
    ).config.listener[1]
    assert listener.proxy_protocol
    assert list(map(str, listener.proxy_from)) == ["10.0.0.0/8", "2001:db8::1/128"]
    assert list(map(str, listener.xclient_from)) == ["192.0.2.10/32"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param('protocol = "lmtp"', id="LMTP"),
        pytest.param("proxy_protocol = true", id="PROXY from everybody who may connect"),
        pytest.param(
            'proxy_protocol = true\nxclient_from = ["192.0.2.10"]',
            id="XCLIENT for whom the PROXY header names",
        ),
        pytest.param('tls = "off"', id="plain text"),
    ],
)
def test_a_unix_listener_may_have_what_a_port_has(more):
    from_text(SMALL + f'[[listener]]\naddress = "unix:/run/mx/smtp.sock"\n{more}')


def test_lmtp_may_be_on_any_port_but_25():
    listener = SMALL.replace('2525"', '{}"\nprotocol = "lmtp"')
    from_text(listener.format(24))
    from_text(listener.format(0))
    assert "RFC 2033" in "".join(problems_of(listener.format(25)))


def test_the_defaults_of_the_limits_and_extensions_are_those_of_a_strict_server():
    config = from_text(SMALL).config
    limits, extensions = config.limits, config.extensions
    assert (limits.bare_newline, limits.normalize_from, limits.hops) == ("reject", (), 100)
    assert (limits.commands, limits.transactions, limits.strict_flights) == (2000, 0, True)
    assert (limits.greeting_delay, limits.minimum_rate) == (0.0, 500)
    assert (extensions.smtputf8, extensions.chunking) == (True, True)
    assert (extensions.dsn, extensions.requiretls) == (False, False)


def test_a_greeting_may_wait_and_need_not():
    delay = "[limits]\ngreeting_delay = "
    assert from_text(SMALL + delay + '"6s"').config.limits.greeting_delay == 6.0
    assert from_text(SMALL + delay + '"0s"').config.limits.greeting_delay == 0.0
    assert "a duration from 0s to 1m" in problems_of(SMALL + delay + '"2m"')[0]


@pytest.mark.parametrize("extension", ["dsn", "requiretls"])
def test_a_promise_is_made_for_a_delivery_that_may_keep_it(extension):
    promised = SMALL + f"[extensions]\n{extension} = true"
    [problem] = problems_of(promised)
    assert f"extensions.{extension}: cannot be kept by maildir" in problem
    for delivery in ("discard", "mymx:deliver"):
        from_text(promised.replace('path = "mail"', f'use = "{delivery}"'))


def test_the_environment_overrides_the_file():
    config = from_text(
        SMALL,
        {
            "PREFORKMX_WORKERS__COUNT": "4",
            "PREFORKMX_WORKERS__LOOP": "asyncio",
            "PREFORKMX_DOMAINS": '["example.org", "example.net"]',
            "PREFORKMX_LIMITS__MESSAGE_SIZE": "1MiB",
            "PREFORKMX_LISTENER__0__ADDRESS": "127.0.0.1:0",
            "PREFORKMX_LISTENER__1__ADDRESS": "127.0.0.2:0",
            "PREFORKMX_MIDDLEWARE__0__USE": "mymx:check",
            "PREFORKMX_MIDDLEWARE__0__STRICT": "true",
            "PREFORKMX_MIDDLEWARE__0__WORD": "plain text",
            "HOME": "/root",
        },
    ).config
    assert config.workers.count == 4
    assert config.workers.loop == "asyncio"
    assert config.domains == ("example.org", "example.net")
    assert config.limits.message_size == 1 << 20
    assert [listener.address for listener in config.listener] == ["127.0.0.1:0", "127.0.0.2:0"]
    assert config.middleware[0].options == {"strict": True, "word": "plain text"}


def test_a_text_that_looks_like_a_number_stays_text_where_the_key_takes_text(tmp_path):
    certificate(tmp_path)
    text = SMALL + f'[tls]\ncertificate = "{tmp_path}/a.pem"\nkey = "{tmp_path}/a.key"'
    config = from_text(text, {"PREFORKMX_TLS__MINIMUM_VERSION": "1.3"}).config
    assert config.tls.minimum_version == "1.3"


def test_the_use_of_a_table_decides_how_its_variables_are_read():
    environ = {"PREFORKMX_DELIVERY__PATH": "123", "PREFORKMX_DELIVERY__USE": "maildir"}
    assert from_text(SMALL, environ).config.delivery.path == Path("/etc/mx/123")


def test_tables_of_variables_are_made_in_the_order_of_their_indices():
    environ = {f"PREFORKMX_LISTENER__{i}__ADDRESS": f"127.0.0.1:{4000 + i}" for i in range(12)}
    listeners = from_text(SMALL, environ).config.listener
    assert [each.address for each in listeners] == list(environ.values())


def test_two_variables_for_one_key_are_refused():
    environ = {"PREFORKMX_LIMITS__ERRORS": "5", "PREFORKMX_limits__errors": "6"}
    [problem] = problems_of(SMALL, environ)
    assert problem == (
        "PREFORKMX_LIMITS__ERRORS: limits.errors: is given by PREFORKMX_LIMITS__ERRORS and by "
        "PREFORKMX_limits__errors"
    )


def test_the_environment_alone_can_be_the_configuration():
    environ = {
        "PREFORKMX_HOSTNAME": "mx.example.com",
        "PREFORKMX_DOMAINS": '["*"]',
        "PREFORKMX_LISTENER__0__ADDRESS": "127.0.0.1:0",
        "PREFORKMX_DELIVERY__USE": "discard",
    }
    assert isinstance(from_text("", environ).config.delivery, Discard)


def test_a_problem_of_a_variable_names_the_variable():
    [problem] = problems_of(SMALL, {"PREFORKMX_WORKERS__COUNT": "many"})
    assert problem == (
        'PREFORKMX_WORKERS__COUNT: workers.count: must be "auto" or a whole number from 1 to '
        '1024 (got "many")'
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("PREFORKMX_WORKRES__COUNT", 'workres.count: names no key (did you mean "workers"?)'),
        ("PREFORKMX_WORKERS__CUONT", 'workers.cuont: unknown key (got 1; did you mean "count"?)'),
        (
            "PREFORKMX_LISTENER__2__BACKLOG",
            "listener[2].backlog: has no place: listener has 1 elements",
        ),
        ("PREFORKMX_HOSTNAME__X", "hostname.x: has no place: hostname is not a table"),
        ("PREFORKMX_", '"": names no key'),
    ],
)
def test_a_variable_that_names_no_key_is_refused(name, problem):
    assert problems_of(SMALL, {name: "1"}) == [f"{name}: {problem}"]


def test_what_kubernetes_says_about_a_service_of_our_name_is_left_alone():
    from_text(
        SMALL,
        {
            "PREFORKMX_SERVICE_HOST": "10.0.0.1",
            "PREFORKMX_SERVICE_PORT": "25",
            "PREFORKMX_SERVICE_PORT_SMTP": "25",
            "PREFORKMX_PORT": "tcp://10.0.0.1:25",
            "PREFORKMX_PORT_25_TCP": "tcp://10.0.0.1:25",
            "PREFORKMX_PORT_25_TCP_PROTO": "tcp",
            "PREFORKMX_PORT_25_TCP_PORT": "25",
            "PREFORKMX_PORT_25_TCP_ADDR": "10.0.0.1",
            "PREFORKMX_STORE_SERVICE_HOST": "10.0.0.2",
        },
    )


_names = st.lists(
    st.sampled_from(["workers", "count", "listener", "0", "1", "delivery", "use", "x", "", "tls"]),
    min_size=1,
    max_size=4,
).map(lambda parts: "PREFORKMX_" + "__".join(parts).upper())


@settings(deadline=None)
@given(st.dictionaries(_names, st.text(max_size=8) | st.just("[[1]]"), max_size=4))
def test_any_environment_is_taken_or_refused_with_problems(environ):
    try:
        from_text(SMALL, environ)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either is right


_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.data())
def test_any_value_of_any_key_is_taken_or_refused_with_its_path(data):
    from preforkmx.config.toml import dump_key, dump_value

    section = data.draw(st.sampled_from(sorted(Config.model_fields)))
    value = data.draw(_values)
    text = f"{dump_key(section)} = {dump_value(value)}\n"
    assert tomllib.loads(text).keys() == {section}
    for problem in problems_of(text):
        assert problem.startswith("file.toml")


def test_without_an_application_the_file_names_host_domains_and_delivery():
    assert [problem.split(": ")[1] for problem in problems_of("")] == [
        "listener",
        "hostname",
        "domains",
        "delivery",
    ]


def test_with_an_application_the_file_needs_only_a_listener():
    config = from_text('[[listener]]\naddress = "127.0.0.1:0"', app=True).config
    assert config.delivery is None


def test_delivery_limits_and_extensions_beside_an_application_are_refused():
    problems = problems_of(SMALL + "[limits]\nerrors = 5\n[extensions]\ndsn = true", app=True)
    assert problems == [
        "file.toml:7: delivery: belongs to the application that --app names (leave it out)",
        "file.toml:9: limits: belongs to the application that --app names (leave it out)",
        "file.toml:11: extensions: belongs to the application that --app names (leave it out)",
    ]


@pytest.mark.parametrize("address", ["0.0.0.0:2525", "192.0.2.1:25", "[::]:25"])
def test_without_a_file_only_loopback_is_listened_on(address):
    environ = {"PREFORKMX_LISTENER__0__ADDRESS": address}
    [problem] = problems_of(SMALL, environ, loopback_only=True)
    assert "must be loopback without a configuration file" in problem
    from_text(SMALL, environ, loopback_only=False)
    for local in ("[::1]:0", "unix:/run/smtp.sock"):
        from_text(SMALL, {"PREFORKMX_LISTENER__0__ADDRESS": local}, loopback_only=True)


def test_more_sessions_than_open_files_are_refused(monkeypatch):
    monkeypatch.setattr("preforkmx.config.load.most_open_files", lambda: 4096)
    [problem] = problems_of(SMALL)
    assert problem == (
        "file.toml: workers.max_sessions: does not fit the limit of 4096 open files "
        "(got 10000; at most 3840, or raise the limit (ulimit -Hn, LimitNOFILE=))"
    )
    from_text(SMALL, {"PREFORKMX_WORKERS__MAX_SESSIONS": "3840"})


def certificate(folder, *names):
    authority = trustme.CA()
    for name in names or ("a",):
        pair = authority.issue_cert("mx.example.com")
        pair.private_key_pem.write_to_path(folder / f"{name}.key")
        for index, pem in enumerate(pair.cert_chain_pems):
            pem.write_to_path(folder / f"{name}.pem", append=index > 0)


def with_tls(folder, certificate, key):
    return SMALL + f'[tls]\ncertificate = "{folder}/{certificate}"\nkey = "{folder}/{key}"'


def test_a_certificate_and_its_key_are_taken(tmp_path):
    certificate(tmp_path)
    assert from_text(with_tls(tmp_path, "a.pem", "a.key")).config.tls is not None


def test_a_key_of_another_certificate_is_refused(tmp_path):
    certificate(tmp_path, "a", "b")
    [problem] = problems_of(with_tls(tmp_path, "a.pem", "b.key"))
    assert problem == (
        "file.toml:11: tls.key: does not belong to the certificate "
        f'(got "{tmp_path}/b.key"; not the key of {tmp_path}/a.pem)'
    )


def test_files_that_are_no_certificate_or_no_key_are_refused(tmp_path):
    certificate(tmp_path)
    (tmp_path / "text").write_text("hello")
    assert "holds no PEM certificate" in problems_of(with_tls(tmp_path, "text", "a.key"))[0]
    assert "holds no PEM private key" in problems_of(with_tls(tmp_path, "a.pem", "text"))[0]


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path):
    from cryptography.hazmat.primitives import serialization

    certificate(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "a.key").read_bytes(), None)
    (tmp_path / "locked.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    [problem] = problems_of(with_tls(tmp_path, "a.pem", "locked.key"))
    assert "is protected by a passphrase" in problem


def test_a_file_that_is_not_there_is_a_problem(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.toml: No such file or directory"):
        read_document(tmp_path / "no.toml")


def test_a_file_that_is_not_text_is_a_problem_with_its_line(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# one\n# two\nhostname = 'b\xfccher'\n")
    with pytest.raises(ConfigError, match=r"latin\.toml:3: not UTF-8 text"):
        read_document(path)


def test_a_file_without_an_end_is_not_read_to_it():
    with pytest.raises(ConfigError, match=f"larger than {LARGEST_FILE} octets"):
        read_document(Path("/dev/zero"))


def test_nesting_without_an_end_is_a_problem():
    [problem] = problems_of("x = " + "[" * 100_000)
    assert problem == "file.toml: arrays or tables nested too deeply"


def test_an_entry_point_is_known_middleware(monkeypatch):
    from importlib.metadata import EntryPoint, EntryPoints

    installed = EntryPoints([EntryPoint("site_quota", "site:quota", "preforkmx.middleware")])
    monkeypatch.setattr("preforkmx.config.read.entry_points", lambda group: installed)
    loaded = from_text(SMALL + '[[middleware]]\nuse = "site_quota"\nlimit = 3')
    assert loaded.config.middleware[0].options == {"limit": 3}
    [problem] = problems_of(SMALL + '[[middleware]]\nuse = "site_qouta"')
    assert 'did you mean "site_quota"?' in problem
