"""What travels: compiled for the target by somebody who may, kept where nobody else can write, and cleared away."""

import hashlib
import json
import marshal
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest
from tests.agent.targets import Target

from livepatch.attach import bundle, compiled, entry, injection
from livepatch.attach.processes import require_python
from livepatch.core.model import LivepatchError

#: The interpreter outside of any virtual environment: it finds no livepatch.
PLAIN = [getattr(sys, "_base_executable", sys.executable), "-E"]
PATIENCE = 60.0
SUPPORTED = [f"3.{minor}" for minor in range(11, 16)]
OURS = ".".join(sys.version.split(".")[:2])

#: What a target tells of itself when the agent is there and everything is imported.
REPORT = """
import os, time
def settled():
    while "livepatch.archive.fit" not in sys.modules or sys.getswitchinterval() != 0.005: time.sleep(0.01)
    while any(type(finder).__name__ == "Finder" for finder in sys.meta_path): time.sleep(0.01)
def clean():
    ours = [entry for entry in [*sys.path, *sys.path_importer_cache] if "livepatch" in entry]
    return not ours and not [entry for entry in sys.meta_path if "livepatch" in type(entry).__module__]
"""

LOOP = REPORT + "say('ready')\nsettled()\nsay(clean())\nhear()\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "livepatch" / "agents"


def others():
    """Pythons of other supported versions on this machine."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {version: shutil.which(f"python{version}") for version in SUPPORTED if version != OURS}
    for version in found:
        for path in root.glob(f"{version}.*/bin/python{version}"):
            found[version] = str(path)
    works = [path for path in found.values() if path and subprocess.run([path, "-c", ""]).returncode == 0]
    return works or [pytest.param("", marks=pytest.mark.skip("no other supported Python is installed"))]


def attached(target, **options):
    client = entry.attach(target.pid, timeout=PATIENCE, **options)
    assert client.hello["pid"] == target.pid
    client.close()


def running(script, command=None):
    target = Target(script, command=command or PLAIN)
    assert target.hear() == "ready"
    return target


def unexpected(*arguments):
    raise AssertionError("it was compiled again")


# -- in the target ------------------------------------------------------------------------------------------------


#: C code keeps the interpreter to itself, again and again. It says which switch intervals it sees during an arrival.
HOG = """
import re
say("ready")
seen = set()
while sys.getswitchinterval() != 0.005 or not seen:
    re.match("(a+)+$", "a" * 20 + "b")
    if any(type(finder).__name__ == "Finder" for finder in sys.meta_path): seen.add(sys.getswitchinterval())
say(*seen)
hear()
"""


def test_who_keeps_the_interpreter_for_long_has_us_take_longer_turns():
    """Interrupted after each little step, we would wait for dozens of such calls. On a machine that is busy enough, one
    that does not wake up in time for its turn goes unnoticed.
    """
    seen = []
    while "0.01" not in seen and len(seen) < 10:
        with running(HOG) as target:
            attached(target)
            seen.append(target.hear())
    assert seen[-1] == "0.01"


def test_it_is_all_there_and_its_way_in_is_gone():
    with running(LOOP) as target:
        attached(target)
        assert target.hear() == "True"


def test_compiled_code_is_what_runs(monkeypatch):
    """The sources that travel with it are not looked at."""
    with running(LOOP) as target:
        content = bundle.agent(require_python(target.pid))
        sources, magic, modules = marshal.loads(content)
        assert magic == MAGIC_NUMBER
        broken = marshal.dumps((dict.fromkeys(sources, b"1 / 0"), magic, modules), 2)
        monkeypatch.setattr(bundle, "agent", lambda process: broken)
        attached(target)
        assert target.hear() == "True"


@pytest.mark.parametrize("made", [b"", b"\0\0\0\0 of another version", MAGIC_NUMBER[:2]])
def test_the_sources_serve_if_nothing_fits(monkeypatch, made):
    """Code of another version would crash the target."""
    monkeypatch.setattr(compiled, "for_process", lambda process, sources: made)
    with running(LOOP) as target:
        attached(target)
        assert target.hear() == "True"


@pytest.mark.parametrize("python", others())
def test_a_target_of_another_version_gets_code_of_its_own(python, monkeypatch, cache):
    with running(LOOP, [python, "-E"]) as target:
        found = bundle.agent(require_python(target.pid))
        _, magic, modules = marshal.loads(found)
        asked = subprocess.run(
            [python, "-c", "import importlib.util; print(importlib.util.MAGIC_NUMBER.hex())"], stdout=subprocess.PIPE
        )
        assert magic.hex() == asked.stdout.decode().strip()
        assert magic != MAGIC_NUMBER
        assert len(modules) > 100_000
        attached(target, method="pending_call")
        assert target.hear() == "True"


def test_tracebacks_say_where_in_livepatch():
    script = (
        REPORT
        + """
say('ready')
settled()
import livepatch
try:
    livepatch.disable_patch("no such patch")
except livepatch.LivepatchError as error:
    trace = error.__traceback__
    while trace.tb_next: trace = trace.tb_next
    say(trace.tb_frame.f_code.co_filename)
say(livepatch.core.stacks._HERE, livepatch.core.stacks.own_stack.__code__.co_filename)
hear()
"""
    )
    with running(script) as target:
        attached(target)
        assert target.hear().startswith("<livepatch>/core/")
        assert target.hear() == "<livepatch>/ <livepatch>/core/stacks.py"


def test_a_patch_goes_in_when_the_files_are_gone(tmp_path):
    """An archive needs most of what travels."""
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "service.py").write_text(f"def answer():\n    return {version!r}\n")
    built = [sys.executable, "-m", "livepatch", "build", "--name", "fix", "-o", str(tmp_path / "fix.livepatch")]
    built += ["--old", str(tmp_path / "old"), "--new", str(tmp_path / "new")]
    subprocess.run(built, check=True, stdout=subprocess.DEVNULL)
    script = f"""
import sys, time
sys.path.insert(0, {str(tmp_path / "old")!r})
import service
say('ready')
while service.answer() == "old": time.sleep(0.01)
say(service.answer())
hear()
"""
    with running(script) as target, entry.attach(target.pid, timeout=PATIENCE) as client:
        left = [name for name in os.listdir(f"/tmp/livepatch-{os.geteuid()}") if name.startswith(f"{target.pid}.")]
        assert [name for name in left if name.endswith((".agent", ".failed"))] == []
        client.send_file("load", tmp_path / "fix.livepatch")
        assert target.hear() == "new"


def test_an_agent_that_fails_leaves_nothing_in_the_program(monkeypatch):
    made = bundle.agent

    def broken(process):
        sources, _, _ = marshal.loads(made(process))
        return marshal.dumps(({**sources, "__init__.py": sources["__init__.py"] + b"\n1 / 0\n"}, b"", b""), 2)

    script = (
        REPORT
        + """
say('ready')
hear()
say(clean(), [name for name in sys.modules if "livepatch" in name], sys.getswitchinterval())
hear()
"""
    )
    with running(script) as target:
        monkeypatch.setattr(bundle, "agent", broken)
        with pytest.raises(OSError, match=r"The agent did not start in process .*: division by zero"):
            entry.attach(target.pid, timeout=PATIENCE)
        target.say()
        assert target.hear() == "True [] 0.005"


#: The import of one module of the standard library takes long, and meanwhile the program forks.
#: Without warnings: 3.12 warns of a fork beside threads while it still has the import lock, and the first to be shown
#: imports linecache, which another thread is just importing here: these wait for each other for ever, without us, too.
FORKS = """
import importlib.abc, os, signal, threading, time, warnings
warnings.simplefilter("ignore")
began = threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "linecache" and not began.is_set():
            began.set()
            time.sleep({seconds})
sys.modules.pop("linecache", None)
sys.meta_path.insert(0, Slow())
say('ready')
while not began.is_set(): time.sleep(0.001)
child = os.fork()
if child == 0:
    {does}
    os._exit(7)
deadline = time.monotonic() + 20
while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline: time.sleep(0.01)
if ended == (0, 0):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
say(os.waitstatus_to_exitcode(ended[1]) if ended[0] else "the child hangs")
hear()
"""


def test_a_fork_meanwhile_does_not_inherit_import_locks():
    """Their owner does not exist in the child: whatever imports that module there waits for ever."""
    with running(FORKS.format(seconds=0.5, does="import linecache")) as target:
        attached(target)
        assert target.hear() == "7"


def test_a_script_that_is_run_twice_is_one_arrival(monkeypatch):
    """As when the interpreter was asked to, and the main thread was made to do it as well."""
    once = bundle._SCRIPT
    monkeypatch.setattr(bundle, "_SCRIPT", once + once)
    with running(LOOP) as target:
        attached(target)
        assert target.hear() == "True"


def test_the_second_of_two_ways_in_leaves_nothing_open(tmp_path):
    """Both have opened the file, and the other was the first to take it away."""
    agent = tmp_path / "agent"
    agent.touch()
    text = bundle._SCRIPT.replace("{pid}", "posix.getpid()").format(bundle=str(agent), size=1, failure="")
    program = f"""
import _thread, os, posix, time
came = []
def unlink(path):
    came.append(path)
    raise FileNotFoundError(path)
posix.unlink = unlink
exec({text!r})
while not came or _thread._count(): time.sleep(0.001)
print([n for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{{n}}") == {str(agent)!r}])
"""
    done = subprocess.run([*PLAIN, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("does", ["import linecache", "import livepatch.archive.fit"])
def test_a_fork_waits_only_so_long_and_its_child_imports_anew(does):
    with running(FORKS.format(seconds=6, does=does)) as target:
        attached(target)
        assert target.hear() == "7"


def test_nothing_is_imported_before_forks_wait(tmp_path):
    """A fork that waits for the interpreter's import lock has called all its hooks, and waits no more for us."""
    there = tmp_path / "there"
    arrival = Path(bundle.__file__).with_name("arrival.py").read_text()
    arrival += f"\ndef arrive(*what): open({str(there)!r}, 'w').write(f'imported {{set(sys.modules) - sys.known}}')\n"
    modules = {"attach/arrival.py": compile(arrival, "arrival", "exec", dont_inherit=True)}
    agent, script = tmp_path / "agent", tmp_path / "script"
    agent.write_bytes(marshal.dumps(({}, MAGIC_NUMBER, marshal.dumps(modules))))
    begin = "import sys, posix\nsys.known = set(sys.modules)\n"
    text = bundle._SCRIPT.replace("{pid}", "posix.getpid()").format(bundle=str(agent), size=1 << 20, failure="")
    script.write_text(text)
    line = injection._LINE.format(injection._RUN.format(str(script), 1, None))
    wait = f"while not posix.stat({str(there)!r}).st_size: pass\n"
    there.touch()
    subprocess.run([*PLAIN, "-I", "-S", "-c", begin + line + wait], check=True, timeout=PATIENCE)
    assert there.read_text() == "imported set()"


def test_a_module_of_the_programs_that_has_the_name_of_one_that_is_needed(tmp_path):
    """The command hears of it, the agent goes on to answer, and the program notices nothing."""
    (tmp_path / "ast.py").write_text("raise ImportError('our own ast')\n")
    patch = tmp_path / "fix.livepatch"
    patch.write_bytes(b"PK")
    script = f"""
        sys.stderr = sys.stdout
        sys.path.insert(0, {str(tmp_path)!r})
        assert "ast" not in sys.modules
        say("ready")
        hear()
        say("fine")
        hear()
    """
    with running(script, PLAIN) as target:
        for _ in range(2):  # newer Pythons need it for the agent itself, others for a load
            with (
                pytest.raises(LivepatchError, match=r"The agent .*: our own ast"),
                entry.attach(target.pid) as client,
            ):
                assert client.call("list") == []
                client.send_file("load", patch)
        target.say()
        assert target.hear() == "fine"


@pytest.mark.parametrize(
    ("script", "before", "said"),
    [
        ("1 / 0", "", "division by zero"),
        (None, "", ""),  # it was taken back
        ("", "import builtins; builtins.__import__ = None", ""),
    ],
)
def test_what_keeps_the_script_from_running_is_said_to_us_and_not_to_the_program(script, before, said, tmp_path):
    path, failure = tmp_path / "a.py", tmp_path / "a.failed"
    failure.touch()
    if script is not None:
        path.write_text(script)
    line = injection._LINE.format(injection._RUN.format(str(path), 1, None))
    done = subprocess.run([*PLAIN, "-I", "-S", "-c", f"{before}\n{line}"], capture_output=True, check=True)
    assert (done.stderr, failure.read_text()) == (b"", said)


def test_it_needs_no_thread_of_gevents(tmp_path):
    pytest.importorskip("gevent")
    script = "from gevent import monkey\nmonkey.patch_all()\nsay('ready')\nwhile True: sum(range(1000))\n"
    with running(script, [sys.executable]) as target:
        attached(target)


# -- the cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process():
    return require_python_of_ours()


def require_python_of_ours():
    with Target("say('ready')\nhear()", command=PLAIN) as target:
        target.hear()
        return require_python(target.pid)


SOURCES = {"__init__.py": b"answer = 42\n", "attach/arrival.py": b""}


def code_of(found):
    assert found[: compiled.MAGIC] == MAGIC_NUMBER
    code = marshal.loads(found[compiled.MAGIC :])["__init__.py"]
    names = {}
    exec(code, names)
    assert code.co_filename == "<livepatch>/__init__.py"
    return names["answer"]


def test_it_is_kept_for_the_next_time(process, cache, monkeypatch):
    first = compiled.for_process(process, SOURCES)
    assert code_of(first) == 42
    (kept,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert kept.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(compiled, "_make_here", unexpected)
    assert compiled.for_process(process, SOURCES) == first


def test_other_sources_are_compiled_anew_and_replace_it(process, cache):
    compiled.for_process(process, SOURCES)
    (cache / "new-of-one-that-was-killed").write_bytes(b"")
    assert code_of(compiled.for_process(process, {**SOURCES, "__init__.py": b"answer = 43\n"})) == 43
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "a directory", "a link", "writable by others", "a pipe"])
def test_a_damaged_one_is_not_used(process, cache, damage, tmp_path):
    compiled.for_process(process, SOURCES)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    evil = marshal.dumps({"__init__.py": compile("answer = 666", "<livepatch>/__init__.py", "exec")})
    changed = content[:32] + MAGIC_NUMBER + evil
    convincing = hashlib.sha256(changed[32:]).digest() + changed[32:]
    kept.unlink()
    if damage == "a directory":
        kept.mkdir()
    elif damage == "a pipe":
        os.mkfifo(kept)
    elif damage == "a link":
        (tmp_path / "elsewhere").write_bytes(convincing)
        kept.symlink_to(tmp_path / "elsewhere")
    elif damage == "writable by others":
        kept.write_bytes(convincing)
        kept.chmod(0o666)
    else:
        kept.write_bytes({"cut": content[:-10], "empty": b"", "changed": changed}[damage])
        kept.chmod(0o600)
    assert code_of(compiled.for_process(process, SOURCES)) == 42
    if damage != "a directory":
        assert hashlib.sha256(kept.read_bytes()[32:]).digest() == kept.read_bytes()[:32], "it was made again"


@pytest.mark.parametrize("where", ["cache", "file"])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give something to another user")
def test_what_belongs_to_another_user_is_not_used(process, cache, where, monkeypatch):
    compiled.for_process(process, SOURCES)
    (kept,) = cache.iterdir()
    os.chown(cache if where == "cache" else kept, 65534, 65534)
    asked = []
    made = compiled._make_here
    monkeypatch.setattr(compiled, "_make_here", lambda data: asked.append(data) or made(data))
    assert code_of(compiled.for_process(process, SOURCES)) == 42
    assert asked


def test_a_cache_that_others_may_write_to_is_not_used(process, cache, monkeypatch):
    compiled.for_process(process, SOURCES)
    cache.chmod(0o777)
    (kept,) = cache.iterdir()
    kept.unlink()
    assert code_of(compiled.for_process(process, SOURCES)) == 42
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("where", ["/proc/livepatch", "/dev/null", "relative"])
def test_without_a_cache_it_works_as_well(process, where, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", where)
    monkeypatch.chdir(tmp_path)
    assert code_of(compiled.for_process(process, SOURCES)) == 42
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(process, cache):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        assert code_of(compiled.for_process(process, SOURCES)) == 42
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(cache.iterdir()) == []


def test_many_at_once_agree(process, cache):
    program = f"""
        import json, sys
        from livepatch.attach import compiled
        from livepatch.attach.processes import Process
        process = Process(**json.loads(sys.argv[1]))
        found = {{compiled.for_process(process, {SOURCES!r})[-30:] for _ in range(50)}}
        assert len(found) == 1 and found != {{b""}}
    """
    shown = json.dumps(process.__dict__)
    running = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), shown]) for _ in range(4)]
    assert [one.wait(60) for one in running] == [0, 0, 0, 0]
    assert len(list(cache.iterdir())) == 1


# -- who compiles -------------------------------------------------------------------------------------------------


def lent(tmp_path, monkeypatch, process, *, mode=0o755):
    """An executable of another version, which prints what it is run as instead of code."""
    path = tmp_path / "python3.99"
    path.write_text("#!/bin/sh\nid -u\n")
    path.chmod(mode)
    monkeypatch.setattr(compiled.beside, "interpreter", lambda process: ([str(path)], {}))
    fields = {**process.__dict__, "python": "3.99", "executable": str(path)}
    return type(process)(**fields)


def test_what_an_executable_makes_that_others_can_change_is_not_kept(process, tmp_path, monkeypatch, cache):
    tmp_path.chmod(0o777)
    other = lent(tmp_path, monkeypatch, process)
    assert compiled.for_process(other, SOURCES) == b"%d\n" % os.geteuid()
    assert not cache.exists()


def test_one_that_does_not_run_means_nothing_compiled(process, tmp_path, monkeypatch):
    other = lent(tmp_path, monkeypatch, process, mode=0o644)
    assert compiled.for_process(other, SOURCES) == b""


def test_one_that_only_we_can_change(tmp_path):
    file = tmp_path / "python"
    file.write_text("")
    file.chmod(0o755)
    folders = [*tmp_path.parents]
    with suppress(OSError):
        assert compiled._only_ours(str(file)) == all(compiled._safe(folder.stat()) for folder in folders)
    assert compiled._only_ours("/bin/../nonexistent") is False
    file.chmod(0o775)
    assert not compiled._only_ours(str(file))
