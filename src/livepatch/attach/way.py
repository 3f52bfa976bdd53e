"""Which way leads into a process that was not prepared, or the one sentence why none does.

There are two ways. `remote_exec` asks the interpreter itself (PEP 768, Python 3.14 and newer). `pending_call` borrows
the main thread for a moment, by ptrace, to put a call into the interpreter's own queue (every supported version, Linux
on the processors of `PROCESSORS`). `entry` takes them in the order given here.

All of this is read from `/proc`: nothing is touched, so `livepatch ps` can ask it of every process, and an attach can
before it writes any file. It may be out of date a moment later. So it is a courtesy, not a protection: whoever acts on
it still meets the kernel's own refusals, and what cannot be seen from outside or changes all the time: an interpreter
that is just starting or ending, or one that is busy when a breakpoint is needed and there is none.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from . import mark, seccomp
from .processes import NoAccess, Process, closed, status
from .stops import FROZEN, THAW, frozen, tracer

AUTO, REMOTE_EXEC, PENDING_CALL = METHODS = ("auto", "remote_exec", "pending_call")

#: Where the registers and the machine code of a pending call are known, as uname calls the processors.
PROCESSORS = ("x86_64", "aarch64")
_ELF_NAMES = {3: "i386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}

_CAP_SYS_PTRACE = 19
#: Descriptors that the agent has open at the same time, at most: to arrive, and with a few clients.
_DESCRIPTORS = 8
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_PREPARE = "start it with `livepatch run -- ...`"


class NoWay(NoAccess):
    """There is no way into this process; `short` says why in a few words."""

    def __init__(self, number: int, short: str, sentence: str) -> None:
        super().__init__(number, sentence)
        self.short = short


def into(process: Process, method: str = AUTO) -> tuple[str, ...]:
    """The ways into this process, the one to begin with first. Raises NoWay if there is none; NoAccess if it has ended.

    `method` insists on one way.
    """
    if not process.open or not _is_ours_to_change(process.pid):
        short = f"user {process.uid}" if process.uid != os.geteuid() else "not permitted"
        raise NoWay(errno.EACCES, short, closed(process.pid, process.uid))
    fields = status(process.pid)
    _require_interpreter(process)
    _require_permission(process)
    _require_running(process, fields)
    _require_descriptors(process)
    if sentence := seccomp.forbids(process.pid, trust=method != AUTO):
        raise NoWay(errno.EPERM, "seccomp", sentence)
    found, refusals = [], []
    for name, require in _REQUIREMENTS.items():
        if method not in (AUTO, name):
            continue
        try:
            require(process, fields)
        except NoWay as refusal:
            refusals.append(refusal)
        else:
            found.append(name)
    if not found:
        raise refusals[-1]
    return tuple(found)


def _is_ours_to_change(pid: int) -> bool:
    """A user with CAP_SYS_PTRACE may look into the processes of others, but make no files that these would read."""
    try:
        with open(f"/proc/{pid}/environ", "rb"):
            return True
    except PermissionError:
        return False
    except OSError:  # it has ended, as will be said
        return True


def _require_interpreter(process: Process) -> None:
    """It is one that livepatch can serve at all."""
    pid, python = process.pid, process.python or "?"
    if pid == os.getpid():
        raise NoWay(
            errno.EDEADLK, "this process", f"Process {pid} is the one that asks; have it call livepatch.start_agent()."
        )
    if python.startswith("PyPy"):
        raise NoWay(
            errno.ENOEXEC,
            "PyPy",
            f"Process {pid} runs {python}, and livepatch needs CPython; run the program with that.",
        )
    if process.free_threaded:
        raise NoWay(
            errno.ENOEXEC,
            "free-threaded",
            f"Process {pid} runs a free-threaded Python ({python}), which livepatch does not support; run the program"
            " with the build that has the GIL.",
        )
    if process.version < (3, 11):
        raise NoWay(
            errno.ENOEXEC,
            "needs 3.11",
            f"Process {pid} runs Python {python}, and livepatch needs 3.11 or newer; run the program with one.",
        )


def _require_permission(process: Process) -> None:
    if _forbidden(process):
        raise NoWay(
            errno.EPERM,
            "forbidden",
            f"Process {process.pid} was started with remote debugging disabled (PYTHON_DISABLE_REMOTE_DEBUG or"
            " -X disable-remote-debug); start it without, or with `livepatch run -- ...`.",
        )
    refusal = yama(_yama_scope(), privileged=_may_trace())
    if refusal:
        raise NoWay(errno.EPERM, "ptrace_scope", refusal)


def yama(scope: int, *, privileged: bool) -> str | None:
    """What the kernel's Yama says to those who want to trace others (also remote_exec counts as that), if it is no."""
    if scope <= 0 or (scope < 3 and privileged):
        return None
    if scope < 3:
        return (
            f"The kernel lets nobody but root trace processes here (kernel.yama.ptrace_scope is {scope}); run livepatch"
            " as root or with the capability CAP_SYS_PTRACE, or set that to 0 with sysctl, or start the process with"
            " `livepatch run -- ...`."
        )
    return (
        f"The kernel lets nobody trace processes until the next boot (kernel.yama.ptrace_scope is {scope}); start the"
        " process with `livepatch run -- ...`."
    )


def _require_running(process: Process, fields: dict[str, str]) -> None:
    """Its main thread, the one that lets livepatch in, can come to it."""
    pid, state = process.pid, fields["State"][:1]
    if state in "ZX":
        raise NoWay(
            errno.ESRCH,
            "main thread ended",
            f"The main thread of process {pid}, which would have to let livepatch in, has ended while others go on;"
            f" {_PREPARE}.",
        )
    if frozen(pid):
        raise NoWay(errno.EAGAIN, "frozen", f"{FROZEN.format(pid)}; let it go on ({THAW}) and try again.")
    if state == "T":
        raise NoWay(
            errno.EAGAIN, "stopped", f"Process {pid} is stopped; let it go on with `kill -CONT {pid}` and try again."
        )
    if state == "t" and not _is_ours(fields):
        raise NoWay(
            errno.EAGAIN,
            "stopped",
            f"Process {pid} is stopped by {tracer(fields)}, which traces it; let it go on there and try again.",
        )


def _require_descriptors(process: Process) -> None:
    """It may open as many files as the agent needs, a socket among them."""
    pid = process.pid
    try:
        with open(f"/proc/{pid}/limits") as file:
            soft, hard = next(line.split()[3:5] for line in file if line.startswith("Max open files"))
        if soft == "unlimited":
            return
        # Linux 6.2 and newer has the number of all descriptors as the size, which is quicker if there are many.
        if 0 < os.stat(f"/proc/{pid}/fd").st_size <= int(soft) - _DESCRIPTORS:
            return
        taken = sum(int(name) < int(soft) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return
    if taken > int(soft) - _DESCRIPTORS:
        enough = int(soft) + 64
        limits = f"{enough}:" if hard == "unlimited" or int(hard) >= enough else f"{enough}:{enough}"
        raise NoWay(
            errno.EMFILE,
            "open files",
            f"Process {pid} has {taken} files open and may have {soft}, which leaves no room for the agent's socket;"
            f" let it have more with `prlimit --pid {pid} --nofile={limits}` and try again.",
        )


def _require_remote_exec(process: Process, fields: dict[str, str]) -> None:
    if process.version < (3, 14):
        raise NoWay(
            errno.EOPNOTSUPP,
            "no remote_exec",
            f"Process {process.pid} runs Python {process.python}, and sys.remote_exec came with 3.14; use --method"
            f" {PENDING_CALL}.",
        )


def _require_pending_call(process: Process, fields: dict[str, str]) -> None:
    pid = process.pid

    def refuse(number: int, short: str, why: str) -> NoWay:
        remedy = f"use --method {REMOTE_EXEC}, or {_PREPARE}" if process.version >= (3, 14) else _PREPARE
        return NoWay(number, short, f"Process {pid} {why}; {remedy}.")

    if sys.platform != "linux":
        raise refuse(errno.EOPNOTSUPP, "needs Linux", f"runs on {sys.platform}, where livepatch can borrow no thread")
    bits, processor = _built_for(process)
    if bits == 32:
        raise refuse(errno.ENOEXEC, "32-bit", "is a 32-bit program, which livepatch knows no way into")
    if processor not in PROCESSORS or processor != os.uname().machine:
        raise refuse(errno.ENOEXEC, processor, f"runs on {processor}, for which livepatch knows no machine code")
    if process.musl:
        raise refuse(errno.ENOEXEC, "musl", "has the C library musl, for which livepatch knows no way in")
    if "shstk" in fields.get("x86_Thread_features", ""):
        raise refuse(errno.ENOEXEC, "shadow stack", "has shadow stacks (CET), which let no call be put in between")
    if fields["TracerPid"] != "0" and not _is_ours(fields):
        raise refuse(
            errno.EBUSY,
            "traced",
            f"is traced by {tracer(fields)}, and the kernel allows only one tracer: end that and try again",
        )


_REQUIREMENTS: dict[str, Callable[[Process, dict[str, str]], None]] = {
    REMOTE_EXEC: _require_remote_exec,
    PENDING_CALL: _require_pending_call,
}


def _forbidden(process: Process) -> bool:
    """Its owner has asked for nobody to come in. Pythons before 3.14 do not know these words, but we do."""
    if any("disable-remote-debug" in word or "disable_remote_debug" in word for word in process.command):
        return True
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as file:
            environment = file.read().split(b"\0")
    except OSError:
        return False
    settings = (entry.partition(b"=") for entry in environment)
    return any(name == b"PYTHON_DISABLE_REMOTE_DEBUG" and value for name, _, value in settings)


def _yama_scope() -> int:
    try:
        with open(_YAMA) as file:
            return int(file.read())
    except (OSError, ValueError):  # a kernel without it
        return 0


def _may_trace() -> bool:
    """Whether this process has CAP_SYS_PTRACE."""
    return bool(int(status(os.getpid())["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)


def _is_ours(fields: dict[str, str]) -> bool:
    """Another attach is at work there: its agent will do for both."""
    try:
        return mark.is_ours(int(fields["TracerPid"]))
    except OSError:  # it is gone, and traces no more
        return True


def _built_for(process: Process) -> tuple[int, str]:
    """The word size of its executable in bits, and the processor."""
    try:
        with open(f"/proc/{process.pid}/exe", "rb") as file:
            header = file.read(20)
    except OSError:
        header = b""
    if len(header) < 20:
        raise NoAccess(errno.ESRCH, f"Process {process.pid} has ended.")
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return 64 if header[4] == 2 else 32, _ELF_NAMES.get(number, f"processor {number}")
