"""Inputs of the fuzz targets: the committed ones, and ones made from them by changes at random.

The same name gives the same input, on every machine.
"""

from __future__ import annotations

import ast
import functools
import random
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MOST = 4096
"""Octets of an input."""


@functools.cache
def corpus(target: str) -> tuple[bytes, ...]:
    """Return the committed inputs of `target`: each line of its file is a bytes literal.

    Lines that begin with ``#`` are comments.
    """
    lines = (CORPUS / f"{target}.txt").read_text(encoding="ascii").splitlines()
    return tuple(ast.literal_eval(line) for line in lines if line and not line.startswith("#"))


def generated(target: str, tokens: tuple[bytes, ...], name: str) -> bytes:
    """Return the input of this name: one or two of the corpus, changed in some places."""
    rng = random.Random(f"{target} {name}")
    seeds = corpus(target)
    octets = rng.choice(seeds)
    if rng.random() < 0.2:
        other = rng.choice(seeds)
        octets = octets[: rng.randrange(len(octets) + 1)] + other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        octets = mutated(rng, octets, tokens)
    return octets[:MOST]


def mutated(rng: random.Random, octets: bytes, tokens: tuple[bytes, ...]) -> bytes:
    """Return `octets` with one thing changed; `tokens` are what its format is made of."""
    at = rng.randrange(len(octets) + 1)
    end = min(len(octets), at + rng.choice((1, 1, 2, 8, 64)))
    match rng.randrange(8):
        case 0:
            return octets[:at] + rng.randbytes(end - at) + octets[end:]
        case 1:
            return octets[:at] + octets[end:]
        case 2:
            return octets[:at] + octets[at:end] * rng.choice((2, 3, 30)) + octets[end:]
        case 3 | 4:
            return octets[:at] + rng.choice(tokens) + octets[at:]
        case 5:
            return octets[:at] + rng.choice(tokens) + octets[end:]
        case 6 if at < len(octets):
            return octets[:at] + bytes((octets[at] ^ 1 << rng.randrange(8),)) + octets[at + 1 :]
    # The first octets are choices, not content.
    at = rng.randrange(min(4, len(octets)) + 1)
    return octets[:at] + bytes((rng.randrange(256),)) + octets[at + 1 :]


class Choices:
    """Takes an input apart: some octets that choose, then the content."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def octet(self) -> int:
        """Return the next octet, 0 where there is none."""
        at = self._at
        self._at += 1
        return self._data[at] if at < len(self._data) else 0

    def take(self, count: int) -> bytes:
        """Return the next `count` octets, or as many as there are."""
        at = self._at
        self._at = at + count
        return self._data[at : at + count]

    @property
    def left(self) -> bool:
        """There is something to take."""
        return self._at < len(self._data)

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))


def pieces(octets: bytes, cut: int) -> list[bytes]:
    """Cut `octets`: 0 into single ones, 255 not at all, else at places that `cut` decides."""
    if cut == 255:
        return [octets]
    if cut == 0:
        return [octets[at : at + 1] for at in range(len(octets))]
    rng = random.Random(cut)
    most = rng.choice((2, 5, 20, 200))
    cuts = []
    at = 0
    while at < len(octets):
        size = rng.randint(1, most)
        cuts.append(octets[at : at + size])
        at += size
    return cuts
