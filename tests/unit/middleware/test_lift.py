"""The adapters that lift a plain check of one phase."""

from __future__ import annotations

import pytest

from preforkmx import Server, SMTPError
from preforkmx.middleware import (
    check_connection,
    check_data,
    check_helo,
    check_recipient,
    check_sender,
)
from preforkmx.testing import Client, running

COMMANDS = ["EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"]


class Check:
    def __init__(self, error=None, result=None):
        self.seen = []
        self.error = error
        self.result = result

    async def __call__(self, ctx, peer, *arguments):
        self.seen.append((ctx, peer, *arguments))
        if self.error is not None:
            raise self.error
        return self.result


def codes(run, server):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            codes = [(await client.reply()).code]
            for command in (*COMMANDS, "."):
                if codes[-1] >= 400:
                    break
                codes.append((await client.command(command)).code)
            return codes

    return run(test())


LIFTED = [
    (check_connection, [554]),
    (check_helo, [220, 554]),
    (check_sender, [220, 250, 554]),
    (check_recipient, [220, 250, 250, 554]),
    (check_data, [220, 250, 250, 250, 354, 554]),
]


@pytest.mark.parametrize(("lift", "expected"), LIFTED)
def test_a_check_that_raises_refuses_its_phase(run, lift, expected):
    server = Server()
    server.use(lift(Check(SMTPError(554, "No"))))
    assert codes(run, server) == expected


@pytest.mark.parametrize("lift", [lift for lift, _ in LIFTED])
@pytest.mark.parametrize("result", [None, True, "whatever"])
def test_whatever_a_check_returns_the_client_passes(run, lift, result):
    check = Check(result=result)
    server = Server()
    server.use(lift(check))
    assert codes(run, server) == [220, 250, 250, 250, 354, 250]
    assert len(check.seen) == 1


def test_each_check_is_given_what_its_phase_knows(run):
    connection, helo, sender, recipient, data = (Check() for _ in range(5))
    server = Server()
    server.use(
        check_connection(connection),
        check_helo(helo),
        check_sender(sender),
        check_recipient(recipient),
        check_data(data),
    )
    codes(run, server)
    assert connection.seen[0][1].helo_name == ""
    # A peer check at HELO sees the name of this HELO.
    assert helo.seen[0][1].helo_name == "client.example"
    assert sender.seen[0][2:] == ("a@example.org",)
    assert recipient.seen[0][2:] == ("b@example.com",)
    assert recipient.seen[0][0].sender == "a@example.org"
    assert data.seen[0][2].recipients == ["b@example.com"]


def test_the_log_names_a_lifted_check_by_its_function(run):
    async def nobody_from_here(ctx, peer, address):
        pass

    assert check_sender(nobody_from_here).name == "nobody_from_here"
    assert check_sender(Check()).name == "Check"
