"""New statements of a module that are run for what they do to something else: carried at completion, or refused."""

import pytest
from tests.build.kit import refusals, report, said

OLD = {
    "pkg/__init__.py": "",
    "pkg/other.py": "TABLE = {}\nNAMES = []\nFLAG = 1\nMODE = 'a'\nclass Thing: pass\nthing = Thing()\n",
    "pkg/m.py": """
import os
import sys
import urllib.parse
import logging
from urllib.parse import uses_netloc
from pkg import other
from pkg.other import TABLE
class C:
    table = {}
    flag = 1
    def m(self): return 1
own = object()
mine = []
def f(): return urllib.parse, other.FLAG, os, sys, logging, C, own, mine
""",
}


def with_(statement, **others):
    tree = {**OLD, "pkg/m.py": OLD["pkg/m.py"] + statement}
    return tree | {f"pkg/{name}.py": content for name, content in others.items()}


@pytest.mark.parametrize(
    "statement",
    [
        "urllib.parse.uses_netloc.append('x')",
        "if 'x' not in urllib.parse.uses_netloc: urllib.parse.uses_netloc.append('x')",
        "for name in ('x', 'y'):\n    if name not in uses_netloc:\n        uses_netloc.append(name)",
        "uses_netloc.append('x')",
        "uses_netloc.extend(['x', 'y'])",
        "urllib.parse.uses_netloc.insert(0, 'x')",
        "other.TABLE['x'] = 1",
        "other.TABLE.update(x=1)",
        "other.TABLE.setdefault('x', [])",
        "TABLE['x'] = f",
        "C.table['x'] = C",
        "setattr(other, 'NEW', 1)",
        "setattr(C, 'fresh', 1)",
        "if other.FLAG: other.NEW = 1",
        "if other.FLAG:\n    other.NEW = 1\nelse:\n    other.NAMES.append(1)",
    ],
)
def test_what_only_adds_to_something_else_is_run_at_completion(statement):
    found = report(OLD, with_(statement))
    assert not found.refused
    (change,) = found.changes
    assert (change.fate, change.kind, change.is_consistent) == ("at completion", "statement", False)
    assert (
        change.name == statement.replace(": urllib", ":\n    urllib").replace(": other", ":\n    other").split("\n")[0]
    )


@pytest.mark.parametrize(
    "statement",
    [
        "other.NAMES.append(input())",  # the value is no mere value
        "if input(): other.NAMES.append(1)",
        "other.NAMES.remove(1)",  # nobody knows where it was
        "other.NAMES.clear()",
        "del other.TABLE['x']",
        "other.NAMES += [1]",
        "other.NAMES[1:] = [1]",
        "other.NAMES.extend(*[[1]])",
        "other.TABLE.update(**{})",
        "other.TABLE.register('x')",
        "other.make().append(1)",  # no name tells what it is
        "globals()['x'] = 1",
        "other.TABLE['x'].append(1)",
        "other.thing.__dict__['x'] = 1",
        "setattr(other.thing, '__dict__', {})",
        "setattr(other.Thing, '__class__', C)",
        "setattr(C, 'flag', 2)",  # members of classes follow in another way
        "setattr(C, 'm', f)",
        "setattr(own, 'x', 1)",
        "for x in (other,): x.NEW = 1",
        "for name in ('x',): other.NAMES.append(name)\ndef g(): return name",
        "sys.path.append('x')",  # this is for who starts the process
        "sys.modules['x'] = other",
        "sys.modules[__name__].x = 1",
        "os.environ['x'] = '1'",
        "os.environ.setdefault('x', '1')",
        "try:\n    other.NAMES.append(1)\nexcept AttributeError:\n    other.TABLE['x'] = 1",
        "while other.FLAG: other.NAMES.append(1)",
        "with open('x'): other.NAMES.append(1)",
        "other.NAMES.append(1); other.NAMES.append(2)",
    ],
)
def test_what_may_do_more_or_cannot_be_taken_back_is_refused(statement):
    assert refusals(OLD, with_(statement))


@pytest.mark.parametrize(
    ("statement", "other"),
    [
        ("other.TABLE['x'] = 1", OLD["pkg/other.py"].replace("{}", "{1: 1}")),
        ("other.TABLE['x'] = other.MODE", OLD["pkg/other.py"].replace("'a'", "'b'")),
        ("if other.MODE == 'b': setattr(other, 'NEW', 1)", OLD["pkg/other.py"].replace("'a'", "'b'")),
        ("setattr(other, 'FLAG', 2)", OLD["pkg/other.py"].replace("FLAG = 1", "FLAG = 3")),
    ],
)
def test_what_is_about_a_value_that_changes_is_refused(statement, other):
    assert refusals(OLD, with_(statement, other=other))


def test_a_statement_that_is_gone_or_another_one_is_refused():
    assert refusals(with_("other.NAMES.append(1)"), OLD)
    assert refusals(with_("other.NAMES.append(1)"), with_("other.NAMES.append(2)"))


def test_the_class_of_the_module_itself():
    new = """
if not other.MODE:
    class Module(sys.modules[__name__].__class__):
        def __call__(self): return 1
    sys.modules[__name__].__class__ = Module
"""
    changes = said(OLD, with_(new))
    assert changes == {"added": ["Module"], "at completion": ["sys.modules[__name__].__class__ = Module"]}


def test_without_what_it_needs_it_is_left_out():
    tree = with_("def fresh(): pass\nother.NAMES.append(fresh)")
    found = report(OLD, tree).narrowed(exclude=["pkg.m:fresh"])
    assert not found.refused
    assert not found.at_completion


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("other.TABLE['x'] = 1", "other.TABLE['x'] = 2"),
        ("setattr(C, 'fresh', 1)", "setattr(C, 'fresh', f)"),
        ("if other.MODE: other.NEW = 1", "if other.MODE: other.NEW = 2"),
    ],
)
def test_what_is_set_to_something_else_now(old, new):
    changes = said(with_(old), with_(new))
    assert changes.keys() == {"note", "at completion"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("other.TABLE['x'] = 1", "other.TABLE['y'] = 1"),
        ("other.TABLE['x'] = 1", "other.TABLE.update(x=2)"),
        ("other.TABLE['x'] = 1", "if other.MODE: other.TABLE['x'] = 2"),
        ("other.TABLE.setdefault('x', 1)", "other.TABLE.setdefault('x', 2)"),
        ("if other.MODE: other.NEW = 1", "if not other.MODE: other.NEW = 2"),
        ("if other.MODE: other.NEW = 1", "if other.MODE: other.NEWER = 2"),
    ],
)
def test_what_is_not_set_any_more_is_refused(old, new):
    assert refusals(with_(old), with_(new))
