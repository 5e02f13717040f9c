"""The document that a master leaves: whatever its state, it is the same on the other side."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import ip_network
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.master.document import BadDocument, parse, render
from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import FORMAT, ChildState, Handover, SlotState, read_handover
from preforkmx.session.listener import Listener

ADDRESSES = ("127.0.0.1:25", "[::]:0", "unix:/run/mx.sock", "0.0.0.0:2525")
NETWORKS = tuple(map(ip_network, ("127.0.0.0/8", "::1/128", "2001:db8::/32")))

LISTENERS = st.builds(
    Listener,
    st.sampled_from(ADDRESSES),
    tls=st.sampled_from(["starttls", "implicit", "off"]),
    backlog=st.integers(1, 65535),
    protocol=st.sampled_from(["smtp", "lmtp"]),
    proxy_protocol=st.booleans(),
    proxy_from=st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=2).map(tuple),
    xclient_from=st.lists(st.sampled_from(NETWORKS), max_size=2).map(tuple),
)
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    Listener: LISTENERS,
    NoneType: st.none(),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    # Surrogates too: a path's octets may be no UTF-8.
    str: st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
}


def any_value(kind: Any) -> st.SearchStrategy[Any]:
    """Return every value that a field of this type can have."""
    if kind in LEAVES:
        return LEAVES[kind]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: any_value(hint) for name, hint in hints.items()})
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return st.lists(any_value(arguments[0]), max_size=2).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(arguments)
    return st.one_of([any_value(argument) for argument in reversed(arguments)])


HANDOVERS = any_value(Handover)


@given(HANDOVERS)
def test_any_state_survives(handover: Handover) -> None:
    handover = dataclasses.replace(handover, format=FORMAT)
    assert read_handover(render(handover)) == handover


@given(HANDOVERS)
def test_every_descriptor_is_named_once(handover: Handover) -> None:
    numbers = list(handover.descriptors())
    assert numbers == sorted(set(numbers))
    assert {child.channel for child in handover.holdings.children} <= set(numbers)
    assert {fd for port in handover.holdings.ports for fd in port.sockets} <= set(numbers)
    assert handover.holdings.lock in numbers


@given(HANDOVERS, st.integers().filter(lambda number: number != FORMAT))
def test_another_format_is_refused_whatever_it_holds(handover: Handover, number: int) -> None:
    octets = render(dataclasses.replace(handover, format=number))
    for text in (octets, json.dumps({"format": number, "more": [1]}).encode()):
        with pytest.raises(StartRefused, match=f"has format {number}, and this program reads"):
            read_handover(text)


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_what_is_no_handover_is_refused(octets: bytes) -> None:
    with pytest.raises(StartRefused, match="cannot be taken over from"):
        read_handover(octets)


@given(HANDOVERS, st.data())
def test_a_value_of_another_type_is_refused_with_its_place(
    handover: Handover, data: st.DataObject
) -> None:
    document = json.loads(render(dataclasses.replace(handover, format=FORMAT)))
    key = data.draw(st.sampled_from(sorted(set(document) - {"format", "identity"})))
    document[key] = None
    with pytest.raises(StartRefused, match=key):
        read_handover(json.dumps(document).encode())


SLOT = SlotState(
    index=0,
    holder=1,
    successor=None,
    stand_in=None,
    retired=(2, 3),
    crashes=0,
    refill_at=None,
    leaving=False,
)


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(render(SLOT)), **values}).encode()


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "the document is not an object"),
        (changed(retired=[2, "3"]), r"retired\[1\] is not int: '3'"),
        (changed(leaving=1), "leaving is not bool: 1"),
        (changed(holder=True), "holder is not int: True"),
        (changed(refill_at="soon"), "refill_at is not float: 'soon'"),
        (changed(later="more"), "later is not known to this version"),
        (b'{"index": 0}', "holder is missing"),
    ],
)
def test_a_document_that_is_wrong_says_where(octets: bytes, problem: str) -> None:
    with pytest.raises(BadDocument, match=problem):
        parse(SlotState, octets)


def test_a_key_that_is_missing_gets_its_default() -> None:
    assert parse(Listener, b'{"address": "127.0.0.1:25"}') == Listener("127.0.0.1:25")


def test_a_value_that_the_class_refuses_is_a_bad_document() -> None:
    with pytest.raises(BadDocument, match="is not HOST:PORT"):
        parse(Listener, b'{"address": "nowhere"}')


def test_a_state_that_is_none_is_refused() -> None:
    fields = dict.fromkeys((field.name for field in dataclasses.fields(ChildState)), 0)
    with pytest.raises(BadDocument):
        parse(ChildState, json.dumps({**fields, "state": "gone"}).encode())
