"""What travels into a process that was not prepared: the agent, compiled, in one file, and the script that starts it.

A process that has to compile all of it by itself does little else meanwhile, and each version needs other code. So the
file holds both: the sources, and the same compiled by an interpreter of the version that we take the process for, with
the magic number of that interpreter. The process uses the sources if the number is not its own.

The format is one `marshal` of a few dictionaries, which is read with a single call. A zip would be read in hundreds of
small steps, and why that matters is said in `arrival.py`, the code that gets it all there.
"""

from __future__ import annotations

import marshal
from pathlib import Path

import livepatch

from . import compiled
from .files import Files
from .processes import Process

#: What travels: what arrives, the public face, and the layers that run in a patched process.
TRAVELS = ("attach/arrival.py", "__init__.py", "core", "agent", "archive")

_SCRIPT = """\
def livepatch_attach():
    import os, sys
    if os.getpid() != {pid}:
        return
    # Not the `_thread` that gevent and others may have changed.
    spec = sys.modules["_thread"].__spec__
    threads = spec.loader.create_module(spec)
    spec.loader.exec_module(threads)
    def start():
        try:
            import marshal
            from _frozen_importlib_external import MAGIC_NUMBER
            try:
                file = open({bundle!r}, "rb")
                os.unlink({bundle!r})
            except FileNotFoundError:
                return  # two ways in were tried, and the other has it; or nobody waits for us any more
            with file:
                sources, magic, modules = marshal.loads(file.read())
            modules = marshal.loads(modules) if magic == MAGIC_NUMBER else sources
            names = {{"__name__": "livepatch.attach.arrival"}}
            exec(modules.pop("attach/arrival.py"), names)
            names["arrive"](modules, threads)
        except BaseException as error:
            try:
                with open({failure!r}, "r+") as file:  # made for us, as long as somebody waits
                    file.write(str(error) or type(error).__name__)
            except OSError:
                pass
    threads.start_new_thread(start, ())
livepatch_attach()
del livepatch_attach
"""

#: What the interpreter is asked to read, which it may do hours later: it takes itself away, and does nothing if the
#: script has been taken back. It must exist then, or the interpreter complains.
_REQUEST = """\
def livepatch_attach():
    import os
    try:
        os.unlink({request!r})
        with open({script!r}, "rb") as file:
            script = file.read()
    except OSError:
        return
    exec(script, {{"__name__": "livepatch.attach"}})
livepatch_attach()
del livepatch_attach
"""


def agent(process: Process) -> bytes:
    """The part of this package that runs in a patched process, as one file for this one."""
    package = Path(livepatch.__file__).parent
    sources = {str(path.relative_to(package)): path.read_bytes() for path in _sources(package)}
    made = compiled.for_process(process, sources)
    return marshal.dumps((sources, made[: compiled.MAGIC], made[compiled.MAGIC :]), 2)


def _sources(package: Path) -> list[Path]:
    found: list[Path] = []
    for part in TRAVELS:
        path = package / part
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def script(process: Process, files: Files) -> str:
    return _SCRIPT.format(pid=process.inner_pid, bundle=files.inside(files.bundle), failure=files.inside(files.failure))


def request(files: Files) -> str:
    return _REQUEST.format(request=files.inside(files.request), script=files.inside(files.script))
