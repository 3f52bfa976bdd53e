"""Which way leads into a process, told from outside: every refusal with a real process that has the reason.

What is not to be had everywhere (an old Python, one without the GIL, PyPy) is played by a program that does nothing but
sleep, under the name of that interpreter: its executable says nothing of itself (`test_program.py`), so the name tells.
"""

import ctypes
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually
from tests.attach.test_processes import as_nobody

from livepatch.attach import entry, processes, way
from livepatch.attach.way import NoWay
from livepatch.core import cpython
from livepatch.core.model import LivepatchError

OURS = ".".join(map(str, cpython.VERSION))
AUTO = ("remote_exec", "pending_call") if cpython.REMOTE_EXEC else ("pending_call",)
PREPARE = "start it with `livepatch run -- ...`."

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a process of another user")
needs_processor = pytest.mark.skipif(
    os.uname().machine not in way.PROCESSORS, reason="no pending call on this processor"
)


@pytest.fixture
def folder():
    """One that every user can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="livepatch-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def pretender(folder):
    """Start a program under another name. It sleeps."""
    started = []

    def start(name, program=None, **options):
        path = folder / name
        shutil.copy(program or shutil.which("sleep"), path)
        path.chmod(0o755)
        started.append(subprocess.Popen([path, "1000"], **options))
        eventually(lambda: Path(f"/proc/{started[-1].pid}/cmdline").read_bytes() == b"%s\x001000\0" % bytes(path))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def sleeper():
    """A Python like ours that was not prepared."""
    with Target("say('ready'); hear()") as target:
        target.hear()
        yield target


def into(pid, *method):
    return way.into(processes.require_python(pid), *method)


def refused(pid, *method):
    with pytest.raises(NoWay) as error:
        into(pid, *method)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return error.value.short, sentence


@needs_processor
def test_a_python_like_ours(sleeper):
    assert into(sleeper.pid) == AUTO
    assert into(sleeper.pid, "pending_call") == ("pending_call",)
    assert "TracerPid:\t0\n" in Path(f"/proc/{sleeper.pid}/status").read_text()


@pytest.mark.parametrize("version", ["2.7", "3.6m", "3.7m", "3.8", "3.9", "3.10"])
def test_older_than_3_11(pretender, version):
    pid = pretender(f"python{version}")
    number = version.rstrip("m")
    assert processes.examine(pid).python == number
    sentence = f"Process {pid} runs Python {number}, and livepatch needs 3.11 or newer; run the program with one."
    assert refused(pid) == ("needs 3.11", sentence)


def test_real_older_pythons():
    """As many as there are."""
    found = [shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10")]
    found += map(str, Path("~/.pyenv/versions").expanduser().glob("*/bin/python"))
    for python in filter(None, found):
        asked = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        version = asked.stdout.decode().strip()  # empty: a launcher without its interpreter
        if not version or tuple(map(int, version.split("."))) >= (3, 11):
            continue
        with subprocess.Popen([python, "-c", "import time; print('ready'); time.sleep(1000)"]) as target:
            try:
                eventually(lambda pid=target.pid: processes.examine(pid).python == version)
                assert refused(target.pid)[0] == "needs 3.11"
            finally:
                target.kill()


@pytest.mark.parametrize("name", ["python3.13t", "python3.14t", "libpython3.14t.so.1.0"])
def test_without_the_gil(pretender, name):
    pid = pretender(name)
    python = re.search(r"3\.\d+t", name)[0]
    short, sentence = refused(pid)
    assert short == "free-threaded"
    assert sentence.startswith(
        f"Process {pid} runs a free-threaded Python ({python}), which livepatch does not support;"
    )


@pytest.mark.parametrize(
    ("name", "python"),
    [("pypy3.10", "PyPy 3.10"), ("pypy3", "PyPy 3"), ("libpypy3.9-c.so", "PyPy 3.9"), ("pypy", "PyPy ?")],
)
def test_pypy(pretender, name, python):
    pid = pretender(name)
    assert refused(pid) == (
        "PyPy",
        f"Process {pid} runs {python}, and livepatch needs CPython; run the program with that.",
    )


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a program for another processor")
def test_a_32_bit_program(pretender, tmp_path):
    code = bytes.fromhex("b81d000000 cd80 ebf7")  # again: mov eax, 29 (pause); int 0x80; jmp again
    base, header = 0x08048000, 52 + 32
    elf = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    elf += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack("<8I", 1, 0, base, base, header + len(code), header + len(code), 5, 0x1000)
    program = tmp_path / "program"
    program.write_bytes(elf + code)
    try:
        pid = pretender("python3.11", program)
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    short, sentence = refused(pid)
    assert short == "32-bit"
    assert sentence == f"Process {pid} is a 32-bit program, which livepatch knows no way into; {PREPARE}"


def test_a_processor_without_machine_code(pretender, monkeypatch):
    monkeypatch.setattr(way, "PROCESSORS", ())
    short, sentence = refused(pretender("python3.12"))
    assert short == os.uname().machine
    assert sentence.endswith(f"runs on {short}, for which livepatch knows no machine code; {PREPARE}")
    assert into(pretender("python3.14")) == ("remote_exec",)


def test_another_system_has_only_the_interpreters_own_way(pretender, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert refused(pretender("python3.13"))[0] == "needs Linux"
    assert into(pretender("python3.15")) == ("remote_exec",)


def test_musl(folder):
    library = folder / "ld-musl-x86_64.so.1"
    library.write_bytes(bytes(4096))
    script = f"""
        import mmap
        file = open({str(library)!r}, "rb")
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        say("ready")
        hear()
    """
    with Target(script) as target:
        target.hear()
        short, sentence = refused(target.pid, "pending_call")
        assert short == "musl"
        assert "has the C library musl" in sentence
        if cpython.REMOTE_EXEC:
            assert into(target.pid) == ("remote_exec",)
            assert sentence.endswith(f"use --method remote_exec, or {PREPARE}")


def test_a_method_that_its_version_does_not_have(pretender):
    pid = pretender("python3.12")
    sentence = f"Process {pid} runs Python 3.12, and sys.remote_exec came with 3.14; use --method pending_call."
    assert refused(pid, "remote_exec") == ("no remote_exec", sentence)


@needs_processor
def test_a_method_that_is_insisted_on(pretender):
    newer, older = pretender("python3.14"), pretender("python3.13")
    assert into(newer) == ("remote_exec", "pending_call")
    assert into(newer, "remote_exec") == ("remote_exec",)
    assert into(newer, "pending_call") == ("pending_call",)
    assert into(older) == ("pending_call",)


@pytest.mark.parametrize("version", ["3.12", "3.14"])
@pytest.mark.parametrize("how", ["environment", "option"])
def test_the_owner_forbids_it(pretender, version, how):
    if how == "environment":
        pid = pretender(f"python{version}", env={"PYTHON_DISABLE_REMOTE_DEBUG": "1"})
        short, sentence = refused(pid)
        assert short == "forbidden"
        assert "was started with remote debugging disabled (PYTHON_DISABLE_REMOTE_DEBUG or" in sentence
    else:
        with Target("say('ready'); hear()", command=[sys.executable, "-X", "disable-remote-debug"]) as target:
            target.hear()
            for method in way.METHODS:
                assert refused(target.pid, method)[0] == "forbidden"


@needs_processor
def test_an_empty_setting_forbids_nothing(pretender):
    """As the interpreter has it."""
    assert into(pretender("python3.14", env={"PYTHON_DISABLE_REMOTE_DEBUG": "", "X": "PYTHON_DISABLE_REMOTE_DEBUG=1"}))


def test_ourselves():
    assert refused(os.getpid()) == (
        "this process",
        f"Process {os.getpid()} is the one that asks; have it call livepatch.start_agent().",
    )


# -- who may -----------------------------------------------------------------------------------------------


@needs_root
def test_another_user(sleeper):
    """One that cannot be looked into is listed by its command line, and refused."""

    def look():
        (found,) = [process for process in processes.pythons() if process.pid == sleeper.pid]
        assert not found.open
        with pytest.raises(NoWay) as error:
            way.into(found)
        return error.value.short, str(error.value)

    sentence = f"Process {sleeper.pid} belongs to user 0; run livepatch as that user or as root."
    assert as_nobody(look) == str(("user 0", sentence))


def with_capability_only(number):
    """Become an ordinary user who has kept this capability of root's."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgid(65534)
    os.setuid(65534)
    bit = 1 << number
    assert libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", bit, bit, 0, 0, 0, 0)) == 0


@needs_root
def test_another_user_with_the_capability(sleeper):
    """As in a container that runs beside another one: such a user may look, and no more."""

    def look():
        with_capability_only(way._CAP_SYS_PTRACE)
        found = processes.require_python(sleeper.pid)
        assert found.open
        return refused_by(found)

    sentence = f"Process {sleeper.pid} belongs to user 0; run livepatch as that user or as root."
    child = os.fork()
    if child == 0:
        try:
            os._exit(look() != ("user 0", sentence))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_root
def test_a_root_without_the_capability(pretender):
    """As in a container."""
    pid = pretender("python3.12", user=65534, group=65534, extra_groups=[])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            header, data = struct.pack("Ii", 0x20080522, 0), bytearray(24)
            libc = ctypes.CDLL(None)
            assert libc.capget(header, (ctypes.c_char * 24).from_buffer(data)) == 0
            data[2] &= ~(1 << (way._CAP_SYS_PTRACE - 16))  # of the effective ones
            assert libc.capset(header, bytes(data)) == 0
            assert not way._may_trace()
            (found,) = [process for process in processes.pythons() if process.pid == pid]
            said = str(refused_by(found))
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert "it lacks the capability CAP_SYS_PTRACE, which containers withhold" in said


def refused_by(process):
    with pytest.raises(NoWay) as error:
        way.into(process)
    return error.value.short, str(error.value)


@pytest.mark.parametrize(
    ("scope", "privileged", "words"),
    [
        (0, False, None),
        (1, True, None),
        (2, True, None),
        (1, False, "nobody but root trace processes here (kernel.yama.ptrace_scope is 1); run livepatch as root or"),
        (2, False, "nobody but root trace processes here (kernel.yama.ptrace_scope is 2); run livepatch as root or"),
        (3, False, "nobody trace processes until the next boot (kernel.yama.ptrace_scope is 3); start the process"),
        (3, True, "nobody trace processes until the next boot (kernel.yama.ptrace_scope is 3); start the process"),
    ],
)
def test_yama(scope, privileged, words):
    sentence = way.yama(scope, privileged=privileged)
    assert (words is None and sentence is None) or words in sentence


@needs_root
@needs_processor
@pytest.mark.parametrize("scope", [0, 1, 2, 3])
def test_yama_as_this_kernel_would_have_it(pretender, folder, monkeypatch, scope):
    pid = pretender("python3.12", user=65534, group=65534, extra_groups=[])
    (folder / "scope").write_text(f"{scope}\n")
    monkeypatch.setattr(way, "_YAMA", str(folder / "scope"))
    if scope:
        assert as_nobody(lambda: refused(pid)[0]) == "ptrace_scope"
    else:
        assert as_nobody(lambda: into(pid)) == "('pending_call',)"
    if scope < 3:
        assert into(pid) == ("pending_call",)  # for root
    else:
        assert refused(pid)[0] == "ptrace_scope"


# -- what it does ------------------------------------------------------------------------------------------


def test_a_stopped_one(sleeper):
    sleeper.signal(signal.SIGSTOP)
    sentence = f"Process {sleeper.pid} is stopped; let it go on with `kill -CONT {sleeper.pid}` and try again."
    for method in ("auto", "pending_call"):
        assert refused(sleeper.pid, method) == ("stopped", sentence)
    sleeper.signal(signal.SIGCONT)
    eventually(lambda: processes.status(sleeper.pid)["State"].startswith("S"))
    assert into(sleeper.pid)


@pytest.mark.parametrize("hard", [64, 4096])
def test_one_that_has_no_descriptor_left(hard):
    """What the sentence says to do is enough, whatever the limit that it cannot raise itself."""
    script = f"""
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
        try:
            while True: os.dup(0)
        except OSError: say("ready")
        hear()
    """
    with Target(script) as target:
        target.hear()
        short, sentence = refused(target.pid)
        assert short == "open files"
        remedy = f"prlimit --pid {target.pid} --nofile=128:{128 if hard == 64 else ''}"
        assert sentence == (
            f"Process {target.pid} has 64 files open and may have 64, which leaves no room for the agent's socket; let"
            f" it have more with `{remedy}` and try again."
        )
        with pytest.raises(LivepatchError, match="no room for the agent"):
            entry.attach(target.pid)
        if subprocess.run(remedy.split(), capture_output=True).returncode and hard == 64:
            return  # whoever may attach may not always raise this (CAP_SYS_RESOURCE)
        entry.attach(target.pid).close()


def test_a_zombie():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(processes.NoAccess) as error:
            into(ended.pid)
    assert str(error.value) == (
        f"Process {ended.pid} has ended and is a zombie: its parent, process {os.getpid()}, has not asked for its exit"
        " status."
    )


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="its system calls have other numbers")
def test_the_main_thread_has_ended():
    """The others go on; the kernel calls the process a zombie and shows nothing of it, but all at another thread."""
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # exit, of the thread alone
    script = f"""
        import ctypes, time
        def work():
            while open(f"/proc/self/status").read().split("State:")[1].split()[0] != "Z": time.sleep(0.01)
            say("alone")
            hear()
        threading.Thread(target=work).start()
        ctypes.CDLL(None).syscall({number}, 0)
    """
    with Target(script) as target:
        assert target.hear() == "alone"
        assert processes.alive(target.pid)
        assert target.pid in [process.pid for process in processes.pythons()]
        short, sentence = refused(target.pid)
        assert short == "main thread ended"
        assert sentence.startswith(
            f"The main thread of process {target.pid}, which would have to let livepatch in, has"
        )
        assert sentence.endswith(PREPARE)


TRACER = """
    import ctypes
    pid, interrupt = map(int, sys.argv[1:])
    ptrace = ctypes.CDLL(None).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    assert ptrace(0x4206, pid, 0, 0) == 0  # PTRACE_SEIZE
    if interrupt: assert ptrace(0x4207, pid, 0, 0) == 0
    say("tracing")
    hear()
"""


@needs_processor
def test_one_that_somebody_traces(sleeper):
    with Target(TRACER, arguments=(str(sleeper.pid), "0")) as tracer:
        assert tracer.hear() == "tracing"
        short, sentence = refused(sleeper.pid, "pending_call")
        name = processes.status(tracer.pid)["Name"]
        assert short == "traced"
        assert f"is traced by process {tracer.pid} ({name}), and the kernel allows only one tracer:" in sentence
        if cpython.REMOTE_EXEC:  # needs no tracer
            assert into(sleeper.pid) == ("remote_exec",)
    eventually(lambda: into(sleeper.pid) == AUTO)


@needs_processor
@pytest.mark.parametrize("interrupt", ["0", "1"])
def test_another_attach_is_no_tracer(sleeper, interrupt):
    """Both are about to get the same agent. It may have stopped the process at this very instant."""
    arguments = (str(sleeper.pid), interrupt, "livepatch-attach", "x")
    with Target(TRACER.replace("sys.argv[1:]", "sys.argv[1:3]"), arguments=arguments) as tracer:
        tracer.hear()
        eventually(lambda: processes.status(sleeper.pid)["State"].startswith("t" if interrupt == "1" else "S"))
        assert into(sleeper.pid) == AUTO


def test_one_that_a_tracer_has_stopped(sleeper):
    with Target(TRACER, arguments=(str(sleeper.pid), "1")) as tracer:
        tracer.hear()
        eventually(lambda: processes.status(sleeper.pid)["State"].startswith("t"))
        short, sentence = refused(sleeper.pid)
        assert short == "stopped"
        assert f"is stopped by process {tracer.pid} (" in sentence


@needs_processor
@pytest.mark.parametrize("how", ["signal.pthread_sigmask(signal.SIG_BLOCK, [5])", "signal.signal(5, signal.SIG_IGN)"])
def test_sigtrap(how):
    """Without it there is no breakpoint, which only a busy 3.13 needs. It lives on, and may be tried again."""
    script = f"""
        import signal, time
        {how}
        busy = True
        def wait():
            global busy
            hear()
            busy = False
        threading.Thread(target=wait).start()
        say("ready")
        while busy: pass
        say("idle")
        while True: time.sleep(0.01)
    """
    with Target(script, command=[getattr(sys, "_base_executable", sys.executable)]) as target:
        target.hear()
        before = [processes.status(target.pid)[field] for field in ("SigBlk", "SigIgn", "SigCgt")]
        if cpython.VERSION == (3, 13):
            with pytest.raises(
                LivepatchError, match=r"it blocks or ignores SIGTRAP.*; try again when it waits for some"
            ):
                entry.attach(target.pid, timeout=60)
            target.say()
            assert target.hear() == "idle"
        entry.attach(target.pid, timeout=60).close()
        assert [processes.status(target.pid)[field] for field in ("SigBlk", "SigIgn", "SigCgt")] == before


FILTER = """
    import ctypes, struct, time
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(allow)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.addressof(program), 0, 0) == 0  # PR_SET_SECCOMP
    say("ready")
    hear()
"""


@needs_processor
def test_a_filter_that_cannot_be_read(monkeypatch):
    """Nobody knows what it does. Whoever does may insist."""
    with Target(FILTER) as target:
        target.hear()
        monkeypatch.setattr("livepatch.attach.seccomp._may_read", lambda ours: False)
        short, sentence = refused(target.pid)
        assert short == "seccomp"
        assert "or insist with --method" in sentence
        assert into(target.pid, "pending_call") == ("pending_call",)
