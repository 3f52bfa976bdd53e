"""Scripts that fork, each in a process of its own, so that no thread of the test runner is forked."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

#: Seconds until a script that hangs is ended.
PATIENCE = 60.0

PRELUDE = """
import json, logging, os, sys, threading, time, traceback, types, warnings
logging.getLogger("livepatch").addHandler(logging.NullHandler())
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: that is what this is about
import livepatch as lp
from livepatch.core import registry
from livepatch.core.codes import definitions
from livepatch.testing import finish, manual_rounds, tick

SOURCE = '''
def f(): return "old"
def gen():
    yield "old"
    yield f()
def stay(gate=None, *args):
    if gate: gate(*args)
    return "old", f()
'''
target = sys.modules["target"] = types.ModuleType("target")
exec(compile(SOURCE, "old.py", "exec"), target.__dict__)

def patch(name="p", word="new"):
    codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", word), "new.py", "exec"))}
    return lp.Patch(name, [lp.Object("target", [lp.Func(n, lp.Body(codes[n])) for n in ("f", "gen", "stay")])])

def in_child(function):
    "What the function returns in a child; an error there is one here."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = {"value": function()}
        except BaseException:
            said = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = json.load(pipe)
    os.waitpid(pid, 0)
    assert "error" not in said, said["error"]
    return said["value"]

class Held:
    "A thread inside of `stay`."
    def __init__(self, inside=lambda: None):
        self.reached, self.go, self.met = threading.Event(), threading.Event(), []
        self.thread = threading.Thread(target=lambda: self.met.append(target.stay(self.gate)), daemon=True)
        self.inside = inside
        self.thread.start()
        assert self.reached.wait(60)
    def gate(self):
        self.reached.set()
        assert self.go.wait(60)
        self.inside()
    def release(self):
        self.go.set()
        self.thread.join(60)
        return self.met[0]

def status():
    return [(p.name, p.enabled, p.transition) for p in lp.patches()]

def by_itself(condition):
    "Waits without making rounds."
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, lp.tasks()
        time.sleep(0.002)
    return True
"""


def run(script: str, *, prelude: str = PRELUDE):
    """Run it and give what it said last, as JSON."""
    text = prelude + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # children that hang, too
    assert process.returncode == 0, stdout + stderr
    assert not stderr, stderr
    return json.loads(stdout.splitlines()[-1])
