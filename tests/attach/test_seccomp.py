"""Filters of system calls are understood as the kernel understands them, and what they would kill is left alone."""

import contextlib
import ctypes
import os
import platform
import random
import struct
import sys
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually
from tests.attach.filters import (
    ALLOW,
    CONFINED,
    CONTAINER,
    KILL,
    KILL_THREAD,
    LOG,
    SUPERVISOR,
    TRACE,
    TRAP,
    assemble,
    errno_of,
    instruction,
)

from livepatch.attach import entry, seccomp, way
from livepatch.attach.client import Client
from livepatch.attach.processes import NoAccess
from livepatch.core import cpython

pytestmark = pytest.mark.skipif(
    platform.machine() not in seccomp.ARCHITECTURES or sys.platform != "linux",
    reason="the filters of these tests are for Linux on x86-64 or 64-bit ARM",
)
PLAIN = [getattr(sys, "_base_executable", sys.executable)]
CALLS = (*seccomp.CODE, *seccomp.agent(cpython.VERSION))

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def numbers_of_this_processor(request):
    whole = test_an_attach_and_the_agent_need_no_other_call_than_those_listed
    if platform.machine() != "x86_64" and request.function is not whole:
        pytest.skip("the numbers of the system calls in this test are those of x86-64")


@contextlib.contextmanager
def confined(*programs, afterwards="hear()"):
    with Target(CONFINED + "    " + afterwards, command=PLAIN) as target:
        assert target.hear() == "ready"
        for program in programs:
            target.say(program.hex())
            assert target.hear() == "confined"
        target.say()
        yield target


def sentence(*programs):
    with confined(*programs) as target:
        return seccomp.examine(target.pid, CALLS), target.pid


def answers(program, number, arguments):
    """What the kernel says to a call under this filter, as an errno."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = ctypes.create_string_buffer(program)
        given = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        _libc.prctl(38, 1, 0, 0, 0)
        if _libc.prctl(22, 2, given):
            os._exit(1)
        _libc.syscall(number, *map(ctypes.c_ulong, arguments))
        os.write(writer, b"%d" % ctypes.get_errno())
        os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return int(text) if text else None


def readable():
    """Filters can be read by a root who is free of them, where the kernel was built for it."""
    with confined(assemble([])) as target:
        try:
            return bool(seccomp.read(target.pid))
        except OSError:
            return False


@pytest.fixture(scope="module", autouse=False)
def root():
    if os.geteuid() != 0 or not readable():
        pytest.skip("filters can only be read by root, under no filter, of a kernel with CONFIG_CHECKPOINT_RESTORE")


# -- the interpreter of filters ------------------------------------------------------------------------


NUMBER = 900  # no system call


def random_program(choose):
    """Arithmetic over the arguments of a call that does not exist, whose answer is an errno."""
    body = []
    for _ in range(choose.randrange(1, 12)):
        kind = choose.randrange(7)
        k = choose.choice([0, 1, 3, 31, 255, 4096, 0x7FFFFFFF, 0xFFFFFFFF, choose.getrandbits(32)])
        if kind == 0:
            body.append(instruction(0x20, 16 + 4 * choose.randrange(12)))
        elif kind == 1:
            operation = choose.choice([0x00, 0x10, 0x20, 0x40, 0x50, 0xA0])
            body.append(instruction(0x04 | operation | choose.choice([0, 8]), k))
        elif kind == 2:
            body.append(instruction(choose.choice([0x64, 0x74]), k % 32))
        elif kind == 3:
            body.append(instruction(0x34, k or 1) if choose.random() < 0.5 else instruction(0x84))
        elif kind == 4:
            body.append(instruction(choose.choice([0x07, 0x87])))
        elif kind == 5:
            slot = choose.randrange(16)
            body.append(instruction(0x02, slot) + instruction(choose.choice([0x00, 0x01]), k) + instruction(0x61, slot))
        else:
            comparison = choose.choice([0x15, 0x25, 0x35, 0x45]) | choose.choice([0, 8])
            # over the next one: it must exist
            body.append(instruction(comparison, k, *choose.choice([(0, 1), (1, 0)])) + instruction(0x04, 77))
    code = b"".join(body) + instruction(0x54, 0xFFF) + instruction(0x44, errno_of(0)) + instruction(0x16)
    start = instruction(0x20, 0) + instruction(0x15, NUMBER, 1, 0) + instruction(0x06, ALLOW)
    return start + instruction(0x00, 0) + instruction(0x01, 1) + code


@pytest.mark.slow
@pytest.mark.once
def test_it_computes_what_the_kernel_computes():
    choose = random.Random(6)
    for _ in range(200):
        program = random_program(choose)
        arguments = [choose.getrandbits(64) for _ in range(6)]
        data = struct.pack("=iIQ6Q", NUMBER, seccomp.ARCHITECTURES["x86_64"], 0, *arguments)
        ours = seccomp.run(program, data)
        assert ours >> 16 == 5
        assert answers(program, NUMBER, arguments) == ours & 0xFFFF, program.hex()


@pytest.mark.once
def test_dividing_by_zero_kills():
    program = instruction(0x01, 0) + instruction(0x3C) + instruction(0x06, ALLOW)
    assert seccomp.run(program, bytes(64)) == KILL_THREAD


# -- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.once
def test_what_is_read_is_what_was_installed(root):
    first, second = assemble([(900, TRAP)]), assemble([(901, errno_of(1), 2, 0xFF, 7)])
    with confined(first, second) as target:
        assert seccomp.read(target.pid) == [first, second]


@pytest.mark.once
@pytest.mark.parametrize(
    "program",
    [
        assemble([]),
        assemble([(10, LOG)]),
        assemble([(9, KILL, 2, 7, 7)]),  # memory both written and executed, which an attach does not want
        assemble([(41, KILL, 0, 0xFFFFFFFF, 2)]),  # sockets of another family
        assemble([(435, errno_of(38))]),
        assemble([(334, errno_of(1)), (28, errno_of(1))]),  # what may fail
        assemble([(4, KILL)]),  # what an older C library would call
        CONTAINER,
    ],
    ids=["allow", "log", "writable code", "other sockets", "no clone3", "may fail", "old stat", "container"],
)
def test_what_an_attach_can_live_with(root, program):
    assert sentence(program)[0] is None


@pytest.mark.once
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (assemble([(10, errno_of(1), 2, 4, 4)]), "does not allow mprotect"),  # systemd's MemoryDenyWriteExecute
        (assemble([(15, KILL)]), "would kill it for rt_sigreturn"),
        (assemble([(41, KILL_THREAD)]), "would kill it for socket"),
        (assemble([(41, TRAP)]), "would kill it for socket"),
        (assemble([(41, TRACE)]), "does not allow socket"),
        (assemble([(41, SUPERVISOR)]), "asks another process about socket"),
        (assemble([(435, errno_of(1))]), "does not allow clone3"),  # no C library takes that for "take clone"
        (assemble([(435, KILL)]), "would kill it for clone3"),
        (assemble([(219, errno_of(1))]), "does not allow restart_syscall"),  # else who is stopped would see an error
        (assemble([(334, KILL)]), "would kill it for rseq"),  # although it may fail
        (assemble([(49, 0x12340000)]), "would kill it for bind"),  # an answer that the kernel does not know
        (assemble([(0, ALLOW), (1, ALLOW)], default=KILL), "would kill it for mmap"),
    ],
)
def test_what_it_cannot(root, program, words):
    if words == "would kill it for mmap":
        # What it needs to say that it is there, and to wait.
        program = assemble([(0, ALLOW), (1, ALLOW), *[(n, ALLOW) for n in (3, 8, 13, 16, 202, 262)]], default=KILL)
    found, pid = sentence(program)
    assert found == (
        f"Process {pid} runs under a system call filter (seccomp) that {words}, which an attach needs;"
        " allow it there (systemd: SystemCallFilter=, containers: the seccomp profile)."
    )


@pytest.mark.once
def test_the_strictest_of_several_filters_counts(root):
    assert sentence(assemble([(49, errno_of(1))]), assemble([(49, LOG)]))[0].count("does not allow bind") == 1
    assert sentence(assemble([(49, LOG)]), assemble([(49, KILL)]), assemble([(49, TRAP)]))[0].count("kill it for bind")


@pytest.mark.once
def test_the_target_has_lost_nothing_by_being_looked_at(root):
    with confined(CONTAINER, afterwards="say(hear())") as target:
        assert seccomp.examine(target.pid, CALLS) is None
        assert "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text()
        target.say("alive")
        assert target.hear() == "alive"


# -- what can be told from /proc -----------------------------------------------------------------------


def in_child(program):
    """What a function returns, as text, in a child of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(program())
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def as_nobody(program):
    def become():
        if os.geteuid() == 0:
            os.setuid(65534)
        return program()

    return in_child(become)


@pytest.mark.once
def test_without_filters_there_is_nothing_to_say():
    with Target("say('ready'); hear()") as target:
        target.hear()
        assert as_nobody(lambda: seccomp.forbids(target.pid)) in ("None",)


@pytest.mark.once
def test_filters_that_cannot_be_read_are_not_trusted():
    with confined(assemble([])) as target:
        said = as_nobody(lambda: seccomp.forbids(target.pid))
        assert said.startswith(f"Process {target.pid} runs under a system call filter (seccomp) that cannot be read")
        assert "insist with --method" in said


@pytest.mark.once
def test_the_filters_of_the_container_that_both_live_in_are():
    def under_the_same():
        code = ctypes.create_string_buffer(assemble([]))
        _libc.prctl(38, 1, 0, 0, 0)
        assert _libc.prctl(22, 2, struct.pack("@HP", 1, ctypes.addressof(code))) == 0
        return seccomp.forbids(target.pid)

    with confined(assemble([])) as target:
        assert in_child(under_the_same) == "None"
    with confined(assemble([]), assemble([(900, KILL)])) as target:
        assert "cannot be read from here" in in_child(under_the_same)


@pytest.mark.once
def test_root_looks_at_them_later(root):
    with confined(assemble([(10, KILL)])) as target:
        assert seccomp.forbids(target.pid) is None


@pytest.mark.once
def test_strict_mode_is_refused():
    script = "import ctypes; say('ready'); ctypes.CDLL(None).prctl(22, 1, 0, 0, 0); import os; os.read(0, 1)"
    with Target(script, command=PLAIN) as target:
        target.hear()
        eventually(lambda: "Seccomp:\t1" in Path(f"/proc/{target.pid}/status").read_text())
        assert seccomp.forbids(target.pid) == (
            f"Process {target.pid} may make no system calls but read and write (strict seccomp), so nothing can be"
            " brought into it; start it without."
        )


# -- the list of calls is whole ------------------------------------------------------------------------


MACHINE = platform.machine()
#: A process may do nothing but what is listed, and what is its own: to look at signals, to sleep, and to end.
OWN = {"x86_64": {13, 231, 35}, "aarch64": {134, 94, 101}}.get(MACHINE, set())
STRICT = assemble(
    [(number, ALLOW) for number in sorted(OWN | {number for call in CALLS for number in getattr(call, MACHINE, ())})],
    default=KILL,
)
PATCH = """
import livepatch as lp
__livepatch__ = lp.Patch("", [lp.Object(None, [lp.Func("f", lambda: "new")])])
"""


@pytest.mark.parametrize("method", [*([way.REMOTE_EXEC] if cpython.REMOTE_EXEC else []), way.PENDING_CALL])
def test_an_attach_and_the_agent_need_no_other_call_than_those_listed(tmp_path, method):
    """All that an administrator does is done in a process that is killed for any other."""
    patch = tmp_path / "fix.py"
    patch.write_text(PATCH)
    script = """def f(): return "old"
    while hear(): say(f())
    """
    with confined(STRICT, afterwards=script) as target, entry.attach(target.pid, timeout=60, method=method) as client:
        target.say("?")
        assert target.hear() == "old"
        client.call("subscribe")
        assert client.send_file("check", patch)
        assert client.send_file("load", patch)["enabled"]
        name = client.call("list")[0]["name"]
        eventually(lambda: not client.call("status", name=name, blockers=5)["transition"])
        target.say("?")
        assert target.hear() == "new"
        assert client.call("tasks")
        assert client.call("still") == []
        assert client.call("file", name=name)
        assert name in client.call("tree_listdir", path="livepatch")
        with Client(target.pid) as another:
            assert another.call("tree_read", path=f"livepatch/{name}/enabled") == "1"
        client.call("write_enabled", name=name, value="0")
        eventually(lambda: not client.call("status", name=name)["transition"])
        client.call("unload", name=name)
        assert client.call("dmesg")
        target.say("?")
        assert target.hear() == "old"


def test_a_wait_of_another_name_is_seen(root):
    """Python 3.15 waits with ppoll."""
    waits, does_not = (7, 271) if cpython.VERSION < (3, 15) else (271, 7)
    assert "would kill it for" in sentence(assemble([(waits, KILL)]))[0]
    assert sentence(assemble([(does_not, KILL)]))[0] is None


# -- attaches ------------------------------------------------------------------------------------------


def test_an_attach_passes_the_filter_of_a_container(root):
    with confined(CONTAINER, afterwards="say('alive', hear())") as target:
        entry.attach(target.pid, timeout=60).close()
        target.say("and well")
        assert target.hear() == "alive and well"


@pytest.mark.parametrize("number", [15, 41], ids=["rt_sigreturn", "socket"])
def test_an_attach_that_would_kill_is_refused_and_nothing_is_left(root, number):
    with confined(assemble([(number, KILL)]), afterwards="say('alive', hear())") as target:
        with pytest.raises(NoAccess, match="would kill it for"):
            entry.attach(target.pid, method="pending_call")
        target.say("and well")
        assert target.hear() == "alive and well"
        folder = Path(f"/tmp/livepatch-{os.geteuid()}")
        assert not list(folder.glob(f"{target.pid}.*"))


def test_code_that_may_not_be_brought_in_does_not_keep_the_interpreter_from_being_asked(root):
    """systemd's MemoryDenyWriteExecute, where there is remote_exec."""
    with confined(assemble([(10, errno_of(1), 2, 4, 4)]), afterwards=SLEEPS) as target:
        if cpython.REMOTE_EXEC:
            entry.attach(target.pid, timeout=60).close()
        else:
            with pytest.raises(NoAccess, match="does not allow mprotect"):
                entry.attach(target.pid)


SLEEPS = """import time
    while True: time.sleep(0.01)
"""
