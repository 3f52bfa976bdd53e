"""One process that is looked at again and again, by a thread of its own on a connection of its own.

A target is somebody else's process: it may be stopped, busy in C code, or end at any moment. Whoever shows many of them
must never wait for one. So the thread waits, each time for a limited time, and puts what it knows into `view`, which is
a value that never changes: it is exchanged as a whole, and read from any thread at any time.

What was asked stands in the socket of a process that does not answer, and asking again would only pile up. So the same
answer is waited for until it comes. An order that is given meanwhile is refused at once and never sent: an operator who
has long gone on to something else must not be obeyed then.

An order is meant for what the screen showed. Just before it is carried out the process is asked once more, and if the
patch is not as it was shown by then, nothing is done: a disable that was running has perhaps been reversed, and to
force that means something else than what was confirmed.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from livepatch.attach.client import Client, NotPrepared
from livepatch.attach.processes import NoAccess, Process
from livepatch.core.model import LivepatchError
from livepatch.observe import trail

from .words import state_of

State = dict[str, Any]
#: Told what became of an order, or of a process, in a sentence; and whether that is good.
Tell = Callable[[str, bool], None]

#: Seconds that an answer may take before the process counts as one that does not answer.
PATIENCE = 1.5
#: Seconds that an order may take: callbacks run then.
_ORDER_PATIENCE = 10.0
#: Seconds between two looks, at least; a look that took long is not repeated for ten times as long.
PERIOD = 1.0
_TENTH = 10
#: Seconds after which an agent that could not be spoken to is tried again.
_AGAIN = 2.0
#: Seconds after which the thread sees that it has got something to do while it reads events.
_GLANCE = 0.1
#: How many of the tasks in the way are asked for.
_BLOCKERS = 50

YES, SILENT, ATTACHABLE = "yes", "no answer", "attachable"


@dataclass(frozen=True)
class View:
    """What is known of a process. `agent` is what `ps` says of it: "yes", "no answer", "attachable" or "no: ...".

    Of one that does not answer the rest is as it was at its last answer, at `answered` (of time.monotonic()), None if
    it has never given any. `error` is why it cannot be asked, in a sentence. `blocking` and `log` are known of a
    process that is `chosen`.
    """

    pid: int
    python: str
    command: str
    agent: str
    started: float | None = None
    patches: tuple[State, ...] = ()
    blocking: tuple[State, ...] = ()
    log: tuple[str, ...] = ()
    answered: float | None = None
    error: str = ""

    @property
    def changing(self) -> State | None:
        """The patch in transition; there is at most one."""
        return next((patch for patch in self.patches if patch["transition"]), None)


@dataclass(frozen=True)
class Order:
    """What an operator wants done with a patch that is shown as `enabled` and in `transition` or not.

    `method` and `value` are the agent's; `done` says what has happened then.
    """

    method: str
    name: str
    enabled: bool
    transition: bool
    done: str
    value: str | None = None

    @property
    def operation(self) -> str:
        """As the audit record calls it."""
        if self.method != "write_enabled":
            return self.method
        return "reverse" if self.transition else "disable"

    def params(self) -> dict[str, Any]:
        """As the agent's method takes them."""
        return {"name": self.name} if self.value is None else {"name": self.name, "value": self.value}


class Watch:
    """The thread. `ended` is set when there is no agent to be watched any more; `chosen` asks for more detail."""

    def __init__(self, process: Process, tell: Tell) -> None:
        self.view = View(process.pid, process.python or "?", process.brief, YES)
        self.ended = False
        self._chosen = False
        self._tell = tell
        self._over = False
        self._wake = threading.Event()
        self._orders: deque[Order] = deque()
        threading.Thread(target=self._run, name=f"livepatch-top-{process.pid}", daemon=True).start()

    @property
    def chosen(self) -> bool:
        """Whether the process is shown in detail."""
        return self._chosen

    @chosen.setter
    def chosen(self, value: bool) -> None:
        if value != self._chosen:
            self._chosen = value
            self._wake.set()

    def give(self, order: Order) -> None:
        """Have an order carried out; `tell` is called with what became of it. It is refused where nobody answers."""
        self._orders.append(order)
        self._wake.set()
        if self.view.agent != YES or self.ended:
            self._refuse_all()

    def stop(self) -> None:
        """Let the thread end, as soon as it does not wait for anything."""
        self._over = True
        self._wake.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over:
                try:
                    with Client(self.view.pid, timeout=PATIENCE) as client:
                        self._attend(client)
                except (NoAccess, NotPrepared):  # it has ended, or become a program without an agent
                    return
                except LivepatchError as error:
                    agent = SILENT if error.errno == errno.ETIMEDOUT else "no: not an agent"
                    self._set(agent=agent, error=str(error))
                    self._refuse_all()
                self._wake.wait(_AGAIN)
                self._wake.clear()
        finally:
            self.ended = True
            self._refuse_all()

    def _attend(self, client: Client) -> None:
        process = client.process
        self._set(python=client.hello["python"], command=process.brief, started=client.hello["started"])
        follows = False
        while not self._over:
            if self._chosen and not follows:
                self._call(client, "subscribe")
                follows = True
            begun = time.monotonic()
            self._look(client)
            self._carry_out(client)
            self._rest(client, max(PERIOD, _TENTH * (time.monotonic() - begun)), follows)

    def _look(self, client: Client) -> None:
        patches = tuple(self._call(client, "list"))
        chosen = self._chosen
        changing = next((patch["name"] for patch in patches if patch["transition"]), None)
        blocking: tuple[State, ...] = ()
        if chosen and changing is not None:
            blocking = tuple(self._call(client, "status", name=changing, blockers=_BLOCKERS)["blocking"])
        log = tuple(self._call(client, "dmesg")) if chosen else ()
        self._set(patches=patches, blocking=blocking, log=log, agent=YES, error="", answered=time.monotonic())

    def _rest(self, client: Client, seconds: float, follows: bool) -> None:
        """Until the next look: so many seconds, or until there is something to do, or to see in a chosen process."""
        deadline = time.monotonic() + seconds
        if not (follows and self._chosen):
            self._wake.wait(seconds)
        while follows and self._chosen and not self._wake.is_set() and (left := deadline - time.monotonic()) > 0:
            if client.event(min(left, _GLANCE)) is not None:
                self._wake.wait(_GLANCE)  # more may come
                break
        while follows and client.event(0) is not None:
            pass
        self._wake.clear()

    def _call(self, client: Client, method: str, **params: Any) -> Any:
        """Ask, and wait for as long as it takes, in which the process is shown as one that does not answer."""
        question = client.ask(method, timeout=PATIENCE, **params)
        while True:
            try:
                return client.answer(question, timeout=PATIENCE)
            except LivepatchError as error:
                if error.errno != errno.ETIMEDOUT or self._over:
                    raise
                self._set(agent=SILENT, error=str(error))
                self._refuse_all()

    def _set(self, **known: Any) -> None:
        self.view = replace(self.view, **known)

    # -- orders ------------------------------------------------------------------------------------

    def _carry_out(self, client: Client) -> None:
        while True:
            try:
                order = self._orders.popleft()
            except IndexError:
                return
            try:
                found = client.call("list", timeout=PATIENCE)
            except LivepatchError as error:
                self._orders.append(order)
                if error.errno != errno.ETIMEDOUT:
                    raise
                self._set(agent=SILENT, error=str(error))
                self._refuse_all()
                return
            patch = next((patch for patch in found if patch["name"] == order.name), None)
            if patch is None or (patch["enabled"], patch["transition"]) != (order.enabled, order.transition):
                now = "gone" if patch is None else state_of(patch)
                self._tell(f"Process {client.pid}: '{order.name}' is {now} by now, so nothing was done.", False)
                continue
            try:
                target = trail.process_of(client.process)
                with trail.recorded(order.operation, patch={"name": order.name}, targets=[target]):
                    client.call(order.method, timeout=_ORDER_PATIENCE, **order.params())
            except LivepatchError as error:
                self._tell(f"Process {client.pid}: {error}", False)
                if not client.connected:
                    raise
            else:
                self._tell(f"Process {client.pid}: {order.done}", True)
            self._look(client)

    def _refuse(self, order: Order) -> None:
        why = "has ended" if self.ended else "does not answer"
        self._tell(f"Process {self.view.pid} {why}, so nothing was asked of it about '{order.name}'.", False)

    def _refuse_all(self) -> None:
        with suppress(IndexError):
            while True:
                self._refuse(self._orders.popleft())
