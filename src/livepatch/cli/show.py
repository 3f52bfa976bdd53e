"""Commands that show what a process does with its patches."""

from __future__ import annotations

import time
from typing import Any

import click

from livepatch.attach.client import Client
from livepatch.attach.processes import NoAccess, Process
from livepatch.fleet.selection import Selection
from livepatch.screens.words import blocker_rows, functions_of, near, state_of, where

from .common import DONE, Connect, agent_options, each_process, json_option, output, show_blockers
from .targets import pids_of, targets_option

#: How many tasks in the way `status` names.
_NAMED = 20
_TITLE = 100
IDLE = -1
_STATES = {IDLE: "-", 0: "unpatched", 1: "patched"}


def _installed(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:  # the shell only asks what may follow
        from .install import show

        ctx.exit(show())


@click.command("list")
@targets_option
@click.option(
    "--installed",
    is_flag=True,
    expose_value=False,
    callback=_installed,
    help="List the patches that processes apply when they start; no process is looked at.",
)
@json_option
def list_command(selection: Selection) -> int:
    """List the patches of a process; of several processes in one table."""
    pids = pids_of(selection)
    columns = ["PATCH", "VERSION", "STATE", "ORDER", "MODULES"]
    if len(pids) > 1:
        return _list_several(pids, columns)

    def look(client: Client) -> dict[str, Any]:
        patches = client.call("list")
        output.say(_headline(client.process, client.hello["python"]))
        if patches:
            output.table(columns, [_row(patch) for patch in patches])
        else:
            output.say("No patch is loaded.")
        return {"patches": patches}

    return each_process(pids, look, unprepared=lambda process: {"patches": _none(process)})


def _list_several(pids: list[int], columns: list[str]) -> int:
    """The same of many: a server with forty workers is to fit on a screen."""
    rows: list[list[str]] = []

    def note(process: Process, patches: list[dict[str, Any]], otherwise: str) -> dict[str, Any]:
        found = [_row(patch) for patch in patches] or [["-", "-", otherwise, "-", "-"]]
        rows.extend([str(process.pid), *row] for row in found)
        return {"patches": patches}

    try:
        return each_process(
            pids,
            lambda client: note(client.process, client.call("list"), "no patch"),
            unprepared=lambda process: note(process, [], "no agent"),
            apart=False,
        )
    finally:
        output.table(["PID", *columns], rows)


def _row(patch: dict[str, Any]) -> list[str]:
    state = state_of(patch) + (", forced" if patch["forced"] else "")
    modules = ", ".join(obj["name"] + ("" if obj["patched"] else " (not patched)") for obj in patch["objects"])
    return [patch["name"], patch["version"] or "-", state, str(patch["stack_order"] or "-"), modules or "-"]


def _headline(process: Process, python: str | None) -> str:
    title = process.brief
    if len(title) > _TITLE:
        title = title[: _TITLE - 3] + "..."
    return f"Process {process.pid}, Python {python}: {title}"


def _none(process: Process) -> list[Any]:
    """What a process without an agent has: nothing. Nobody need touch it to know that."""
    output.say(_headline(process, process.python))
    output.say("No patch is loaded, and no agent is there.")
    return []


@click.command("status")
@targets_option
@click.option("--metrics", is_flag=True, help="Print Prometheus text; a process that cannot be asked is a metric, too.")
@json_option
def status_command(selection: Selection, metrics: bool) -> int:
    """Show the patches of a process, and of a running transition who stands in its way."""
    if metrics:
        return _metrics(selection)

    def look(client: Client) -> dict[str, Any]:
        patches = client.call("list")
        changing = next((patch["name"] for patch in patches if patch["transition"]), None)
        blocking = client.call("status", name=changing, blockers=_NAMED)["blocking"] if changing else []
        started = _local(client.hello["started"])
        output.say(f"{_headline(client.process, client.hello['python'])}, started {started}")
        if output.terminal and patches:
            output.draw(lambda draw, width: draw.patches(patches))
        else:
            for patch in patches:
                _describe(patch)
        if not patches:
            output.say("No patch is loaded.")
        if blocking:
            if output.terminal:
                output.say()
            output.say("In the way:")
            show_blockers(blocking)
            left = sum(patch["left"] for patch in patches if patch["transition"])
            if output.terminal and left > len(blocking):
                output.say(f"and {left - len(blocking)} more; `livepatch tasks --pid {client.pid}` lists all.")
        return {"hello": client.hello, "patches": patches, "blocking": blocking}

    def unprepared(process: Process) -> dict[str, Any]:
        return {"hello": None, "patches": _none(process), "blocking": []}

    return each_process(pids_of(selection), look, unprepared=unprepared)


def _metrics(selection: Selection) -> int:
    """Always a success: what is not there is said by the metrics."""
    if output.json:
        raise click.UsageError("--metrics prints Prometheus text, and no JSON.")
    from livepatch.observe import metrics

    try:
        pids = pids_of(selection)
    except NoAccess as error:
        output.warn(str(error))
        pids = list(selection.trees)
    looks = metrics.look(pids)
    for look in looks:
        if look.error is not None:
            output.warn(str(look.error))
    output.say(metrics.text(looks).removesuffix("\n"))
    return DONE


def _describe(patch: dict[str, Any]) -> None:
    version = f" {patch['version']}" if patch["version"] else ""
    output.say(f"'{patch['name']}'{version}: {state_of(patch)}{', forced' if patch['forced'] else ''}")
    if patch["description"]:
        output.say(f"  {patch['description']}")
    if patch["transition"]:
        output.say(f"  for {patch['seconds']:.1f} s, {patch['left']} of {patch['total']} tasks left")
    for obj in patch["objects"]:
        patched = "" if obj["patched"] else " (not patched)"
        output.say(f"  {obj['name']}{patched}: {', '.join(functions_of(obj)) or 'no function'}")


@click.command("tasks")
@targets_option
@click.option("--stacks", is_flag=True, help="Show the whole stack of every task.")
@agent_options
@json_option
def tasks_command(selection: Selection, stacks: bool, connect: Connect) -> int:
    """List the tasks of a process (threads, asyncio tasks, suspended generators) and where they are.

    The agent is brought into the process if it is not there yet.
    """

    def look(client: Client) -> dict[str, Any]:
        tasks = client.call("tasks")
        output.say(_headline(client.process, client.hello["python"]))
        if stacks:
            for task in tasks:
                output.say(f"{task['kind']} {task['name']} ({task['ident']}): {_STATES[task['patch_state']]}")
                if task["origin"]:
                    output.say(f"  from {task['origin']}")
                for frame in task["stack"]:
                    output.say(f"  {frame}{'  <- in the way' if frame in task['blocking'] else ''}")
        else:
            _list(tasks)
        return {"tasks": tasks}

    return each_process(pids_of(selection), look, connect=connect)


def _list(tasks: list[dict[str, Any]]) -> None:
    """Where the tasks are, and during a transition first those that are in the way."""
    if all(task["patch_state"] == IDLE for task in tasks):
        rows = [[task["kind"], task["name"], near(task["origin"]), near((task["stack"] or ["-"])[0])] for task in tasks]
        output.table(["KIND", "NAME", "ORIGIN", "IN"], rows)
        return
    if output.terminal:
        waiting = [task for task in tasks if task["hint"] or task["blocking"]]
        if waiting:
            output.say("In the way:")
            show_blockers(waiting)
            output.say()
        rest = [task for task in tasks if task not in waiting]
        output.table(["KIND", "NAME", "ORIGIN", "STATE", "IN"], [_moved(task) for task in rest])
        return
    tasks = sorted(tasks, key=lambda task: not task["hint"])
    rows = []
    for task, (kind, name, origin, _, waits, hint) in zip(tasks, blocker_rows(tasks), strict=True):
        rows.append(
            [kind, name, origin, _STATES[task["patch_state"]], near((task["blocking"] or ["-"])[0]), waits, hint]
        )
    output.table(["KIND", "NAME", "ORIGIN", "STATE", "BLOCKED BY", "SINCE", "HINT"], rows)


def _moved(task: dict[str, Any]) -> list[str]:
    return [task["kind"], task["name"], near(task["origin"]), _STATES[task["patch_state"]], near(where(task))]


@click.command("dmesg")
@targets_option
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C or the end of the process.")
@click.option("--time", "-T", "times", is_flag=True, help="Show when each line was written, in local time.")
@json_option
def dmesg_command(selection: Selection, follow: bool, times: bool) -> int:
    """Show livepatch's log of a process."""
    pids = pids_of(selection)
    if follow and (len(pids) > 1 or output.json):
        raise click.UsageError("--follow follows one process, for a person.")

    def look(client: Client) -> dict[str, Any]:
        if follow:
            client.call("subscribe")  # before reading, so that nothing falls in between
        if times:
            timed = client.call("timed_dmesg")
            lines = [_stamped(each["time"], each["line"]) for each in timed]
        else:
            lines = timed = client.call("dmesg")
        for line in lines:
            output.say(line)
        while follow:
            event = client.event(60.0)
            if event is not None and event["method"] == "log":
                line = f"livepatch: {event['params']['line']}"
                output.say(_stamped(event["params"]["time"], line) if times else line)
        return {"lines": timed}

    return each_process(pids, look, unprepared=None if follow else lambda process: {"lines": _none(process)})


def _stamped(seconds: float, line: str) -> str:
    """As `dmesg -T` has it, and to the millisecond: transitions are short."""
    return f"[{_local(seconds, parts=3)}] {line}"


def _local(seconds: float, *, parts: int = 0) -> str:
    """Local time, with so many decimal places; or that there is none, if somebody makes up what he tells us."""
    try:
        part = f".{int(seconds % 1 * 10**parts):0{parts}d}" if parts else ""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + part
    except (ValueError, OverflowError, OSError):
        return "?"
