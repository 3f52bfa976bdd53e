"""What a function can still do from where it is, told by its bytecode.

A stack shows where a call is and not where it goes. Whoever waits for it to return wants to know more: does it return
at all, could this be another call of the same function than the one that was seen before, and what does it wait for?
The code object answers, without source and without running anything:

* `never_returns`: no `return` can be reached from here unless something raises: the `main()` of a server.
* `may_repeat`: one can come from here to here again, by exceptions too, so the call made here may be made again.
* `called`: what is being called, as it is written: the loads that begin where the call begins.

A code object is read once, and what is known of it goes when it does. `dis` is imported when it is needed, which is
when something is in the way.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any

# Names of instructions; each set is the union over all versions.

#: Instructions that do not go on with the next one.
_RETURNS = frozenset({"RETURN_VALUE", "RETURN_CONST"})
_RAISES = frozenset({"RAISE_VARARGS", "RERAISE"})
_JUMPS = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
#: The loop by which `await` and `yield from` hand on what comes: one call, however often it goes round.
_AWAITS = "JUMP_BACKWARD_NO_INTERRUPT"
#: What loads a name as it is written, and what stands between that and the call.
_NAMES = frozenset(
    {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_ATTR"}
    | {"LOAD_METHOD", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF"}
)
_PREPARES = frozenset(
    {"PRECALL", "PUSH_NULL", "KW_NAMES", "LOAD_CONST", "LOAD_LOCALS", "NOP", "RESUME", "COPY", "SWAP"}
    | {"BUILD_LIST", "LIST_EXTEND", "LIST_TO_TUPLE", "CALL_INTRINSIC_1", "BUILD_MAP", "DICT_MERGE", "DICT_UPDATE"}
)
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
#: What begins a `with` statement; newer ones load `__enter__` and call it.
_ENTERS, _SPECIAL = "BEFORE_WITH", "LOAD_SPECIAL"


def never_returns(frame: FrameType) -> bool:
    """No `return` can be reached from where this frame is, unless something raises."""
    flow = _flow(frame.f_code)
    return bool(flow.returning) and not flow.returning[flow.number(frame.f_lasti)]


def goes_on_for_ever(code: CodeType) -> bool:
    """A call that begins here runs in a loop, and no `return` can be reached: only an exception ends it."""
    flow = _flow(code)
    return (
        bool(flow.returning) and not flow.returning[0] and any(flow.returns_to(at) for at in range(len(flow.offsets)))
    )


def may_repeat(frame: FrameType) -> bool:
    """From where this frame is one may come to the same place again."""
    flow = _flow(frame.f_code)
    return not flow.offsets or flow.returns_to(flow.number(frame.f_lasti))


def called(frame: FrameType) -> str:
    """What the call calls that this frame is in the middle of, as it is written ("time.sleep", "with lock"), or ""."""
    flow = _flow(frame.f_code)
    return flow.calls.get(flow.number(frame.f_lasti), "")


class _Flow:
    """What is known of one code object. Instructions are numbered, in their order."""

    def __init__(self, code: CodeType) -> None:
        instructions, handlers = _instructions(code)
        self.offsets = [instruction.offset for instruction in instructions]
        numbers = {offset: number for number, offset in enumerate(self.offsets)}
        following: list[list[int]] = [[] for _ in instructions]
        for number, instruction in enumerate(instructions):
            if _jumps(instruction) and instruction.argval in numbers:
                following[number].append(numbers[instruction.argval])
            if instruction.opname not in _RETURNS | _RAISES | _JUMPS and number + 1 < len(instructions):
                following[number].append(number + 1)
        #: For each instruction, whether a `return` can be reached from it.
        self.returning = _reaching([instruction.opname in _RETURNS for instruction in instructions], following)
        #: Where one can go on from each, also by an exception, and by `await` only once.
        self._following = following
        for number, instruction in enumerate(instructions):
            if instruction.opname == _AWAITS:
                following[number] = []
            for entry in handlers:
                if entry.start <= instruction.offset < entry.end and entry.target in numbers:
                    following[number].append(numbers[entry.target])
        self._repeated: dict[int, bool] = {}
        #: What is called, by the instruction that calls it.
        self.calls = _calls(instructions)

    def number(self, offset: int) -> int:
        """The instruction at this offset, or in whose inline cache it lies."""
        return max(0, bisect_right(self.offsets, offset) - 1)

    def returns_to(self, number: int) -> bool:
        """One can come from this instruction to itself."""
        if number not in self._repeated:
            seen, to_see = set(), [number]
            while to_see and number not in seen:
                new = [one for one in self._following[to_see.pop()] if one not in seen]
                seen.update(new)
                to_see += new
            self._repeated[number] = number in seen
        return self._repeated[number]


_flows: dict[int, tuple[weakref.ref[CodeType], _Flow]] = {}


def _flow(code: CodeType) -> _Flow:
    # By identity: code objects compare by value, and hash all their constants for that.
    key = id(code)
    known = _flows.get(key)
    if known is None or known[0]() is not code:
        known = _flows[key] = weakref.ref(code, lambda _: _flows.pop(key, None)), _Flow(code)
    return known[1]


def _instructions(code: CodeType) -> tuple[list[Any], list[Any]]:
    """The instructions, and the table of exception handlers."""
    import dis

    try:
        read = dis.Bytecode(code)
        return list(read), list(read.exception_entries)  # type: ignore[attr-defined]
    except (IndexError, KeyError, ValueError):  # made by hand
        return [], []


def _jumps(instruction: Any) -> bool:
    import dis

    return instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs


def _reaching(found: list[bool], following: list[list[int]]) -> list[bool]:
    """From where one can come to those that are marked, and these."""
    before = defaultdict(list)
    for number, targets in enumerate(following):
        for target in targets:
            before[target].append(number)
    to_see = [number for number, marked in enumerate(found) if marked]
    while to_see:
        for number in before[to_see.pop()]:
            if not found[number]:
                found[number] = True
                to_see.append(number)
    return found


def _calls(instructions: list[Any]) -> dict[int, str]:
    found = {}
    loaded: dict[tuple[int, int], list[str]] = defaultdict(list)  # by where the expression begins
    entering = set()
    for number, instruction in enumerate(instructions):
        name, where = instruction.opname, instruction.positions
        if where is None or where.lineno is None or where.col_offset is None:
            continue
        begin = where.lineno, where.col_offset
        if name in _NAMES:
            loaded[begin].append(str(instruction.argval))
        elif name == _SPECIAL:
            entering.add(begin)
        elif name in _CALLS or name == _ENTERS:
            enters = name == _ENTERS or begin in entering
            found[number] = (("with " if enters else "") + ".".join(loaded.pop(begin, ()))).strip()
        elif name not in _PREPARES:
            loaded.pop(begin, None)  # a subscript, an operator: what follows is called on its result
    return found
