"""Whether a process's system call filters (seccomp) let an attach happen, told before anything is done to it.

A filter answers each system call by letting it through, by an error, or by killing the process. What an attach makes
a thread call, and what the agent calls afterwards in a thread that inherits the filters, is known and listed here; so
each of these can be put to the filters themselves, which are small programs (classic BPF) over the number and the
arguments of a call.

Only a root whom nothing confines may read the filters, and only of a thread that it has stopped (`filters.py`).
Everybody else sees how many there are, in `/proc/PID/status`. Containers have filters
as a rule, and these let an attach pass; nobody wants to be refused there. So a process that has as many as we have is
taken to have the same, those of the container that both live in: this command makes the same calls and lives. A process
that has more has put itself, or has been put, under one that we know nothing of. Many kill, so it is refused; whoever
knows better insists on a method.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import mark
from .processes import status

#: Seconds that the reading of filters may take: as long as the kernel does not let the thread stop.
_TIMEOUT = 5.0

#: For `arch` of struct seccomp_data.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_PROT_NONE, _PROT_RW, _PROT_RX = 0, 3, 5
_MAP_PRIVATE_ANONYMOUS, _MAP_STACK = 0x22, 0x20022
_ANY = 2**64 - 1
_PR_SET_NAME = 15
#: What a C library makes a thread with.
_CLONE_THREAD = 0x3D0F00
_CLOCK_PROCESS_CPUTIME = 2
_FIONBIO, _TCGETS = 0x5421, 0x5401
_FUTEX_WAIT, _FUTEX_WAKE = 0x189, 0x81
_AF_UNIX, _SOCK_STREAM_CLOEXEC, _SOL_SOCKET, _SO_PEERCRED = 1, 0x80001, 1, 17


class Call(NamedTuple):
    """A system call that will be made. Its numbers are those that it may have: a C library uses one of them. A call
    that is `optional` may fail, but must not kill.
    """

    name: str
    x86_64: tuple[int, ...]
    aarch64: tuple[int, ...]
    arguments: tuple[int, ...] = ()
    optional: bool = False


#: What is made in the main thread to bring code into the process, and to end it (attach/injection.py).
CODE = (
    Call("mmap", (9,), (222,), (0, 0x10000, _PROT_RW, _MAP_PRIVATE_ANONYMOUS, _ANY, 0)),
    Call("mprotect", (10,), (226,), (0x10000, 0x1000, _PROT_RX)),
    Call("munmap", (11,), (215,), (0x10000, 0x10000)),
    Call("rt_sigreturn", (15,), (139,)),
)

#: What the script, the imports, the agent's thread and its socket need. tests/attach/test_seccomp.py attaches to a
#: process that may do nothing else.
AGENT = (
    Call("openat", (257,), (56,)),
    Call("newfstatat", (262, 4), (79,)),
    Call("fstat", (5, 262), (80, 79)),
    Call("lseek", (8,), (62,)),
    Call("read", (0,), (63,)),
    Call("write", (1,), (64,)),
    Call("close", (3,), (57,)),
    Call("getdents64", (217,), (61,)),
    Call("getcwd", (79,), (17,)),  # the import system does, for an empty entry of sys.path
    Call("mkdir", (83,), (34,)),
    Call("unlink", (87,), (35,)),
    Call("rename", (82,), (38,), optional=True),  # the import system, for what was not compiled yet
    Call("ioctl", (16,), (29,), (3, _FIONBIO)),
    Call("ioctl", (16,), (29,), (3, _TCGETS), optional=True),
    Call("pipe2", (293,), (59,)),
    Call("mmap", (9,), (222,), (0, 0x100000, _PROT_RW, _MAP_PRIVATE_ANONYMOUS, _ANY, 0)),
    Call("mmap", (9,), (222,), (0, 0x801000, _PROT_NONE, _MAP_STACK, _ANY, 0)),
    Call("mprotect", (10,), (226,), (0x10000, 0x1000, _PROT_RW)),
    Call("mremap", (25,), (216,)),
    Call("munmap", (11,), (215,), (0x10000, 0x100000)),
    Call("brk", (12,), (214,)),
    Call("madvise", (28,), (233,), (0x10000, 0x1000, 4), optional=True),
    Call("clone", (56,), (220,), (_CLONE_THREAD,)),
    Call("clone3", (435,), (435,), optional=True),  # the C library then takes clone
    Call("sched_getaffinity", (204,), (123,), optional=True),  # malloc, for a new thread
    Call("prctl", (157,), (167,), (_PR_SET_NAME,), optional=True),
    Call("set_robust_list", (273,), (99,), optional=True),
    Call("rseq", (334,), (293,), optional=True),
    Call("rt_sigprocmask", (14,), (135,)),
    Call("restart_syscall", (219,), (128,)),  # what a thread does that was stopped while it waited for the GIL
    Call("futex", (202,), (98,), (0x10000, _FUTEX_WAIT)),
    Call("futex", (202,), (98,), (0x10000, _FUTEX_WAKE)),
    Call("exit", (60,), (93,)),
    Call("getpid", (39,), (172,)),
    Call("gettid", (186,), (178,)),
    Call("geteuid", (107,), (175,)),
    Call("clock_nanosleep", (230,), (115,)),
    Call("clock_gettime", (228,), (113,), (_CLOCK_PROCESS_CPUTIME,)),
    Call("kill", (62,), (129,), (1, 0), optional=True),
    Call("socket", (41,), (198,), (_AF_UNIX, _SOCK_STREAM_CLOEXEC, 0)),
    Call("bind", (49,), (200,)),
    Call("listen", (50,), (201,)),
    Call("accept4", (288,), (242,)),
    Call("connect", (42,), (203,), optional=True),
    Call("getsockname", (51,), (204,), optional=True),
    Call("getsockopt", (55,), (209,), (3, _SOL_SOCKET, _SO_PEERCRED)),
    Call("recvfrom", (45,), (207,)),
    Call("sendto", (44,), (206,)),
)

#: What the agent waits with, which is ppoll from Python 3.15 on.
_POLL, _PPOLL = Call("poll", (7,), (73,)), Call("ppoll", (271,), (73,))

#: What filters answer: the upper half of the result.
_ALLOW, _LOG = 0x7FFF, 0x7FFC
_ERRNO, _SUPERVISOR, _TRACER = 0x0005, 0x7FC0, 0x7FF0
_ENOSYS = 38

_CAP_SYS_ADMIN = 21


def agent(version: tuple[int, int]) -> tuple[Call, ...]:
    """What is called in a process that runs this version of Python."""
    return (*AGENT, _POLL if version < (3, 15) else _PPOLL)


def forbids(pid: int, *, trust: bool = False) -> str | None:
    """Why this process's filters rule out an attach, or may do so, as far as that is known without touching it.

    None where there are none, where they are ours, and where we may read them: then `examine` knows. `trust` those that
    nobody here can read.
    """
    theirs, ours = _status(pid), _status(os.getpid())
    if theirs.mode == 1:
        return (
            f"Process {pid} may make no system calls but read and write (strict seccomp), so nothing can be brought"
            " into it; start it without."
        )
    if trust or theirs.mode == 0 or theirs == ours or _may_read(ours):
        return None
    return (
        f"Process {pid} runs under a system call filter (seccomp) that cannot be read from here and may kill it for"
        " what an attach needs; run livepatch as root outside of any container, or insist with --method if you know it."
    )


def examine(pid: int, calls: Iterable[Call]) -> str | None:
    """What `forbids` leaves open: what the filters say, where we may read them. Stops the main thread for a moment."""
    if _status(pid).mode != 2 or not _may_read(_status(os.getpid())):
        return None
    try:
        filters = read(pid)
    except OSError:
        return None
    for call in calls:
        if problem := problem_with(call, os.uname().machine, filters):
            return (
                f"Process {pid} runs under a system call filter (seccomp) that {problem} {call.name}, which an attach"
                " needs; allow it there (systemd: SystemCallFilter=, containers: the seccomp profile)."
            )
    return None


def read(pid: int) -> list[bytes]:
    """The filters of a process's main thread, oldest first. Raises OSError if they cannot be read."""
    import subprocess

    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("filters.py")), str(pid), mark.MARK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env={}, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from None
    return [bytes.fromhex(line) for line in done.stdout.split()]


def problem_with(call: Call, architecture: str, filters: Sequence[bytes]) -> str | None:
    """What these filters do to a call, if an attach cannot live with that, as the middle of a sentence."""
    problems = []
    for number in getattr(call, architecture):
        data = struct.pack(
            "=iIQ6Q", number, ARCHITECTURES[architecture], 0, *call.arguments, *[0] * (6 - len(call.arguments))
        )
        # The answer that comes first in this order of signed numbers wins, as in the kernel: killing is negative.
        answer = min((run(program, data) for program in filters), key=_severity, default=_ALLOW << 16)
        problem = _problem(answer, call)
        if problem is None:
            return None
        problems.append(problem)
    return problems[0]


def _problem(answer: int, call: Call) -> str | None:
    action = answer >> 16
    if action in (_ALLOW, _LOG):
        return None
    if action in (_ERRNO, _TRACER):
        if call.optional and (call.name != "clone3" or answer & 0xFFFF == _ENOSYS or action == _TRACER):
            return None
        return "does not allow"
    if action == _SUPERVISOR:
        return "asks another process about"
    return "would kill it for"


def _severity(answer: int) -> int:
    action = answer & 0xFFFF0000
    return action - 2**32 if action >= 2**31 else action


class _Status(NamedTuple):
    mode: int
    filters: int


def _status(pid: int) -> _Status:
    fields = status(pid)
    return _Status(int(fields.get("Seccomp", "0")), int(fields.get("Seccomp_filters", "1")))


def _may_read(ours: _Status) -> bool:
    """Whether the kernel would show us a filter: to CAP_SYS_ADMIN outside of user namespaces and under no filter."""
    try:
        everybody = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    except OSError:
        return False
    return ours.mode == 0 and everybody and bool(int(status(os.getpid())["CapEff"], 16) & 1 << _CAP_SYS_ADMIN)


def run(program: bytes, data: bytes) -> int:
    """What a filter answers to a call; `data` is a struct seccomp_data. Raises ValueError if it is no filter."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    words = struct.unpack("=16I", data)
    memory = [0] * 16
    a = x = at = 0
    while at < len(instructions):
        code, if_true, if_false, k = instructions[at]
        at += 1
        kind, operand = code & 0x07, x if code & 0x08 else k
        if kind in (0x00, 0x01):  # load a or x
            mode = code & 0xE0
            if mode == 0x20:
                value = words[k // 4]
            elif mode == 0x60:
                value = memory[k]
            else:
                value = len(data) if mode == 0x80 else k
            a, x = (value, x) if kind == 0x00 else (a, value)
        elif kind == 0x02:
            memory[k] = a
        elif kind == 0x03:
            memory[k] = x
        elif kind == 0x04:
            if code & 0xF0 == 0x30 and operand == 0:
                return 0
            a = _compute(code & 0xF0, a, operand) & 0xFFFFFFFF
        elif kind == 0x05:
            if code & 0xF0 == 0x00:
                at += k
            else:
                at += if_true if _compare(code & 0xF0, a, operand) else if_false
        elif kind == 0x06:
            return a if code & 0x18 == 0x10 else k
        else:
            a, x = (x, x) if code & 0x80 else (a, a)
    raise ValueError("a filter without an answer")


def _compute(operation: int, a: int, b: int) -> int:
    match operation:
        case 0x00:
            return a + b
        case 0x10:
            return a - b
        case 0x20:
            return a * b
        case 0x30:
            return a // b
        case 0x40:
            return a | b
        case 0x50:
            return a & b
        case 0x60:
            return a << b if b < 32 else 0
        case 0x70:
            return a >> b if b < 32 else 0
        case 0x80:
            return -a
        case 0xA0:
            return a ^ b
    raise ValueError(f"no operation {operation:#x}")


def _compare(operation: int, a: int, b: int) -> bool:
    match operation:
        case 0x10:
            return a == b
        case 0x20:
            return a > b
        case 0x30:
            return a >= b
        case 0x40:
            return bool(a & b)
    raise ValueError(f"no comparison {operation:#x}")
