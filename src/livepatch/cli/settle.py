"""Wait until a transition is over, and see to it that it ends as the user wants.

A transition may take for ever: a thread that never leaves a patched function cannot be moved. So waiting
has a limit, and what then happens is the user's choice: go back (the default: nothing half-done stays
behind), leave it running, or force it. The same way back is taken on Ctrl-C (and when the terminal goes
away); a second Ctrl-C leaves at once. Whatever happens, the last words say in which state the process is.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from livepatch.attach.client import Client
from livepatch.core.model import LivepatchError

from .common import DONE, INTERRUPTED, STALLED, output, task_rows, warning

State = dict[str, Any]
Finder = Callable[[Client], State | None]

#: How many of the tasks that hold a transition up are named.
NAMED = 5
#: Seconds between two looks, at first and at most, and between two that name who is in the way.
_FIRST_PAUSE, _LONGEST_PAUSE, _NAMING_PAUSE = 0.005, 0.1, 0.5


def settle(
    client: Client, begin: Callable[[], State], find: Finder, *, timeout: float, on_stall: str
) -> tuple[int, State]:
    """Begin something that starts a transition, wait for its end; the exit status and the last state.

    `begin` returns the state right after the beginning. `find` looks for it through another connection,
    if we are interrupted before `begin` returns; None if nothing had begun. On a stall or an interruption
    the state has `stalled`: what was done ("reversed", "kept", "forced", "left"; "completed" if it was
    over just then), and `blocking`, the tasks that stood in the way. Raises LivepatchError(ECANCELED) if
    somebody else reversed it.
    """
    with _interruptible():
        state: State | None = None
        try:
            state = begin()
            goal = state["enabled"]
            state = _wait(client, state, timeout)
            if state["transition"]:
                state = _stalled(client, state, timeout, on_stall)
            elif state["enabled"] != goal:
                sentence = f"Somebody else reversed it meanwhile: '{state['name']}' is {_settled(state)}."
                raise LivepatchError(errno.ECANCELED, sentence)
            return STALLED if "stalled" in state else DONE, state
        except KeyboardInterrupt:
            return INTERRUPTED, _interrupted(client.pid, state, find, timeout)


def _wait(client: Client, state: State, timeout: float) -> State:
    """Poll until the transition is over or the time is up."""
    begun = time.monotonic()
    pause, name_at = _FIRST_PAUSE, begun + _NAMING_PAUSE
    blocking: list[State] = []
    warned: set[str] = set()
    with _progress() as show:
        while state["transition"] and (left := begun + timeout - time.monotonic()) > 0:
            show({**state, "blocking": blocking})
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE)
            asked = time.monotonic()
            naming = asked >= name_at
            state = client.call("status", name=state["name"], blockers=NAMED if naming else 0)
            if naming:  # every task is looked at for that: never more than a tenth of the target's time
                name_at = time.monotonic() + max(_NAMING_PAUSE, 10 * (time.monotonic() - asked))
                blocking = state["blocking"]
                for task in blocking:
                    if task["stuck"] and task["ident"] not in warned:
                        warned.add(task["ident"])
                        output.warn(warning(task))
    return state


def _stalled(client: Client, state: State, timeout: float, on_stall: str) -> State:
    name, direction = state["name"], "Patching" if state["enabled"] else "Unpatching"
    state = client.call("status", name=name, blockers=NAMED)
    if not state["transition"]:  # it was over just now, after all
        return state
    output.warn(
        f"{direction} '{name}' did not complete within {timeout:g} s: {state['left']} of {state['total']} tasks"
        " are still in code that it changes."
    )
    _name_blockers(state)
    blocking = state["blocking"]
    if on_stall == "reverse":
        state = _go_back(client, state, timeout)
    elif on_stall == "force":
        client.call("force", name=name)
        state = _wait(client, client.call("status", name=name), timeout)
        output.warn(
            f"The remaining tasks were forced: '{name}' is {_settled(state)}, and what they are in now goes on in the"
            " other version." + (f" '{name}' can never be unloaded." if state["forced"] else "")
        )
    else:
        output.warn(
            f"The transition goes on: `livepatch status --pid {client.pid}` shows it, `livepatch"
            f" {'disable' if state['enabled'] else 'enable'} {name} --pid {client.pid}` takes it back."
        )
    done = {"reverse": "reversed", "keep": "kept", "force": "forced"}[on_stall]
    return {**state, "stalled": done, "blocking": blocking}


def _go_back(client: Client, state: State, timeout: float) -> State:
    """Reverse the transition, wait for that, and say what came of it."""
    name = state["name"]
    try:
        state = client.call("write_enabled", name=name, value="0" if state["enabled"] else "1")
    except LivepatchError:
        state = client.call("status", name=name)
        if state["transition"]:
            raise
        output.warn(f"It was over just then: '{name}' is {_settled(state)}.")
        return state
    state = _wait(client, state, timeout)
    if state["transition"]:
        state = client.call("status", name=name, blockers=NAMED)
    if state["transition"]:
        output.warn(
            f"It is going back, but {state['left']} of {state['total']} tasks have not yet;"
            f" `livepatch status --pid {client.pid}` shows it."
        )
        _name_blockers(state)
    elif state["enabled"]:
        output.warn(f"It was taken back: '{name}' stays enabled.")
    else:
        output.warn(f"It was taken back: nothing of '{name}' is patched.")
    return state


def _interrupted(pid: int, state: State | None, find: Finder, timeout: float) -> State:
    """Ctrl-C: go back; again: leave it as it is."""
    try:
        output.warn("Interrupted; taking the patch back as it was (once more to leave it as it is).")
        with Client(pid) as client:  # the old connection may be in the middle of an answer
            state = client.call("status", name=state["name"]) if state else find(client)
            if state is None:
                output.warn("Nothing had begun yet; nothing was changed.")
                return {}
            if state["transition"]:
                return {**_go_back(client, state, timeout), "stalled": "reversed"}
            output.warn(f"It was over already: '{state['name']}' is {_settled(state)}.")
            return {**state, "stalled": "completed"}
    except KeyboardInterrupt:
        output.warn(f"Left as it is, perhaps in transition; `livepatch status --pid {pid}` shows it.")
        return {**(state or {}), "stalled": "left"}


def _settled(state: State) -> str:
    if state["transition"]:
        return "still in transition"
    return "enabled" if state["enabled"] else "disabled"


def _name_blockers(state: State) -> None:
    for task, (kind, name, where) in zip(state["blocking"], task_rows(state["blocking"]), strict=True):
        output.warn(f"  {kind} {name}: {where}")
        if task["hint"]:
            output.warn(f"    {task['hint']}")
    more = state["left"] - len(state["blocking"])
    if more > 0 and state["blocking"]:
        output.warn(f"  and {more} more")


@contextmanager
def _interruptible() -> Iterator[None]:
    """A closed terminal or a `kill` end the command as Ctrl-C does: not without going back."""
    # One that is ignored stays so: nohup means it.
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ends:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _progress() -> Iterator[Callable[[State], None]]:
    """How waiting is shown: a bar on a terminal, else a line now and then."""
    if output.json or not sys.stderr.isatty():
        yield _lines()
        return
    bar = _Bar()
    try:
        yield bar.show
    finally:
        bar.stop()


def _lines() -> Callable[[State], None]:
    last, said = "", time.monotonic()

    def show(state: State) -> None:
        nonlocal last, said
        line = f"{_doing(state)}: {state['left']} of {state['total']} tasks left{_slowest(state)}"
        if line != last and time.monotonic() - said >= 1.0:
            last, said = line, time.monotonic()
            output.say(line)

    return show


class _Bar:
    """A bar of moved tasks, drawn once a transition takes long enough to be seen."""

    PATIENCE = 0.3

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def show(self, state: State) -> None:
        if self._progress is None:
            if time.monotonic() - self._begun < self.PATIENCE:
                return
            self._draw(state)
        self._progress.update(
            self._task,
            description=_doing(state),
            total=state["total"],
            completed=state["total"] - state["left"],
            waits=_slowest(state),
        )

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _draw(self, state: State) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[waits]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(_doing(state), total=state["total"], waits="")
        self._progress.start()


def _doing(state: State) -> str:
    return f"{'patching' if state['enabled'] else 'unpatching'} '{state['name']}'"


def _slowest(state: State) -> str:
    rows = task_rows(state.get("blocking") or [])
    return f", waiting for {rows[0][0]} {rows[0][1]} in {rows[0][2]}" if rows else ""
