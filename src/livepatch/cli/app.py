"""The list of commands, and what a command's end is for the shell."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from livepatch import __version__
from livepatch.core.model import LivepatchError

from .common import INTERRUPTED, NO_PROCESS, REFUSED, USAGE, describe, output

if TYPE_CHECKING:
    from livepatch.fleet.transaction import Refused

#: Where each command lives, in the order of the help.
COMMANDS = {
    "run": "process",
    "ps": "process",
    "attach": "process",
    "build": "archives",
    "info": "archives",
    "sign": "trust",
    "verify": "trust",
    "check": "check",
    "load": "patches",
    "list": "show",
    "status": "show",
    "tasks": "show",
    "disable": "patches",
    "enable": "patches",
    "force": "patches",
    "unload": "patches",
    "dmesg": "show",
    "top": "top",
    "audit": "audit",
    "install": "install",
    "uninstall": "install",
    "mount": "mount",
    "demo": "demo",
    "completion": "completion",
    "man": "manual",
}


class Commands(click.Group):
    """The group of all commands, which imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            meant = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not meant:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{meant[0]}'?", error.ctx) from None

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name]}", __package__)
        gc.enable()
        command: click.Command = getattr(module, f"{name}_command")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def livepatch() -> None:
    """Change the code of running Python processes, without a restart.

    A patch takes effect as a whole: every thread and asyncio task runs either only the old or only the new code.

    \b
      livepatch build --package jinja2 --from 3.1.4 --to 3.1.5 -o fix.livepatch
      livepatch check fix.livepatch --pid 4711
      livepatch load fix.livepatch --pid 4711
      livepatch disable fix --pid 4711
    """


def run(arguments: list[str]) -> int:
    """Carry out a command line and return its exit status; every error is one sentence on stderr."""
    output.begin()
    if "_LIVEPATCH_COMPLETE" in os.environ:
        from . import completion  # noqa: F401  # the shells that click is to answer
    status = _run(arguments)
    if output.lost is not None:
        if not isinstance(output.lost, BrokenPipeError):  # whoever read our output had seen enough
            output.warn(f"Not all that there is to say could be written: {output.lost.strerror}.")
        sys.stdout = None  # closing it would complain again
    return status


def _run(arguments: list[str]) -> int:
    try:
        return livepatch.main(arguments, prog_name="livepatch", standalone_mode=False) or 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return failed(INTERRUPTED, errno.EINTR, "Interrupted.")
    except LivepatchError as error:
        return refused(error)
    except click.ClickException as error:
        return failed(REFUSED, errno.EINVAL, error.format_message())
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None  # closing it would complain again
        return REFUSED
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return failed(REFUSED, error.errno or errno.EIO, what + ".", error)
    except Exception as error:
        sentence = f"Internal error, {type(error).__name__}: {error}"
        if not _debugging():
            sentence += " (LIVEPATCH_DEBUG=1 shows where)"
        return failed(REFUSED, errno.EIO, sentence, error)


def refused(error: LivepatchError) -> int:
    """The same, where livepatch itself said no."""
    from livepatch.attach.processes import NoAccess
    from livepatch.fleet.transaction import Refused

    if isinstance(error, Refused):
        return several(error)
    if isinstance(error, NoAccess):
        return failed(NO_PROCESS, error.errno or errno.ESRCH, str(error), error)
    return failed(REFUSED, error.errno or errno.EINVAL, str(error), error)


def failed(status: int, number: int, sentence: str, error: BaseException | None = None) -> int:
    """Tell the user, and with --json the program, why it did not work."""
    if error is not None and _debugging():
        import traceback

        traceback.print_exception(error)
        sys.stderr.write(getattr(error, "traceback", ""))
    output.fail(number, sentence)
    return status


def several(error: Refused) -> int:
    """The same, where some of several processes are why it did not work."""
    for pid, reason in error.errors.items():
        output.warn(f"process {pid}: {reason}")
    output.warn(str(error))
    processes = [
        {
            "pid": member.pid,
            "outcome": member.outcome.value,
            **({"error": describe(member.error.errno or errno.EINVAL, str(member.error))} if member.error else {}),
        }
        for member in error.members
    ]
    output.result({"error": describe(error.errno or errno.EINVAL, str(error)), "processes": processes})
    from livepatch.attach.processes import NoAccess

    gone = all(isinstance(reason, NoAccess) for reason in error.errors.values())
    return NO_PROCESS if gone else REFUSED


def _debugging() -> bool:
    return os.environ.get("LIVEPATCH_DEBUG", "") not in ("", "0")
