from __future__ import annotations

import itertools
import sys
from textwrap import dedent

import pytest

_numbers = itertools.count(1)


@pytest.fixture
def site_module(tmp_path, monkeypatch):
    """Write a module of a site into the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written = []

    def write(text, name=None):
        name = name or f"site_module_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(dedent(text))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)
