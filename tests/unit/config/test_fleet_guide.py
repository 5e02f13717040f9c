"""Every configuration that the guide to fleets shows can be used as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.app import chain
from preforkmx.config.load import Document, load
from preforkmx.state.redis.url import Kind

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "run-a-fleet.md"

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "0.0.0.0:25"
[delivery]
use = "discard"
"""

EXAMPLES = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("text", "kind"), list(zip(EXAMPLES, (Kind.SINGLE, Kind.SENTINEL, Kind.CLUSTER), strict=True))
)
def test_each_configuration_of_the_guide_names_the_redis_that_it_is_about(text, kind):
    document = Document(SITE + text, "guide", Path("/etc/mx"))
    state = load(document, {}, look_at_files=False).config.state
    target = chain.redis_target(state)
    assert target is not None
    assert target.kind is kind
    assert "PASSWORD" not in chain.shown(state)
