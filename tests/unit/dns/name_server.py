"""A name server that does what the test says, over UDP and TCP, in the test's own loop."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from functools import cached_property

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

SOA = "ns.example.org. hostmaster.example.org. 1 3600 600 86400 {minimum}"


@dataclass
class Query:
    """What came, and where an answer goes."""

    wire: bytes
    source: tuple
    tcp: bool
    respond: object = field(repr=False, default=None)

    @property
    def message(self):
        return dns.message.from_wire(self.wire)

    @cached_property
    def _question(self):
        name, length = dns.name.from_wire(self.wire, 12)
        rdtype = int.from_bytes(self.wire[12 + length : 14 + length])
        return name.to_text(omit_final_dot=True), dns.rdatatype.to_text(rdtype)

    @property
    def name(self):
        return self._question[0]

    @property
    def rdtype(self):
        return self._question[1]

    @property
    def edns(self):
        return self.wire[10:12] == b"\0\1"

    def response(self, *records, rcode="NOERROR", authority=(), truncated=False, **more):
        """Return the octets of a response; a record is ``"name. 300 IN A 192.0.2.1"``."""
        return response(
            self.wire, *records, rcode=rcode, authority=authority, truncated=truncated, **more
        )


def response(query, *records, rcode="NOERROR", authority=(), truncated=False, name=None):
    """Return the octets of a response to the octets of a query."""
    message = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
    message.set_rcode(dns.rcode.from_text(rcode))
    message.answer = [_rrset(record) for record in records]
    message.authority = [_rrset(record) for record in authority]
    if name is not None:
        message.question[0].name = dns.name.from_text(name)
    if truncated:
        message.flags |= dns.flags.TC
    return message.to_wire(max_size=65535)


def soa(zone, ttl=900, minimum=600):
    """Return the SOA record of a zone, with which a negative answer comes."""
    return f"{zone}. {ttl} IN SOA {SOA.format(minimum=minimum)}"


def _rrset(record):
    name, ttl, _, rdtype, data = record.split(" ", 4)
    return dns.rrset.from_text(name, int(ttl), "IN", rdtype, data)


class NameServer:
    """Answers each query with what ``answer(query)`` returns: octets, several, or nothing.

    Without that: with the records of its name and type in :attr:`records`, and where there are
    none with NXDOMAIN.
    """

    def __init__(self, answer=None, host="127.0.0.1", port=0):
        self._host = host
        self.port = port
        self.answer = answer or self._from_records
        self.records = {}
        self.queries = []
        self._heard = asyncio.Event()

    @property
    def address(self):
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    @property
    def names(self):
        return [query.name for query in self.queries]

    def add(self, *records):
        for record in records:
            name, _, _, rdtype, _ = record.split(" ", 4)
            self.records.setdefault((name.removesuffix("."), rdtype), []).append(record)

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        while True:
            udp = socket.socket(family, socket.SOCK_DGRAM)
            udp.bind((self._host, self.port))
            port = udp.getsockname()[1]
            try:
                self._server = await asyncio.start_server(self._serve, self._host, port)
            except OSError:
                udp.close()
                continue
            self.port = port
            break
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        return self

    async def __aexit__(self, *error):
        self._transport.close()
        self._server.close()
        await self._server.wait_closed()
        # Of a connection that has just been accepted the task has not begun yet: it has its first
        # turn, and ends like any other. One that is cancelled before it is an error to streams.
        while tasks := [task for task in asyncio.all_tasks() if _serves(task)]:
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # The sockets are closed in the next turn.
        await asyncio.sleep(0)

    async def heard(self, count):
        """Wait until so many queries have come; returns the last of them."""
        async with asyncio.timeout(10):
            while len(self.queries) < count:
                self._heard.clear()
                await self._heard.wait()
        return self.queries[count - 1]

    def _from_records(self, query):
        records = self.records.get((query.name, query.rdtype))
        if records is None:
            return query.response(rcode="NXDOMAIN", authority=[soa("example.org")])
        return query.response(*records)

    def take(self, query):
        self.queries.append(query)
        self._heard.set()
        answers = self.answer(query)
        for answer in [answers] if isinstance(answers, bytes) else answers or ():
            query.respond(answer)

    async def _serve(self, reader, writer):
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                wire = await reader.readexactly(length)

                def respond(answer):
                    writer.write(len(answer).to_bytes(2) + answer)

                self.take(Query(wire, writer.get_extra_info("peername"), True, respond))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def _serves(task):
    return task.get_coro().__qualname__ == "NameServer._serve"


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server):
        self._server = server

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, source):
        def respond(answer):
            self._transport.sendto(answer, source)

        self._server.take(Query(data, source, False, respond))
