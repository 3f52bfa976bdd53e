"""Commands that show what a process does with its patches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from livepatch.attach.client import Client
from livepatch.attach.processes import NoAccess, Process
from livepatch.fleet.selection import Selection
from livepatch.screens.words import blocker_rows, functions_of, near, standing, state_of, where

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

    def ask(client: Client) -> dict[str, Any]:
        return {"patches": client.call("list")}

    if len(pids) > 1:
        return _in_one_table(pids, columns, _row, ask, {"patches": []})[0]

    def look(client: Client) -> dict[str, Any]:
        answer = ask(client)
        output.say(_headline(client.process, client.hello["python"]))
        if answer["patches"]:
            output.table(columns, [_row(patch) for patch in answer["patches"]])
        else:
            output.say("No patch is loaded.")
        return answer

    return each_process(pids, look, unprepared=lambda process: {"patches": _none(process)})


def _in_one_table(
    pids: list[int],
    columns: list[str],
    row: Callable[[dict[str, Any]], list[str]],
    ask: Callable[[Client], dict[str, Any]],
    nothing: dict[str, Any],
) -> tuple[int, dict[int, dict[str, Any]]]:
    """The patches of many: a server with forty workers is to fit on a screen. What they answer comes with the status.

    `columns` are those of `row`, of which the third is the state; `nothing` is said of a process without an agent.
    """
    answers: dict[int, dict[str, Any]] = {}
    rows: list[list[str]] = []

    def note(process: Process, answer: dict[str, Any], otherwise: str) -> dict[str, Any]:
        answers[process.pid] = answer
        found = [row(patch) for patch in answer["patches"]] or [["-", "-", otherwise, *["-"] * (len(columns) - 3)]]
        rows.extend([str(process.pid), *cells] for cells in found)
        return answer

    try:
        worst = each_process(
            pids,
            lambda client: note(client.process, ask(client), "no patch"),
            unprepared=lambda process: note(process, nothing, "no agent"),
            apart=False,
        )
    finally:
        output.table(["PID", *columns], rows)
    return worst, answers


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
    """Show the patches of a process, and of a running transition who stands in its way.

    Of several processes it is one table, and below it who stands in the way of each.
    """
    if metrics:
        return _metrics(selection)

    pids = pids_of(selection)
    if len(pids) > 1:
        return _status_of_several(pids)

    def look(client: Client) -> dict[str, Any]:
        answer = _ask(client)
        patches, blocking = answer["patches"], answer["blocking"]
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
            _in_the_way(client.pid, answer)
        return answer

    def unprepared(process: Process) -> dict[str, Any]:
        return {"hello": None, "patches": _none(process), "blocking": []}

    return each_process(pids, look, unprepared=unprepared)


def _ask(client: Client) -> dict[str, Any]:
    patches = client.call("list")
    changing = next((patch["name"] for patch in patches if patch["transition"]), None)
    blocking = client.call("status", name=changing, blockers=_NAMED)["blocking"] if changing else []
    return {"hello": client.hello, "patches": patches, "blocking": blocking}


def _status_of_several(pids: list[int]) -> int:
    """One table, and below it, of each process in transition, who stands in its way."""
    columns = ["PATCH", "VERSION", "STATE", "LEFT", "FOR"]
    worst, answers = _in_one_table(pids, columns, _moving, _ask, {"hello": None, "patches": [], "blocking": []})
    for pid, answer in answers.items():
        if answer["blocking"]:
            output.say()
            _in_the_way(pid, answer, of=f" of process {pid}")
    return worst


def _moving(patch: dict[str, Any]) -> list[str]:
    moving = patch["transition"]
    left, seconds = (f"{patch['left']} of {patch['total']}", f"{patch['seconds']:.1f} s") if moving else ("-", "-")
    return [patch["name"], patch["version"] or "-", standing(patch), left, seconds]


def _in_the_way(pid: int, answer: dict[str, Any], of: str = "") -> None:
    output.say(f"In the way{of}:")
    show_blockers(answer["blocking"])
    left = sum(patch["left"] for patch in answer["patches"] if patch["transition"])
    if output.terminal and left > len(answer["blocking"]):
        output.say(f"and {left - len(answer['blocking'])} more; `livepatch tasks --pid {pid}` lists all.")


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
