"""64-bit ARM: its registers, the frame of a signal handler, and the code that is put into the target.

**The frame** is what the kernel itself would lay on the stack, a `struct rt_sigframe`: first a `siginfo`, which nobody
reads, then `struct ucontext` with the signal mask and the general registers, then records, each with a magic number
and its size, up to an empty one. The vector registers are such a record (FPSIMD). Where the thread uses them at their
full length (SVE) there is another one with all of them; it may be too long for the 4096 bytes that `ucontext` has, and
is then announced by a third (EXTRA), which it must follow at once. The kernel's rt_sigreturn wants all of that at the
stack pointer, which must be a multiple of 16, and takes everything back from there. What it must not take back is the
alternate signal stack, which we do not know: flags that mean nothing make it ignore that part. C libraries have no code
to which a handler returns; the kernel has it in its vDSO (`mov x8, #139; svc #0`). The return address of a function is
in x30, so nothing of it is in the frame. Below the stack pointer nothing is in use.

**A stopped system call** is told otherwise than on x86. There the tracer sees that it was interrupted, and how it would
be made again. Here the kernel has prepared that before it stops: x0 is the first argument again, the pc is at the `svc`
itself, and that there was a system call is forgotten. Such a thread cannot be told from one that has not made the call
yet, to which nobody may say that a signal came first: it may be about to wake somebody up. So it is let go on into its
call, with a stop already asked for (`Thread.settle`): what waits is interrupted again at once, as the kernel provides
for, and now the end of the call shows the kernel's own code (`settled`); what does not wait is done. A call that is
made for the rest of its time has become `restart_syscall` by then, whose number is in x8, so the first one is
remembered.

At the stops that begin and end a system call the kernel still knows its number (NT_ARM_SYSTEM_CALL), and x7 says which
of the two it is, 0 or 1: what the thread has in x7 is not to be seen there, and cannot be changed. So registers from
there are never put into a frame (`injection._outlast`). As long as x0 is the kernel's own code there, the kernel would
move the pc for it, wherever we have put that; so who is sent elsewhere gets another x0.

**Newer processors.** Where the program was built to be safe from being diverted (BTI), a jump by register must land on
what is meant for it. So the state in which the thread was may not be that between such a jump and its landing (BTYPE in
pstate), and the code goes into the middle of a function by `ret`, of which nothing is demanded. Signed return addresses
(PAC) have their signature in the upper 16 bits; who looks for code on the stack leaves those out. A second stack of
return addresses (GCS) is refused, and so is a thread that is just using the matrix unit (SME), in whose mode no
function expects to be called. Tags of memory (MTE) are checked in a signal handler even if the thread had switched that
off for a moment, and so here.

**The code.** What it is for and why it may free the memory that it is in is said in `injection`; a test assembles what
is written here and compares. It is written into memory that is not executable yet; when it becomes so, the kernel sees
to it that no processor has something older in its instruction cache. x19 is the address of the data, whose words have
their names in `processor`:

    call:    mov x20, x30                   // a function whose result we want to know
             blr x16
             str x0, [x19, RESULT]
             ret x20
    pending: bti c                          // what the interpreter calls: int pending(void *data)
             stp x29, x30, [sp, -32]!
             mov x29, sp
             str x19, [sp, 16]
             mov x19, x0
             mov x8, 172                    // getpid
             svc 0
             ldr w1, [x19, PID]
             cmp w0, w1
             b.ne free                      // in the child of a fork, nobody else is here
             str wzr, [x19, QUEUED]
             ldr w1, [x19, STATE]
             cmp w1, 1
             b.hi free                      // a visit started the thread, and it has gone
             b.eq out                       // or has not
             mov w1, 1
             str w1, [x19, STATE]
             adr x0, thread
             mov x1, x19
             ldr x2, [x19, START]
             blr x2
             cmn x0, 1
             b.eq free
    out:     mov w0, 0
             ldr x19, [sp, 16]
             ldp x29, x30, [sp], 32
             ret
    thread:  bti c                          // void thread(void *data)
             stp x29, x30, [sp, -32]!
             mov x29, sp
             str x19, [sp, 16]
             mov x19, x0
             ldr x1, [x19, ENSURE]
             blr x1
             str w0, [x19, KEPT]
             add x0, x19, LINE
             ldr x1, [x19, RUN]
             blr x1
             ldr w0, [x19, KEPT]
             mov w1, 2
             str w1, [x19, STATE]
             ldr w1, [x19, QUEUED]
             ldr x16, [x19, RELEASE]
             cbz w1, last
             ldr x19, [sp, 16]
             ldp x29, x30, [sp], 32
             br x16
    last:    blr x16
    free:    ldp x0, x1, [x19, BASE]        // munmap, which returns to our caller, and 0 as it happens
             ldr x16, [x19, CALL]
             mov x8, 215
             ldr x19, [sp, 16]
             ldp x29, x30, [sp], 32
             ret x16
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from .processor import Call, Frame, Refusal
from .tracing import NT_PRSTATUS, Thread

_SYSTEM_CALL, _RETURN = 0xD4000001, 0xD65F03C0  # svc #0, ret
_NUMBER, _ENTRY = 8, 0  # the register that has the number; what x7 is at the beginning of a system call
_FRAME, _LINK = 29, 30
_ADDRESS = (1 << 48) - 1  # what remains of a return address without its signature
_NONE = -1

_32_BIT = 1 << 4  # in pstate
_LANDING, _UNCHECKED = 3 << 10, 1 << 25  # BTYPE, and TCO of MTE

_NT_PRFPREG, _NT_HW_BREAK, _NT_SYSTEM_CALL, _NT_SVE = 2, 0x402, 0x404, 0x405
_NT_SSVE, _NT_ZA, _NT_GCS = 0x40B, 0x40C, 0x410
_REGISTERS = struct.Struct("<34Q")  # struct user_pt_regs
#: struct user_sve_header, with which also the regsets of the matrix unit begin: its size, and the length of a vector.
_VECTORS = struct.Struct("<I4xH2xH2x")
_WHOLE_VECTORS = 1  # a flag there

#: From the beginning of the frame: what is before the signal stack, between the mask and the registers (`struct
#: sigcontext` begins with the address of a fault), and between these and the records.
_BEFORE, _BEFORE_REGISTERS, _BEFORE_RECORDS = 128 + 16, 128 + 8, 8
_NO_FLAGS = 0x40000000  # ss_flags that the kernel refuses, and goes on
_FPSIMD, _SVE, _EXTRA = 0x46508001, 0x53564501, 0x45585401
_FPSIMD_SIZE, _EXTRA_SIZE, _END = 528, 32, bytes(16)
_RESERVED = 4096  # for records in `struct sigcontext`

_ENABLED, _AT_USER, _WHOLE_INSTRUCTION = 1, 2 << 1, 0xF << 5  # of a breakpoint


@dataclass(frozen=True)
class A64Registers:
    """`struct user_pt_regs`, and what else tells of a system call."""

    general: tuple[int, ...]
    sp: int
    pc: int
    pstate: int
    #: The system call that it is stopped at the beginning or end of.
    number: int = _NONE
    #: The system call that it will make again, and what that gave last.
    settled: tuple[int, int] | None = None
    #: The instructions before the pc and at it.
    code: tuple[int, int] = (0, 0)

    @property
    def unsettled(self) -> int | None:
        known = self.code[1] != _SYSTEM_CALL or self.number != _NONE or self.settled is not None
        return None if known else self.general[_NUMBER]

    @property
    def foreign(self) -> bool:
        return self.pstate & _32_BIT != 0

    def call(self) -> Call | None:
        if self.number != _NONE:
            begins = self.general[7] == _ENTRY
            return Call(_NAMES.get(self.number, str(self.number)), -errno.ENOSYS if begins else self.result())
        before, here = self.code
        if here == _SYSTEM_CALL and self.settled is not None:
            number, result = self.settled
        elif before == _SYSTEM_CALL:
            number, result = self.general[_NUMBER], self.result()
        else:
            return None
        name = _NAMES.get(number, str(number))
        if name == "ppoll" and self.argument(1) == self.argument(2) == 0:
            name = "pause"  # for nothing and without end: that is what C libraries make of it
        return Call(name, result)

    def argument(self, number: int) -> int:
        return self.general[number]

    def result(self) -> int:
        return (self.general[0] ^ 1 << 63) - (1 << 63)

    def again(self) -> Self:
        assert self.settled is not None
        return self.but({_NUMBER: self.settled[0]})

    def interrupted(self) -> Self:
        if self.code[1] != _SYSTEM_CALL:
            return self
        return replace(self.but({0: 2**64 - errno.EINTR}), pc=self.pc + 4, code=(_SYSTEM_CALL, 0), settled=None)

    def dwarf(self) -> tuple[int, ...]:
        return (*self.general, self.sp)

    def but(self, general: Mapping[int, int]) -> Self:
        values = (general.get(number, value) % 2**64 for number, value in enumerate(self.general))
        return replace(self, general=tuple(values))


class AArch64:
    """See `processor.Processor`."""

    machine = "aarch64"
    elf_machine = 183
    instruction_unit = 4
    dwarf_sp = 31
    address_mask = _ADDRESS
    calls: Mapping[str, int] = {
        "io_getevents": 4, "epoll_pwait": 22, "fcntl": 25, "flock": 32, "openat": 56, "read": 63, "write": 64, "readv":
        65, "writev": 66, "sendfile": 71, "pselect6": 72, "ppoll": 73, "splice": 76, "waitid": 95, "futex": 98,
        "nanosleep": 101, "clock_nanosleep": 115, "restart_syscall": 128, "rt_sigsuspend": 133, "rt_sigtimedwait": 137,
        "rt_sigreturn": 139, "mq_timedsend": 182, "mq_timedreceive": 183, "msgrcv": 188, "msgsnd": 189, "semtimedop":
        192, "semop": 193, "accept": 202, "connect": 203, "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg":
        212, "munmap": 215, "clone": 220, "mmap": 222, "mprotect": 226, "accept4": 242, "recvmmsg": 243, "wait4": 260,
        "sendmmsg": 269, "io_pgetevents": 292, "io_uring_enter": 426, "clone3": 435, "epoll_pwait2": 441,
    }  # fmt: skip
    system_call_code: tuple[bytes, ...] = (struct.pack("<II", _SYSTEM_CALL, _RETURN),)
    restorer_code: tuple[bytes, ...] = (struct.pack("<II", 0xD2801168, _SYSTEM_CALL),)
    stub = bytes.fromhex(
        "f4031eaa00023fd6601200f980025fd65f2403d5fd7bbea9fd030091f30b00f9f30300aa881580d2010000d4611a40b9"
        "1f00016be10400547f1600b9611240b93f040071680400542001005421008052611200b940010010e10313aa622e40f9"
        "40003fd61f0400b14003005400008052f30b40f9fd7bc2a8c0035fd65f2403d5fd7bbea9fd030091f30b00f9f30300aa"
        "612240f920003fd6601e00b960820191612a40f920003fd6601e40b941008052611200b9611640b9702640f981000034"
        "f30b40f9fd7bc2a800021fd600023fd6608642a9701e40f9e81a80d2f30b40f9fd7bc2a800025fd6"
    )
    entries: Mapping[str, int] = {"call": 0, "pending": 16, "thread": 124}

    def problem(self, status: Mapping[str, str]) -> str | None:
        return None

    def registers(self, thread: Thread) -> A64Registers:
        content = thread.regset(NT_PRSTATUS)
        if len(content) != _REGISTERS.size:
            raise Refusal(errno.ENOEXEC, "The main thread runs 32-bit code, to which livepatch cannot attach.")
        *general, sp, pc, pstate = _REGISTERS.unpack(content)
        number = int.from_bytes(thread.regset(_NT_SYSTEM_CALL)[:4], "little", signed=True)
        try:
            both = thread.peek(pc - 4)
        except OSError:
            both = 0  # the first instruction that is mapped there
        code = both & 0xFFFFFFFF, both >> 32
        return A64Registers(tuple(general), sp, pc, pstate, number, thread.settled, code)

    def raw(self, registers: A64Registers) -> bytes:
        return _REGISTERS.pack(*registers.general, registers.sp, registers.pc, registers.pstate)

    def extended(self, thread: Thread) -> bytes:
        """The records for them, without the empty one."""
        if int.from_bytes(_optional(thread, _NT_GCS)[:8], "little") & 1:
            raise Refusal(
                errno.ENOSYS,
                f"Process {thread.tid} has a guarded control stack (GCS), on which livepatch cannot lay a frame; start"
                " it with `livepatch run -- ...`.",
            )
        if any(_vectors(_optional(thread, kind)) for kind in (_NT_SSVE, _NT_ZA)):
            raise Refusal(
                errno.EAGAIN,
                f"Process {thread.tid} is just using the matrix unit (SME), where livepatch cannot attach; try again.",
            )
        plain = thread.regset(_NT_PRFPREG)
        record = struct.pack("<II", _FPSIMD, _FPSIMD_SIZE) + plain[512:520] + plain[:512]
        whole = _optional(thread, _NT_SVE)
        if not _vectors(whole) or not _VECTORS.unpack_from(whole)[2] & _WHOLE_VECTORS:
            return record
        length = _VECTORS.unpack_from(whole)[1]
        size = 16 + 32 * length + 17 * length // 8  # 32 vectors, and 17 predicates with a bit for each byte
        size = (size + 15) & ~15
        head = struct.pack("<IIH6x", _SVE, size, length)
        return record + head + whole[16:size].ljust(size - 16, b"\0")

    def frame(self, registers: A64Registers, mask: int, extended: bytes, restorer: int) -> Frame:
        content = bytes(_BEFORE) + struct.pack("<QI4xQQ", 0, _NO_FLAGS, 0, mask) + bytes(_BEFORE_REGISTERS)
        content += self.raw(registers) + bytes(_BEFORE_RECORDS)
        longer = extended[_FPSIMD_SIZE:]
        announced = len(extended) + len(_END) > _RESERVED
        address = registers.sp - len(content) - len(extended) - len(_END) - announced * (_EXTRA_SIZE + len(_END))
        address &= ~15
        if announced:
            at = address + len(content) + _FPSIMD_SIZE + _EXTRA_SIZE + len(_END)
            longer = struct.pack("<IIQI12x", _EXTRA, _EXTRA_SIZE, at, len(longer) + len(_END)) + _END + longer
        return Frame(address, content + extended[:_FPSIMD_SIZE] + longer + _END, restorer)

    def entering(self, registers: A64Registers, frame: Frame, function: int, *arguments: int) -> A64Registers:
        return self._on(registers, frame, function, dict(enumerate(arguments)))

    def entering_through(
        self, registers: A64Registers, frame: Frame, code: int, data: int, function: int, *arguments: int
    ) -> A64Registers:
        given = {16: function, 19: data, **dict(enumerate(arguments))}
        return self._on(registers, frame, code + self.entries["call"], given)

    def entering_call(
        self, registers: A64Registers, frame: Frame, instruction: int, name: str, *arguments: int
    ) -> A64Registers:
        return self._on(registers, frame, instruction, {_NUMBER: self.calls[name], **dict(enumerate(arguments))})

    def leaving(self, registers: A64Registers, frame: Frame) -> A64Registers:
        return self._on(registers, frame, frame.restorer, {})

    def _on(self, registers: A64Registers, frame: Frame, pc: int, general: Mapping[int, int]) -> A64Registers:
        changed = registers.but({0: 0, _LINK: frame.restorer, **general})
        pstate = registers.pstate & ~(_LANDING | _UNCHECKED)
        return replace(changed, sp=frame.address, pc=pc, pstate=pstate, number=_NONE, settled=None, code=(0, 0))

    def is_leaving(self, registers: A64Registers, frame: Frame) -> bool:
        return registers.number == self.calls["rt_sigreturn"] and registers.sp == frame.address

    def returns(self, registers: A64Registers, stack: bytes) -> Iterator[int]:
        """By the frame records: who has one keeps the address of the next one and the own return address there. Code
        that makes none, and has x29 for something else, is gone through word by word.
        """
        yield registers.general[_LINK] & _ADDRESS
        start, at = registers.sp & ~7, -1
        following = registers.general[_FRAME] - start
        while at < following <= len(stack) - 16 and following % 8 == 0:
            at = following
            following, link = struct.unpack_from("<QQ", stack, at)
            following -= start
            yield link & _ADDRESS
        if at < 0:
            for (word,) in struct.iter_unpack("<Q", stack):
                yield word & _ADDRESS

    def follows_call(self, before: bytes) -> bool:
        code = int.from_bytes(before[4:], "little")
        return (
            code & 0xFC000000 == 0x94000000  # bl
            or code & 0xFFFFFC1F == 0xD63F0000  # blr
            or code & 0xFFFFF81F == 0xD63F081F  # blraaz, blrabz
            or code & 0xFFFFF800 == 0xD73F0800  # blraa, blrab
        )

    def set_breakpoint(self, thread: Thread, address: int | None) -> None:
        """The first of the thread's own."""
        control = 0 if address is None else _ENABLED | _AT_USER | _WHOLE_INSTRUCTION
        thread.set_regset(_NT_HW_BREAK, struct.pack("<8xQI4x", address or 0, control))


_NAMES = {number: name for name, number in AArch64.calls.items()}


def _optional(thread: Thread, kind: int) -> bytes:
    """A regset that this processor or kernel may not have."""
    try:
        return thread.regset(kind)
    except OSError:
        return b""


def _vectors(content: bytes) -> bool:
    """Whether there is more in this regset than its header."""
    return len(content) >= _VECTORS.size and bool(_VECTORS.unpack_from(content)[0] > _VECTORS.size)
