"""Passwords: made comparable (RFC 8265), hashed with Argon2 (RFC 9106), verified.

A hash is text in the PHC format that every Argon2 library writes, with its parameters and its
salt: ``$argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from base64 import b64decode, b64encode
from typing import Final, NamedTuple

from argon2.exceptions import VerifyMismatchError
from argon2.low_level import Type, hash_secret, verify_secret
from argon2.profiles import RFC_9106_LOW_MEMORY

MAX_OCTETS: Final = 1024
"""The longest name and the longest password, as they are sent: normalisation takes time that
grows with the square of a run of combining characters."""

MAX_MEMORY: Final = 1 << 20
"""The most memory that a hash may ask for, in KiB: 1 GiB."""
MAX_TIME: Final = 100
"""The most passes over the memory that a hash may ask for."""
MAX_LANES: Final = 64
"""The most lanes that a hash may ask for: each is a thread."""

#: The numbers that a library writes have no leading zeros, and Argon2 refuses any that has.
_NUMBER = "([1-9][0-9]{0,9})"
_PHC = re.compile(
    rf"\$(argon2(?:id|i|d))\$(?:v=(16|19)\$)?m={_NUMBER},t={_NUMBER},p={_NUMBER}"
    r"\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)",
    re.ASCII,
)
_TYPES: Final = {"argon2id": Type.ID, "argon2i": Type.I, "argon2d": Type.D}


class Parameters(NamedTuple):
    """What makes verifying one hash as costly as verifying another."""

    variant: str
    """``"argon2id"``, ``"argon2i"`` or ``"argon2d"``."""
    version: int
    """16 or 19 (RFC 9106)."""
    memory: int
    """KiB."""
    time: int
    """Passes over the memory."""
    lanes: int
    """Threads."""
    salt: int
    """Octets of the salt."""
    length: int
    """Octets of the hash."""


def parse_hash(text: str) -> Parameters:
    """Return the parameters of a hash; what is accepted here, :func:`verify` can verify.

    :raises ValueError: it is no Argon2 hash, or one that costs too much. The text has nothing
        of it.
    """
    match = _PHC.fullmatch(text)
    if match is None:
        raise ValueError("what follows the name is no Argon2 hash")
    variant, version, memory, time, lanes, salt, digest = match.groups()
    found = Parameters(
        variant,
        int(version or 16),
        int(memory),
        int(time),
        int(lanes),
        _decoded_length(salt),
        _decoded_length(digest),
    )
    # RFC 9106 section 3.1, and what the library demands of a salt.
    if found.salt < 8 or found.length < 4 or found.memory < 8 * found.lanes:
        raise ValueError("its Argon2 hash has a salt, a hash or a memory that is too small")
    if found.memory > MAX_MEMORY or found.time > MAX_TIME or found.lanes > MAX_LANES:
        raise ValueError(
            f"its Argon2 hash costs too much: at most m={MAX_MEMORY}, t={MAX_TIME}, p={MAX_LANES}"
        )
    return found


def decoy(parameters: Parameters) -> str:
    """Return a hash with these parameters that no password has: random octets."""
    memory, time, lanes = parameters.memory, parameters.time, parameters.lanes
    return (
        f"${parameters.variant}$v={parameters.version}$m={memory},t={time},p={lanes}"
        f"${_encoded(os.urandom(parameters.salt))}${_encoded(os.urandom(parameters.length))}"
    )


def prepare_name(name: str) -> str:
    """Return the form in which user names are compared: NFC, and case matters.

    It is the part of UsernameCasePreserved (RFC 8265 section 3.4) that keyboards and operating
    systems differ in; there is no mapping of widths.
    """
    return unicodedata.normalize("NFC", name)


def prepare_password(password: str) -> bytes:
    """Return the octets that are hashed: OpaqueString (RFC 8265 section 4.2), in UTF-8.

    A space of any kind is the ASCII one, and the whole is in NFC.
    """
    spaced = "".join(" " if unicodedata.category(each) == "Zs" else each for each in password)
    return unicodedata.normalize("NFC", spaced).encode()


def hash_password(password: bytes) -> str:
    """Return a hash with the second recommended parameters of RFC 9106 section 4 (64 MiB)."""
    profile = RFC_9106_LOW_MEMORY
    return hash_secret(
        password,
        os.urandom(profile.salt_len),
        time_cost=profile.time_cost,
        memory_cost=profile.memory_cost,
        parallelism=profile.parallelism,
        hash_len=profile.hash_len,
        type=profile.type,
    ).decode("ascii")


def verify(text: str, password: bytes) -> bool:
    """Say whether `password` has the hash `text`; takes its time, without the GIL.

    :raises argon2.exceptions.VerificationError: it cannot be said, for want of memory.
    """
    variant = text.split("$", 2)[1]
    try:
        return verify_secret(text.encode("ascii"), password, _TYPES[variant])
    except VerifyMismatchError:
        return False


def _encoded(octets: bytes) -> str:
    return b64encode(octets).decode("ascii").rstrip("=")


def _decoded_length(text: str) -> int:
    """Return how many octets `text` stands for; 0 where it is not what :func:`_encoded` writes."""
    try:
        octets = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return 0
    return len(octets) if _encoded(octets) == text else 0
