"""What the protocol core tells its caller.

After :class:`Hello`, :class:`Mail`, :class:`Rcpt`, :class:`Data`, :class:`Reset`,
:class:`Quit`, :class:`Verify`, :class:`StartTLS`, :class:`Credentials` and :class:`Forwarded`
the core waits for ``accept()`` or ``refuse()``; after :class:`Bdat` for ``accept()``; after
:class:`End` for ``finish()``. :class:`Hello`, :class:`Reset` and :class:`Quit` may come between
the chunks of a message: then it will never be complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preforkmx.protocol.dsn import RecipientDSN
    from preforkmx.protocol.parameters import MailParameters
    from preforkmx.protocol.replies import Reply
    from preforkmx.protocol.xclient import XClient


@dataclass(slots=True)
class NeedData:
    """Everything that arrived has been read."""


@dataclass(slots=True)
class Pause:
    """The core answered many commands by itself and there are more: let others have a turn."""


@dataclass(slots=True)
class Gone:
    """The client closed its side, and everything before that has been read."""


@dataclass(slots=True)
class Closing:
    """The core has written its last reply: send it and close, lingering."""

    reply: Reply


@dataclass(slots=True)
class Hello:
    """HELO or EHLO."""

    name: str
    extended: bool
    """EHLO."""


@dataclass(slots=True)
class Mail:
    """MAIL with its reverse path, ``""`` for the null one."""

    path: str
    parameters: MailParameters


@dataclass(slots=True)
class Rcpt:
    """RCPT with its forward path."""

    path: str
    dsn: RecipientDSN | None = None
    """What it asked about notifications (RFC 3461)."""


@dataclass(slots=True)
class Data:
    """DATA; accepting it writes 354."""


@dataclass(slots=True)
class Bdat:
    """The first BDAT of a message; accepting it writes nothing: the chunk comes first."""


@dataclass(slots=True)
class Chunk:
    """Octets of the message."""

    octets: bytes


@dataclass(slots=True)
class End:
    """The message is over.

    A `fault` is what its octets are refused with: it wins over whatever a handler says.
    """

    size: int
    """Its octets as they came over the wire."""
    fault: Reply | None


@dataclass(slots=True)
class Reset:
    """RSET."""


@dataclass(slots=True)
class Quit:
    """QUIT."""


@dataclass(slots=True)
class Verify:
    """VRFY with its argument."""

    text: str
    smtputf8: bool = False
    """The reply may hold UTF-8 (RFC 6531 section 3.7.4.2)."""


@dataclass(slots=True)
class StartTLS:
    """STARTTLS; accepting it writes 220."""


@dataclass(slots=True)
class Forwarded:
    """XCLIENT: a proxy tells who its client is.

    Accepting it writes nothing: the session is greeted again, or shut.
    """

    client: XClient


@dataclass(slots=True)
class Foreign:
    """The client speaks another protocol: close without a word."""


@dataclass(slots=True)
class Credentials:
    """The end of an AUTH exchange."""

    username: str
    password: str = field(repr=False)
    mechanism: str


Event = (
    NeedData
    | Pause
    | Gone
    | Closing
    | Hello
    | Mail
    | Rcpt
    | Data
    | Bdat
    | Chunk
    | End
    | Reset
    | Quit
    | Verify
    | StartTLS
    | Credentials
    | Forwarded
    | Foreign
)
