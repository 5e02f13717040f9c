"""Looking up names: one :class:`Resolver` for each worker, over dnspython's names.

docs/explanation/dns.md says how it works and what bounds it.
"""

from __future__ import annotations

from preforkmx.dns.answer import MX, Answer, Record, RecordType
from preforkmx.dns.names import list_name, reverse_name
from preforkmx.dns.resolver import Resolver

__all__ = ["MX", "Answer", "Record", "RecordType", "Resolver", "list_name", "reverse_name"]
