"""Mounting, and the sentences that say why it cannot be done.

libfuse itself says what is wrong in its own words, on stderr and after the fact, so everything that can be known is
looked at before. It ends its loop and unmounts on SIGINT, SIGTERM and SIGHUP, and when somebody unmounts the
directory; it then reports success or failure by what seems to be chance. So how it ended tells nothing: whether it had
begun does.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livepatch.core.model import LivepatchError

from .operations import Operations
from .targets import Targets

#: How many questions can be under way at a time, those to targets that do not answer included.
_THREADS = 32
#: Seconds for which the kernel need not ask again whether a file is there.
_REMEMBERED = 0.1
_INSTALL = "install the system's package fuse3 (Debian, Ubuntu: apt-get install fuse3)"


def mount(directory: Path, *, timeout: float, mounted: Callable[[], None]) -> None:
    """Mount, call `mounted`, and return when it is unmounted.

    `timeout` is in seconds, for one answer of one process. Raises LivepatchError if there can be no mount.
    """
    fuse = binding()
    check_directory(directory)
    begun = []

    def begin() -> None:
        begun.append(True)
        mounted()

    options: dict[str, Any] = {"fsname": "livepatch", "subtype": "livepatch", "direct_io": True}
    # What is there changes under the kernel's eyes, so it must look again; but not at every part of every path of one
    # `ls -lR`. Only the existence of files is remembered that long, never what is in them.
    options |= {"attr_timeout": _REMEMBERED, "entry_timeout": _REMEMBERED, "negative_timeout": 0}
    if fuse.fuse_version_minor >= 12:
        options |= {"max_threads": _THREADS, "max_idle_threads": _THREADS}
    try:
        fuse.FUSE(Operations(Targets(timeout), begin), str(directory.resolve()), foreground=True, **options)
    except RuntimeError:
        if not begun:
            raise LivepatchError(
                errno.EPERM,
                f"FUSE cannot mount {directory}; the line above says why. In a container it needs /dev/fuse and"
                " CAP_SYS_ADMIN.",
            ) from None


def binding() -> Any:
    """The module mfusepy with libfuse 3, on a system that has FUSE."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # it prefers libfuse 2, which has another helper
    try:
        import mfusepy  # type: ignore[import-untyped]
    except ImportError:
        raise LivepatchError(
            errno.ENOSYS, "`livepatch mount` needs mfusepy; install it with: pip install 'livepatch[fuse]'"
        ) from None
    except OSError:
        raise LivepatchError(errno.ENOSYS, f"There is no libfuse 3 on this system; {_INSTALL}.") from None
    if not os.path.exists("/dev/fuse"):
        raise LivepatchError(
            errno.ENODEV,
            "This system has no FUSE (no /dev/fuse): load the kernel's module with `modprobe fuse`, or give the"
            " container that device.",
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise LivepatchError(errno.ENOSYS, f"Without root, mounting needs the command fusermount3; {_INSTALL}.")
    return mfusepy


def check_directory(directory: Path) -> None:
    """Raises LivepatchError unless it is an empty directory on which nothing is mounted."""
    try:
        names = os.listdir(directory)
        taken = os.path.ismount(directory)
    except FileNotFoundError:
        raise LivepatchError(errno.ENOENT, f"{directory} does not exist; make it first: mkdir {directory}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            sentence = f"{directory} is a mount whose process is gone; remove it first: fusermount3 -u {directory}"
        else:
            sentence = f"{directory} cannot be a mount point: {error.strerror}."
        raise LivepatchError(error.errno or errno.EINVAL, sentence) from None
    if taken:
        raise LivepatchError(
            errno.EBUSY, f"Something is mounted on {directory} already; unmount it first (fusermount3 -u {directory})."
        )
    if names:
        raise LivepatchError(errno.ENOTEMPTY, f"{directory} is not empty; choose an empty directory.")
