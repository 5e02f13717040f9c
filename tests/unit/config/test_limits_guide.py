"""What the guide to limits shows can be used as it stands there, and reaches the store."""

from __future__ import annotations

import asyncio
import re
from ipaddress import ip_address
from pathlib import Path

from preforkmx.app.chain import make_middleware
from preforkmx.app.resolver import SharedResolver
from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import RateLimit, Users
from preforkmx.config.rules import LIMITS
from preforkmx.config.schema import Dns
from preforkmx.context import Context
from preforkmx.model import Peer
from preforkmx.state.decisions import ConnectionLimits, Rate
from preforkmx.state.local import LocalStore

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "limit-clients.md"

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "0.0.0.0:25"
[tls]
certificate = "fullchain.pem"
key = "privkey.pem"
[delivery]
use = "discard"
"""


class Asked(LocalStore):
    """Remembers what it is asked."""

    def __init__(self):
        super().__init__()
        self.limits_asked = None
        self.rates = {}

    async def open_connection(self, address, limits):
        self.limits_asked = limits
        return await super().open_connection(address, limits)

    async def take(self, limit, key, cost=1):
        self.rates[key] = limit
        return await super().take(limit, key, cost)


def tables(text):
    document = Document(SITE + text, "guide", Path("/etc/mx"))
    return load(document, {}, look_at_files=False).config.middleware


def asked(table, number=1):
    """Return what a session of this table's middleware asks the store."""
    store = Asked()
    middleware = make_middleware(table, store, number, SharedResolver(Dns()))

    async def session():
        peer = Peer(ip_address("198.51.100.1"), 40000, "mx.example.com", "0.0.0.0:25")
        peer = peer._replace(username="joe")
        ctx = await middleware.check_connection(Context(), peer) or Context()
        if middleware.check_sender is not None:
            await middleware.check_sender(ctx, peer, "joe@example.org")
        if middleware.check_recipient is not None:
            await middleware.check_recipient(ctx, peer, "ann@example.com")

    asyncio.run(session())
    return store


def test_the_configuration_of_the_guide_is_what_the_store_is_asked():
    [text] = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    limits, users = tables(text)
    assert type(limits) is RateLimit
    assert type(users) is Users
    store = asked(limits)
    assert store.limits_asked == ConnectionLimits(
        "rate_limit",
        host=Rate(60, 60.0, 120),
        network=Rate(600, 60.0, 600),
        concurrent=50,
        messages=Rate(600, 3600.0, 600),
        recipients=Rate(6000, 3600.0, 6000),
        auth_failures=Rate(10, 3600.0, 10),
        octets=Rate(2 << 20, 3600.0, 2 << 20),
        errors=Rate(200, 3600.0, 200),
    )
    assert store.rates == {"rate_limit:per_recipient:ann@example.com": Rate(2000, 3600.0, 2000)}


def test_the_rates_of_addresses_and_users_are_taken_too():
    (table,) = tables("""
    [[middleware]]
    use = "rate_limit"
    per_sender = "5/min"
    per_user = "7/min"
    """)
    assert asked(table, 2).rates == {
        "rate_limit 2:per_sender:joe@example.org": Rate(5, 60.0, 5),
        "rate_limit 2:per_user:joe": Rate(7, 60.0, 7),
    }


def test_the_guide_tells_of_every_limit():
    text = GUIDE.read_text()
    assert [limit for limit in LIMITS if f"`{limit}`" not in text] == []
