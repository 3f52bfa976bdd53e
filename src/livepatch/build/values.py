"""The rules for values: what follows from a name that means something else, and how each of these is carried.

A changed constant is seldom alone. Others were made of it, default values are it, other modules have imported it,
classes have it as a member, functions read it. All of that was done when the modules were imported, by statements
whose source did not change. So what depends on a changed value is followed through the trees, until nothing new
comes up, and then each value is judged:

- what can be evaluated in the live process (see `purity`) is, before the transition; while that runs, each task sees
  the value of its own world, since all functions that read it are carried along, if only to know where tasks are;
- what was made by calling a function or class that changed itself is made when the transition is over;
- what cannot be evaluated again, or was given to a decorator, is refused.

What instances took from a value when they were made they keep; a dump of the live heap would not tell what is a copy.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from livepatch.archive.format import AT_COMPLETION as LATER
from livepatch.archive.format import BY_WORLD, MADE_LATE, ConstantEntry, FunctionEntry
from livepatch.archive.pieces import mangled
from livepatch.build import syntax
from livepatch.build.branches import decide_by_value
from livepatch.build.findings import Findings, Touch
from livepatch.build.groups import (
    assigned,
    calls,
    class_names,
    deleters,
    evaluated_by,
    imported,
    is_deleted,
    is_function,
    is_quiet,
    is_type,
    makers,
)
from livepatch.build.kept import Kept
from livepatch.build.modules import compare_modules
from livepatch.build.purity import Purity
from livepatch.build.report import AT_COMPLETION, CARRIED, READER, VALUE, Change
from livepatch.build.sentinels import is_sentinel
from livepatch.build.syntax import Statement
from livepatch.build.uses import Use, condition_of, reads_attribute, uses
from livepatch.build.world import NOT_PYTHON, Source, World, may_reach
from livepatch.core import codes
from livepatch.core.codes import Definition, own_global_reads
from livepatch.core.flow import goes_on_for_ever


@dataclass(eq=False)
class Item:
    """A value that changes. `quiet`: it describes the release, or is a type, and nobody computes with it."""

    found: Findings
    key: str
    touch: Touch
    origin: str = ""
    quiet: bool = False
    late: bool = False
    derived: bool = False
    problem: str | None = None  # why it cannot be carried
    readers: int = 0
    chooses: list[tuple[Findings, Use]] = field(default_factory=list)  # conditions of definitions that name it

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def id(self) -> str:
        return f"{self.found.new.module}:{self.key}"


def carry_values(world: World, modules: list[Findings]) -> None:
    """Say what becomes of all values that changed; `modules` get those modules besides that have to do with them."""
    _Values(world, modules).carry()


class _Values:
    def __init__(self, world: World, modules: list[Findings]) -> None:
        self._world = world
        self._modules = modules
        self._by_path = {found.new.path: found for found in modules}
        self._items: dict[str, Item] = {}
        self._queue: list[Item] = []
        self._kept = Kept(world, self._findings)

    def carry(self) -> None:
        for found in list(self._modules):
            for key, touch in found.touched.items():
                if is_sentinel(self._world, found, key):
                    reason = "nothing but its identity counts: it stays the object that it is"
                    found.note(key, touch.line, "constant", reason)
                    continue
                self._begin(Item(found, key, touch, quiet=is_quiet(found.new, key, touch)))
            for key, line in found.other_kinds.items():
                self._carry_readers(Item(found, key, Touch(line, "")))
        while self._queue or self._spread_calls():
            while self._queue:
                self._spread(self._queue.pop(0))
        self._mark_late()
        for found in list(self._modules):
            for name, _ in found.added:
                self._kept.copies(found, name)
        for item in self._items.values():
            self._judge(item)
        self._drop_readers()

    def _drop_readers(self) -> None:
        """Functions need not be carried for a value that is not, or not consistently."""
        consistent = {change.key for found in self._modules for change in found.changes if change.fate == VALUE}
        consistent |= {f"{found.new.module}:{key}" for found in self._modules for key in found.other_kinds}
        for found in self._modules:
            found.changes[:] = [
                change
                for change in found.changes
                if change.kind != READER
                or change.needs & consistent
                or (isinstance(change.entry, FunctionEntry) and change.entry.anew)
            ]

    def _begin(self, item: Item) -> None:
        if item.id not in self._items:
            self._items[item.id] = item
            self._queue.append(item)

    def _findings(self, source: Source) -> Findings | None:
        """What is found in a module, which may be one that did not change."""
        if source.path not in self._by_path:
            try:
                old, new = (self._world.source(source.path, new=new) for new in (False, True))
            except (KeyError, *NOT_PYTHON):
                return None
            found = self._by_path[source.path] = Findings(old, new, self._world)
            compare_modules(found)
            self._modules.append(found)
        return self._by_path[source.path]

    def _others(self, found: Findings, word: str, origin: str = "") -> Iterator[Source]:
        """The other modules that have a word; of those only such as may reach a module `origin`."""
        for path in list(self._world.new.mentioning(word)):
            if path != found.new.path and may_reach(origin, path, self._world.new.python[path]):
                try:
                    yield self._world.source(path, new=True)
                except NOT_PYTHON:
                    continue

    # -- what depends on a value -----------------------------------------------------------------------

    def _spread(self, item: Item) -> None:
        found, module = item.found, item.found.new.module
        typing = item.quiet and self._is_type(item)  # what is made of types are types
        for use in uses(found.new) if not typing else ():
            if _reads(use, item):
                self._depend(found, use, item)
        for source in self._others(found, item.name, module if "." not in item.key else ""):
            if source.index is None:
                if not item.quiet:
                    item.problem = f"it may be read by {source.path}, which is nested too deeply to tell"
                continue
            last = item.key.rpartition(".")[0].rpartition(".")[2]
            before = {last} if last else source.index.names_of(module)
            for use in uses(source) if not typing else ():
                if any((name, item.name) in use.attributes for name in before):
                    other = self._findings(source)
                    if other is not None:
                        self._depend(other, use, item)
            if "." not in item.key:
                self._followers(source, item)
        if not item.quiet:
            self._carry_readers(item)

    def _is_type(self, item: Item) -> bool:
        """Whether it stands for a type, which the module says that makes it, and not one that imports it."""
        while item.origin:
            item = self._items[item.origin]
        return is_type(item.found.new, item.key)

    def _followers(self, source: Source, item: Item) -> None:
        assert source.index is not None
        for known in source.index.imports:
            if known.origin == item.found.new.module and known.name in (item.name, "*") and not known.inside:
                other = self._findings(source)
                if other is not None:
                    alias = item.name if known.name == "*" else known.alias
                    touch = Touch(known.line, f"imported from {item.found.new.module}, and follows it")
                    self._begin(Item(other, alias, touch, origin=item.id, quiet=item.quiet))

    def _depend(self, found: Findings, use: Use, item: Item) -> None:
        """Something was made of the value when the module was imported."""
        if _is_new(found, use) or (item.touch.owner and item.key in syntax.deleted_attributes(use.statement.node)):
            return
        if use.kind == "default":
            name, _, parameter = use.name.partition(":")
            self._renew_default(found, use.scope + name, parameter, item)
            return
        definition = isinstance(use.statement.node, syntax.DEFINITIONS)
        made = use.kind == "statement" or (use.kind == "condition" and not definition)
        names, attributes = (use.statement.sets if made else None) or (set(), set())
        if names or attributes:
            for key in sorted({use.scope + name for name in names} | (attributes if not use.scope else set())):
                owner = key.rpartition(".")[0] if key in attributes else ""
                touch = Touch(use.statement.line, f"it is made of {item.key}, which changed", owner)
                self._begin(Item(found, key, touch, quiet=item.quiet, derived=True))
        elif use.kind == "base" and self._is_parameter(item) and _only_in_brackets(use.node, item.name):
            found.note(use.scope + use.name, use.line, "class", f"its type parameter {item.key} changed")
        elif syntax.only_raises(use.statement.node) and syntax.beside(use.statement, [use.statement]):
            for other in syntax.beside(use.statement, found.new.statements(found.new.tree.body)):
                for key in sorted(other.binds() or ()) if other.alias is None and not use.scope else ():
                    touch = Touch(other.line, f"`{ast.unparse(use.node)}` beside it decides")
                    self._begin(Item(found, key, touch, quiet=item.quiet, derived=True))
        elif use.kind == "condition" and definition and self._is_decided(found, use, item):
            pass  # a definition is chosen by a value
        elif not item.quiet:
            text = ast.unparse(use.node).split("\n")[0]
            what = {"statement": "it ran", "condition": "it was tested"}.get(use.kind, "it was used")
            reason = f"`{text}`: {what} with the old {item.key} when the module was imported"
            found.refuse(use.scope + use.name, use.line, use.kind, reason)

    def _is_decided(self, found: Findings, use: Use, item: Item) -> bool:
        """Whether loading the patch shows that the new value chooses the same definition as the old one did."""
        if item.quiet or not decide_by_value(found, use.scope.rstrip("."), use.name, item.id):
            return item.quiet
        item.chooses.append((found, use))
        return True

    def _is_parameter(self, item: Item) -> bool:
        """Whether it is a type variable, which only type checkers ask anything."""
        made = [getattr(statement.node, "value", None) for statement in self._group(item)]
        kinds = {"TypeVar", "ParamSpec", "TypeVarTuple"}
        return bool(made) and all(isinstance(v, ast.Call) and syntax.last_name(v) in kinds for v in made)

    def _renew_default(self, found: Findings, name: str, parameter: str, item: Item) -> None:
        for definition in found.new.definitions:
            if definition.name == name and id(definition.code) in found.paired:
                self._carry(found, definition, item, "a default value means something else now", {parameter})

    def _carry_readers(self, item: Item) -> None:
        """The functions that read the value, so that tasks do not move in the middle of them."""
        found = item.found
        owner = item.key.rpartition(".")[0]
        name = mangled(owner, item.name) if owner else item.name
        for definition in found.new.definitions:
            if reads_attribute(definition.code, name) if owner else name in own_global_reads(definition.code):
                self._carry(found, definition, item, f"reads {item.key}")
        for definition in found.old.definitions:
            if reads_attribute(definition.code, name) if owner else name in own_global_reads(definition.code):
                item.readers += definition.name in found.function_names  # its new version may not read it any more
                self._retire(found, definition, item)
        for source in self._others(found, name, "" if owner else found.new.module):
            if source.index is None:
                continue
            last = owner.rpartition(".")[2]
            wanted = {last} if owner else source.index.names_of(found.new.module)
            readers = source.index.functions_naming(name, wanted)
            if not owner and any(i.inside and i.name == name for i in source.index.imports):
                readers |= {definition.name for definition in source.definitions}
            family = self._subclasses(source, last) if owner else set()
            for definition in source.definitions:
                where = definition.name.replace(".<locals>", "")
                member = definition.name.rpartition(".")[0] in family
                if (where in readers or member) and reads_attribute(definition.code, name):
                    other = self._findings(source)
                    if other is not None and other.new is source:
                        self._carry(other, definition, item, f"reads {item.key}")

    def _subclasses(self, source: Source, name: str) -> set[str]:
        """The classes of a module that are made of one of this name."""
        return {
            cls.name
            for classes in source.classes.values()
            for cls in classes
            if name in {ancestor.name for ancestor in self._world.ancestors(source, cls)[1:]}
        }

    def _note_instances(self, found: Findings, definition: Definition, item: Item) -> None:
        """What a constructor takes from a value stays in the instances that there are."""
        if definition.name.endswith(".__init__"):
            reason = f"what instances made before took from {item.key} stays in them"
            found.note(definition.name, definition.code.co_firstlineno, "attribute", reason)

    def _carry(
        self, found: Findings, definition: Definition, item: Item, reason: str, anew: Iterable[str] = ()
    ) -> None:
        """Have a function among those that the patch exchanges, although its source may be the same."""
        item.readers += 1
        self._note_instances(found, definition, item)
        known = False
        for at, change in enumerate(found.changes):
            entry = change.entry
            named = (entry.name, entry.new_sympos) if isinstance(entry, FunctionEntry) else None
            if isinstance(entry, FunctionEntry) and named == (definition.name, found.new.sympos(definition)):
                renewed = replace(entry, anew=tuple(sorted({*entry.anew, *anew})))
                found.changes[at] = replace(change, entry=renewed, needs=change.needs | {item.id})
                known = True  # and perhaps once more: one may take the place of two
        if known:
            return
        outermost = definition
        while outermost.parent is not None:
            outermost = outermost.parent
        conditional = found.paired.get(id(outermost.code), True)
        if id(outermost.code) not in found.paired and outermost.code.co_name != "<lambda>":
            return
        taken = {
            e.sympos or 1
            for c in found.changes
            if isinstance(e := c.entry, FunctionEntry) and e.name == definition.name
        }
        for old in found.old.definitions:
            free = old.name == definition.name and old.sympos not in taken
            if free and codes.same(old.code, definition.code) and not anew and goes_on_for_ever(old.code):
                reason = f"it never returns, so it is not waited for, and sees the new {item.key} when all others do"
                found.note(definition.name, definition.code.co_firstlineno, "function", reason)
                return
            if free and codes.same(old.code, definition.code):
                line = definition.code.co_firstlineno
                positions = found.old.sympos(old), found.new.sympos(definition)
                entry = FunctionEntry(definition.name, line, reason, *positions, conditional, tuple(sorted(anew)))
                place = found.new.module, definition.name, found.new.path, line
                needs = frozenset({item.id})
                found.changes.append(Change(CARRIED, *place, READER, reason, entry=entry, needs=needs))
                return

    def _retire(self, found: Findings, definition: Definition, item: Item) -> None:
        """The same for a function that only the old version has: old tasks may be in it, and values may hold it."""
        helper = any(definition.name.startswith(f"{name}.<locals>.") for name in found.helpers)
        known = {change.entry.name for change in found.changes if isinstance(change.entry, FunctionEntry)}
        if definition.name in known or not (helper or definition.name not in found.function_names):
            return
        item.readers += 1
        line, sympos = definition.code.co_firstlineno, found.old.sympos(definition)
        reason = f"reads {item.key}, and has no new version"
        entry = FunctionEntry(definition.name, line, reason, sympos, conditional=True, retired=True)
        place = found.new.module, definition.name, found.new.path, line
        found.changes.append(Change(CARRIED, *place, READER, reason, entry=entry, needs=frozenset({item.id})))

    # -- what was made by calling something that depends on a value ------------------------------------------

    def _called(self, found: Findings, *, by_value: bool) -> set[str]:
        """Functions and classes of a module that give something else than before: for reading values, or at all."""
        names = set()
        for change in found.changes:
            entry = change.entry
            if isinstance(entry, FunctionEntry) and (not by_value or change.needs & self._items.keys()):
                names.add(entry.name)
        grown = True
        while grown:
            before = len(names)
            names |= {n.rpartition(".")[0] for n in names if n.endswith((".__init__", ".__new__", ".__post_init__"))}
            for definition in found.new.definitions:
                if definition.parent is None and own_global_reads(definition.code) & names:
                    names.add(definition.name)
            grown = len(names) > before
        return names

    def _spread_calls(self) -> bool:
        """Find what was made by a call whose result depends on a value that changed. Whether there is any."""
        for found in list(self._modules):
            for name in self._called(found, by_value=True):
                owner, _, last = name.rpartition(".")
                for use in uses(found.new) if owner else ():
                    if use.kind == "statement" and use.scope == owner + "." and last in calls(use.node):
                        self._made_in_class(found, use, last)
                for where in [found.new, *self._others(found, name.rpartition(".")[2])]:
                    for use in uses(where):
                        if use.kind == "statement" and name in use.calls and not use.scope:
                            self._made_by(where, use, name)
        return bool(self._queue)

    def _made_in_class(self, found: Findings, use: Use, name: str) -> None:
        """The same in a class body, which calls its new functions."""
        for key in sorted(use.statement.names_set):
            touch = Touch(use.statement.line, f"made by {name}, which depends on what changed")
            self._begin(Item(found, use.scope + key, touch, derived=True))

    def _made_by(self, source: Source, use: Use, name: str) -> None:
        found = self._findings(source)
        sets = use.statement.sets
        if found is None or sets is None or not any(sets) or _is_new(found, use):
            return
        for key in sorted(sets[0] | sets[1]):
            touch = Touch(use.statement.line, f"made by {name}, which depends on what changed", key.rpartition(".")[0])
            item = Item(found, key, touch, late=True, derived=True)
            if self._unfit(item) is None:
                self._begin(item)
            elif item.id not in self._items:
                found.note(key, use.line, "name", f"made by {name} when the module was imported, and stays as it is")

    def _mark_late(self) -> None:
        """What is made by code that the patch exchanges must wait until that is in force, as must what follows."""
        called = {found.new.path: self._called(found, by_value=False) for found in self._modules}
        anywhere = {name for names in called.values() for name in names if "." not in name}
        grown = True
        while grown:
            grown = False
            for item in self._items.values():
                if item.late:
                    continue
                made = {name for name, other in self._names(item.found) if other.late}
                origin = self._items.get(item.origin)
                item.late = origin is not None and origin.late
                for use in uses(item.found.new):
                    if use.statement in self._group(item):
                        item.late |= bool(use.calls & anywhere) or bool(use.names & made)
                grown |= item.late

    def _names(self, found: Findings) -> Iterator[tuple[str, Item]]:
        return ((item.key, item) for item in self._items.values() if item.found is found)

    # -- the verdict -------------------------------------------------------------------------------------

    def _group(self, item: Item, *, new: bool = True) -> list[Statement]:
        """The statements that give the name its value, in order."""
        source = item.found.new if new else item.found.old
        found = makers(source, item.key, item.touch.owner)
        return found or ([] if item.origin else imported(source, item.key))

    def _unfit(self, item: Item) -> str | None:
        """Why the value cannot be evaluated in the live process."""
        group = self._group(item)
        if not group:
            return "no statement here gives it a value"
        scope = "" if item.touch.owner else item.key.rpartition(".")[0]
        names = {name for statement in group for name in statement.names_set}
        tests = []
        for statement in group:
            conditions = [condition_of(header) for header in statement.under if not syntax.is_try(header)]
            if None in conditions:
                return f"it stands inside `{statement.under[-1]}`"
            tests += [test for test in conditions if test is not None]
        if not scope and not item.touch.owner and item.key in assigned(item.found):
            return "functions give it other values"
        if not self._is_alone(item.found.new, group, scope):
            return "another statement stands on its line: they would be run together"
        nodes: list[ast.AST] = [*tests]
        for statement in group:
            value = getattr(statement.node, "value", None)
            if item.touch.owner and isinstance(statement.node, ast.Delete):
                continue
            if isinstance(statement.node, syntax.FunctionNode):
                nodes += evaluated_by(statement.node)
            else:
                nodes += [value] if item.touch.owner and isinstance(value, ast.AST) else [statement.node]
        return Purity(self._world, item.found.new).problem(nodes, names, self._class(item.found.new, scope))

    def _is_alone(self, source: Source, group: list[Statement], scope: str) -> bool:
        """Whether no other statement begins on the lines of these, by which the live process finds them."""
        cls = self._class(source, scope)
        lines = {statement.node.lineno: statement.node for statement in group}
        body = source.statements(cls.body if cls is not None else source.tree.body)
        return all(lines.get(statement.node.lineno, statement.node) is statement.node for statement in body)

    def _class(self, source: Source, path: str) -> ast.ClassDef | None:
        return next(iter(_around(source, path)[-1:]), None)

    def _judge(self, item: Item) -> None:
        found, touch = item.found, item.touch
        if is_deleted(found.new, item.key):
            if is_deleted(found.old, item.key):
                return
            if item.key in found.new.global_reads:
                reason = "deleted now, and new code that names it means another one"
                found.refuse(item.key, touch.line, "name", reason)
            else:
                found.note(item.key, touch.line, "name", "the module deletes it now; it is left in place")
            return
        for other, use in item.chooses if self._how(item) == MADE_LATE else ():
            reason = f"`{ast.unparse(use.node)}`: what it chooses shows when the transition is over, which is too late"
            other.refuse(use.scope + use.name, use.line, use.kind, reason)
        if item.origin:
            self._say(item, self._how(item), touch.reason, ConstantEntry(item.key, touch.line, item.origin))
            return
        try:
            problem = item.problem or self._unfit(item)
        except RecursionError:
            problem = "it is nested too deeply"
        if problem is not None and item.quiet and item.derived:
            found.note(item.key, touch.line, "name", f"{touch.reason}, and stays as it is: {problem}")
            return
        kind = "attribute" if "." in item.key else "constant"
        if problem is not None:
            found.refuse(item.key, touch.line, kind, self._read_by(item, f"{touch.reason}, and {problem}"))
            return
        how = self._how(item)
        path = "" if touch.owner else item.key.rpartition(".")[0]
        lines = tuple(sorted({statement.node.lineno for statement in self._group(item)}))
        gone, deleted = deleters(found.old, item.key), deleters(found.new, item.key)
        outside = item.key.rpartition(".")[0]
        # What the old version said last may stand below the class, where the new one has nothing.
        gone = gone or (makers(found.old, item.key, outside) if outside and not touch.owner else [])
        old = gone or (makers(found.old, item.key, "") if deleted else self._group(item, new=False))
        names = {name for statement in old for name in statement.names_set}
        nodes = [getattr(s.node, "value", s.node) if s in gone else s.node for s in old]
        nodes = [node for node in nodes if not (gone and isinstance(node, ast.Delete))]
        comparable = (
            how != MADE_LATE
            and (not touch.owner or bool(deleted))
            and not any(is_function(statement, item.key) for statement in old)  # it is compared as all functions are
            and self._is_alone(found.old, old, path)
            and Purity(self._world, found.old, new=False, steady=True).problem(
                nodes, names, self._class(found.old, path)
            )
            is None
        )
        old_lines = tuple(sorted({statement.node.lineno for statement in old})) if comparable else ()
        line = touch.line if touch.line in lines else lines[0]
        entry = ConstantEntry(item.key, line, "", lines, old_lines, how, touch.owner)
        if how == BY_WORLD:
            reason = touch.reason
        elif how == MADE_LATE:
            reason = f"{touch.reason}; made anew, without consistency"
        else:
            reason = self._read_by(item, "set without consistency") if not item.derived else touch.reason
        self._say(item, how, reason, entry)
        if "." in item.key and not touch.owner:
            self._kept.caches(item.found, item.key)

    def _say(self, item: Item, how: str, reason: str, entry: ConstantEntry) -> None:
        found = item.found
        fate = VALUE if how == BY_WORLD else AT_COMPLETION
        needs = {item.origin} if item.origin else set()
        for use in uses(found.new):
            if use.statement in self._group(item):
                needs |= {f"{found.new.module}:{name}" for name in use.names}
        place = found.new.module, item.key, found.new.path, entry.line
        kind = "attribute" if "." in item.key else "constant"
        change = Change(fate, *place, kind, reason, entry=replace(entry, how=how), needs=frozenset(needs - {item.id}))
        found.changes.append(change)

    def _how(self, item: Item) -> str:
        if item.late:
            return MADE_LATE
        if item.origin:
            return self._how(self._items[item.origin])
        if item.quiet:
            return LATER
        path, name = item.touch.owner or item.key.rpartition(".")[0], item.name
        if path:
            known = path in class_names(item.found.new)
            if syntax.is_special(name) and any(deleters(s, item.key) for s in (item.found.old, item.found.new)):
                return LATER  # the interpreter asks for it, and is in no world
            return BY_WORLD if known and not self._world.takes_from_dict(name) else LATER
        if any(is_function(statement, item.key) for statement in self._group(item)):
            return BY_WORLD  # who calls it from elsewhere has it from the module
        followed = any(other.origin == item.id and other.readers for other in self._items.values())
        if item.readers or followed:
            return BY_WORLD
        places = self._world.readers(item.found.new.module, name).places
        own = f"({item.found.new.path}:"
        return BY_WORLD if any(own not in place for place in places) else LATER

    def _read_by(self, item: Item, what: str) -> str:
        if "." in item.key:
            return what
        places = self._world.readers(item.found.new.module, item.name).places
        if not places:
            return f"{what}, as no code reads it" if what.startswith("set") else what
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{what}, and it is read by {places[0]}{more}"


def _reads(use: Use, item: Item) -> bool:
    path, name = item.key.rpartition(".")[0], item.name
    if path:
        own = use.scope == path + "." and name in use.names and not item.touch.owner
        return own or (path.rpartition(".")[2], name) in use.attributes
    if use.scope and any(name in syntax.members(cls) for cls in _around(item.found.new, use.scope)[-1:]):
        return False
    return use.reads(name)


def _around(source: Source, scope: str) -> list[ast.ClassDef]:
    return [cls for name in scope.split(".") if name for cls in source.classes.get(name, ())[:1]]


def _only_in_brackets(base: ast.AST, name: str) -> bool:
    """Whether a name stands for what a generic class is made of, which only type checkers ask for."""
    pending = [base]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name) and node.id == name:
            return False
        pending += [child for child in ast.iter_child_nodes(node) if child is not getattr(node, "slice", None)]
    return True


def _is_new(found: Findings, use: Use) -> bool:
    """Whether it belongs to something that the patch adds: that is evaluated when it is."""
    added = {name for name, _ in found.added}
    fresh = any(statement.node is use.statement.node for _, statement in found.added)
    return fresh or use.scope.partition(".")[0] in added or (use.kind != "statement" and use.scope + use.name in added)
