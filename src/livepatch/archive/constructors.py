"""What a constructor leaves in an instance, by following its statements.

Each local variable and each attribute stands for an expression in terms of what is there before and of the names of the
module, or for nothing that anybody could tell. Branches become conditional expressions; calls of the instance's own
methods and of what bases have are followed, as far as it is known which these are (`Kin`). What was changed after it
was made (`self.x = []`, then `self.x.append(1)`) counts as unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from livepatch.archive.pieces import FunctionNode, defaults_of

#: Calls that make a value, besides classes, which are known by their capital.
_MAKERS = {
    *("list", "dict", "set", "tuple", "frozenset", "bytearray", "bytes", "int", "float", "str", "bool", "object"),
    *("len", "min", "max", "sum", "sorted", "range", "zip", "getattr", "isinstance", "type", "id", "hasattr"),
    *("deque", "defaultdict", "count", "partial", "compile", "field", "local", "memoryview"),
    *("monotonic", "time", "perf_counter", "getpid", "get_ident"),
}
#: Methods of plain values that do the same.
_METHODS = {
    *("lower", "upper", "strip", "lstrip", "rstrip", "split", "rsplit", "join", "replace", "format", "encode"),
    *("decode", "copy", "get", "items", "keys", "values", "union", "startswith", "endswith", "title", "hex"),
}
_VALUES: tuple[type[ast.AST], ...] = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.Set),
    *(ast.Starred, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.JoinedStr, ast.FormattedValue),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.comprehension),
    *(ast.Call, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)

#: Methods that change what they are called on.
MUTATORS = {
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "update", "setdefault", "add"),
    *("discard", "popitem", "move_to_end", "intersection_update", "difference_update", "symmetric_difference_update"),
    *("appendleft", "extendleft"),
}
_DEPTH = 8  # of methods that call methods


class _Unknown(Exception):
    """There is no expression for it."""


#: What a name or attribute stands for; None: nobody can tell.
Known = dict[str, ast.expr | None]


class Kin:
    """What is known besides the source of the class itself: here nothing, which is all that the loader has."""

    def method(self, cls: ast.ClassDef, name: str) -> tuple[ast.ClassDef, FunctionNode] | None:
        """What `name` is on an instance of a class, and in which class that is defined."""
        found = method_of(cls, name)
        return None if found is None else (cls, found)

    def beyond(self, cls: ast.ClassDef, home: ast.ClassDef, name: str) -> tuple[ast.ClassDef, FunctionNode] | None:
        """What `super().name` is there in a method that `home` defines."""
        return None

    def of_base(self, home: ast.ClassDef, base: ast.expr, name: str) -> tuple[ast.ClassDef, FunctionNode] | None:
        """What `Base.name` is there."""
        return None

    def means_the_same(self, home: ast.ClassDef, name: str) -> bool:
        """Whether a name of the module of `home` is the same in the module of the class in question."""
        return True

    def computes(self, call: ast.Call) -> bool:
        """Whether a call in terms of the instance and of the module does nothing but compute."""
        return False


ALONE = Kin()


class State:
    """What is known of local variables and of the instance's attributes at one point of a constructor."""

    def __init__(self, names: Known, attributes: Known) -> None:
        self.names = names
        self.attributes = attributes
        self.ended = False  # nothing after this is run
        self.raised = False  # and there is no instance
        self.torn = False  # what comes after this may not be run

    def copy(self) -> State:
        return State(dict(self.names), dict(self.attributes))


class Follower:
    """Follows the statements of a constructor."""

    def __init__(self, home: ast.ClassDef, function: FunctionNode, names: Known, cls: ast.ClassDef, kin: Kin) -> None:
        self._cls = cls
        self.home = home  # where the function is defined in which we are
        self.kin = kin
        self._function = function
        self._depth = 0
        self.state = State(names, {})
        self._body(function.body, self.state)

    @property
    def self_name(self) -> str:
        return first(self._function)

    @property
    def is_abroad(self) -> bool:
        return self.home is not self._cls

    def _body(self, body: list[ast.stmt], state: State) -> None:
        for at, statement in enumerate(body):
            if state.torn:
                self._forget(statement, state)
            elif state.ended:
                return
            elif not isinstance(statement, ast.If):
                self._statement(statement, state)
            elif self._if(statement, body[at + 1 :], state):
                return

    def _statement(self, node: ast.stmt, state: State) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is not None:
                self._forget(node.value, state)
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._assign(target, node.value, state)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name | ast.Attribute):
            before = ast.parse(ast.unparse(node.target), mode="eval").body
            self._forget(node.value, state)
            self._assign(node.target, ast.BinOp(before, node.op, node.value), state)
        elif isinstance(node, ast.With):
            for item in node.items:
                self._forget(item, state)
            self._body(node.body, state)
        elif isinstance(node, ast.Try) and not node.handlers:
            self._body([*node.body, *node.finalbody], state)
        elif isinstance(node, ast.Return | ast.Raise):
            state.ended, state.raised = True, isinstance(node, ast.Raise)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._depth < _DEPTH:
            self._call(node.value, state)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                state.names[alias.asname or alias.name.split(".")[0]] = None
        else:
            self._forget(node, state)
            defines = isinstance(node, FunctionNode | ast.ClassDef)
            state.torn = not defines and any(isinstance(inner, ast.Return) for inner in ast.walk(node))

    def _assign(self, target: ast.expr, value: ast.expr, state: State) -> None:
        known = [(one, self._value(part, state)) for one, part in _apart(target, value)]
        for one, part in known:  # all of them are evaluated before the first is bound
            self._bind(one, part, state)

    def _call(self, call: ast.Call, state: State) -> None:
        """A call that is a statement: of a method of the instance, of its own or of a base, as a part of this one."""
        found = self._called(call)
        known = None if found is None else self._passed(*found, call, state)
        if found is None or known is None:
            self._forget(call, state)
            return
        inner = State(known, state.attributes)
        outer = self.home, self._function
        self.home, self._function = found
        self._depth += 1
        self._body(self._function.body, inner)
        self._depth -= 1
        self.home, self._function = outer
        state.attributes = inner.attributes

    def _called(self, call: ast.Call) -> tuple[ast.ClassDef, FunctionNode] | None:
        """The method that `self.method()`, `super().method()` or `Base.method(self)` calls, and whose it is."""
        if not isinstance(call.func, ast.Attribute):
            return None
        owner, name = call.func.value, call.func.attr
        if self._is_own(call.func):
            return self.kin.method(self._cls, name)
        if isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super" and not owner.keywords:
            usual = [ast.Name(self.home.name, ast.Load()), ast.Name(self.self_name, ast.Load())]
            if not owner.args or [ast.dump(a) for a in owner.args] == [ast.dump(a) for a in usual]:
                return self.kin.beyond(self._cls, self.home, name)
        elif call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == self.self_name:
            return self.kin.of_base(self.home, owner, name)
        return None

    def _passed(self, home: ast.ClassDef, function: FunctionNode, call: ast.Call, state: State) -> Known | None:
        """What the parameters of a method stand for in a call; None if that cannot be told."""
        arguments = function.args
        positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]][1:]
        named = {a.arg for a in [*arguments.args[1:], *arguments.kwonlyargs]}
        is_base = not self._is_own(call.func) and isinstance(call.func, ast.Attribute)
        given = call.args[1:] if is_base and not isinstance(call.func.value, ast.Call) else call.args  # type: ignore[attr-defined]
        keywords = {k.arg: k.value for k in call.keywords if k.arg is not None}
        spread = [k.value for k in call.keywords if k.arg is None]
        strange = keywords.keys() - (named - set(positional[: len(given)]))
        if any(isinstance(a, ast.Starred) for a in given) or len(given) > len(positional) or len(spread) > 1:
            return None
        if strange and arguments.kwarg is None:
            return None
        known: Known = {name: self._value(value, state) for name, value in zip(positional, given, strict=False)}
        known |= {name: self._value(value, state) for name, value in keywords.items() if name not in strange}
        left = (named | set(positional)) - known.keys()
        defaults = dict(defaults_of(function))
        if left - defaults.keys() and not spread:
            return None
        for name in left:  # one that may be in `**spread` can be anything
            known[name] = None if spread else self._default(home, defaults[name])
        if arguments.vararg is not None:
            known[arguments.vararg.arg] = ast.Tuple([], ast.Load())
        if arguments.kwarg is not None:
            rest = self._value(spread[0], state) if spread and not left and not strange else None
            known[arguments.kwarg.arg] = rest if spread or strange else ast.Dict([], [])
        known[first(function)] = ast.Name("self", ast.Load())
        return known

    def _default(self, home: ast.ClassDef, default: ast.expr) -> ast.expr | None:
        members = {name for node in home.body for name in bound(node)}
        if any(isinstance(n, ast.Name) and n.id in members for n in ast.walk(default)):
            return None
        outer, self.home = self.home, home
        value = self._value(default, State({}, {}))
        self.home = outer
        return value

    def _if(self, node: ast.If, rest: list[ast.stmt], state: State) -> bool:
        """Follow the ways of a condition; true if that included what comes after it, since one of them returns."""
        test = self._value(node.test, state)
        outcome = None if test is None else _truth(test)
        if outcome is not None:
            self._body(node.body if outcome else node.orelse, state)
            return False
        then, other = ways = state.copy(), state.copy()
        self._body(node.body, then)
        self._body(node.orelse, other)
        left = [way for way in ways if not way.ended]
        follows = len(left) == 1 and not any(way.raised for way in ways)
        if follows:
            self._body(rest, left[0])
        leading = [way for way in ways if not way.raised]  # the others lead to no instance
        if len(leading) < len(ways):
            way = leading[0] if leading else then
            state.names, state.attributes = way.names, way.attributes
            state.ended, state.raised, state.torn = way.ended, way.raised, way.torn
            return follows
        if then.torn or other.torn:
            state.torn = True
            self._forget(node, state)
            return False
        state.ended, state.torn = then.ended and other.ended, then.ended != other.ended
        for mine, one, two in (
            (state.names, then.names, other.names),
            (state.attributes, then.attributes, other.attributes),
        ):
            for name in one.keys() | two.keys():
                a, b = one.get(name), two.get(name)
                if a is not b:
                    both = a is not None and b is not None and test is not None
                    mine[name] = ast.IfExp(test, a, b) if both else None  # type: ignore[arg-type]
        return follows

    def _is_own(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.self_name

    def _bind(self, target: ast.expr, value: ast.expr | None, state: State) -> None:
        if isinstance(target, ast.Name):
            state.names[target.id] = value
        elif self._is_own(target):
            assert isinstance(target, ast.Attribute)
            if not (self.is_abroad and _is_private(target.attr)):
                state.attributes[target.attr] = value
        else:
            self._forget(target, state)

    def _forget(self, node: ast.AST, state: State) -> None:
        loops = [inner.target for inner in ast.walk(node) if isinstance(inner, ast.comprehension)]
        own = {id(part) for target in loops for part in ast.walk(target)}  # of comprehensions: nobody else sees these
        for inner in ast.walk(node):
            if (changed := _changed(inner)) is not None:
                self._outgrow(changed, state)
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del) and id(inner) not in own:
                state.names[inner.id] = None
            elif isinstance(inner, FunctionNode | ast.ClassDef):
                state.names[inner.name] = None
            elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store | ast.Del):
                if self._is_own(inner):
                    state.attributes[inner.attr] = None
            elif isinstance(inner, ast.Call) and (found := self._called(inner)) is not None:  # it may set anything
                for name in _stores(found[1]):
                    state.attributes[name] = None

    def _outgrow(self, node: ast.expr, state: State) -> None:
        """What was made of a value is not what it is in the end; but who kept what was passed has the same object."""
        known, name = (state.attributes, node.attr) if isinstance(node, ast.Attribute) else (state.names, "")
        if isinstance(node, ast.Attribute) and not self._is_own(node):
            return
        if isinstance(node, ast.Name):
            name = node.id
        collected = self._function.args.kwarg
        is_copy = isinstance(node, ast.Name) and collected is not None and collected.arg == name
        if is_copy or (name in known and not isinstance(known[name], ast.Name | ast.Attribute)):
            known[name] = None

    def _value(self, node: ast.expr, state: State) -> ast.expr | None:
        """An expression in terms of the finished instance, or None."""
        try:
            return _Substitution(self, state).apply(node)
        except _Unknown:
            return None


class _Substitution(ast.NodeTransformer):
    def __init__(self, follower: Follower, state: State) -> None:
        self._follower = follower
        self._state = state
        self._bound: set[str] = set()  # by the comprehensions around

    def apply(self, node: ast.expr) -> ast.expr:
        if not all(isinstance(inner, _VALUES) for inner in ast.walk(node)):
            raise _Unknown
        made: ast.expr = self.visit(ast.parse(ast.unparse(node), mode="eval").body)
        return made

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self._bound:
            return node
        if node.id in self._state.names:
            return self._known(self._state.names[node.id])
        if not self._follower.kin.means_the_same(self._follower.home, node.id):
            raise _Unknown
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if self._follower.is_abroad and _is_private(node.attr):
            raise _Unknown
        if self._follower._is_own(node) and node.attr in self._state.attributes:
            return self._known(self._state.attributes[node.attr])
        self.generic_visit(node)
        return node

    def _known(self, value: ast.expr | None) -> ast.expr:
        if value is None or any(isinstance(n, ast.Name) and n.id in self._bound for n in ast.walk(value)):
            raise _Unknown  # or it would mean something else in there
        return value

    def _comprehension(self, node: ast.expr) -> ast.expr:
        stores = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if stores & (self._bound | self._state.names.keys() | {self._follower.self_name, "self"}):
            raise _Unknown
        before, self._bound = self._bound, self._bound | stores
        self.generic_visit(node)
        self._bound = before
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = _comprehension

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        method = isinstance(node.func, ast.Attribute) and name in _METHODS
        self.generic_visit(node)
        if not (name in _MAKERS or name.lstrip("_")[:1].isupper() or method or self._follower.kin.computes(node)):
            raise _Unknown
        return node


def _is_private(attribute: str) -> bool:
    return attribute.startswith("__") and not attribute.endswith("__")


def _apart(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What of a value goes to which part of a target: `a, b = 1, 2` is `a = 1` and `b = 2`."""
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        starred = any(isinstance(part, ast.Starred) for part in (*target.elts, *value.elts))
        if len(target.elts) == len(value.elts) and not starred:
            for one, part in zip(target.elts, value.elts, strict=True):
                yield from _apart(one, part)
            return
    yield target, value


def _changed(node: ast.AST) -> ast.expr | None:
    """The value that a part of it or a method changes: `x` in `x[0] = 1` and `x.append(1)`."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return node.func.value
    return None


def _is_overload(decorator: ast.expr) -> bool:
    return "overload" in (getattr(decorator, "id", ""), getattr(decorator, "attr", ""))


def _stores(method: FunctionNode) -> set[str]:
    return {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store | ast.Del)}


def method_of(cls: ast.ClassDef, name: str) -> FunctionNode | None:
    methods = [node for node in cls.body if isinstance(node, FunctionNode) and node.name == name]
    found = [node for node in methods if not any(_is_overload(d) for d in node.decorator_list)]
    return found[0] if len(found) == 1 and not found[0].decorator_list else None


def first(function: FunctionNode) -> str:
    positional = [*function.args.posonlyargs, *function.args.args]
    return positional[0].arg if positional else ""


def bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, FunctionNode | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _truth(test: ast.expr) -> bool | None:
    """How a condition on what nobody has passed comes out; None if it is not told by literals alone."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _truth(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        decisive = isinstance(test.op, ast.Or)
        outcomes = list(map(_truth, test.values))
        before = outcomes[: outcomes.index(decisive)] if decisive in outcomes else outcomes
        return None if None in before else (decisive in outcomes) == decisive
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Is | ast.IsNot):
        (against,) = test.comparators
        if isinstance(against, ast.Constant) and against.value is None and _truth(test.left) is not None:
            is_none = isinstance(test.left, ast.Constant) and test.left.value is None
            return is_none == isinstance(test.ops[0], ast.Is)
        return None
    try:
        return bool(ast.literal_eval(test))
    except (ValueError, TypeError):
        return None
