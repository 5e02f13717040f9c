"""What the guide to recipients shows can be used as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import AuthenticationResults, Recipients
from preforkmx.middleware.addresses import Recipient
from preforkmx.middleware.recipients_file import read_recipients

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "how-to" / "check-recipients.md").read_text()
RESULTS = (DOCS / "explanation" / "authentication-results.md").read_text()
SITE = """
hostname = "mx.example.com"
{domains}
[[listener]]
address = "0.0.0.0:25"
[delivery]
use = "discard"
"""


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("toml", [*blocks(GUIDE, "toml"), *blocks(RESULTS, "toml")])
def test_every_configuration_can_be_loaded(toml):
    domains = re.findall(r"^domains = .*$", toml.partition("[[")[0], re.MULTILINE)
    text = SITE.format(domains=domains[0] if domains else 'domains = ["example.com"]')
    text += toml.replace(domains[0], "") if domains else toml
    config = load(Document(text, "guide", Path("/etc/mx")), {}, look_at_files=False).config
    assert config.middleware
    assert all(isinstance(each, Recipients | AuthenticationResults) for each in config.middleware)


def test_the_file_is_one(tmp_path):
    (text,) = blocks(GUIDE, "recipients")
    file = tmp_path / "recipients"
    file.write_text(text)
    known = read_recipients(file)

    def targets(address):
        return known.find(Recipient.of(address, "+")).targets

    assert targets("abuse@example.com") == ("joe@example.com",)
    assert targets("joe@example.net") == ("joe@example.com", "archive@example.com")
    assert targets("eve@example.net") == ("ann@example.com",)
    assert targets('"John Doe"@example.com') == targets("eve@lists.example.com") == ()


@pytest.mark.parametrize("key", [key for key in Recipients.model_fields if key != "use"])
def test_every_key_is_named(key):
    assert re.search(rf"\b{key}\b", GUIDE)
