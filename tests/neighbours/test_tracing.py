"""Tools that watch a program run: trace and profile functions, `sys.monitoring`, pdb, coverage.py.

They know functions by code object and by line of a file. Each version has its own, so what a tool has noted about one
is there again when that one is.
"""

import bdb
import json
import os
import pdb
import subprocess
import sys

import pytest
from tests.core import kit
from tests.neighbours.traced import NEWS, OLD, PROGRAM, RESULTS, patch, through_all_of_it

import livepatch as lp
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

# -- trace and profile functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["settrace", "setprofile"])
def test_a_trace_or_profile_function_sees_every_call_and_its_end(files, held, install):
    """In the version that runs; what livepatch puts before it in a transition begins and ends, too."""
    target, _ = files
    events = []

    def watch(frame, event, arg):
        if event in ("call", "return"):
            events.append((event, frame.f_code.co_name, os.path.basename(frame.f_code.co_filename)))
        return watch

    def look(expected):
        events.clear()
        getattr(sys, install)(watch)
        try:
            assert target.f() == expected
        finally:
            installed = getattr(sys, install.replace("set", "get"))()
            getattr(sys, install)(None)
        assert installed is watch
        file = "lp_traced.py" if expected is OLD else "new.py"
        mine = [event for event in events if event[2] == file]
        both = [("call", "f", file), ("call", "g", file), ("return", "g", file), ("return", "f", file)]
        assert mine == both
        open_calls = []
        for event, name, where in events:
            if event == "call":
                open_calls.append((name, where))
            elif open_calls:
                assert open_calls.pop() == (name, where)

    through_all_of_it(files, held, look)


def test_a_frame_that_is_traced_stays_traced_while_its_function_is_exchanged(files, worker):
    """Lines of the old version are reported to the end of the call, which holds the transition up."""
    target, _ = files
    thread, gate, lines = worker(), kit.Gate(), []

    def trace(frame, event, arg):
        if frame.f_code.co_name == "stay":
            lines.append((event, frame.f_lineno))
            return trace
        return None

    def traced():
        sys.settrace(trace)
        try:
            return target.stay(target.f, gate)
        finally:
            sys.settrace(None)

    inside = thread.begin(traced)
    gate.arrived()
    lp.enable_patch(patch(files))
    gate.open()
    assert inside.result(kit.PATIENCE) == (OLD, OLD)
    assert [event for event in lines if event[0] != "call"] == [
        ("line", 11),
        ("line", 12),
        ("line", 13),
        ("return", 13),
    ]
    finish()
    kit.take_out("p")


# -- pdb ---------------------------------------------------------------------------------------------------------------


class Console:
    """What is typed into pdb, and what it prints."""

    encoding = "utf-8"

    def __init__(self, *commands, gate=None):
        self.commands = list(commands)
        self.gate = gate
        self.printed = ""

    def readline(self):
        if self.gate is not None:
            self.gate()
        return self.commands.pop(0) + "\n" if self.commands else ""

    def write(self, text):
        self.printed += text

    def flush(self):
        pass


BACKENDS = ["settrace", "monitoring"] if hasattr(bdb, "_MonitoringTracer") else ["settrace"]


@pytest.fixture(params=BACKENDS)
def debugger(request):
    """Makes debuggers, and forgets their breakpoints."""

    def make(console):
        options = {"backend": request.param} if len(BACKENDS) > 1 else {}
        made = pdb.Pdb(stdin=console, stdout=console, nosigint=True, readrc=False, **options)
        made.prompt, made.use_rawinput = "(Pdb) ", False
        return made

    yield make
    sys.settrace(None)
    bdb.Breakpoint.clearBreakpoints()


@pytest.mark.parametrize("skip", [None, ["livepatch.*"]])
def test_pdb_steps_through_a_trampoline(files, held, debugger, skip):
    """Into the version that it calls, and out of it again; everything in its frames can be looked at."""
    target, _ = files
    held.begin(target.stay, target.f)
    lp.enable_patch(patch(files))
    go = ["step"] * 8 if skip else ["next", "next", "step", "step", "step", "step"]
    looks = [command for step in go for command in (step, "where", "args", "p sorted(locals())")]
    console = Console(*looks, *["continue"] * 50)
    made = debugger(console)
    made.skip = skip and set(skip)
    assert made.runcall(target.f) == NEWS
    assert "> <livepatch>(" in console.printed
    assert "-> first = g()" in console.printed, "the source of the new version is shown"
    assert "Error" not in console.printed
    assert "livepatch/core" not in console.printed
    assert held.release() == (OLD, OLD)
    finish()
    kit.take_out("p")


def test_breakpoints_wait_for_their_version(files, held, debugger):
    """One in the old file, one in the new: each is met while its version runs, and none is lost."""
    target, new = files
    old_place, new_place = (target.__file__, 6), (new, 8)

    def look(expected):
        console = Console(*["continue"] * 50)
        made = debugger(console)
        for place in (old_place, new_place):
            assert made.set_break(*place) is None
        assert made.runcall(target.f) == expected
        met = {name for name in ("lp_traced.py(6)", "new.py(8)") if f"{name}f()" in console.printed}
        assert met == ({"lp_traced.py(6)"} if expected is OLD else {"new.py(8)"})
        assert set(made.get_all_breaks()) == {made.canonic(target.__file__), made.canonic(new)}

    through_all_of_it(files, held, look)


def test_who_stands_in_the_debugger_holds_a_transition_up(files, worker, debugger):
    target, _ = files
    thread, gate = worker(), kit.Gate()
    console = Console("p 'in the old world'", *["continue"] * 50, gate=gate)
    inside = thread.begin(lambda: debugger(console).runcall(target.f))
    gate.arrived()
    lp.enable_patch(patch(files))
    assert kit.blocking() == ["f"]
    assert target.f() == NEWS
    gate.open()
    assert inside.result(kit.PATIENCE) == OLD
    assert "in the old world" in console.printed
    finish()
    kit.take_out("p")


# -- coverage.py -------------------------------------------------------------------------------------------------------

CORES = ["ctrace", "pytrace"] + (["sysmon"] if hasattr(sys, "monitoring") else [])


@pytest.mark.parametrize("core", CORES)
def test_coverage_has_the_lines_of_both_versions(files, tmp_path, core):
    pytest.importorskip("coverage")
    _, new = files
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("NEW", repr(new)))
    environment = {**os.environ, "COVERAGE_CORE": core, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "coverage", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    done = run("run", "--include", f"{tmp_path}/*", str(program))
    assert done.stdout.strip() == str(RESULTS)
    assert not done.stderr
    run("json", "-o", "report.json")
    shown = json.loads((tmp_path / "report.json").read_text())["files"]
    lines = {os.path.basename(name): set(entry["executed_lines"]) for name, entry in shown.items()}
    assert {2, 6, 7, 11, 12, 13} <= lines["lp_traced.py"]
    assert {4, 8, 9} <= lines["new.py"]
    by_hand = next(n for n, line in enumerate(program.read_text().splitlines(), 1) if 'word = "by hand"' in line)
    assert {by_hand, by_hand + 1} <= lines["program.py"]
