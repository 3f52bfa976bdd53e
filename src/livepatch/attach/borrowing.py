"""A stopped thread runs something for us, and comes back by itself to where it was.

We do to it what the kernel does for a signal handler: a frame on its own stack has all of its registers, and our code,
entered by one write of all registers, returns into rt_sigreturn, which takes everything back from the frame. We only
watch: the system calls that it makes tell us results, and that it has come back. If we are killed meanwhile, it comes
back all the same.

Its signals are blocked as long as that lasts, else those that come all the time would keep it from getting anywhere;
the frame has the mask as it was. The mask is changed *after* the registers, so that whenever we are killed, either
the thread has the frame before it, or its own mask.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from typing import Any

from .processor import Call, Frame, Processor, Refusal
from .symbols import Memory
from .tracing import Thread, Why

#: Seconds that a borrowed call may take before we give it up; it would come back by itself all the same.
_BORROWED = 5.0
#: Seconds that somebody else may hold the lock of the pending calls. No more, as it may be the thread itself, which
#: would then wait for ever if we were killed meanwhile.
_CONTENDED = 0.002

#: What the processor raises cannot be blocked.
_RAISED = (signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
_BLOCKED = 2**64 - 1 - sum(1 << (number - 1) for number in _RAISED)


class Contended(Exception):
    """The lock of the pending calls was held; nothing was changed."""


class Borrowing:
    """What borrows a thread again and again while it is stopped. `registers` are those with which it goes on."""

    def __init__(self, thread: Thread, memory: Memory, processor: Processor, restorer: int) -> None:
        self._thread = thread
        self._memory = memory
        self._processor = processor
        self._restorer = restorer
        self._breakpoint: int | None = None
        self.registers: Any = None
        #: It has not come back.
        self.away = False

    def run(self, enter: Callable[[Any, Frame], Any], *, lock: bool = False) -> dict[str, int]:
        """Have the thread run something, entered with the registers that `enter` makes of its own and a frame.

        Returns the last result of each system call that it made. `lock`: it takes the lock of the pending calls;
        raises Contended if it does not get it.
        """
        thread, processor = self._thread, self._processor
        frame = processor.frame(self.registers, thread.mask(), thread.extended(), self._restorer)
        self._memory.write(frame.address, frame.content)
        thread.set_registers(enter(self.registers, frame))
        self.away = True
        thread.set_mask(thread.mask() | _BLOCKED)
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
                    errno.ETIMEDOUT, f"The main thread of process {thread.tid} did not come back in time; try again."
                )
            if stop.why is Why.STOPPED:
                raise Refusal(errno.EBUSY, f"Process {thread.tid} was stopped during the attach; try again.")
            if stop.why is Why.SIGNAL:
                registers = thread.registers()
                if stop.number == signal.SIGTRAP and registers.pc == self._breakpoint:
                    thread.set_registers(processor.leaving(registers, frame))
                    contended = withhold = True
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
        self.away = False
        if contended:
            raise Contended
        return results

    def signals_wait(self) -> bool:
        """Whether there are signals that the thread will get as soon as it goes on."""
        status = self._thread.status()
        pending, shared, blocked = (int(status[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk"))
        return (pending | shared) & ~blocked != 0

    def arm(self, address: int) -> None:
        """Set a breakpoint. What it raises is SIGTRAP, which would kill where it cannot be handled."""
        ignored = int(self._thread.status()["SigIgn"], 16)
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
            f"Process {self._thread.tid} is busy, and livepatch cannot attach then ({problem}); try again when it waits"
            " for something, or start it with `livepatch run -- ...`.",
        )

    def disarm(self) -> None:
        """No breakpoint any more, and no trap that was raised before but not reported: it would kill."""
        self._processor.set_breakpoint(self._thread, None)
        self._breakpoint = None
        while int(self._thread.status()["SigPnd"], 16) >> (signal.SIGTRAP - 1) & 1:
            self._thread.resume()
            stop = self._thread.wait(1.0)
            if stop is None:
                break
            if stop.why is Why.SIGNAL and stop.number == signal.SIGTRAP:
                self._thread.resume(withhold=True)
                self._thread.interrupt(1.0)
                break
