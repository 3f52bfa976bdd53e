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
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from . import log, neighbours
from .carriers import Carriers, add_version, functions_of, is_version
from .codes import ITERABLE_COROUTINE, kind
from .kind import IDLE, PATCHED, UNPATCHED
from .model import Body, Func, LivepatchError
from .remembered import Remembered
from .stacks import Footprint
from .trampoline import forwarder, parameters, replace_constants, trampoline
from .transition import Token, Transition
from .values import substitute


def as_original(function: FunctionType, func: Func) -> FunctionType:
    """A function with the code, defaults and annotations that this one had before any patch; itself if unpatched."""
    redirection = redirections.get(id(func.old_code))
    if redirection is None:
        return function
    version = redirection.version(function, None)
    version.__annotations__ = redirection.saved(function).get("__annotations__") or {}
    return version


class Redirection(Carriers):
    """One original function with at least one replacement: the kernel's `klp_ops`."""

    def __init__(self, original: CodeType) -> None:
        super().__init__(original)
        self.stack: list[Func] = []  # front first
        self._direct: dict[int, CodeType] = {}
        self._trampolines: list[CodeType] = []
        # What belongs to the running transition, if it touches this function.
        self._transition: Transition | None = None
        self._nested: dict[int, Redirection] = {}
        self._births: dict[int, CodeType] = {}  # by state
        self._values: tuple[int, dict[str, object]] = IDLE, {}  # for the code of one state; see `values.py`
        self._versions: tuple[Transition, Func | None, Func] | None = None  # what it chooses between

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
        """Take the function objects that belong to it; see `Carriers`."""
        self.adopt_among(found, redirections.values())

    def check_removable(self, func: Func) -> None:
        """Raise LivepatchError (EBUSY) if something of a version would stay in somebody else's code without it.

        A wrapper around a copy does not mind, as long as it need not pass on what the other version has no use for.
        """
        for function in self.strangers():
            copies = [copy for copy in self.live() if neighbours.reaches(function, [copy])]
            alike = copies and _called_alike(
                self.original, self.version(copies[0], self.below(func)), self.version(copies[0], func)
            )
            if not alike:
                raise neighbours.kept(func.old_name, function)

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

    def install(
        self,
        transition: Transition,
        nested: dict[int, Redirection],
        cached: set[int],
        values: tuple[int, dict[str, object]],
    ) -> None:
        """Put trampolines into all function objects.

        `nested` are redirections in the same patch, by original code; `cached` the ids of the functions behind caches;
        `values` are global names that mean something else in the world of a state.
        """
        func = self.front()
        assert func is not None
        self._transition, self._nested, self._values = transition, dict(nested), values
        below = self.below(func)
        self._versions = transition, below, func
        counted = kind(self.original) == "function"
        track = _tracker(self, transition, func)
        # A cache stores a result after the trampoline around the call is gone. If leaving it moved the task, the
        # transition could complete, and empty the cache, before that.
        switch = not any(id(function) in cached for function in self.functions())
        leaving = _returner(transition, counted, switch), _leaver(transition)
        for function in self.live():
            self.notice(function)
            versions = self.version(function, below), self.version(function, func)
            for state, version in enumerate(versions):
                if is_version(version):
                    version.__code__ = self._with_births(version.__code__, state)
            enter = _enterer(transition, self.original, versions, counted, weakref.ref(function))
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
            self.install(self._transition, self._nested, cached, self._values)
        else:
            self.settle()

    def _with_births(self, code: CodeType, state: int) -> CodeType:
        """The code of a version as it runs during the transition: what it gives birth to is redirected."""
        births = {key: inner.birth(state) for key, inner in self._nested.items() if inner is not self}
        copy = replace_constants(code, births)
        if state == self._values[0]:
            copy = substitute(copy, self._values[1])
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
        """Give all function objects what is in front, directly. Code that somebody else has put there stays."""
        front = self.front()
        code = self.direct(front)
        ours = {id(known) for known in self.codes()}
        for function in self.functions():
            mine = id(function.__code__) in ours
            self.notice(function)
            self.give(function, self.attributes(function, front), with_defaults=mine)
            if mine:
                function.__code__ = code

    def stale(self) -> list[CodeType]:
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
        self._values = IDLE, {}
        self._trampolines = []
        self._births = {}
        # By id: another `Func` may get the id of one that was taken off.
        self._direct = {id(func): self.direct(func) for func in self.stack}


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
    add_version(made)
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
    transition: Transition,
    original: CodeType,
    versions: tuple[Any, Any],
    counted: bool,
    function: weakref.ref[FunctionType],
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
        caller = frame(1)
        state, token = choose(counted, caller.f_back)
        if state is None:
            return _late(original, function(), counted, caller) or (versions[transition.goal.state], None)
        return versions[state], token

    return enter


def _late(original: CodeType, function: FunctionType | None, counted: bool, frame: FrameType) -> tuple[Any, Any] | None:
    """Where a call goes on to that comes through a trampoline whose transition is gone: a version, and a token.

    Mostly to the function itself, which carries other code by now. But somebody may have put the trampoline back into
    it, or put code there that calls a copy of it, with this trampoline.
    """
    if function is None:
        return None
    redirection = redirections.get(id(original), Redirection(original))
    if function.__code__ is not frame.f_code and any(function.__code__ is code for code in redirection.codes()):
        return function, None
    redirection, func, state, token = _in_force(redirection, counted, frame)
    version = redirection.version(function, func)
    if state is not None and is_version(version):
        version.__code__ = redirection._with_births(version.__code__, state)
    return version, token and token[1]  # it is counted there, and moved by the next round


def _in_force(
    last: Redirection, counted: bool, frame: FrameType
) -> tuple[Redirection, Func | None, int | None, tuple[Transition, Token] | None]:
    """What a call gets just now: the redirection, the version, its state in a running transition, and a token for that.

    For calls that come through code of a time that may be over; `last` is the redirection of that time.
    """
    while True:
        redirection = redirections.get(id(last.original), last)
        versions = redirection._versions
        if versions is None:
            return redirection, redirection.front(), None, None
        transition, below, func = versions
        state, token = transition.choose(counted, frame.f_back)
        if state is not None:
            late = (transition, token) if token is not None else None
            return redirection, func if state == PATCHED else below, state, late


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
        add_version(version)
        return version, token

    return enter


def _stub_enterer(stubbed: Redirection, exact: bool) -> Callable[..., Any]:
    """See `Redirection.make_stub`. It may outlive its redirection, and serve another one of the same original."""
    original = stubbed.original
    counted = kind(original) == "function"

    def enter(cells: FunctionType | None = None) -> tuple[Any, Any]:
        frame = sys._getframe(1)
        redirection, func, state, token = _in_force(stubbed, counted, frame)
        if not exact and func is not None and isinstance(func.new_func, FunctionType):
            return func.new_func, token
        if not exact:
            # Only the function object has the defaults of this version.
            found = functions_of([frame.f_code])[id(frame.f_code)]
            if found:
                return redirection.version(found[-1], func), token
        code = redirection.direct(func)
        if state is not None:
            code = redirection._with_births(code, state)
        known = dict(zip(original.co_freevars, cells.__closure__ or (), strict=True)) if cells else {}
        closure = tuple(known[name] for name in code.co_freevars)
        version = FunctionType(code, frame.f_globals, code.co_name, None, closure or None)
        add_version(version)
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


def _tracker(redirection: Redirection, transition: Transition, func: Func) -> Callable[[Any], Any]:
    track, later = transition.track, _stub_tracker(redirection)
    if func.suspended == "ignore":
        return lambda started: started

    def follow(started: Any) -> Any:
        if transition.gone:
            return later(started)
        track(started)
        return started

    return follow
