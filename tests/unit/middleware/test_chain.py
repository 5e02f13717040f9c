"""The chain: hooks sorted by phase once, and what Middleware takes for a hook."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from preforkmx import Middleware
from preforkmx.middleware.chain import Chain, compile_chain


async def first(ctx, peer, address):
    pass


async def second(ctx, peer, address):
    pass


class Checker:
    async def __call__(self, ctx, peer, address):
        pass


def test_a_phase_has_its_hooks_in_the_order_of_use_and_no_others():
    chain = compile_chain([Middleware(check_sender=first), Middleware(check_sender=second)])
    assert [link.hook for link in chain.check_sender] == [first, second]
    assert all(
        getattr(chain, field.name) == () for field in fields(Chain) if field.name != "check_sender"
    )


def test_a_middleware_may_take_part_in_several_phases():
    chain = compile_chain([Middleware(check_sender=first, check_recipient=first)])
    assert chain.check_sender[0].hook is chain.check_recipient[0].hook is first


def test_every_hook_of_middleware_is_a_phase_of_the_chain():
    assert {field.name for field in fields(Middleware)} - {"name", "extensions"} == {
        field.name for field in fields(Chain)
    }


def test_a_link_is_named_by_its_middleware_or_else_by_its_hook():
    chain = compile_chain(
        [
            Middleware(check_sender=first, name="greylist"),
            Middleware(check_sender=second),
            Middleware(check_sender=Checker()),
        ]
    )
    assert [link.name for link in chain.check_sender] == ["greylist", "second", "Checker"]


def test_a_middleware_is_a_value():
    assert Middleware(check_sender=first) == Middleware(check_sender=first)
    with pytest.raises(FrozenInstanceError):
        Middleware().name = "other"


def test_a_hook_is_a_function_and_not_its_result():
    with pytest.raises(TypeError, match="check_sender"):
        Middleware(check_sender="first")


def test_a_hook_that_does_not_exist_is_a_typo():
    with pytest.raises(TypeError):
        Middleware(check_mail=first)
