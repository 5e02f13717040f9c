"""The table of commands: complete, and with no way around a transaction."""

from __future__ import annotations

import pytest

from preforkmx.protocol.order import TABLE, State, Verb
from preforkmx.protocol.replies import Reply

COMMAND_STATES = (State.GREETED, State.READY, State.MAIL, State.RCPT, State.CHUNKS)

cells = pytest.mark.parametrize(
    ("state", "verb"), [(state, verb) for state in COMMAND_STATES for verb in Verb]
)


def test_the_table_has_a_row_for_each_state_in_which_commands_are_read_and_no_other():
    assert set(TABLE) == set(COMMAND_STATES)


@cells
def test_every_cell_is_a_state_or_a_refusal(state, verb):
    cell = TABLE[state][verb]
    assert isinstance(cell, (State, Reply))
    if isinstance(cell, Reply):
        assert cell.code in (503, 554)
        assert not cell.close


@cells
def test_quit_is_always_taken_and_nothing_else_closes(state, verb):
    assert (TABLE[state][verb] is State.CLOSED) == (verb is Verb.QUIT)


@cells
def test_a_message_needs_a_recipient_a_recipient_a_sender_and_a_sender_a_greeting(state, verb):
    cell = TABLE[state][verb]
    if cell is State.MESSAGE:
        assert (state, verb) == (State.RCPT, Verb.DATA)
    if cell is State.CHUNK:
        assert verb is Verb.BDAT
        assert state in (State.RCPT, State.CHUNKS)
    if cell is State.CHUNKS:
        assert state is State.CHUNKS
    if cell is State.RCPT and state is not State.RCPT:
        assert (state, verb) == (State.MAIL, Verb.RCPT)
    if cell is State.MAIL and state is not State.MAIL:
        assert (state, verb) == (State.READY, Verb.MAIL)
    if cell is State.READY and state is State.GREETED:
        assert verb in (Verb.HELO, Verb.EHLO)


@cells
def test_commands_without_effect_leave_the_state(state, verb):
    if verb in (Verb.NOOP, Verb.VRFY, Verb.EXPN, Verb.HELP):
        assert TABLE[state][verb] is state


@pytest.mark.parametrize("state", COMMAND_STATES)
@pytest.mark.parametrize("verb", [Verb.HELO, Verb.EHLO, Verb.RSET])
def test_a_greeting_and_rset_end_every_transaction(state, verb):
    expected = State.GREETED if (state, verb) == (State.GREETED, Verb.RSET) else State.READY
    assert TABLE[state][verb] is expected


@pytest.mark.parametrize("state", [State.GREETED, State.MAIL, State.RCPT, State.CHUNKS])
@pytest.mark.parametrize("verb", [Verb.STARTTLS, Verb.AUTH])
def test_tls_and_authentication_come_after_the_greeting_and_outside_transactions(state, verb):
    assert isinstance(TABLE[state][verb], Reply)


@cells
def test_who_the_client_is_changes_outside_of_transactions_only(state, verb):
    if verb is Verb.XCLIENT and state in (State.MAIL, State.RCPT, State.CHUNKS):
        assert isinstance(TABLE[state][verb], Reply)


def test_states_and_verbs_are_told_apart_as_keys():
    assert len({*State, *Verb}) == len(State) + len(Verb)
