"""The code for 64-bit ARM, instruction by instruction, on an emulated processor: every way through it.

Around it are functions of the interpreter and a kernel that only write down that they were called. What is unmapped is
unmapped, so that whoever touches it again fails.
"""

import struct

import pytest

from livepatch.attach import aarch64
from livepatch.attach.injection import _DATA

unicorn = pytest.importorskip("unicorn")
arm = pytest.importorskip("unicorn.arm64_const")

pytestmark = pytest.mark.once

CPU = aarch64.AArch64()
UNIT = 0x1000
BASE, SIZE = 0x10000, 2 * UNIT
DATA = BASE + UNIT
FUNCTIONS, STACK, END = 0x40000, 0x90000, 0x50000
PID = 4711
STATE, QUEUED, RESULT, LINE = 16, 20, 32, 96
WAITING, STARTED, GONE = 0, 1, 2
NAMES = ("ensure", "release", "run", "start", "function")
SYSTEM_CALL = FUNCTIONS + 0x100
GENERAL = [getattr(arm, f"UC_ARM64_REG_X{n}") for n in range(31)]
SP, PC = arm.UC_ARM64_REG_SP, arm.UC_ARM64_REG_PC


class Machine:
    """A processor with the code and its data; `given` are the registers at the entry, `results` of the functions."""

    def __init__(self, state=WAITING, queued=1, pid=PID, results=None, meanwhile=None):
        self.pid = pid
        self.results = results or {}
        self.meanwhile = meanwhile or {}
        #: What was called, with its arguments.
        self.made = []
        #: What of the data was read and written, in order.
        self.touched = []
        self.cpu = cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        cpu.mem_map(BASE, UNIT, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        cpu.mem_map(DATA, UNIT, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        cpu.mem_map(FUNCTIONS, UNIT)
        cpu.mem_map(END, UNIT)
        cpu.mem_map(STACK - 0x10000, 0x20000)
        cpu.mem_write(BASE, CPU.stub)
        addresses = [FUNCTIONS + 16 * number for number in range(4)]
        cpu.mem_write(DATA, _DATA.pack(b"cookie", state, queued, PID, 0, 0, BASE, SIZE, SYSTEM_CALL, *addresses))
        for number in range(len(NAMES)):
            cpu.mem_write(FUNCTIONS + 16 * number, bytes.fromhex("c0035fd6"))
        cpu.mem_write(SYSTEM_CALL, CPU.system_call_code[0])
        cpu.hook_add(unicorn.UC_HOOK_CODE, self.on_function, begin=FUNCTIONS, end=SYSTEM_CALL - 1)
        cpu.hook_add(unicorn.UC_HOOK_INTR, self.on_system_call)
        cpu.hook_add(
            unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, self.on_data, begin=DATA, end=DATA + LINE - 1
        )

    def x(self, number):
        return self.cpu.reg_read(GENERAL[number])

    def on_function(self, cpu, address, size, _):
        name = NAMES[(address - FUNCTIONS) // 16]
        assert cpu.reg_read(SP) % 16 == 0
        self.made.append((name, self.x(0), self.x(1)))
        if name in self.meanwhile:
            self.meanwhile[name](self)
        for number in range(1, 18):  # a function may do that
            cpu.reg_write(GENERAL[number], 0xDEAD)
        cpu.reg_write(GENERAL[0], self.results.get(name, 0))

    def on_system_call(self, cpu, number, _):
        if self.x(8) == CPU.calls["munmap"]:
            self.made.append(("munmap", self.x(0), self.x(1)))
            self.unmap()
            cpu.reg_write(GENERAL[0], 0)
        else:
            assert self.x(8) == 172
            cpu.reg_write(GENERAL[0], self.pid)

    def on_data(self, cpu, access, address, size, value, _):
        self.touched.append(("write" if access == unicorn.UC_MEM_WRITE else "read", address - DATA))

    def unmap(self):
        self.cpu.mem_unmap(BASE, SIZE)

    def word(self, offset, layout="<I"):
        return struct.unpack(layout, self.cpu.mem_read(DATA + offset, struct.calcsize(layout)))[0]

    def call(self, entry, **given):
        """Call what begins there, as a C function. Returns its result."""
        before = [0x1000 + number for number in range(31)]
        before[0], before[30] = DATA, END
        for name, value in given.items():
            before[int(name[1:])] = value
        for number, value in zip(GENERAL, before, strict=True):
            self.cpu.reg_write(number, value)
        self.cpu.reg_write(SP, STACK)
        self.cpu.emu_start(BASE + CPU.entries[entry], END, count=1000)
        assert self.cpu.reg_read(PC) == END
        assert self.cpu.reg_read(SP) == STACK
        kept = range(19, 30) if entry != "call" else ()
        assert [self.x(number) for number in kept] == [before[number] for number in kept]
        return self.x(0)


THREAD = BASE + CPU.entries["thread"]
MUNMAP = ("munmap", BASE, SIZE)


def test_a_function_whose_result_we_want_to_know():
    machine = Machine(results={"function": 2**64 - 5})
    machine.call("call", x0=1, x1=2, x16=FUNCTIONS + 16 * NAMES.index("function"), x19=DATA)
    assert machine.made == [("function", 1, 2)]
    assert machine.word(RESULT, "<q") == -5


def test_the_pending_call_starts_the_thread():
    machine = Machine(results={"start": 77})
    assert machine.call("pending") == 0
    assert machine.made == [("start", THREAD, DATA)]
    assert (machine.word(STATE), machine.word(QUEUED)) == (STARTED, 0)


def test_the_pending_call_cannot_start_the_thread():
    machine = Machine(results={"start": 2**64 - 1})
    assert machine.call("pending") == 0
    assert machine.made == [("start", THREAD, DATA), MUNMAP]


def test_the_pending_call_finds_that_a_visit_started_the_thread():
    machine = Machine(state=STARTED)
    assert machine.call("pending") == 0
    assert machine.made == []
    assert (machine.word(STATE), machine.word(QUEUED)) == (STARTED, 0)


def test_the_pending_call_finds_that_the_thread_has_gone():
    machine = Machine(state=GONE)
    assert machine.call("pending") == 0
    assert machine.made == [MUNMAP]


@pytest.mark.parametrize("state", [WAITING, STARTED, GONE])
def test_the_pending_call_in_the_child_of_a_fork(state):
    """The thread is not there, and whatever state it was in, the child has a mapping of its own."""
    machine = Machine(state=state, pid=PID + 1)
    assert machine.call("pending") == 0
    assert machine.made == [MUNMAP]
    assert [what for what, _ in machine.touched] == ["read"] * len(machine.touched)


def test_the_thread_is_the_last():
    machine = Machine(state=STARTED, queued=0, results={"ensure": 1})
    machine.call("thread")
    assert [name for name, _, _ in machine.made] == ["ensure", "run", "release", "munmap"]
    assert machine.made[1][1] == DATA + LINE
    assert machine.made[2][1] == 1  # what ensure has given
    assert machine.made[3] == MUNMAP


def test_the_thread_leaves_the_mapping_to_a_pending_call():
    """Which may run as soon as the thread has given the GIL away: nothing of it may be touched from then on."""
    machine = Machine(state=STARTED, queued=1, results={"ensure": 1}, meanwhile={"release": Machine.unmap})
    machine.call("thread")
    assert [name for name, _, _ in machine.made] == ["ensure", "run", "release"]


def test_the_pending_call_comes_while_the_thread_works():
    def comes(machine):
        machine.cpu.mem_write(DATA + QUEUED, bytes(4))

    machine = Machine(state=STARTED, queued=1, meanwhile={"run": comes})
    machine.call("thread")
    assert [name for name, _, _ in machine.made] == ["ensure", "run", "release", "munmap"]


def test_who_is_the_last_writes_before_it_reads():
    machine = Machine(state=STARTED)
    machine.call("pending")
    assert machine.touched.index(("write", QUEUED)) < machine.touched.index(("read", STATE))
    machine = Machine(state=STARTED)
    machine.call("thread")
    assert machine.touched.index(("write", STATE)) < machine.touched.index(("read", QUEUED))
