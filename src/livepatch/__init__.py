"""Live patching for running Python programs: the public names.

The first that is used brings them all, with the core and the agent and what these install: the handling of forks. Not
before: the command, which needs little of that, would take twice its time.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .public import *  # noqa: F403

__version__ = "0.1.0"


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
