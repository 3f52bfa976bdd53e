"""The code objects that livepatch puts into functions, written as source and compiled once per shape.

A *trampoline* stands in for a function while a transition runs: it asks which version this call gets. It has the kind
of the original, so that `inspect.iscoroutinefunction` and its like stay true, and for a coroutine or generator the
version is chosen when the body begins to run, in the task that runs it. An async generator cannot delegate to
another one; its trampoline is an ordinary body, under the flag of an async generator, that returns the
chosen one.

A *birth trampoline* does the same for closures that are created during the transition. Nobody has seen those
function objects yet, so it must find its own cells (by making a lambda that closes over them) and must have exactly the
parameters of the original, so that each closure's own defaults are bound.

A *forwarder* is what a function keeps when its replacement was written by hand: a function's globals cannot be
exchanged, so it calls the replacement. It has the replacement's parameters, which is faster than packing and
unpacking them, and right for whoever inspects the signature.

What they call sits in their constants: any object may, and it costs nothing to look up. They have as many free
variables as the original, because assigning `__code__` demands it, and these get its names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

from .codes import ASYNC_GENERATOR, ITERABLE_COROUTINE, VARARGS, VARKEYWORDS, docstring, kind

FILE = "<livepatch>"

_ENTER, _TRACK, _NEW = "livepatch enter", "livepatch track", "livepatch new"
_RETURNED, _LEAVE = "livepatch returned", "livepatch leave"
_DOC = "livepatch doc"

# A constant is called through a local name: the compiler warns about calling a literal. One a line, since it makes one
# constant of two.
_BODIES = {
    "function": """{use}
    lp_enter = {enter!r}
    lp_version, lp_token = lp_enter({cells})
    if lp_token is None:
        return lp_version({arguments})
    lp_returned = {returned!r}
    lp_leave = {leave!r}
    try:
        return lp_version({arguments})
    finally:
        if lp_returned(lp_token):
            lp_leave(lp_token)
""",
    "coroutine": """{use}
    lp_enter = {enter!r}
    lp_track = {track!r}
    lp_version, lp_token = lp_enter({cells})
    lp_started = lp_track(lp_version({arguments}))
    if lp_token is None:
        return await lp_started
    lp_returned = {returned!r}
    lp_leave = {leave!r}
    try:
        return await lp_started
    finally:
        if lp_returned(lp_token):
            lp_leave(lp_token)
""",
    "generator": """{use}
    lp_enter = {enter!r}
    lp_track = {track!r}
    lp_version, lp_token = lp_enter({cells})
    lp_started = lp_track(lp_version({arguments}))
    if lp_token is None:
        return (yield from lp_started)
    lp_returned = {returned!r}
    lp_leave = {leave!r}
    try:
        return (yield from lp_started)
    finally:
        if lp_returned(lp_token):
            lp_leave(lp_token)
""",
    "async generator": """{use}
    lp_enter = {enter!r}
    lp_track = {track!r}
    lp_version, lp_token = lp_enter({cells})
    return lp_track(lp_version({arguments}))
""",
}

_FORWARDERS = {
    "function": "{use}\n    lp_new = {new!r}\n    return lp_new({arguments})\n",
    "coroutine": "{use}\n    lp_new = {new!r}\n    return await lp_new({arguments})\n",
    "generator": "{use}\n    lp_new = {new!r}\n    return (yield from lp_new({arguments}))\n",
    "async generator": "{use}\n    lp_new = {new!r}\n    return lp_new({arguments})\n",
}


def parameters(code: CodeType) -> tuple[str, str]:
    """The parameter list of a function as source, and the argument list that passes it all on."""
    names = code.co_varnames
    ordinary = names[: code.co_argcount]
    keywords = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    rest = iter(names[code.co_argcount + code.co_kwonlyargcount :])
    listed, passed = list(ordinary), list(ordinary)
    if code.co_posonlyargcount:
        listed.insert(code.co_posonlyargcount, "/")
    if code.co_flags & VARARGS:
        name = next(rest)
        listed.append("*" + name)
        passed.append("*" + name)
    elif keywords:
        listed.append("*")
    listed += keywords
    passed += [f"{name}={name}" for name in keywords]
    if code.co_flags & VARKEYWORDS:
        name = next(rest)
        listed.append("**" + name)
        passed.append("**" + name)
    return ", ".join(listed), ", ".join(passed)


@functools.lru_cache(maxsize=256)
def _compile(body: str, flavour: str, listed: str, passed: str, free: int, birth: bool) -> CodeType:
    # Free variables must be copied into every frame, used or not: on 3.11 and 3.12 the interpreter crashes when
    # somebody (a reporter of errors, a debugger) reads the locals of a frame that lacks them.
    names = "".join(f"lp_free{number:03}, " for number in range(free))
    use = ""
    if free:
        use = f"\n    lp_cells = lambda: ({names})" if birth else f"\n    if 0: {names}"
    text = body.format(
        use=use,
        enter=_ENTER,
        track=_TRACK,
        returned=_RETURNED,
        leave=_LEAVE,
        new=_NEW,
        arguments=passed,
        cells="lp_cells" if free and birth else "",
    )
    define = "async def" if flavour == "coroutine" else "def"
    source = f"{define} livepatch_function({listed}):{text}"
    if free:
        source = f"def outer({names}):\n" + "\n".join("    " + line for line in source.splitlines())
    code = compile(source, FILE, "exec", dont_inherit=True)
    while code.co_name != "livepatch_function":
        code = next(constant for constant in code.co_consts if isinstance(constant, CodeType))
    return code


def _dress(code: CodeType, original: CodeType, constants: dict[str, Any]) -> CodeType:
    """Give compiled code its constants, and the name, kind and free variables of the original."""
    filled = tuple(constants.get(c, c) if isinstance(c, str) else c for c in code.co_consts)
    flags = code.co_flags | original.co_flags & ITERABLE_COROUTINE
    if kind(original) == "async generator":
        flags |= ASYNC_GENERATOR
    return code.replace(
        co_consts=filled,
        co_name=original.co_name,
        co_qualname=original.co_qualname,
        co_freevars=original.co_freevars,
        co_flags=flags,
        co_firstlineno=original.co_firstlineno,
    )


def trampoline(
    original: CodeType,
    enter: Callable[..., Any],
    track: Callable[..., Any],
    returned: Callable[..., Any],
    leave: Callable[..., Any],
    *,
    exact: bool,
    birth: bool = False,
) -> CodeType:
    """A trampoline for functions that carry `original`; see the head of this file for what it calls.

    An `exact` one has the original's parameters and lets the function's defaults apply, for versions that agree in
    both. It is faster, has the right signature, and refuses wrong arguments at the call.
    """
    flavour = kind(original)
    listed, passed = parameters(original) if exact else ("*args, **kwargs", "*args, **kwargs")
    body = _BODIES[flavour]
    doc = docstring(original) if birth else None  # functions are born with that of their code
    if doc is not None:
        body = f"\n    {_DOC!r}" + body
    code = _compile(body, flavour, listed, passed, len(original.co_freevars), birth)
    return _dress(code, original, {_ENTER: enter, _TRACK: track, _RETURNED: returned, _LEAVE: leave, _DOC: doc})


def forwarder(original: CodeType, new: Any) -> CodeType:
    """Code for functions that carry `original`, which calls the function `new` with the parameters that `new` has."""
    code = new.__code__
    flavour = kind(code)
    listed, passed = parameters(code)
    made = _compile(_FORWARDERS[flavour], flavour, listed, passed, len(original.co_freevars), False)
    return _dress(made, original, {_NEW: new})


def replace_constants(code: CodeType, replacements: dict[int, CodeType]) -> CodeType:
    """The same code with nested code objects exchanged, at any depth; the keys are ids. Itself if none is there."""
    constants = tuple(
        replacements.get(id(c)) or replace_constants(c, replacements) if isinstance(c, CodeType) else c
        for c in code.co_consts
    )
    changed = any(new is not old for new, old in zip(constants, code.co_consts, strict=True))
    return code.replace(co_consts=constants) if changed else code


def contains(code: CodeType, wanted: set[int]) -> bool:
    """Whether one of these code objects, by id, is nested in the code at any depth."""
    return any(
        id(constant) in wanted or contains(constant, wanted)
        for constant in code.co_consts
        if isinstance(constant, CodeType)
    )
