"""A module to be patched, made of text: the old source, the new one, and the patch from one to the other."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import livepatch as lp
from livepatch.core.codes import definitions

NAME = "bench_target"

#: What is called; `outer` calls it from inside of the patch, and a thread in `park` keeps a transition from ending.
SOURCE = """
import threading
gate = threading.Event()
parked = threading.Event()
def f(a, b=2):
    return "old"
def outer(run):
    return run()
def park():
    parked.set()
    gate.wait()
    return "old"
"""


def module(source: str, name: str = NAME) -> types.ModuleType:
    """A live module of this name."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)
    return made


def newer(source: str) -> str:
    return source.replace('"old"', '"new"').replace("return run()", "return (run())\n    pass")


def patch(source: str, *, name: str = "bench", module: str = NAME) -> lp.Patch:
    """A patch as it is built from source: all functions of the new source, as bodies."""
    code = compile(newer(source), f"<livepatch {name}>/{module}.py", "exec")
    funcs = [lp.Func(found.name, lp.Body(found.code)) for found in definitions(code)]
    return lp.Patch(name, [lp.Object(module, funcs)])


@contextmanager
def held(target: types.ModuleType, patch: lp.Patch) -> Iterator[None]:
    """Enable the patch, with a thread parked in `park`: the transition lasts until the end of the block."""
    bystander = threading.Thread(target=target.park)
    bystander.start()
    target.parked.wait()
    lp.enable_patch(patch)
    try:
        yield
        assert lp.patches()[0].transition, "the transition did not wait for the parked thread"
    finally:
        target.gate.set()
        bystander.join()


def take_back(patch: lp.Patch) -> None:
    """Wait for the end of the transition, disable and unload."""
    assert lp.wait(patch.name, 60)
    lp.disable_patch(patch.name, timeout=60)
    lp.unload_patch(patch.name)
