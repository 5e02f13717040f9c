"""URLs of Redis: what they name, what is refused, and that no password is shown."""

from __future__ import annotations

import ssl

import pytest
import trustme

from preforkmx.state.redis.url import Address, Kind, Target, Tls, parse

SINGLE, SENTINEL, CLUSTER = Kind.SINGLE, Kind.SENTINEL, Kind.CLUSTER


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://h", Target(SINGLE, (Address("h", 6379),))),
        ("redis://192.0.2.1:7000/5", Target(SINGLE, (Address("192.0.2.1", 7000),), 5)),
        ("redis://[2001:db8::1]:7000", Target(SINGLE, (Address("2001:db8::1", 7000),))),
        ("redis://[2001:db8::1]", Target(SINGLE, (Address("2001:db8::1", 6379),))),
        ("redis://h?db=3", Target(SINGLE, (Address("h", 6379),), 3)),
        ("redis://:pw@h", Target(SINGLE, (Address("h", 6379),), 0, "", "pw")),
        ("redis://joe:p%40%2F%3a@h", Target(SINGLE, (Address("h", 6379),), 0, "joe", "p@/:")),
        ("redis://joe:p@w@h", Target(SINGLE, (Address("h", 6379),), 0, "joe", "p@w")),
        ("rediss://h", Target(SINGLE, (Address("h", 6379),), tls=Tls())),
        (
            "rediss://h?ca=/a%20b.pem&cert=/c.pem&key=/k.pem&tls_name=redis.test",
            Target(
                SINGLE,
                (Address("h", 6379),),
                tls=Tls("/a b.pem", "/c.pem", "/k.pem", "redis.test"),
            ),
        ),
        ("unix:///run/redis.sock", Target(SINGLE, (Address("/run/redis.sock", 0),))),
        (
            "unix://joe:pw@/run/redis.sock?db=2",
            Target(SINGLE, (Address("/run/redis.sock", 0),), 2, "joe", "pw"),
        ),
        (
            "redis+sentinel://a,b:1,[::1]/mail",
            Target(
                SENTINEL,
                (Address("a", 26379), Address("b", 1), Address("::1", 26379)),
                service="mail",
            ),
        ),
        (
            "rediss+sentinel://:pw@a/ma%2Fil/4?sentinel_user=s&sentinel_password=sp",
            Target(
                SENTINEL,
                (Address("a", 26379),),
                *(4, "", "pw", Tls(), "ma/il", "s", "sp"),
            ),
        ),
        (
            "redis+cluster://a,b:7000",
            Target(CLUSTER, (Address("a", 6379), Address("b", 7000))),
        ),
        ("rediss+cluster://a", Target(CLUSTER, (Address("a", 6379),), tls=Tls())),
    ],
)
def test_a_url_names_a_target(url, target):
    assert parse(url) == target


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "begins with"),
        ("redis:h", "begins with"),
        ("http://h", "begins with"),
        ("rediss+unix:///s", "begins with"),
        ("redis://", "host"),
        ("redis://a,b", "one address"),
        ("redis://a,b/1", "one address"),
        ("redis+cluster://a,,b", "host"),
        ("redis+cluster://a,b/1", "only database 0"),
        ("redis+cluster://" + ",".join("a" * 65), "at most 64"),
        ("redis+sentinel://a", "service"),
        ("redis+sentinel://a/", "service"),
        ("redis+sentinel:///mail", "host"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://h:٣", "port"),
        ("redis://h:", "port"),
        ("redis://2001:db8::1", "port"),
        ("redis://[2001:db8::1", "IPv6"),
        ("redis://[192.0.2.1]", "IPv6"),
        ("redis://[::1]x", "IPv6"),
        ("redis://h/x", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/16384", "database"),
        ("redis://h/1/2", "database"),
        ("redis://h/1?db=2", "database"),
        ("redis://joe@h", "PASSWORD"),
        ("redis://joe:@h", "PASSWORD"),
        ("redis://h?ssl=yes", "options"),
        ("redis://h?ca=/x", "options"),
        ("redis://h?db", "options"),
        ("redis://h?db=1&db=2", "twice"),
        ("redis://h?sentinel_password=x", "options"),
        ("rediss://h?key=/k", "cert"),
        ("redis+sentinel://h/s?sentinel_user=x", "sentinel_password"),
        ("redis://h#1", "#"),
        ("redis://h\n", "control"),
        ("redis://h h", "spaces"),
        ("redis://%ff", "UTF-8"),
        ("redis://:%00@h", "%00"),
        ("redis://ho%2Fst", "host"),
        ("unix://h/s", "absolute path"),
        ("unix:///", "absolute path"),
        ("unix:///" + "x" * 107, "absolute path"),
        ("redis://" + "h" * 5000, "at most 4096"),
    ],
)
def test_what_is_none_is_refused_with_a_reason(url, why):
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://joe:s3cret@h/x",
        "redis://joe:s3/cret@h",
        "redis://joe:s3cret@h:port",
        "redis://joe:s3cret%ff@h",
        "redis://joe:s3cret@h?s3cret=1",
        "redis://joe:s3#cret@h",
        "redis://joe:s3?cret@h",
        "http://joe:s3cret@h",
        "redis://s3cret@h",
        "redis://joe:s3cret\u2100@[h",
    ],
)
def test_a_refusal_shows_no_password(url):
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_target_shows_where_it_is_and_no_password():
    target = parse(
        "rediss+sentinel://joe:s3cret@a,b:1/mail/4?sentinel_user=s&sentinel_password=s3cret&ca=/x"
    )
    assert target.shown == "rediss+sentinel://joe@a:26379,b:1/mail/4?ca=/x&sentinel_user=s"
    assert "s3cret" not in repr(target)
    assert str(target) == target.shown
    assert parse("unix://:s3cret@/run/a%20b?db=1").shown == "unix:///run/a%20b?db=1"


class TestTls:
    def test_the_certificate_and_its_name_are_always_verified(self):
        context = Tls().context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname

    def test_a_key_with_a_pass_phrase_is_refused_and_asks_nobody(self, tmp_path):
        from cryptography.hazmat.primitives import serialization

        certificate = trustme.CA().issue_cert("client.test")
        key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
        (tmp_path / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"phrase"),
            )
        )
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        with pytest.raises(ssl.SSLError):
            Tls(certificate=f"{tmp_path}/cert.pem", key=f"{tmp_path}/key.pem").context()
