"""The users middleware."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from ipaddress import ip_address

import pytest
from argon2.exceptions import VerificationError
from argon2.low_level import Type, hash_secret

from preforkmx import Server, SMTPError
from preforkmx.context import Context
from preforkmx.errors import ConfigError
from preforkmx.middleware import users
from preforkmx.middleware.passwords import prepare_password
from preforkmx.middleware.users import Users
from preforkmx.middleware.users_file import UserHashes
from preforkmx.model import Peer
from preforkmx.protocol import replies
from preforkmx.testing import Client, running

PEER = Peer(ip_address("192.0.2.1"), 4000, "mx.example.com", "127.0.0.1:0")
KNOWN = UserHashes({"joe": "joe's hash", "Jos\u00e9": "jos\u00e9's hash"}, "decoy")


class Verifier:
    """Counts, and says that one password is right for everything, the decoy too."""

    def __init__(self, right=b"secret"):
        self.right = right
        self.asked = []

    def __call__(self, text, password):
        self.asked.append((text, password))
        return password == self.right


class Gate:
    """A verifier whose every call waits until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, text, password):
        self.entered.release()
        assert self.opened.wait(10)
        return True


async def outcome(gate, user, password):
    try:
        await gate.authenticate(Context(), PEER, user, password)
    except SMTPError as error:
        return str(error)
    return "let in"


def ask(run, gate, *attempts):
    async def test():
        async with gate.lifespan():
            return [await outcome(gate, *attempt) for attempt in attempts]

    return run(test())


def test_an_unknown_user_costs_the_same_verification_as_a_wrong_password(run):
    verifier = Verifier()
    wrong, unknown = ask(
        run, Users(KNOWN, threads=1, verifier=verifier), ("joe", "wrong"), ("eve", "wrong")
    )
    assert wrong == unknown == "535 5.7.8 Authentication credentials invalid"
    assert verifier.asked == [("joe's hash", b"wrong"), ("decoy", b"wrong")]


def test_the_refusal_is_the_catalogues(run):
    gate = Users(KNOWN, threads=1, verifier=Verifier())
    [text] = ask(run, gate, ("joe", "wrong"))
    assert text == replies.AUTH_FAILED.text


def test_nobody_is_let_in_by_the_decoy(run):
    """Even if somebody knew its password."""
    gate = Users(KNOWN, threads=1, verifier=Verifier())
    assert ask(run, gate, ("joe", "secret"), ("eve", "secret"))[0] == "let in"
    assert ask(run, gate, ("eve", "secret"))[0].startswith("535")


def test_names_are_compared_exactly_but_for_their_normal_form(run):
    verifier = Verifier()
    gate = Users(KNOWN, threads=1, verifier=verifier)
    found = ask(run, gate, ("Jose\u0301", "secret"), ("jos\u00e9", "secret"), ("joe ", "secret"))
    assert found[0] == "let in"
    assert {text[:3] for text in found[1:]} == {"535"}
    assert [text for text, _ in verifier.asked] == ["jos\u00e9's hash", "decoy", "decoy"]


@pytest.mark.parametrize("attempt", [("joe", "x" * 1025), ("x" * 1025, "secret")])
def test_what_is_too_long_to_be_right_costs_a_verification_too(run, attempt):
    verifier = Verifier(right=b"")
    [text] = ask(run, Users(KNOWN, threads=1, verifier=verifier), attempt)
    assert text.startswith("535")
    assert verifier.asked == [("decoy", b"")]


def test_no_second_attempt_is_answered_from_memory(run):
    verifier = Verifier()
    gate = Users(KNOWN, threads=1, verifier=verifier)
    assert ask(run, gate, ("joe", "secret"), ("joe", "secret")) == ["let in", "let in"]
    assert len(verifier.asked) == 2


def test_who_finds_all_places_taken_is_told_at_once_and_others_get_their_turn(run, until):
    verifier = Gate()
    gate = Users(KNOWN, threads=2, waiting=1, verifier=verifier)

    async def test():
        async with gate.lifespan():
            tasks = [asyncio.create_task(outcome(gate, "joe", "secret")) for _ in range(3)]
            await until(lambda: verifier.entered.acquire(blocking=False))
            await until(lambda: verifier.entered.acquire(blocking=False))
            # Two are verified, one waits.
            assert not verifier.entered.acquire(blocking=False)
            assert (
                await outcome(gate, "joe", "secret") == "454 4.7.0 Temporary authentication failure"
            )
            verifier.opened.set()
            assert await asyncio.gather(*tasks) == ["let in"] * 3
            assert await outcome(gate, "joe", "secret") == "let in"

    run(test())


def test_a_place_is_taken_until_the_thread_is_done_even_if_nobody_waits_for_it(run, until):
    verifier = Gate()
    gate = Users(KNOWN, threads=1, waiting=0, verifier=verifier)

    async def test():
        async with gate.lifespan():
            task = asyncio.create_task(outcome(gate, "joe", "secret"))
            await until(lambda: verifier.entered.acquire(blocking=False))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await outcome(gate, "joe", "secret")).startswith("454")
            verifier.opened.set()
            await until(lambda: gate._places.acquire(blocking=False))
            gate._places.release()
            assert await outcome(gate, "joe", "secret") == "let in"

    run(test())


def test_the_loop_goes_on_while_a_password_is_verified(run, until):
    verifier = Gate()
    gate = Users(KNOWN, threads=1, verifier=verifier)

    async def test():
        async with gate.lifespan():
            task = asyncio.create_task(outcome(gate, "joe", "secret"))
            await until(lambda: verifier.entered.acquire(blocking=False))
            # It could not be opened from here if the loop were held up.
            verifier.opened.set()
            assert await task == "let in"

    run(test())


def test_want_of_memory_is_temporary_and_logged_without_names(run, caplog):
    def verifier(text, password):
        raise VerificationError("Memory allocation error")

    with caplog.at_level(logging.DEBUG):
        found = ask(run, Users(KNOWN, threads=1, verifier=verifier), ("joe", "secret"))
    assert found == ["454 4.7.0 Temporary authentication failure"]
    assert "a password could not be verified: Memory allocation error" in caplog.text
    assert "joe" not in caplog.text
    assert "secret" not in caplog.text


def test_the_threads_end_with_the_lifespan(run):
    gate = Users(KNOWN, threads=2, verifier=Verifier())
    ask(run, gate, ("joe", "secret"))
    assert not [each for each in threading.enumerate() if "preforkmx-users" in each.name]
    with pytest.raises(RuntimeError, match="lifespan"):
        run(gate.authenticate(Context(), PEER, "joe", "secret"))


@pytest.mark.parametrize("numbers", [{"threads": 0}, {"threads": 1, "waiting": -1}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match="users needs"):
        Users(KNOWN, **numbers)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "users"
    hashed = hash_secret(prepare_password("pass\u00e9"), b"saltsalt", 1, 8, 1, 16, Type.ID)
    path.touch(0o600)
    path.write_text(f"joe:{hashed.decode()}\n")
    return path


def plain(user, password):
    return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def test_a_session_authenticates_against_the_file(run, file):
    server = Server(allow_insecure_auth=True)
    server.use(users(file, threads=1))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            wrong = await client.command(plain("joe", "wrong"))
            unknown = await client.command(plain("eve", "pass\u00e9"))
            assert wrong == unknown
            assert (wrong.code, wrong.text) == (535, "5.7.8 Authentication credentials invalid")
            assert (await client.command(plain("joe", "passe\u0301"))).code == 235

    run(test())
    assert (server.counters.auth_failures, server.counters.auth_successes) == (2, 1)


def test_a_file_that_is_wrong_is_a_configuration_error(file):
    file.write_text("joe:secret\n")
    with pytest.raises(ConfigError, match=":1: what follows"):
        users(str(file))
    assert users.__name__ == "users"
