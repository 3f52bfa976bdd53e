"""Whether a statement that was run when a module was imported can be run once more, to see what it gives now.

It can if all that it does is to make a value, and to bind it to names of its own: then running it in a live process
disturbs nobody, and what it made there before is what it would make again of the same. So: literals, operators,
comprehensions, calls of what is known to compute only (see `harmless`), and of functions, classes and methods of the
trees which themselves are of this kind. Whatever else is called may open a file, start a thread or enter itself in a
list, and is named as the reason.

Names are followed to what they are bound to, in every place that binds them: a name that is imported here and assigned
there is neither. What is given to something that calls it (`map`, a sorting key) counts as called. Where the source
tells the class of a value, its properties and the methods behind its operators count as called, too; else reading an
attribute counts as computing, as does calling a method of a plain value.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from livepatch.archive.constructors import MUTATORS
from livepatch.build import harmless, syntax
from livepatch.build.bindings import Bindings, Bound, Import, bindings
from livepatch.build.world import NOT_PYTHON, Source, World

_HARMLESS = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.For, ast.While, ast.Pass, ast.Break, ast.Continue),
    *(ast.Return, ast.Expr, ast.Raise, ast.Assert, ast.Try, ast.Delete, ast.Nonlocal, ast.FunctionDef, ast.Import),
    *(ast.ImportFrom, ast.With, ast.Match),
)
_DEPTH = 12  # of names that stand for other names, and of functions that call functions
_CONTAINERS = (ast.List, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_IMPORTERS = {"importlib.import_module", "builtins.__import__"}
#: What runs when an instance is made, or goes.
_MAKING = {"__init__", "__new__", "__post_init__", "__attrs_post_init__", "__setattr__", "__del__"}
#: What is run at other times, but not by an operator.
_NOT_RUN = {"__init_subclass__", "__enter__", "__exit__", "__set_name__", "__call__", "__getattr__", "__getattribute__"}
_CLASS_DECORATORS = {"dataclass", "define", "frozen", "total_ordering", "final", "runtime_checkable"}
_SAFE_BASES = {"NamedTuple", "Generic", "Protocol", "Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "OrderedDict"}
_SAFE_BASES |= {"TypedDict", "ABC"}


@dataclass(frozen=True, eq=False)
class _Frame:
    """Names of a function, or of a class body: these are not seen from the functions in it."""

    names: Bindings
    is_class: bool = False


class Purity:
    """The answers for one module of the new tree, or of the old one.

    If `steady`, what gives something else each time (a clock) is a problem, too.
    """

    def __init__(
        self,
        world: World,
        source: Source,
        *,
        new: bool = True,
        steady: bool = False,
        frames: tuple[_Frame, ...] = (),
        seen: set[tuple[int, bool]] | None = None,
        mine: tuple[str, ast.ClassDef] | None = None,
    ) -> None:
        self._world = world
        self._source = source
        self._new = new
        self._steady = steady
        self._frames = frames
        self._mine = mine  # what a method calls its instance or class, and that class
        # What was looked at, or is being: one problem ends it all, so that a second look cannot find another answer.
        self._seen: set[tuple[int, bool]] = set() if seen is None else seen

    def problem(
        self, nodes: Iterable[ast.AST], names: Iterable[str] = (), cls: ast.ClassDef | None = None
    ) -> str | None:
        """Why these cannot be run again, in the module or in the body of a class of it, or None. They may change what
        `names` stand for."""
        frames = (_Frame(bindings(cls.body), is_class=True),) if cls is not None else ()
        self._seen.clear()
        inner = self._in(frames)
        own = {name for name in names if not any(isinstance(bound, Import) for bound in inner._bound(name))}
        return inner._body(nodes, own, _DEPTH)

    def method_problem(self, cls: ast.ClassDef, name: str) -> str | None:
        """Why calling a method on an instance that others know, too, does more than to compute, or None."""
        self._seen.clear()
        found = self._member(cls, name)
        if found is None or _decorated(found[1]):
            return f"`{name}` may do anything"
        return found[0]._function(found[1], _DEPTH, set(), cls)

    def _bound(self, name: str) -> list[Bound]:
        frame = next((frame.names for frame in self._frames if name in frame.names), self._source.bindings)
        return frame.get(name, [])

    def _in(
        self, frames: tuple[_Frame, ...], source: Source | None = None, mine: tuple[str, ast.ClassDef] | None = None
    ) -> Purity:
        source = source or self._source
        return Purity(
            self._world, source, new=self._new, steady=self._steady, frames=frames, seen=self._seen, mine=mine
        )

    def _with(self, names: Iterable[str]) -> Purity:
        """The same where these names are anything."""
        return self._in((_Frame({name: [None] for name in names}), *self._frames), mine=self._mine)

    # -- statements and expressions --------------------------------------------------------------------

    def _body(self, nodes: Iterable[ast.AST], own: set[str], depth: int) -> str | None:
        for node in nodes:
            problem = self._node(node, own, depth)
            if problem is not None:
                return problem
        return None

    def _node(self, node: ast.AST, own: set[str], depth: int) -> str | None:
        if isinstance(node, ast.stmt) and not isinstance(node, _HARMLESS):
            return f"`{_shown(node)}` does more than to compute"
        if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
            return f"`{_shown(node)}` does more than to compute"
        if isinstance(node, ast.NamedExpr):
            names = {name for frame in self._frames if not frame.is_class for name in frame.names}
            if node.target.id not in names:
                return f"`{_shown(node)}` gives something a name in passing"
        if isinstance(node, ast.FunctionDef):
            return self._body([*node.decorator_list, *_defaults(node.args)], own, depth)
        if isinstance(node, ast.Lambda):
            return self._body(_defaults(node.args), own, depth)
        if isinstance(node, ast.With) and not all(isinstance(item.context_expr, ast.Call) for item in node.items):
            return f"`{_shown(node)}` does more than to compute"
        stored = isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.expr) and stored and syntax.first_name(node) not in own:
            return f"`{_shown(node)}` belongs to something else"
        grown = node.target if isinstance(node, ast.AugAssign) and isinstance(node.value, _CONTAINERS) else None
        if isinstance(grown, ast.Name) and grown.id not in own:
            return f"`{_shown(node)}` changes something else"
        problem = self._call(node, own, depth) if isinstance(node, ast.Call) else self._operands(node, depth)
        if problem is not None:
            return problem
        if isinstance(node, _COMPREHENSIONS):
            inner = self._with(n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name))
            return inner._body(ast.iter_child_nodes(node), own, depth)
        return self._body(ast.iter_child_nodes(node), own, depth)

    def _operands(self, node: ast.AST, depth: int) -> str | None:
        """What an operator, a loop or the reading of an attribute may run: methods of the value that it is about."""
        if isinstance(node, ast.Attribute):
            for where, cls in self._class_of(node.value, depth):
                for name in (node.attr, "__getattr__", "__getattribute__"):
                    method = where._member(cls, name)
                    if method is not None and (
                        name != node.attr or _decorated(method[1]) & {"property", "cached_property"}
                    ):
                        problem = method[0]._function(method[1], depth, set())
                        if problem is not None:
                            return f"`{_shown(node)}` is read, in which {problem}"
            return None
        operands: list[ast.expr | None] = []
        if isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript | ast.Starred | ast.FormattedValue):
            operands = [node.value]
        elif isinstance(node, ast.For | ast.comprehension):
            operands = [node.iter]
        elif isinstance(node, ast.UnaryOp):
            operands = [node.operand]
        elif isinstance(node, ast.With):
            operands = [item.context_expr for item in node.items]
        return self._special([operand for operand in operands if operand is not None], depth)

    def _special(self, operands: Iterable[ast.expr], depth: int) -> str | None:
        for operand in operands:
            for where, cls in self._class_of(operand, depth):
                for origin, node in self._world.family(where._source, cls, metaclasses=False, new=self._new):
                    for method in node.body:
                        if (
                            isinstance(method, ast.FunctionDef)
                            and method.name.startswith("__")
                            and method.name.endswith("__")
                            and (method.name not in _MAKING | _NOT_RUN)
                        ):
                            problem = where._in((), origin)._function(method, depth, set())
                            if problem is not None:
                                return f"`{_shown(operand)}` is computed with, in which {problem}"
        return None

    # -- calls -----------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, own: set[str], depth: int) -> str | None:
        name = syntax.last_name(node.func)
        problem = self._callee(node.func, node, own, depth)
        if problem is None and name in harmless.HIGHER:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            problem = self._body_of_given(given, depth)
        if problem is None:
            named = [k.value for k in node.keywords if k.arg in ("key", "default_factory", "default", "object_hook")]
            problem = self._body_of_given(named, depth)
        if problem is None and hasattr(builtins, name):
            problem = self._special(node.args, depth)
        return problem

    def _body_of_given(self, given: Iterable[ast.expr], depth: int) -> str | None:
        """Why calling those of them that are functions or classes does more than to compute."""
        for argument in given:
            if isinstance(argument, ast.Lambda):
                problem = self._lambda(argument, depth)
            elif _is_dotted(argument):
                first, *rest = ast.unparse(argument).split(".")
                shown = ast.unparse(argument)
                problem = None
                for where, thing, left in self._meaning(first, tuple(rest), depth):
                    if isinstance(thing, str | ast.FunctionDef | ast.ClassDef) and not _is_module_value(thing):
                        problem = problem or where._thing(thing, left, shown, None, set(), depth)
            else:
                continue
            if problem is not None:
                return problem
        return None

    def _callee(self, function: ast.expr, node: ast.Call, own: set[str], depth: int) -> str | None:
        unknown = f"`{_shown(node) if not _is_dotted(function) else ast.unparse(function)}` may do anything"
        if not depth:
            return unknown
        if isinstance(function, ast.Lambda):
            return self._lambda(function, depth)
        if isinstance(function, ast.Call):
            return self._made_callable(function, own, depth)
        if isinstance(function, ast.Subscript):  # a generic type
            return self._callee(function.value, node, own, depth - 1) if _is_dotted(function.value) else unknown
        if isinstance(function, ast.Name):
            if self._mine is not None and function.id == self._mine[0] and function.id not in own:  # of a classmethod
                return self._class(self._mine[1], function.id, depth)
            return self._dotted(function, node, own, depth)
        if not isinstance(function, ast.Attribute):
            return unknown
        attr = function.attr
        if isinstance(function.value, ast.Call) and syntax.last_name(function.value) == "super":
            return None if attr in ("__init__", "__new__", "__post_init__") else f"`{_shown(node)}` may do anything"
        if self._mine is not None and ast.unparse(function.value) == self._mine[0] and self._mine[0] in own:
            method = self._member(self._mine[1], attr)
            if method is not None and not _decorated(method[1]):
                problem = method[0]._method_of(method[1], self._mine[1], depth)
                return problem and f"`{_shown(function)}` is called, in which {problem}"
        if attr in MUTATORS and not (_is_dotted(function) and self._is_type(function.value, depth)):
            return None if syntax.first_name(function) in own else f"`{_shown(node)}` changes something else"
        if _is_dotted(function):
            return self._dotted(function, node, own, depth)
        return self._method(function.value, attr, node, depth)

    def _is_type(self, node: ast.expr, depth: int) -> bool:
        """Whether a dotted name stands for a type, so that what is called on it is not about the value of a name."""
        first, *rest = ast.unparse(node).split(".")
        return all(isinstance(thing, str | ast.ClassDef) for _, thing, _ in self._meaning(first, tuple(rest), depth))

    def _dotted(self, function: ast.expr, node: ast.Call, own: set[str], depth: int) -> str | None:
        shown = ast.unparse(function)
        first, *rest = shown.split(".")
        for where, thing, left in self._meaning(first, tuple(rest), depth):
            problem = where._thing(thing, left, shown, node, own, depth)
            if problem is not None:
                return problem
        return None

    def _meaning(
        self, name: str, rest: tuple[str, ...], depth: int
    ) -> Iterator[tuple[Purity, Bound | str, tuple[str, ...]]]:
        """All that a dotted name can mean: where it is bound, to what, and which attributes of that are left; the whole
        name as a string if it is none of the trees'."""
        for at, frame in enumerate(self._frames):
            if name in frame.names:
                where, bound = self._in(self._frames[at:]), frame.names[name]
                break
        else:
            where, bound = self._in(()), self._source.bindings.get(name, [])
        if not bound and not hasattr(builtins, name):
            bound = list(self._source.bindings.get("*", ()))
        if not bound:
            known = hasattr(builtins, name)
            yield (where, ".".join(("builtins", name, *rest)), ()) if known else (where, None, rest)
        for thing in bound:
            if not isinstance(thing, Import) or not depth:
                yield where, None if isinstance(thing, Import) else thing, rest
                continue
            if isinstance(thing.node, ast.Import):
                origin = [thing.alias.name] if thing.alias.asname else [name]
            else:
                origin = [self._source.resolve(thing.node), name if thing.alias.name == "*" else thing.alias.name]
            yield from self._imported(".".join([*origin, *rest]).split("."), depth)

    def _imported(self, parts: list[str], depth: int) -> Iterator[tuple[Purity, Bound | str, tuple[str, ...]]]:
        """The same for what comes from elsewhere under a whole name."""
        tree = self._world.new if self._new else self._world.old
        for at in range(len(parts), 0, -1):
            path = tree.path_of(".".join(parts[:at]))
            if path is not None:
                try:
                    other = self._in((), self._world.source(path, new=self._new))
                except NOT_PYTHON:
                    break
                if at < len(parts):
                    yield from other._meaning(parts[at], tuple(parts[at + 1 :]), depth - 1)
                    return
                break
        else:
            yield self, ".".join(parts), ()
            return
        yield self, None, ()

    def _thing(
        self,
        thing: Bound | str,
        left: tuple[str, ...],
        shown: str,
        node: ast.Call | None,
        own: set[str],
        depth: int,
    ) -> str | None:
        """Why calling what a dotted name means does more than to compute."""
        unknown = f"`{shown}` may do anything"
        if isinstance(thing, str):
            return self._library(thing, node, own, unknown)
        if isinstance(thing, ast.FunctionDef):
            if left or _decorated(thing) - {"overload", "override", "final", "staticmethod", "no_type_check"}:
                return unknown
            problem = self._function(thing, depth, set())
            return problem and f"`{shown}` is called, in which {problem}"
        if isinstance(thing, ast.ClassDef):
            return self._of_class(thing, left, shown, depth) if left else self._class(thing, shown, depth)
        if isinstance(thing, ast.expr):
            if len(left) == 1:
                return self._method(thing, left[0], node, depth, unknown)
            return self._value(thing, left, unknown, depth)
        return None if left and left[-1] in harmless.METHODS else unknown

    def _library(self, dotted: str, node: ast.Call | None, own: set[str], unknown: str) -> str | None:
        if dotted in ("builtins.setattr", "builtins.delattr", "builtins.object.__setattr__"):
            fine = node is not None and bool(node.args) and syntax.first_name(node.args[0]) in own
            return None if fine else f"{unknown[: -len(' may do anything')]} changes something else"
        if dotted in _IMPORTERS and node is not None and self._is_import(node):
            return None
        if dotted == "builtins.type" and node is not None and len(node.args) != 1:
            bases = node.args[1] if len(node.args) == 3 else None
            return None if isinstance(bases, ast.Tuple) and not bases.elts and not node.keywords else unknown
        return None if harmless.is_known(dotted, steady=self._steady) else unknown

    def _is_import(self, node: ast.Call) -> bool:
        """Whether a call does what an `import` does, of modules that the source names."""
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        meant = self._bound(argument.id) if isinstance(argument, ast.Name) else [argument]
        texts = [thing.value for thing in meant if isinstance(thing, ast.Constant)]
        known = [text for text in texts if isinstance(text, str) and not text.startswith(".")]
        return bool(meant) and len(known) == len(meant)

    def _value(self, value: ast.expr, left: tuple[str, ...], unknown: str, depth: int) -> str | None:
        """Calling a value, or a method of something in it."""
        if left:
            return None if left[-1] in harmless.METHODS else unknown
        if not depth:
            return unknown
        if isinstance(value, ast.Lambda):
            return self._lambda(value, depth)
        if isinstance(value, ast.Call):
            return self._made_callable(value, set(), depth)
        if _is_dotted(value) or isinstance(value, ast.Subscript):
            return self._callee(value, ast.Call(value, [], []), set(), depth - 1) and unknown
        return unknown

    def _made_callable(self, maker: ast.Call, own: set[str], depth: int) -> str | None:
        """Calling what a call gives."""
        name = syntax.last_name(maker.func)
        if name == "partial" and maker.args:
            return self._body_of_given(maker.args[:1], depth)
        known = {"itemgetter", "attrgetter", "namedtuple", "NamedTuple", "NewType", "TypeVar", "Enum", "type"}
        return None if name in known else f"`{_shown(maker)}(...)` may do anything"

    def _method(
        self, receiver: ast.expr, attr: str, node: ast.Call | None, depth: int, unknown: str = ""
    ) -> str | None:
        """Calling a method of a value."""
        unknown = unknown or f"`{_shown(node or receiver)}` may do anything"
        classes = list(self._class_of(receiver, depth))
        for where, cls in classes:
            method = where._member(cls, attr)
            if method is None and not (attr in harmless.METHODS and cls.bases):
                return unknown
            problem = method and method[0]._function(method[1], depth, set())
            if problem:
                return f"`{attr}` is called, in which {problem}"
        if classes:
            return None
        key = id(receiver), True
        if key not in self._seen and depth:
            self._seen.add(key)
            if self._body([receiver], set(), depth - 1) is not None:
                return unknown
        return None if attr in harmless.METHODS else unknown

    # -- functions and classes of the trees ------------------------------------------------------------

    def _class_of(self, value: ast.expr, depth: int) -> Iterator[tuple[Purity, ast.ClassDef]]:
        """The classes of the trees of which a value may be an instance, as far as the source tells."""
        dotted = value.func if isinstance(value, ast.Call) else value
        if not depth or not _is_dotted(dotted):
            return
        first, *rest = ast.unparse(dotted).split(".")
        for where, thing, left in self._meaning(first, tuple(rest), depth):
            if isinstance(value, ast.Call) and isinstance(thing, ast.ClassDef) and not left:
                yield where, thing
            elif not isinstance(value, ast.Call) and isinstance(thing, ast.expr) and not left and thing is not value:
                yield from where._class_of(thing, depth - 1)

    def _member(self, cls: ast.ClassDef, name: str) -> tuple[Purity, ast.FunctionDef] | None:
        """A method of a class of this module, and where it stands, which may be in a base."""
        for origin, node in self._world.family(self._source, cls, metaclasses=False, new=self._new):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == name:
                    return self._in((), origin), member
        return None

    def _of_class(self, cls: ast.ClassDef, left: tuple[str, ...], shown: str, depth: int) -> str | None:
        """Calling something that a class has."""
        unknown = f"`{shown}` may do anything"
        inner = [node for node in cls.body if isinstance(node, ast.ClassDef) and node.name == left[0]]
        if inner:
            return self._thing(inner[0], left[1:], shown, None, set(), depth)
        bases = {syntax.last_name(base) for base in cls.bases}
        if left == ("_make",) and bases & {"NamedTuple", "namedtuple"}:
            return self._class(cls, shown, depth)
        method = self._member(cls, left[0]) if len(left) == 1 else None
        if method is None or _decorated(method[1]) not in ({"classmethod"}, {"staticmethod"}):
            return unknown
        problem = method[0]._function(method[1], depth, set(), cls)
        return problem and f"`{shown}` is called, in which {problem}"

    def _class(self, cls: ast.ClassDef, shown: str, depth: int) -> str | None:
        """Why making an instance does more than that."""
        if (id(cls), False) in self._seen:
            return None
        self._seen.add((id(cls), False))
        unknown = f"making a `{shown}` may do anything"
        if _decorated(cls) - _CLASS_DECORATORS or not depth:
            return unknown
        for keyword in cls.keywords:
            if keyword.arg == "metaclass" and not self._is_harmless_metaclass(keyword.value, depth):
                return unknown
        for base in cls.bases:
            name = syntax.last_name(base)
            if name in _SAFE_BASES or (isinstance(base, ast.Call) and name in ("namedtuple", "NamedTuple")):
                continue
            plain = base.value if isinstance(base, ast.Subscript) else base
            if not _is_dotted(plain) or self._dotted(plain, ast.Call(plain, [], []), set(), depth - 1) is not None:
                return f"{unknown}, as it is a `{name}`"
        for member in cls.body:
            if isinstance(member, ast.FunctionDef) and member.name in _MAKING:
                problem = self._method_of(member, cls, depth)
                if problem is not None:
                    return f"a `{shown}` is made, in which {problem}"
            value = getattr(member, "value", None)
            if isinstance(member, ast.AnnAssign) and isinstance(value, ast.Call):
                made = [k.value for k in value.keywords if k.arg in ("default_factory", "factory")]
                if (problem := self._body_of_given(made, depth)) is not None:
                    return f"a `{shown}` is made, in which {problem}"
        return None

    def _is_harmless_metaclass(self, node: ast.expr, depth: int) -> bool:
        name = syntax.last_name(node)
        if name in ("ABCMeta", "EnumMeta", "EnumType", "type"):
            return True
        first, *rest = ast.unparse(node).split(".") if _is_dotted(node) else [""]
        for where, thing, left in self._meaning(first, tuple(rest), depth):
            if not isinstance(thing, ast.ClassDef) or left or where._member(thing, "__call__") is not None:
                return False
            if not all(where._is_harmless_metaclass(base, depth - 1) for base in thing.bases if depth):
                return False
        return True

    def _lambda(self, node: ast.Lambda, depth: int) -> str | None:
        names = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        return self._with(names)._body([node.body], set(), depth - 1)

    def _method_of(self, node: ast.FunctionDef, cls: ast.ClassDef, depth: int) -> str | None:
        """The same of a method that is called for an instance which nobody else has yet."""
        return self._function(node, depth, {a.arg for a in node.args.args[:1]}, cls)

    def _made_here(self) -> set[str]:
        """The names of the module that stand for nothing but what it has made itself: displays and literals."""
        plain = (*_CONTAINERS, ast.Constant)
        return {name for name, bound in self._source.bindings.items() if all(isinstance(b, plain) for b in bound)}

    def _function(
        self, node: ast.FunctionDef, depth: int, own: set[str], cls: ast.ClassDef | None = None
    ) -> str | None:
        """What a call of a function does besides to compute, with what it binds and with those of its own."""
        if (id(node), bool(own)) in self._seen:
            return None
        self._seen.add((id(node), bool(own)))
        if depth <= 0:
            return "too much else is called"
        if any(isinstance(inner, ast.Global) for inner in ast.walk(node)):
            return "a global name is assigned"
        names = bindings(node.body)
        fresh = {a.arg for a in (node.args.vararg, node.args.kwarg) if a is not None}
        taken = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)} - own - fresh
        made = fresh | {name for name, bound in names.items() if all(_is_fresh(b, own) for b in bound)} - taken
        for argument in taken | fresh | own:
            names.setdefault(argument, []).append(None)
        if self._new and self._source.path not in self._world.old.python:
            own = {*own, *self._made_here()} - names.keys() - taken  # the module comes with the patch, and goes with it
        frames = (_Frame(names), *(frame for frame in self._frames if not frame.is_class))
        first = node.args.args[0].arg if node.args.args and _decorated(node) <= {"classmethod"} else ""
        inner = self._in(frames, mine=(first, cls) if cls is not None else None)
        return inner._body(node.body, {*own, *made}, depth - 1)


def _is_fresh(bound: Bound, own: set[str]) -> bool:
    """Whether what a name is bound to in a function is not what others have as well."""
    part = isinstance(bound, ast.Subscript) and not isinstance(bound.slice, ast.Slice)
    if isinstance(bound, ast.Name | ast.Attribute) or part:
        assert isinstance(bound, ast.expr)
        return syntax.first_name(bound) in own
    return bound is not None


def _is_module_value(thing: object) -> bool:
    """Whether a name of the standard library stands for a value, most likely, and not for something to call."""
    return isinstance(thing, str) and thing.rpartition(".")[2].isupper()


def _decorated(node: syntax.DefinitionNode) -> set[str]:
    return {syntax.last_name(decorator) for decorator in node.decorator_list}


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    return [*arguments.defaults, *(value for value in arguments.kw_defaults if value is not None)]


def _is_dotted(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).split("\n")[0]
    return text if len(text) <= 60 else text[:57] + "..."
