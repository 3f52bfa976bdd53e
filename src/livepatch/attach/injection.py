"""Start a thread in an interpreter that was not prepared, and have it run a script.

**The problem.** A thread that is stopped at any instant may hold any lock: of malloc, of the interpreter, of a library.
Injectors that call dlopen or PyGILState_Ensure there hang what they attach to. So little is done there, nothing of it
in Python, and all of it can be undone or finishes by itself.

**Borrowing.** We stop the main thread and do to it what the kernel does for a signal handler: a frame on its own stack
has all of its registers, and our code, entered by one write of all registers, returns into rt_sigreturn. The thread
comes back to where it was by itself, whether we live or not; signals may come meanwhile, and their handlers nest.
We watch the system calls that it makes, which tell results, and that it has come back. No breakpoint, no
single step: nothing in the target waits for us. If we are killed at any instant, it goes on. (Except on 3.13, see
below.)

**What is called there.** If the main thread waits in a system call without the GIL, and not for a lock, then it is
between Py_BEGIN_ALLOW_THREADS and the end of that, inside no allocator, and our code may do what any C callback may:
PyThread_start_new_thread. That is a *visit*. It needs no GIL, so it waits for nobody, and it serves main
loops that are not Python's. Else we leave a note, Py_AddPendingCall, and the interpreter itself starts the
thread at its next safe point; where it waits for a lock, the wait is made to return EINTR, upon which it looks for
notes and waits again for the rest of the time (PEP 475). The main thread never runs Python for us: a signal handler
written in Python, run in the middle of ours, might raise what the program would have to see.

**The lock of the pending calls** may be held by the main thread itself, stopped in the middle, or by another one that
is about to let go. Up to 3.12 it is a semaphore, and who sits in the system call that waits for one can be sent home
from there. From 3.13 on it is a PyMutex, and who has to wait for that gives the GIL away in the middle of whatever it
does: a breakpoint of the processor, on this thread only and for these microseconds, catches it before. If
we are killed in them *and* there is contention, the target dies of SIGTRAP. All of this only if it holds the GIL.

**Whose memory.** Our code and its data are in one mapping, handed over with the note or the visit. From then on it
belongs to the target: the thread, or the pending call if that comes later, takes it away as the last thing that it
does. Who is the last is decided by who finds what the other has written, and both write with the GIL: the
pending call runs with it, so the thread that it starts, which needs it, gets it when the pending call has left the
mapping; and the thread gives it back by a jump out of the mapping if a pending call is still to come. So nothing
remains, even if we are killed, or the note is found hours later; the script is gone by then, and nothing happens.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from .processor import Call, Frame, Processor, Refusal
from .symbols import Mapping, Maps, Memory, find_python
from .tracing import Gone, Thread, Why

_NEEDED = (
    "Py_AddPendingCall", "Py_Version", "Py_IsInitialized", "PyGILState_Check", "PyGILState_Ensure",
    "PyGILState_Release", "PyRun_SimpleString", "PyThread_start_new_thread", "PyThread_get_thread_ident",
)  # fmt: skip
_MUTEX = "PyMutex_Lock"  # from 3.13 on

#: What a thread waits in without the GIL and without a lock that a new thread might need.
_READS = {
    "read", "readv", "recvfrom", "recvmsg", "recvmmsg", "accept", "accept4", "wait4", "waitid", "select", "pselect6",
    "poll", "ppoll", "epoll_wait", "epoll_pwait", "epoll_pwait2", "clock_nanosleep", "connect", "rt_sigtimedwait",
    "semop", "semtimedop", "msgrcv", "mq_timedreceive", "io_getevents", "io_pgetevents", "io_uring_enter", "flock",
    "fcntl",
}  # fmt: skip
#: What Python code waits in, too. A foreign library that writes may do so in the middle of an allocation: a profiler.
_WRITES = {"write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile", "splice", "msgsnd", "mq_timedsend", "openat"}
#: What ends when a signal handler has run, and is not called again by the interpreter.
_FOR_A_SIGNAL = {"pause", "rt_sigsuspend"}
#: Where the interpreter goes on waiting by itself after EINTR.
_RETRIED = _READS | _WRITES | {"futex"}

#: Seconds that a borrowed call may take before we give it up; it would come back by itself all the same.
_BORROWED = 5.0
#: Seconds that somebody else may hold the lock of the pending calls.
_CONTENDED = 0.02
#: Seconds that an interpreter may take to start.
_STARTS = 1.0
#: Seconds that an interpreter which was asked to run a script may take when nothing keeps it from that.
_HELPED = 0.5
#: What a borrowed call may need of the stack.
_ROOM = 0x10000

#: The words of the data, see the code in the processor's file; then comes the line that the thread runs.
_DATA = struct.Struct("<16s4I8Q")
_STATE, _QUEUED, _RESULT = 16, 20, 32
_WAITING, _STARTED = 0, 1

#: What the thread runs, in a namespace of its own. A script that is gone was taken back.
_LINE = "__import__('builtins').exec({0!a}, {{'__name__': 'livepatch.attach'}})\n"
#: Whoever imports `threading` first is its main thread, up to 3.12; let that be the one that it is. Calls that may have
#: to wait for the GIL are as few as can be.
_RUN = """\
def know_main_thread(ident):
    import _thread, sys
    if 'threading' in sys.modules or hasattr(_thread, '_get_main_thread_ident'):
        return
    import os, threading
    main = threading.main_thread()
    alive = _thread.allocate_lock()
    alive.acquire()
    with threading._active_limbo_lock, threading._shutdown_locks_lock:
        threading._active.pop(main._ident, None)
        threading._active[ident] = main
        threading._shutdown_locks.discard(main._tstate_lock)
        threading._shutdown_locks.add(alive)
        main._ident, main._native_id, main._tstate_lock = ident, os.getpid(), alive
def script():
    import posix
    file = posix.open({0!a}, posix.O_RDONLY)
    try:
        return posix.read(file, 1 << 20)
    finally:
        posix.close(file)
try:
    script = script()
    know_main_thread({1})
    exec(script, {{'__name__': 'livepatch.attach'}})
except BaseException:
    pass
"""

#: What a helper process of ours has on its command line, so that another one knows it.
MARK = "livepatch-attach"


#: See `Injection`.
RUN, WAKE, HELP = "run", "wake", "help"


class Contended(Exception):
    """The lock of the pending calls was held; nothing was changed."""


@dataclass(frozen=True)
class Place:
    """What a stopped thread does, and the registers with which it shall go on."""

    registers: Any
    #: A new thread can be started from there.
    visit: bool = False
    #: It is the interpreter, not a library, that waits there.
    ours: bool = False
    #: It waits.
    waits: bool = False
    #: It finds that it was interrupted, and waits again by itself.
    retried: bool = False
    #: And before that it looks at signals and what else it was asked for, not only at pending calls.
    answers: bool = False
    #: It makes its system call anew. If a signal comes meanwhile, it must find that out, with these.
    or_interrupted: Any = None


@dataclass(frozen=True)
class Page:
    """Our mapping in the target."""

    base: int
    size: int
    data: int
    cookie: bytes


class Injection:
    """One attempt to have a script run in a process.

    `mode` is RUN, or if the interpreter was asked to run it (sys.remote_exec) and does not: WAKE, to have the main
    thread look, where nobody notices, and HELP, to do that and, where it cannot be, what RUN does.
    `inner_pid` is what the process calls itself, `script` the path as it sees it. `checkpoint` is called while
    nothing is held, and may raise to end the attempt.
    """

    def __init__(
        self, mode: str, pid: int, inner_pid: int, script: str, processor: Processor, checkpoint: Callable[[], None]
    ) -> None:
        self._mode = mode
        self._began = time.monotonic()
        self.pid = pid
        self._inner_pid = inner_pid
        self._script = script
        self._processor = processor
        self._checkpoint = checkpoint
        self._thread = Thread(pid, processor)
        self._page: Page | None = None
        self._queued = False
        self._handed_over = False
        #: The thread has not come back from what it was borrowed for.
        self._away = False
        self._signalled = False
        self._breakpoint: int | None = None
        self._starting = 0.0

    def run(self) -> None:
        """Returns when the thread has been started in the target. Raises Refusal, or what the checkpoint raises."""
        if problem := self._processor.problem(self._status()):
            raise Refusal(errno.ENOSYS, f"Process {self.pid} {problem}; start it with `livepatch run -- ...`.")
        try:
            with closing(Memory(self.pid)) as self._memory:
                self._python = find_python(self._memory, self._processor.elf_machine, _NEEDED, (_MUTEX,))
                self._find_code()
                self._attempt()
        except Gone:
            raise Refusal(errno.ESRCH, f"Process {self.pid} ended during the attach.") from None
        except OSError as error:
            raise self._explained(error) from None

    def _attempt(self) -> None:
        pause = 0.02
        try:
            while not self._taken():
                self._checkpoint()
                if self._hold():
                    try:
                        again = self._act()
                    finally:
                        self._thread.release()
                else:  # it may stop after all, and shall not stand still for long
                    again = 0.001 if self._thread.traced else 0.0
                self._wait(again or pause)
                pause = min(2 * pause, 0.25)
        except BaseException:
            self._clean_up()
            raise

    def _wait(self, seconds: float) -> None:
        """So long, or until the target has taken the script."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._taken():
            self._checkpoint()
            time.sleep(0.001)

    def _taken(self) -> bool:
        """Whether the target has begun with what was handed over; perhaps it is done with it, and the mapping gone."""
        if self._page is None or not self._handed_over:
            return False
        try:
            found = self._memory.read(self._page.data, _STATE + 4)
        except OSError:
            return True
        return found != self._page.cookie + struct.pack("<I", _WAITING)

    def _hold(self) -> bool:
        """Trace and stop the main thread; False if it cannot be stopped just now."""
        try:
            self._thread.seize()
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            return self._denied()
        stop = self._thread.interrupt(1.0)
        while stop is not None and stop.why is not Why.INTERRUPTED:
            if stop.why is Why.STOPPED:
                self._thread.release()
                raise self._stopped()
            self._thread.resume()
            stop = self._thread.wait(1.0)
        if stop is None:
            self._thread.release()
        return stop is not None

    def _stopped(self) -> Refusal:
        return Refusal(
            errno.EBUSY, f"Process {self.pid} is stopped; let it go on (`kill -CONT {self.pid}`) and try again."
        )

    def _act(self) -> float:
        """With the main thread stopped, do the next thing. Returns seconds until it is worth looking again, or 0."""
        place = self._place()
        if place is None and self._outlast():
            place = self._place()
        if place is None:
            return 0.01
        if self._helping() and (place.answers or self._mode == WAKE or not place.waits):
            if place.answers:
                self._thread.set_registers(place.registers)
            return 0
        if self._queued and not place.visit:
            if place.retried:
                self._thread.set_registers(place.registers)
            return 0
        self._registers = place.registers
        self._signalled = False
        try:
            if self._page is None:
                self._prepare()
            if not self._call("Py_IsInitialized") & 0xFFFFFFFF:
                return self._not_initialized()
            holds_gil = self._call("PyGILState_Check") & 0xFFFFFFFF != 0
            if place.visit and (place.ours or not holds_gil):
                self._visit()
            elif not self._queued and self._has_python_below(place.registers):
                self._add_pending_call(holds_gil)
        except Contended:
            return 0.001
        finally:
            if self._signalled and place.or_interrupted is not None and not self._away:
                self._thread.set_registers(place.or_interrupted)
        return 0

    def _helping(self) -> bool:
        """Whether the interpreter shall see to it, which has been asked and perhaps only needs to be woken."""
        return self._mode == WAKE or (self._mode == HELP and time.monotonic() < self._began + _HELPED)

    def _not_initialized(self) -> float:
        """It may be about to be; or the interpreter is ending."""
        now = time.monotonic()
        self._starting = self._starting or now
        if now > self._starting + _STARTS:
            raise Refusal(
                errno.EAGAIN, f"The interpreter of process {self.pid} is starting or ending; try again later."
            )
        return 0.02

    def _outlast(self) -> bool:
        """Let the main thread go on to the end of the system call that it must not be disturbed in, if it is in one."""
        thread = self._thread
        call = thread.registers().call()
        if call is None or not call.resumes:
            return False
        while True:
            thread.resume(to_call=True)
            while (stop := thread.wait(0.05)) is None:
                self._checkpoint()
            if stop.why is Why.STOPPED:
                raise self._stopped()
            call = thread.registers().call() if stop.why is Why.CALL else None
            if call is not None and not call.begins and not call.interrupted:
                return True

    # Where it is

    def _place(self) -> Place | None:
        """What the main thread does; None if it must not be disturbed just now."""
        registers = self._thread.registers()
        self._python.maps = Maps(self.pid)
        if registers.foreign:
            raise Refusal(errno.ENOEXEC, f"Process {self.pid} runs 32-bit code, to which livepatch cannot attach.")
        if not self._has_room(registers.sp) or self._is_critical(registers.pc):
            return None
        call = registers.call()
        if call is None:
            return Place(registers)
        owner = self._owner(registers)
        ours = owner is not None and self._python.owns(owner)
        visit = call.name in _READS or (call.name in _WRITES and ours) or call.name in _FOR_A_SIGNAL
        if not call.interrupted:
            return Place(registers, visit)
        interrupted = registers.interrupted()
        if call.resumes:
            # The rest of its time is known to the kernel only, and would be lost. An endless poll has none; the others
            # that end in time are what every signal ends, too.
            if "sleep" in call.name or not (ours or call.name == "poll"):
                return None
            if not ours and registers.argument(2) & 0xFFFFFFFF == 0xFFFFFFFF:
                return Place(registers.again(), visit, waits=True, or_interrupted=interrupted)
            return Place(interrupted, visit, ours, True, retried=ours, answers=ours and call.name != "futex")
        if ours and call.name in _RETRIED:
            return Place(interrupted, visit, ours, True, retried=True, answers=call.name != "futex")
        if call.restarts:
            return Place(registers.again(), visit, ours, True, or_interrupted=interrupted)
        return Place(registers, visit, ours, True)

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

    def _has_room(self, sp: int) -> bool:
        """It is on the stack that the kernel gave it, with some room below: not on a signal handler's, for one."""
        stack = next((mapping for mapping in self._python.maps if mapping.path == "[stack]"), None)
        return stack is not None and stack.end - self._stack_limit() + _ROOM < sp < stack.end

    def _stack_limit(self) -> int:
        with open(f"/proc/{self.pid}/limits") as limits:
            found = re.search(r"^Max stack size +(\d+)", limits.read(), re.MULTILINE)
        return int(found[1]) if found else 1 << 40

    def _owner(self, registers: Any) -> Mapping | None:
        """The nearest code on the stack that is not the C library's: who called it."""
        return next((mapping for mapping in self._callers(registers) if not mapping.c_library), None)

    def _has_python_below(self, registers: Any) -> bool:
        """The interpreter has called what runs there: pending calls are this thread's to run. In a program that
        embeds it in another thread they would run beside what we do here.
        """
        return any(mapping.path == self._python.path for mapping in self._callers(registers, 1 << 20))

    def _callers(self, registers: Any, depth: int = 0x4000) -> Iterator[Mapping]:
        """Code to which the words on the stack point, just behind a call; some may be left from before."""
        maps = self._python.maps
        here = maps.at(registers.pc)
        if here is not None:
            yield here
        stack = maps.at(registers.sp)
        if stack is None:
            return
        start = registers.sp & ~7
        content = self._memory.read(start, min(depth, stack.end - start))
        for (word,) in struct.iter_unpack("<Q", content):
            mapping = maps.at(word)
            if mapping is not None and mapping.executable and self._processor.follows_call(self._before(word)):
                yield mapping

    def _before(self, address: int) -> bytes:
        try:
            return self._memory.read(address - 8, 8)
        except OSError:
            return bytes(8)

    # Borrowing it

    def _borrow(self, enter: Callable[[Frame], Any], *, lock: bool = False) -> dict[str, int]:
        """Have the thread run something, entered with the registers that `enter` gives for a frame, and come back.

        Returns the last result of each system call that it made. Raises Contended if it takes the lock of the pending
        calls and does not get it.
        """
        thread, processor = self._thread, self._processor
        frame = processor.frame(self._registers, thread.mask(), thread.extended(), self._restorer)
        self._memory.write(frame.address, frame.content)
        thread.set_registers(enter(frame))
        self._away = True
        results: dict[str, int] = {}
        began: Call | None = None
        leaving = impatient = contended = withhold = False
        until = time.monotonic() + _BORROWED
        while True:
            thread.resume(to_call=True, withhold=withhold)
            withhold = False
            waits = lock and not impatient and began is not None and began.name == "futex"
            stop = thread.wait(_CONTENDED if waits else until - time.monotonic())
            if stop is None and waits:
                impatient = True
                thread.request_stop()  # the end of its system call comes first
                stop = thread.wait(until - time.monotonic())
            if stop is None:
                thread.interrupt(1.0)
                raise Refusal(
                    errno.ETIMEDOUT, f"The main thread of process {self.pid} did not come back in time; try again."
                )
            if stop.why is Why.STOPPED:
                raise Refusal(errno.EBUSY, f"Process {self.pid} was stopped during the attach; try again.")
            if stop.why is Why.SIGNAL:
                registers = thread.registers()
                if stop.number == signal.SIGTRAP and registers.pc == self._breakpoint:
                    thread.set_registers(processor.leaving(registers, frame))
                    contended = withhold = True
                else:
                    self._signalled = True
            elif stop.why is Why.CALL and began is None:
                registers = thread.registers()
                began = registers.call()
                leaving = processor.is_leaving(registers, frame)
            elif stop.why is Why.CALL and began is not None:
                if leaving:
                    break
                registers = thread.registers()
                results[began.name] = registers.result()
                ended = registers.call()
                if impatient and began.name == "futex" and ended is not None and ended.interrupted:
                    thread.set_registers(processor.leaving(registers, frame))
                    contended = True
                impatient = False
                began = None
        self._away = False
        if contended:
            raise Contended
        return results

    def _system_call(self, name: str, *arguments: int) -> int:
        made = self._borrow(
            lambda frame: self._processor.entering_call(self._registers, frame, self._instruction, name, *arguments)
        )
        result = made[name]
        if -4096 < result < 0:
            raise Refusal(
                -result,
                f"Process {self.pid} was refused {name} by the system ({os.strerror(-result)}): too little"
                " memory, or a policy that forbids it; start it with `livepatch run -- ...`.",
            )
        return result

    def _call(self, function: str, *arguments: int, lock: bool = False) -> int:
        """Call a function of the interpreter that takes and returns integers."""
        page = self._page
        assert page is not None
        address = self._python.addresses[function]
        self._borrow(
            lambda frame: self._processor.entering_through(
                self._registers, frame, page.base, page.data, address, *arguments
            ),
            lock=lock,
        )
        (result,) = self._memory.unpack("<Q", page.data + _RESULT)
        return result

    # What is done with it

    def _prepare(self) -> None:
        """Put our code and its data into the target."""
        unit = os.sysconf("SC_PAGESIZE")
        size = unit + -(-(_DATA.size + 3 * len(_RUN) + 8 * len(self._script)) // unit) * unit
        private_anonymous = 0x22
        base = self._system_call("mmap", 0, size, mmap.PROT_READ | mmap.PROT_WRITE, private_anonymous, 2**64 - 1, 0)
        page = Page(base, size, base + unit, secrets.token_bytes(16))
        self._page = page
        functions = ("PyGILState_Ensure", "PyGILState_Release", "PyRun_SimpleString", "PyThread_start_new_thread")
        addresses = [self._python.addresses[name] for name in functions]
        data = _DATA.pack(page.cookie, _WAITING, 0, self._inner_pid, 0, 0, base, size, self._instruction, *addresses)
        self._memory.write(base, self._processor.stub)
        self._memory.write(page.data, data)
        self._system_call("mprotect", base, unit, mmap.PROT_READ | mmap.PROT_EXEC)
        main = self._call("PyThread_get_thread_ident")
        line = _LINE.format(_RUN.format(self._script, main)).encode() + b"\0"
        self._memory.write(page.data + _DATA.size, line)

    def _visit(self) -> None:
        page = self._page
        assert page is not None
        start = self._python.addresses["PyThread_start_new_thread"]
        thread = page.base + self._processor.entries["thread"]
        self._memory.write(page.data + _STATE, struct.pack("<II", _STARTED, self._queued))
        self._handed_over = True
        made = self._borrow(lambda frame: self._processor.entering(self._registers, frame, start, thread, page.data))
        if max(made.get("clone3", -1), made.get("clone", -1)) <= 0:
            self._memory.write(page.data + _STATE, struct.pack("<II", _WAITING, 0))
            self._handed_over = self._queued
            raise Refusal(
                errno.EAGAIN, f"Process {self.pid} cannot start a thread; raise its limits of threads and memory."
            )

    def _add_pending_call(self, holds_gil: bool) -> None:
        """Leave a note. Raises Contended if it cannot be left just now."""
        page = self._page
        assert page is not None
        pending = page.base + self._processor.entries["pending"]
        mutex = self._python.addresses.get(_MUTEX) if holds_gil else None
        if mutex is not None:
            self._arm(mutex)
        self._handed_over = True
        try:
            result = self._call("Py_AddPendingCall", pending, page.data, lock=holds_gil) & 0xFFFFFFFF
        except Contended:
            self._handed_over = False
            raise
        finally:
            if mutex is not None:
                self._disarm()
        if result:  # there is no room for another one
            self._handed_over = False
            raise Contended
        self._queued = True

    def _arm(self, address: int) -> None:
        """Set the breakpoint. What it raises is SIGTRAP, which would kill where it cannot be handled."""
        ignored = int(self._status()["SigIgn"], 16)
        if (self._thread.mask() | ignored) >> (signal.SIGTRAP - 1) & 1:
            problem = "it blocks or ignores SIGTRAP"
        else:
            try:
                self._processor.set_breakpoint(self._thread, address)
            except OSError as error:
                problem = f"the processor gives no breakpoint: {error.strerror}"
            else:
                self._breakpoint = address
                return
        raise Refusal(
            errno.ENOSYS,
            f"Process {self.pid} is busy, and livepatch cannot attach then ({problem}); try again when it waits for"
            " something, or start it with `livepatch run -- ...`.",
        )

    def _disarm(self) -> None:
        """No breakpoint any more, and no trap that was raised before but not reported: it would kill."""
        self._processor.set_breakpoint(self._thread, None)
        self._breakpoint = None
        while int(self._status()["SigPnd"], 16) >> (signal.SIGTRAP - 1) & 1:
            self._thread.resume()
            stop = self._thread.wait(1.0)
            if stop is None:
                break
            if stop.why is Why.SIGNAL and stop.number == signal.SIGTRAP:
                self._thread.resume(withhold=True)
                self._thread.interrupt(1.0)
                break

    def _status(self) -> dict[str, str]:
        with open(f"/proc/{self.pid}/task/{self.pid}/status", encoding="utf-8", errors="replace") as status:
            return dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)

    def _find_code(self) -> None:
        """A system call and the return from a signal handler, in code that is there already."""
        processor = self._processor
        instruction = restorer = None
        for mapping in sorted(self._python.maps, key=lambda mapping: not mapping.c_library):
            if not mapping.executable or mapping.start >= 1 << 63:
                continue
            try:
                code = self._memory.read(mapping.start, mapping.end - mapping.start)
            except OSError:
                continue
            instruction = instruction or _find(code, mapping.start, processor.system_call_code)
            restorer = restorer or _find(code, mapping.start, processor.restorer_code)
            if instruction and restorer:
                self._instruction, self._restorer = instruction, restorer
                return
        raise Refusal(
            errno.ENOEXEC,
            f"Process {self.pid} has a C library that livepatch does not know; start it with `livepatch run -- ...`.",
        )

    # When it does not work

    def _clean_up(self) -> None:
        """Take our mapping away again if nothing in the target knows of it."""
        page = self._page
        if page is None or self._handed_over or self._away:
            return
        with suppress(Gone, OSError, Contended):
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                if self._hold():
                    try:
                        place = self._place()
                        if place is not None:
                            self._registers = place.registers
                            self._system_call("munmap", page.base, page.size)
                            return
                    finally:
                        self._thread.release()
                time.sleep(0.01)

    def _denied(self) -> bool:
        """Why it may not be traced; False if another livepatch is at it, which will be done soon."""
        fields = self._status()
        tracer = fields["TracerPid"]
        if tracer != "0":
            try:
                with open(f"/proc/{tracer}/cmdline", "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                return False  # it is just going
            if MARK in command:
                return False
            raise Refusal(
                errno.EBUSY,
                f"Process {self.pid} is already traced by process {tracer} ({command.strip()[:60]}), a debugger"
                " perhaps; end that and try again.",
            )
        if fields["State"].startswith(("Z", "X")):
            raise Gone
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _explained(self, error: OSError) -> Refusal:
        if isinstance(error, Refusal):
            return error
        if error.errno in (errno.EPERM, errno.EACCES):
            return Refusal(
                errno.EPERM,
                f"The system does not let livepatch attach to process {self.pid} ({error.strerror}); run it as root, or"
                " start the process with `livepatch run -- ...`.",
            )
        if error.errno in (errno.ESRCH, errno.ENOENT):
            return Refusal(errno.ESRCH, f"Process {self.pid} ended during the attach.")
        return Refusal(
            errno.EAGAIN,
            f"The memory of process {self.pid} cannot be used ({error.strerror}); perhaps it began to run another"
            " program. Try again.",
        )


def _find(code: bytes, start: int, patterns: tuple[bytes, ...]) -> int | None:
    return next((start + place for pattern in patterns if (place := code.find(pattern)) >= 0), None)
