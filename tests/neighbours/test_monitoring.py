"""Tools of `sys.monitoring`: from 3.12 on, debuggers, profilers and coverage.py work like this."""

import os
import sys

import pytest
from tests.neighbours.traced import NEWS, OLD, through_all_of_it

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
monitor = sys.monitoring


def test_events_of_one_code_object_are_there_again_when_it_is(files, held):
    """A debugger's breakpoint is an event of a line in a code object, and may be switched off at places."""
    target, _ = files
    tool, seen = monitor.DEBUGGER_ID, []
    original = target.f.__code__
    monitor.use_tool_id(tool, "a debugger")
    try:
        monitor.register_callback(tool, monitor.events.LINE, lambda code, line: seen.append((code, line)))
        monitor.register_callback(tool, monitor.events.PY_START, lambda code, offset: seen.append((code, "start")))
        monitor.set_local_events(tool, original, monitor.events.LINE | monitor.events.PY_START)
        expected_events = [(original, "start"), (original, 6), (original, 7)]

        def look(expected):
            seen.clear()
            assert target.f() == expected
            assert [(code is original, line) for code, line in seen] == (
                [(True, line) for _, line in expected_events] if expected is OLD else []
            )
            local = monitor.get_local_events(tool, original)
            assert local == monitor.events.LINE | monitor.events.PY_START

        through_all_of_it(files, held, look)
    finally:
        monitor.free_tool_id(tool)


def test_events_of_everything_show_the_version_that_runs(files, held):
    target, _ = files
    tool, seen = monitor.PROFILER_ID, []
    files_of = {OLD: "lp_traced.py", NEWS: "new.py"}
    monitor.use_tool_id(tool, "a profiler")
    try:
        for event, word in ((monitor.events.PY_START, "start"), (monitor.events.PY_RETURN, "return")):
            monitor.register_callback(
                tool,
                event,
                lambda code, *_, word=word: seen.append((word, code.co_name, os.path.basename(code.co_filename))),
            )

        def look(expected):
            seen.clear()
            monitor.set_events(tool, monitor.events.PY_START | monitor.events.PY_RETURN)
            assert target.f() == expected
            monitor.set_events(tool, 0)
            file = files_of[expected]
            assert [s for s in seen if s[2] == file] == [
                ("start", "f", file),
                ("start", "g", file),
                ("return", "g", file),
                ("return", "f", file),
            ]

        through_all_of_it(files, held, look)
    finally:
        monitor.free_tool_id(tool)
