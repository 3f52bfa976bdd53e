"""What a function can still do from where it is, told by its bytecode.

A stack shows where a call is and not where it goes. Whoever waits for it to return wants to know more: does it return
at all, could this be another call of the same function than the one that was seen before, and what does it wait for?
The code object answers, without source and without running anything:

* `never_returns`: no `return` can be reached from here unless something raises: the `main()` of a server.
* `may_repeat`: the instruction lies in a loop, so the call that it makes may be made again.
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


def may_repeat(frame: FrameType) -> bool:
    """Where this frame is may be inside of a loop: everything between the two ends of a jump back counts."""
    flow = _flow(frame.f_code)
    number = flow.number(frame.f_lasti)
    return not flow.returning or any(first <= number <= last for first, last in flow.loops)


def called(frame: FrameType) -> str:
    """What the call calls that this frame is in the middle of, as it is written ("time.sleep", "with lock"), or ""."""
    flow = _flow(frame.f_code)
    return flow.calls.get(flow.number(frame.f_lasti), "")


class _Flow:
    """What is known of one code object. Instructions are numbered, in their order."""

    def __init__(self, code: CodeType) -> None:
        instructions = _instructions(code)
        self.offsets = [instruction.offset for instruction in instructions]
        numbers = {offset: number for number, offset in enumerate(self.offsets)}
        jumps = [
            (number, numbers[instruction.argval], instruction.opname)
            for number, instruction in enumerate(instructions)
            if _jumps(instruction) and instruction.argval in numbers
        ]
        #: From the first to the last instruction of each loop.
        self.loops = [(target, number) for number, target, name in jumps if target <= number and name != _AWAITS]
        #: For each instruction, whether a `return` can be reached from it.
        self.returning = _returning([instruction.opname for instruction in instructions], jumps)
        #: What is called, by the instruction that calls it.
        self.calls = _calls(instructions)

    def number(self, offset: int) -> int:
        """The instruction at this offset, or in whose inline cache it lies."""
        return max(0, bisect_right(self.offsets, offset) - 1)


_flows: dict[int, tuple[weakref.ref[CodeType], _Flow]] = {}


def _flow(code: CodeType) -> _Flow:
    # By identity: code objects compare by value, and hash all their constants for that.
    key = id(code)
    known = _flows.get(key)
    if known is None or known[0]() is not code:
        known = _flows[key] = weakref.ref(code, lambda _: _flows.pop(key, None)), _Flow(code)
    return known[1]


def _instructions(code: CodeType) -> list[Any]:
    import dis

    try:
        return list(dis.get_instructions(code))
    except (IndexError, KeyError, ValueError):  # made by hand
        return []


def _jumps(instruction: Any) -> bool:
    import dis

    return instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs


def _returning(names: list[str], jumps: list[tuple[int, int, str]]) -> list[bool]:
    before = defaultdict(list)
    for number, target, _ in jumps:
        before[target].append(number)
    for number, name in enumerate(names[:-1]):
        if name not in _RETURNS | _RAISES | _JUMPS:
            before[number + 1].append(number)
    found = [name in _RETURNS for name in names]
    to_see = [number for number, returns in enumerate(found) if returns]
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
