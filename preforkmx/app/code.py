"""A site's own code: ``MODULE:OBJECT`` and entry points, imported and made into Middleware.

Only workers and the checker come here, after the fork: the master never imports a site's code.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from preforkmx.config.kinds import meant
from preforkmx.config.read import ENTRY_POINTS
from preforkmx.config.values import BadValue
from preforkmx.middleware.base import Middleware
from preforkmx.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from preforkmx.middleware.base import Handler

_logger = logging.getLogger("preforkmx.app")


def find(spec: str) -> object:
    """Return the object that ``MODULE:OBJECT``, or the name of an entry point, stands for.

    Modules are looked for in the working directory first, as ``python -m`` does.

    :raises BadValue: when it cannot be imported; the text says where it failed.
    """
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, colon, attributes = spec.partition(":")
    if not colon:
        return _entry_point(spec)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _import_failure(module_name, error) from error
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise BadValue(f"has no {name}", meant(name, dir(found))) from None
    return found


def to_middleware(found: object, options: Mapping[str, Any]) -> Middleware:
    """Return the Middleware that `found` is, or gives when it is called with `options`.

    :raises BadValue: when it is neither; a bare check is refused with how to lift it.
    """
    if _is_coroutine_function(found):
        raise BadValue("is a check and no Middleware", _lift_hint(found))
    made = _called(found, options)
    if not isinstance(made, Middleware):
        raise BadValue("gives no Middleware", f"it gives {type(made).__name__}")
    return made


def to_delivery(found: object, options: Mapping[str, Any]) -> Middleware:
    """Return the delivery that `found` is, or gives when it is called with `options`.

    :raises BadValue: when it is neither a Middleware with a handler nor a coroutine function.
    """
    made = _called(found, options)
    if _is_coroutine_function(made):
        return Middleware(handler=cast("Handler", made), name=_name(made))
    if not isinstance(made, Middleware):
        raise BadValue("gives no handler", f"it gives {type(made).__name__}")
    if made.handler is None:
        raise BadValue("has no handler", "messages would be accepted and lost")
    return made


def to_server(found: object) -> Server:
    """Return the Server of ``--app MODULE:OBJECT``.

    :raises BadValue: when it is none.
    """
    if not isinstance(found, Server):
        raise BadValue("is no preforkmx.Server", f"it is {type(found).__name__}")
    return found


def _entry_point(name: str) -> object:
    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return entry_point.load()
        except (Exception, SystemExit) as error:
            raise _import_failure(entry_point.value, error) from error
    raise BadValue("is no middleware", f"no entry point {ENTRY_POINTS} has this name")


def _called(found: object, options: Mapping[str, Any]) -> object:
    """Return `found` itself if it is a Middleware or a hook, else what a call of it gives."""
    if isinstance(found, Middleware) or _is_coroutine_function(found):
        if options:
            raise BadValue("takes no options", f"leave out {', '.join(options)}")
        return found
    if not callable(found):
        raise BadValue("is no Middleware", f"it is {type(found).__name__}")
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise BadValue("does not take these options", str(error)) from None
    except ValueError:
        # Some callables in C have no signature: the call itself shows whether it fits.
        pass
    try:
        made: object = found(**options)
    except (Exception, SystemExit) as error:
        _logger.debug("%s failed", _name(found), exc_info=True)
        raise BadValue("failed when it was called", _describe(error)) from error
    if inspect.iscoroutine(made):
        made.close()
    return made


def _is_coroutine_function(found: object) -> bool:
    """Say whether a call of `found` gives a coroutine: a function, or an object like one."""
    if isinstance(found, type):
        return False
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
        getattr(found, "__call__", None)  # noqa: B004 - its kind is asked for, not its presence
    )


def _lift_hint(found: Any) -> str:
    """Return how a bare check becomes a Middleware, judged by its parameters."""
    try:
        names = list(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        names = []
    last = names[-1].lower() if names else ""
    if len(names) == 2:
        lift = "check_connection"
    elif "env" in last or "message" in last or "data" in last:
        lift = "check_data"
    elif "rec" in last or "rcpt" in last:
        lift = "check_recipient"
    else:
        lift = "check_sender"
    name = _name(found)
    return f"lift it to a phase: {name} = preforkmx.middleware.{lift}({name})"


def _name(found: object) -> str:
    return str(getattr(found, "__name__", None) or type(found).__name__)


def _import_failure(module_name: str, error: BaseException) -> BadValue:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module_name}.".startswith(f"{missing}."):
        hint = "it is looked for in the working directory and in PYTHONPATH"
        return BadValue(f"cannot be imported: there is no module {missing}", hint)
    _logger.debug("%s could not be imported", module_name, exc_info=error)
    return BadValue("cannot be imported", _describe(error))


def _describe(error: BaseException) -> str:
    """Return the exception, and the line of the site's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) or len(own) < 2:
        return text
    return f"{text}, in {own[-1].filename} line {own[-1].lineno}"
