"""The interpreter's own threads, locks, clock and poll, whatever somebody has put in their place.

gevent and eventlet replace what is in `threading`, `_thread`, `time`, `select` and `os` by cooperative versions, before
or after livepatch is imported, and tools for tests replace the clock. livepatch needs the real ones: its lock has to
hold threads up, and its agent has to run while every greenlet is stuck. Those replacements are made in the modules that
everybody imports; so these here are modules of our own, made from the same C code.
"""

from __future__ import annotations

import importlib.util
import posix
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _own(name: str) -> Any:
    """A second instance of a module that is written in C."""
    __import__(name)
    spec = sys.modules[name].__spec__
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_thread, _time = _own("_thread"), _own("time")

RLock: type[Any] = _thread.RLock
allocate_lock: Callable[[], Any] = _thread.allocate_lock
get_ident: Callable[[], int] = _thread.get_ident
get_native_id: Callable[[], int] = _thread.get_native_id
start_new_thread: Callable[..., int] = _thread.start_new_thread
local: type[Any] = _thread._local

read, write = posix.read, posix.write

monotonic: Callable[[], float] = _time.monotonic
process_time: Callable[[], float] = _time.process_time
sleep: Callable[[float], None] = _time.sleep
time: Callable[[], float] = _time.time


def poll_type() -> Any:
    """The type of objects like `select.poll()`; not at import, since only the agent needs it."""
    return _own("select").poll
