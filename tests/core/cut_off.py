"""Cuts an operation off at every n-th line of the core that it comes to, and looks at what is left. A program:

    python -m tests.core.cut_off enable|disable STEP

In a process of its own, because an operation looks at every object there is: where little was imported, that is little.
"""

import linecache
import sys

from tests.core import kit

import livepatch as lp
from livepatch.core import lists, registry
from livepatch.core.stacks import describe
from livepatch.core.transition import switch_lock
from livepatch.testing import finish, manual_rounds

SOURCE = """
    def g(): return "old"
    def f(): return "old", g()
    def gen():
        yield "old", g()
        yield "old", g()
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("g", "f", "gen")


def free():
    """No lock is held by anybody."""
    return not switch_lock._is_owned() and not lists.mutex._lock._is_owned() and not lists.busy()


class Interrupt(BaseException):
    """What a signal handler raises, like KeyboardInterrupt."""


class At:
    """Raises at the n-th line of the core that the thread comes to, once.

    But not where a `with` ends: there only a trace function can raise, since the interpreter looks for signals
    before the block's last step and after the lock was released; not at a `try`, or where a `finally` makes no call.
    """

    never = ("with switch_lock", ".looking():", ".held():", "try:", "if _inside is me", "_inside = None")

    def __init__(self, number):
        self.left = number

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *error):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        if "/livepatch/core/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if any(map(line.__contains__, self.never)):
                return self.trace
            self.left -= 1
            if self.left == 0:
                raise Interrupt(describe(frame))
        return self.trace


def at_rest(target):
    """No transition, no lock, and everybody runs what the list of patches says. Says which version that is."""
    assert registry.running_transition() is None
    assert free(), (switch_lock, lists.mutex._lock)
    enabled = any(patch.enabled for patch in lp.patches())
    version = "new" if enabled else "old"
    assert target.f() == (version, version)
    assert set(target.gen()) == {(version, version)}
    assert target.f.__code__.co_filename == ("new.py" if enabled else "lp_target_old.py"), "no trampoline is left"
    return version


def operations(target):
    def enable():
        lp.enable_patch(kit.built("p", target, NEW, *NAMES))

    def disable():
        lp.disable_patch("p")

    return enable, disable


def cut_off(target, operation, number):
    """Whether the operation was cut off by an exception at this line; what comes after goes on as usual."""
    try:
        with At(number):
            operation()
    except Interrupt as error:
        print("cut off at", error)
        return True
    return False


def sweep(which, step):
    target = kit.load("lp_target", SOURCE)
    enable, disable = operations(target)
    number, ends = 1, set()
    while True:
        if which == "disable":
            enable()
            assert at_rest(target) == "new"
        if not cut_off(target, enable if which == "enable" else disable, number):
            break
        finish(20)
        ends.add(at_rest(target))
        if lp.patches():
            disable()
            finish(20)
        assert at_rest(target) == "old"
        for loaded in registry.loaded():
            lp.unload_patch(loaded.name)
        number += step
    assert ends == {"old", "new"}
    assert number > 1000
    print(number, "lines")


if __name__ == "__main__":
    with manual_rounds():
        sweep(sys.argv[1], int(sys.argv[2]))
