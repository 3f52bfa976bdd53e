"""Whether an archive fits modules that are not imported yet, by what would be imported.

`fit` proves it when a module has come; then it is late to find that another one of the same patch does not fit. So the
code of all of them is looked at first, as their loaders would execute it. Nothing is executed for that: not even the
packages around a module, whose path is looked up instead.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any

from livepatch.archive.format import Archive, ObjectEntry, refusal
from livepatch.core import codes, cpython
from livepatch.core.symbols import loaded_module

#: What installed patches before this one make of functions, by module, name and position.
Versions = dict[tuple[str, str, int], CodeType]


def found(archive: Archive, versions: Versions, without: Iterable[object]) -> bool:
    """Whether any module that the archive changes is there to be imported, or is imported.

    Raises LivepatchError (EINVAL) if a function in one that is not imported yet is not what the archive was built for.
    `without` are finders that are not asked.
    """
    is_there = False
    for entry in archive.manifest.objects:
        if loaded_module(entry.module) is not None:
            is_there = True
            continue
        code = _code_of(entry.module, [finder for finder in sys.meta_path if finder not in without])
        if code is not None:
            is_there = True
            _compare(archive, entry, code, {} if archive.manifest.replace else versions)
    return is_there


def made_by(archive: Archive) -> Versions:
    """What an archive makes of functions."""
    made: Versions = {}
    for entry in archive.manifest.objects:
        new = _definitions(archive.new[entry.path], entry.path)
        for function in entry.functions:
            if not function.retired:
                code = _find(new, function.name, function.new_sympos)
                if code is not None:
                    made[entry.module, function.name, function.sympos] = code
    return made


def _compare(archive: Archive, entry: ObjectEntry, code: CodeType, versions: Versions) -> None:
    there, old = codes.definitions(code), _definitions(archive.old[entry.path], entry.path)
    for function in entry.functions:
        expected = _find(old, function.name, function.sympos)
        live = versions.get((entry.module, function.name, function.sympos)) or _find(
            there, function.name, function.sympos
        )
        if expected is None or live is None or not codes.same(live, expected):
            raise refusal(f"'{function.name}' in '{entry.module}' is not the one that the patch was built for.")


def _definitions(content: bytes, path: str) -> list[codes.Definition]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codes.definitions(compile(content, path, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal(f"This Python cannot compile {path}.") from None


def _find(found: list[codes.Definition], name: str, sympos: int) -> CodeType | None:
    same_name = [definition for definition in found if definition.name == name]
    for definition in same_name:
        if definition.sympos == sympos or (sympos == 0 and len(same_name) == 1):
            return definition.code
    return None


def _code_of(name: str, finders: Sequence[Any]) -> CodeType | None:
    """What importing a module would execute, None if it is not there or its loader does not tell."""
    spec = _spec_of(name, finders)
    try:
        code: CodeType | None = spec.loader.get_code(name) if spec is not None else None  # type: ignore[union-attr]
    except Exception:  # any loader may be in there
        return None
    return code


def _spec_of(name: str, finders: Sequence[Any]) -> ModuleSpec | None:
    parent, _, _ = name.rpartition(".")
    path: Sequence[str] | None = None
    if parent:
        around = sys.modules.get(parent) or _spec_of(parent, finders)
        path = getattr(around, "__path__", None) or getattr(around, "submodule_search_locations", None)
        if path is None:
            return None
    for finder in finders:
        try:
            with cpython.finders_lock():
                spec: ModuleSpec | None = finder.find_spec(name, path, None)
        except Exception:  # any finder may be in there
            continue
        if spec is not None:
            return spec
    return None
