"""What a patch author writes, and what an administrator reads.

A `Patch` replaces functions (`Func`) in Python modules (`Object`). As in the kernel's structures, every
class keeps the author's part and the core's part apart: the first is set by the constructor and never
changes, the second belongs to the registry and is reset by `init()` each time the patch is enabled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

#: What an object that is the main program is called where a name must be shown.
BASE_OBJECT = "__main__"

#: And what it is called in the log and in the attribute tree, where the names are the kernel's.
KERNEL = "vmlinux"

#: The attributes of a function object that a `Body` may give new values.
BODY_ATTRIBUTES = ("__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__type_params__")


class LivepatchError(OSError):
    """An operation was refused and nothing was changed.

    `errno` is what the kernel returns in the same situation; `str()` is one sentence that says what is
    wrong and what to do.
    """

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)

    def __str__(self) -> str:
        return str(self.strerror)

    @property
    def symbol(self) -> str:
        """The errno's name, `EBUSY` and so on."""
        import errno

        if self.errno == errno.EDEADLK:
            return "EDEADLK"  # the table has only the last of its names
        return errno.errorcode.get(self.errno or 0, str(self.errno))


def reason(number: int) -> str:
    """The operating system's words for an errno."""
    return os.strerror(number)


class Body:
    """New code for a function, to run in the original's own globals and closure cells.

    This is what a patch built from source consists of. `attributes` holds the new values of those
    attributes in `BODY_ATTRIBUTES` that change; all others stay as each function object has them. It may be
    filled as late as the object's `pre_patch` callback.
    """

    __slots__ = ("attributes", "code")

    def __init__(self, code: CodeType, attributes: dict[str, Any] | None = None) -> None:
        self.code = code
        self.attributes: dict[str, Any] = {} if attributes is None else attributes


class Func:
    """One replaced function: the original's qualified name in its module, and what runs instead.

    `old_sympos` tells apart functions that share a qualified name (the getter and setter of a property,
    redefinitions): 0 means the name must be unique, n means the n-th in order of definition. An `immediate`
    function takes no part in the consistency model. `suspended="ignore"` lets suspended generators and
    coroutines of the function run on in their version without holding up a transition.

    `born` is for functions that the patch itself puts in place, in `pre_patch`: the code with which they are born,
    which is their original. It is not looked up, and nothing of that name need exist.
    """

    __slots__ = (
        "born",
        "immediate",
        "new_func",
        "nop",
        "old_code",
        "old_name",
        "old_sympos",
        "patched",
        "suspended",
        "transition",
        "twins",
    )

    def __init__(
        self,
        old_name: str,
        new_func: FunctionType | Body | Callable[..., Any] | None,
        *,
        old_sympos: int = 0,
        immediate: bool = False,
        suspended: str = "wait",
        born: CodeType | None = None,
    ) -> None:
        # The author's part.
        self.born = born
        self.old_name = old_name
        self.new_func = new_func
        self.old_sympos = old_sympos
        self.immediate = immediate
        self.suspended = suspended
        self.init()

    def init(self) -> None:
        """Reset the core's part.

        (patched, transition) goes 00 -> 01 -> 11 -> 10 while patching and 10 -> 11 -> 01 -> 00 while
        unpatching. `transition` is set on all functions of a patch, also on those of absent modules, so that a
        module that comes in the middle is treated like all others.
        """
        self.nop = False  # made by an atomic replace: it means "run the original"
        self.old_code: CodeType | None = None  # the original, once the object is loaded
        self.twins: tuple[CodeType, ...] = ()  # more code objects of the same definition, if it was made more than once
        self.patched = False  # it is on its redirection's stack
        self.transition = False  # it is being applied or reverted

    @property
    def key(self) -> tuple[str, int]:
        """Identity within an object; positions 0 and 1 collide, as in the kernel's tree."""
        return self.old_name, self.old_sympos or 1

    def __repr__(self) -> str:
        return f"<Func {self.old_name},{self.old_sympos or 1}>"


class Callbacks:
    """Called with the `Object`, each optional: around patching and unpatching of a loaded object.

    `pre_patch` refuses by raising or by returning anything but None or 0; a negative number is passed on as
    the errno. Exceptions in the other three are logged and swallowed: a transition cannot be stopped there.
    They run under the registry's lock: they must not enable, disable or unload patches.
    """

    __slots__ = ("post_patch", "post_unpatch", "pre_patch", "pre_unpatch")

    def __init__(
        self,
        pre_patch: Callable[[Object], object] | None = None,
        post_patch: Callable[[Object], object] | None = None,
        pre_unpatch: Callable[[Object], object] | None = None,
        post_unpatch: Callable[[Object], object] | None = None,
    ) -> None:
        self.pre_patch = pre_patch
        self.post_patch = post_patch
        self.pre_unpatch = pre_unpatch
        self.post_unpatch = post_unpatch


class Value:
    """A name that means something else when the patch is in force: of a module, a class, or any object.

    `by_world`: while a transition runs, each task sees the value of its world, as far as `values.py` can do that;
    otherwise the name changes when the transition is over.
    """

    __slots__ = ("by_world", "is_set", "name", "new", "old", "place", "seen")

    def __init__(self, place: Any, name: str, new: Any, old: Any, *, by_world: bool = True) -> None:
        self.place = place
        self.name = name
        self.new = new
        self.by_world = by_world
        # The core's part.
        self.seen = old  # what was there when the patch came
        self.old = old  # what it goes back to
        self.is_set = False


class Object:
    """One Python module that a patch touches, by dotted name; None is the main program.

    The module need not be imported: then the object waits for it. Callbacks find the live module in `module`
    and "LIVE", "COMING" or "GOING" in `module_state` (both None while it is absent, the state also for the
    base object).

    `instances` has callbacks for data that must follow code, by the names of classes in the module: each is called with
    every instance that is alive at that moment, of subclasses, too; see `each_instance`. What they return does not
    matter. A `pre_patch` that raises refuses the patch. Of the others, exceptions are counted and logged.
    """

    __slots__ = (
        "after_body",
        "callbacks",
        "derived",
        "dynamic",
        "entry",
        "funcs",
        "instances",
        "module",
        "module_state",
        "name",
        "nops",
        "patched",
        "post_unpatch_due",
        "pre_unpatch_due",
        "values",
    )

    def __init__(
        self,
        name: str | None,
        funcs: Iterable[Func] = (),
        *,
        callbacks: Callbacks | None = None,
        instances: Mapping[str, Callbacks] | None = None,
    ) -> None:
        # The author's part.
        self.name = name
        self.funcs = list(funcs)
        self.callbacks = callbacks or Callbacks()
        self.instances = dict(instances or {})
        #: Its callbacks need what the module's body defines: a module that comes gets it when the body has run.
        self.after_body = bool(self.instances)
        self._init()

    def init(self) -> None:
        """Reset the core's part, the functions' included."""
        self._init()
        for func in self.funcs:
            func.init()

    def _init(self) -> None:
        self.module: ModuleType | None = None
        self.entry: object = None  # what was in sys.modules under its name; a body may put something else there
        self.module_state: str | None = None
        self.derived: list[Func] = []  # the functions around nested ones, which must make redirected closures
        self.values: list[Value] = []  # may be filled as late as the `pre_patch` callback
        self.nops: list[Func] = []  # what patches that are being replaced have here, and this one has not
        self.dynamic = False  # made by an atomic replace, to hold nothing but nops
        self.patched = False  # its functions are on their stacks; true as well if it has none
        self.post_unpatch_due = False  # pre_patch succeeded and post_unpatch has not run
        self.pre_unpatch_due = False  # post_patch has begun and pre_unpatch has not

    def all_funcs(self) -> list[Func]:
        """The author's functions, the derived ones and the nops, those nested deepest first."""
        return sorted([*self.funcs, *self.derived, *self.nops], key=lambda func: -func.old_name.count("<locals>"))

    def forget_module(self) -> None:
        """The module has gone, or was refused: the object waits for it again. A running transition is not touched."""
        self.module = self.entry = self.module_state = None
        self.derived, self.values = [], []
        self.patched = self.post_unpatch_due = self.pre_unpatch_due = False
        for func in [*self.funcs, *self.nops]:
            func.old_code = None
            func.twins = ()
            func.patched = False

    @property
    def shown_name(self) -> str:
        """The name for people."""
        return BASE_OBJECT if self.name is None else self.name

    @property
    def kernel_name(self) -> str:
        """The name in the log and in the attribute tree."""
        return KERNEL if self.name is None else self.name

    def __repr__(self) -> str:
        return f"<Object {self.shown_name}>"


class State:
    """A modification of the system that outlives single patches; see the kernel's system states."""

    __slots__ = ("data", "id", "version")

    def __init__(self, id: Any, version: int, data: Any = None) -> None:
        self.id = id
        self.version = version
        self.data = data


class Patch:
    """A set of replacements that takes effect, and is taken back, as one.

    The name is the patch's identity in the process. `replace` makes it cumulative: it takes the place of all patches
    that are enabled, in one transition. `consistency="stack"` moves a task when none of the patched functions is on its
    stack; "boundary" only between two pieces of work (requests, work items, `update_patch_state`). `states` tell later
    patches what this one has done to the system.
    """

    __slots__ = (
        "consistency",
        "description",
        "dynamic",
        "enabled",
        "forced",
        "given_up",
        "immediate",
        "lenient",
        "name",
        "objects",
        "replace",
        "states",
        "version",
    )

    def __init__(
        self,
        name: str,
        objects: Iterable[Object],
        *,
        replace: bool = False,
        consistency: str = "stack",
        immediate: bool = False,
        states: Sequence[State] = (),
        version: str = "",
        description: str = "",
    ) -> None:
        # The author's part.
        self.name = name
        self.objects = list(objects)
        self.replace = replace
        self.consistency = consistency
        self.immediate = immediate
        if immediate:
            for func in [func for obj in self.objects for func in obj.funcs]:
                func.immediate = True
        self.states = tuple(states)
        self.version = version
        self.description = description
        #: A module that comes and that the patch does not fit is loaded without it, instead of being refused. From
        #: then on the patch is not applied to any module; this is called, and shall see to it that it is disabled.
        self.lenient: Callable[[], object] | None = None
        self._init()

    def init(self) -> None:
        """Reset the core's part, objects and functions included."""
        self._init()
        for obj in self.objects:
            obj.init()

    def _init(self) -> None:
        self.dynamic: list[Object] = []  # for modules that only the patches being replaced touch
        self.enabled = False  # the goal: true as soon as an enabling transition started
        self.forced = False  # a forced transition took it away: it can never be unloaded
        self.given_up = False  # it is lenient, and a module has been loaded without it

    def all_objects(self) -> list[Object]:
        """The author's objects, and those that an atomic replace has added."""
        return [*self.objects, *self.dynamic]

    def __repr__(self) -> str:
        return f"<Patch {self.name}>"


# Not dataclasses: their module brings `inspect` with it, which is a third of all that the agent costs.


class PatchStatus(NamedTuple):
    """A patch as an administrator sees it. `enabled` is the goal; `transition` says it is not reached yet.

    `seconds`, `total` and `left` describe the running transition: its age, the tasks it found, and those that
    have not moved yet.
    """

    name: str
    enabled: bool
    transition: bool
    replace: bool
    stack_order: int
    forced: bool
    version: str = ""
    description: str = ""
    objects: Sequence[dict[str, Any]] = ()
    seconds: float = 0.0
    total: int = 0
    left: int = 0


class TaskStatus(NamedTuple):
    """A task as an administrator sees it; `patch_state` is -1 (no transition), 0 (unpatched) or 1 (patched).

    `blocking` holds the frames that keep it from moving and `stack` all of them, innermost first, each as
    "function (file:line)".

    `origin` says where the task came from: the function that it was made to run, "main thread", "worker of
    ThreadPoolExecutor"; of a suspended frame, what holds it. Of one that is in the way, `seconds` is for how long it is
    known to have been, and `hint` says what would let it go; of any other, None and nothing.
    """

    kind: str
    name: str
    ident: str
    patch_state: int
    blocking: Sequence[str] = ()
    stack: Sequence[str] = ()
    origin: str = ""
    seconds: float | None = None
    hint: str = ""
