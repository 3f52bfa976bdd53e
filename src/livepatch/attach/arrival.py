"""The first of ours to run in a process that was not prepared: it serves the imports of livepatch from memory.

Executed there, never imported, by the script of `bundle.py`, in a thread of its own. It must get by with very little:
every time that it lets go of the interpreter's lock, as each step of an import from files does, a busy program keeps
the lock for a switch interval, which is 5 ms. Dozens of modules from a zip take seconds that way. So:

- All of livepatch is read in one go, compiled already, and made into code by one call that lets nobody in between. What
  is left to come from files is what it uses of the standard library and the program does not.
- Until everything is imported the switch interval is short. But where somebody is in C code that keeps the lock for
  longer than that, a short one only has us interrupted after each little step, at the price of one more such call. So
  then ours are longer turns, too.
- A fork must not happen meanwhile: the child would inherit import locks whose owner does not exist there, also of
  modules of the standard library, and wait for ever when it imports one. So a fork waits, up to a limit.

Then the agent has its own ways with all that; of this here there remain functions that each fork calls and that do
nothing.
"""

from __future__ import annotations

# These are there in every interpreter. Nothing else may be imported before forks wait, see below; not even `typing`.
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any

#: Where our code says that it is from. There is no such file, also not while the bundle is in a file.
_ROOT = "<livepatch>/"

#: In seconds, and such as nobody else chooses: who finds it knows that another attach is under way.
_SWITCH_INTERVAL = 101e-6

#: Seconds of the processor's time that make a turn of others a long one, and the switch interval then. It is no longer,
#: since on a busy machine it may be a mistake, whose price is that of one such turn whenever we read a file.
_LONG_TURN, _LONG_INTERVAL = 0.02, 0.01

#: Seconds for which we let others have their turn, to see how long it is; the next if nobody has woken up in time.
_LOOKS = (0.001, 0.002, 0.004)

#: Seconds that a fork waits at most: it may itself hold a lock that our imports wait for.
_FORK_PATIENCE = 2.0

#: These have the fork take locks, which our imports may want: who waits for us has to do it before that. What is
#: registered last is called first.
_FORK_HOOKS = ("core/fork.py", "agent/process.py")


class Finder:
    """Finds and loads what is in the bundle: code or source code, by its file's path below the package."""

    def __init__(self, modules: dict[str, CodeType | bytes], hold_forks_up: Callable[[], None]) -> None:
        self.modules = modules
        self._hold_forks_up = hold_forks_up

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, below = name.partition(".")
        if package != "livepatch" or (below and not self.brought("livepatch")):
            return None
        stem = below.replace(".", "/")
        for file in (f"{stem}/__init__.py".lstrip("/"), f"{stem}.py"):
            if file in self.modules:
                spec = ModuleSpec(name, self, origin=_ROOT + file, is_package=file.endswith("__init__.py"))  # type: ignore[arg-type]
                spec.has_location = True
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual kind of module will do."""

    def exec_module(self, module: ModuleType) -> None:
        file = str(module.__file__)
        code = self.modules[file.removeprefix(_ROOT)]
        exec(compile(code, file, "exec", dont_inherit=True) if isinstance(code, bytes) else code, module.__dict__)
        if file.removeprefix(_ROOT) in _FORK_HOOKS:
            self._hold_forks_up()

    def brought(self, name: str) -> bool:
        """Whether this module is there and came from here: the program may have a livepatch of its own."""
        spec = getattr(sys.modules.get(name), "__spec__", None)
        return getattr(spec, "loader", None) is self

    def names(self) -> list[str]:
        """All modules."""
        stems = [file.removesuffix(".py").removesuffix("__init__").rstrip("/") for file in self.modules]
        return [f"livepatch/{stem}".rstrip("/").replace("/", ".") for stem in stems]


class Turns:
    """The switch interval while we arrive. Somebody else who changes it meanwhile keeps what they want."""

    def __init__(self) -> None:
        self._before = sys.getswitchinterval()
        self._set(_SWITCH_INTERVAL)

    def look(self, clock: Any) -> None:
        """Find out whether others take long turns."""
        for seconds in _LOOKS:
            worked = clock.process_time()
            clock.sleep(seconds)
            turn = clock.process_time() - worked
            if turn > _LONG_TURN:
                self._set(_LONG_INTERVAL)
            if turn > seconds / 2:
                return

    def _set(self, seconds: float) -> None:
        sys.setswitchinterval(seconds)
        self._ours = sys.getswitchinterval()  # it is rounded

    def end(self) -> None:
        if sys.getswitchinterval() == self._ours:
            sys.setswitchinterval(self._before)


def arrive(modules: dict[str, CodeType | bytes], threads: Any, clock: Any) -> None:
    """Start the agent, and import all the rest of livepatch while it already answers.

    `threads` is the interpreter's own `_thread`, and `clock` its `time`, whatever the program has made of these.
    """
    turns = Turns()
    under_way = threads.allocate_lock()
    under_way.acquire()
    this_thread = threads.get_ident()
    arriving = [True]

    def before_fork() -> None:
        if arriving and threads.get_ident() != this_thread and under_way.acquire(timeout=_FORK_PATIENCE):
            under_way.release()

    def in_child() -> None:
        if arriving:
            arriving.clear()
            take_back()

    def hold_forks_up() -> None:
        os.register_at_fork(before=before_fork, after_in_child=in_child)

    def take_back() -> None:
        turns.end()
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)

    finder = Finder(modules, hold_forks_up)
    hold_forks_up()
    try:
        turns.look(clock)
        sys.meta_path.append(finder)
        try:
            import livepatch

            livepatch.start_agent(installed=False)
        except BaseException:
            for name in finder.names():
                if finder.brought(name):
                    del sys.modules[name]
            raise
        if finder.brought("livepatch"):
            for name in finder.names():
                __import__(name)
        modules.clear()
    finally:
        take_back()
        arriving.clear()
        under_way.release()
