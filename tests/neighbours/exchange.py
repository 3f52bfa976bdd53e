"""Neighbours who exchange the code of functions, written as such tools are: one wraps, the other rewrites.

The real ones among them need a release for every Python; these work on all. ddtrace is here where there is one: its
wrapper is of the first kind, with the parameters of the function.
"""

import functools
import inspect
import sys
from types import FunctionType

try:
    from ddtrace.internal import wrapping
except ImportError:
    wrapping = None

_BODY = {
    "def": "return hook(inner, args, kwargs)",
    "async def": "return await hook(inner, args, kwargs)",
    "generator": "return (yield from hook(inner, args, kwargs))",
}


def wrap(function, hook):
    """Calls become `hook(a copy of the function, args, kwargs)`; whoever holds the function notices nothing."""
    code = function.__code__
    inner = FunctionType(code, function.__globals__, "<wrapped>", function.__defaults__, function.__closure__)
    inner.__kwdefaults__ = function.__kwdefaults__
    style = "generator" if inspect.isgeneratorfunction(function) else "def"
    style = "async def" if inspect.iscoroutinefunction(function) else style
    cells = "".join(f"{name}, " for name in code.co_freevars)
    source = f"""
def outer({cells}):
    {"def" if style == "generator" else style} wrapper(*args, **kwargs):
        if 0: {cells or "pass"}
        hook, inner = "HOOK", "INNER"
        {_BODY[style]}
"""
    made = next(c for c in compile(source, "wrap", "exec").co_consts if hasattr(c, "co_consts"))
    made = next(c for c in made.co_consts if hasattr(c, "co_consts"))
    put = {"HOOK": hook, "INNER": inner}
    flat = [put.get(c, c) if isinstance(c, str) else c for c in made.co_consts]
    constants = tuple(tuple(put.get(x, x) for x in c) if isinstance(c, tuple) else c for c in flat)
    function.__code__ = made.replace(
        co_consts=constants,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_freevars=code.co_freevars,
    )
    return functools.partial(_unwrap, function, inner)


def _unwrap(function, inner):
    function.__code__ = inner.__code__


def dd_wrap(function, hook):
    """The same by ddtrace, which is here to wrap, and not to watch the imports of all other tests from then on."""
    wrapping.wrap(function, hook)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("ddtrace")]
    return lambda: wrapping.unwrap(function, hook)


sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("ddtrace")]
WRAPPERS = {"wrap": wrap} | ({"ddtrace": dd_wrap} if wrapping is not None else {})


class Probe:
    """What an instrumenting tool puts into code."""


def rewrite(function, *constants):
    """Every word gets an exclamation mark, and further constants are added; returns what puts the old code back."""
    before = function.__code__
    marked = tuple(c + "!" if isinstance(c, str) and c in ("old", "new") else c for c in before.co_consts)
    function.__code__ = before.replace(co_consts=marked + constants)

    def restore():
        function.__code__ = before

    return restore
