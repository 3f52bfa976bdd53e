"""`livepatch mount`: the patches and tasks of all prepared processes as files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from .common import DONE, REFUSED, output


@click.command("mount")
@click.argument("directory", type=click.Path(path_type=Path, readable=False), metavar="DIR")
@click.option("--background", is_flag=True, help="Return when it is mounted; `fusermount3 -u DIR` ends it.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a process may take to answer before its files give an error.",
)
def mount_command(directory: Path, background: bool, timeout: float) -> int:
    """Show the patches and tasks of all prepared processes as files, as the kernel does.

    \b
      cat DIR/PID/livepatch/NAME/transition      1 while not every task has moved
      cat DIR/PID/task/*/patch_state             who has moved, and who has not
      echo 0 > DIR/PID/livepatch/NAME/enabled    disable, or reverse a running transition

    DIR must be an empty directory. Ctrl-C unmounts it. Needs FUSE (the system's package fuse3, and
    livepatch[fuse]).
    """
    if background:
        return _in_background(directory, timeout)
    from livepatch.fs.mount import mount

    mount(directory, timeout=timeout, mounted=lambda: output.say(f"Mounted on {directory}; Ctrl-C unmounts it."))
    return DONE


def _in_background(directory: Path, timeout: float) -> int:
    """The same command once more, in a session of its own; its first line, or its end, says what became of it."""
    command = [sys.executable, "-m", "livepatch", "mount", os.path.abspath(directory), "--timeout", str(timeout)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # not ours: whoever reads what we say would wait for its end
        start_new_session=True,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    if not child.stdout.readline():
        click.echo(child.stderr.read(), err=True, nl=False)
        return child.wait() or REFUSED
    child.returncode = DONE  # it goes on without us
    output.say(f"Mounted on {directory} by process {child.pid}; `fusermount3 -u {directory}` ends it.")
    return DONE
