"""Where a stopped thread is, what may be done to it there, and how it goes on.

A thread that was stopped in a system call is sent on in one of three ways. A wait of the interpreter returns EINTR: the
interpreter looks at its signals and waits again for the rest of the time (PEP 475). A library may not expect that;
it makes its call again as the kernel would have, with the same arguments. And where those say how long to wait, only
the kernel knows what is left of it: nothing is done there until the call has ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .frames import Frames
from .processor import Processor
from .symbols import Image, Mapping, Maps, Memory, Python
from .tracing import Thread

#: What a thread waits in without the GIL, and outside of what a new thread might need. Who waits for a lock that an
#: allocator has (a futex) gets it some time, and so does the new thread, as long as the allocator is the C library's.
_WAITS = {
    "read", "readv", "recvfrom", "recvmsg", "recvmmsg", "accept", "accept4", "wait4", "waitid", "select", "pselect6",
    "poll", "ppoll", "epoll_wait", "epoll_pwait", "epoll_pwait2", "nanosleep", "clock_nanosleep", "connect",
    "rt_sigtimedwait", "semop", "semtimedop", "msgrcv", "mq_timedreceive", "io_getevents", "io_pgetevents",
    "io_uring_enter", "flock", "fcntl", "futex", "pause", "rt_sigsuspend", "restart_syscall",
}  # fmt: skip
#: What Python code waits in, too. A foreign library that writes may do so in the middle of an allocation: a profiler.
_WRITES = {"write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile", "splice", "msgsnd", "mq_timedsend", "openat"}
#: What ends when a signal handler has run, and is not called again by the interpreter.
_FOR_A_SIGNAL = {"pause", "rt_sigsuspend"}

#: What a borrowed call may need of the stack.
_ROOM = 0x10000
#: More than the stack of a thread is deep where it waits. Two stacks may look like one, so a deep one is left alone.
_DEEP = 0x80000

_FUTEX_COMMAND, _FUTEX_WAIT_BITSET = 0x7F, 9


class Place(NamedTuple):
    """What a stopped thread does, and the registers with which it shall go on."""

    registers: Any
    #: A new thread can be started from there, if it does not hold the GIL.
    visit: bool = False
    #: It waits.
    waits: bool = False
    #: It is the interpreter that waits, without the GIL; it looks at what it was asked for, and waits again.
    answers: bool = False
    #: It makes its system call anew. If a signal comes meanwhile, it must find that out, with these.
    or_interrupted: Any = None


class Lookout:
    """Looks where the main thread of a process is."""

    def __init__(self, thread: Thread, memory: Memory, python: Python, processor: Processor) -> None:
        self._thread = thread
        self._memory = memory
        self._python = python
        self._processor = processor
        self._maps = python.maps
        self._frames = Frames(memory, processor)
        self._allocators: dict[str, bool] = {}

    def place(self) -> Place | None:
        """What the thread does; None if it must not be disturbed just now."""
        registers = self._thread.registers()
        self._maps = Maps(self._thread.tid)
        if not self._has_room(registers.sp) or self._is_critical(registers.pc):
            return None
        call = registers.call()
        if call is None:
            return Place(registers)
        owner = self._owner(registers)
        ours = owner is not None and self._python.owns(owner)
        visit = (call.name in _WAITS and (ours or not self._allocates(owner))) or (call.name in _WRITES and ours)
        visit = visit and not self._handles_a_signal(registers)
        if not call.interrupted:
            return Place(registers, visit)
        interrupted = registers.interrupted()
        retried = ours and call.name in _WAITS | _WRITES and call.name not in _FOR_A_SIGNAL
        absolute = call.name == "futex" and registers.argument(1) & _FUTEX_COMMAND == _FUTEX_WAIT_BITSET
        endless = call.name == "poll" and registers.argument(2) & 0xFFFFFFFF == 0xFFFFFFFF
        if call.resumes and "sleep" in call.name:
            return None
        if retried:
            return Place(interrupted, visit, True, answers=call.name != "futex")
        if call.restarts or absolute or endless:
            return Place(registers.again(), visit, True, or_interrupted=None if call.always_restarts else interrupted)
        if not call.resumes:
            return Place(registers, visit, True)
        # A poll with a limit ends so whenever a signal comes; who calls it knows that.
        return Place(interrupted, visit, True) if call.name == "poll" else None

    def has_python_below(self, registers: Any) -> bool:
        """The interpreter has called what runs there: pending calls are this thread's to run. In a program that
        embeds it in another thread they would run beside what we do here.
        """
        return any(mapping.path == self._python.path for mapping in self._callers(registers, 1 << 20))

    def _has_room(self, sp: int) -> bool:
        """It is on its own stack, with some room below: not on a signal handler's, for one.

        That is the one that the kernel gave it; or, in the child of a fork, that of the thread which has forked: then
        the C library keeps at its end what belongs to the thread, with the area for restartable sequences in it.
        """
        stack = self._maps.at(sp)
        if stack is None:
            return False
        if stack.path == "[stack]":
            return stack.end - self._stack_limit() + _ROOM < sp
        area = self._thread.restartable_sequences()
        return stack.start + _ROOM < sp <= area < min(stack.end, sp + _DEEP)

    def _stack_limit(self) -> int:
        with open(f"/proc/{self._thread.tid}/limits") as limits:
            found = re.search(r"^Max stack size +(\d+)", limits.read(), re.MULTILINE)
        return int(found[1]) if found else 1 << 40

    def _is_critical(self, pc: int) -> bool:
        """It is in a restartable sequence, whose code must be left if the thread ever stops: see to it later."""
        area = self._thread.restartable_sequences()
        if area == 0:
            return False
        (sequence,) = self._memory.unpack("<Q", area + 8)
        if sequence == 0:
            return False
        _version, _flags, start, length, _abort = self._memory.unpack("<IIQQQ", sequence)
        return start <= pc < start + length

    def _handles_a_signal(self, registers: Any) -> bool:
        """It is in a signal handler, and has signals blocked for as long: a thread started there would have them so
        for ever. At the beginning of one, what the registers tell of a system call is of the one that was interrupted.
        """
        codes = self._processor.restorer_code
        for address in self._frames.addresses(registers, self._maps):
            try:
                code = self._memory.read(address, max(map(len, codes)))
            except OSError:
                return False
            if code.startswith(codes):
                return True
        return False

    def _owner(self, registers: Any) -> Mapping | None:
        """Whose code has called the C library, or has made the system call itself; None if nothing tells."""
        for address in self._frames.addresses(registers, self._maps):
            mapping = self._maps.at(address)
            if mapping is None or not mapping.executable:
                break
            if not mapping.c_library:
                return mapping
        return None

    def _allocates(self, owner: Mapping | None) -> bool:
        """It is an allocator of its own, or may be: what waits there may be in the middle of something."""
        if owner is None:
            return True
        if owner.path not in self._allocators:
            base = next(mapping.start for mapping in self._maps if mapping.path == owner.path)
            try:
                image = Image(self._memory, base, self._processor.elf_machine)
                self._allocators[owner.path] = image.lookup("malloc") is not None
            except (ValueError, KeyError, OSError):
                self._allocators[owner.path] = False  # generated code
        return self._allocators[owner.path]

    def _callers(self, registers: Any, depth: int = 0x4000) -> Iterator[Mapping]:
        """Code to which the stack says that functions return, just behind a call; some may be left from before. Unlike
        the frames, which end in code of which nothing is known, these reach to the bottom of the stack.
        """
        here = self._maps.at(registers.pc)
        if here is not None:
            yield here
        stack = self._maps.at(registers.sp)
        if stack is None:
            return
        start = registers.sp & ~7
        content = self._memory.read(start, min(depth, stack.end - start))
        for address in self._processor.returns(registers, content):
            mapping = self._maps.at(address)
            if mapping is not None and mapping.executable and self._processor.follows_call(self._before(address)):
                yield mapping

    def _before(self, address: int) -> bytes:
        try:
            return self._memory.read(address - 8, 8)
        except OSError:
            return bytes(8)
