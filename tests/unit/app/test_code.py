from __future__ import annotations

import pytest

from preforkmx.app.code import find, to_delivery, to_middleware, to_server
from preforkmx.config.values import BadValue
from preforkmx.middleware.base import Middleware
from preforkmx.server import Server


def refusal(make, *arguments):
    with pytest.raises(BadValue) as caught:
        make(*arguments)
    return caught.value.message, caught.value.hint


def test_an_object_is_found_in_a_module_of_the_working_directory(site_module):
    name = site_module("class Checks:\n    level = 7\n")
    assert find(f"{name}:Checks.level") == 7


def test_a_module_that_is_not_there_is_named():
    assert refusal(find, "no_such_module.checks:x") == (
        "cannot be imported: there is no module no_such_module",
        "it is looked for in the working directory and in PYTHONPATH",
    )


def test_a_module_that_misses_another_one_says_which(site_module):
    name = site_module("import no_such_module")
    message, hint = refusal(find, f"{name}:x")
    assert message == "cannot be imported"
    assert "No module named 'no_such_module'" in hint
    assert hint.endswith(f"{name}.py line 1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_fails_says_why(site_module, text, reason):
    message, hint = refusal(find, f"{site_module(text)}:x")
    assert message == "cannot be imported"
    assert reason in hint


def test_a_name_that_is_not_in_the_module_comes_with_the_nearest_one(site_module):
    name = site_module("def reject_null_sender(): ...")
    assert refusal(find, f"{name}:reject_nul_sender") == (
        "has no reject_nul_sender",
        'did you mean "reject_null_sender"?',
    )


def test_a_name_without_a_module_is_an_entry_point(monkeypatch, site_module):
    from importlib.metadata import EntryPoint, EntryPoints

    name = site_module("limit = 5\n")
    installed = EntryPoints(
        [
            EntryPoint("quota", f"{name}:limit", "preforkmx.middleware"),
            EntryPoint("broken", "no_such_module:x", "preforkmx.middleware"),
        ]
    )
    monkeypatch.setattr("preforkmx.app.code.entry_points", installed.select)
    assert find("quota") == 5
    assert refusal(find, "broken")[0].startswith("cannot be imported")
    assert refusal(find, "other")[0] == "is no middleware"


def test_a_middleware_is_taken_as_it_is():
    middleware = Middleware(name="mine")
    assert to_middleware(middleware, {}) is middleware


def test_a_middleware_takes_no_options():
    assert refusal(to_middleware, Middleware(), {"limit": 3}) == (
        "takes no options",
        "leave out limit",
    )


def test_a_callable_is_called_with_the_options():
    def quota(*, limit, name="quota"):
        return Middleware(name=f"{name} {limit}")

    assert to_middleware(quota, {"limit": 3}).name == "quota 3"


def test_options_that_do_not_fit_are_refused():
    def quota(*, limit):
        return Middleware(name=str(limit))

    assert refusal(to_middleware, quota, {"limt": 3})[0] == "does not take these options"
    assert refusal(to_middleware, quota, {})[1].endswith("argument: 'limit'")


def test_a_factory_that_fails_is_refused_with_its_line():
    def quota():
        raise RuntimeError("no database")

    message, hint = refusal(to_middleware, quota, {})
    assert message == "failed when it was called"
    assert hint.startswith("RuntimeError: no database, in ")
    assert "test_code.py line" in hint


async def _connection(ctx, peer): ...


async def _sender(ctx, peer, address): ...


async def _recipient(ctx, peer, recipient): ...


async def _data(ctx, peer, envelope): ...


class _Check:
    async def __call__(self, ctx, peer, address): ...


@pytest.mark.parametrize(
    ("check", "lift"),
    [
        (_connection, "check_connection(_connection)"),
        (_sender, "check_sender(_sender)"),
        (_recipient, "check_recipient(_recipient)"),
        (_data, "check_data(_data)"),
        (_Check(), "check_sender(_Check)"),
        (_Check().__call__, "check_sender(__call__)"),
    ],
)
def test_a_bare_check_is_refused_with_how_to_lift_it(check, lift):
    message, hint = refusal(to_middleware, check, {})
    assert message == "is a check and no Middleware"
    assert hint.endswith(f"preforkmx.middleware.{lift}")


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ("text", ("is no Middleware", "it is str")),
        (lambda: 5, ("gives no Middleware", "it gives int")),
        (lambda: _sender(1, 2, 3), ("gives no Middleware", "it gives coroutine")),
        (_Check, ("gives no Middleware", "it gives _Check")),
    ],
)
def test_what_is_no_middleware_is_refused(found, problem):
    assert refusal(to_middleware, found, {}) == problem


def test_a_handler_is_a_delivery():
    delivery = to_delivery(_data, {})
    assert delivery.handler is _data
    assert delivery.name == "_data"


def test_a_delivery_may_be_made_with_options():
    assert to_delivery(lambda *, folder: Middleware(handler=_data, name=folder), {"folder": "x"})
    assert to_delivery(lambda: _data, {}).handler is _data


@pytest.mark.parametrize(
    ("found", "options", "problem"),
    [
        (Middleware(), {}, ("has no handler", "messages would be accepted and lost")),
        (_data, {"a": 1, "b": 2}, ("takes no options", "leave out a, b")),
        (lambda: None, {}, ("gives no handler", "it gives NoneType")),
        (5, {}, ("is no Middleware", "it is int")),
    ],
)
def test_what_is_no_delivery_is_refused(found, options, problem):
    assert refusal(to_delivery, found, options) == problem


def test_an_application_is_a_server():
    server = Server(hostname="mx.example.com")
    assert to_server(server) is server
    assert refusal(to_server, Server) == ("is no preforkmx.Server", "it is type")
