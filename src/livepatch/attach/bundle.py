"""What travels into a process that was not prepared: the agent as one zip, and the script that starts it.

The script only starts a thread; the imports happen there, while the main thread goes on. They are all done when the
agent answers, so that the zip can go then.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import livepatch

from .files import Files
from .processes import Process

#: What travels: the public face, and the layers that run in a patched process.
_TRAVELS = ("__init__.py", "core", "agent", "archive")

_SCRIPT = """\
def livepatch_attach():
    import _thread, os
    if os.getpid() != {pid}:
        return
    def start():
        import importlib, sys
        sys.path.append({zip!r})
        try:
            import livepatch
            if not os.path.isdir(livepatch.__path__[0]):
                # In a zip, ours or that of another attach at this instant, and both go away once the agent answers.
                for name in {modules!r}:
                    importlib.import_module(name)
            livepatch.start_agent(installed=False)
        except BaseException as error:
            for name in [name for name in sys.modules if name.partition(".")[0] == "livepatch"]:
                if {zip!r} in str(sys.modules[name].__spec__.origin):
                    del sys.modules[name]
            try:
                with open({failure!r}, "w") as file:
                    file.write(str(error) or type(error).__name__)
            except OSError:
                pass
        finally:
            sys.path.remove({zip!r})
            sys.path_importer_cache.pop({zip!r}, None)
    _thread.start_new_thread(start, ())
livepatch_attach()
del livepatch_attach
"""


def agent_zip() -> bytes:
    """The part of this package that runs in a patched process, as one zip."""
    package = Path(livepatch.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in _sources(package):
            archive.write(file, Path("livepatch") / file.relative_to(package))
    return content.getvalue()


def _sources(package: Path) -> list[Path]:
    found: list[Path] = []
    for part in _TRAVELS:
        path = package / part
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def script(process: Process, files: Files) -> str:
    package = Path(livepatch.__file__).parent
    modules = [
        ".".join(("livepatch", *file.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for file in _sources(package)
    ]
    return _SCRIPT.format(
        pid=process.inner_pid,
        zip=files.inside(f"{files.stem}.zip"),
        failure=files.inside(f"{files.stem}.failed"),
        modules=modules,
    )
