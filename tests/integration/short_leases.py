"""``preforkmx`` whose leases in Redis are short: what takes 90 s takes :data:`fleet.LEASE`."""

from __future__ import annotations

from preforkmx.cli import main
from preforkmx.state.redis import store

# Of tests.integration.fleet, which is not to be found from here.
LEASE = 3.0

store._LEASE_LIFE = round(LEASE * 1_000_000)
store.RENEW_SECONDS = LEASE / 3
store.LOOK_SECONDS = LEASE / 9

if __name__ == "__main__":
    main(prog_name="preforkmx")
