"""Live patching for running Python programs: the public names.

With them come the core and the agent, and the handling of forks, which must be there before the program forks for the
first time. Only in the command, which patches nobody and needs little of all that, they come when one of them is used:
else most of a short command's time would go into that.
"""

import sys

__version__ = "0.1.0"


def _is_the_command() -> bool:
    """Whether this process is `livepatch ...` or `python -m livepatch ...`, and no program that is only called so."""
    arguments: list[str] = getattr(sys, "argv", None) or [""]
    if arguments[0] == "-m":  # Python is just looking for the module that it is to run, whose name is before the rest
        named = [*sys.orig_argv[-len(arguments) :], ""][0]
        return (named.partition("m")[2] if named.startswith("-") else named) == "livepatch"
    return "_livepatch_command" in sys.modules


if not _is_the_command():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__


def __getattr__(name: str) -> object:
    names = globals()
    if "__all__" not in names and (name == "__all__" or not name.startswith("__")):
        import livepatch.public as public  # `from . import` would ask here for the name, too

        names.update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
    if name in names:
        return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    __getattr__("__all__")
    return sorted(globals())
