"""Python that a person wrote for a patch: a patch file, or the `hooks.py` of an archive.

`hooks.py` brings the callbacks for what a build cannot know: which data to convert, which cache to drop, whether the
patch may be loaded at all. It leaves them in `__livepatch__`, by the name of the module:

    __livepatch__ = {"shop.prices": livepatch.Callbacks(pre_patch=check, post_patch=drop_cache)}

It is executed once, when the patch is loaded and known to fit, before anything is changed; where a patch is only
checked it is compiled, no more. The callbacks then run as those of any patch; what the patch adds to the module is
there before `pre_patch` runs, and until `post_unpatch` has run.
"""

from __future__ import annotations

import errno
import linecache
from types import CodeType, ModuleType

from livepatch.archive.format import HOOKS, Archive
from livepatch.core.model import Callbacks, LivepatchError

#: What a file written by hand must define.
RESULT = "__livepatch__"

_MUST = f"must leave its callbacks in {RESULT}, as {{'module': livepatch.Callbacks(...)}}."


def compile_file(content: bytes, file: str, shown: str) -> CodeType:
    """The code of a file that messages call `shown`. Raises LivepatchError (EINVAL) if it cannot be compiled here."""
    try:
        code: CodeType = compile(content, file, "exec", dont_inherit=True)
        return code
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LivepatchError(errno.EINVAL, f"{shown} failed with {_told(error, file)}") from None


def execute(code: CodeType, module: ModuleType, shown: str) -> None:
    """Run it as the body of a module. Raises LivepatchError (EINVAL), whatever it does: it may even try to exit."""
    try:
        exec(code, module.__dict__)
    except LivepatchError:
        raise
    except BaseException as error:
        raise LivepatchError(errno.EINVAL, f"{shown} failed with {_told(error, code.co_filename)}") from None


def keep_source(content: bytes, file: str) -> None:
    """Let tracebacks and `inspect` find the source; `linecache.cache.pop(file, None)` forgets it."""
    lines = content.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[file] = (len(content), None, lines, file)


def check_hooks(content: bytes) -> None:
    """Raise LivepatchError (EINVAL) for what cannot be hooks, without executing it."""
    shown = "The file with the hooks"
    if RESULT not in compile_file(content, HOOKS, shown).co_names:
        raise _refusal(f"{shown} {_MUST}")


class Hooks:
    """The callbacks in an archive. Raises LivepatchError (EINVAL) if its hooks cannot be compiled here."""

    def __init__(self, archive: Archive) -> None:
        patch = archive.manifest.name
        self.content = archive.hooks
        self.file = f"<livepatch {patch}>/{HOOKS}"
        self._module = ModuleType(f"{RESULT}.{patch}")
        self._module.__file__ = self.file
        self._known = [entry.module for entry in archive.manifest.objects]
        self._code = None if self.content is None else compile_file(self.content, self.file, HOOKS)
        self._callbacks: dict[str, Callbacks] = {}

    def load(self) -> None:
        """Execute them. Raises LivepatchError (EINVAL) if that fails or does not leave what it must."""
        if self._code is None:
            return
        execute(self._code, self._module, HOOKS)
        found = getattr(self._module, RESULT, None)
        if not isinstance(found, dict):
            raise _refusal(f"{HOOKS} {_MUST}")
        for module, callbacks in found.items():
            if module not in self._known:
                names = ", ".join(self._known)
                raise _refusal(f"{HOOKS} has callbacks for {module!r}, and the patch changes only: {names}.")
            if not isinstance(callbacks, Callbacks):
                raise _refusal(f"{HOOKS} has {callbacks!r} for {module!r} instead of livepatch.Callbacks(...).")
        self._callbacks = dict(found)

    def of(self, module: str) -> Callbacks:
        """The callbacks for a module, as far as there are any."""
        return self._callbacks.get(module) or Callbacks()


def _refusal(sentence: str) -> LivepatchError:
    return LivepatchError(errno.EINVAL, sentence)


def _told(error: BaseException, file: str) -> str:
    """An exception in one line, with the line of the file that it came from."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" (line {line})" if line else ""
    said = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}{where}: {said}".rstrip(": ") + "."
