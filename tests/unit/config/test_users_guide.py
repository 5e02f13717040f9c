"""What the guide to authentication shows can be used as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from preforkmx.config.load import Document, load
from preforkmx.config.middleware_tables import RequireAuth, Users

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "authenticate-users.md"


def test_the_configuration_of_the_guide_is_a_submission_server():
    [text] = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    config = load(Document(text, "guide", Path("/etc/mx")), {}, look_at_files=False).config
    assert [type(table) for table in config.middleware] == [Users, RequireAuth]
    users = config.middleware[0]
    assert users.file == Path("/etc/mx/users")
    assert (users.threads, users.waiting) == (None, 64)
    assert config.domains == ("*",)
