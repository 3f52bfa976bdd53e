"""Who waits is told from frames: not from what calls that are over have left on the stack, which looks the same."""

import contextlib
import random
import sys

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach.frames import Frames
from livepatch.attach.injection import _MUTEX, _NEEDED
from livepatch.attach.processor import processor
from livepatch.attach.symbols import Maps, Memory, find_python
from livepatch.attach.tracing import Thread, Why
from livepatch.attach.where import Lookout

PLAIN = [getattr(sys, "_base_executable", sys.executable)]
CPU = processor()

#: `leave(NAMES)` has a foreign call leave words below the stack pointer that point behind a call in a file so named;
#: the frames of what is called next come there.
LEAVE = """
import ctypes
def behind_a_call(*names):
    for line in open("/proc/self/maps"):
        fields = line.split()
        if "x" in fields[1] and len(fields) > 5 and any("/" + name in fields[5] for name in names):
            start, end = (int(word, 16) for word in fields[0].split("-"))
            return start + ctypes.string_at(start, end - start).index(b"\\xe8") + 5
class Left(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint64 * 512)]
foreign = ctypes.CDLL(None)
read, getpid, buffer = foreign.read, foreign.getpid, ctypes.create_string_buffer(10)
def leave(*names):
    left = Left((ctypes.c_uint64 * 512)(*[behind_a_call(*names)] * 512))
    say("ready")
    getpid(left)
"""


def stopped_in(pid, call):
    """The main thread, when it waits in this system call, or one that is like it."""
    thread = Thread(pid, CPU)

    def waits():
        thread.seize()
        assert thread.interrupt(30).why is Why.INTERRUPTED
        found = thread.registers().call()
        if found is not None and found.name.endswith(call) and found.interrupted:
            return True
        thread.release()
        return False

    eventually(waits)
    return thread


@contextlib.contextmanager
def stopped(script, call):
    """The thread of a target that waits in this system call; and a lookout for it."""
    with Target(script, command=PLAIN) as target, contextlib.ExitStack() as stack:
        target.hear()
        memory = Memory(target.pid)
        stack.callback(memory.close)
        python = find_python(memory, CPU.elf_machine, _NEEDED, (_MUTEX,))
        thread = stopped_in(target.pid, call)
        stack.callback(thread.release)
        yield thread, Lookout(thread, memory, python, CPU)


def test_they_are_those_that_the_debugger_would_show():
    """The C++ runtime's own list, made in the thread itself, has the same callers."""
    script = """
    import ctypes
    lib = ctypes.CDLL(None)
    addresses = (ctypes.c_void_p * 100)()
    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    backtrace, read, buffer = lib.backtrace, lib.read, ctypes.create_string_buffer(10)
    def compare(one, other):
        count = backtrace(addresses, 100)
        say(*addresses[:count])
        read(0, buffer, 1)
        return 0
    numbers = (ctypes.c_int * 2)(1, 2)
    lib.qsort(numbers, 2, 4, compare_type(compare))
    """
    with Target(script, command=PLAIN) as target, contextlib.closing(Memory(target.pid)) as memory:
        theirs = [int(word) for word in target.hear().split()]
        thread = stopped_in(target.pid, "read")
        maps = Maps(target.pid)
        ours = list(Frames(memory, CPU).addresses(thread.registers(), maps))
        thread.release()
        sorting = next(place for place, address in enumerate(theirs) if place and maps.at(address).c_library)
        assert len(theirs) > sorting > 3
        assert ours[-len(theirs[sorting:]) :] == theirs[sorting:]


class Torn(Memory):
    """Memory in which some bits are not what they were."""

    choose = random.Random(15)

    def read(self, address, size):
        content = bytearray(super().read(address, size))
        if self.choose.random() < 0.1:
            for _ in range(self.choose.randrange(1, 4)):
                content[self.choose.randrange(size)] ^= 1 << self.choose.randrange(8)
        return bytes(content)


def test_they_end_where_memory_holds_nonsense():
    with stopped("say('ready')\nimport time; time.sleep(1000)", "sleep") as (thread, _):
        registers, maps = thread.registers(), Maps(thread.tid)
        with contextlib.closing(Torn(thread.tid)) as memory:
            found = [list(Frames(memory, CPU).addresses(registers, maps)) for _ in range(300)]
    assert all(addresses[0] == registers.pc for addresses in found)
    assert len({len(addresses) for addresses in found}) > 1


def test_a_foreign_read_is_made_again_whatever_lies_on_the_stack():
    with stopped(LEAVE + "leave('libpython', 'python')\nread(0, buffer, 10)", "read") as (thread, lookout):
        before = thread.registers()
        place = lookout.place()
        assert (place.visit, place.waits, place.answers) == (True, True, False)
        assert place.registers.pc == before.again().pc
        assert place.or_interrupted is not None


@pytest.mark.parametrize(
    ("waits", "call"),
    [("time.sleep(1000)", "clock_nanosleep"), ("os.read(0, 10)", "read"), ("poll.poll(1000_000)", "poll")],
)
def test_the_interpreters_own_wait_is_known_whatever_lies_on_the_stack(waits, call):
    """A sleep that is taken for a library's is not touched before it is over."""
    script = "import os, select, time\npoll = select.poll()\npoll.register(0, select.POLLIN)\nsleep = time.sleep\n"
    waits = waits.replace("time.sleep", "sleep")
    with stopped(f"{script}{LEAVE}leave('_ctypes', 'libffi')\n{waits}", call) as (_, lookout):
        place = lookout.place()
        assert (place.visit, place.waits, place.answers) == (True, True, True)
        assert place.registers.result() == -4
