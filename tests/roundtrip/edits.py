"""Random edits of real source: what a release may do to a module, as changes of its syntax tree.

An edit is a function of a tree and of a `Pick`, which chooses among what there is; it returns whether it found
something to change. Edits know nothing of livepatch: what of the result can be carried is not their affair.
"""

import ast
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Pick:
    """Choices, made from two numbers: the same numbers choose the same."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = itertools.cycle(numbers)

    def number(self) -> int:
        return next(self._numbers)

    def of(self, choices: Sequence[T]) -> T | None:
        return choices[self.number() % len(choices)] if choices else None


Edit = Callable[[ast.Module, Pick], bool]
EDITS: list[Edit] = []


def edit(function: Edit) -> Edit:
    EDITS.append(function)
    return function


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def classes(tree: ast.AST) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def outer(tree: ast.Module) -> list[Function]:
    """Functions of the module and of its classes."""
    bodies = [tree.body, *(cls.body for cls in tree.body if isinstance(cls, ast.ClassDef))]
    return [node for body in bodies for node in body if isinstance(node, Function)]


def statements(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def fresh(tree: ast.Module, pick: Pick) -> str:
    """A name that occurs nowhere."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {f.name for f in functions(tree)}
    number = pick.number() % 1000
    while f"lp_{number}" in used:
        number += 1
    return f"lp_{number}"


def start(body: list[ast.stmt]) -> int:
    """Where the statements begin, after a docstring."""
    return int(isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant))


@edit
def say_more_in_a_body(tree, pick):
    function = pick.of(functions(tree))
    if function is None:
        return False
    texts = ("lp_seen = 1", "if 0 > 1: raise ValueError('lp')", "for lp_i in (1, 2): pass", "lp_text = f'{__name__!r}'")
    function.body[start(function.body) : start(function.body)] = statements(pick.of(texts))
    return True


@edit
def say_less_in_a_body(tree, pick):
    function = pick.of([f for f in functions(tree) if len(f.body) - start(f.body) > 1])
    if function is None:
        return False
    plain = [
        s for s in function.body[start(function.body) :] if isinstance(s, ast.Assign | ast.Expr | ast.Return | ast.If)
    ]
    statement = pick.of(plain)
    if statement is None:
        return False
    function.body.remove(statement)
    return True


@edit
def turn_a_condition_around(tree, pick):
    tests = [node for f in functions(tree) for node in ast.walk(f) if isinstance(node, ast.If | ast.While | ast.IfExp)]
    node = pick.of(tests)
    if node is None:
        return False
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


@edit
def change_a_constant_in_a_body(tree, pick):
    def constants(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and type(child.value) in (int, str, bytes, float):
                yield child
            elif not isinstance(child, ast.JoinedStr | ast.Expr | ast.MatchValue | ast.MatchMapping):
                yield from constants(child)

    node = pick.of([c for f in functions(tree) for s in f.body for c in constants(s)])
    if node is None:
        return False
    node.value = node.value + ("x" if isinstance(node.value, str) else b"x" if isinstance(node.value, bytes) else 1)
    return True


@edit
def change_a_default(tree, pick):
    function = pick.of([f for f in functions(tree) if f.args.defaults])
    if function is None:
        return False
    function.args.defaults[-1] = ast.Constant(pick.of(("lp", 7, None)))
    return True


@edit
def add_a_parameter(tree, pick):
    function = pick.of([f for f in functions(tree) if f.name != "__init_subclass__"])
    if function is None:
        return False
    function.args.kwonlyargs.append(ast.arg("lp_option"))
    function.args.kw_defaults.append(ast.Constant(pick.of((1, "x", None))))
    return True


@edit
def remove_a_default(tree, pick):
    function = pick.of([f for f in functions(tree) if f.args.defaults])
    if function is None:
        return False
    function.args.defaults.pop(0)
    return True


@edit
def add_a_function_and_call_it(tree, pick):
    name, caller = fresh(tree, pick), pick.of(functions(tree))
    if caller is None:
        return False
    texts = (
        f"def {name}(a=1, *, b='x'):\n    'Helps.'\n    return a, b",
        f"def {name}():\n    def inner(): return {name}\n    return inner",
        f"{name} = 12",
        f"import collections as {name}",
        f"class {name}:\n    def m(self): return super().__hash__()",
    )
    # At the end: what the module does on import may be anything, and the helper needs nothing of it.
    tree.body += statements(pick.of(texts))
    caller.body[start(caller.body) : start(caller.body)] = statements(f"lp_helper = {name}")
    return True


@edit
def add_a_method(tree, pick):
    cls = pick.of([cls for cls in tree.body if isinstance(cls, ast.ClassDef)])
    if cls is None:
        return False
    name = fresh(tree, pick)
    texts = (
        f"def {name}(self, x=()): return x",
        f"@staticmethod\ndef {name}(): return __class__",
        f"@classmethod\ndef {name}(cls): return super()",
        f"@property\ndef {name}(self): return self.__lp",
        f"async def {name}(self): return [x async for x in self]",
    )
    cls.body += statements(pick.of(texts))
    return True


@edit
def remove_a_function(tree, pick):
    places = [tree.body, *(cls.body for cls in tree.body if isinstance(cls, ast.ClassDef))]
    found = [(body, node) for body in places for node in body if isinstance(node, Function) and len(body) > 1]
    chosen = pick.of(found)
    if chosen is None:
        return False
    chosen[0].remove(chosen[1])
    return True


@edit
def rename_a_function(tree, pick):
    function = pick.of([node for node in tree.body if isinstance(node, Function)])
    if function is None:
        return False
    old, new = function.name, fresh(tree, pick)
    function.name = new
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new
    return True


@edit
def nest_a_function(tree, pick):
    function = pick.of(functions(tree))
    if function is None:
        return False
    function.body[start(function.body) : start(function.body)] = statements("def lp_nested(): return 1\nlp_nested()")
    return True


@edit
def change_a_nested_function(tree, pick):
    nested = [inner for f in functions(tree) for inner in functions(f) if inner is not f]
    function = pick.of(nested)
    if function is None:
        return False
    function.body[start(function.body) : start(function.body)] = statements("lp_deep = 1")
    return True


@edit
def change_a_class_attribute(tree, pick):
    found = [
        s for cls in classes(tree) for s in cls.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)
    ]
    statement = pick.of(found)
    if statement is None:
        return False
    statement.value = ast.Constant(pick.of(("lp", 13, None)))
    return True


@edit
def add_or_remove_a_class_attribute(tree, pick):
    cls = pick.of(classes(tree))
    if cls is None:
        return False
    plain = [s for s in cls.body if isinstance(s, ast.Assign)]
    if plain and len(cls.body) > 1 and pick.number() % 2:
        cls.body.remove(pick.of(plain))
    else:
        cls.body += statements(f"{fresh(tree, pick)} = 5")
    return True


@edit
def change_a_module_constant(tree, pick):
    found = [s for s in tree.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]
    statement = pick.of(found)
    if statement is None:
        return False
    statement.value = ast.Constant(pick.of(("lp", 13, None)))
    return True


@edit
def move_a_function(tree, pick):
    function = pick.of([node for node in tree.body if isinstance(node, Function) and not node.decorator_list])
    if function is None:
        return False
    tree.body.remove(function)
    tree.body.append(function)
    return True


@edit
def change_words_only(tree, pick):
    """Docstrings and annotations."""
    function = pick.of(functions(tree))
    if function is None:
        return False
    if pick.number() % 2:
        function.returns = ast.Constant("lp")
    else:
        function.body[: start(function.body)] = statements("'Otherwise documented.'")
    return True


@edit
def decorate(tree, pick):
    function = pick.of(outer(tree))
    if function is None:
        return False
    if function.decorator_list:
        function.decorator_list.pop()
    else:
        function.decorator_list += [ast.parse("__import__('functools').lru_cache", mode="eval").body]
    return True


def edited(source: bytes, edits: Sequence[tuple[Edit, int, int]]) -> bytes:
    """A source with edits; those that find nothing to change do nothing, and so do those that it cannot stand."""
    for change, first, second in edits:
        tree = ast.parse(source)
        if change(tree, Pick(first, second)):
            text = ast.unparse(ast.fix_missing_locations(tree)).encode()
            try:
                compile(text, "edited", "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                continue  # `nonlocal` of what is gone, say
            source = text
    return source
