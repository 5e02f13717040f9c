"""Every file in bad/ is refused with exactly the problems that stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from preforkmx.config.load import load, read_document
from preforkmx.errors import ConfigError

BAD = Path(__file__).parent / "bad"


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.toml")))
def test_a_bad_configuration_is_refused_with_every_problem_at_once(name, monkeypatch):
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigError) as caught:
        load(read_document(Path(f"{name}.toml")), {})
    found = "\n".join(caught.value.problems).replace(str(BAD), "FOLDER") + "\n"
    assert found == (BAD / f"{name}.errors").read_text()


def test_every_expectation_has_its_configuration():
    assert {path.stem for path in BAD.glob("*.errors")} == {
        path.stem for path in BAD.glob("*.toml")
    }


def test_no_expectation_shows_a_secret():
    for path in BAD.glob("*.errors"):
        text = path.read_text()
        assert "s3cret" not in text
        assert "MC4CAQ" not in text
