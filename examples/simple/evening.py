"""The smallest patch: one function of the main program of greeter.py."""

import livepatch as lp


# A function written by hand has the globals of this file, so it can use what is imported here, and nothing of the
# program unless it imports that.
def greeting(name: str) -> str:
    return f"Good evening, {name}"


# None is the main program; a module is named as in an import. `main` never returns, but it is not patched, so it is in
# nobody's way: the next call that it makes is the first of the new function.
__livepatch__ = lp.Patch("evening", [lp.Object(None, [lp.Func("greeting", greeting)])])
