"""Python that a person wrote for a patch: a patch file, or the `hooks.py` of an archive.

`hooks.py` brings the callbacks for what a build cannot know: which data to convert, which cache to drop, whether the
patch may be loaded at all. It leaves them in `__livepatch__`, by the name of the module:

    __livepatch__ = {"shop.prices": livepatch.Callbacks(pre_patch=check, post_patch=drop_cache)}

It may also say what instances made before the patch have under an attribute that only new ones get, where the source
does not tell, in `__livepatch_attributes__`: a function for each, which is given the instance when the attribute is
read for the first time.

    __livepatch_attributes__ = {"shop.prices:Basket.limit": lambda basket: len(basket.items)}

And it may say what is to be done with every live instance of a class (and of its subclasses), in
`__livepatch_instances__`. It must be written as a dict with strings for keys, so that `check` can tell what that takes
without executing anything.

    __livepatch_instances__ = {"shop.prices:Basket": livepatch.Callbacks(post_patch=convert, post_unpatch=convert_back)}

It is executed once, when the patch is loaded and known to fit, before anything is changed; where a patch is only
checked it is compiled, no more. The callbacks then run as those of any patch; what the patch adds to the module is
there before `pre_patch` runs, and until `post_unpatch` has run.
"""

from __future__ import annotations

import ast
import io
import linecache
import re
from collections.abc import Iterable
from types import CodeType, ModuleType
from typing import Any

from livepatch.archive.format import HOOKS, Archive, refusal
from livepatch.core.model import Callbacks, LivepatchError

#: What a file written by hand must define.
RESULT = "__livepatch__"

#: What it may define besides.
ATTRIBUTES = "__livepatch_attributes__"
INSTANCES = "__livepatch_instances__"

_WRITTEN = f"write {INSTANCES} once, as {{'module:Class': livepatch.Callbacks(...)}}, since it is also read."
_MUST = f"must leave its callbacks in {RESULT}, as {{'module': livepatch.Callbacks(...)}}."


def compile_file(content: bytes, file: str, shown: str) -> CodeType:
    """The code of a file that messages call `shown`. Raises LivepatchError (EINVAL) if it cannot be compiled here."""
    try:
        code: CodeType = compile(content, file, "exec", dont_inherit=True)
        return code
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refusal(f"{shown} failed with {_told(error, file)}") from None


def execute(code: CodeType, module: ModuleType, shown: str) -> None:
    """Run it as the body of a module. Raises LivepatchError (EINVAL), whatever it does: it may even try to exit."""
    try:
        exec(code, module.__dict__)
    except LivepatchError:
        raise
    except BaseException as error:
        raise refusal(f"{shown} failed with {_told(error, code.co_filename)}") from None


def keep_source(content: bytes, file: str) -> None:
    """Let tracebacks and `inspect` find the source; `linecache.cache.pop(file, None)` forgets it."""
    from importlib.util import decode_source

    try:
        text = decode_source(content)  # knows cookies and byte order marks
    except (SyntaxError, UnicodeDecodeError):  # the compiler knows even more
        text = content.decode(errors="replace")
    # Not splitlines(): a form feed inside of a line does not end it.
    lines = io.StringIO(text).readlines()
    linecache.cache[file] = (len(content), None, lines, file)


def check_hooks(content: bytes) -> None:
    """Raise LivepatchError (EINVAL) for what cannot be hooks, without executing it."""
    shown = "The file with the hooks"
    if not {RESULT, ATTRIBUTES, INSTANCES} & {*compile_file(content, HOOKS, shown).co_names}:
        raise refusal(f"{shown} {_MUST}")
    classes_of(content)


def attributes_of(content: bytes) -> set[str]:
    """The attributes for which hooks have a function, by what is written there; nothing is executed.

    One that does nothing but raise NotImplementedError, or is `...`, is still to be written, and does not count.
    """
    functions = {node.name: node for node in ast.parse(content).body if isinstance(node, ast.FunctionDef)}
    found: set[str] = set()
    for given in _dicts(content, ATTRIBUTES):
        for key, value in zip(given.keys, given.values, strict=True):
            function = functions.get(value.id) if isinstance(value, ast.Name) else value
            if isinstance(key, ast.Constant) and not (function is not None and _is_unwritten(function)):
                found.add(str(key.value))
    return found


def classes_of(content: bytes) -> list[str]:
    """The classes, as `module:C`, for whose instances hooks have callbacks; nothing is executed.

    Raises LivepatchError (EINVAL) if that cannot be told.
    """
    compile_file(content, HOOKS, HOOKS)
    found = _dicts(content, INSTANCES)
    names: list[Any] = [key.value for one in found for key in _constants(one)]
    named = sum(isinstance(node, ast.Name) and node.id == INSTANCES for node in ast.walk(ast.parse(content)))
    if len(found) != named or named > 1 or len(names) != sum(len(one.keys) for one in found):
        raise refusal(f"{HOOKS} must {_WRITTEN}")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
            raise refusal(f"{HOOKS} has {name!r} in {INSTANCES} instead of 'module:Class'.")
    return names


def _dicts(content: bytes, name: str) -> list[ast.Dict]:
    """The dicts that the module's body gives this name, as they are written."""
    found = []
    for node in ast.parse(content).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found.append(node.value)
    return found


def _constants(found: ast.Dict) -> list[ast.Constant]:
    return [key for key in found.keys if isinstance(key, ast.Constant)]


def _is_unwritten(node: ast.AST) -> bool:
    """Whether a function, or what is in its place, is as a skeleton has it."""
    if isinstance(node, ast.FunctionDef):
        done = [inner for inner in node.body if not (isinstance(inner, ast.Expr) and _is_text(inner.value))]
        return len(done) == 1 and _is_unwritten(done[0])
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    if isinstance(node, ast.Expr | ast.Lambda):
        return _is_unwritten(node.value if isinstance(node, ast.Expr) else node.body)
    return isinstance(node, ast.Constant) and node.value is ...


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


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
        self._classes = {name: Callbacks() for name in classes_of(self.content or b"")}
        self._check_modules(name.partition(":")[0] for name in self._classes)

    def load(self) -> None:
        """Execute them. Raises LivepatchError (EINVAL) if that fails or does not leave what it must."""
        if self._code is None:
            return
        execute(self._code, self._module, HOOKS)
        others = any(hasattr(self._module, name) for name in (ATTRIBUTES, INSTANCES))
        found = getattr(self._module, RESULT, {} if others else None)
        if not isinstance(found, dict):
            raise refusal(f"{HOOKS} {_MUST}")
        self._check_modules(found)
        classes = getattr(self._module, INSTANCES, {})
        if not isinstance(classes, dict) or classes.keys() != self._classes.keys():
            raise refusal(f"{HOOKS} must {_WRITTEN}")
        for name, callbacks in [*found.items(), *classes.items()]:
            if not isinstance(callbacks, Callbacks):
                raise refusal(f"{HOOKS} has {callbacks!r} for {name!r} instead of livepatch.Callbacks(...).")
        self._callbacks, self._classes = dict(found), dict(classes)

    def _check_modules(self, modules: Iterable[str]) -> None:
        for module in modules:
            if module not in self._known:
                names = ", ".join(self._known)
                raise refusal(f"{HOOKS} has callbacks for {module!r}, and the patch changes only: {names}.")

    def attribute(self, name: str) -> Any:
        """The function for an attribute, `module:C.name`. Raises LivepatchError (EINVAL) if there is none."""
        given = getattr(self._module, ATTRIBUTES, None)
        function = given.get(name) if isinstance(given, dict) else None
        if not callable(function):
            raise refusal(f"{HOOKS} must say in {ATTRIBUTES} what instances have under {name!r}.")
        return function

    def of(self, module: str) -> Callbacks:
        """The callbacks for a module, as far as there are any."""
        return self._callbacks.get(module) or Callbacks()

    def instances(self, module: str) -> dict[str, Callbacks]:
        """The callbacks for instances of classes of a module, by the names of these; until `load`, the names only."""
        split = [(name.partition(":"), callbacks) for name, callbacks in self._classes.items()]
        return {path: callbacks for (named, _, path), callbacks in split if named == module}


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
