"""The registers, the frame and the code for x86-64, in a program that looks after every register it has."""

import contextlib
import ctypes
import platform
import shutil
import signal
import struct
import subprocess

import pytest

from livepatch.attach import processor, x86_64
from livepatch.attach.injection import find
from livepatch.attach.symbols import Maps, Memory
from livepatch.attach.tracing import Thread, Why

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of another processor"),
    pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("objcopy") is None, reason="needs gcc and binutils"),
]

CPU = x86_64.X86_64()

#: Fills the vector registers, the red zone and the flags that matter, and spins until somebody writes `over`; all of
#: it must still be there then. Its signal handler counts.
SPINNER = r"""
#include <signal.h>
#include <stdio.h>
#include <string.h>
volatile int over;
volatile int signals;
unsigned char in[16][32], out[16][32];
unsigned long zone[16];
static void handler(int number) { signals++; }
int main(void) {
    for (int i = 0; i < 16; i++) for (int j = 0; j < 32; j++) in[i][j] = 7 * i + j + 1;
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, 0);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    printf("%p\n", (void *)&over);
    fflush(stdout);
    asm volatile(
        ".altmacro\n"
        ".macro load n\n vmovdqu 32*\\n(%0), %%ymm\\n\n.endm\n"
        ".macro store n\n vmovdqu %%ymm\\n, 32*\\n(%1)\n.endm\n"
        ".macro lay n\n movq $(0x1234+\\n), -8-8*\\n(%%rsp)\n.endm\n"
        ".macro take n\n movq -8-8*\\n(%%rsp), %%rcx\n movq %%rcx, 8*\\n(%2)\n.endm\n"
        ".macro all what\n .set i, 0\n .rept 16\n \\what %%i\n .set i, i+1\n .endr\n.endm\n"
        "all load\n all lay\n std\n"
        "1: cmpl $0, %3\n je 1b\n"
        "cld\n all store\n all take\n"
        : : "r"(in), "r"(out), "r"(zone), "m"(over) : "rcx", "memory", "cc");
    sigprocmask(SIG_BLOCK, 0, &blocked);
    if (!sigismember(&blocked, SIGUSR2) || sigismember(&blocked, SIGUSR1)) return 3;
    for (int i = 0; i < 16; i++) if (zone[i] != 0x1234 + i) return 2;
    if (memcmp(in, out, sizeof in)) return 1;
    return signals ? 10 : 0;
}
"""


@pytest.fixture(scope="module")
def spinner(tmp_path_factory):
    with open("/proc/cpuinfo") as info:
        if " avx " not in info.read():
            pytest.skip("this processor has no AVX")
    folder = tmp_path_factory.mktemp("spinner")
    (folder / "spinner.c").write_text(SPINNER)
    subprocess.run(["gcc", "-O1", "-mavx", "-o", "spinner", "spinner.c"], cwd=folder, check=True)
    return str(folder / "spinner")


class Spinning:
    def __init__(self, process):
        self.process = process
        self.over = int(process.stdout.readline(), 16)
        self.memory = Memory(process.pid)
        self.thread = Thread(process.pid, CPU)
        self.instruction = self.restorer = None
        for mapping in Maps(process.pid):
            if mapping.executable and mapping.c_library and mapping.start < 1 << 63:
                code = self.memory.read(mapping.start, mapping.end - mapping.start)
                self.instruction = self.instruction or find(code, mapping.start, CPU.system_call_code, 1)
                self.restorer = self.restorer or find(code, mapping.start, CPU.restorer_code, 1)

    def stop(self):
        self.thread.seize()
        assert self.thread.interrupt(30).why is Why.INTERRUPTED

    def borrow(self):
        """Have it call munmap with nonsense. Returns its registers before, and the frame."""
        thread = self.thread
        before = thread.registers()
        frame = CPU.frame(before, thread.mask(), thread.extended(), self.restorer)
        self.memory.write(frame.address, frame.content)
        thread.set_registers(CPU.entering_call(before, frame, self.instruction, "munmap", 1, 1))
        return before, frame

    def come_back(self, frame):
        results = []
        while True:
            self.thread.resume(to_call=True)
            stop = self.thread.wait(30)
            if stop.why is Why.SIGNAL:
                continue
            begun = self.thread.registers()
            self.thread.resume(to_call=True)
            assert self.thread.wait(30).why is Why.CALL
            if CPU.is_leaving(begun, frame):
                return results
            results.append((begun.call().name, self.thread.registers().result()))

    def ends(self):
        self.memory.write(self.over, b"\1\0\0\0")
        self.memory.close()
        return self.process.wait(60)


@pytest.fixture
def spinning(spinner):
    with subprocess.Popen([spinner], stdout=subprocess.PIPE) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        yield Spinning(process)


def general(registers):
    return [getattr(registers, name) for name in x86_64._FIELDS if name != "orig_rax"]


def test_everything_is_as_it_was(spinning):
    for _ in range(20):
        spinning.stop()
        extended, mask = spinning.thread.extended(), spinning.thread.mask()
        before, frame = spinning.borrow()
        assert spinning.come_back(frame) == [("munmap", -22)]
        assert general(spinning.thread.registers()) == general(before)
        assert spinning.thread.extended() == extended
        assert spinning.thread.mask() == mask
        spinning.thread.release()
    assert spinning.ends() == 0


def test_it_comes_back_by_itself(spinning):
    for _ in range(100):
        spinning.stop()
        spinning.borrow()
        spinning.thread.release()
    assert spinning.ends() == 0


def test_a_signal_in_the_middle_is_handled_in_the_middle(spinning):
    spinning.stop()
    before, frame = spinning.borrow()
    spinning.process.send_signal(signal.SIGUSR1)
    results = spinning.come_back(frame)
    assert sorted(name for name, _ in results) == ["munmap", "rt_sigreturn"]
    assert general(spinning.thread.registers()) == general(before)
    spinning.thread.release()
    assert spinning.ends() == 10


def test_it_is_sent_home_before_it_has_done_anything(spinning):
    spinning.stop()
    before, frame = spinning.borrow()
    spinning.thread.set_registers(CPU.leaving(spinning.thread.registers(), frame))
    assert spinning.come_back(frame) == []
    assert general(spinning.thread.registers()) == general(before)
    spinning.thread.release()
    assert spinning.ends() == 0


def test_registers_that_nobody_uses_are_not_restored_in_vain():
    """Without a matrix unit there must be no room for one: the kernel would restore the SSE registers only."""
    registers = x86_64.X86Registers(rsp=0x7FFF00001234)
    extended = bytearray(11008)
    frame = CPU.frame(registers, 0, bytes(extended), 0x1000)
    assert struct.unpack_from("<I", frame.content, len(frame.content) - 4) == (0x46505845,)
    assert len(frame.content) < 4096
    extended[512:520] = (1 << 18).to_bytes(8, "little")
    assert len(CPU.frame(registers, 0, bytes(extended), 0x1000).content) > 11008


@pytest.mark.parametrize("offset", range(64))
def test_the_frame_is_where_functions_and_the_kernel_want_it(offset):
    registers = x86_64.X86Registers(rsp=0x7FFF00001200 + offset)
    frame = CPU.frame(registers, 0, bytes(2696), 0x1000)
    assert frame.address % 16 == 8  # as at the entry of every function
    assert frame.address + len(frame.content) <= registers.rsp - 128
    (state,) = struct.unpack_from("<Q", frame.content, 8 + 224)
    assert state % 64 == 0
    assert struct.unpack_from("<I", frame.content, state - frame.address + 464) == (0x46505853,)


def test_the_code_is_the_one_that_is_shown(tmp_path):
    words = processor.__doc__.partition("by these names:\n")[2]
    shown = x86_64.__doc__.partition("names in `processor`:\n")[2]
    (tmp_path / "stub.s").write_text(".intel_syntax noprefix\n" + words + shown)
    subprocess.run(["as", "-o", "stub.o", "stub.s"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "stub.o", "stub.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "stub.bin").read_bytes() == CPU.stub
    listed = subprocess.run(["nm", "stub.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    addresses = {name: int(address, 16) for address, _, name in (line.split() for line in listed.splitlines())}
    assert {name: addresses[name] for name in CPU.entries} == CPU.entries


def test_what_the_stopped_system_call_was():
    def call(number, result):
        return x86_64.X86Registers(orig_rax=number % 2**64, rax=result % 2**64, rip=0x1002).call()

    assert call(-1, 0) is None
    assert (call(0, -512).name, call(0, -512).restarts, call(0, -512).resumes) == ("read", True, False)
    assert (call(7, -516).name, call(7, -516).restarts, call(7, -516).resumes) == ("poll", False, True)
    assert call(232, -4).interrupted
    assert not call(232, 3).interrupted
    assert call(1000, -38).begins
    registers = x86_64.X86Registers(orig_rax=0, rax=-512 % 2**64, rip=0x1002)
    again = registers.again()
    assert (again.rip, again.rax, again.orig_rax) == (0x1000, 0, 2**64 - 1)
    interrupted = registers.interrupted()
    assert (interrupted.rip, ctypes.c_int64(interrupted.rax).value) == (0x1002, -4)


def test_a_thread_with_shadow_stacks_is_refused():
    assert CPU.problem({"x86_Thread_features": "shstk wrss"})
    assert CPU.problem({"x86_Thread_features": ""}) is None
    assert CPU.problem({}) is None
