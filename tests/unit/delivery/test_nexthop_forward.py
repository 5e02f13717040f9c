"""What a next hop that is told of clients makes of them."""

from __future__ import annotations

import pytest
from next_hops import backend, client_of, relay


async def deliver(client):
    return await client.deliver(b"x\r\n", sender="a@example.org", recipients=["b@example.com"])


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_link_that_takes_no_other_client_is_not_used_again(run, goes_on):
    async def test():
        async with backend(keywords=("XCLIENT ADDR PORT",)) as hop:

            def begin_again(server, _line):
                server.keywords = server.keywords if goes_on else ()
                return "220 go on"

            hop.answers["XCLIENT"] = begin_again
            async with client_of(relay(hop, forward="xclient")) as client:
                assert (await deliver(client)).code == 250
                hop.keywords = ("XCLIENT ADDR PORT",)
                assert (await deliver(client)).code == 250
            assert hop.connections == (1 if goes_on else 2)
            assert hop.verbs().count("XCLIENT") == (1 if goes_on else 2)

    run(test())


@pytest.mark.parametrize("greeting", ["554 5.7.1 Not you", None])
def test_a_client_that_is_refused_behind_a_proxy_header_is_no_failure_of_the_server(run, greeting):
    async def test():
        async with backend() as hop:
            hop.head = 28
            async with client_of(relay(hop, forward="proxy")) as client:
                good, hop.greeting = hop.greeting, greeting
                assert (await client.command("MAIL FROM:<a@example.org>")).code == 451
                hop.greeting = good
                # It does not rest.
                assert (await deliver(client)).code == 250

    run(test())


def test_a_proxied_server_that_cannot_be_reached_rests(run):
    async def test():
        async with backend() as hop:
            hop.head = 28
            async with client_of(relay(hop, forward="proxy")) as client:
                await hop.stop()
                assert (await client.command("MAIL FROM:<a@example.org>")).code == 451
                await hop.start()
                assert (await client.command("MAIL FROM:<a@example.org>")).code == 451

    run(test())
