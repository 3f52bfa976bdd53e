"""What of an archive fits this process and what does not: each function that it changes, one by one.

`fit.bind` decides, and refuses with one sentence at the first thing that is not as it should be. Here the same
questions are asked about all of it, for `check`: which release is there, which functions are not what the patch was
built for and in which way, and whose versions of them are in force. Nothing is changed, imported or executed.

What is in memory counts. What lies on disk may be newer than the process, and is told apart: a package that was
upgraded under a running process is the usual reason for a patch that does not fit.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import CodeType, ModuleType
from typing import Any

from livepatch.archive.format import Archive, FunctionEntry, ObjectEntry
from livepatch.core import codes, lists
from livepatch.core.codes import Definition
from livepatch.core.model import BASE_OBJECT
from livepatch.core.symbols import Tables, front_code, loaded_module

#: What a function in the process is, compared with what the patch was built for.
FITS = "fits"
DIFFERS = "differs"
NEW = "already new"  # what the patch would make of it
MISSING = "missing"  # or there more often than in the source, so that none can be meant
HELD = "held"  # somebody else has put code into it
ABSENT = "not defined here"  # allowed: it stands below a condition
LATER = "not imported"

_SHOWN = 3  # names of a kind in a sentence


def survey(archive: Archive) -> dict[str, Any]:
    """How the archive and this process fit, for JSON.

    `releases` have name, from, to, and as strings or None: `installed`, the version on disk where the modules came
    from, and `imported`, what the package in memory calls its version. `modules` has for each module its name, file
    and functions; of a function, `state` is one of the constants above, `how` a sentence, `patches` the names of the
    patches whose versions lie on it, the one in force last, and `expected` and `live` its source if it differs and
    the source is known; it is `immediate` if it changes for everybody at once, and `reason` says why it changes, and
    why so. `names` are what else it would change in the module, by fate.

    There are no modules if this Python cannot compile the archive, or its manifest is wrong; `fit.bind` says why.
    """
    entries = [(entry, name) for entry in archive.manifest.objects for name in (entry.module, *_as_main(entry))]
    live = {name: module for _, name in entries if (module := loaded_module(name)) is not None}
    tables = Tables([*live.values()])
    try:
        modules = [_module(archive, entry, name, live.get(name), tables) for entry, name in entries]
    except (LookupError, SyntaxError, ValueError, RecursionError, MemoryError):
        modules = []
    releases = [_release(built, live.values()) for built in archive.manifest.distributions]
    return {"releases": releases, "modules": modules}


def _as_main(entry: ObjectEntry) -> list[str]:
    """The main program, if it is this module."""
    main = sys.modules.get(BASE_OBJECT)
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else None
    file = os.path.basename(getattr(main, "__file__", None) or "")
    return [BASE_OBJECT] if name == entry.module or (spec is None and file == entry.path) else []


def _module(archive: Archive, entry: ObjectEntry, name: str, live: ModuleType | None, tables: Tables) -> dict[str, Any]:
    old, new = archive.old[entry.path], archive.new[entry.path]
    sources = _definitions(old, entry.path), _definitions(new, entry.path)
    text = _Text(live)
    functions = [
        _function(function, live, tables, sources, replace=archive.manifest.replace) for function in entry.functions
    ]
    for function in functions:
        code, expected = function.pop("code"), function.pop("old")
        if function["state"] == DIFFERS:
            function["live"] = text.of(code)
            function["expected"] = _lines(old.decode("utf-8", "replace"), expected)
    return {
        "name": name,
        "imported": live is not None,
        "file": str(getattr(live, "__file__", None) or ""),
        "functions": functions,
        "names": _names(entry),
    }


def _names(entry: ObjectEntry) -> dict[str, list[str]]:
    """What the patch does to the module besides exchanging functions: the names, by the field of the entry."""
    found = {}
    for field in entry.declared:
        value = getattr(entry, field)
        if field != "functions" and isinstance(value, tuple):
            found[field] = [part.name for part in value if hasattr(part, "name")]
    return {key: names for key, names in found.items() if names}


def _function(
    entry: FunctionEntry,
    live: ModuleType | None,
    tables: Tables,
    sources: tuple[list[Definition], list[Definition]],
    *,
    replace: bool,
) -> dict[str, Any]:
    expected, wanted = _find(sources[0], entry.name, entry.sympos), _find(sources[1], entry.name, entry.new_sympos)
    shown: dict[str, Any] = {"name": entry.name, "line": entry.line, "patches": [], "how": "", "old": expected}
    shown |= {"immediate": entry.immediate, "reason": entry.reason}
    shown |= {"live": None, "expected": None, "code": expected}
    if live is None:
        return {**shown, "state": LATER, "how": "its module is not imported yet"}
    foreign = tables.foreign_code(live, entry.name)
    if foreign is not None:
        how = f"somebody has put other code into it, '{foreign.co_qualname}' from {foreign.co_filename}"
        return {**shown, "state": HELD, "how": how}
    same_name = tables.all(live, entry.name)
    found = [symbol for symbol in same_name if entry.sympos in (0, symbol.sympos)]
    if not found and entry.conditional:
        return {**shown, "state": ABSENT, "how": "the condition that it is defined under does not hold here"}
    if not found or (not entry.sympos and len(found) > 1):
        times = f"there are {len(same_name)} of this name" if same_name else "there is no such function"
        return {**shown, "state": MISSING, "how": times}
    original = found[0].code
    patches = _patches_on(original)
    shown |= {"patches": patches, "code": original if replace else front_code(original)}
    if codes.same(shown["code"], expected):
        return {**shown, "state": FITS}
    if codes.same(shown["code"], wanted):
        by = f", by the patch '{patches[-1]}'" if patches and not replace else ""
        return {**shown, "state": NEW, "how": f"it is what the patch would make of it{by}"}
    if patches and not replace and codes.same(original, expected):
        how = f"the patch '{patches[-1]}' has put its version in front of what is expected"
    else:
        how = difference(shown["code"], expected)
    return {**shown, "state": DIFFERS, "how": how}


def _patches_on(original: CodeType) -> list[str]:
    """The enabled patches that have a version of this function, the one in force last."""
    return [
        patch.name
        for patch in lists.listed.copy()
        if any(func.old_code is original for obj in patch.objects for func in obj.funcs)
    ]


def difference(live: CodeType, expected: CodeType) -> str:
    """In which way two versions of a function differ, as far as their compiled code tells, in words."""
    if codes.kind(live) != codes.kind(expected):
        return f"it is a {codes.kind(live)}, and a {codes.kind(expected)} is expected"
    if _parameters(live) != _parameters(expected):
        return f"its parameters are ({_parameters(live)}), and ({_parameters(expected)}) are expected"
    said = []
    for what, mine, others in (
        ("uses", _used(live), _used(expected)),
        ("has the constant", _constants(live), _constants(expected)),
    ):
        said += [f"{what} {_some(mine - others)}"] if mine - others else []
        said += [f"lacks {_some(others - mine)}"] if others - mine else []
    return f"it {', '.join(said)}" if said else "its instructions are others, with the same names and constants"


def _some(found: Iterable[str]) -> str:
    ordered = sorted(found)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _parameters(code: CodeType) -> str:
    count = code.co_argcount + code.co_kwonlyargcount
    names = list(code.co_varnames[:count])
    for flag, star in ((codes.VARARGS, "*"), (codes.VARKEYWORDS, "**")):
        if code.co_flags & flag:
            names.append(star + code.co_varnames[count])
            count += 1
    return ", ".join(names)


def _all(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all(constant)


def _used(code: CodeType) -> set[str]:
    return {name for inner in _all(code) for name in inner.co_names}


def _constants(code: CodeType) -> set[str]:
    """The constants that say something, as they would be written; docstrings do not count."""
    return {
        repr(constant) if len(repr(constant)) <= 60 else repr(constant)[:57] + "..."
        for inner in _all(code)
        for constant in inner.co_consts
        if constant is not None and not isinstance(constant, CodeType) and constant != codes.docstring(inner)
    }


def _definitions(content: bytes, path: str) -> list[Definition]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return codes.definitions(compile(content, path, "exec", dont_inherit=True))


def _find(found: list[Definition], name: str, sympos: int) -> CodeType:
    same_name = [definition for definition in found if definition.name == name]
    for definition in same_name:
        if definition.sympos == sympos or (sympos == 0 and len(same_name) == 1):
            return definition.code
    raise LookupError(name)


class _Text:
    """The source of a live module, as far as its loader has it and it is what runs."""

    def __init__(self, module: ModuleType | None) -> None:
        self.module = module
        self._source: str | None = None
        self._found: list[Definition] | None = None

    def of(self, code: CodeType) -> str | None:
        """The source of a function, None if it is not known: the file may have changed since it was imported."""
        if self._found is None:
            self._read()
        assert self._found is not None
        for definition in self._found:
            if definition.name == code.co_qualname and codes.same(definition.code, code):
                assert self._source is not None
                return _lines(self._source, definition.code)
        return None

    def _read(self) -> None:
        self._found = []
        loader = getattr(self.module, "__loader__", None)
        try:
            self._source = loader.get_source(getattr(self.module, "__name__", ""))  # type: ignore[union-attr]
            if self._source is not None:
                self._found = _definitions(self._source.encode(), "<live>")
        except Exception:  # any loader may be in there, the file may be gone, or no longer be Python
            return


def _lines(source: str, code: CodeType) -> str:
    last = max((line for inner in _all(code) for _, line, _, _ in inner.co_positions() if line), default=0)
    return "\n".join(source.splitlines()[code.co_firstlineno - 1 : max(last, code.co_firstlineno)])


def _release(built: Mapping[str, str], live: Iterable[ModuleType]) -> dict[str, Any]:
    """Which release the patch is for, and which is there: of those modules that were installed with it."""
    found: dict[str, Any] = {**built, "installed": None, "imported": None}
    for module in live:
        name, file = module.__name__, getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        folder = os.path.abspath(file)
        for _ in range(name.count(".") + 1 + (os.path.basename(file).partition(".")[0] == "__init__")):
            folder = os.path.dirname(folder)
        installed = _installed(folder, built["name"])
        if installed is not None:
            version = getattr(sys.modules.get(name.partition(".")[0]), "__version__", None)
            return {**found, "installed": installed, "imported": version if isinstance(version, str) else None}
    return found


def _installed(folder: str, name: str) -> str | None:
    """The version of a package that is installed in a folder. What `importlib.metadata` says costs a megabyte."""
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for found in names:
        match = re.fullmatch(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info", found)
        if match is not None and re.sub(r"[-_.]+", "-", match[1]).lower() == wanted:
            return match[2]
    return None
