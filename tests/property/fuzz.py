"""The program of scripts/fuzz."""

# ruff: noqa: T201 - it is a program
from __future__ import annotations

import argparse
import itertools
import secrets
import signal
import sys
import time
import traceback

import streams

HANG_SECONDS = 10.0
REPORT_EVERY = 10_000


class Hang(BaseException):
    """A stream took longer than :data:`HANG_SECONDS`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--streams", type=int, help="stop after so many (default: never)")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="default: a random one")
    parser.add_argument("--replay", metavar="NAME", help="run one stream again, SEED:NUMBER")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    if options.replay:
        return 0 if _survives(options.replay) else 1
    print(f"seed {options.seed}", flush=True)
    begin = time.monotonic()
    numbers = itertools.count() if options.streams is None else range(options.streams)
    number = -1
    try:
        for number in numbers:
            if not _survives(f"{options.seed}:{number}"):
                return 1
            if (number + 1) % REPORT_EVERY == 0:
                rate = (number + 1) / (time.monotonic() - begin)
                print(f"{number + 1} streams, {rate:.0f}/s", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{number + 1} streams, none of which broke the core")
    return 0


def _survives(name: str) -> bool:
    stream = streams.random_stream(name)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        streams.run(stream)
    except (Exception, Hang):
        traceback.print_exc()
        print(f"\nstream {name} broke the core; scripts/fuzz --replay {name}\n{stream!r}")
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def _hang(_number: int, _frame: object) -> None:
    raise Hang(f"no end after {HANG_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
