"""The registers, the frame and the code for 64-bit ARM.

On another processor an emulator makes the system call that takes a frame down, and recorded registers take the place
of a thread. What needs a kernel is run on a 64-bit ARM only; `scripts/arm64.sh` starts one.
"""

import contextlib
import errno
import re
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from tests.agent.targets import eventually
from tests.attach import a64
from tests.attach.a64 import Program, Values, needs_assembler, needs_emulator

from livepatch.attach import aarch64, processor, seccomp
from livepatch.attach.injection import find
from livepatch.attach.processor import Refusal
from livepatch.attach.symbols import Maps, Memory
from livepatch.attach.tracing import NT_PRSTATUS, Thread, Why

pytestmark = pytest.mark.once

CPU = aarch64.AArch64()
needs_arm = pytest.mark.skipif(not a64.NATIVE, reason="needs a 64-bit ARM, see scripts/arm64.sh")
LENGTHS = (16, 32, 64, 256) if not a64.NATIVE else (a64.vector_length(),) if a64.vector_length() else ()

SVC, RET, NOP = 0xD4000001, 0xD65F03C0, 0xD503201F


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return Program(tmp_path_factory.mktemp("a64"))


class Recorded:
    """A thread that is stopped, as far as its registers are asked for."""

    tid = 4711

    def __init__(self, regsets, words=None, settled=None):
        self.regsets = regsets
        self.words = words or {}
        self.settled = settled

    def regset(self, kind):
        if kind not in self.regsets:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.regsets[kind]

    def set_regset(self, kind, content):
        self.regsets[kind] = content

    def peek(self, address):
        if address not in self.words:
            raise OSError(errno.EIO, "Input/output error")
        return self.words[address]


def vectors_of(values, *, whole):
    """The regsets that the kernel has for them."""
    status = struct.pack("<II", values.status, values.control)
    sets = {2: values.vectors + status + bytes(8)}
    length = values.length
    if whole:
        content = (values.long + values.predicates).ljust(-(-(len(values.long) + len(values.predicates)) // 16) * 16)
        content += status
        sets[0x405] = struct.pack("<IIHHHH", 16 + len(content), 16 + len(content), length, 256, 1, 0) + content
    return sets


def registers_of(values, sp, pc):
    return aarch64.A64Registers(tuple(values.general), sp, pc, values.flags)


# The frame, taken down by whoever makes system calls here


@needs_assembler
@needs_emulator
@pytest.mark.parametrize("length", [None, *LENGTHS])
def test_everything_comes_back_from_the_frame(program, length):
    values = Values(1, length or 16)
    extended = CPU.extended(Recorded(vectors_of(values, whole=length is not None)))
    given, landed = program.at["given"], program.at["landed"]
    size = len(CPU.frame(registers_of(values, program.at["stack"], landed), 0, extended, 0).content)
    registers = registers_of(values, given + size, landed)
    frame = CPU.frame(registers, 0xA00, extended, 0)
    assert frame.address == given
    content = program.run("f" if length is None else "F", frame.content.ljust(a64.SIZE, b"\0"), length or 16)
    assert values.missing(content, given + size, whole=length is not None, mask=0xA00, but=()) == []
    assert struct.unpack_from("<QIQ", content, 288)[0] == program.at["alternative"]
    assert struct.unpack_from("<QI4xQ", content, 288) == (program.at["alternative"], 0, 16384)


def records(content):
    """Those of a frame, by their magic numbers."""
    found, at = {}, 592
    while True:
        magic, size = struct.unpack_from("<II", content, at)
        if magic == 0x45585401:
            at = struct.unpack_from("<Q", content, at + 8)[0]
            raise AssertionError("not in these tests")
        if magic == 0:
            return found
        found[magic] = content[at : at + size]
        at += size


@needs_assembler
@needs_emulator
@pytest.mark.parametrize("length", [None] if a64.NATIVE else [None, 16, 32, 64])  # a kernel drops the rest at a call
def test_the_frame_is_what_a_signal_handler_gets(program, length):
    result, kill = 0, 129
    values = Values(2, length or 16, [result, signal.SIGUSR1, 0, 0, 0, 0, 0, 0, kill, 0])
    content = program.run("h" if length is None else "H", values.given(), length or 16)
    assert struct.unpack_from("<i", content) == (signal.SIGUSR1,)  # it begins with the siginfo
    (pstate,) = struct.unpack_from("<Q", content, 576)
    assert pstate & 0xF0000000 == values.flags
    registers = aarch64.A64Registers(tuple(values.general), program.at["stack"], program.at["calls"] + 4, pstate)
    extended = CPU.extended(Recorded(vectors_of(values, whole=length is not None)))
    frame = CPU.frame(registers, 0x800, extended, 0)
    assert frame.content[168:176] == content[168:176]  # the signals that it blocks
    assert frame.content[312:584] == content[312:584]  # the general registers
    ours, theirs = records(frame.content), records(content)
    assert ours[0x46508001] == theirs[0x46508001]
    if length is not None:
        used = 16 + len(values.long) + len(values.predicates)
        assert ours[0x53564501][:used] == theirs[0x53564501][:used]


@pytest.mark.parametrize("offset", range(0, 64, 8))
@pytest.mark.parametrize("length", [None, 16, 256])
def test_the_frame_is_where_functions_and_the_kernel_want_it(offset, length):
    values = Values(3, length or 16)
    registers = registers_of(values, 0x7FFF00001200 + offset, 0x1000)
    frame = CPU.frame(registers, 0, CPU.extended(Recorded(vectors_of(values, whole=length is not None))), 0x1000)
    assert frame.address % 16 == 0
    assert registers.sp - 16 < frame.address + len(frame.content) <= registers.sp
    assert frame.content.endswith(bytes(16))  # nothing follows


def test_what_no_frame_can_hold_is_refused():
    plain = vectors_of(Values(4), whole=True)
    header = struct.pack("<IIHHHH", 16, 8192, 16, 16, 0, 0)
    unused = {0x40B: header, 0x40C: header, 0x410: bytes(24)}
    assert len(CPU.extended(Recorded(plain | unused))) > 528
    for kind in (0x40B, 0x40C):
        with pytest.raises(Refusal, match="Process 4711 is just using the matrix unit"):
            CPU.extended(Recorded(plain | unused | {kind: struct.pack("<I", 272) + header[4:] + bytes(256)}))
    with pytest.raises(Refusal, match="Process 4711 has a guarded control stack"):
        CPU.extended(Recorded(plain | {0x410: b"\1".ljust(24, b"\0")}))


def test_vectors_that_are_not_in_use_at_their_full_length_are_left_out():
    sets = vectors_of(Values(5), whole=True)
    size = struct.pack("<IIHHHH", 16 + 528, 16 + 8192, 256, 256, 0, 0)
    assert len(CPU.extended(Recorded(sets | {0x405: size + sets[2]}))) == 528


# The registers of a stopped thread, recorded


def stopped(x8, *, at=NOP, before=NOP, number=-1, settled=None, **general):
    values = [general.get(f"x{n}", 0) % 2**64 for n in range(31)]
    values[8] = x8
    sets = {
        NT_PRSTATUS: struct.pack("<34Q", *values, 0x7FFF0000, 0x1004, 0x60000000),
        0x404: struct.pack("<i", number),
    }
    return CPU.registers(Recorded(sets, {0x1000: before | at << 32}, settled))


def test_what_the_stopped_system_call_was():
    def kind(*given, **more):
        registers = stopped(*given, **more)
        assert registers.unsettled is None
        call = registers.call()
        return call and (call.name, call.restarts, call.resumes, call.interrupted)

    assert kind(63) is None
    assert kind(63, at=SVC, settled=(63, -512)) == ("read", True, False, True)
    assert kind(128, at=SVC, settled=(98, -516)) == ("futex", False, True, True)
    assert kind(128, at=SVC, settled=(128, -516)) == ("restart_syscall", False, True, True)
    assert kind(73, at=SVC, x1=0, x2=8, settled=(73, -514)) == ("ppoll", True, False, True)
    assert kind(73, at=SVC, x1=0, x2=0, settled=(73, -514)) == ("pause", True, False, True)
    assert kind(73, before=SVC, x0=-4, x1=1, x2=0) == ("ppoll", False, False, True)
    assert kind(22, before=SVC, x0=-4) == ("epoll_pwait", False, False, True)
    assert kind(22, before=SVC, x0=3) == ("epoll_pwait", False, False, False)
    sets = {NT_PRSTATUS: struct.pack("<34Q", *[0] * 33, 0), 0x404: struct.pack("<i", -1)}
    assert CPU.registers(Recorded(sets)).call() is None  # nothing is mapped there


def test_who_is_before_a_system_call_is_not_known_to_wait():
    """It may be about to wake somebody up, and nobody may say that it was interrupted in that."""
    registers = stopped(98, at=SVC, x1=0x81)
    assert registers.unsettled == 98
    assert registers.call() is None


def test_what_begins_and_what_ends():
    assert stopped(98, before=SVC, number=98, x0=5, x7=0).call().begins
    call = stopped(98, before=SVC, number=98, x0=-512, x7=1).call()
    assert (call.name, call.restarts, call.begins) == ("futex", True, False)
    assert stopped(1000, before=SVC, number=1000, x7=1).call().name == "1000"
    assert stopped(98, at=SVC, number=98).unsettled is None


def test_how_it_goes_on():
    registers = stopped(63, at=SVC, x0=7, x1=5, settled=(63, -512))
    assert CPU.raw(registers.again()) == CPU.raw(registers)  # the kernel has prepared that
    assert stopped(128, at=SVC, settled=(98, -516)).again().general[8] == 98  # from its beginning
    ended = registers.interrupted()
    assert (ended.pc, ended.result(), ended.argument(1)) == (0x1008, -errno.EINTR, 5)
    assert ended.call().interrupted
    assert CPU.raw(ended.interrupted()) == CPU.raw(ended)
    assert ended.sp == registers.sp


def test_nothing_of_before_is_left_where_it_is_sent():
    """The kernel would move the pc for a code in x0, and the processor want a landing pad for BTYPE."""
    values = Values(6)
    values.general[0] = 2**64 - 512
    registers = registers_of(values, 0x7FFF00001200, 0x1000)
    registers = aarch64.replace(registers, pstate=0x60000000 | 1 << 25 | 2 << 10 | 1 << 12)
    frame = CPU.frame(registers, 0, CPU.extended(Recorded(vectors_of(values, whole=False))), 0x8000)
    entered = {
        "leaving": CPU.leaving(registers, frame),
        "entering": CPU.entering(registers, frame, 0x9000),
        "through": CPU.entering_through(registers, frame, 0x4000, 0x5000, 0x9000),
    }
    for there in entered.values():
        assert there.general[0] == 0
        assert there.general[30] == 0x8000
        assert there.sp == frame.address
        assert there.pstate == 0x60000000 | 1 << 12
    assert [there.pc for there in entered.values()] == [0x8000, 0x9000, 0x4000]
    there = CPU.entering_call(registers, frame, 0x9000, "mmap", 1, 2, 3, 4, 5, 6)
    assert there.general[:6] == (1, 2, 3, 4, 5, 6)
    assert there.general[8] == 222
    assert there.general[9:30] == registers.general[9:30]


def test_a_32_bit_program_is_refused():
    with pytest.raises(Refusal, match="32-bit code"):
        CPU.registers(Recorded({NT_PRSTATUS: bytes(72)}))
    assert aarch64.A64Registers((0,) * 31, 0, 0, 1 << 4).foreign
    assert not stopped(0).foreign


def test_a_breakpoint_is_the_first_and_only_for_programs():
    thread = Recorded({})
    CPU.set_breakpoint(thread, 0x1234)
    assert thread.regsets[0x402] == struct.pack("<IIQII", 0, 0, 0x1234, 0x1E5, 0)
    CPU.set_breakpoint(thread, None)
    assert thread.regsets[0x402] == struct.pack("<IIQII", 0, 0, 0, 0, 0)


# The code


@needs_assembler
def test_calls_are_known(tmp_path):
    calls = "bl x", "blr x3", "blr x30", "blraaz x5", "blrabz x5", "blraa x1, x2", "blrab x1, sp"
    others = "b x", "br x3", "ret", "braa x1, x2", "braaz x5", "b.eq x", "cbz x1, x", "svc 0", "nop"
    for instructions, expected in ((calls, True), (others, False)):
        for instruction in instructions:
            a64.assemble(f".arch armv8.3-a\nnop\n{instruction}\nx: nop\n", tmp_path)
            subprocess.run([a64.COPIER, "-O", "binary", "-j", ".text", "a64.o", "a64.bin"], cwd=tmp_path, check=True)
            assert CPU.follows_call((tmp_path / "a64.bin").read_bytes()[:8]) is expected, instruction


def test_who_has_called_is_told_by_the_frame_records():
    """What is left on the stack from before is not taken for a caller, nor what signs an address for part of it."""
    sign, start = 0xFF3B << 48, 0x7FFF0008
    stack = [1, sign | 0xAAAA_0000, start + 40, sign | 0xBBBB_0000, 0xDDDD_0000, 0, 0xCCCC_0000, 0xEEEE_0000]
    content = struct.pack("<8Q", *stack)

    def returns(frame):
        registers = aarch64.A64Registers((*[0] * 29, frame, sign | 0x1111_0000), start + 5, 0, 0)
        return list(CPU.returns(registers, content))

    assert returns(start + 16) == [0x1111_0000, 0xBBBB_0000, 0xCCCC_0000]
    without = [0x1111_0000, *(word & 2**48 - 1 for word in stack)]
    assert returns(0) == returns(start + 17) == returns(start + 56) == without


def test_code_is_not_found_between_instructions():
    (pattern,) = CPU.system_call_code
    assert find(b"\1" * 3 + pattern + b"\1" * 5 + pattern, 0x1000, (pattern,), 4) == 0x1010
    assert find(b"\1" * 3 + pattern + b"\1" * 5 + pattern, 0x1000, (pattern,), 1) == 0x1003
    assert find(b"\1" * 3 + pattern, 0x1000, (pattern,), 4) is None


@needs_assembler
def test_the_code_is_the_one_that_is_shown(tmp_path):
    words = processor.__doc__.partition("by these names:\n")[2]
    addresses = a64.assemble(words + aarch64.__doc__.partition("names in `processor`:\n")[2], tmp_path)
    subprocess.run([a64.COPIER, "-O", "binary", "-j", ".text", "a64.o", "a64.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "a64.bin").read_bytes() == CPU.stub
    assert {name: addresses[name] for name in CPU.entries} == CPU.entries
    a64.assemble("svc 0\nret\nmov x8, 139\nsvc 0\n", tmp_path)
    subprocess.run([a64.COPIER, "-O", "binary", "-j", ".text", "a64.o", "a64.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "a64.bin").read_bytes() == CPU.system_call_code[0] + CPU.restorer_code[0]


def test_the_numbers_are_those_of_the_kernel():
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("needs the package linux-libc-dev")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    assert {name: int(defined[name]) for name in CPU.calls} == dict(CPU.calls)
    # What the header calls otherwise than x86 does.
    other = {"newfstatat": "fstatat", "mkdir": "mkdirat", "unlink": "unlinkat", "rename": "renameat", "poll": "ppoll"}
    for call in seccomp.CODE + seccomp.AGENT:
        assert call.aarch64[0] == int(defined[other.get(call.name, call.name)]), call.name


# On a 64-bit ARM itself


class Traced:
    """The program, under our eyes."""

    def __init__(self, program, letter, values):
        self.at = program.at
        self.values = values
        self.process = subprocess.Popen(program.command(letter), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(values.given())
        self.process.stdin.flush()
        self.memory = Memory(self.process.pid)
        self.thread = Thread(self.process.pid, CPU)
        # It begins to run before all of it is there.
        vdso = eventually(
            lambda: next((mapping for mapping in Maps(self.process.pid) if mapping.path == "[vdso]"), None)
        )
        code = self.memory.read(vdso.start, vdso.end - vdso.start)
        self.restorer = find(code, vdso.start, CPU.restorer_code, 4)
        assert self.restorer

    def stop(self, place):
        """Stop it there."""
        while True:
            self.thread.seize()
            assert self.thread.interrupt(60).why is Why.INTERRUPTED
            registers = self.thread.registers()
            if registers.unsettled is not None:
                assert self.thread.settle(60).why is Why.INTERRUPTED
                registers = self.thread.registers()
            if self.at[place] <= registers.pc <= self.at[place] + 4:
                return registers
            self.thread.release()

    def rest(self):
        """Have it stop, which it is asked for where it stands."""
        self.thread.request_stop()
        self.thread.resume()
        assert self.thread.wait(60).why is Why.INTERRUPTED

    def borrow(self, registers):
        """Have it call munmap with nonsense."""
        thread = self.thread
        frame = CPU.frame(registers, thread.mask(), thread.extended(), self.restorer)
        self.memory.write(frame.address, frame.content)
        thread.set_registers(CPU.entering_call(registers, frame, self.at["system_call"], "munmap", 1, 1))
        return frame

    def come_back(self, frame):
        results = []
        while True:
            self.thread.resume(to_call=True)
            assert self.thread.wait(60).why is Why.CALL
            begun = self.thread.registers()
            assert begun.call().begins
            self.thread.resume(to_call=True)
            assert self.thread.wait(60).why is Why.CALL
            if CPU.is_leaving(begun, frame):
                return results
            results.append((begun.call().name, self.thread.registers().result()))

    def end(self):
        self.process.stdin.close()
        content = self.process.stdout.read()
        assert self.process.wait(60) == 0
        return content


@pytest.fixture
def traced(program):
    with contextlib.ExitStack() as stack:

        def start(letter, values):
            target = Traced(program, letter, values)
            stack.callback(target.memory.close)
            stack.enter_context(target.process)
            stack.callback(target.process.kill)
            return target

        yield start


@needs_arm
@pytest.mark.parametrize("letter", ["s", "S"] if a64.vector_length() else ["s"])
def test_everything_is_as_it_was(traced, program, letter):
    target = traced(letter, Values(7, a64.vector_length() or 16))
    for _ in range(20):
        before = target.stop("spin")
        extended, mask = target.thread.extended(), target.thread.mask()
        assert (len(extended) > 528) is (letter == "S")
        frame = target.borrow(before)
        assert target.come_back(frame) == [("munmap", -22)]
        assert CPU.raw(target.thread.registers()) != CPU.raw(before)  # x7 tells where it is
        target.rest()
        assert target.thread.extended() == extended
        assert target.thread.mask() == mask
        target.thread.release()
    for _ in range(50):  # and nobody watches
        target.borrow(target.stop("spin"))
        target.thread.release()
    target.memory.write(program.at["over"], b"\1\0\0\0")
    assert target.values.missing(target.end(), program.at["stack"], whole=letter == "S") == []


@needs_arm
def test_a_system_call_is_made_again(traced, program):
    values = Values(8, general=[0, program.at["out"], 1, 0, 0, 0, 0, 9, 63])
    target = traced("c", values)
    for _ in range(20):
        registers = target.stop("calls")
        call = registers.call()
        assert (call.name, call.restarts) == ("read", True)
        frame = target.borrow(registers.again())
        target.come_back(frame)
        target.thread.release()
    target.process.stdin.write(b"!")
    values.general[0] = 1
    assert values.missing(target.end(), program.at["stack"], whole=False) == []


@needs_arm
def test_a_system_call_is_interrupted(traced, program):
    values = Values(9, general=[0, program.at["out"], 1, 0, 0, 0, 0, 9, 63])
    target = traced("c", values)
    target.thread.set_registers(target.stop("calls").interrupted())
    target.thread.release()
    values.general[0] = 2**64 - errno.EINTR
    assert values.missing(target.end(), program.at["stack"], whole=False) == []


@needs_arm
def test_at_the_end_of_a_system_call_a_register_is_hidden(traced, program):
    limit = program.at["given"] + a64.SIZE - 16
    values = Values(10, general=[limit, 0, 0, 0, 0, 0, 0, 0x7777, 101])
    values.tail = struct.pack("<QQ", 2, 0)
    target = traced("c", values)
    thread = target.thread
    call = target.stop("calls").call()
    assert (call.name, call.resumes) == ("nanosleep", True)
    thread.resume(to_call=True)
    assert thread.wait(60).why is Why.CALL
    assert (thread.registers().call().name, thread.registers().call().begins) == ("restart_syscall", True)
    thread.resume(to_call=True)
    assert thread.wait(60).why is Why.CALL
    assert thread.registers().general[7] == 1
    target.rest()
    assert thread.registers().general[7] == 0x7777
    assert thread.registers().call().result == 0
    thread.release()
    values.general[0], values.general[8] = 0, 128
    assert values.missing(target.end(), program.at["stack"], whole=False) == []


@needs_arm
def test_who_is_about_to_call_makes_the_call(traced, program):
    """It is stopped before its first instruction is made, as if it had lost the processor there."""
    values = Values(12, general=[0, 2, 3, 0, 0, 0, 0, 0x7777, 172])
    target = traced("s", values)
    target.stop("spin")
    registers = target.thread.registers()
    target.thread.set_registers(aarch64.replace(registers, pc=program.at["calls"]))
    registers = target.thread.registers()
    assert (registers.unsettled, registers.call()) == (172, None)
    assert target.thread.settle(60).why is Why.INTERRUPTED
    call = target.thread.registers().call()
    assert (call.name, call.result) == ("172", target.process.pid)
    target.thread.release()
    values.general[0] = target.process.pid
    assert values.missing(target.end(), program.at["stack"], whole=False) == []


@needs_arm
def test_a_breakpoint_is_met(traced, program):
    values = Values(11)
    target = traced("s", values)
    target.stop("spin")
    CPU.set_breakpoint(target.thread, program.at["landed"])
    target.memory.write(program.at["over"], b"\1\0\0\0")
    target.thread.resume()
    stop = target.thread.wait(60)
    assert (stop.why, stop.number) == (Why.SIGNAL, signal.SIGTRAP)
    assert target.thread.registers().pc == program.at["landed"]
    CPU.set_breakpoint(target.thread, None)
    target.thread.resume(withhold=True)
    target.thread.release()
    assert values.missing(target.end(), program.at["stack"], whole=False) == []
