"""Every dialogue of tests/dialogues, against the bare core and against a server."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from dialogues import runner
from dialogues.language import Dialogue, DialogueError, dialogues_in, parse

DIALOGUES = dialogues_in(Path(__file__).parent / "dialogues")
DIVISIBLE = [dialogue for dialogue in DIALOGUES if not dialogue.one_segment]

every_dialogue = pytest.mark.parametrize("dialogue", DIALOGUES, ids=str)
every_divisible_dialogue = pytest.mark.parametrize("dialogue", DIVISIBLE, ids=str)


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's context and a client's that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(runner.HOSTNAME).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@every_dialogue
def test_the_core_says_what_the_dialogue_says(dialogue: Dialogue) -> None:
    runner.run_whole(dialogue)


@every_divisible_dialogue
def test_the_core_says_the_same_wherever_a_flight_is_cut_in_two(dialogue: Dialogue) -> None:
    runner.run_at_every_cut(dialogue)


@every_divisible_dialogue
def test_the_core_says_the_same_octet_by_octet(dialogue: Dialogue) -> None:
    runner.run_octet_by_octet(dialogue)


@every_dialogue
def test_a_server_says_what_the_dialogue_says(
    dialogue: Dialogue, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    runner.run_on_server(dialogue, *tls)


@every_dialogue
def test_a_server_without_other_hooks_says_the_same(
    dialogue: Dialogue, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    runner.run_on_server(dialogue, *tls, all_hooks=False)


@every_divisible_dialogue
def test_a_server_says_the_same_to_a_client_that_writes_each_octet_alone(
    dialogue: Dialogue, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    runner.run_on_server(dialogue, *tls, all_hooks=False, octet_by_octet=True)


EXAMPLE = """
s: 220 mx.example.com ESMTP
c: NOOP
s: 250 Ok
"""


@pytest.mark.parametrize(
    "wrong",
    [
        EXAMPLE.replace("250 Ok", "250 ok"),
        EXAMPLE.replace("s: 250 Ok", "silence"),
        EXAMPLE + "s: 250 Ok\n",
        EXAMPLE + "closed\n",
        EXAMPLE + "message <a@example.org> <b@example.com>\n",
        EXAMPLE.replace("220 mx.example.com", "220 elsewhere.example.com"),
    ],
)
def test_a_dialogue_that_is_wrong_fails(
    wrong: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "TIMEOUT", 0.2)
    (dialogue,) = parse("wrong", wrong)
    for run in (
        runner.run_whole,
        runner.run_at_every_cut,
        runner.run_octet_by_octet,
        lambda dialogue: runner.run_on_server(dialogue, *tls),
    ):
        with pytest.raises((AssertionError, IndexError, TimeoutError)):
            run(dialogue)


@pytest.mark.parametrize(
    "line", ["c EHLO", "hook nobody: 550 5.1.1 No", "set nothing", "| a line", "c: {what}"]
)
def test_what_is_no_dialogue_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(DialogueError, match=r"^wrong:2: "):
        parse("wrong", f"# a dialogue\n{line}\n")
