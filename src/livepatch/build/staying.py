"""Functions that tasks never leave, and which of them may change for everybody at once.

**The problem.** The thread of a server sits in a function that has called `loop.run_forever()`. If a patch changes that
function, its transition waits for a return that comes when the server stops: for ever. The core can take a function out
of the consistency model (`Func(immediate=True)`): it changes for everybody at once, holds nobody up, and is promised
nothing. A person may say so (`--immediate`). This module says it by itself where nothing is lost by it, and where it
cannot be shown that nothing is, it says who will be waited for and what can be done.

**What can go wrong with an immediate function.** Three kinds of calls run in a version that is not that of their task:

1. the frame that sits there. It stays in the old version while its task moves on to the new world. What it still runs,
   when its call returns at last, meets new functions, new values, and attributes that were not there;
2. a task that has not moved and calls the function: it gets the new version, which meets old functions and values. So
   does one that has gone back already, while the patch is being disabled;
3. a frame of the new version that sits there while the patch is disabled and unloaded. What it still runs meets the
   old world again, and what the patch had added is gone.

**What does not work.** To look only at what a version names, and to let it pass if the patch changes nothing of that,
is not enough for the second kind. New code may leave something in an attribute that a function which has not changed
passes on to one that has; no name tells. Nor is it enough that what is called keeps its parameters: a function that
gives a pair now is called wrongly by a caller of the other version all the same.

**What was chosen.** A function is immediate by itself only if all of this can be shown:

* it calls, as a statement of its own, what by its nature does not return while the program works (`STAYS`), once, in
  the function body or inside of `try` and `with`, and it does so in both versions;
* **both versions do the same**, statement by statement. Only assertions and log messages may come and go, a value may
  have a name of its own before it is stored, and after that call more or fewer things may be closed. So whichever
  version a task gets, it does what the version of its world would do: the callees are the task's own anyway;
* it has the same parameters and defaults, is not a generator, and nothing nested in it changes;
* it reads nothing of which the patch changes the value, and calls nothing of which it changes more than the body. An
  immediate function has one code for both worlds: no value of a task's own can be among its constants;
* what comes after that call names nothing at all that the patch changes or adds, nor what the contexts around it are
  made by. That would be right, both versions being the same; but it may run years later, under another patch.

It costs that a `main()` with a real change in it is never immediate by itself. That is a decision for who knows the
program: whoever is in the old `main()` stays there, so the change has no effect on a server that runs, and it may be
simplest to leave it out. Loops (`while True`) are not looked at: what they do with each turn is the work itself.
`run_forever` and its kind are known by name, also on objects of the package; if one does return soon, nothing is lost.

Names are compared by their last part: `self.close` may be any `close` of the patch. What a version does to find out
names at run time (`getattr`, `globals`) ends the proof where it stands after the call.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from livepatch.archive.format import FunctionEntry
from livepatch.build import syntax
from livepatch.build.report import ADDED, CARRIED, IN_PATCH, READER, REFUSED, Change, Report, as_immediate
from livepatch.build.sources import Tree
from livepatch.build.world import NOT_PYTHON, Source

#: What does not return while the program works, by its last name.
STAYS = {"run_forever", "serve_forever", "sleep_forever", "mainloop", "wait_for_termination"}
#: What runs a coroutine that it is given to its end.
_RUNNERS = {"run", "run_until_complete"}
#: What only closes what it is called on, unless the package has a function of this name.
_CLOSES = {"close", "aclose", "server_close", "wait_closed", "shutdown_asyncgens", "shutdown_default_executor"}
#: What may be called to find out whether an assertion holds, or to say something.
_ASKS = {"isinstance", "issubclass", "callable", "hasattr", "len", "type", "repr", "str"}
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_LOGGER = re.compile("_*log(ger|ging)?", re.IGNORECASE)
#: What gets at names that are not written where it is called.
_BY_ANY_NAME = {"getattr", "setattr", "delattr", "eval", "exec", "globals", "locals", "vars", "__import__", "__dict__"}
#: Special methods that are only called where the class is named, and those of contexts.
_MAKING = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__"}
_CONTEXTS = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
#: What is called for attributes.
_ATTRIBUTES = {"__getattr__", "__getattribute__", "__setattr__", "__delattr__"}
#: Compound statements that do not decide whether, or how often, what is in them is run.
_PASSED = (ast.Try, ast.With, ast.AsyncWith)

#: The files of a version by path.
Sources = Mapping[str, bytes]
#: A version of a function, or None if it cannot be read.
_Node = syntax.FunctionNode | None


def settle_staying(report: Report, old: Tree, new: Tree, earlier: Sequence[Sources] = ()) -> Report:
    """The report where functions that tasks never leave are immediate, or have a hint that says why they are not.

    `earlier` are the sources of patches in between, whose versions may be running as well.
    """
    sources = _Sources(old, new, earlier)
    return Report([_settled(change, report, sources) for change in report.changes])


def _settled(change: Change, report: Report, sources: _Sources) -> Change:
    entry = change.entry
    if change.fate != CARRIED or not isinstance(entry, FunctionEntry):
        return change
    before, after = sources.versions(change.file, entry)
    sides = ("old", before[:1]), ("new", after)
    stays = [(age, stay) for age, nodes in sides for node in nodes if node for stay in _stays(node)]
    if not stays:
        return change
    age, stay = stays[0]
    where = f"{ast.unparse(stay.called)}() ({age} line {stay.statement.lineno})"
    why = _why_not(change, before, after, _changed(report, change, sources), sources)
    if not why:
        return as_immediate(change, f"tasks stay in {where}, and its versions do the same for everybody else")
    said = "" if entry.retired else f"--immediate '{change.key}' says that it may be all the same, "
    hint = f"tasks stay in {where} and hold the transition up; it is not immediate by itself, since {why}"
    return replace(change, hint=f"{hint}: {said}--exclude '{change.key}' leaves it out")


# -- the sources -----------------------------------------------------------------------------------------------------


class _Sources:
    """What is needed of the trees: few files have such a call, and only those are parsed."""

    def __init__(self, old: Tree, new: Tree, earlier: Sequence[Sources]) -> None:
        self._old, self._new, self._earlier = old.python, new.python, earlier
        self._parsed: dict[int, Source | None] = {}

    def versions(self, path: str, entry: FunctionEntry) -> tuple[list[_Node], list[_Node]]:
        """All that may run of a function, the version that the patch was built for first; and what is to run."""
        texts = [side[path] for side in (self._old, *self._earlier) if path in side]
        found = [(text, entry.sympos) for text in texts]
        found += [(self._new[path], entry.new_sympos)] if path in self._new and not entry.retired else []
        if not any(name.encode() in text for text, _ in found for name in STAYS):
            return [], []
        nodes = [self._find(path, text, entry.name, sympos) for text, sympos in found]
        return (nodes, []) if entry.retired else (nodes[:-1], nodes[-1:])

    def _find(self, path: str, text: bytes, name: str, sympos: int) -> syntax.FunctionNode | None:
        source = self.parsed(path, text)
        for node in ast.walk(source.tree) if source is not None else ():
            if isinstance(node, syntax.FunctionNode) and node.name == name.rpartition(".")[2]:
                version = source.version(node) if source is not None else None
                definition = version.definition if version is not None else None
                if definition is not None and definition.name == name and sympos in (0, definition.sympos):
                    return node
        return None

    def parsed(self, path: str, text: bytes) -> Source | None:
        if id(text) not in self._parsed:
            try:
                self._parsed[id(text)] = Source(path, text)
            except NOT_PYTHON:
                self._parsed[id(text)] = None
        return self._parsed[id(text)]

    def aliases(self, path: str, names: Iterable[str]) -> set[str]:
        """Under which other names a module has what has these names, in either version: imported, or assigned."""
        found, known = set(names), -1
        trees = [source for side in (self._old, self._new) if (source := self.parsed(path, side.get(path, b"")))]
        pairs = [pair for source in trees for pair in _renamed(source)]
        while known < len(found):
            known = len(found)
            found |= {alias for name, alias in pairs if name in found}
        return found - set(names)

    def plain(self, change: Change) -> bool:
        """Whether what a change adds to a class is a plain value: whoever sets that on an instance calls nothing."""
        source = self.parsed(change.file, self._new[change.file]) if change.file in self._new else None
        found = [s for s in syntax.all_statements(source.tree.body) if s.lineno == change.line] if source else []
        values = [getattr(statement, "value", None) for statement in found]
        return bool(values) and all(isinstance(value, ast.Constant) for value in values)

    def define(self, name: str) -> bool:
        """Whether the package has a function of this name."""
        wanted = f"def {name}(".encode()
        return any(wanted in text for side in (self._old, self._new) for text in side.values())


def _renamed(source: Source) -> Iterator[tuple[str, str]]:
    """(name, other name) of what gets another name: `import a as b`, `b = a`, `self.b = self.a`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.alias) and node.asname:
            yield node.name.rpartition(".")[2], node.asname
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name | ast.Attribute):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield syntax.last_name(node.value), syntax.last_name(target)


@dataclass
class _Changed:
    """The last names of what the patch changes or adds: all of it, and that of which more than the body changes."""

    names: set[str] = field(default_factory=set)
    otherwise: set[str] = field(default_factory=set)
    #: Of these it is no matter that they are set, if both versions set them alike.
    settable: set[str] = field(default_factory=set)
    #: By any other way than its name: `x + y` may call any `__add__`.
    special: set[str] = field(default_factory=set)


def _changed(report: Report, but: Change, sources: _Sources) -> _Changed:
    found = _Changed()
    hard: set[str] = set()  # of which it does matter that they are set
    for change in report.of(*IN_PATCH, REFUSED):  # hooks may bring some of what is refused
        if change is but:
            continue
        names = {name.rpartition(".")[2] for name in change.name.split()} or {change.module.rpartition(".")[2]}
        owner = change.name.rpartition(".")[0].rpartition(".")[2]
        if owner and any(map(syntax.is_special, names)):
            names.add(owner)  # whoever calls the class calls its `__init__`
        entry = change.entry
        plain = isinstance(entry, FunctionEntry) and not (entry.retired or entry.anew)
        found.names |= names
        if not (plain and (change.reason == "body" or change.kind == READER)):
            found.otherwise |= names
            hard |= names if change.fate != ADDED or not sources.plain(change) else set()
    found.settable = found.otherwise - hard
    for part in (found.names, found.otherwise):
        part |= sources.aliases(but.file, part)
    found.special = {name for name in found.names - _MAKING if syntax.is_special(name)}
    return found


# -- the call that does not return -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stay:
    """A call that does not return, as a statement, and the compound statements around it, outermost first."""

    statement: ast.stmt
    called: ast.expr
    around: tuple[ast.stmt, ...]


def _stays(function: syntax.FunctionNode) -> list[_Stay]:
    """The places of a function in which a task stays."""
    return list(_found(function.body, ()))


def _found(body: Iterable[ast.stmt], around: tuple[ast.stmt, ...]) -> Iterator[_Stay]:
    for statement in body:
        if isinstance(statement, syntax.DEFINITIONS):
            continue
        called = _called(getattr(statement, "value", None))
        if called is not None:
            yield _Stay(statement, called, around)
        for block in _blocks(statement):
            yield from _found(block, (*around, statement))


def _called(node: ast.expr | None) -> ast.expr | None:
    """`a.run_forever` of a statement that does nothing but call that, await it or have it run."""
    while isinstance(node, ast.Await):
        node = node.value
    if not isinstance(node, ast.Call):
        return None
    name = syntax.last_name(node.func)
    if name in STAYS:
        return node.func
    return _called(node.args[0]) if name in _RUNNERS and len(node.args) == 1 else None


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The lists of statements directly inside of one."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _after(function: syntax.FunctionNode, stay: _Stay) -> list[ast.AST]:
    """All that may still be run of a function when that call returns or raises."""
    found: list[ast.AST] = []
    inner: ast.stmt = stay.statement
    for outer in (*reversed(stay.around), function):
        for block in _blocks(outer):
            if inner in block:
                found += block[block.index(inner) + 1 :]
            elif isinstance(outer, ast.Try):
                found += block
        if isinstance(outer, ast.Try):
            found += [handler.type for handler in outer.handlers if handler.type is not None]
        elif isinstance(outer, ast.With | ast.AsyncWith):
            found += outer.items  # which leave the context
        inner = outer
    return found


# -- what speaks against it --------------------------------------------------------------------------------------------


def _why_not(
    change: Change,
    before: Sequence[_Node],
    after: Sequence[_Node],
    changed: _Changed,
    sources: _Sources,
) -> str:
    """Why a function cannot be immediate by itself, to go on after "since"; empty if it can."""
    if change.reason != "body":
        return f"it is exchanged for more than its body ({change.reason})"
    nodes = [node for node in (*before, *after) if node is not None]
    if not before or not after or len(nodes) < len(before) + len(after):
        return "not all of its versions can be read"
    for node in nodes:
        stays = _stays(node)
        if len(stays) != 1:
            return "that call is not there exactly once in both versions"
        if not all(isinstance(outer, _PASSED) for outer in stays[0].around):
            return "that call stands in a loop or under a condition"
        if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
            return "it is a generator"
        if problem := _after_problem(node, stays[0], changed):
            return f"what it does after that call {problem}"
    new = nodes.pop()
    if problem := _problem(new, changed):
        return problem
    mine = _essence(new, changed, sources)
    if any(_essence(old, changed, sources) != mine for old in nodes):
        return "its two versions do not do the same"
    return ""


def _after_problem(function: syntax.FunctionNode, stay: _Stay, changed: _Changed) -> str:
    rest = _after(function, stay)
    named = {name for node in _with_origins(function, rest) for name, _ in _names(node)}
    if named & changed.names:
        return f"uses {min(named & changed.names)}, which changes"
    if named & _BY_ANY_NAME:
        return f"uses {min(named & _BY_ANY_NAME)}, which may get at anything that changes"
    if called := _called_unnamed(_walk(rest), changed.special):
        return f"may call {min(called)}, which changes"
    return ""


def _problem(function: syntax.FunctionNode, changed: _Changed) -> str:
    """Whether it uses what changes otherwise than in its body: then one code cannot be right in both worlds."""
    for name, stored in _names(function):
        if name in changed.otherwise and not (stored and name in changed.settable):
            return f"it uses {name}, of which more changes than its body"
    if called := _called_unnamed(ast.walk(function), changed.special & changed.otherwise):
        return f"it may call {min(called)}, of which more changes than its body"
    return ""


def _walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    return (inner for node in nodes for inner in ast.walk(node))


def _names(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """All names and attributes in a piece of source, and whether they are only set."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id, isinstance(inner.ctx, ast.Store)
        elif isinstance(inner, ast.Attribute):
            yield inner.attr, isinstance(inner.ctx, ast.Store)
        elif isinstance(inner, ast.alias):
            yield from ((part, False) for part in inner.name.split("."))


def _with_origins(function: syntax.FunctionNode, nodes: list[ast.AST]) -> list[ast.AST]:
    """These pieces of a function, and all that its local variables in them have been made from."""
    found, known = list(nodes), 0
    while known < len(found):
        wanted = {name for node in found for name, _ in _names(node)}
        known = len(found)
        for statement in syntax.all_statements(function.body):
            value = getattr(statement, "iter", None) or getattr(statement, "value", None)
            targets = [getattr(statement, "target", None), *getattr(statement, "targets", ())]
            made = {inner.id for target in targets if target is not None for inner in ast.walk(target)
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}  # fmt: skip
            if value is not None and made & wanted and value not in found:
                found.append(value)
    return found


def _called_unnamed(nodes: Iterable[ast.AST], special: set[str]) -> set[str]:
    """Which of these special methods may be called by what does not name them."""
    found = special & _ATTRIBUTES
    for node in nodes if special else ():
        if isinstance(node, ast.withitem):
            found |= special & _CONTEXTS
        elif _may_call_any(node):
            found |= special - _CONTEXTS
    return found


def _may_call_any(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return not all(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
    if isinstance(node, ast.If | ast.While | ast.Assert | ast.IfExp):
        return not isinstance(node.test, ast.Compare | ast.Constant)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(node.args)  # `str(x)`, and all builtins like it
    kinds = ast.BinOp | ast.UnaryOp | ast.BoolOp | ast.AugAssign | ast.Subscript | ast.JoinedStr | ast.Starred
    return isinstance(node, kinds | ast.For | ast.AsyncFor | ast.comprehension | ast.Delete | ast.Await)


# -- what a version does -----------------------------------------------------------------------------------------------


def _essence(function: syntax.FunctionNode, changed: _Changed, sources: _Sources) -> object:
    """What a version does, comparable with `==`, without what makes no difference to anybody else."""
    kept = copy.deepcopy(function)
    _join(kept)
    (stay,) = _stays(kept)
    late = {id(node) for node in _walk(_after(kept, stay))}

    def is_idle(statement: ast.stmt) -> bool:
        if any(name in changed.names for name, _ in _names(statement)):
            return False
        if isinstance(statement, ast.Assert) or _is_message(statement):
            return _only_asks(statement)
        if isinstance(statement, ast.If) and not (statement.body or statement.orelse):
            return _only_asks(statement.test)
        return id(statement) in late and _only_closes(statement, sources)

    _strip(kept, is_idle)
    return type(kept).__name__, syntax.shape(kept.args), syntax.shape(kept.body)


def _join(function: syntax.FunctionNode) -> None:
    """Make `x = f(); self.x = x` one statement, where that `x` is nowhere else."""
    times = Counter(node.id for node in ast.walk(function) if isinstance(node, ast.Name))
    shared = {n for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for n in node.names}
    shared |= {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    for outer in [node for node in ast.walk(function) if isinstance(node, ast.stmt)]:
        for block in _blocks(outer):
            for first, second in [*pairwise(block)]:
                if isinstance(second, ast.Assign | ast.AnnAssign | ast.Return) and isinstance(second.value, ast.Name):
                    name = second.value.id
                    alone = times[name] == 2 and name not in shared
                    if alone and isinstance(first, ast.Assign | ast.AnnAssign) and _sets_only(first, name):
                        second.value = first.value
                        block.remove(first)


def _sets_only(statement: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return statement.value is not None and [getattr(target, "id", None) for target in targets] == [name]


def _strip(outer: ast.stmt, is_idle: Callable[[ast.stmt], bool]) -> None:
    """Take out the statements for which that is true, the innermost first."""
    for block in _blocks(outer):
        for statement in list(block):
            if not isinstance(statement, syntax.DEFINITIONS):
                _strip(statement, is_idle)
            if is_idle(statement):
                block.remove(statement)


def _only_asks(node: ast.AST) -> bool:
    """Whether evaluating this calls nothing but what finds something out; a message is a call itself."""
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    if isinstance(node, ast.Expr):
        calls.remove(node.value)  # type: ignore[arg-type]
    named = (isinstance(call.func, ast.Name) and call.func.id in _ASKS for call in calls)
    others = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
    return all(named) and not any(isinstance(inner, others) for inner in ast.walk(node))


def _is_message(statement: ast.stmt) -> bool:
    """`log.debug(...)`, `self.logger.info(...)`, `print(...)`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in _LEVELS and _LOGGER.fullmatch(syntax.last_name(call.func.value)) is not None
    return isinstance(call.func, ast.Name) and call.func.id == "print"


def _only_closes(statement: ast.stmt, sources: _Sources) -> bool:
    """`self.server.close()`, `await server.wait_closed()`, `loop.run_until_complete(server.wait_closed())`."""
    node: ast.expr | None = statement.value if isinstance(statement, ast.Expr) else None
    while isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.Call) and syntax.last_name(node.func) == "run_until_complete" and len(node.args) == 1:
        node = node.args[0]
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)) or node.args or node.keywords:
        return False
    plain = all(isinstance(inner, ast.Name | ast.Attribute | ast.expr_context) for inner in ast.walk(node.func))
    return plain and node.func.attr in _CLOSES and not sources.define(node.func.attr)
