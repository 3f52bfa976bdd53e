"""What became of transitions and of requests, for those who ask later: metrics and reports.

Nothing here decides anything, and nothing is written while a task waits for it. A transition that is over leaves one
entry, and each refusal a count. Who moved when, and in which of the three ways, is noted only of a transition that
somebody has asked it of beforehand (`arm`), by the names of its tasks: a record must not keep a task alive.

All of it is bounded, and belongs to this process: a forked child begins with nothing, though it inherits the patches.
"""

from __future__ import annotations

import errno
import functools
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from . import originals
from .model import LivepatchError, Patch

if TYPE_CHECKING:
    from .kind import Kind
    from .transition import Transition

_F = TypeVar("_F", bound=Callable[..., Any])

#: So many moves are kept of a transition, those that came last: whoever moved early held nobody up.
MOVES_LIMIT = 4096
#: So many transitions are remembered.
_TRANSITIONS = 16


class Move(NamedTuple):
    """A task left the old world `at` so many seconds, of the system's monotonic clock. `way` is "stack check", "exit",
    "idle", "force", or "ended" if it left by ending."""

    at: float
    kind: str
    task: str
    way: str


class Record:
    """Who moved, when and how, in one transition."""

    def __init__(self) -> None:
        self.moves: deque[Move] = deque(maxlen=MOVES_LIMIT)
        self._names: dict[Hashable, tuple[str, str]] = {}

    def learn(self, tasks: Iterable[Hashable], kinds: Sequence[Kind]) -> None:
        """The names of tasks that have not moved yet, of so many at most. Called without the switch lock."""
        for task in islice(tasks, MOVES_LIMIT):
            for kind in kinds:
                try:
                    name = kind.name(task)
                except Exception:  # the application's code
                    continue
                if name is not None:
                    self._names[task] = kind.label, name
                    break

    def moved(self, task: Hashable, way: str) -> None:
        """Called under the switch lock."""
        self.moves.append(Move(originals.monotonic(), *self._names.get(task, ("", "born meanwhile")), way))

    def forget(self, task: Hashable) -> object:
        """The task has ended; the caller drops what is returned when nobody holds the lock."""
        return self._names.pop(task, None)

    def close(self) -> None:
        """Let go of the tasks."""
        self._names.clear()


class Ended(NamedTuple):
    """A transition that is over. `outcome` is "completed", "reversed" if it went back to where it began, "canceled" if
    no task was told to move; `began` and `ended` are of the system's monotonic clock."""

    patch: str
    direction: str
    outcome: str
    began: float
    ended: float
    total: int
    reversals: int
    moved: dict[str, int]
    moves: list[Move]


#: Transitions that are over, oldest first. Only the last one has its moves.
history: deque[Ended] = deque(maxlen=_TRANSITIONS)
#: How many there were, and how many seconds they took, by direction and outcome.
transitions: Counter[tuple[str, str]] = Counter()
seconds: Counter[tuple[str, str]] = Counter()
#: How many tasks have moved, by the way.
moved: Counter[str] = Counter({"stack check": 0, "exit": 0, "idle": 0, "force": 0})
#: What was refused, by operation and the name of the errno.
refusals: Counter[tuple[str, str]] = Counter()
#: How often the directions of transitions were reversed.
reversals = 0

_armed = False


def arm(running: Transition | None) -> None:
    """Record the moves of the running transition from now on, else of the next one."""
    global _armed
    if running is None:
        _armed = True
    elif running.record is None:
        made = Record()
        made.learn(list(running.pending), running.kinds)
        running.record = made


def new_record() -> Record | None:
    """For a transition that begins: what it is to note its moves in, if somebody has asked for that."""
    global _armed
    wanted, _armed = _armed, False
    return Record() if wanted else None


def note_end(patch: Patch, transition: Transition) -> None:
    """A transition is over, and its patch as it is to be."""
    global reversals
    back = transition.reversals % 2
    outcome = "canceled" if not transition.ready else "reversed" if back else "completed"
    toward = "patching" if patch.enabled == (outcome == "completed") else "unpatching"
    noted: list[Move] = []
    if transition.record is not None:
        noted = list(transition.record.moves)
        transition.record.close()
    now = originals.monotonic()
    if history:
        history[-1].moves.clear()
    history.append(
        Ended(
            patch.name,
            toward,
            outcome,
            transition.started,
            now,
            transition.total,
            transition.reversals,
            dict(transition.moved),
            noted,
        )
    )
    transitions[toward, outcome] += 1
    seconds[toward, outcome] += now - transition.started  # type: ignore[assignment]
    reversals += transition.reversals
    moved.update(transition.moved)


def refused(operation: str, error: LivepatchError) -> None:
    """Count a refusal, once, however many of us it passes through."""
    if not getattr(error, "counted", False):
        error.counted = True  # type: ignore[attr-defined]
        refusals[operation, errno.errorcode.get(error.errno or 0, "?")] += 1


@contextmanager
def counting(operation: str) -> Iterator[None]:
    """Count what is refused in here."""
    try:
        yield
    except LivepatchError as error:
        refused(operation, error)
        raise


def counted(operation: str) -> Callable[[_F], _F]:
    """A function in which what is refused is counted. `counting` would do, but costs an import of inspect on 3.15."""

    def wrap(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            with counting(operation):
                return function(*args, **named)

        return cast("_F", call)

    return wrap


def start_over() -> None:
    """In a forked child: all of that was the parent's. A running transition keeps its record."""
    global reversals, _armed
    for kept in (history, transitions, seconds, refusals):
        kept.clear()
    moved.subtract(dict(moved))
    reversals, _armed = 0, False
