"""x86-64: its registers, the frame of a signal handler, and the code that is put into the target.

**The frame** is what the kernel itself would lay on the stack: `struct rt_sigframe` without what nobody reads. From
the stack pointer at the entry of the handler upwards: the return address, which is that of the C library's restorer
(`mov eax, 15; syscall`), then `struct ucontext`, then the extended registers as XSAVE stores them, between the two
magic words without which the kernel would restore the SSE registers only. The kernel's rt_sigreturn takes everything
back from there: all registers, the signal mask, the extended registers. One thing it must not take back is the
alternate signal stack, which we do not know: flags that mean nothing make it ignore that part.

**A stopped system call.** rax is what it gave, orig_rax its number (-1 outside of system calls). What would have been
made again by the kernel, we make again in the same way: rax is the number, and rip two bytes back at the
instruction.

**The code.** What it is for and why it may free the memory that it is in is said in `injection`; a test assembles what
is written here and compares. rbx is the address of the data, whose words have their names in `processor`:

    call:    push rax                       # a function whose result we want to know
             call rax
             mov [rbx+RESULT], rax
             pop rax
             ret
    pending: push rbx                       # what the interpreter calls: int pending(void *data)
             mov rbx, rdi
             mov eax, 39                    # getpid
             syscall
             cmp eax, [rbx+PID]
             jne free                       # in the child of a fork, nobody else is here
             mov dword ptr [rbx+QUEUED], 0
             cmp dword ptr [rbx+STATE], 1
             ja free                        # a visit started the thread, and it has gone
             je out                         # or has not
             mov dword ptr [rbx+STATE], 1
             lea rdi, [rip+thread]
             mov rsi, rbx
             call [rbx+START]
             cmp rax, -1
             je free
    out:     xor eax, eax
             pop rbx
             ret
    thread:  push rbx                       # void thread(void *data)
             mov rbx, rdi
             call [rbx+ENSURE]
             mov [rbx+KEPT], eax
             lea rdi, [rbx+LINE]
             call [rbx+RUN]
             mov edi, [rbx+KEPT]
             mov dword ptr [rbx+STATE], 2
             cmp dword ptr [rbx+QUEUED], 0
             mov rax, [rbx+RELEASE]
             je last
             pop rbx
             jmp rax
    last:    call rax
    free:    mov rdi, [rbx+BASE]            # munmap, which returns to our caller, and 0 as it happens
             mov rsi, [rbx+SIZE]
             mov rdx, [rbx+CALL]
             mov eax, 11
             pop rbx
             jmp rdx
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator, Mapping
from typing import Self

from .processor import Call, Frame, Refusal
from .tracing import NT_PRSTATUS, Thread

_FIELDS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
#: The order in `struct sigcontext`.
_CONTEXT = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip",
    "eflags",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")  # of a system call
_DWARF = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
_FUNCTION_ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")

_NONE = 2**64 - 1
_USER_CODE = 0x33  # cs of 64-bit programs
_DIRECTION, _TRAP = 0x400, 0x100  # flags that no function expects to be set

_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
_DEBUG_REGISTERS = 848  # where in `struct user`
_NT_X86_XSTATE = 0x202
_RED_ZONE = 128  # what a thread may use below its stack pointer
_NO_FLAGS = 0x40000000  # ss_flags that the kernel refuses, and goes on
_CONTEXT_SIZE = 304
_MAGIC1, _MAGIC2 = 0x46505853, 0x46505845
_SOFTWARE = 464  # where in the extended registers there is room for `struct _fpx_sw_bytes`
_FEATURES = 512  # where it is noted which of them are in use
#: With the registers of the matrix unit, which a thread has only if it asked for them, they are larger than that.
_TILES, _BEFORE_TILES = 1 << 18, 2816


class X86Registers(ctypes.Structure):
    """`struct user_regs_struct`."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _FIELDS)

    @property
    def pc(self) -> int:
        return int(self.rip)

    @property
    def sp(self) -> int:
        return int(self.rsp)

    unsettled: int | None = None

    @property
    def foreign(self) -> bool:
        return bool(self.cs != _USER_CODE)

    def call(self) -> Call | None:
        number = int(self.orig_rax)
        if number == _NONE:
            return None
        return Call(_NAMES.get(number, str(number)), ctypes.c_int64(self.rax).value)

    def argument(self, number: int) -> int:
        return int(getattr(self, _ARGUMENTS[number]))

    def result(self) -> int:
        return ctypes.c_int64(self.rax).value

    def again(self) -> Self:
        return self.but(rip=self.rip - 2, rax=self.orig_rax, orig_rax=_NONE)

    def interrupted(self) -> Self:
        return self.but(rax=2**64 - errno.EINTR, orig_rax=_NONE)

    def dwarf(self) -> tuple[int, ...]:
        return tuple(int(getattr(self, name)) for name in _DWARF)

    def but(self, **changed: int) -> Self:
        copy = type(self).from_buffer_copy(self)
        for name, value in changed.items():
            setattr(copy, name, value % 2**64)
        return copy


class X86_64:
    """See `processor.Processor`."""

    machine = "x86_64"
    elf_machine = 62
    instruction_unit = 1
    dwarf_sp = 7
    address_mask = _NONE
    calls: Mapping[str, int] = {
        "read": 0, "write": 1, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "rt_sigreturn": 15, "readv": 19,
        "writev": 20, "select": 23, "pause": 34, "nanosleep": 35, "sendfile": 40, "connect": 42, "accept": 43,
        "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "clone": 56, "wait4": 61, "semop": 65, "msgsnd":
        69, "msgrcv": 70, "fcntl": 72, "flock": 73, "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "futex": 202,
        "io_getevents": 208, "restart_syscall": 219, "semtimedop": 220, "clock_nanosleep": 230, "epoll_wait": 232,
        "mq_timedsend": 242, "mq_timedreceive": 243, "waitid": 247, "openat": 257, "pselect6": 270, "ppoll": 271,
        "splice": 275, "epoll_pwait": 281, "accept4": 288, "recvmmsg": 299, "sendmmsg": 307, "io_pgetevents": 333,
        "io_uring_enter": 426, "clone3": 435, "epoll_pwait2": 441,
    }  # fmt: skip
    system_call_code: tuple[bytes, ...] = (b"\x0f\x05\xc3",)
    stub = bytes.fromhex(
        "50ffd04889432058c3534889fbb8270000000f053b43187557c7431400000000837b1001774a741ac743100100000048"
        "8d3d100000004889deff53584883f8ff742e31c05bc3534889fbff534089431c488d7b60ff53508b7b1cc74310020000"
        "00837b1400488b434874035bffe0ffd0488b7b28488b7330488b5338b80b0000005bffe2"
    )
    entries: Mapping[str, int] = {"call": 0, "pending": 9, "thread": 70}  # fmt: skip
    restorer_code: tuple[bytes, ...] = (b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05")

    def problem(self, status: Mapping[str, str]) -> str | None:
        if "shstk" in status.get("x86_Thread_features", ""):
            return "has shadow stacks switched on, on which livepatch cannot lay a frame"
        return None

    def registers(self, thread: Thread) -> X86Registers:
        content = thread.regset(NT_PRSTATUS)
        if len(content) != ctypes.sizeof(X86Registers):
            raise Refusal(errno.ENOEXEC, "The main thread runs 32-bit code, to which livepatch cannot attach.")
        return X86Registers.from_buffer_copy(content)

    def raw(self, registers: X86Registers) -> bytes:
        return bytes(registers)

    def extended(self, thread: Thread) -> bytes:
        return thread.regset(_NT_X86_XSTATE)

    def frame(self, registers: X86Registers, mask: int, extended: bytes, restorer: int) -> Frame:
        size = len(extended)
        if size > _BEFORE_TILES and not struct.unpack_from("<Q", extended, _FEATURES)[0] & _TILES:
            size = _BEFORE_TILES
        (features,) = struct.unpack_from("<Q", extended, _SOFTWARE)
        software = struct.pack("<IIQI28x", _MAGIC1, size + 4, features, size)
        state = extended[:_SOFTWARE] + software + extended[_FEATURES:size] + struct.pack("<I", _MAGIC2)
        state_at = (registers.sp - _RED_ZONE - len(state)) & ~63
        context_at = (state_at - _CONTEXT_SIZE) & ~15
        context = struct.pack(
            "<QQQi4xQ",
            _UC_FP_XSTATE | _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS, 0,
            0, _NO_FLAGS, 0,
        )  # fmt: skip
        context += struct.pack("<18Q", *(getattr(registers, name) for name in _CONTEXT))
        context += struct.pack("<4H", *(int(getattr(registers, name)) for name in ("cs", "gs", "fs", "ss")))
        context += struct.pack("<4Q", 0, 0, mask, 0)  # the last fault: there was none
        context += struct.pack("<Q64xQ", state_at, mask)
        content = struct.pack("<Q", restorer) + context
        return Frame(context_at - 8, content.ljust(state_at - context_at + 8, b"\0") + state, restorer)

    def entering(self, registers: X86Registers, frame: Frame, function: int, *arguments: int) -> X86Registers:
        given = dict(zip(_FUNCTION_ARGUMENTS, arguments, strict=False))
        return self._on(registers, frame, rip=function, **given)

    def entering_through(
        self, registers: X86Registers, frame: Frame, code: int, data: int, function: int, *arguments: int
    ) -> X86Registers:
        given = dict(zip(_FUNCTION_ARGUMENTS, arguments, strict=False))
        return self._on(registers, frame, rip=code + self.entries["call"], rax=function, rbx=data, **given)

    def entering_call(
        self, registers: X86Registers, frame: Frame, instruction: int, name: str, *arguments: int
    ) -> X86Registers:
        given = dict(zip(_ARGUMENTS, arguments, strict=False))
        return self._on(registers, frame, rip=instruction, rax=self.calls[name], **given)

    def _on(self, registers: X86Registers, frame: Frame, **changed: int) -> X86Registers:
        flags = int(registers.eflags) & ~(_DIRECTION | _TRAP)
        return registers.but(rsp=frame.address, eflags=flags, orig_rax=_NONE, **changed)

    def leaving(self, registers: X86Registers, frame: Frame) -> X86Registers:
        return registers.but(rip=frame.restorer, rsp=frame.address + 8, orig_rax=_NONE)

    def is_leaving(self, registers: X86Registers, frame: Frame) -> bool:
        return bool(registers.orig_rax == self.calls["rt_sigreturn"] and registers.rsp == frame.address + 8)

    def returns(self, registers: X86Registers, stack: bytes) -> Iterator[int]:
        return (word for (word,) in struct.iter_unpack("<Q", stack))

    def follows_call(self, before: bytes) -> bool:
        if before[3] == 0xE8:
            return True
        return any(before[-size] == 0xFF and before[1 - size] >> 3 & 7 == 2 for size in (2, 3, 4, 6, 7))

    def set_breakpoint(self, thread: Thread, address: int | None) -> None:
        """In debug register 0, which is this thread's own."""
        thread.poke_user(_DEBUG_REGISTERS + 8 * 7, 0)
        thread.poke_user(_DEBUG_REGISTERS, address or 0)
        if address is not None:
            thread.poke_user(_DEBUG_REGISTERS + 8 * 7, 1)


_NAMES = {number: name for name, number in X86_64.calls.items()}
