"""`livepatch top`: the processes of the host, live."""

from __future__ import annotations

import errno
import importlib.util
import sys

import click

from livepatch.core.model import LivepatchError
from livepatch.fleet.selection import Selection

from .common import DONE
from .targets import selection_option


@click.command("top")
@click.option("--all", "everything", is_flag=True, help="Show the processes that have no agent, too, as `ps` does.")
@selection_option
def top_command(everything: bool, selection: Selection) -> int:
    """Watch the processes of the host, or those that are named: patches, transitions, who is in the way, the log.

    \b
      arrows, Tab  choose a process, a patch; scroll
      d            disable the patch
      r            reverse the running transition
      f            force it; says what that means, and asks
      u            unload a disabled patch
      space        mark the process, or mark it no more; Escape unmarks all
      t            mark the process and all that descend from it
      a            show the processes that have no agent, too; they are never touched
      q            leave; nothing that was begun ends with that

    d, r, f and u act on the process under the cursor, or on all that are marked, as one transaction.

    Needs Textual (livepatch[top]).
    """
    if importlib.util.find_spec("textual") is None:
        raise LivepatchError(
            errno.ENOPKG, "`livepatch top` needs Textual; install it with: pip install 'livepatch[top]'"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LivepatchError(
            errno.ENOTTY,
            "`livepatch top` needs a terminal; `livepatch ps` and `livepatch status` need none.",
        )
    from livepatch.screens.host import Host
    from livepatch.screens.top import Top

    host = Host(selection)
    try:
        Top(host, unprepared=everything).run()
    finally:
        host.close()
    return DONE
