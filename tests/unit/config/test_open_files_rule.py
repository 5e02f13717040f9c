from __future__ import annotations

import resource

import pytest

from preforkmx.config import open_files
from preforkmx.config.open_files import most_open_files


@pytest.mark.parametrize(
    ("hard", "privileged", "most"),
    [
        (4096, False, 4096),
        (4096, True, None),
        (resource.RLIM_INFINITY, False, resource.RLIM_INFINITY),
    ],
)
def test_only_a_privileged_process_goes_beyond_the_hard_limit(monkeypatch, hard, privileged, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, hard))
    monkeypatch.setattr(open_files, "_privileged", lambda: privileged)
    if most is None:
        assert most_open_files() > hard
    else:
        assert most_open_files() == most
