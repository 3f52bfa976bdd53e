"""What depends on the kind of processor: registers, the frame of a signal handler, and a little machine code.

`injection` says what is to happen in terms of this interface; `x86_64` and `aarch64` are its implementations. A thread
is always changed by one write of all its registers, so that there is no instant at which it is half changed.

The code is written for each kind of processor; the data that `injection` lays beside it is the same for all, and the
code calls its words by these names:

    .set STATE, 16
    .set QUEUED, 20
    .set PID, 24
    .set KEPT, 28
    .set RESULT, 32
    .set BASE, 40
    .set SIZE, 48
    .set CALL, 56
    .set ENSURE, 64
    .set RELEASE, 72
    .set RUN, 80
    .set START, 88
    .set LINE, 96
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self


class Refusal(OSError):
    """The process is not attached to, and is as it was. `str()` is one sentence that says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class Call(NamedTuple):
    """The system call in which a thread was stopped, and what it gave.

    The kernel's own codes say what becomes of a call that was interrupted: `restarts`, it is made again as if nothing
    had been; `resumes`, it is made again for the rest of its time, which only the kernel knows.
    """

    name: str
    result: int

    @property
    def restarts(self) -> bool:
        return self.result in (-512, -513, -514)

    @property
    def always_restarts(self) -> bool:
        """A signal handler would not change that."""
        return self.result == -513

    @property
    def resumes(self) -> bool:
        return self.result == -516

    @property
    def begins(self) -> bool:
        """It has only begun."""
        return self.result == -errno.ENOSYS

    @property
    def interrupted(self) -> bool:
        """It was waiting, and waits no more because the thread was stopped."""
        return self.restarts or self.resumes or self.result == -errno.EINTR


class Registers(Protocol):
    """All general registers of a stopped thread."""

    @property
    def pc(self) -> int: ...
    @property
    def sp(self) -> int: ...
    @property
    def unsettled(self) -> int | None:
        """The number of a system call that it was interrupted in, or has not begun: that cannot be told, see
        `Thread.settle`.
        """

    @property
    def foreign(self) -> bool:
        """It runs code of another kind than ours, as a 32-bit program does."""

    def call(self) -> Call | None:
        """The system call that it was stopped in or just after, if any."""

    def argument(self, number: int) -> int:
        """An argument of that system call."""

    def result(self) -> int:
        """What a system call gave."""

    def again(self) -> Self:
        """The same, about to make its system call anew. Only if the call `restarts`."""

    def interrupted(self) -> Self:
        """The same, its system call having returned that a signal handler has run (EINTR)."""

    def dwarf(self) -> tuple[int, ...]:
        """The general registers in the order that debuggers number them in, see `frames`."""


class Frame(NamedTuple):
    """A signal handler's frame: where it goes, what is in it, and the code to which the handler returns."""

    address: int
    content: bytes
    restorer: int


class Processor(Protocol):
    """One kind of processor."""

    #: As the kernel calls it.
    machine: str
    #: The number in the header of an ELF file.
    elf_machine: int
    #: Numbers of the system calls that are made in the target, and of those that are told apart, by name.
    calls: Mapping[str, int]
    #: Code that every C library has: a system call that returns to its caller, and the return from a signal handler.
    system_call_code: tuple[bytes, ...]
    restorer_code: tuple[bytes, ...]
    #: The code that is put into the target, and where in it things begin, see `stub`.
    stub: bytes
    entries: Mapping[str, int]
    #: Instructions begin at multiples of this.
    instruction_unit: int
    #: The number that debuggers give the stack pointer.
    dwarf_sp: int
    #: What of a return address is the address: some processors sign it in the upper bits.
    address_mask: int

    def problem(self, status: Mapping[str, str]) -> str | None:
        """What makes all this impossible, told by /proc/PID/status, as the end of a sentence."""

    def registers(self, thread: Any) -> Any:
        """The registers of a stopped thread. Raises Refusal if it runs code of another kind."""

    def raw(self, registers: Any) -> bytes:
        """These in the form in which the kernel takes them."""

    def extended(self, thread: Any) -> bytes:
        """Its floating point and vector registers, for `frame`. Raises Refusal if it has what no frame can hold."""

    def frame(self, registers: Any, mask: int, extended: bytes, restorer: int) -> Frame:
        """What the kernel lays on a thread's stack for a signal handler, so that it returns to `registers`."""

    def entering(self, registers: Any, frame: Frame, function: int, *arguments: int) -> Any:
        """Registers at the entry of a C function, which returns through the frame."""

    def entering_through(
        self, registers: Any, frame: Frame, code: int, data: int, function: int, *arguments: int
    ) -> Any:
        """The same by way of `call` in the stub at `code`, which stores the function's result in the data."""

    def entering_call(self, registers: Any, frame: Frame, instruction: int, name: str, *arguments: int) -> Any:
        """Registers before the instruction that makes this system call; it returns through the frame."""

    def leaving(self, registers: Any, frame: Frame) -> Any:
        """Registers as if what was entered with this frame had returned."""

    def is_leaving(self, registers: Any, frame: Frame) -> bool:
        """It is making the system call that takes this frame down."""

    def returns(self, registers: Any, stack: bytes) -> Iterator[int]:
        """What may be the addresses to which the functions return that run, the nearest first; `stack` is what is on
        it from the stack pointer, rounded down to 8, upwards.
        """

    def follows_call(self, before: bytes) -> bool:
        """Whether these 8 bytes of code end with a call of a function."""

    def set_breakpoint(self, thread: Any, address: int | None) -> None:
        """Make this thread, and no other, get SIGTRAP when it comes to this address; None: no more."""


def processor() -> Processor:
    """The one that we run on. Raises Refusal if there is no implementation."""
    if os.uname().machine == "x86_64":
        from .x86_64 import X86_64

        return X86_64()
    if os.uname().machine == "aarch64":
        from .aarch64 import AArch64

        return AArch64()
    raise Refusal(
        errno.ENOSYS,
        f"livepatch cannot attach to an unprepared process on {os.uname().machine}; start it with"
        " `livepatch run -- ...`.",
    )
