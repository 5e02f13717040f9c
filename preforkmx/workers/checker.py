"""The checker: a forked process that tries what a worker would do at its boot, then exits.

It imports the site's code, which the master never does: what that code leaves behind, or
breaks, goes away with the process.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from preforkmx.errors import ConfigError
from preforkmx.workers import process

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.workers.channel import Channel

EXIT_CONFIGURATION = 2
"""The configuration is wrong; the problems went over the channel."""

_LAST_WORDS_SECONDS = 1.0

_logger = logging.getLogger("preforkmx.workers")


def run_checker(
    check: Callable[[], None], channel: Channel, *, log_format: str, log_level: str
) -> int:
    """Call `check`, report what it raises, and return the exit status; called in the child."""
    process.die_with_parent(signal.SIGKILL)
    log = process.settle("checker", log_format=log_format, log_level=log_level, log_name="checker")
    try:
        check()
    except ConfigError as error:
        channel.post_failure(process.describe(error))
        return EXIT_CONFIGURATION
    except Exception as error:
        _logger.debug("the check failed", exc_info=True)
        channel.post_failure(process.describe(error))
        return process.EXIT_BOOT
    finally:
        log.close(_LAST_WORDS_SECONDS)
    return process.EXIT_ASKED
