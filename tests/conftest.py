"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# The same inputs on each run: whether a change is taken must not depend on luck. TEST_RANDOM=1
# looks for new ones, and scripts/fuzz does it for as long as one likes.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("random" if os.environ.get("TEST_RANDOM") else "same")
