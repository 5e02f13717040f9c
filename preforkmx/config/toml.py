"""Writes values as TOML: for ``config show``, the example, and the values in error messages."""

from __future__ import annotations

import json
import math
import re
from datetime import date, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preforkmx.config.keys import Path

MASK = "***"
"""What stands where a secret would."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SECRET_KEY = re.compile(r"(?i:password|passwd|secret|token|credential|api_?key)", re.ASCII)
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/?/?)[^/?#@\s]*:[^/?#\s]*@", re.ASCII)
_LONGEST_SHOWN = 80


def dump_value(value: Any) -> str:
    """Return `value` as a TOML value on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return _dump_text(value)
        case date() | time():
            return value.isoformat()
        case list() | tuple():
            return "[" + ", ".join(map(dump_value, value)) + "]"
        case dict():
            inner = ", ".join(f"{dump_key(k)} = {dump_value(v)}" for k, v in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case _:
            raise TypeError(f"TOML has no {type(value).__name__}")


def dump_key(key: str) -> str:
    """Return `key` as it is written before ``=``."""
    return key if _BARE_KEY.fullmatch(key) else _dump_text(key)


def dotted(path: Path) -> str:
    """Return a path as people write it: ``middleware[2].connections`` (indices from 0)."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + dump_key(part)
    return text


def mask(path: Path, value: Any) -> Any:
    """Return `value` without secrets.

    Secret are: the value of a key whose name says so, the user name and password of a URL, and
    a private key written where its file should be named.
    """
    if any(isinstance(part, str) and _SECRET_KEY.search(part) for part in path):
        return MASK
    if isinstance(value, str):
        if "PRIVATE KEY" in value:
            return MASK
        return _USER_INFO.sub(rf"\g<scheme>{MASK}@", value)
    if isinstance(value, dict):
        return {key: mask((*path, key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [mask(path, inner) for inner in value]
    return value


def excerpt(path: Path, value: Any) -> str:
    """Return `value` for an error message: masked, on one line, cut when it is long."""
    text = dump_value(mask(path, value))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _dump_text(text: str) -> str:
    # JSON's escapes are TOML's, but TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
