"""What agents answer, in words: the same on the command line, on the screen of `top`, and wherever else people look.

They come from `attach.client`, which has made what steers a terminal visible and checked the form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def functions_of(obj: dict[str, Any]) -> list[str]:
    """The functions of a module that a patch changes, and which of them at once: an older agent does not say."""
    at_once = obj.get("immediate", ())
    return [f"{name} (immediate)" if name in at_once else name for name in obj["functions"]]


def state_of(patch: dict[str, Any]) -> str:
    """A patch's state in one word, and in transition how far it is."""
    moved = f" ({patch['total'] - patch['left']}/{patch['total']})" if patch["transition"] else ""
    return _state(patch) + moved


def standing(patch: dict[str, Any]) -> str:
    """The same where how far it is stands beside it; and whether it was ended by force."""
    return _state(patch) + (", forced" if patch["forced"] else "")


def _state(patch: dict[str, Any]) -> str:
    if patch["transition"]:
        return "patching" if patch["enabled"] else "unpatching"
    return "enabled" if patch["enabled"] else "disabled"


def task_rows(tasks: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Tasks that wait, in few words: who, and where it sits."""
    return [[task["kind"], task["name"], where(task)] for task in tasks]


#: The columns of `blocker_rows`.
BLOCKERS = ("KIND", "TASK", "ORIGIN", "IN", "SINCE", "WHAT WOULD LET IT GO")


def blocker_rows(tasks: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Tasks that are in the way, for a table."""
    return [
        [task["kind"], task["name"], near(task["origin"]), near(where(task)), since(task), task["hint"] or "-"]
        for task in tasks
    ]


def where(task: dict[str, Any]) -> str:
    """Where a task is: in the innermost function that it must leave, if there is one."""
    return str((task["blocking"] or task["stack"] or ["-"])[0])


def near(text: str) -> str:
    """The same with file names without their folders, where there is no room for more."""
    return re.sub(r"\((?:[^()]*/)?([^()/]+:\d+)\)", r"(\1)", text) or "-"


def since(task: dict[str, Any]) -> str:
    """For how long a task is known to be in the way."""
    seconds = task["seconds"]
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def warning(task: dict[str, Any]) -> str:
    """What is said of a task that is likely to stay in the way: where it is, since when, and what can be done."""
    held = (task["blocking"] or [where(task)])[-1]  # the outermost is the one that it waits for
    known = (task["seconds"] or 0.0) >= 0.5
    said = f"has been in {held} for {since(task)}" if known else f"is in {held}"
    return f"{task['kind']} {task['name']} {said}: {task['hint']}."


def consequence(name: str, *, enabled: bool, left: int | None = None, processes: int = 1) -> str:
    """What force would mean, to be confirmed. `left` tasks of several `processes`, or those that were just shown."""
    said = "these tasks"
    if left is not None:
        said = f"{left} {'task' if left == 1 else 'tasks'} in {processes}"
        said += " process" if processes == 1 else " processes"
    said += " will run old and new code side by side"
    if not enabled:
        said += f", and '{name}' can never be unloaded"
    return f"After force {said}."
