"""What only looks different: the same things by other imports, and what only type checkers read."""

import pytest
from tests.build.kit import refusals, report

T = "T = typing.TypeVar('T')\nU = typing.TypeVar('U')\n"


def nothing_to_carry(old, new):
    found = report(old, new)
    assert not found.refused
    assert {change.kind for change in found.changes if change not in found.notes} <= {"import"}
    return found


@pytest.mark.parametrize(
    ("imports", "text", "old", "new"),
    [
        ("from typing import NamedTuple", "class C({}):\n    x: int", "typing.NamedTuple", "NamedTuple"),
        ("from typing import Protocol", "class C({}): pass", "typing.Protocol", "Protocol"),
        ("from collections.abc import Mapping", "class C({}[str, int]): pass", "typing.Mapping", "Mapping"),
        ("from contextlib import AbstractContextManager as M", "class C({}): pass", "typing.ContextManager", "M"),
        ("", "class C({}): pass", "typing.Generic[T]", "typing.Generic[U]"),
        ("", "class C({}): pass", "typing.Generic[T]", ""),
        ("", "class C({}): pass", "", "typing.Generic[T]"),
        ("", "class B(typing.Generic[T]): pass\nclass C(B[{}]): pass", "T", "int"),
        ("", "class C{}: pass", "(object)", ""),
        ("", "class B: pass\nclass C(B{}): pass", "", ", object"),
        ("from functools import wraps as w", "@{}\nclass C:\n    def m(self): pass", "functools.wraps", "w"),
        ("from functools import lru_cache as c", "@{}(maxsize=2)\ndef f(): pass", "functools.lru_cache", "c"),
        ("from abc import abstractmethod as a", "class C:\n    @{}\n    def f(self): pass", "abc.abstractmethod", "a"),
        ("from typing import Any", "x: {0} = {{'a': {0}}}", "typing.Any", "Any"),
        ("from typing import Any", "class C:\n    x = {{'a': {}}}", "typing.Any", "Any"),
        ("from pydantic import BaseModel as B", "class C({}):\n    x: typing.Any", "pydantic.BaseModel", "B"),
    ],
)
def test_the_same_by_another_name(imports, text, old, new):
    head = f"import abc, functools, typing, pydantic\n{T}"
    nothing_to_carry(f"{head}{text.format(old)}\n", f"{head}{imports}\n{text.format(new)}\n")


def test_the_same_base_through_another_module():
    tree = {
        "pkg/__init__.py": "from pkg.base import Base",
        "pkg/base.py": "class Base: pass",
        "pkg/other.py": "class Base: pass",
        "pkg/m.py": "import pkg.base\nclass C(pkg.base.Base): pass\n",
    }
    nothing_to_carry(tree, {**tree, "pkg/m.py": "from pkg import Base as B\nclass C(B): pass\n"})
    found = report(tree, {**tree, "pkg/m.py": "from pkg.other import Base as B\nclass C(B): pass\n"})
    assert [change.name for change in found.of("carried")] == ["C"]  # other bases, indeed


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("from a import f\n@f\nclass C: pass", "from b import f\n@f\nclass C: pass", "imported from elsewhere"),
        ("import a\nclass C(a.B): pass", "import a\nB = a.B\nclass C(B): pass", "bases changed"),  # B may be assigned
        ("import a\nclass C(a.B[int]): pass", "import a\nclass C(a.B[str]): pass", "bases changed"),  # who knows
        (
            "import a, typing\nT = U = 1\nclass C(a.B, typing.Generic[T]): pass",
            "import a, typing\nT = U = 1\nclass C(a.B, typing.Generic[U]): pass",
            "bases changed",
        ),
        (
            "import a\nclass C:\n    a = 1\n    x = a.b",
            "import a\nfrom a import b\nclass C:\n    a = 1\n    x = b",
            "b",
        ),
    ],
)
def test_what_may_be_something_else_is(old, new, reason):
    found = report(old + "\n", new + "\n")
    assert reason in " ".join(f"{change.reason} {change.name}" for change in found.changes)
    assert {change.kind for change in found.changes if change not in found.notes}


def test_arguments_that_a_class_of_the_tree_computes_with():
    base = "class Base:\n    def __class_getitem__(cls, x): return make(cls, x)\n"
    (refusal,) = refusals(base + "class C(Base[int]): pass\n", base + "class C(Base[str]): pass\n")
    assert "its bases changed" in refusal


def test_new_type_parameters_that_code_asks_for():
    old = "import typing\nT = typing.TypeVar('T')\nclass C: pass\n"
    new = old.replace("class C:", "class C(typing.Generic[T]):")
    use = "def f(): return C[int]()\n"
    assert "`C[...]` is evaluated in pkg/m.py" in " ".join(refusals(old + "def f(): pass\n", new + use))
    lazy = "from __future__ import annotations\n"
    assert not refusals(lazy + old, lazy + new + "def f(x: C[int]): pass\n")


def test_an_annotation_that_is_computed_with_is_not_only_spelled_otherwise():
    head = "import typing\nfrom typing import Any, Text\nimport pydantic\nclass C(pydantic.BaseModel):\n    x: "
    assert not refusals(head + "typing.Any = 1\n", head + "Any = 1\n")
    assert refusals(head + "typing.Any = 1\n", head + "Text = 1\n")


def test_another_type_variable():
    old = "import typing\nT = typing.TypeVar('T')\nclass C(typing.Generic[T]): pass\n"
    assert not refusals(old, old.replace("'T')", "'T', bound=int)"))
    base = "class B:\n    def __class_getitem__(cls, x): return cls\n"
    limit = base + "LIMIT = 1\nclass C(B[LIMIT]): pass\ndef f(): return LIMIT\n"
    assert "was used with the old LIMIT" in " ".join(refusals(limit, limit.replace("LIMIT = 1", "LIMIT = 2")))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("class C: pass", "class C(B): pass", "has none but `object`"),
        ("class C(B): pass", "class C(object): pass", "has none but `object`"),
        ("class C(B): pass", "class C(B, dict): pass", "dict has another layout"),
        ("class C(B): pass", "class C(B, make()): pass", "may do anything"),
        ("class C(B): pass", "class C(B, typing.Protocol): pass", "or a protocol"),
        ("class C(B): pass", "class C(A, B, typing.Generic[T]): pass", "becomes generic"),
        ("class C(B): pass", "class C(typing.NamedTuple): pass", "NamedTuple computes with"),
    ],
)
def test_why_bases_cannot_change(old, new, reason):
    head = "import typing\nclass A: pass\nclass B: pass\nT = typing.TypeVar('T')\n"
    (refusal,) = refusals(f"{head}{old}\n", f"{head}{new}\n")
    assert reason in refusal
