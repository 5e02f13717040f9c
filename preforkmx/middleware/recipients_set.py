"""A set of recipients that others keep, in Redis say."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.recipients_source import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.middleware.addresses import Recipient
    from preforkmx.state.sets import Sets

_log = logging.getLogger("preforkmx.recipients")

#: That the set cannot be asked is logged once in so many seconds.
REPORT_SECONDS: Final = 60.0


class RecipientSet:
    """The members of one set. A :class:`~preforkmx.middleware.recipients_source.Source`.

    Its members are :func:`~preforkmx.middleware.addresses.comparable` addresses, and ``@`` and a
    domain for all of that domain's. One question asks for the address, the address without its
    extension, and the domain.

    :param sets: who has it.
    :param key: its name.
    :param clock: seconds, from any beginning.
    """

    def __init__(
        self, sets: Sets, key: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sets = sets
        self._key = key
        self._clock = clock
        self._reported = -REPORT_SECONDS

    async def look_up(self, recipient: Recipient) -> Found | None:
        """Return what the set has: the address, it without its extension, or its domain.

        :raises SMTPError: 451 4.4.3 (RFC 3463 section 3.5: directory server failure) while it
            cannot be asked.
        """
        names = (recipient.name, recipient.base, f"@{recipient.domain}")
        try:
            whole, base, domain = await self._sets.contains(self._key, names)
        except StoreUnavailable as error:
            self._report(error)
            raise SMTPError(
                451, "Recipients cannot be looked up at the moment", enhanced=(4, 4, 3)
            ) from error
        if whole or base or domain:
            return Found(extended=base and not whole)
        return None

    def _report(self, error: StoreUnavailable) -> None:
        now = self._clock()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            _log.error("the set of recipients %r cannot be asked: %s", self._key, error)
