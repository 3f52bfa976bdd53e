"""The attribute tree: what the kernel shows under /sys/kernel/livepatch, and of tasks under /proc.

    livepatch/<patch>/enabled                      0644  the goal; written: disable, or reverse a running transition
    livepatch/<patch>/transition                   0444  1 while this patch is the one in transition
    livepatch/<patch>/force                        0200  written 1: end the running transition by force
    livepatch/<patch>/replace                      0444
    livepatch/<patch>/stack_order                  0444  1 is the oldest
    livepatch/<patch>/<object>/patched             0444  0 while the module is absent; `vmlinux` is the main program
    livepatch/<patch>/<object>/<function>,<pos>/         position 0 shows as 1; an atomic replace shows its nops
    task/<id>/patch_state                          0400  -1 no transition, 0 unpatched, 1 patched
    task/<id>/stack                                0400  the frames, innermost first
    task/<id>/comm                                 0444  the task's name

`livepatch.tree` is the part below `livepatch/`, the agent's socket and `livepatch mount` show all of it; the errors are
those of open, read and write on the kernel's files. A directory lists what there is at that moment: nothing is created
or destroyed with a patch, so nothing can be left behind, and reading takes neither the registry's mutex nor waits for a
transition. What is written goes through the registry, which takes the mutex, as in the kernel.

Differences: values have no newline here (files in the mount do); the mode decides for root as well; a slash in a name
shows as "!", as in sysfs; an object that is called like an attribute of its patch is not shown.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from . import lists, registry
from .model import LivepatchError, Object, Patch, TaskStatus


class Attribute(NamedTuple):
    """A file: its permissions, what reading gives, and what writing does; the mode keeps either from being called."""

    mode: int
    show: Callable[[], str] = str
    store: Callable[[object], object] = str


class Directory(NamedTuple):
    """A directory, by what is in it now."""

    entries: Callable[[], Mapping[str, Node]]


Node = Attribute | Directory


class Tree:
    """A tree of attributes, by path. Names are separated by "/"; the empty path is the root.

    Every method raises `LivepatchError`: ENOENT for what does not exist, ENOTDIR for what would lie below a file.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root

    def read(self, path: str) -> str:
        """The value of an attribute, without a newline. EISDIR: it is a directory; EACCES: it can only be written."""
        return self._attribute(path, stat.S_IRUSR, "read").show()

    def write(self, path: str, value: object) -> None:
        """Write an attribute, a string or a number. EISDIR: it is a directory; EACCES: it can only be read.

        Beyond that it raises what the attribute does: EINVAL for a value that makes no sense, or none now, EBUSY while
        another patch is in transition. Writing nothing at all does nothing.
        """
        self._attribute(path, stat.S_IWUSR, "written").store(value)

    def listdir(self, path: str = "") -> list[str]:
        """The names in a directory. ENOTDIR: it is an attribute."""
        node = self._find(path)
        if isinstance(node, Attribute):
            raise _error(errno.ENOTDIR, path, "is an attribute and not a directory")
        return list(node.entries())

    def mode(self, path: str) -> int:
        """The permission bits, such as 0o644."""
        return stat.S_IMODE(self.st_mode(path))

    def st_mode(self, path: str) -> int:
        """The permission bits and the type, as `os.stat` has them."""
        node = self._find(path)
        return stat.S_IFREG | node.mode if isinstance(node, Attribute) else stat.S_IFDIR | 0o755

    def _attribute(self, path: str, needed: int, verb: str) -> Attribute:
        node = self._find(path)
        if isinstance(node, Directory):
            raise _error(errno.EISDIR, path, f"is a directory and cannot be {verb}")
        if not node.mode & needed:
            raise _error(errno.EACCES, path, f"cannot be {verb}; its mode is {node.mode:04o}")
        return node

    def _find(self, path: str) -> Node:
        node: Node = self._root
        for name in path.split("/"):
            if not name:
                continue
            if isinstance(node, Attribute):
                raise _error(errno.ENOTDIR, path, "does not exist: what is before the last slash is no directory")
            found = node.entries().get(name)
            if found is None:
                raise _error(errno.ENOENT, path, f"does not exist: there is no '{name}'")
            node = found
        return node


def _error(number: int, path: str, problem: str) -> LivepatchError:
    return LivepatchError(number, f"'{path}' {problem}.")


def _file_name(name: str) -> str:
    return name.replace("/", "!")


# -- livepatch/ ----------------------------------------------------------------------------------------------------


def _patches() -> dict[str, Node]:
    return {_file_name(patch.name): Directory(partial(_patch, patch)) for patch in tuple(lists.listed)}


def _patch(patch: Patch) -> dict[str, Node]:
    return {
        **{_file_name(obj.kernel_name): Directory(partial(_object, obj)) for obj in patch.all_objects()},
        "enabled": Attribute(0o644, lambda: _flag(patch.enabled), partial(registry.write_enabled, patch.name)),
        "force": Attribute(0o200, store=partial(_force, patch.name)),
        "replace": Attribute(0o444, lambda: _flag(patch.replace)),
        "stack_order": Attribute(0o444, partial(_stack_order, patch)),
        "transition": Attribute(0o444, lambda: _flag(lists.transition_of(patch) is not None)),
    }


def _stack_order(patch: Patch) -> str:
    """Its position, counted from the oldest; of one that has just gone, how many there are, as in the kernel."""
    listed = list(lists.listed)
    return str(listed.index(patch) + 1 if patch in listed else len(listed))


def _object(obj: Object) -> dict[str, Node]:
    names = [f"{name},{position}" for name, position in (func.key for func in [*obj.funcs, *obj.nops])]
    functions: dict[str, Node] = {_file_name(name): Directory(dict) for name in names}
    return {**functions, "patched": Attribute(0o444, lambda: _flag(obj.patched and obj.module is not None))}


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _force(name: str, value: object) -> None:
    """The value is looked at first: writing 0 is accepted and does nothing, whatever the patch does."""
    if registry.parse_bool(value):
        registry.force_transition(name)


# -- task/ ---------------------------------------------------------------------------------------------------------


def task_entries(statuses: Iterable[TaskStatus]) -> dict[str, Node]:
    """What is in the directory `task/` if these are all tasks."""
    return {task_id(task): Directory(partial(_task, task)) for task in statuses}


def task_id(task: TaskStatus) -> str:
    """What a task is called in the tree, for as long as it lives: a thread by its id in the system, others by kind."""
    return _file_name(task.ident if task.kind == "thread" else f"{task.kind}-{task.ident}")


def _task(task: TaskStatus) -> dict[str, Node]:
    return {
        "comm": Attribute(0o444, partial(str, task.name)),
        "patch_state": Attribute(0o400, partial(str, task.patch_state)),
        "stack": Attribute(0o400, partial("\n".join, task.stack)),
    }


def _process() -> dict[str, Node]:
    return {"livepatch": Directory(_patches), "task": Directory(lambda: task_entries(registry.tasks()))}


#: `livepatch.tree`: the patches of this process.
tree = Tree(Directory(_patches))

#: All of this process, as the socket shows it.
process_tree = Tree(Directory(_process))
