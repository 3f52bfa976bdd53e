"""The processes below the mount, each with a connection to its agent.

A target is somebody else's process: it may be stopped, busy in C code, or end at any moment, and its files are looked
at by people and scripts that know nothing of that. So every question has a limit, which also counts for those who wait
for their turn: a target that does not answer costs whoever asks it that long, and nobody else anything. That a
process is there, and has an agent, is seen from outside: a stopped one stays listed.

Everything is asked anew each time, except for the tasks: one question brings all of them, and a process may have a
hundred thousand. What it brought is used for ten times as long as it took, so that reading all files of all tasks
takes neither for ever nor more than a tenth of the target's time.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from livepatch.attach import processes
from livepatch.attach.client import Client, NotPrepared, listens
from livepatch.core.attributes import Directory, Node, Tree, task_entries
from livepatch.core.model import LivepatchError, TaskStatus
from livepatch.observe import trail

_Result = TypeVar("_Result")

#: For how many times as long as the tasks took to be listed, the list is used.
_USES = 10


class Target:
    """One process. Reads and writes as `core.attributes.Tree` does, and raises what it raises; besides ETIMEDOUT if the
    agent does not answer, and ENOENT when it is gone.
    """

    def __init__(self, pid: int, timeout: float) -> None:
        self.pid = pid
        self._timeout = timeout
        self._turn = threading.Lock()
        self._client: Client | None = None
        self._tasks: dict[str, Node] = {}
        self._tasks_until = 0.0
        self._made_here = Tree(Directory(lambda: {"task": Directory(self._task_entries)}))

    @property
    def connected(self) -> bool:
        """There is a connection, and the process has not ended since."""
        client = self._client
        return client is not None and client.connected

    def read(self, path: str) -> str:
        if _is_task(path):
            return self._made_here.read(path)
        return self._call(str, "tree_read", path=path)

    def write(self, path: str, value: str) -> None:
        if _is_task(path):
            self._made_here.write(path, value)
        self._tasks_until = 0.0  # they may move at once
        try:
            target = trail.process_of(processes.require_python(self.pid))
        except processes.NoAccess as error:
            raise LivepatchError(errno.ENOENT, str(error)) from None
        with trail.recorded("write", attribute=path, value=value.strip(), targets=[target]):
            self._call(bool, "tree_write", path=path, value=value)

    def listdir(self, path: str) -> list[str]:
        if not path:
            return ["livepatch", "task"]
        if _is_task(path):
            return self._made_here.listdir(path)
        return self._call(_names, "tree_listdir", path=path)

    def st_mode(self, path: str) -> int:
        if path in ("", "livepatch", "task"):
            return self._made_here.st_mode("")
        if _is_task(path):
            return self._made_here.st_mode(path)
        return self._call(int, "tree_mode", path=path)

    def owner(self) -> tuple[int, int]:
        """Its user and group."""
        try:
            return processes.owner(self.pid)
        except processes.NoAccess as error:
            raise LivepatchError(errno.ENOENT, str(error)) from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _task_entries(self) -> dict[str, Node]:
        asked = time.monotonic()
        if asked >= self._tasks_until:
            self._tasks = self._call(_tasks, "tasks")
            now = time.monotonic()
            self._tasks_until = now + _USES * (now - asked)
        return self._tasks

    def _call(self, kind: Callable[[Any], _Result], method: str, **params: Any) -> _Result:
        """Ask the agent; `kind` makes what is wanted of the answer, and fails if it cannot be."""
        deadline = time.monotonic() + self._timeout

        def left() -> float:
            return max(deadline - time.monotonic(), 0.001)

        if not self._turn.acquire(timeout=self._timeout):
            raise LivepatchError(errno.ETIMEDOUT, f"Process {self.pid} has not answered earlier questions yet.")
        try:
            if self._client is None or not self._client.connected:  # agents drop those who were quiet for long
                self.close()
                self._client = None
                self._client = Client(self.pid, timeout=left())
            return kind(self._client.call(method, timeout=left(), **params))
        except (processes.NoAccess, NotPrepared) as error:
            raise LivepatchError(errno.ENOENT, str(error)) from None
        except (TypeError, ValueError):
            raise LivepatchError(errno.EPROTO, f"Process {self.pid} gave no sensible answer to '{method}'.") from None
        finally:
            self._turn.release()


def _names(answer: Any) -> list[str]:
    return [str(name) for name in answer]


def _tasks(answer: Any) -> dict[str, Node]:
    return task_entries([TaskStatus(**task) for task in answer])


def _is_task(path: str) -> bool:
    return path == "task" or path.startswith("task/")


class Targets:
    """All processes that have an agent and that the caller may talk to."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._known: dict[int, Target] = {}

    def list(self) -> list[int]:
        """Their pids, now."""
        found = [process.pid for process in processes.pythons() if self._connected(process.pid) or listens(process)]
        for pid in self._known.keys() - set(found):
            self._forget(pid)
        return found

    def find(self, pid: int) -> Target:
        """Raises LivepatchError(ENOENT) if there is no such process, or no agent in it that listens to the caller."""
        if not self._connected(pid):
            try:
                there = listens(processes.require_python(pid))
            except processes.NoAccess as error:
                self._forget(pid)
                raise LivepatchError(errno.ENOENT, str(error)) from None
            if not there:
                self._forget(pid)
                raise LivepatchError(errno.ENOENT, f"No agent listens in process {pid}.")
        return self._known.setdefault(pid, Target(pid, self._timeout))

    def _connected(self, pid: int) -> bool:
        known = self._known.get(pid)
        return known is not None and known.connected

    def _forget(self, pid: int) -> None:
        target = self._known.pop(pid, None)
        if target is not None:
            target.close()
