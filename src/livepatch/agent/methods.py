"""What a client may ask of the agent: a thin layer over the registry, with results that JSON can carry.

Each function is a method of the protocol; its keyword-only parameters, checked by `rpc.py`, are the method's.
All run in the agent's thread, one after another, between two rounds: none waits for a transition. Who starts
one gets the patch's state and asks again, or follows the events.
"""

from __future__ import annotations

import binascii
import errno
import os
import sys
import time
from typing import Any

from livepatch.archive import policy
from livepatch.core import blockers, cpython, instances, journal, lists, log, originals, registry
from livepatch.core.attributes import process_tree
from livepatch.core.model import LivepatchError, Patch, PatchStatus, TaskStatus

from . import PROTOCOL, patchfile
from .rpc import Method
from .server import Connection


def hello(client: Connection) -> dict[str, Any]:
    """Who this is. Refuses if this interpreter cannot be patched."""
    problem = cpython.unsupported()
    if problem:
        raise LivepatchError(errno.ENOSYS, problem)
    return {
        "protocol": PROTOCOL,
        "version": getattr(sys.modules.get("livepatch"), "__version__", ""),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "argv": list(getattr(sys, "orig_argv", [])),
        "started": _started(),
    }


def load(client: Connection, *, file: str, data: str) -> dict[str, Any]:
    """Enable the patch in a file (`data` in base64), and return its state right after the first round."""
    patchfile.forget_unloaded()
    try:
        with journal.counting("enable"):
            content = _let_in(data, file)
            patch = registry.enable(patchfile.maker(content, file))
        patchfile.files[patch.name] = file, content
    finally:
        patchfile.forget_unloaded()
    return _status(patch.name)


def file(client: Connection, *, name: str) -> dict[str, Any]:
    """The file that a loaded patch came from, as `load` takes it."""
    patchfile.forget_unloaded()
    if name not in patchfile.files:
        raise LivepatchError(errno.ENOENT, f"No patch '{name}' that came from a file is loaded.")
    known, content = patchfile.files[name]
    return {"file": known, "data": binascii.b2a_base64(content, newline=False).decode()}


def check(client: Connection, *, file: str, data: str) -> dict[str, Any]:
    """Whether the patch in a file fits, what it would change, and who would stand in the way now; changes
    nothing. `still` tells later who of them has been there ever since.

    `instances` are the classes whose instances it goes through: how many are `live` now, and how many `objects` one
    pass over the heap has to look at, in how many `seconds`; `live` is null for what callbacks call `each_instance`
    with. Of an archive, `releases` and `modules` say in detail
    what was found here; then one that does not fit is an answer with `error`, not a refusal.
    """
    patchfile.forget_unloaded()
    content = _let_in(data, file)
    found = patchfile.survey(content, file)
    try:
        return {**found, **_fitting(content, file)}
    except LivepatchError as error:
        if not found["modules"]:
            raise
        return {**found, "error": {"errno": error.errno or errno.EINVAL, "sentence": str(error)}}
    finally:
        patchfile.forget_unloaded()


def _fitting(content: bytes, file: str) -> dict[str, Any]:
    patch = patchfile.read(content, file, dry=True)
    blocking = registry.check_patch(patch)
    objects = [
        {
            "name": obj.shown_name,
            "functions": [f"{func.key[0]},{func.key[1]}" for func in obj.funcs],
            "immediate": [f"{func.key[0]},{func.key[1]}" for func in obj.funcs if func.immediate],
        }
        for obj in patch.objects
    ]
    return {
        "name": patch.name,
        "version": patch.version,
        "description": patch.description,
        "replace": patch.replace,
        "objects": objects,
        "blocking": [_shown(task) for task in blocking],
        "instances": [
            {"class": walk.cls, "live": walk.live, "objects": walk.objects, "seconds": walk.seconds}
            for walk in _walks(patch, content, file)
        ],
    }


def _walks(patch: Patch, content: bytes, file: str) -> list[instances.Walk]:
    """The classes that it names; and if its callbacks may do it by themselves, what each time will cost."""
    found = instances.walks(patch.objects)
    if b"each_instance" in patchfile.by_hand(content, file):
        found.append(instances.walk("each_instance(...)", None))
    return found


def still(client: Connection) -> list[dict[str, Any]]:
    """Of those whom earlier looks found in the way, for any client, the ones that have been there ever since."""
    return [_shown(task) for task in blockers.memory.still()]


def write_enabled(client: Connection, *, name: str, value: str) -> dict[str, Any]:
    """Write the attribute `enabled`, by the kernel's rules, and return the patch's state."""
    registry.write_enabled(name, value)
    return _status(name)


def force(client: Connection, *, name: str) -> dict[str, Any]:
    """End the running transition of this patch by force, and return the patch's state."""
    registry.force_transition(name)
    return _status(name)


def unload(client: Connection, *, name: str) -> None:
    """Forget a disabled or replaced patch."""
    registry.unload_patch(name)
    patchfile.forget_unloaded()


def patches(client: Connection) -> list[dict[str, Any]]:
    """All loaded patches, also disabled ones that are not unloaded yet."""
    return [patch._asdict() for patch in registry.loaded()]


def status(client: Connection, *, name: str, blockers: int = 0) -> dict[str, Any]:
    """The state of one patch; with up to so many of the tasks that its transition waits for, the hopeless first."""
    return {**_status(name), "blocking": _blocking(blockers) if blockers > 0 else []}


def tasks(client: Connection) -> list[dict[str, Any]]:
    """All tasks of the process."""
    return [task._asdict() for task in registry.tasks()]


def dmesg(client: Connection) -> list[str]:
    """The log of livepatch in this process."""
    return log.dmesg()


def timed_dmesg(client: Connection) -> list[dict[str, Any]]:
    """The same, with the time when each line was written, in seconds since the epoch."""
    return [{"time": seconds, "line": line} for seconds, line in log.timed()]


def tree_read(client: Connection, *, path: str) -> str:
    """The value of an attribute. Paths begin with `livepatch/` or `task/`; the rules are in `core/attributes.py`."""
    return process_tree.read(path)


def tree_write(client: Connection, *, path: str, value: str) -> None:
    """Write an attribute."""
    process_tree.write(path, value)


def tree_listdir(client: Connection, *, path: str) -> list[str]:
    """The names in a directory; the root is the empty path."""
    return process_tree.listdir(path)


def tree_mode(client: Connection, *, path: str) -> int:
    """The permission bits and the type, as stat's st_mode has them."""
    return process_tree.st_mode(path)


def record(client: Connection) -> None:
    """Note who moves, when and how, in the running transition, or if there is none, in the next one."""
    journal.arm(registry.running_transition())


def history(client: Connection) -> dict[str, Any]:
    """What became of transitions, oldest first, and how often what was refused, since this process began.

    `now` and the times of transitions and moves are seconds of the system's monotonic clock. Of the last transition
    there are the moves, and of the `running` one those so far, if they were asked for with `record`.
    """
    running = registry.running_transition()
    noted = running.record.moves if running is not None and running.record is not None else ()
    return {
        "now": originals.monotonic(),
        "transitions": [_over(ended) for ended in list(journal.history)],
        "running": [move._asdict() for move in list(noted)],
        "totals": [
            {"direction": key[0], "outcome": key[1], "count": count, "seconds": journal.seconds[key]}
            for key, count in journal.transitions.items()
        ],
        "moved": dict(journal.moved),
        "refusals": [
            {"operation": operation, "errno": name, "count": count}
            for (operation, name), count in journal.refusals.items()
        ],
        "reversals": journal.reversals,
        "forced": list(lists.taints),
    }


def _over(ended: journal.Ended) -> dict[str, Any]:
    return {**ended._asdict(), "moves": [move._asdict() for move in ended.moves]}


def subscribe(client: Connection) -> None:
    """From now on send the notifications `log` and `transition` to this client."""
    client.follows = True


METHODS: dict[str, Method] = {
    "hello": hello,
    "load": load,
    "file": file,
    "check": check,
    "still": still,
    "write_enabled": write_enabled,
    "force": force,
    "unload": unload,
    "list": patches,
    "status": status,
    "tasks": tasks,
    "dmesg": dmesg,
    "timed_dmesg": timed_dmesg,
    "tree_read": tree_read,
    "tree_write": tree_write,
    "tree_listdir": tree_listdir,
    "tree_mode": tree_mode,
    "record": record,
    "history": history,
    "subscribe": subscribe,
}


def _let_in(data: str, file: str) -> bytes:
    """The bytes of a patch file, if the rules of this process let it in; see `archive/policy.py`."""
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        raise LivepatchError(errno.EBADMSG, "The file's bytes did not arrive as base64.") from None
    policy.require(content, file)
    return content


def _status(name: str) -> dict[str, Any]:
    """The state of a loaded patch; of one that has just gone, that it has."""
    for patch in registry.loaded():
        if patch.name == name:
            return patch._asdict()
    return PatchStatus(name, False, False, False, 0, False)._asdict()


def _blocking(limit: int) -> list[dict[str, Any]]:
    waits = [task for task in registry.tasks() if task.blocking or task.hint]
    waits.sort(key=lambda task: (not blockers.stuck(task), not task.blocking))
    return [_shown(task) for task in waits[:limit]]


def _shown(task: TaskStatus) -> dict[str, Any]:
    """One that is in the way, and whether it is likely to stay there."""
    return {**task._asdict(), "stuck": blockers.stuck(task)}


_LOADED = time.time()


def _started() -> float:
    """When the process started, in seconds since the epoch; where there is no /proc, when the agent did."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
    except OSError:
        return _LOADED
    booted = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")
