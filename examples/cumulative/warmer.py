"""A cumulative patch: it takes the place of all patches that are enabled, in one transition.

It says what the program shall be, not what is to be changed: `hello` is the one below, and `goodbye`, which it does not
mention, is the program's own again, whatever other patches have made of it. Each task moves from all the old to all the
new at once, or back if this is reversed. What it replaced is disabled then, without callbacks, and can be unloaded.
"""

import livepatch as lp


def hello(name: str) -> str:
    return f"Welcome, {name}"


__livepatch__ = lp.Patch("warmer", [lp.Object(None, [lp.Func("hello", hello)])], replace=True)
