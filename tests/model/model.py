"""What the kernel's livepatch does, as a small program without any function in it.

Sections 5 to 15 of the kernel's semantics, for two modules with two functions each: patches and their stacks, one
transition at a time, the four callbacks, modules that come and go, atomic replace, states. Every operation returns the
errno that it must fail with, 0 for success, and appends to `log` each line and callback in its order. A *version* is
the label of the patch that a function comes from, or "old".
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

FUNCTIONS = ("f", "g")
IDLE, UNPATCHED, PATCHED = -1, 0, 1
WORD = {PATCHED: "patching", UNPATCHED: "unpatching"}


@dataclass(eq=False)
class Patch:
    """As its author wrote it, and what became of it."""

    name: str
    label: str
    funcs: dict[str, tuple[str, ...]]  # by module, in order
    replace: bool = False
    version: int = 0  # of the system state "s"; 0: it has none
    refuses: dict[str, int] = field(default_factory=dict)  # what pre_patch returns, by module
    nops: dict[str, set[str]] = field(default_factory=dict)  # while it replaces others
    here: set[str] = field(default_factory=set)  # modules to which it is applied
    due: set[str] = field(default_factory=set)  # post_unpatch has to follow a pre_patch
    enabled: bool = False
    forced: bool = False

    def has(self, module: str, function: str) -> bool:
        return function in self.funcs.get(module, ()) or function in self.nops.get(module, ())

    def modules(self) -> list[str]:
        return [*self.funcs, *(module for module in self.nops if module not in self.funcs)]


@dataclass(eq=False)
class Holder:
    """A thread inside of a function, which it entered in this version."""

    module: str
    function: str
    version: str
    state: int = IDLE


class Model:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.listed: list[Patch] = []
        self.loaded: dict[str, Patch] = {}
        self.imported: set[str] = set()  # what is in sys.modules
        self.deleted: set[str] = set()  # patched, and taken out of there behind our back
        self.holders: list[Holder] = []
        self.changing: Patch | None = None
        self.goal = IDLE
        self.main = IDLE  # the state of the task that does all this
        self.rounds = 0

    # -- which version a call gets -------------------------------------------------------------------

    def stack(self, module: str, function: str) -> list[Patch]:
        return [patch for patch in self.listed if module in patch.here and patch.has(module, function)]

    def front(self, module: str, function: str) -> Patch | None:
        return next(reversed(self.stack(module, function)), None)

    def _label(self, patch: Patch | None, module: str, function: str) -> str:
        return patch.label if patch is not None and function in patch.funcs.get(module, ()) else "old"

    def version(self, module: str, function: str, state: int) -> str:
        stack = self.stack(module, function)
        if stack and stack[-1] is self.changing and state == UNPATCHED:
            stack.pop()
        return self._label(stack[-1] if stack else None, module, function)

    def call(self, module: str, function: str) -> str:
        """The main task calls a function; it moves when it leaves a trampoline."""
        version = self.version(module, function, self.main)
        if self.changing is not None and self.front(module, function) is self.changing:
            self.main = self.goal
        return version

    # -- callbacks -------------------------------------------------------------------------------------

    def _call(self, patch: Patch, which: str, module: str, state: str) -> None:
        if module in patch.funcs:  # what a replace has added has none
            self.log.append(f"{patch.label} {which} {module} {state} {self._prev()}")

    def _prev(self) -> int:
        """What get_prev_state("s") gives."""
        if self.changing is None:
            self.log.append("get_prev_state() has no answer outside of a transition; call it from the callbacks of one")
            return 0
        before = self.listed[: self.listed.index(self.changing)]
        return next((patch.version for patch in reversed(before) if patch.version), 0)

    def _pre_patch(self, patch: Patch, module: str, state: str) -> int:
        self._call(patch, "pre_patch", module, state)
        error = patch.refuses.get(module, 0)
        if error:
            self.log.append(f"pre-patch callback failed for object '{module}'")
        else:
            patch.due.add(module)
        return error

    def _post_unpatch(self, patch: Patch, module: str, state: str) -> None:
        if module in patch.due:
            patch.due.discard(module)
            self._call(patch, "post_unpatch", module, state)

    # -- patches ---------------------------------------------------------------------------------------

    def load(self, patch: Patch) -> int:
        self.sweep()
        if patch.name in self.loaded:
            return errno.EEXIST
        for other in self.listed:
            if other.version > patch.version and (patch.version or patch.replace):
                message = f"Livepatch patch ({patch.name}) is not compatible with the already installed livepatches."
                self.log.append(message)
                return errno.EINVAL
        if self.changing is not None:
            return errno.EBUSY
        if patch.replace:
            for other in self.listed:
                for module, functions in other.funcs.items():
                    added = set(functions) - set(patch.funcs.get(module, ()))
                    if added or module not in patch.funcs:
                        patch.nops.setdefault(module, set()).update(added)
        self.listed.append(patch)
        self.loaded[patch.name] = patch
        self.log.append(f"enabling patch '{patch.name}'")
        self._init(patch, PATCHED)
        for module in [module for module in patch.modules() if module in self.imported]:
            error = self._pre_patch(patch, module, "LIVE")
            if error:
                self.log.append(f"failed to enable patch '{patch.name}'")
                self.log.append(f"'{patch.name}': canceling patching transition, going to unpatch")
                self.goal = UNPATCHED
                self._complete()
                del self.loaded[patch.name]
                return error
            patch.here.add(module)
        self._start()
        patch.enabled = True
        self._try_complete()
        return 0

    def write(self, name: str, enabled: bool) -> int:
        self.sweep()
        patch = next((patch for patch in self.listed if patch.name == name), None)
        if patch is None:
            return errno.ENOENT
        if patch.enabled == enabled:
            return errno.EINVAL
        if patch is self.changing:
            self.log.append(
                f"'{name}': reversing transition from {WORD[self.goal]} to {WORD[1 - self.goal]}",
            )
            patch.enabled = enabled
            self.goal = 1 - self.goal
            self._start()
            return 0
        if self.changing is not None:
            return errno.EBUSY
        self._init(patch, UNPATCHED)
        for module in [module for module in patch.funcs if module in patch.here]:
            self._call(patch, "pre_unpatch", module, "LIVE")
        self._start()
        patch.enabled = False
        self._try_complete()
        return 0

    def force(self, name: str) -> int:
        self.sweep()
        patch = next((patch for patch in self.listed if patch.name == name), None)
        if patch is None:
            return errno.ENOENT
        if patch is not self.changing:
            return errno.EINVAL
        self.log.append("forcing remaining tasks to the patched state")
        self.main = self.goal
        for holder in self.holders:
            holder.state = self.goal
        if self.goal == UNPATCHED:
            patch.forced = True
        elif patch.replace:
            for other in self.listed:
                other.forced = other.forced or other is not patch
        return 0

    def unload(self, name: str) -> int:
        self.sweep()
        patch = self.loaded.get(name)
        if patch is None:
            return errno.ENOENT
        if patch.forced or patch in self.listed:
            return errno.EAGAIN
        del self.loaded[name]
        return 0

    # -- the transition --------------------------------------------------------------------------------

    def _init(self, patch: Patch, goal: int) -> None:
        self.log.append(f"'{patch.name}': initializing {WORD[goal]} transition")
        self.changing, self.goal = patch, goal
        self.main = 1 - goal
        for holder in self.holders:
            holder.state = 1 - goal

    def _start(self) -> None:
        assert self.changing is not None
        self.log.append(f"'{self.changing.name}': starting {WORD[self.goal]} transition")
        self.rounds = 0

    def _blocked(self, holder: Holder) -> bool:
        """It is in what must be left; a task in the goal is not looked at."""
        module, function = holder.module, holder.function
        if holder.state == self.goal or self.front(module, function) is not self.changing:
            return False
        return holder.version == self.version(module, function, 1 - self.goal)

    def tick(self) -> None:
        if self.changing is not None:
            self.sweep()
            self._try_complete()

    def _try_complete(self) -> None:
        self.main = self.goal
        for holder in self.holders:
            if not self._blocked(holder):
                holder.state = self.goal
        if any(holder.state != self.goal for holder in self.holders):
            self.rounds += 1
            if self.rounds == 16:
                self.log.append("signaling remaining tasks")
        else:
            self._complete()

    def _complete(self) -> None:
        patch = self.changing
        assert patch is not None
        self.log.append(f"'{patch.name}': completing {WORD[self.goal]} transition")
        present = [module for module in patch.funcs if module in patch.here or module in patch.due]
        replaced = self.listed[: self.listed.index(patch)] if patch.replace and self.goal == PATCHED else []
        if self.goal == UNPATCHED:
            patch.here.clear()
        for other in replaced:
            other.enabled = False
            other.here.clear()
        patch.nops.clear()
        patch.here &= set(patch.funcs)
        for module in present:
            if self.goal == PATCHED:
                self._call(patch, "post_patch", module, "LIVE")
            else:
                self._post_unpatch(patch, module, "LIVE")
        self.log.append(f"'{patch.name}': {WORD[self.goal]} complete")
        for gone in replaced if self.goal == PATCHED else [patch]:
            self.listed.remove(gone)
        self.changing, self.goal, self.main = None, IDLE, IDLE

    # -- modules ---------------------------------------------------------------------------------------

    def load_module(self, module: str) -> int:
        if module in self.imported:
            return 0
        self._going(module)
        error = self._coming(module)
        if not error:
            self.imported.add(module)
        return error

    def unload_module(self, module: str) -> int:
        self.sweep()
        if module not in self.imported:
            return errno.ENOENT
        self._going(module)
        self.imported.discard(module)
        return 0

    def reload(self, module: str) -> int:
        self._going(module)
        error = self._coming(module)
        if error:
            self.imported.discard(module)
        return error

    def delete(self, module: str) -> None:
        self.imported.discard(module)
        self.deleted.add(module)

    def sweep(self) -> None:
        """A deletion is noticed by the next operation."""
        for patch in list(self.listed):
            for module in patch.modules():
                if module in self.deleted and module in patch.here:
                    self._going(module)
        self.deleted.clear()

    def _coming(self, module: str) -> int:
        for patch in [patch for patch in self.listed if module in patch.modules()]:
            self.log.append(f"applying patch '{patch.name}' to loading module '{module}'")
            error = self._pre_patch(patch, module, "COMING")
            if error:
                refusing = f"patch '{patch.name}' failed for module '{module}', refusing to load module '{module}'"
                self.log.append(refusing)
                self._revert(module, "COMING")
                return error
            patch.here.add(module)
            if patch is not self.changing:
                self._call(patch, "post_patch", module, "COMING")
        return 0

    def _going(self, module: str) -> None:
        self.deleted.discard(module)
        self._revert(module, "GOING")

    def _revert(self, module: str, state: str) -> None:
        for patch in [patch for patch in self.listed if module in patch.here]:
            if patch is not self.changing:
                self._call(patch, "pre_unpatch", module, state)
            self.log.append(f"reverting patch '{patch.name}' on unloading module '{module}'")
            patch.here.discard(module)
            self._post_unpatch(patch, module, state)
