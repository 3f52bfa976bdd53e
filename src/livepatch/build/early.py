"""What is new is run before the transition, when changed functions still have their old code.

So what new statements and new modules call when they are run must not change, nor call what does: its result would be
that of the old release, for good.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from livepatch.build.findings import Findings
from livepatch.build.uses import Use, uses
from livepatch.build.world import Source, World

#: The methods that run when a class is called, or something is made of it.
_MAKING = {"__init__", "__new__", "__post_init__", "__set_name__", "__init_subclass__", "__call__"}


def refuse_early_calls(world: World, modules: Sequence[Findings]) -> None:
    """Refuse new statements that call what changes."""
    for found in modules:
        new = {id(node) for _, statement in found.added if statement.alias is None for node in ast.walk(statement.node)}

        def is_new(use: Use, new: set[int] = new) -> bool:
            return id(use.statement.node) in new and use.kind == "statement"

        for use, name in early_calls(world, modules, found.new, is_new) if new else ():
            shown = use.scope + (use.name or ast.unparse(use.node).split("\n")[0])
            found.refuse(shown, use.line, "name", f"it calls {name}, which changes, when the patch is loaded")


def early_calls(
    world: World, modules: Sequence[Findings], source: Source, counts: Callable[[Use], bool]
) -> Iterator[tuple[Use, str]]:
    """What is evaluated in a module when it is imported and calls something that the patch changes, with its name."""
    candidates = [use for use in uses(source) if counts(use)]
    if not any(use.calls or use.kind == "decorator" for use in candidates):
        return
    changed = {old.definition.name for found in modules for old, _ in found.functions}
    imports = [i for i in source.index.imports if not i.inside] if source.index is not None else []
    origins = {path for i in imports if (path := world.new.path_of(i.origin)) is not None}
    near = [other for path in sorted(origins) if (other := world.parsed(path, new=True)) is not None]
    names = {name for name in changed if "." not in name}
    for other in (*near, source):
        names |= _depending(other, names, changed)
    real = {i.alias: i.name for i in imports}
    for use in candidates:
        for name in sorted(use.names if use.kind == "decorator" else use.calls):
            if real.get(name, name) in names:
                yield use, name


def _depending(source: Source, names: set[str], changed: set[str]) -> set[str]:
    """The functions and classes of a module whose call runs one of these, as far as names tell."""
    found = set(names)
    imports = source.index.imports if source.index is not None else []
    grown = True
    while grown:
        before = len(found)
        known = found | {i.alias for i in imports if i.name in found}
        for definition in source.definitions:
            top, _, method = definition.name.partition(".")
            if method and method not in _MAKING:
                continue
            read = set(definition.code.co_names)
            if definition.name in changed or read & known or any(f"{top}.{name}" in changed for name in read):
                found.add(top)
        grown = len(found) > before
    return found
