"""An ordinary patch of two functions, to be replaced by warmer.py."""

import livepatch as lp


def hello(name: str) -> str:
    return f"Good day, {name}"


def goodbye(name: str) -> str:
    return f"Farewell, {name}"


__livepatch__ = lp.Patch("politer", [lp.Object(None, [lp.Func("hello", hello), lp.Func("goodbye", goodbye)])])
