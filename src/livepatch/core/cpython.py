"""Every fact about a particular CPython version, under a name, and no version check anywhere else.

Each fact has a test in `tests/core/test_cpython.py` that fails when it stops being true.
"""

from __future__ import annotations

import _imp
import importlib._bootstrap as _bootstrap
import importlib._bootstrap_external as _bootstrap_external
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import call
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .heap import referrers

VERSION = sys.version_info[:2]


def _function() -> None:
    """To be asked what functions have: their type would answer for itself."""


#: Annotations are computed on demand by `__annotate__` (PEP 649); reading `__annotations__` may raise.
LAZY_ANNOTATIONS = hasattr(_function, "__annotate__")

#: Functions have `__type_params__` (PEP 695).
TYPE_PARAMS = hasattr(_function, "__type_params__")

#: A frame's `f_locals` is a view of its variables (PEP 667). The older one is a copy that the frame keeps.
LOCALS_ARE_A_VIEW = VERSION >= (3, 13)

#: What is about to be called has a NULL above it on the stack; before, beneath it.
NULL_COMES_LAST = VERSION >= (3, 13)

#: `sys.remote_exec` exists (PEP 768).
REMOTE_EXEC = hasattr(sys, "remote_exec")

#: The name in `threading` of the function by which `Thread.start` starts a thread. The older one returns the
#: new thread's ident, the newer one is given a handle that has it.
THREAD_STARTER = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"


def unsupported() -> str | None:
    """Why this interpreter cannot be patched live, as one sentence, or None."""
    if sys.implementation.name != "cpython":
        return f"livepatch needs CPython, and this is {sys.implementation.name}."
    if VERSION < (3, 11):
        return "livepatch needs CPython 3.11 or newer."
    if "t" in getattr(sys, "abiflags", ""):  # of the build: also where its GIL is switched on
        return "livepatch does not support a free-threaded Python; run the program with the build that has the GIL."
    return None


def thread_ident(started: Any, arguments: dict[str, Any]) -> int | None:
    """The ident of a thread that `THREAD_STARTER` just started, from its result and keyword arguments."""
    handle = arguments.get("handle")
    return getattr(handle, "ident", None) if handle is not None else started


def importer(name: str) -> int | None:
    """The thread that is importing this module just now: it holds the module's own lock."""
    reference = _bootstrap._module_locks.get(name)  # type: ignore[attr-defined]
    lock = reference() if reference is not None else None
    owner: int | None = getattr(lock, "owner", None)
    return owner


def importing(name: str) -> bool:
    """Whether some thread is importing this module just now."""
    return importer(name) is not None


def current_task(asyncio: Any) -> Callable[[Any], Any]:
    """What gives the task that runs in a loop, in C. On 3.11 the function is written in Python, around a dict."""
    function: Callable[[Any], Any] = asyncio.current_task
    if isinstance(function, FunctionType) and hasattr(asyncio.tasks, "_current_tasks"):
        function = asyncio.tasks._current_tasks.get
    return function


def asyncio_tasks(asyncio: Any) -> Iterator[Any]:
    """All asyncio tasks that are not done, of every loop and thread; may be called from any thread.

    Up to 3.13 they are in weak sets, whose data is copied by one call in C, so that a loop that creates tasks
    meanwhile cannot disturb it. From 3.14 on, tasks of the C class are in lists inside the interpreter that can
    only be asked for by loop, and nothing lists the loops; but an instance refers to its class.
    """
    tasks = asyncio.tasks
    found: dict[Any, None] = {}
    for name in ("_all_tasks", "_scheduled_tasks"):
        weak_set = getattr(tasks, name, None)
        if weak_set is not None:
            found.update(dict.fromkeys(map(call, weak_set.data.copy())))
    found.update(dict.fromkeys(tuple(getattr(tasks, "_eager_tasks", ()))))
    if hasattr(tasks, "_c_all_tasks"):
        classes = [asyncio.Task]
        for cls in classes:
            classes += cls.__subclasses__()
        found.update(dict.fromkeys(referrers(*classes, of=asyncio.Task)))
    return (task for task in found if task is not None and not task.done() and _initialized(task))


def _initialized(task: Any) -> bool:
    """The heap also shows tasks whose `__init__` has not run to its end; such a one has no loop, or no coroutine."""
    try:
        return task.get_loop() is not None and task.get_coro() is not None
    except RuntimeError:
        return False


def import_owners(thread: int) -> set[int]:
    """The threads that hold the import locks for which this one waits, over any number of others.

    Each module has a lock of its own while it is imported. Who waits for which is known to the import system, which
    breaks circles of imports by it: one lock a thread on 3.11, a list of them from 3.12 on.
    """
    waiting: Any = getattr(_bootstrap, "_blocking_on", {})
    owners: set[int] = set()
    to_see = [thread]
    while to_see:
        locks = waiting.get(to_see.pop()) or ()
        for lock in list(locks) if isinstance(locks, list) else [locks]:
            owner = getattr(lock, "owner", None)
            if owner is not None and owner not in owners:
                owners.add(owner)
                to_see.append(owner)
    return owners


def exec_removed(code: CodeType, module: ModuleType) -> None:
    """Execute a module's body; tracebacks do not show the frames in between, as in any other import."""
    _bootstrap._call_with_frames_removed(exec, code, module.__dict__)  # type: ignore[attr-defined]


def runs_its_code(loader: object) -> bool:
    """The loader imports a module by executing what its `get_code` gives, and does nothing else."""
    ordinary = _bootstrap_external._LoaderBasics.exec_module  # type: ignore[attr-defined]
    return getattr(type(loader), "exec_module", None) is ordinary


def import_lock(name: str) -> Any:
    """The lock that is held while this module is imported, as a context manager."""
    return _bootstrap._ModuleLockManager(name)  # type: ignore[attr-defined]


def finders_lock() -> Any:
    """The lock that the import system holds while it asks a finder, one for all threads, as a context manager."""
    return _bootstrap._ImportLockContext()  # type: ignore[attr-defined]


@contextmanager
def without_finders_lock() -> Iterator[None]:
    """Let other threads ask finders while this one, which is a finder, waits for them."""
    held: list[object] = []
    try:
        with suppress(RuntimeError):  # when it is not ours any more
            held.extend(iter(_imp.release_lock, ...))  # in C: no exception of a signal handler can spoil the count
        yield
    finally:
        for _ in held:
            _imp.acquire_lock()


def remove_finder(finder: object) -> None:
    """Take a finder off `sys.meta_path`, if it is there.

    By a new list: an import in another thread may be in the middle of the old one, and would pass over the finder that
    moves up.
    """
    for index, other in enumerate(sys.meta_path):
        if other is finder:
            # Nothing in this line lets another thread in, which may be inserting a finder.
            sys.meta_path = sys.meta_path[:index] + sys.meta_path[index + 1 :]
            return
