"""Start a thread in an interpreter that was not prepared, and have it run a script.

**The problem.** A thread that is stopped at any instant may hold any lock: of malloc, of the interpreter, of a library.
Injectors that call dlopen or PyGILState_Ensure there hang what they attach to. So little is done there, nothing of it
in Python, and all of it can be undone or finishes by itself.

**Borrowing** the main thread is what makes that possible, see `borrowing`: it runs something for us as it would run a
signal handler, and comes back by itself, whether we live or not. No breakpoint, no single step: nothing in the target
waits for us. If we are killed at any instant, it goes on. (But for the lock below.)

**What is called there.** If the main thread waits without the GIL, and not inside of an allocator, our code may do what
any C callback may: PyThread_start_new_thread. That is a *visit*. It needs no GIL, so it waits for nobody; it
serves main loops that are not Python's, and locks that are not. Else we leave a note, Py_AddPendingCall, and the
interpreter itself starts the thread at its next safe point. The main thread never runs Python for us: a signal handler
written in Python, run in the middle of ours, might raise what the program would have to see.

**The lock of the pending calls** may be held by the main thread itself, stopped in the middle, or by another one that
is about to let go. Up to 3.12 it is a semaphore, and who sits in the system call that waits for one can be sent home
from there; killed in these 2 ms, we leave a main thread that has the lock itself to wait for ever. From 3.13 on it is a
PyMutex, and who has to wait for that gives the GIL away in the middle of whatever it does: a breakpoint of the
processor, on this thread only and for these microseconds, catches it before. If we are killed in them *and* there is
contention, the target dies of SIGTRAP.

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
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import NamedTuple

from .borrowing import Borrowing, Contended
from .mark import HELP, WAKE, is_ours
from .processor import Processor, Refusal
from .symbols import Memory, find_python
from .tracing import Gone, Thread, Why
from .where import Lookout

_NEEDED = (
    "Py_AddPendingCall", "Py_Version", "Py_IsInitialized", "PyGILState_Check", "PyGILState_Ensure",
    "PyGILState_GetThisThreadState", "PyGILState_Release", "PyRun_SimpleString", "PyThread_start_new_thread",
    "PyThread_get_thread_ident",
)  # fmt: skip
_MUTEX = "PyMutex_Lock"  # from 3.13 on
#: Whose turn it is in the process, or from 3.12 on the state of the thread itself if that has the GIL.
_CURRENT = ("PyThreadState_GetUnchecked", "_PyThreadState_UncheckedGet")  # from 3.13 on, and before

#: Seconds that an interpreter may take to start.
_STARTS = 1.0
#: Seconds for which a main thread may be found where it can have no breakpoint, and how many times: the machine may be
#: too busy to look often.
_DEAF, _LOOKS = 0.5, 30
#: Seconds that an interpreter which was asked to run a script may take when nothing keeps it from that.
_HELPED = 0.5
#: The words of the data, whose names are in `processor`; then comes the line that the thread runs.
_DATA = struct.Struct("<16s4I8Q")
_STATE, _QUEUED, _RESULT = 16, 20, 32
_WAITING, _STARTED = 0, 1

#: What the thread runs, in a namespace of its own: this one is that of `__main__`, and an error would be printed there.
_LINE = """\
try:
    __import__('builtins').exec({0!a}, {{'__name__': 'livepatch.attach'}})
except BaseException:
    pass
"""
#: Nothing here may import what is not there in every interpreter, see `arrival`. Calls that may have to wait for the
#: GIL are as few as can be. A script that is gone was taken back; what else keeps it from running is written beside it,
#: where `files` has a file for that.
_RUN = """\
def script():
    import posix
    file = posix.open({0!a}, posix.O_RDONLY)
    try:
        return posix.read(file, 1 << 16)
    finally:
        posix.close(file)
try:
    script = script()
    if {2} is not None:
        import _signal
        _signal.pthread_sigmask(_signal.SIG_SETMASK, {2})
    exec(script, {{'__name__': 'livepatch.attach', 'main_thread': {1}}})
except FileNotFoundError:
    pass
except BaseException as error:
    try:
        with open({0!a}[:-3] + ".failed", "r+") as file:
            file.write(str(error) or type(error).__name__)
    except BaseException:
        pass
"""


class Page(NamedTuple):
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
        self._starting = 0.0
        self._deaf: list[float] = []

    def run(self) -> None:
        """Returns when the thread has been started in the target. Raises Refusal, or what the checkpoint raises."""
        try:
            if problem := self._processor.problem(self._thread.status()):
                raise Refusal(errno.ENOSYS, f"Process {self.pid} {problem}; start it with `livepatch run -- ...`.")
            with closing(Memory(self.pid)) as self._memory:
                self._python = find_python(self._memory, self._processor.elf_machine, _NEEDED, (_MUTEX, *_CURRENT))
                self._lookout = Lookout(self._thread, self._memory, self._python, self._processor)
                restorer = self._find_code()
                self._borrowing = Borrowing(self._thread, self._memory, self._processor, restorer)
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
        self._thread.request_stop()
        return self._comes_to_rest()

    def _comes_to_rest(self) -> bool:
        """Wait until the main thread, which was asked to, has stopped; False if it does not just now."""
        thread = self._thread
        stop = thread.wait(1.0)
        while stop is not None:
            if stop.why is Why.STOPPED:
                thread.release()
                raise self._stopped()
            if stop.why is not Why.INTERRUPTED:
                thread.resume()
                stop = thread.wait(1.0)
            elif thread.registers().unsettled is not None:
                stop = thread.settle(1.0)
            else:
                return True
        thread.release()
        return False

    def _stopped(self) -> Refusal:
        return Refusal(
            errno.EBUSY, f"Process {self.pid} is stopped; let it go on (`kill -CONT {self.pid}`) and try again."
        )

    def _act(self) -> float:
        """With the main thread stopped, do the next thing. Returns seconds until it is worth looking again, or 0."""
        place = self._lookout.place()
        if place is None and self._outlast():
            place = self._lookout.place()
        if place is None:
            return 0.01
        if self._helping() and (place.answers or self._mode == WAKE or not place.waits):
            if place.answers:
                self._thread.set_registers(place.registers)
            return 0
        if self._queued and not place.visit:
            return 0
        self._borrowing.registers = place.registers
        try:
            if self._page is None:
                self._prepare()
            if not self._call("Py_IsInitialized") & 0xFFFFFFFF:
                return self._not_initialized()
            holds_gil = self._holds_gil()
            if place.visit and (place.answers or not holds_gil):
                self._visit()
            elif place.waits and holds_gil:
                return 0  # nobody gets in now, and a note would stay there for as long
            elif not self._queued and self._lookout.has_python_below(place.registers):
                self._add_pending_call()
        except Contended:
            return 0.001
        finally:
            if place.or_interrupted is not None and not self._borrowing.away and self._borrowing.signals_wait():
                self._thread.set_registers(place.or_interrupted)
        return 0

    def _holds_gil(self) -> bool:
        """Whether the main thread does.

        From when a second interpreter is made on, PyGILState_Check says so of every thread. What is asked then may be
        wrong about a thread that runs another interpreter and waits with the GIL: ours would have to wait for it.
        """
        if not self._call("PyGILState_Check") & 0xFFFFFFFF:
            return False
        current = next((name for name in _CURRENT if name in self._python.addresses), None)
        return current is None or self._call(current) == self._call("PyGILState_GetThisThreadState")

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
                # Not here: at this stop a processor may not show, nor take, what is in all registers.
                thread.request_stop()
                thread.resume()
                return self._comes_to_rest()

    # What is done with it

    def _system_call(self, name: str, *arguments: int) -> int:
        made = self._borrowing.run(
            lambda registers, frame: self._processor.entering_call(
                registers, frame, self._instruction, name, *arguments
            )
        )
        result = made[name]
        if -4096 < result < 0:
            raise Refusal(
                -result,
                f"Process {self.pid} was refused {name} by the system ({os.strerror(-result)}): too little memory, or a"
                " policy that forbids it; start it with `livepatch run -- ...`.",
            )
        return result

    def _call(self, function: str, *arguments: int, lock: bool = False) -> int:
        """Call a function of the interpreter that takes and returns integers."""
        page = self._page
        assert page is not None
        address = self._python.addresses[function]
        self._borrowing.run(
            lambda registers, frame: self._processor.entering_through(
                registers, frame, page.base, page.data, address, *arguments
            ),
            lock=lock,
        )
        result: int = self._memory.unpack("<Q", page.data + _RESULT)[0]
        return result

    def _prepare(self) -> None:
        """Put our code and its data into the target."""
        unit = os.sysconf("SC_PAGESIZE")
        size = unit + -(-(_DATA.size + 3 * len(_RUN) + 512 + 8 * len(self._script)) // unit) * unit
        private_anonymous = 0x22
        base = self._system_call("mmap", 0, size, mmap.PROT_READ | mmap.PROT_WRITE, private_anonymous, 2**64 - 1, 0)
        page = Page(base, size, base + unit, os.urandom(16))
        self._page = page
        functions = ("PyGILState_Ensure", "PyGILState_Release", "PyRun_SimpleString", "PyThread_start_new_thread")
        addresses = [self._python.addresses[name] for name in functions]
        data = _DATA.pack(page.cookie, _WAITING, 0, self._inner_pid, 0, 0, base, size, self._instruction, *addresses)
        self._memory.write(base, self._processor.stub)
        self._memory.write(page.data, data)
        self._system_call("mprotect", base, unit, mmap.PROT_READ | mmap.PROT_EXEC)
        self._main = self._call("PyThread_get_thread_ident")

    def _write_line(self, blocked: list[int] | None = None) -> None:
        """What the thread runs. One that is started in a visit has all signals blocked, and takes back its mask."""
        assert self._page is not None
        line = _LINE.format(_RUN.format(self._script, self._main, blocked)).encode() + b"\0"
        self._memory.write(self._page.data + _DATA.size, line)

    def _visit(self) -> None:
        page = self._page
        assert page is not None
        start = self._python.addresses["PyThread_start_new_thread"]
        thread = page.base + self._processor.entries["thread"]
        self._memory.write(page.data + _STATE, struct.pack("<II", _STARTED, self._queued))
        self._handed_over = True
        mask = self._thread.mask()
        self._write_line([number for number in range(1, 65) if number not in (32, 33) and mask >> (number - 1) & 1])
        made = self._borrowing.run(
            lambda registers, frame: self._processor.entering(registers, frame, start, thread, page.data)
        )
        if max(made.get("clone3", -1), made.get("clone", -1)) <= 0:
            self._memory.write(page.data + _STATE, struct.pack("<II", _WAITING, 0))
            self._handed_over = self._queued
            raise Refusal(
                errno.EAGAIN, f"Process {self.pid} cannot start a thread; raise its limits of threads and memory."
            )

    def _add_pending_call(self) -> None:
        """Leave a note. Raises Contended if it cannot be left just now.

        The main thread may have the lock without the GIL, too: C code may leave notes of its own.
        """
        page = self._page
        assert page is not None
        pending = page.base + self._processor.entries["pending"]
        mutex = self._python.addresses.get(_MUTEX)
        self._write_line()
        if mutex is not None:
            self._arm(mutex)
        self._handed_over = True
        try:
            result = self._call("Py_AddPendingCall", pending, page.data, lock=True) & 0xFFFFFFFF
        except Contended:
            self._handed_over = False
            raise
        finally:
            if mutex is not None:
                self._borrowing.disarm()
        if result:  # there is no room for another one
            self._handed_over = False
            raise Contended
        self._queued = True

    def _arm(self, mutex: int) -> None:
        """Set the breakpoint. Raises Contended where there can be none just now, as in a fork of the C library, which
        blocks all signals; and Refusal where there never is one.
        """
        try:
            self._borrowing.arm(mutex)
        except Refusal:
            self._deaf.append(time.monotonic())
            if len(self._deaf) > _LOOKS and self._deaf[-1] > self._deaf[0] + _DEAF:
                raise
            raise Contended from None
        self._deaf.clear()

    def _find_code(self) -> int:
        """A system call, and where a signal handler returns to, which is returned, in code that is there already."""
        processor = self._processor
        instruction = restorer = None
        for mapping in sorted(self._python.maps, key=lambda mapping: not mapping.c_library):
            if not mapping.executable or mapping.start >= 1 << 63:
                continue
            try:
                code = self._memory.read(mapping.start, mapping.end - mapping.start)
            except OSError:
                continue
            unit = processor.instruction_unit
            instruction = instruction or find(code, mapping.start, processor.system_call_code, unit)
            restorer = restorer or find(code, mapping.start, processor.restorer_code, unit)
            if instruction and restorer:
                self._instruction = instruction
                return restorer
        raise Refusal(
            errno.ENOEXEC,
            f"Process {self.pid} has a C library that livepatch does not know; start it with `livepatch run -- ...`.",
        )

    # When it does not work

    def _clean_up(self) -> None:
        """Take our mapping away again if nothing in the target knows of it."""
        page = self._page
        if page is None or self._handed_over or self._borrowing.away:
            return
        with suppress(Gone, OSError, Contended):
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                if self._hold():
                    try:
                        place = self._lookout.place()
                        if place is not None:
                            self._borrowing.registers = place.registers
                            self._system_call("munmap", page.base, page.size)
                            return
                    finally:
                        self._thread.release()
                time.sleep(0.01)

    def _denied(self) -> bool:
        """Why it may not be traced; False if another livepatch is at it, which will be done soon."""
        fields = self._thread.status()
        tracer = fields["TracerPid"]
        if tracer != "0":
            try:
                if is_ours(int(tracer)):
                    return False
                with open(f"/proc/{tracer}/cmdline", "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                return False  # it is just going
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


def find(code: bytes, start: int, patterns: tuple[bytes, ...], unit: int) -> int | None:
    """Where the first of these patterns is that is there, in code whose instructions begin at multiples of `unit`."""
    for pattern in patterns:
        place = code.find(pattern)
        while place >= 0 and place % unit:
            place = code.find(pattern, place + 1)
        if place >= 0:
            return start + place
    return None
