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
TRAVELS = ("attach/arrival.py", "__init__.py", "public.py", "core", "agent", "archive")

_SCRIPT = """\
def livepatch_attach(main_thread):
    import posix, sys
    if posix.getpid() != {pid}:
        return
    def own(spec):
        # Not the `_thread` that gevent and others may have changed, nor their `time`.
        module = spec.loader.create_module(spec)
        spec.loader.exec_module(module)
        return module
    threads, clock = (own(sys.modules[name].__spec__) for name in ("_thread", "time"))
    def start():
        try:
            import marshal
            from _frozen_importlib_external import MAGIC_NUMBER
            try:
                file = posix.open({bundle!r}, posix.O_RDONLY | posix.O_CLOEXEC)
                try:
                    posix.unlink({bundle!r})
                    # Each of these steps may cost a turn of somebody who keeps the interpreter for long.
                    sources, magic, modules = marshal.loads(posix.read(file, {size}))
                finally:
                    posix.close(file)
            except FileNotFoundError:
                return  # two ways in were tried, and the other has it; or nobody waits for us any more
            modules = marshal.loads(modules) if magic == MAGIC_NUMBER else sources
            names = {{"__name__": "livepatch.attach.arrival"}}
            exec(modules.pop("attach/arrival.py"), names)
            names["arrive"](modules, threads, clock, main_thread)
        except BaseException as error:
            try:
                with open({failure!r}, "r+") as file:  # made for us, as long as somebody waits
                    file.write(str(error) or type(error).__name__)
            except OSError:
                pass
    threads.start_new_thread(start, ())
livepatch_attach(globals().get("main_thread"))
del livepatch_attach
"""

#: What the interpreter is asked to read, which it may do hours later: it takes itself away, and does nothing if the
#: script has been taken back. It must exist then, or the interpreter complains, as it does about any error.
#:
#: Where there are several interpreters in the process, the newest is asked (seen in 3.14 and 3.15). It is not the one
#: that has the program's modules, and leaves it to the other way.
_REQUEST = """\
def livepatch_attach():
    try:
        import _interpreters, posix
        posix.unlink({request!r})
        if _interpreters.get_current()[0] == _interpreters.get_main()[0]:
            file = posix.open({script!r}, posix.O_RDONLY)
            try:
                script = posix.read(file, 1 << 16)
            finally:
                posix.close(file)
            exec(script, {{"__name__": "livepatch.attach"}})
    except FileNotFoundError:
        pass
    except BaseException as error:
        try:
            with open({failure!r}, "r+") as file:
                file.write(str(error) or type(error).__name__)
        except BaseException:
            pass
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


def script(process: Process, files: Files, size: int) -> str:
    """What the process runs, when its bundle is there, of so many bytes."""
    return _SCRIPT.format(
        pid=process.inner_pid, bundle=files.inside(files.bundle), size=size, failure=files.inside(files.failure)
    )


def request(files: Files) -> str:
    inside = {name: files.inside(getattr(files, name)) for name in ("request", "script", "failure")}
    return _REQUEST.format(**inside)
