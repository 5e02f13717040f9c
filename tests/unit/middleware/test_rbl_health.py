"""When a list rests, and how it is found out that it is back."""

from __future__ import annotations

import pytest

from preforkmx.middleware.rbl_health import (
    ERROR_SECONDS,
    MAX_FAILED,
    REST_SECONDS,
    TRUSTED_SECONDS,
    Health,
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health("bl.example.org", clock)


def fail(health, times=MAX_FAILED):
    for _ in range(times):
        health.failed("SERVFAIL")


def test_failures_that_an_answer_interrupts_are_none_in_a_row(health):
    fail(health, MAX_FAILED - 1)
    health.answered()
    fail(health, MAX_FAILED - 1)
    assert health.may_be_asked()
    fail(health, 1)
    assert not health.may_be_asked()


def test_an_answer_to_a_question_from_before_the_rest_does_not_end_it(health, clock, caplog):
    health.broken("lists everybody")
    health.answered()
    clock.now += ERROR_SECONDS - 1
    assert not health.may_be_asked()
    assert len(caplog.records) == 1


def test_one_question_finds_out_and_an_answer_to_it_ends_the_rest(health, clock):
    fail(health)
    clock.now += REST_SECONDS
    assert [health.may_be_asked() for _ in range(3)] == [True, False, False]
    health.answered()
    assert health.may_be_asked()


def test_one_that_fails_again_rests_again_without_another_warning(health, clock, caplog):
    fail(health)
    clock.now += REST_SECONDS
    assert health.may_be_asked()
    health.failed("SERVFAIL")
    clock.now += REST_SECONDS - 1
    assert not health.may_be_asked()
    clock.now += 1
    assert health.may_be_asked()
    assert len(caplog.records) == 1


def test_when_nobody_waits_for_the_one_that_finds_out_the_next_one_does(health, clock):
    fail(health)
    clock.now += REST_SECONDS
    assert health.may_be_asked()
    health.given_up()
    assert health.may_be_asked()


def test_a_question_that_is_given_up_ends_no_rest(health):
    fail(health)
    health.given_up()
    assert not health.may_be_asked()


def test_an_error_is_not_made_shorter_by_failures(health, clock):
    health.broken("answers with the error 127.255.255.254")
    fail(health)
    clock.now += ERROR_SECONDS - 1
    assert not health.may_be_asked()


def test_trust_ends_after_an_hour_and_with_an_error(health, clock):
    assert not health.trusted
    health.trust()
    clock.now += TRUSTED_SECONDS - 1
    assert health.trusted
    clock.now += 1
    assert not health.trusted
    health.trust()
    health.broken("lists everybody")
    assert not health.trusted
