"""Feeds inputs to one fuzz target until one breaks it, or for as long as --seconds says.

With atheris, which looks at the code that an input reached and goes on from there; where it is
not installed, with inputs made from the corpus at random, each of which has a name.
"""

# ruff: noqa: T201 - it is a program
from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

import targets
from inputs import MOST, corpus, generated

HANG_SECONDS = 10
FOUND = Path(".fuzz")
"""What a target has learnt, a folder each; and the inputs that broke one."""

atheris: ModuleType | None
try:
    import atheris
except ImportError:
    atheris = None


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", choices=targets.NAMES)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so many (0: never)")
    parser.add_argument(
        "--replay", metavar="INPUT", help="run one input again: a file's name, or SEED:NUMBER"
    )
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of the inputs' names")
    parser.add_argument(
        "--random", action="store_true", help="inputs made at random, even where atheris is"
    )
    options = parser.parse_args()
    if options.replay:
        return _replay(options.target, options.replay)
    if atheris is not None and not options.random:
        return _guided(options.target, options.seconds)
    return _random(options.target, options.seed, options.seconds)


def _replay(name: str, which: str) -> int:
    target = targets.target(name)
    path = Path(which)
    octets = path.read_bytes() if path.is_file() else generated(name, target.TOKENS, which)
    print(f"{octets!r}\n{target.check(octets)}")
    return 0


def _guided(name: str, seconds: int) -> int:
    assert atheris is not None
    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(include=["preforkmx.protocol"]):
        target = targets.target(name)
    learnt = FOUND / name
    learnt.mkdir(parents=True, exist_ok=True)
    for number, octets in enumerate(corpus(name)):
        (learnt / f"corpus-{number}").write_bytes(octets)
    dictionary = FOUND / f"{name}.dict"
    dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in target.TOKENS if token))

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except Exception:
            # Ready for the corpus.
            print(f"\nit breaks {name}; a line for tests/fuzz/corpus/{name}.txt:\n{data!r}")
            raise

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={HANG_SECONDS}",
            f"-max_len={MOST}",
            f"-artifact_prefix={FOUND}/{name}-",
            f"-dict={dictionary}",
            "-print_final_stats=1",
            str(learnt),
        ],
        check,
    )
    atheris.Fuzz()
    return 0


def _random(name: str, seed: str, seconds: int) -> int:
    target = targets.target(name)
    begin = time.monotonic()
    count = 0
    try:
        for number in itertools.count():
            if seconds and time.monotonic() - begin > seconds:
                break
            which = f"{seed}:{number}"
            octets = generated(name, target.TOKENS, which)
            try:
                target.check(octets)
            except Exception:
                traceback.print_exc()
                print(f"\nit breaks {name}; scripts/fuzz {name} --replay {which}\n{octets!r}")
                return 1
            count += 1
    except KeyboardInterrupt:
        pass
    print(f"{count} inputs, none of which broke {name}")
    return 0


def _escaped(token: bytes) -> str:
    """Write `token` as libFuzzer's dictionaries want it."""
    return "".join(f"\\x{octet:02x}" for octet in token)


if __name__ == "__main__":
    sys.exit(main())
