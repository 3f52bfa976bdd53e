"""Replays scenarios of the kernel's livepatch, given as data, against the library's public interface.

A scenario is a list of steps; each says what is done, what must come of it, and every line that must be logged
meanwhile, in order and nothing else. The format of `data/callbacks.json` is told there under "how_to_read";
`data/more.json` has more operations, one method each below, and target modules with their source.

Modules are real files, imported and unloaded; who is busy is a real thread. What the kernel calls a module's init is
its body here, and its exit is a function that is called before `livepatch.unload_module`.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import livepatch as lp
from livepatch.testing import tick

DATA = Path(__file__).parent / "data"
PATIENCE = 60.0
CALLBACKS = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")

#: What `data/callbacks.json` describes in words.
SOURCES = {
    "test_klp_callbacks_mod": """
import klp_harness
klp_harness.say(__name__, "mod_init")
def module_exit(): klp_harness.say(__name__, "mod_exit")
""",
    "test_klp_callbacks_busy": """
import klp_harness, threading
leave = threading.Event()
def busymod_work_func():
    klp_harness.say(__name__, "busy_enter")
    entered.set()
    leave.wait(60)
    klp_harness.say(__name__, "busy_exit")
entered = threading.Event()
klp_harness.say(__name__, "mod_init")
worker = threading.Thread(target=busymod_work_func)
worker.start()
entered.wait(60)
if klp_harness.params[__name__]["block_transition"] == "N":
    leave.set()
    worker.join()
def module_exit():
    leave.set()
    worker.join()
    klp_harness.say(__name__, "mod_exit")
""",
}


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.001)


def number(name):
    return getattr(errno, name)


class Replay(logging.Handler):
    """One scenario; also the module `klp_harness` that its target modules import."""

    def __init__(self, file, folder):
        super().__init__()
        base = json.loads((DATA / "callbacks.json").read_text())
        own = json.loads((DATA / file).read_text())
        self.events = base["events"] | own.get("events", {})
        self.states = base["module_states"]
        self.modules = own["modules"]
        self.folder = folder
        self.lines = []
        self.params = {}
        self.patches = {}
        self.threads = {}

    def emit(self, record):
        self.lines.append("livepatch: " + record.getMessage())

    def say(self, module, event):
        self.lines.append(self.events[event].format(module=module))

    def run(self, scenario):
        logger = logging.getLogger("livepatch")
        level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        sys.modules["klp_harness"] = self
        sys.path.insert(0, str(self.folder))
        try:
            for at, step in enumerate(scenario["steps"]):
                self.lines.clear()
                options = {key: value for key, value in step.items() if key not in ("op", "log", "why")}
                getattr(self, step["op"])(**options)
                expected = [self._rendered(event) for event in step.get("log", [])]
                assert self.lines == expected, f"step {at}, {step['op']} {options}: {self.lines} instead of {expected}"
        finally:
            for gate, thread in self.threads.values():
                gate.set()
                thread.join()
            sys.path.remove(str(self.folder))
            del sys.modules["klp_harness"]
            logger.removeHandler(self)
            logger.setLevel(level)
            for name in self.modules:
                sys.modules.pop(name, None)

    def _rendered(self, event):
        values = dict(event)
        if "state" in values:
            values["state"] = self.states[values["state"]]
        return self.events[values.pop("ev")].format(**values)

    # -- the operations of callbacks.json ----------------------------------------------------------

    def load_module(self, module, params=(), expect="ok"):
        self.params[module] = dict(params)
        source = SOURCES.get(module) or self.modules[module]["source"]
        (self.folder / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        self._expect(expect, module, lambda: importlib.import_module(module))
        assert (module in sys.modules) == (expect == "ok")

    def load_patch(self, module, params=(), wait="complete", expect="ok"):
        self.params[module] = {"pre_patch_ret": 0, **dict(params)}
        patch = self.patches[module] = self._patch(module)
        self._expect(expect, module, lambda: lp.enable_patch(patch))
        listed = lp.tree.listdir("")
        if expect != "ok":
            assert module not in listed
        elif wait == "complete":
            until(lambda: lp.tree.read(f"{module}/transition") == "0", f"{module} completes")
            assert lp.tree.read(f"{module}/enabled") == "1"
        else:
            assert module in listed

    def disable_patch(self, module):
        lp.tree.write(f"{module}/enabled", "0")
        until(lambda: module not in lp.tree.listdir(""), f"the directory of {module} is gone")

    def unload_patch(self, module, expect="ok"):
        until(lambda: module not in lp.tree.listdir(""), f"{module} is unused")
        self._expect(expect, None, lambda: lp.unload_patch(module))

    def unload_module(self, module):
        exit_function = getattr(sys.modules[module], "module_exit", None)
        if exit_function is not None:
            exit_function()
        lp.unload_module(module)
        assert module not in sys.modules

    def wait_attr(self, module, attr, value):
        until(lambda: lp.tree.read(f"{module}/{attr}") == value, f"{module}/{attr} is {value}")

    def set_param(self, module, param, value):
        self.params[module][param] = value

    def _expect(self, expect, module, action):
        wanted = number(expect["error"]) if isinstance(expect, dict) else 0
        try:
            action()
            seen = 0
        except (lp.LivepatchError, ImportError) as error:
            seen = error.errno
            if module is not None:
                event = {"ev": "load_error", "module": module, "strerror": os.strerror(seen)}
                self.lines.append(self._rendered(event))
        assert seen == wanted, f"{errno.errorcode.get(seen, seen)} instead of {errno.errorcode.get(wanted, wanted)}"

    # -- patches from data -------------------------------------------------------------------------

    def _patch(self, name):
        data = self.modules[name]
        objects = [
            lp.Object(
                obj["name"],
                [self._func(name, func) for func in obj["funcs"]],
                callbacks=self._callbacks(name) if obj.get("callbacks") else None,
            )
            for obj in data["objects"]
        ]
        states = [lp.State(state["id"], state["version"]) for state in data.get("states", [])]
        return lp.Patch(name, objects, replace=data.get("replace", False), states=states)

    def _func(self, patch, data):
        def says(value):
            return lambda *args: value

        def patched_work_func():
            self.lines.append(f"{patch}: patched_work_func")

        new = patched_work_func if data["old"] == "busymod_work_func" else says(data.get("says"))
        return lp.Func(data["old"], new, old_sympos=data.get("sympos", 0))

    def _callbacks(self, patch):
        def callback(which):
            def call(obj):
                shown = "vmlinux" if obj.name is None else obj.name
                event = {"ev": "callback", "patch": patch, "cb": which, "object": shown}
                if obj.module_state is not None:
                    event |= {"ev": "callback_mod", "state": obj.module_state}
                self.lines.append(self._rendered(event))
                failing = self.params[patch].get("fail_object", shown)
                return self.params[patch]["pre_patch_ret"] if which == "pre_patch" and failing == shown else None

            return call

        return lp.Callbacks(**{which: callback(which) for which in CALLBACKS})

    # -- more operations -----------------------------------------------------------------------------

    def call(self, module, function, result):
        """A free task calls it: this thread, which is in no patched function."""
        assert getattr(sys.modules[module], function)() == result

    def enter(self, module, function, thread="busy"):
        """A thread enters a function that holds it until it is told to leave."""
        inside, gate = threading.Event(), threading.Event()

        def hold():
            inside.set()
            gate.wait(PATIENCE)

        target = getattr(sys.modules[module], function)
        self.threads[thread] = gate, threading.Thread(target=target, args=(hold,), name=thread)
        self.threads[thread][1].start()
        inside.wait(PATIENCE)

    def leave(self, thread="busy"):
        gate, running = self.threads.pop(thread)
        gate.set()
        running.join()

    def rounds(self, count):
        for _ in range(count):
            tick()

    def read(self, path, value=None, error=None):
        self._expect({"error": error} if error else "ok", None, lambda: self._read(path, value))

    def _read(self, path, value):
        found = lp.tree.read(path)
        assert found == value, f"{path} reads {found!r}"

    def write(self, path, value, error=None):
        self._expect({"error": error} if error else "ok", None, lambda: lp.tree.write(path, value))

    def list(self, path, names):
        assert sorted(lp.tree.listdir(path)) == sorted(names)

    def mode(self, path, mode):
        assert oct(lp.tree.mode(path)) == mode

    def redirection(self, enabled, error=None):
        self._expect({"error": error} if error else "ok", None, lambda: lp.set_redirection(enabled))
