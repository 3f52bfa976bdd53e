"""What a command and its helper process both must know."""

from __future__ import annotations

#: How processes of ours that trace others are known: a word of their own on the command line.
MARK = "livepatch-attach"
#: What a helper is to do, see `injection.Injection`.
RUN, WAKE, HELP = "run", "wake", "help"


def is_ours(pid: int) -> bool:
    """Whether this process traces for another attach. Raises OSError if it is gone."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return MARK.encode() in file.read().split(b"\0")
