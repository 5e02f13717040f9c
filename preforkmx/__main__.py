"""``python -m preforkmx`` is the command ``preforkmx``."""

from __future__ import annotations

from preforkmx.cli import main

if __name__ == "__main__":
    main(prog_name="preforkmx")
