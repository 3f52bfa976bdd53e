"""A process that is vulnerable: imports a proof of concept and answers questions about it, one a line.

usage: target.py FOLDER PACKAGES

FOLDER has `poc.py` and perhaps `works.py`, which is imported after it and may use its objects as those of `poc`.
PACKAGES is the folder that the releases were installed to: `remember`, `settle` and `changed` are about its modules.
Each line on standard input is `pid`, `works`, one of those three, or a function of the proof of concept; each answer is
a line of JSON, [true, value] or [false, what went wrong].
"""

from __future__ import annotations

import dis
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import content  # beside this script

folder, packages = Path(sys.argv[1]), os.path.realpath(sys.argv[2]) + os.sep


def load(name: str) -> ModuleType | None:
    file = folder / f"{name}.py"
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()
#: Of a function: what a patch may exchange. Code is compared as a value, the rest by identity.
FUNCTION = ("__defaults__", "__kwdefaults__", "__doc__", "__wrapped__")
#: Bookkeeping of the interpreter and of abstract base classes.
SKIPPED = {"__dict__", "__weakref__", "_abc_impl", "__builtins__", "__annotations_cache__", "__warningregistry__"}


def things() -> Iterator[tuple[str, object]]:
    """The modules of the packages and all classes and functions that they define, by name."""
    for name, module in sorted(sys.modules.copy().items()):
        file = getattr(module, "__file__", None)
        if not isinstance(module, ModuleType) or not file or not os.path.realpath(file).startswith(packages):
            continue
        yield name, module
        seen: set[int] = set()  # classes may name each other
        waiting = [(f"{name}.{key}", value) for key, value in vars(module).copy().items()]
        while waiting:
            path, value = waiting.pop()
            kind = type(value)  # not isinstance: proxies would be asked what they stand for, and need not know now
            if kind in (staticmethod, classmethod):
                value = value.__func__
            if id(value) in seen:
                continue
            seen.add(id(value))
            if kind is property:
                waiting += [(f"{path}.{part}", getattr(value, part)) for part in ("fget", "fset", "fdel")]
            if type(value) is FunctionType:
                yield path, value
            elif issubclass(type(value), type) and value.__module__ == name:
                yield path, value
                waiting += [(f"{path}.{key}", inner) for key, inner in vars(value).copy().items()]


def parts(thing: object) -> dict[object, object]:
    """What a thing consists of."""
    if type(thing) is FunctionType:
        found = {name: getattr(thing, name, MISSING) for name in FUNCTION}
        for name in ("__defaults__", "__kwdefaults__"):
            found[name] = as_values(found[name])
        return {**found, "__code__": thing.__code__}
    return {key: value for key, value in vars(thing).copy().items() if key not in SKIPPED}


def as_values(held: object) -> object:
    """Defaults: the tuple or dict may be another, what it holds must not be."""
    if type(held) is tuple:
        return ("values", *map(id, held))
    if type(held) is dict:
        return ("values", *((key, id(value)) for key, value in held.items()))
    return held


def contents(value: object) -> dict[object, object] | None:
    """What is in a table that can be changed in place."""
    if type(value) is dict:
        return value.copy()
    if type(value) is list:
        return dict(enumerate(value))
    if type(value) is set:
        return dict.fromkeys(value, True)
    return None


def assigned(code: CodeType) -> set[str]:
    """The names of its module that functions assign by `global`: the state of a program, not of a release."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"}
    return found.union(*(assigned(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


remembered: list[tuple[str, object, dict[object, object], dict[object, Any]]] = []
by_use: set[object] = set()


def remember() -> int:
    """Note what everything consists of now, by identity; how many things these are."""
    seen = set()
    for name, thing in things():
        if id(thing) not in seen:
            seen.add(id(thing))
            held = parts(thing)
            if type(thing) is FunctionType:
                by_use.update((id(thing.__globals__), key) for key in assigned(thing.__code__))
            tables = {key: inside for key, value in held.items() if (inside := contents(value)) is not None}
            remembered.append((name, thing, held, tables))
    return len(remembered)


def differences() -> Iterator[tuple[object, str]]:
    """What is not as it was: another object, or gone, or new; with a key that stays. Tables may have grown."""
    for name, thing, before, tables in remembered:
        now = parts(thing)
        names = id(vars(thing)) if type(thing) is ModuleType else None
        for key in before.keys() | now.keys():
            if (names, key) in by_use:
                continue
            was, is_now = before.get(key, MISSING), now.get(key, MISSING)
            if type(is_now) is ModuleType and was is MISSING:
                continue  # a submodule that was imported meanwhile
            same = was is is_now if key != "__code__" and type(was) is not tuple else was == is_now
            if not same:
                yield (id(thing), key), f"{name}.{key} is {short(is_now)}, was {short(was)}"
            elif key in tables:
                inside = contents(is_now) or {}
                for inner, value in tables[key].items():
                    found = inside.get(inner, MISSING)
                    if found is not value:
                        yield (id(thing), key, inner), f"{name}.{key}[{inner!r}] is {short(found)}, was {short(value)}"


def settle() -> int:
    """Note that what is different now became so by use, without any patch; how many things do."""
    by_use.update(key for key, _ in differences())
    return len(by_use)


def changed() -> list[str]:
    """What is not as it was, other than by use."""
    return sorted(text for key, text in differences() if key not in by_use)


def short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__qualname__}"
    return text if len(text) < 100 else text[:97] + "..."


def describe() -> dict[str, dict[str, str]]:
    """What each module of the packages consists of; see `content.py`."""
    found = {name: content.described(thing) for name, thing in things() if type(thing) is ModuleType}
    # Where the releases were installed is not what they are.
    return json.loads(json.dumps(found).replace(json.dumps(packages)[1:-1], "<packages>/"))


def works() -> bool:
    """Whether the package does what it shall, as far as the case knows."""
    return all(module.works() is not False for module in (poc, smoke) if hasattr(module, "works"))


if __name__ == "__main__":
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the packages print
    poc = load("poc")
    smoke = load("works")
    questions: dict[str, Callable[[], object]] = {"works": works, "pid": os.getpid}
    questions |= {"remember": remember, "settle": settle, "changed": changed, "describe": describe}
    for line in sys.stdin:
        question = line.strip()
        try:
            answer = [True, questions.get(question, getattr(poc, question, lambda: None))()]
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = [False, f"{error!r} in {where.name} ({os.path.basename(where.filename)}:{where.lineno})"]
        print(json.dumps(answer), file=answers, flush=True)
