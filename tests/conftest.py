"""What holds for every test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.redis_servers import Server

# The same inputs on each run: whether a change is taken must not depend on luck. TEST_RANDOM=1
# looks for new ones, and scripts/fuzz does it for as long as one likes. Nor on how busy the
# machine is: slowness is no failure.
_SLOW = (HealthCheck.too_slow,)
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("random", deadline=None, suppress_health_check=_SLOW)
settings.load_profile("random" if os.environ.get("TEST_RANDOM") else "same")


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """A redis-server that runs as long as this process' tests.

    Each process of pytest-xdist has one of its own. Who uses it empties it first.
    """
    from tests.integration.redis_servers import redis_server

    with redis_server() as server:
        yield server
