"""The first of ours to run in a process that was not prepared: it serves the imports of livepatch from memory.

Executed there, never imported, by the script of `bundle.py`, in a thread of its own. It must get by with very little:
every time that it lets go of the interpreter's lock, as each step of an import from files does, a busy program keeps
the lock for a switch interval, which is 5 ms. Dozens of modules from a zip take seconds that way. So:

- All of livepatch is read in one go, compiled already, and made into code by one call that lets nobody in between. What
  is left to come from files is what it uses of the standard library and the program does not.
- Until everything is imported the switch interval is short. But where somebody is in C code that keeps the lock for
  longer than that, a short one only has us interrupted after each little step, at the price of one more such call. So
  then ours are longer turns, too.
- A fork should not happen meanwhile: the child would inherit import locks whose owner does not exist there, also of
  modules of the standard library, and wait for ever when it imports one. So a fork waits, up to a limit. One that is
  too late to wait, since it has called its hooks and waits for the interpreter's import lock, or that has waited
  enough, has a child that takes those locks away first (`_disinherit`).

Then the agent has its own ways with all that; of this here there remain functions that each fork calls and that do
nothing.
"""

# These are there in every interpreter, as `os` need not be. Nothing else may be imported before forks wait, see below;
# not even `__future__`, which is a module to import as any other: hence the quotes.
import posix
import sys
from _frozen_importlib import ModuleSpec, _module_locks  # type: ignore[attr-defined]

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

    def __init__(self, modules: "dict[str, CodeType | bytes]", hold_forks_up: "Callable[[], None]") -> None:
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

    def exec_module(self, module: "ModuleType") -> None:
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


def _know_main_thread(ident: int, threads: "Any") -> None:
    """Whoever imports `threading` first is its main thread, up to 3.12; let that be the one that it is."""
    if "threading" in sys.modules or hasattr(threads, "_get_main_thread_ident"):
        return
    inside: Any = __import__("threading")
    main = inside.main_thread()
    alive = threads.allocate_lock()
    alive.acquire()
    with inside._active_limbo_lock, inside._shutdown_locks_lock:
        inside._active.pop(main._ident, None)
        inside._active[ident] = main
        inside._shutdown_locks.discard(main._tstate_lock)
        inside._shutdown_locks.add(alive)
        main._ident, main._native_id, main._tstate_lock = ident, posix.getpid(), alive


def _disinherit(thread: int) -> None:
    """In a child: forget the imports in whose middle a thread was that does not exist here, so that they begin anew."""
    for name, reference in list(_module_locks.items()):
        if getattr(reference(), "owner", None) == thread:
            del _module_locks[name]
            sys.modules.pop(name, None)


class Turns:
    """The switch interval while we arrive. Somebody else who changes it meanwhile keeps what they want."""

    def __init__(self) -> None:
        self._agents: Any = None
        self._before = sys.getswitchinterval()
        self._set(_SWITCH_INTERVAL)

    def look(self, clock: "Any") -> None:
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

    def hand_over(self, agents: "Any") -> None:
        """From now on the agent sees to it: a client may come before all is imported."""
        agents.take_over(self._before, self._ours)
        self._agents = agents

    def end(self) -> None:
        if self._agents is not None:
            self._agents.leave()
        else:
            self.restore()

    def restore(self) -> None:
        if sys.getswitchinterval() == self._ours:
            sys.setswitchinterval(self._before)


def arrive(modules: "dict[str, CodeType | bytes]", threads: "Any", clock: "Any", main_thread: int | None) -> None:
    """Start the agent, and import all the rest of livepatch while it already answers.

    `threads` is the interpreter's own `_thread`, and `clock` its `time`, whatever the program has made of these;
    `main_thread` is the ident of the main thread, if that is not the one that has called the script.
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
        if arriving and threads.get_ident() != this_thread:
            arriving.clear()
            _disinherit(this_thread)
            turns.restore()
            if not finder.brought("livepatch"):  # else an agent of this child may still import the rest
                give_up()

    def hold_forks_up() -> None:
        posix.register_at_fork(before=before_fork, after_in_child=in_child)

    def imported(name: str) -> bool:
        try:
            __import__(name)
        except Exception:  # of a module of the program's, say, that has the name of one that this needs
            return False
        return True

    def give_up() -> None:
        for name in finder.names():
            if finder.brought(name):
                del sys.modules[name]
        go()

    def go() -> None:
        for index, other in enumerate(sys.meta_path):
            if other is finder:  # by a new list, as `cpython.remove_finder`, which may not be here
                sys.meta_path = sys.meta_path[:index] + sys.meta_path[index + 1 :]
                return

    finder = Finder(modules, hold_forks_up)
    hold_forks_up()
    try:
        turns.look(clock)
        sys.meta_path.append(finder)
        try:
            if main_thread is not None:
                _know_main_thread(main_thread, threads)
            import livepatch

            try:
                from livepatch.agent.turns import turns as agents

                turns.hand_over(agents)
            except ImportError:
                pass  # the program has an older livepatch of its own, which leaves the interval alone
            livepatch.start_agent(installed=False)
        except BaseException:
            give_up()
            raise
        if finder.brought("livepatch"):
            missing = [name for name in finder.names() if not imported(name)]
            if missing:  # whoever needs one of them hears the reason
                return
        modules.clear()
        go()
    finally:
        turns.end()
        arriving.clear()
        under_way.release()
