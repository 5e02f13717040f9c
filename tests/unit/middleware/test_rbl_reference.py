"""Any lists that answer in any order, early end and all, against asking each and adding up."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, ip_address

from hypothesis import given
from hypothesis import strategies as st
from scripted_lists import ScriptedLists

from preforkmx.context import Context
from preforkmx.errors import DNSServerFailure, SMTPError
from preforkmx.middleware import RBL, DNSList, rbl_listings
from preforkmx.middleware.rbl_lookup import MAX_TEXT, harmless
from preforkmx.middleware.verdicts import ALLOW_LISTED
from preforkmx.model import Peer

PEER = Peer(
    address=ip_address("192.0.2.1"),
    port=40000,
    server_name="mx.example.com",
    listener="127.0.0.1:25",
    helo_name="client.example.net",
)
SENDER = "joe@sender.example.org"
NAMES = ("192.0.2.1", "client.example.net", "sender.example.org")

ANSWERS = st.sampled_from(
    [
        (),
        ("127.0.0.2",),
        ("127.0.0.3", "127.0.0.9"),
        ("203.0.113.1",),
        DNSServerFailure("SERVFAIL"),
    ]
)
CODES = st.sampled_from([("127.0.0.2",), ("127.0.0.3-127.0.0.8",), ("127.0.0.2-127.0.0.9",)])


class Script(ScriptedLists):
    """Answers after so many turns of the loop; some never."""

    def __init__(self, turns):
        super().__init__()
        self._turns = turns

    async def a(self, name):
        for _ in range(self._turns.get(name, 0)):
            await asyncio.sleep(0)
        return await super().a(name)


@st.composite
def sites(draw):
    """Lists, what each says of whom, and after how many turns of the loop."""
    lists = []
    script = Script({})
    for number in range(draw(st.integers(1, 5))):
        # Several tables may be of one zone.
        zone = f"l{draw(st.integers(0, number))}.example.org"
        kind = draw(st.sampled_from(["ip", "ip", "domain"]))
        weight = draw(st.integers(1, 4) if kind == "domain" else st.integers(-4, 4).filter(bool))
        lists.append(DNSList(zone=zone, kind=kind, weight=weight, codes=draw(CODES)))
    for zone in {each.zone for each in lists}:
        for name in NAMES:
            answer = draw(ANSWERS)
            if isinstance(answer, Exception):
                script.fails(name, zone, answer)
            elif answer:
                script.lists(name, zone, *answer)
    script._turns = {name: draw(st.integers(0, 6)) for name in sorted(script.answers)}
    most = sum(max(each.weight, 0) for each in lists)
    return lists, script, draw(st.integers(1, most or 1))


def reference(lists, script, names):
    """The score of a client that has these names."""
    total = 0
    for each in lists:
        subjects = [name for name in names if name[0].isdigit() == (each.kind == "ip")]
        said = []
        for subject in subjects:
            key = "1.2.0.192" if each.kind == "ip" else subject
            answer = script.answers.get(f"{key}.{each.zone}", ())
            said += [] if isinstance(answer, Exception) else answer
        counted = [code for code in said if any(within(code, text) for text in each.codes)]
        total += each.weight if counted else 0
    return total


def within(code, text):
    first, _, last = text.partition("-")
    return IPv4Address(first) <= code <= IPv4Address(last or first)


async def verdicts(rbl):
    """Whether each phase refuses, up to the first that does, and the last Context."""
    ctx = Context()
    phases = [
        (rbl.connection_check, (PEER._replace(helo_name=""),)),
        (rbl.helo_check, (PEER, PEER.helo_name)),
        (rbl.sender_check, (PEER, SENDER)),
    ]
    for number, (check, arguments) in enumerate(phases, 1):
        try:
            ctx = await check(ctx, *arguments) or ctx
        except SMTPError:
            return number, ctx
    return None, ctx


@given(sites())
def test_every_phase_refuses_as_if_all_lists_had_been_asked(site):
    lists, script, threshold = site
    totals = [reference(lists, script, NAMES[:count]) for count in (1, 2, 3)]
    refused_at, ctx = asyncio.run(verdicts(RBL(lists, threshold=threshold, resolver=script)))
    expected = [number for number, total in enumerate(totals, 1) if total >= threshold]
    assert refused_at == (expected[0] if expected else None)
    if refused_at is None:
        assert (ctx.value(ALLOW_LISTED) is not None) == (totals[2] < 0)


@given(sites())
def test_where_it_marks_the_listings_are_complete(site):
    lists, script, threshold = site
    rbl = RBL(lists, threshold=threshold, on_fail="mark", resolver=script)
    refused_at, ctx = asyncio.run(verdicts(rbl))
    assert refused_at is None
    score = sum(each.weight for each in rbl_listings(ctx))
    assert score == reference(lists, script, NAMES)


@given(st.binary(max_size=2000) | st.text().map(str.encode))
def test_whatever_a_list_says_becomes_one_line_of_printable_ascii(text):
    line = harmless(text)
    assert line.isascii()
    assert line.isprintable()
    assert line == line.strip()
    assert len(line) <= MAX_TEXT
