"""A module as it lives in a process: everything about it that a patch could touch, and how it compares."""

import functools
import gc
import importlib.util
import sys
from operator import itemgetter
from types import FunctionType, ModuleType

from livepatch.core import codes

#: What the interpreter and other readers put there on their own account.
_LAZY = {"__annotations__", "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__weakref__", "__dict__"}


def imported(name, source, folder):
    """Import a source under a name, from a file."""
    file = folder / "live" / (name.replace(".", "_") + ".py")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(source)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def beside(live, source):
    """The module that a fresh import of this source would give; it takes the live one's place only meanwhile."""
    module = ModuleType(live.__name__)
    vars(module).update({key: vars(live)[key] for key in ("__spec__", "__package__", "__file__", "__loader__")})
    sys.modules[live.__name__] = module
    try:
        exec(compile(source, live.__file__, "exec", dont_inherit=True), vars(module))
    finally:
        sys.modules[live.__name__] = live
    return module


def functions(module):
    """Path -> function, for all that the module and its classes hold; `C.m:fget` for what is inside of a value."""
    found = {}

    def look(path, value, depth):
        if depth > 6:
            return
        if isinstance(value, FunctionType):
            if value.__globals__ is vars(module):
                found.setdefault(path, value)
            if hasattr(value, "__wrapped__"):
                look(path + ":__wrapped__", value.__wrapped__, depth + 1)
        elif isinstance(value, staticmethod | classmethod):
            look(path, value.__func__, depth + 1)
        elif isinstance(value, property):
            for part in ("fget", "fset", "fdel"):
                look(f"{path}:{part}", getattr(value, part), depth + 1)
        elif isinstance(value, functools.cached_property):
            look(path, value.func, depth + 1)
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for name, inner in list(vars(value).items()):
                if isinstance(inner, type) and not inner.__qualname__.startswith(value.__qualname__ + "."):
                    continue
                look(f"{path}.{name}", inner, depth + 1)
        elif hasattr(type(value), "__wrapped__") or type(value) is type(functools.lru_cache(len)):
            look(path + ":__wrapped__", value.__wrapped__, depth + 1)

    for name, value in list(vars(module).items()):
        look(name, value, 0)
    return found


def classes(module):
    """All classes that the module and its classes hold, and were made by it."""
    found, pending = [], list(vars(module).values())
    while pending:
        thing = pending.pop()
        if issubclass(type(thing), type) and thing not in found:  # isinstance() wakes lazy objects
            if getattr(thing, "__module__", None) == module.__name__:
                found.append(thing)
                pending += list(vars(thing).values())
    return found


class Snapshot:
    """Identity of everything: the module's names, its classes' members, and what its functions are made of."""

    def __init__(self, module):
        self.module = module
        self.names = list(vars(module).items())
        self.classes = [(cls, self._members(cls), cls.__bases__) for cls in classes(module)]
        self.functions = [(function, self._parts(function)) for function in self._all()]

    def _all(self):
        return [
            thing
            for thing in gc.get_referrers(vars(self.module))
            if type(thing) is FunctionType and thing.__globals__ is vars(self.module)
        ]

    @staticmethod
    def _members(cls):
        # What was taken away and came back is at the end of the dictionary.
        return sorted(((name, value) for name, value in vars(cls).items() if name not in _LAZY), key=itemgetter(0))

    @staticmethod
    def _parts(function):
        kwdefaults = function.__kwdefaults__
        return [
            *("__code__", function.__code__),
            *("__defaults__", function.__defaults__),
            *("__kwdefaults__", kwdefaults, *(kwdefaults or {}).items()),
            *("__closure__", function.__closure__, *map(_content, function.__closure__ or ())),
            *("__dict__", *function.__dict__.items()),
            *("__doc__", function.__doc__),
            *("__name__", function.__name__, function.__qualname__, function.__module__),
            *("__annotations__", dict(function.__annotations__)),
        ]

    def differences(self):
        """What is not as it was, each in a line."""
        found = list(_different(self.module.__name__, self.names, list(vars(self.module).items())))
        for cls, members, bases in self.classes:
            found += _different(cls.__qualname__, members, self._members(cls))
            found += [f"bases of {cls.__qualname__}"] if cls.__bases__ != bases else []
        for function, parts in self.functions:
            found += _different(function.__qualname__, parts, self._parts(function))
        return found


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _different(where, before, after):
    if len(before) != len(after):
        names = {item[0] for item in before if isinstance(item, tuple)} ^ {i[0] for i in after if isinstance(i, tuple)}
        yield f"{where}: {sorted(map(str, names)) or 'more or fewer parts'}"
    for was, now in zip(before, after, strict=False):
        if isinstance(was, tuple) and isinstance(now, tuple) and len(was) == len(now) == 2:
            if was[0] != now[0] or was[1] is not now[1]:
                yield f"{where}: {was[0]}"
        elif isinstance(was, dict):
            if was != now:
                yield f"{where}: annotations"
        elif was is not now and not (isinstance(was, str) and was == now):
            yield f"{where}: {was!r} is now {now!r}"


def unlike(live, fresh, *, defaults):
    """How a live function differs from a fresh one, or None."""
    code = live.__code__
    if code.co_freevars != fresh.__code__.co_freevars:  # it cannot carry the new code itself and calls who can
        code = next((thing.__code__ for thing in code.co_consts if isinstance(thing, FunctionType)), code)
    if not codes.same(code, fresh.__code__):
        return "code"
    for name in ("__defaults__", "__kwdefaults__") if defaults else ():
        mine, others = getattr(live, name), getattr(fresh, name)
        if type(mine) is not type(others) or len(mine or ()) != len(others or ()):
            return name
        pairs = (
            zip(mine.items(), others.items(), strict=True)
            if isinstance(mine, dict)
            else zip(mine or (), others or (), strict=True)
        )
        for one, other in pairs:
            if not alike(one, other):
                return f"{name}: {one!r}, {other!r}"
    return None


def alike(one, other):
    """Equal as far as it can be told of two separate runs of a module."""
    if type(one) is not type(other):
        return type(one).__qualname__ == type(other).__qualname__
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, str | bytes | int | float | bool | None):
        return one == other or one != one
    return True
