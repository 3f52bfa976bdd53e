"""Random histories, carried out on the library and on the model, which must agree after every step.

Target modules are files that are imported; who holds a transition up is a real thread inside of a real function; rounds
are made by hand. What is compared: the errno of each operation, every line of the log and every callback in its order,
the attributes of all patches, and the version that a call of each function reaches.
"""

from __future__ import annotations

import errno
import importlib
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.core import kit
from tests.model import model

import livepatch as lp
from livepatch.core import log, redirect, registry
from livepatch.testing import manual_rounds, tick

MODULES = ("lp_m1", "lp_m2")
SOURCE = "".join(f"def {name}(gate=None):\n    if gate: gate()\n    return 'old'\n" for name in model.FUNCTIONS)
CALLBACKS = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")

modules = st.sampled_from(MODULES)
functions = st.sampled_from(model.FUNCTIONS)
names = st.sampled_from("PQR")


@st.composite
def contents(draw):
    """Which functions of which modules a patch has, in which order of objects."""
    chosen = draw(st.lists(modules, min_size=1, max_size=2, unique=True))
    return {module: tuple(draw(st.lists(functions, max_size=2, unique=True))) for module in chosen}


class Recorder(logging.Handler):
    """The log of the library, and what callbacks write, in one list."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Histories(RuleBasedStateMachine):
    model_class = model.Model

    def __init__(self) -> None:
        super().__init__()
        self.model = self.model_class()
        self.count = 0
        self.history: list[str] = []
        self.recorder = Recorder()
        logger = logging.getLogger("livepatch")
        self.level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self.recorder)
        self.rounds = manual_rounds()
        self.rounds.__enter__()
        self.folder = Path(tempfile.mkdtemp(prefix="livepatch-model-"))
        for name in MODULES:
            (self.folder / f"{name}.py").write_text(SOURCE)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        self.threads: list[tuple[model.Holder, kit.Gate, kit.Worker]] = []

    def teardown(self) -> None:
        for _, gate, _ in self.threads:
            gate.open()
        for _, _, worker in self.threads:
            worker.close()
        kit.clean_up()
        self.rounds.__exit__(None, None, None)
        assert not lp.patches()
        assert not registry.loaded()
        redirect.redirections.clear()
        log.clear()
        logger = logging.getLogger("livepatch")
        logger.removeHandler(self.recorder)
        logger.setLevel(self.level)
        sys.path.remove(str(self.folder))
        for name in MODULES:
            sys.modules.pop(name, None)
        shutil.rmtree(self.folder)

    # -- both sides --------------------------------------------------------------------------------

    def both(self, what, expected, action) -> None:
        """Compare one operation, then everything that can be seen."""
        self.history.append(what)
        seen = 0
        try:
            action()
        except (lp.LivepatchError, ImportError) as error:
            seen = error.errno
        assert self.recorder.lines == self.model.log, f"{what}: {self.recorder.lines} instead of {self.model.log}"
        self.recorder.lines.clear()
        self.model.log.clear()
        assert seen == expected, f"{what}: {errno.errorcode.get(seen)} instead of {errno.errorcode.get(expected)}"
        self.compare(what)

    def compare(self, what) -> None:
        seen = [(p.name, p.enabled, p.transition, p.stack_order, p.forced) for p in lp.patches()]
        expected = [
            (p.name, p.enabled, p is self.model.changing, at, p.forced) for at, p in enumerate(self.model.listed, 1)
        ]
        assert seen == expected, f"{what}: {seen} instead of {expected}"
        assert sorted(p.name for p in registry.loaded()) == sorted(self.model.loaded)
        for patch in self.model.listed:
            for module in patch.modules():
                shown = set(lp.tree.listdir(f"{patch.name}/{module}")) - {"patched"}
                assert shown == {f"{fn},1" for fn in model.FUNCTIONS if patch.has(module, fn)}, what
                if module not in self.model.deleted:
                    assert lp.tree.read(f"{patch.name}/{module}/patched") == str(int(module in patch.here)), what
        for module in sorted(self.model.imported):
            for function in model.FUNCTIONS:
                seen = getattr(sys.modules[module], function)()
                expected = self.model.call(module, function)
                said = f"{module}.{function} is {seen} instead of {expected} after {'; '.join(self.history)}"
                assert seen == expected, said

    # -- what happens --------------------------------------------------------------------------------

    @initialize(first=st.sets(modules))
    def begin(self, first):
        self.history.append(f"begin {sorted(first)}")
        for module in sorted(first):
            importlib.import_module(module)
            self.model.imported.add(module)

    @rule(
        name=names,
        funcs=contents(),
        replace=st.booleans(),
        version=st.sampled_from((0, 0, 1, 2)),
        refuse=st.sampled_from((0, 0, 0, errno.ENODEV)),
        by_hand=st.booleans(),
        noisy=st.booleans(),
        data=st.data(),
    )
    def load(self, name, funcs, replace, version, refuse, by_hand, noisy, data):
        self._load(name, funcs, replace, version, refuse, by_hand, noisy, data)

    @precondition(lambda self: self.model.holders and self.model.changing is None)
    @rule(name=names, funcs=contents(), replace=st.booleans(), by_hand=st.booleans(), data=st.data())
    def load_what_somebody_is_in(self, name, funcs, replace, by_hand, data):
        """Most interesting things happen while a transition is held."""
        holder = data.draw(st.sampled_from(self.model.holders))
        others = tuple(name for name in funcs.get(holder.module, ()) if name != holder.function)
        funcs[holder.module] = (holder.function, *others)
        self._load(name, funcs, replace, 0, 0, by_hand, False, data)

    def _load(self, name, funcs, replace, version, refuse, by_hand, noisy, data):
        self.count += 1
        label = f"{name}{self.count}"
        refuses = {data.draw(st.sampled_from(sorted(funcs))): refuse} if refuse else {}
        patch = model.Patch(name, label, funcs, replace, version, refuses)
        made = lp.Patch(
            name,
            [self._object(patch, module, by_hand, noisy) for module in funcs],
            replace=replace,
            states=[lp.State("s", version)] if version else [],
        )
        what = f"load {label} {funcs}{' by hand' * by_hand}{' replace' * replace} v{version} {refuses}"
        self.both(what, self.model.load(patch), lambda: lp.enable_patch(made))

    def _object(self, patch, module, by_hand, noisy):
        source = SOURCE.replace("'old'", repr(patch.label))
        if by_hand:
            space = {}
            exec(compile(source, "by_hand.py", "exec"), space)
            funcs = [lp.Func(function, space[function]) for function in patch.funcs[module]]
        else:
            codes = kit.bodies(source)
            funcs = [lp.Func(function, lp.Body(codes[function, 1])) for function in patch.funcs[module]]

        def callback(which):
            def call(obj):
                prev = lp.get_prev_state("s")
                said = f"{patch.label} {which} {obj.name} {obj.module_state} {prev.version if prev else 0}"
                self.recorder.lines.append(said)
                if which == "pre_patch":
                    return -patch.refuses.get(module, 0)
                return "what the other three return is nobody's business" if noisy else None

            return call

        return lp.Object(module, funcs, callbacks=lp.Callbacks(**{which: callback(which) for which in CALLBACKS}))

    @rule(name=names, enabled=st.booleans())
    def write(self, name, enabled):
        self.both(f"{name}={enabled}", self.model.write(name, enabled), lambda: lp.write_enabled(name, enabled))

    @precondition(lambda self: self.model.changing is not None)
    @rule()
    def reverse(self):
        patch = self.model.changing
        self.write(patch.name, not patch.enabled)

    @precondition(lambda self: self.model.changing is None and self.model.listed)
    @rule(data=st.data())
    def disable(self, data):
        self.write(data.draw(st.sampled_from(self.model.listed)).name, False)

    @rule(name=names)
    def force(self, name):
        self.both(f"force {name}", self.model.force(name), lambda: lp.force_transition(name))

    @precondition(lambda self: self.model.loaded)
    @rule(data=st.data())
    def unload(self, data):
        name = data.draw(st.sampled_from(sorted(self.model.loaded)))
        self.both(f"unload {name}", self.model.unload(name), lambda: lp.unload_patch(name))

    @precondition(lambda self: self.model.changing is not None)
    @rule(count=st.sampled_from((1, 1, 1, 2, 16)))
    def ticks(self, count):
        for _ in range(count):
            self.model.tick()

        def act():
            for _ in range(count):
                tick()

        self.both(f"{count} rounds", 0, act)

    # -- tasks ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.imported and len(self.threads) < 3)
    @rule(function=functions, data=st.data())
    def enter(self, function, data):
        module = data.draw(st.sampled_from(sorted(self.model.imported)))
        state = self.model.main
        holder = model.Holder(module, function, self.model.version(module, function, state), state)
        gate, worker = kit.Gate(), kit.Worker()
        future = worker.begin(getattr(sys.modules[module], function), gate)
        gate.arrived()
        holder.future = future
        self.history.append(f"enter {module}.{function}")
        self.model.holders.append(holder)
        self.threads.append((holder, gate, worker))
        self.compare(f"enter {module}.{function}")

    @precondition(lambda self: self.threads)
    @rule(data=st.data())
    def leave(self, data):
        holder, gate, worker = self.threads.pop(data.draw(st.integers(0, len(self.threads) - 1)))
        gate.open()
        assert holder.future.result(kit.PATIENCE) == holder.version
        worker.close()
        self.model.holders.remove(holder)
        self.history.append("leave")
        self.compare("leave")

    # -- modules -------------------------------------------------------------------------------------

    def _free(self, module):
        return all(holder.module != module for holder in self.model.holders)

    @rule(module=modules)
    def load_module(self, module):
        expected = self.model.load_module(module)
        self.both(f"import {module}", expected, lambda: importlib.import_module(module))

    @rule(module=modules)
    def unload_module(self, module):
        if self._free(module):
            self.both(f"unload {module}", self.model.unload_module(module), lambda: lp.unload_module(module))

    @rule(module=modules)
    def reload(self, module):
        if module in self.model.imported and self._free(module):
            expected = self.model.reload(module)
            self.both(f"reload {module}", expected, lambda: importlib.reload(sys.modules[module]))

    @rule(module=modules)
    def delete(self, module):
        if module in self.model.imported and self._free(module):
            self.history.append(f"delete {module}")
            self.model.delete(module)
            del sys.modules[module]
            self.compare(f"delete {module}")
