"""URLs of Redis: whatever is written, it is read back the same or refused in one way."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st

from preforkmx.state.redis.url import SCHEMES, Address, Kind, Target, Tls, parse

HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
ADDRESSES = st.builds(Address, HOSTS, st.integers(1, 65_535))
# What a user may choose: anything but what cannot be said, NUL.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@st.composite
def targets(draw):
    kind = draw(st.sampled_from(Kind))
    tls = draw(st.none() | st.builds(Tls, *[st.just("") | TEXTS] * 2, st.just(""), TEXTS))
    password = draw(st.just("") | TEXTS)
    user = draw(st.just("") | TEXTS) if password else ""
    database = draw(st.integers(0, 16_383)) if kind is not Kind.CLUSTER else 0
    if kind is Kind.SINGLE:
        addresses = (draw(ADDRESSES),)
        if tls is None and draw(st.booleans()):
            path = "/" + draw(TEXTS.filter(lambda text: len(text.encode()) < 107))
            addresses = (Address(path, 0),)
    else:
        addresses = tuple(draw(st.lists(ADDRESSES, min_size=1, max_size=5)))
    service = draw(TEXTS) if kind is Kind.SENTINEL else ""
    return Target(kind, addresses, database, user, password, tls, service)


def with_password(target: Target) -> str:
    scheme, _, rest = target.shown.partition("://")
    if not target.password:
        return target.shown
    _, _, rest = rest.rpartition("@") if target.user else ("", "", rest)
    user, password = quote(target.user, safe=""), quote(target.password, safe="")
    return f"{scheme}://{user}:{password}@{rest}"


@given(targets())
def test_what_is_shown_is_read_as_the_same_target(target):
    assert parse(with_password(target)) == target


@given(targets().filter(lambda target: len(target.password) > 6))
def test_what_is_shown_has_no_password(target):
    other = Target(
        target.kind,
        target.addresses,
        target.database,
        target.user,
        "another",
        target.tls,
        target.service,
    )
    assert (target.shown, repr(target)) == (other.shown, repr(other))


@given(
    st.builds("{}://{}".format, st.sampled_from(SCHEMES), st.text(max_size=60))
    | st.text(max_size=30)
    | st.builds(
        "{}://{}".format,
        st.sampled_from(SCHEMES),
        st.text("ab:@/?#[],%&=0189", max_size=40),
    )
)
@example("redis://[::1%25eth0]")
@example("redis://a@b:c@d")
def test_any_text_is_a_target_or_a_value_error(text):
    try:
        target = parse(text)
    except ValueError as exc:
        assert type(exc) is ValueError  # noqa: PT017 - no subclass that carries the text
    else:
        assert parse(with_password(target)) is not None
        assert target.addresses
