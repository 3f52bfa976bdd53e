"""Commands that change processes."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import click

from livepatch.attach.client import as_params
from livepatch.core.model import LivepatchError
from livepatch.fleet.members import Member, Outcome
from livepatch.fleet.selection import Selection
from livepatch.fleet.transaction import Operation, Transaction
from livepatch.observe import trail
from livepatch.screens.words import state_of

from . import candidates
from .common import DONE, REFUSED, Connect, agent_options, json_option, output, show_walks
from .observed import observe, report_option
from .settle import NAMED, Confirm, Settling, consequence, name_blockers, never
from .targets import targets_option

_PatchFile = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_TITLE = 60


_timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for all tasks to move.",
)
_on_stall_option = click.option(
    "--on-stall",
    type=click.Choice(["reverse", "keep", "force"]),
    default="reverse",
    show_default=True,
    help="If not all tasks have moved by then: go back, let it go on, or move them by force (inconsistently).",
)
_yes_option = click.option("--yes", is_flag=True, help="Do not ask before force is used.")


@click.command("load")
@click.argument("file", type=_PatchFile, shell_complete=candidates.patch_files)
@targets_option
@_timeout_option
@_on_stall_option
@_yes_option
@report_option
@agent_options
@json_option
def load_command(file: Path, selection: Selection, timeout: float, on_stall: str, yes: bool, connect: Connect) -> int:
    """Load a patch into processes: all of it takes effect, or nothing.

    FILE is an archive made by `livepatch build`, or a patch written by hand (a .py file). Waits until
    every task of the processes runs the new code. The agent is brought into a process if it is not there yet.

    Several processes are one transaction: all are checked before the first is touched, and if one refuses or stalls,
    all go back. Of a tree, or those of a name, only the processes are patched that have what the patch changes; those
    that are born meanwhile, too.
    """
    confirm = _confirmation(on_stall, yes)
    operation = Operation("load", True, params=_let_out(file, selection))
    with Transaction(selection, operation, connect) as transaction:
        observe(transaction)
        transaction.gather()
        asks = _may_walk(file)
        if selection.grows or not transaction.alone or asks:  # of one process, loading is the check
            transaction.check()
        if asks:
            _show_walks(transaction)
        settling = Settling(transaction, timeout=timeout, on_stall=on_stall, confirm=confirm)
        status = settling.run()
        if status == DONE:
            done = [member for member in transaction.members if member.outcome is Outcome.DONE and member.state]
            output.say(f"'{transaction.name}' is loaded into {_processes(done)}: {_extent(done)}.")
        _show(transaction)
        _say_unpatched_parents(transaction)
        output.result(settling.document())
    return status


def _let_out(file: Path, selection: Selection) -> dict[str, Any]:
    """The file for the processes. That strict mode keeps it from all of them is recorded, too."""
    try:
        return as_params(file)
    except LivepatchError as error:
        if error.errno == errno.EKEYREJECTED:
            targets = [trail.process_of(found.process, found.started) for found in selection.find()]
            trail.refused("load", error, patch=trail.archive_of(file.read_bytes(), str(file)), targets=targets)
        raise


def _confirmation(on_stall: str, yes: bool) -> Confirm:
    """How force is confirmed. Raises LivepatchError if it would have to be, and nobody is there to ask."""
    if on_stall != "force":
        return never
    if yes:
        return lambda question: True
    if not sys.stdin.isatty():
        raise _unconfirmed()
    return lambda question: click.confirm(question, err=True)


def _unconfirmed() -> LivepatchError:
    return LivepatchError(errno.EPERM, "Force gives up consistency; say --yes if that is meant.")


def _may_walk(file: Path) -> bool:
    """Whether the patch may go through live instances; a needless check does no harm."""
    written = file.read_bytes()
    if file.suffix != ".py":
        if b"hooks.py" not in written:  # nor is it the name of a member
            return False
        from livepatch.archive import format

        try:
            written = format.read(written).hooks or b""
        except LivepatchError:  # the process says why it refuses that
            return False
    return b"instance" in written


def _show_walks(transaction: Transaction) -> None:
    """What a patch that goes through live instances is about to cost, shown before anything is touched."""
    for member in transaction.members:
        if member.checked.get("instances") and not transaction.alone:
            output.say(f"Process {member.pid}:")
        show_walks(member.checked)


def _extent(done: list[Member]) -> str:
    functions, waiting = 0, dict[str, None]()
    for member in done:
        objects = member.state["objects"] if member.state else ()
        functions = max(functions, sum(len(obj["functions"]) for obj in objects if obj["patched"]))
        waiting |= dict.fromkeys(obj["name"] for obj in objects if not obj["patched"])
    said = f"{functions} {'function' if functions == 1 else 'functions'} patched"
    if waiting and len(done) == 1:
        said += f" ({', '.join(waiting)} not imported yet: patched when it is)"
    elif waiting:
        said += f" ({', '.join(waiting)} not imported yet everywhere: patched where it is)"
    return said


def _processes(members: list[Member]) -> str:
    if len(members) == 1:
        return f"process {members[0].pid}"
    return f"{len(members)} processes"


def _show(transaction: Transaction) -> None:
    """What became of each of several processes."""
    if transaction.alone:
        return
    rows = []
    for member in transaction.members:
        how = member.outcome.value + (", born meanwhile" if member.born else "")
        state = member.state or next((patch for patch in member.before if patch["name"] == transaction.name), None)
        rows.append([str(member.pid), state_of(state) if state else "-", how, _title(member)])
    output.table(["PID", "PATCH", "OUTCOME", "COMMAND"], rows)


def _say_unpatched_parents(transaction: Transaction) -> None:
    """A supervisor that does not import the application cannot hand the patch down."""
    parents = {member.found.parent for member in transaction.members if member.outcome is Outcome.DONE}
    for member in transaction.members:
        if member.outcome is Outcome.UNCONCERNED and member.pid in parents:
            output.warn(
                f"process {member.pid} has none of the modules that the patch changes; what it starts from now on"
                " begins without the patch."
            )


def _title(member: Member) -> str:
    title = member.found.process.brief
    return title if len(title) <= _TITLE else title[: _TITLE - 3] + "..."


@click.command("disable")
@click.argument("name", shell_complete=candidates.patches)
@targets_option
@_timeout_option
@_on_stall_option
@_yes_option
@click.option("--unload", is_flag=True, help="Unload the patch as well, when it is disabled.")
@report_option
@json_option
def disable_command(name: str, selection: Selection, timeout: float, on_stall: str, yes: bool, unload: bool) -> int:
    """Take a patch back: every task returns to the code without it.

    If the patch is just being loaded, this reverses that. Several processes are one transaction, as with `load`.
    """
    confirm = _confirmation(on_stall, yes)
    with Transaction(selection, _writing(name, enabled=False)) as transaction:
        observe(transaction)
        transaction.gather()
        transaction.require_patch()
        settling = Settling(transaction, timeout=timeout, on_stall=on_stall, confirm=confirm)
        status = settling.run()
        refused = transaction.unload(transaction.disabled()) if status == DONE and unload else []
        for member in refused:
            output.warn(f"process {member.pid}: {member.error}")
        if refused:
            status = REFUSED
        if status == DONE:
            done = [member for member in transaction.members if member.outcome is Outcome.DONE]
            output.say(f"'{name}' is {'unloaded' if unload else 'disabled'} in {_processes(done)}.")
        _show(transaction)
        output.result({**settling.document(), "unloaded": status == DONE and unload})
    return status


def _writing(name: str, *, enabled: bool) -> Operation:
    return Operation("write_enabled", enabled, name, {"name": name, "value": "1" if enabled else "0"})


@click.command("enable")
@click.argument("name", shell_complete=candidates.patches)
@targets_option
@_timeout_option
@_on_stall_option
@_yes_option
@report_option
@json_option
def enable_command(name: str, selection: Selection, timeout: float, on_stall: str, yes: bool) -> int:
    """Reverse the running disable of a patch.

    A patch that is disabled cannot be enabled again: unload it and load it anew. Of several processes, those in which
    it is enabled are left alone.
    """
    confirm = _confirmation(on_stall, yes)
    with Transaction(selection, _writing(name, enabled=True)) as transaction:
        observe(transaction)
        transaction.gather()
        transaction.require_patch(running=True)
        settling = Settling(transaction, timeout=timeout, on_stall=on_stall, confirm=confirm)
        try:
            status = settling.run()
        except LivepatchError as error:
            if error.errno != errno.ENOENT:
                raise
            raise LivepatchError(errno.ENOENT, f"{error} Only a running disable can be reversed.") from None
        if status == DONE:
            done = [member for member in transaction.members if member.outcome is Outcome.DONE]
            output.say(f"'{name}' is enabled in {_processes(done)}.")
        _show(transaction)
        output.result(settling.document())
    return status


@click.command("force")
@click.argument("name", shell_complete=candidates.patches)
@targets_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@_timeout_option
@report_option
@json_option
def force_command(name: str, selection: Selection, yes: bool, timeout: float) -> int:
    """End a running transition by force, wherever the remaining tasks are.

    Their calls go on in the version in which they began while new calls run the other one: both worlds at
    once in the same task. After a forced disable the patch can never be unloaded. Of several processes, those without
    a running transition are left alone.
    """
    with Transaction(selection, Operation("force", True, name, {"name": name})) as transaction:
        observe(transaction)
        transaction.gather()
        transaction.require_patch(running=True)
        if not yes:
            if not sys.stdin.isatty():
                raise _unconfirmed()
            _ask(transaction)
        settling = Settling(transaction, timeout=timeout, on_stall="keep", confirm=never)
        status = settling.run()
        if status == DONE:
            done = [member for member in transaction.members if member.outcome is Outcome.DONE]
            goal = "enabled" if transaction.enabled else "disabled"
            output.say(f"'{name}' is {goal} in {_processes(done)}, by force.")
            if any(member.state and member.state["forced"] for member in done):
                output.say("It can never be unloaded: tasks may still be inside of it.")
        _show(transaction)
        output.result(settling.document())
    return status


def _ask(transaction: Transaction) -> None:
    """Let the user see who is left, and confirm what that means."""
    transaction.ask_status(blockers=NAMED)
    for member in transaction.waiting():
        if member.state and member.in_transition:
            where = "" if transaction.alone else f" in process {member.pid}"
            click.echo(
                f"{member.state['left']} of {member.state['total']} tasks{where} are still in code that"
                f" '{transaction.name}' changes:",
                err=True,
            )
        name_blockers(member.blocking(), lambda line: click.echo(f"  {line}", err=True), most=None)
    click.confirm(consequence(transaction), abort=True, err=True)


@click.command("unload")
@click.argument("name", shell_complete=candidates.patches)
@targets_option
@json_option
def unload_command(name: str, selection: Selection) -> int:
    """Forget a disabled patch, so that it can be loaded again.

    Of several processes, none does if the patch is in use in one of them.
    """
    with Transaction(selection, Operation("unload", False, name, {"name": name})) as transaction:
        observe(transaction)
        transaction.gather()
        transaction.require_patch()
        members = transaction.waiting()
        refused = transaction.unload(members)
        if refused and transaction.alone and refused[0].error:
            raise refused[0].error
        for member in refused:
            output.warn(f"process {member.pid}: {member.error}")
        done = [member for member in members if member not in refused]
        output.say(f"'{name}' is unloaded from {_processes(done)}.")
        processes: list[dict[str, Any]] = [{"pid": member.pid, "unloaded": member in done} for member in members]
        one = {"pid": members[0].pid} if transaction.alone else {}
        output.result({**one, "name": name, "unloaded": not refused, "processes": processes})
    return REFUSED if refused else DONE
