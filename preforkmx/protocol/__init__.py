"""SMTP without sockets: octets in, events and replies out.

The rooms' rule: nothing here awaits, reads a clock or knows a transport, so that a test
drives all of it with a list of octets. :mod:`preforkmx.protocol.core` is the entry.
"""
