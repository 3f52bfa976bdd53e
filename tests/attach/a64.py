"""A program for 64-bit ARM that looks after every register it has, run by its own kind of processor or an emulator.

It reads all its registers from its standard input, in the form of `given`, and has them while it does what the letter
in its first argument says; then it writes what it has in them, in the same form, and ends. With a capital letter it
looks after the vectors at their full length (SVE), too.

    s  spins until somebody writes something else into `over`
    c  makes the system call that is in these registers
    h  makes it, with its process number first, which sends it SIGUSR1, and writes the frame that the handler gets
    f  makes the call that ends a signal handler, on what it has read, which must be a frame
"""

import platform
import random
import shutil
import struct
import subprocess

import pytest

SOURCE = """
    .arch armv8-a+sve
    .set SIZE, 16384
    .set GENERAL, 0
    .set OWN_STACK, 248
    .set FLAGS, 256
    .set CONTROL, 264
    .set STATUS, 272
    .set MASK, 280
    .set SIGNAL_STACK, 288
    .set VECTORS, 320
    .set LONG_VECTORS, 832

    .macro call number, first=0, second=0, third=0, fourth=0
        mov x0, \\first
        mov x1, \\second
        mov x2, \\third
        mov x3, \\fourth
        mov x8, \\number
        svc 0
    .endm
    .macro every_vector what, at
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
            \\what q\\n, [\\at], 16
        .endr
    .endm
    .macro every_long_vector what, at
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
            \\what z\\n, [\\at, \\n, mul vl]
        .endr
    .endm
    .macro every_predicate what, at
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
            \\what p\\n, [\\at, \\n, mul vl]
        .endr
    .endm

    .text
    .global _start, landed, over, given, stack, calls, handler
    _start:
        ldr x20, [sp, 16]
        ldrb w20, [x20]                 // what to do
        ldr x21, =given
        add x22, x21, SIZE
    1:  sub x23, x22, x21
        call 63, 0, x21, x23            // read
        add x21, x21, x0
        cmp x21, x22
        b.lo 1b
        ldr x21, =signal_stack
        call 132, x21, 0                // sigaltstack
        ldr x21, =blocked
        call 135, 0, x21, 0, 8          // rt_sigprocmask
        ldr x21, =given
        ldr x22, =what
        str x20, [x22]
        cmp x20, 'f'
        b.eq frame
        cmp x20, 'F'
        b.eq frame

        tbnz x20, 5, 2f
        add x10, x21, LONG_VECTORS
        addvl x11, x10, 31
        addvl x11, x11, 1
        ldr p0, [x11, 16, mul vl]
        wrffr p0.b
        every_predicate ldr, x11
        every_long_vector ldr, x10
        b 3f
    2:  add x10, x21, VECTORS
        every_vector ldr, x10
    3:  orr x20, x20, 32
        cmp x20, 'h'
        b.ne 4f
        ldr x1, =action
        call 134, 10, x1, 0, 8          // rt_sigaction, SIGUSR1
        call 172                        // getpid
        str x0, [x21]
    4:  ldr x9, =stack
        mov sp, x9
        ldr x9, [x21, CONTROL]
        msr fpcr, x9
        ldr x9, [x21, STATUS]
        msr fpsr, x9
        cmp x20, 's'
        cset x9, eq
        ldr x8, =spins
        str x9, [x8]
        ldr x9, [x21, FLAGS]
        msr nzcv, x9
        mov x30, x21
        ldp x0, x1, [x30]
        ldp x2, x3, [x30, 16]
        ldp x4, x5, [x30, 32]
        ldp x6, x7, [x30, 48]
        ldr x8, [x30, 64]
        ldp x10, x11, [x30, 80]
        ldp x12, x13, [x30, 96]
        ldp x14, x15, [x30, 112]
        ldp x16, x17, [x30, 128]
        ldp x18, x19, [x30, 144]
        ldp x20, x21, [x30, 160]
        ldp x22, x23, [x30, 176]
        ldp x24, x25, [x30, 192]
        ldp x26, x27, [x30, 208]
        ldp x28, x29, [x30, 224]
        ldr x30, [x30, 240]
        ldr x9, spins
        cbnz x9, spin
    calls:
        svc 0                           // with the registers that were given
        b landed
    spin:
        ldr w9, over
        cbz w9, spin
    landed:
        str x9, [sp, -16]!
        ldr x9, =out
        stp x0, x1, [x9]
        stp x2, x3, [x9, 16]
        stp x4, x5, [x9, 32]
        stp x6, x7, [x9, 48]
        str x8, [x9, 64]
        stp x10, x11, [x9, 80]
        stp x12, x13, [x9, 96]
        stp x14, x15, [x9, 112]
        stp x16, x17, [x9, 128]
        stp x18, x19, [x9, 144]
        stp x20, x21, [x9, 160]
        stp x22, x23, [x9, 176]
        stp x24, x25, [x9, 192]
        stp x26, x27, [x9, 208]
        stp x28, x29, [x9, 224]
        str x30, [x9, 240]
        ldr x10, [sp], 16
        str x10, [x9, 72]
        mov x10, sp
        str x10, [x9, OWN_STACK]
        mrs x10, nzcv
        str x10, [x9, FLAGS]
        mrs x10, fpcr
        str x10, [x9, CONTROL]
        mrs x10, fpsr
        str x10, [x9, STATUS]
        ldr x20, =what
        ldr x20, [x20]
        tbnz x20, 5, 6f
        add x10, x9, LONG_VECTORS
        addvl x11, x10, 31
        addvl x11, x11, 1
        every_long_vector str, x10
        every_predicate str, x11
        rdffr p0.b
        str p0, [x11, 16, mul vl]
    6:  add x10, x9, VECTORS
        every_vector str, x10
        mov x19, x9
        add x21, x19, MASK
        call 135, 0, 0, x21, 8
        add x21, x19, SIGNAL_STACK
        call 132, 0, x21
        mov x20, SIZE
        call 64, 1, x19, x20            // write
        call 93, 0                      // exit
    system_call:
        svc 0
        ret
    frame:
        mov sp, x21
        mov x8, 139
        svc 0
    handler:
        mov x19, sp
        mov x20, SIZE
        call 64, 1, x19, x20
        call 93, 0

    .data
    .balign 8
    spins:  .quad 0
    over:   .word 0
    .balign 8
    what:   .quad 0
    blocked: .quad 0x800                // SIGUSR2
    signal_stack: .quad alternative
            .word 0, 0
            .quad 16384
    action: .quad handler, 4, 0, 0      // SA_SIGINFO
    .bss
    .balign 4096
    given:  .space SIZE
    out:    .space SIZE
    alternative: .space 16384
            .space 65536
    stack:  .space 32768
"""

SIZE, LONG_VECTORS = 16384, 832
NATIVE = platform.machine() == "aarch64"
ASSEMBLER, LINKER, LISTER, COPIER = (
    name if NATIVE else f"aarch64-linux-gnu-{name}" for name in ("as", "ld", "nm", "objcopy")
)
EMULATOR = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)

needs_assembler = pytest.mark.skipif(
    shutil.which(ASSEMBLER) is None, reason="needs the package binutils-aarch64-linux-gnu"
)
needs_emulator = pytest.mark.skipif(
    not NATIVE and EMULATOR is None, reason="needs the package qemu-user-static, or a 64-bit ARM"
)


def assemble(source, folder):
    """Assembled; returns the addresses of its symbols."""
    (folder / "a64.s").write_text(source)
    subprocess.run([ASSEMBLER, "-o", "a64.o", "a64.s"], cwd=folder, check=True)
    return symbols(folder / "a64.o")


def symbols(file):
    listed = subprocess.run([LISTER, str(file)], check=True, capture_output=True, text=True).stdout
    return {name: int(address, 16) for address, _, name in (line.split() for line in listed.splitlines())}


class Program:
    """Where it is, and where what in it is."""

    def __init__(self, folder):
        assemble(SOURCE, folder)
        self.path = folder / "a64"
        subprocess.run([LINKER, "-o", "a64", "a64.o"], cwd=folder, check=True)
        self.at = symbols(self.path)

    def command(self, letter, length=16):
        """To run it, with vectors of that many bytes."""
        if NATIVE:
            return [str(self.path), letter]
        return [EMULATOR, "-cpu", f"max,sve-default-vector-length={length}", str(self.path), letter]

    def run(self, letter, given, length=16):
        return subprocess.run(
            self.command(letter, length), input=given, stdout=subprocess.PIPE, check=True, timeout=300
        ).stdout


def vector_length():
    """In bytes, if we run on a processor with SVE; else 0. One that is emulated has any."""
    if not NATIVE:
        return 16
    import ctypes

    return max(ctypes.CDLL(None).prctl(51, 0, 0, 0, 0), 0) & 0xFFFF  # PR_SVE_GET_VL


class Values:
    """Registers with something in each of them, the same whenever the seed is. `general` are the first ones."""

    def __init__(self, seed, length=16, general=()):
        chance = random.Random(seed)
        self.general = [*general, *(chance.getrandbits(64) for _ in range(31 - len(general)))]
        self.flags = 0x60000000  # zero, carry
        self.control, self.status = 1 << 22, 0x1F  # round up; everything has happened
        self.length = length
        self.tail = b""
        long = [chance.randbytes(length) for _ in range(32)]
        self.vectors = b"".join(value[:16] for value in long)
        self.long = b"".join(long)
        self.predicates = chance.randbytes(2 * length) + (2 ** (length // 2) - 1).to_bytes(length // 8, "little")

    def given(self):
        content = struct.pack("<31QQQQQ", *self.general, 0, self.flags, self.control, self.status)
        content = content.ljust(320, b"\0") + self.vectors
        return (content + self.long + self.predicates).ljust(SIZE - len(self.tail), b"\0") + self.tail

    def missing(self, content, sp, *, whole, mask=0x800, but=(9,)):
        """Which of them are not in what the program has written. x9 it needs itself, as a rule."""
        general = struct.unpack_from("<31Q", content)
        missing = [f"x{n}" for n in range(31) if n not in but and general[n] != self.general[n]]
        others = struct.unpack_from("<5Q", content, 248)
        expected = {"sp": sp, "flags": self.flags, "control": self.control, "status": self.status, "mask": mask}
        missing += [name for name, value in zip(expected, others, strict=True) if value != expected[name]]
        if content[320:832] != self.vectors:
            missing.append("vectors")
        if whole:
            end = LONG_VECTORS + len(self.long)
            if content[LONG_VECTORS:end] != self.long:
                missing.append("long vectors")
            if content[end : end + len(self.predicates)] != self.predicates:
                missing.append("predicates")
        return missing
