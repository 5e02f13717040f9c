"""The next hop: a client of SMTP and LMTP, for deliveries that hand messages on.

``client`` is the protocol without any socket; ``link`` moves its octets, ``opening`` makes a link
ready, ``pool`` keeps links, ``transaction`` runs one envelope on them, ``delivery`` is what
sessions see. docs/explanation/delivery.md tells how they work together.
"""
