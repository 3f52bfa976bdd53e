"""Plain data with named fields: frozen dataclasses that cost nothing to define.

`dataclasses` writes and compiles the methods of every class, and imports a good part of the standard library for that.
That is half of what it took to load the first patch into a process, and on a busy one every millisecond of it is paid
for several times, see `agent/turns.py`. So the methods here are the same for all classes. For everybody else these are
dataclasses: `fields`, `replace` and `asdict` work, since they ask for `__dataclass_fields__`, which is made then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, dataclass_transform


class _Fields:
    """Made by `dataclasses` from a class that has the same fields, when somebody asks for it."""

    def __get__(self, instance: object, owner: type[Record]) -> dict[str, Any]:
        import dataclasses

        defaults = {name: vars(owner)[name] for name in owner.declared if name in vars(owner)}
        same = type(owner.__name__, (), {"__annotations__": dict(owner.declared), **defaults})
        found: dict[str, Any] = dataclasses.dataclass(frozen=True)(same).__dataclass_fields__  # type: ignore[attr-defined]
        return found


@dataclass_transform(frozen_default=True)
class Record:
    """What is derived from it has the fields that its body declares, in that order, with their defaults.

    `declared` are their types by name, as written there.
    """

    declared: ClassVar[Mapping[str, str]] = {}
    __dataclass_fields__: ClassVar[dict[str, Any]] = _Fields()  # type: ignore[assignment]

    def __init_subclass__(cls) -> None:
        cls.declared = dict(cls.__annotations__)

    def __init__(self, *given: Any, **named: Any) -> None:
        names = tuple(self.declared)
        values = dict(zip(names, given, strict=False))
        strange = named.keys() - (self.declared.keys() - values.keys())
        if strange or len(given) > len(names):
            raise TypeError(f"{type(self).__name__} does not take {sorted(strange) or given[len(names) :]}")
        values |= named
        defaults = vars(type(self))
        for name in names:
            if name not in values:
                if name not in defaults:
                    raise TypeError(f"{type(self).__name__} needs {name}")
                values[name] = defaults[name]
        vars(self).update((name, values[name]) for name in names)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
