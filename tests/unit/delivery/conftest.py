from __future__ import annotations

import pytest
from maildirs import Maildirs


@pytest.fixture
def maildirs(tmp_path):
    return Maildirs(tmp_path / "mail")
