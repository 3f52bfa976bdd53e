"""One thread of another process under ptrace: stopping it, letting it go, and its registers.

A thread that is traced with PTRACE_SEIZE notices nothing. If the tracer dies, the kernel lets the thread go on from
where it was stopped; what the tracer has changed by then stays changed. Stops at system calls are told apart from
signals by PTRACE_O_TRACESYSGOOD, which also makes them harmless if the tracer dies in one of them: the kernel would
send what it reported as a signal, and 0x85 is none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from enum import Enum
from typing import NamedTuple

from .processor import Processor, Registers

_PEEKTEXT, _POKEUSER, _CONT, _DETACH, _SYSCALL = 1, 6, 7, 17, 24
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETREGSET, _SETREGSET, _GETSIGMASK, _SETSIGMASK = 0x4204, 0x4205, 0x420A, 0x420B
_GET_RSEQ = 0x420F  # PTRACE_GET_RSEQ_CONFIGURATION
_TRACESYSGOOD = 1
_WALL = 0x40000000
_EVENT_STOP = 128
NT_PRSTATUS = 1
_LARGEST = 1 << 17  # of the sets of registers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Gone(Exception):
    """The thread has ended."""


class Why(Enum):
    """Why a thread has stopped."""

    INTERRUPTED = "we asked it to"
    CALL = "it begins or ends a system call"
    SIGNAL = "it gets a signal"
    STOPPED = "its process is stopped (SIGSTOP, or job control)"


class Stop(NamedTuple):
    why: Why
    number: int


class Thread:
    """A thread, traced from `seize` to `release`."""

    def __init__(self, tid: int, processor: Processor) -> None:
        self.tid = tid
        self._processor = processor
        #: Still so after `release` if it cannot be stopped, until it can or we end.
        self.traced = False
        self._stop: Stop | None = None
        #: What `settle` has found: the number of a system call, and what it gave.
        self.settled: tuple[int, int] | None = None

    def request(self, number: int, address: int = 0, data: int = 0) -> int:
        """One ptrace request. Raises Gone, or OSError."""
        ctypes.set_errno(0)
        result: int = _libc.ptrace(number, self.tid, address, data)
        if result < 0 and (code := ctypes.get_errno()):
            if code == errno.ESRCH and self._ended():
                raise Gone
            raise OSError(code, os.strerror(code))
        return result

    def _ended(self) -> bool:
        try:
            with open(f"/proc/{self.tid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            return True

    def seize(self) -> None:
        """Raises Gone, or OSError: EPERM if that is not allowed or somebody else traces it."""
        if self.traced:
            return
        self.request(_SEIZE, 0, _TRACESYSGOOD)
        self.traced = True

    def interrupt(self, seconds: float) -> Stop | None:
        """Stop it, and return why it did: a signal may come first."""
        self.request_stop()
        return self.wait(seconds)

    def request_stop(self) -> None:
        self.request(_INTERRUPT)

    def resume(self, *, to_call: bool = False, withhold: bool = False) -> None:
        """Let it run, to the next beginning or end of a system call if so asked. If it stopped because of a signal,
        it gets that now, or never.
        """
        number = 0 if withhold else self._due()
        self._stop = self.settled = None
        self.request(_SYSCALL if to_call else _CONT, 0, number)

    def _due(self) -> int:
        return self._stop.number if self._stop is not None and self._stop.why is Why.SIGNAL else 0

    def wait(self, seconds: float) -> Stop | None:
        """Until it stops; None if it does not within so many seconds. Raises Gone."""
        began = time.monotonic()
        while True:
            pid, status = os.waitpid(self.tid, _WALL | os.WNOHANG)
            if pid:
                break
            waited = time.monotonic() - began
            if waited > seconds:
                return None
            if waited > 0.0005:
                time.sleep(0.0002 if waited < 0.02 else 0.001)
        if not os.WIFSTOPPED(status):
            self.traced = False
            raise Gone
        self._stop = _stop(status)
        return self._stop

    def registers(self) -> Registers:
        registers: Registers = self._processor.registers(self)
        return registers

    def set_registers(self, registers: Registers) -> None:
        self.set_regset(NT_PRSTATUS, self._processor.raw(registers))

    def extended(self) -> bytes:
        """The registers of the floating point and vector units."""
        return self._processor.extended(self)

    def settle(self, seconds: float) -> Stop | None:
        """Have a thread that we have stopped, and whose registers are `unsettled`, begin its system call and stop.

        Returns why it has stopped; if that is not because we asked it to, we have asked it to stop afterwards.
        """
        number = self.registers().unsettled
        assert number is not None
        self.resume(to_call=True)
        stop = self.wait(seconds)
        if stop is None:
            return None
        self.request_stop()
        if stop.why is not Why.CALL:
            return stop
        self.resume(to_call=True)
        if self.wait(seconds) is None:
            return None
        result = self.registers().result()
        self.request_stop()  # every stop takes an earlier request back
        self.resume()
        stop = self.wait(seconds)
        if stop is not None and stop.why is Why.INTERRUPTED:
            self.settled = number, result
        return stop

    def regset(self, kind: int) -> bytes:
        """One of the sets of registers that the kernel knows (NT_...). Raises OSError if there is no such one."""
        buffer = ctypes.create_string_buffer(_LARGEST)
        vector = Vector(ctypes.addressof(buffer), _LARGEST)
        self.request(_GETREGSET, kind, ctypes.addressof(vector))
        return ctypes.string_at(buffer, vector.size)

    def set_regset(self, kind: int, content: bytes) -> None:
        """Raises OSError if the kernel refuses that; nothing is changed then."""
        buffer = ctypes.create_string_buffer(content, len(content))
        vector = Vector(ctypes.addressof(buffer), len(content))
        self.request(_SETREGSET, kind, ctypes.addressof(vector))

    def peek(self, address: int) -> int:
        """A word of its memory. Raises OSError if there is none."""
        return self.request(_PEEKTEXT, address) % 2**64

    def poke_user(self, offset: int, value: int) -> None:
        """A word of the kernel's `struct user`, where the debug registers are. Raises OSError if it may not be."""
        self.request(_POKEUSER, offset, value)

    def mask(self) -> int:
        """The signals that it blocks."""
        value = ctypes.c_uint64()
        self.request(_GETSIGMASK, 8, ctypes.addressof(value))
        return value.value

    def set_mask(self, mask: int) -> None:
        value = ctypes.c_uint64(mask)
        self.request(_SETSIGMASK, 8, ctypes.addressof(value))

    def status(self) -> dict[str, str]:
        """What /proc says of it."""
        with open(f"/proc/{self.tid}/task/{self.tid}/status", encoding="utf-8", errors="replace") as status:
            return dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)

    def restartable_sequences(self) -> int:
        """Where the thread's `struct rseq` is, or 0."""
        buffer = ctypes.create_string_buffer(24)
        try:
            self.request(_GET_RSEQ, len(buffer), ctypes.addressof(buffer))
        except OSError:
            return 0  # an old kernel
        return int.from_bytes(buffer.raw[:8], "little")

    def release(self) -> None:
        """Trace it no more. It goes on from where it is; does nothing if it has ended."""
        if not self.traced:
            return
        try:
            if self._stop is None:
                self.interrupt(1.0)
            self.request(_DETACH, 0, self._due())
        except Gone:
            self.traced = False
        except OSError:
            pass  # it cannot be stopped just now; the kernel lets it go when we end
        else:
            self.traced = False
        self._stop = None


def _stop(status: int) -> Stop:
    number = status >> 8 & 0xFF
    if status >> 16 == _EVENT_STOP:
        return Stop(Why.INTERRUPTED if number == signal.SIGTRAP else Why.STOPPED, number)
    if number == signal.SIGTRAP | 0x80:
        return Stop(Why.CALL, number)
    return Stop(Why.SIGNAL, number)
