"""What an agent answers, before it is believed: the process that it is in may be hostile, and we may be root.

Its strings end up on a terminal. So characters that steer one are made visible, wherever they come from. And an answer
must have the form that the commands rely on; else it is one sentence that says who is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What in a string may stay as it is although it is not printable.
_LAYOUT = "\n\t"

_OBJECT = {"name": str, "patched": bool, "functions": [str]}
_PATCH = {
    "name": str,
    "enabled": bool,
    "transition": bool,
    "replace": bool,
    "stack_order": int,
    "forced": bool,
    "version": str,
    "description": str,
    "objects": [_OBJECT],
    "seconds": (int, float),
    "total": int,
    "left": int,
}
_TASK = {
    "kind": str,
    "name": str,
    "ident": str,
    "patch_state": int,
    "blocking": [str],
    "stack": [str],
    "origin": str,
    "seconds": (int, float, type(None)),
    "hint": str,
}
_BLOCKER = {**_TASK, "stuck": bool}
_MOVED = {"stack check": int, "exit": int, "idle": int, "force": int}
_MOVE = {"at": (int, float), "kind": str, "task": str, "way": str}
_OVER = {
    "patch": str,
    "direction": str,
    "outcome": str,
    "began": (int, float),
    "ended": (int, float),
    "total": int,
    "reversals": int,
    "moved": _MOVED,
    "moves": [_MOVE],
}
_HISTORY = {
    "now": (int, float),
    "transitions": [_OVER],
    "running": [_MOVE],
    "totals": [{"direction": str, "outcome": str, "count": int, "seconds": (int, float)}],
    "moved": _MOVED,
    "refusals": [{"operation": str, "errno": str, "count": int}],
    "reversals": int,
    "forced": [str],
}
_FORMS: dict[str, Any] = {
    "hello": {"protocol": int, "version": str, "python": str, "started": (int, float)},
    "load": _PATCH,
    "file": {"file": str, "data": str},
    "check": {},
    "still": [_BLOCKER],
    "write_enabled": _PATCH,
    "force": _PATCH,
    "list": [_PATCH],
    "status": {**_PATCH, "blocking": [_BLOCKER]},
    "tasks": [_TASK],
    "dmesg": [str],
    "timed_dmesg": [{"time": (int, float), "line": str}],
    "history": _HISTORY,
}


#: What events bring.
_EVENTS: dict[str, Any] = {"log": {"time": (int, float), "line": str}, "transition": {}}


def visible(value: Any) -> Any:
    """The same with every character that is not for reading shown as an escape."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() or c in _LAYOUT else repr(c)[1:-1] for c in value)
    if isinstance(value, list):
        return [visible(item) for item in value]
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    return value


def has_form(method: str, result: Any) -> bool:
    """Whether a result is what this method returns, as far as commands rely on it. More than that may be in it."""
    return method not in _FORMS or _is(result, _FORMS[method])


def is_event(message: Mapping[str, Any]) -> bool:
    """Whether a message is an event in the form that commands rely on."""
    name = message.get("method")
    return isinstance(name, str) and _is(message.get("params"), _EVENTS.get(name, {}))


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, list):
        return isinstance(value, list) and all(_is(item, form[0]) for item in value)
    if isinstance(form, Mapping):
        return isinstance(value, dict) and all(key in value and _is(value[key], part) for key, part in form.items())
    return isinstance(value, form)
