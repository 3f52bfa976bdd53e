"""Redirection: which version of a function a call reaches, and how it gets there.

Outside of a transition a function object carries the code of the version in front *directly*: a patched function
costs exactly what an ordinary one costs. While a transition that touches it runs, it carries a trampoline
(`trampoline.py`), which asks the transition for the state of the running task and calls that version.

A `Redirection` belongs to one original code object, not to a name and not to a function object: one `def` gives one
code object and any number of functions that carry it (closures, clones, whatever decorators, registries and partials
hold them). They are found by asking the garbage collector who refers to the code. Code objects compare by value, so
everything here is keyed by identity and keeps what it keys.

Closures born while a transition runs must be redirected from birth: their code is a constant in the enclosing
function, so in both of its versions that constant is a birth trampoline until the transition has completed. In the
same way the functions of a module that comes under a patch are born redirected (`modules.py`): the code that its body
makes them of is a *stub*, which looks up with every call what is in force.

Several attributes change together, and the thread may be switched between any two steps. The trampoline
ignores defaults, so `__code__` comes first on the way in, and last on the way out.
"""

from __future__ import annotations

import errno
import sys
import weakref
from collections.abc import Callable, Iterable
from types import CellType, CodeType, FunctionType
from typing import Any

from . import cpython, log
from .codes import ITERABLE_COROUTINE, kind
from .heap import referrers
from .model import Body, Func, LivepatchError
from .stacks import Footprint
from .trampoline import forwarder, parameters, replace_constants, trampoline
from .transition import PATCHED, UNPATCHED, Transition

_COPIED = ("__defaults__", "__kwdefaults__", "__doc__")

#: The private functions that stand for versions during a transition; they carry originals' code, too.
_version_functions: weakref.WeakSet[FunctionType] = weakref.WeakSet()


def is_version(function: FunctionType) -> bool:
    """This function object is livepatch's own, although it carries a module's code."""
    return function in _version_functions


def as_original(function: FunctionType, func: Func) -> FunctionType:
    """A function with the code, defaults and annotations that this one had before any patch; itself if unpatched."""
    redirection = redirections.get(id(func.old_code))
    if redirection is None:
        return function
    version = redirection.version(function, None)
    version.__annotations__ = redirection.saved(function).get("__annotations__") or {}
    return version


def functions_of(codes: Iterable[CodeType]) -> dict[int, list[FunctionType]]:
    """All function objects that carry one of the codes, by the code's id: one pass over the heap."""
    wanted = {id(code): code for code in codes}
    found: dict[int, list[FunctionType]] = {key: [] for key in wanted}
    for thing in referrers(*wanted.values()):
        if type(thing) is FunctionType and id(thing.__code__) in wanted and not is_version(thing):
            found[id(thing.__code__)].append(thing)
    return found


class Redirection:
    """One original function with at least one replacement: the kernel's `klp_ops`."""

    def __init__(self, original: CodeType) -> None:
        self.original = original
        self.nested = "<locals>" in original.co_qualname
        self.twins: tuple[CodeType, ...] = ()  # other code objects of the same definition
        self.stack: list[Func] = []  # front first
        self.functions: list[weakref.ref[FunctionType]] = []
        self._saved: weakref.WeakKeyDictionary[FunctionType, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._direct: dict[int, CodeType] = {}
        self._trampolines: list[CodeType] = []
        # What belongs to the running transition, if it touches this function.
        self._transition: Transition | None = None
        self._nested: dict[int, Redirection] = {}
        self._births: dict[int, CodeType] = {}  # by state
        self._versions: tuple[Transition, Func | None, Func] | None = None  # what it chooses between
        self.stub: CodeType | None = None  # what functions of a module that is just coming are born with

    # -- the versions -------------------------------------------------------------------------------

    def front(self) -> Func | None:
        """The version that is in force, or will be when the running transition completes; None: the original."""
        return self.stack[0] if self.stack else None

    def below(self, func: Func) -> Func | None:
        """The version beneath a function; None: the original."""
        at = self.stack.index(func) + 1
        return self.stack[at] if at < len(self.stack) else None

    def direct(self, func: Func | None) -> CodeType:
        """The code that function objects carry when this version is in force."""
        if func is None or func.nop:
            return self.original
        code = self._direct.get(id(func))
        if code is None:
            code = self._direct[id(func)] = self._make_direct(func)
        return code

    def _make_direct(self, func: Func) -> CodeType:
        new = func.new_func
        if not isinstance(new, Body):
            return forwarder(self.original, new)
        if new.code.co_freevars != self.original.co_freevars:
            return forwarder(self.original, self._bind(func, new))
        flags = new.code.co_flags | self.original.co_flags & ITERABLE_COROUTINE
        return new.code if flags == new.code.co_flags else new.code.replace(co_flags=flags)

    def _bind(self, func: Func, body: Body) -> FunctionType:
        """A function for new code that uses `super()` or `__class__` where the old did not, or no longer does."""
        function = next(iter(self.live()), None)
        path = func.old_name.split(".")[:-1]
        if function is not None and not body.code.co_freevars:
            return _clone(body.code, function, {**self.saved(function), **body.attributes}, None)
        if body.code.co_freevars == ("__class__",) and function is not None and path and "<locals>" not in path:
            owner: Any = function.__globals__.get(path[0])
            for name in path[1:]:
                owner = getattr(owner, name, None)
            if isinstance(owner, type):
                return _clone(body.code, function, {**self.saved(function), **body.attributes}, (CellType(owner),))
        raise LivepatchError(
            errno.EINVAL,
            f"'{func.old_name}' cannot be given the free variables of its new version; rebuild the patch.",
        )

    def code_of(self, func: Func | None) -> list[CodeType]:
        """All code that runs when this version does."""
        if func is None or func.nop:
            codes = [self.original, *self.twins]
        elif isinstance(func.new_func, Body):
            codes = [func.new_func.code, self.direct(func)]
        else:
            assert func.new_func is not None
            codes = [func.new_func.__code__, self.direct(func)]
        return codes + [copy for copy, base in _copies.of(self.original) if any(base is code for code in codes)]

    def codes(self) -> list[CodeType]:
        """All code under which a function object of this redirection can be found."""
        known = [
            self.original,
            *self.twins,
            *self._direct.values(),
            *self._births.values(),
            *self._trampolines,
            *self.stale(),
        ]
        known += [self.stub] if self.stub is not None else []
        return list({id(code): code for code in known}.values())

    def redirect(self, func: Func, code: CodeType) -> None:
        """From now on this is the code of a version that was made for it by the core."""
        assert isinstance(func.new_func, Body)
        func.new_func.code = code
        self._direct.pop(id(func), None)

    # -- function objects ---------------------------------------------------------------------------

    def adopt(self, found: dict[int, list[FunctionType]]) -> None:
        """These are the function objects now; see `functions_of`.

        Whoever carries the original's code is one. Of those that carry a version's, only closures can be new; any other
        that was never patched has it from elsewhere, and it is not ours to exchange.
        """
        theirs = {id(code) for code in (self.original, self.stub, *self.twins)}
        mine = [
            function
            for code in self.codes()
            for function in found.get(id(code), ())
            if id(code) in theirs or self.nested or function in self._saved
        ]
        self.functions = [weakref.ref(function) for function in mine]

    def live(self) -> list[FunctionType]:
        """The function objects that are still there."""
        return [function for reference in self.functions if (function := reference()) is not None]

    def saved(self, function: FunctionType) -> dict[str, Any]:
        """What the function had before it was patched for the first time, or was born with."""
        attributes = self._saved.get(function)
        if attributes is None:
            attributes = {name: getattr(function, name) for name in _COPIED}
            if cpython.LAZY_ANNOTATIONS and function.__annotate__ is not None:  # type: ignore[attr-defined]
                attributes["__annotate__"] = function.__annotate__  # type: ignore[attr-defined]
            else:
                attributes["__annotations__"] = function.__annotations__
            if cpython.TYPE_PARAMS:
                attributes["__type_params__"] = function.__type_params__  # type: ignore[attr-defined]
            self._saved[function] = attributes
        return attributes

    def attributes(self, function: FunctionType, func: Func | None) -> dict[str, Any]:
        """The attributes that a function object has when a version is in force."""
        attributes = dict(self.saved(function))
        changes: dict[str, Any] = {}
        if func is not None and isinstance(func.new_func, Body):
            changes = func.new_func.attributes
        elif func is not None and isinstance(func.new_func, FunctionType):
            changes = dict(self.saved(func.new_func))
            if self.nested:  # every closure was born with defaults of its own
                del changes["__defaults__"], changes["__kwdefaults__"]
        if "__annotations__" in changes or "__annotate__" in changes:
            attributes.pop("__annotations__", None)
            attributes.pop("__annotate__", None)
        return attributes | changes

    def version(self, function: FunctionType, func: Func | None) -> FunctionType:
        """A private function that runs a version with the globals and cells of `function`."""
        attributes = self.attributes(function, func)
        if func is not None and isinstance(func.new_func, FunctionType):
            new = func.new_func
            return _clone(new.__code__, new, attributes, new.__closure__) if self.nested else new
        code = func.new_func.code if func is not None and isinstance(func.new_func, Body) else self.original
        if code.co_freevars not in ((), self.original.co_freevars):
            code = self.direct(func)
        return _clone(code, function, attributes, function.__closure__ if code.co_freevars else None)

    # -- in and out of a transition -----------------------------------------------------------------

    def install(self, transition: Transition, nested: dict[int, Redirection], cached: set[int]) -> None:
        """Put trampolines into all function objects.

        `nested` are redirections in the same patch, by original code; `cached` the ids of the functions behind caches.
        """
        func = self.front()
        assert func is not None
        self._transition, self._nested = transition, dict(nested)
        below = self.below(func)
        self._versions = transition, below, func
        counted = kind(self.original) == "function"
        track = _tracker(transition, func)
        # A cache stores a result after the trampoline around the call is gone. If leaving it moved the task, the
        # transition could complete, and empty the cache, before that.
        switch = not any(id(function) in cached for function in self.live())
        leaving = _returner(transition, counted, switch), _leaver(transition)
        for function in self.live():
            versions = self.version(function, below), self.version(function, func)
            for state, version in enumerate(versions):
                if is_version(version):
                    version.__code__ = self._with_births(version.__code__, state)
            enter = _enterer(transition, versions, counted, weakref.ref(function))
            code = trampoline(self.original, enter, track, *leaving, exact=_called_alike(self.original, *versions))
            self._trampolines.append(code)
            function.__code__ = code
        if self.nested and not self._births:
            owns = self.direct(below), self.direct(func)
            codes = self._with_births(owns[UNPATCHED], UNPATCHED), self._with_births(owns[PATCHED], PATCHED)
            for state, own in enumerate(owns):
                enter = _birth_enterer(transition, self.original, codes, own, counted)
                self._births[state] = trampoline(own, enter, track, *leaving, exact=True, birth=True)

    def arrive(self, cached: set[int]) -> None:
        """Function objects were adopted late: give them what all others have."""
        if self._transition is not None:
            self.install(self._transition, self._nested, cached)
        else:
            self.settle()

    def _with_births(self, code: CodeType, state: int) -> CodeType:
        """The code of a version as it runs during the transition: what it gives birth to is redirected."""
        births = {key: inner.birth(state) for key, inner in self._nested.items() if inner is not self}
        copy = replace_constants(code, births)
        if copy is not code:
            _copies.add(copy, self.original, code)
        return copy

    def birth(self, state: int) -> CodeType:
        """The code with which a closure is born in one of the two worlds while the transition runs."""
        return self._births[state]

    def make_stub(self) -> CodeType:
        """The code with which functions of a module that comes are born, until `adopt` finds them.

        It has the parameters of the original, so that each function's own defaults are bound, unless a version is a
        function written by hand, which has parameters and defaults of its own.
        """
        if self.stub is None:
            exact = self.nested or all(isinstance(func.new_func, Body) for func in self.stack)
            enter = _stub_enterer(self, exact)
            self.stub = trampoline(
                self.original, enter, _stub_tracker(self), _stub_returner(self), _stub_leaver(), exact=exact, birth=True
            )
            _stale.add(self.stub, self.original)
        return self.stub

    def current(self) -> CodeType:
        """The code for a closure that was born too late to be found: it asks for it with every call."""
        return self.birth(UNPATCHED) if self._transition is not None else self.direct(self.front())

    def mark(self, footprint: Footprint, state: int) -> None:
        """Say what tasks must leave to reach a state; see the kernel's klp_check_stack."""
        func = self.front()
        if func is None or not func.transition or func.immediate:
            return
        below = self.below(func)
        for code in self.code_of(below if state == PATCHED else func):
            footprint.forbid(code)
        for code in self.code_of(func if state == PATCHED else below):
            footprint.expect(code)
        versions = [*self.code_of(below), *self.code_of(func)]
        for code in [*self._trampolines, *self._births.values(), *self.stale()]:
            footprint.add_trampoline(code, versions)

    def settle(self) -> None:
        """Give all function objects what is in front, directly. A function that somebody else changed stays so."""
        front = self.front()
        code = self.direct(front)
        ours = {id(known) for known in self.codes()}
        for function in self.live():
            if id(function.__code__) not in ours:
                continue
            for name, value in self.attributes(function, front).items():
                if name == "__annotations__" and cpython.LAZY_ANNOTATIONS:
                    function.__annotations__ = value
                elif getattr(function, name) is not value:
                    setattr(function, name, value)
            function.__code__ = code

    def stale(self) -> list[CodeType]:
        """Trampolines of earlier transitions that somebody is still in, or that late closures still carry."""
        return [code for code, _ in _stale.of(self.original)]

    def forget_transition(self) -> None:
        """No function object carries a trampoline any more: let go of everything that served them.

        Except for who is in one at this instant. It has chosen a version and may not have called it yet, which the
        stack does not show: the next transition that touches this function has to wait for it. The kernel waits here
        (klp_synchronize_transition); we remember the code for as long as a frame keeps it alive. A frame may also run a
        copy of a version that gives birth to trampolines, and make closures long after the transition.
        """
        for code in [*self._trampolines, *self._births.values()]:
            _stale.add(code, self.original)
        self._transition = self._versions = None
        self._nested = {}
        self._trampolines = []
        self._births = {}
        # By id: another `Func` may get the id of one that was taken off.
        self._direct = {id(func): self.direct(func) for func in self.stack}


class Remembered:
    """Code objects that somebody may still run, by weak reference, each with the original that it belongs to.

    A code object may die at any instant, in any thread, also in the garbage collection that a list of the entries
    starts: whoever goes through them goes through a copy, which is made without making other objects.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, CodeType, weakref.ref[CodeType]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, code: CodeType, original: CodeType, note: CodeType | None = None) -> None:
        key = id(code)
        self._entries[key] = id(original), note or original, weakref.ref(code, lambda _: self._entries.pop(key, None))

    def all(self) -> dict[int, CodeType]:
        """The notes of all, by the id of the code."""
        return {key: note for key, (_, note, reference) in self._entries.copy().items() if reference() is not None}

    def of(self, original: CodeType) -> list[tuple[CodeType, CodeType]]:
        """(code, note) of those of an original that are alive. The note is another code, or the original."""
        mine = [entry for entry in self._entries.copy().values() if entry[0] == id(original)]
        return [(code, note) for _, note, reference in mine if (code := reference()) is not None]


#: Trampolines of transitions that are over; most die at once.
_stale = Remembered()


def stand_ins() -> dict[int, CodeType]:
    """The original, by the id of every code that is livepatch's own and stands for it somewhere."""
    return _stale.all() | {id(code): r.original for r in redirections.values() for code in r.codes()}


#: Copies of versions that give birth to trampolines, each with what it is a copy of.
_copies = Remembered()

#: All redirections, by the id of the original code.
redirections: dict[int, Redirection] = {}


#: The global switch: the kernel's kernel.ftrace_enabled.
_allowed = True


def allow(enabled: bool) -> None:
    """Set the global switch. Raises LivepatchError (EBUSY) if it is to go off while something is redirected."""
    global _allowed
    if not enabled and redirections:
        raise LivepatchError(errno.EBUSY, "Functions are redirected by patches; disable these first.")
    _allowed = enabled


def check_allowed(funcs: Iterable[Func]) -> None:
    """Raise LivepatchError (EBUSY) if functions are to be redirected while that is off."""
    for func in funcs if not _allowed else ():
        log.error(f"failed to register ftrace handler for function '{func.old_name}' ({-errno.EBUSY})")
        raise LivepatchError(
            errno.EBUSY, f"'{func.old_name}' cannot be redirected: redirection is switched off in this process."
        )


def register(func: Func) -> None:
    """The first replacement of a function gets it a redirection. Raises like `check_allowed`."""
    assert func.old_code is not None
    check_allowed([func])
    redirection = redirections[id(func.old_code)] = Redirection(func.old_code)
    redirection.twins = func.twins


def _clone(
    code: CodeType, function: FunctionType, attributes: dict[str, Any], closure: tuple[CellType, ...] | None
) -> FunctionType:
    made = FunctionType(code, function.__globals__, function.__name__, attributes["__defaults__"], closure)
    made.__kwdefaults__ = attributes["__kwdefaults__"]
    made.__qualname__ = function.__qualname__
    _version_functions.add(made)
    return made


def _called_alike(original: CodeType, old: FunctionType, new: FunctionType) -> bool:
    """Whether a call means the same to two versions, defaults included, and to who only knows the original."""
    if not same_parameters(original, old.__code__) or not same_parameters(original, new.__code__):
        return False
    defaults = [
        [
            *map(id, version.__defaults__ or ()),
            *((name, id(value)) for name, value in (version.__kwdefaults__ or {}).items()),
        ]
        for version in (old, new)
    ]
    return defaults[0] == defaults[1]


def same_parameters(a: CodeType, b: CodeType) -> bool:
    """Whether calls that fit one fit the other."""
    return parameters(a) == parameters(b)


# -- what trampolines call; the hot path of a transition ---------------------------------------------------


def _enterer(
    transition: Transition, versions: tuple[Any, Any], counted: bool, function: weakref.ref[FunctionType]
) -> Callable[[], Any]:
    choose, frame, modules = transition.choose, sys._getframe, sys.modules
    moved = (versions[UNPATCHED], None), (versions[PATCHED], None)

    def enter() -> tuple[Any, Any]:
        if len(modules) != transition.modules:
            transition.find_current()
        fast = transition.fast
        if (task := transition.look()) in fast:
            return moved[fast.state]
        stay = transition.stay
        if task in stay:
            calls = transition.calls
            if counted:
                calls[task] = calls.get(task, 0) + 1
            return versions[stay.state], (calls, task)
        state, token = choose(counted, frame(1).f_back)
        if state is None:
            return function() or versions[transition.goal.state], None
        return versions[state], token

    return enter


def _birth_enterer(
    transition: Transition, original: CodeType, codes: tuple[CodeType, CodeType], own: CodeType, counted: bool
) -> Callable[..., Any]:
    def enter(cells: FunctionType | None = None) -> tuple[Any, Any]:
        frame = sys._getframe(1)
        state, token = transition.choose(counted, frame.f_back)
        if state is not None:
            code = codes[state]
        else:
            redirection = redirections.get(id(original))
            code = original if redirection is None else redirection.current()
        known = dict(zip(own.co_freevars, cells.__closure__ or (), strict=True)) if cells else {}
        closure = tuple(known[name] for name in code.co_freevars)
        version = FunctionType(code, frame.f_globals, code.co_name, None, closure or None)
        _version_functions.add(version)
        return version, token

    return enter


def _stub_enterer(stubbed: Redirection, exact: bool) -> Callable[..., Any]:
    """See `Redirection.make_stub`. It may outlive its redirection, and serve another one of the same original."""
    original = stubbed.original
    counted = kind(original) == "function"

    def enter(cells: FunctionType | None = None) -> tuple[Any, Any]:
        frame = sys._getframe(1)
        while True:
            redirection = redirections.get(id(original), stubbed)
            versions, func, state, token = redirection._versions, redirection.front(), PATCHED, None
            if versions is None:
                break
            transition, below, func = versions
            chosen, own = transition.choose(counted, frame.f_back)
            if chosen is not None:
                state, token = chosen, (transition, own) if own is not None else None
                func = func if state == PATCHED else below
                break
        if not exact and func is not None and isinstance(func.new_func, FunctionType):
            return func.new_func, token
        if not exact:
            # Only the function object has the defaults of this version.
            found = functions_of([frame.f_code])[id(frame.f_code)]
            if found:
                return redirection.version(found[-1], func), token
        code = redirection._with_births(redirection.direct(func), state) if versions else redirection.direct(func)
        known = dict(zip(original.co_freevars, cells.__closure__ or (), strict=True)) if cells else {}
        closure = tuple(known[name] for name in code.co_freevars)
        version = FunctionType(code, frame.f_globals, code.co_name, None, closure or None)
        _version_functions.add(version)
        return version, token

    return enter


def _stub_tracker(stubbed: Redirection) -> Callable[[Any], Any]:
    def follow(started: Any) -> Any:
        versions = redirections.get(id(stubbed.original), stubbed)._versions
        if versions is not None and versions[2].suspended == "wait":
            versions[0].track(started)
        return started

    return follow


def _stub_returner(stubbed: Redirection) -> Callable[[Any], bool]:
    counted = kind(stubbed.original) == "function"

    def returned(token: Any) -> bool:
        transition, own = token
        return not counted or transition.returned(own)

    return returned


def _stub_leaver() -> Callable[[Any], None]:
    def exit_switch(token: Any) -> None:
        transition, own = token
        transition.exit(own, sys._getframe(1).f_back)

    return exit_switch


def _returner(transition: Transition, counted: bool, switch: bool) -> Callable[[Any], bool]:
    returned = transition.returned if counted else bool
    return returned if switch else lambda token: returned(token) and False


def _leaver(transition: Transition) -> Callable[[Any], None]:
    leave, frame = transition.exit, sys._getframe

    def exit_switch(token: Any) -> None:
        leave(token, frame(1).f_back)

    return exit_switch


def _tracker(transition: Transition, func: Func) -> Callable[[Any], Any]:
    track = transition.track
    if func.suspended == "ignore":
        return lambda started: started

    def follow(started: Any) -> Any:
        track(started)
        return started

    return follow
