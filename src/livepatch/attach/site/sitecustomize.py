"""Starts livepatch's agent in a Python that `livepatch run` prepared; then this file was never here.

`livepatch run` puts the directory of this file at the front of PYTHONPATH, which child processes inherit.
The interpreter imports `sitecustomize` before the program, finds this one first, and it

* takes its directory out of `sys.path` again,
* starts the agent (from the interpreter's own livepatch if it has one, else from the one this file
  belongs to, which may be in another virtual environment: only that one package becomes importable),
* and imports the `sitecustomize` that would have been imported without it; if there is none, the import
  fails as it would have failed.

Every Python that the command happens to start reads this file, 2.7 too: hence the old syntax. One that
livepatch does not support runs on as if nothing had been here (`sys.exception` came with 3.11; a free-threaded one has
a t among its `sys.abiflags`). Whatever else goes wrong with the agent is one line on stderr and never the program's
problem; unless strict mode says that it must not start because of a patch that is installed
(`livepatch/agent/startup.py`).
"""

# mypy: ignore-errors
import os
import sys

_here = os.path.dirname(__file__)
sys.path[:] = [entry for entry in sys.path if entry != _here]


def _start_agent():  # type: () -> None
    import importlib.machinery
    import importlib.util

    if importlib.util.find_spec("livepatch") is None:
        package = os.path.dirname(os.path.dirname(os.path.abspath(_here)))
        spec = importlib.machinery.PathFinder.find_spec("livepatch", [os.path.dirname(package)])
        livepatch = importlib.util.module_from_spec(spec)
        sys.modules["livepatch"] = livepatch
        spec.loader.exec_module(livepatch)
    import livepatch

    livepatch.start_agent()


if hasattr(sys, "exception") and sys.implementation.name == "cpython" and "t" not in sys.abiflags:
    try:
        _start_agent()
    except Exception as _error:
        # It is there in part, or not at all. To ask for the name would be to import it once more.
        if "start_agent" not in getattr(sys.modules.get("livepatch"), "__dict__", ()):
            for _name in [name for name in sys.modules if name.partition(".")[0] == "livepatch"]:
                del sys.modules[_name]
        if type(_error).__name__ == "StartRefused":
            sys.stderr.write("livepatch: %s\n" % _error)  # noqa: UP031
            sys.stderr.flush()
            os._exit(78)  # EX_CONFIG; an exception here would only be printed
        sys.stderr.write("livepatch: the agent was not started in process %d: %s\n" % (os.getpid(), _error))  # noqa: UP031

_self = sys.modules.pop("sitecustomize", None)  # 2.7 would clear these names if nothing kept the module
import sitecustomize  # noqa: E402, F401 - the next one
