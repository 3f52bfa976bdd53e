"""How processes of ours that trace others are known: a word of their own on the command line."""

from __future__ import annotations

MARK = "livepatch-attach"


def is_ours(pid: int) -> bool:
    """Whether this process traces for another attach. Raises OSError if it is gone."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return MARK.encode() in file.read().split(b"\0")
