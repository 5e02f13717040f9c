"""What one middleware found out about a client, for others to read from the Context.

::

    return ctx.with_value(SPF_PASSED, "example.org")

Whoever sets a value that depends on the reverse path sets it at each MAIL: None takes it back.
"""

from __future__ import annotations

from typing import Final


class Verdict:
    """A key of :meth:`Context.value <preforkmx.context.Context.value>` that is everybody's."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


SPF_PASSED: Final = Verdict("SPF_PASSED")
"""The domain that allows this client to send for it (RFC 7208 section 2.6.3, "pass"): its name
in lower case, as A-labels. The greylist knows the client by it, wherever it connects from."""

ALLOW_LISTED: Final = Verdict("ALLOW_LISTED")
"""Who vouches for the client: the name of an allow list, of DNSWL say. It is not greylisted."""
