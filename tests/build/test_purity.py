"""What may be evaluated once more in a live process, and what may not."""

import pytest
from tests.build.kit import refusals, report


def verdict(before, value, tree=None):
    """The refusals where `x` of a module that begins so becomes this value."""
    tree = {"pkg/__init__.py": "", **(tree or {})}
    reader = "\ndef reader(): return x\n"
    old = tree | {"pkg/m.py": f"{before}\nx = None{reader}"}
    return [text for text in refusals(old, tree | {"pkg/m.py": f"{before}\nx = {value}{reader}"}) if "x:" in text]


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("", "tuple.__new__(tuple, (1, 2))"),
        ("", "dict.fromkeys('ab')"),
        ("", "list(map(str.upper, 'ab'))"),
        ("", "sorted('ab', key=lambda c: c.upper())"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    a: int", "P(1)._replace(a=2)"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    a: int", "P._make([1])"),
        ("import collections\nP = collections.namedtuple('P', 'a')", "P(1)"),
        ("import enum\nclass E(enum.Enum):\n    A = 1", "E['A'], E(1)"),
        ("from datetime import datetime, timezone", "datetime.now(timezone.utc).timetuple()"),
        ("import time", "time.time()"),
        ("import os", "os.path.join(os.getcwd(), os.environ.get('A', 'a'))"),
        ("import os.path as p", "p.dirname(__file__)"),
        ("from pathlib import PurePath", "(PurePath('a') / 'b').with_suffix('.c')"),
        ("import uuid", "uuid.uuid4()"),
        ("import decimal", "decimal.Decimal('1').quantize(decimal.Decimal('.1'))"),
        ("import struct", "struct.Struct('<I').size"),
        ("from operator import itemgetter", "itemgetter(0)('ab')"),
        ("from functools import partial", "partial(int, base=2)('1')"),
        ("import weakref", "weakref.WeakValueDictionary()"),
        ("import typing", "typing.TypeVar('T'), typing.NewType('N', int), typing.cast(int, 1)"),
        ("def f(a): return [g(b) for b in a]\ndef g(b): return b + 1", "f([1])"),
        ("def f(n): return f(n - 1) if n else 0", "f(3)"),
        ("f = lambda a: a + 1\ng = f", "g(1)"),
        ("class C:\n    def __init__(self, a): self._set(a)\n    def _set(self, a): self.b = [a]", "C(1)"),
        ("class C:\n    def twice(self): return [self, self]", "C().twice()"),
        ("class C:\n    @property\n    def a(self): return 1\nc = C()", "c.a"),
        ("class C:\n    @classmethod\n    def make(cls): return cls()", "C.make()"),
        ("class C:\n    class D:\n        def __init__(self): self.a = 1", "C.D()"),
        ("class C:\n    def __init__(self, a): object.__setattr__(self, 'a', a)", "C(1)"),
        ("class M(type):\n    pass\nclass C(metaclass=M): pass", "C()"),
        ("from .n import f", "f(1)"),
        ("from . import n", "n.C().m()"),
        ("from .n import *", "f(1)"),
    ],
)  # fmt: skip
def test_it_only_computes(before, value):
    tree = {"pkg/n.py": "def f(a): return a\nclass C:\n    def m(self): return f(1)\n"}
    assert verdict(before, value, tree) == []


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("", "[open, 1][0]('a')"),
        ("", "list(map(open, 'ab'))"),
        ("", "sorted('ab', key=print)"),
        ("", "sorted('ab', key=lambda c: print(c))"),
        ("", "(lambda: open('a'))()"),
        ("import os", "getattr(os, 'remove')('a')"),
        ("import os", "os.remove('a')"),
        ("import os\nt = {'a': os.remove}", "t['a']('b')"),
        ("from functools import partial", "partial(open, 'a')()"),
        ("import sys", "sys.setrecursionlimit(10)"),
        ("import decimal", "decimal.setcontext(decimal.Context())"),
        ("from pathlib import Path", "Path('a').read_text()"),
        ("from pathlib import Path", "Path.cwd().mkdir()"),
        ("import threading", "threading.Thread(target=int)"),
        ("import contextvars", "contextvars.ContextVar('a')"),
        ("import random", "random.seed(1)"),
        ("import requests\ns = requests.Session()", "s.get('a')"),
        ("from requests import s", "s.get('a')"),
        ("import re\nre = print", "re.compile('a')"),
        ("try:\n    import re\nexcept ImportError:\n    import regex as re", "re.compile('a')"),
        ("len = print", "len('a')"),
        ("def f(len): return len('a')", "f(print)"),
        ("def f():\n    len = print\n    return len('a')", "f()"),
        ("def f():\n    global g\n    g = open\ng = len", "g('a')"),
        ("t = []\ndef f(): t.append(1)", "f()"),
        ("t = []\ndef f():\n    u = t\n    u.append(1)", "f()"),
        ("t = [[]]\ndef f():\n    for u in t: u.append(1)", "f()"),
        ("t = {}\ndef f(u): u['a'] = 1", "f(t)"),
        ("t = []\ndef f(u): u += [1]", "f(t)"),
        ("t = []\ndef f():\n    u = t\n    u += [1]", "f()"),
        ("t = []\nclass C:\n    def __init__(self): t.append(self)", "C()"),
        ("t = []\nclass C:\n    def __init__(self): self._set()\n    def _set(self): t.append(self)", "C()"),
        ("t = []\nclass C:\n    def __init__(self):\n        self.t = t\nc = C()", "c.t.append(1)"),
        ("class C:\n    def __init__(self): self.f = open('a')", "C()"),
        ("class B:\n    def __init__(self): print()\nclass C(B): pass", "C()"),
        ("class C:\n    def __setattr__(self, name, value): print()\n    def __init__(self): self.a = 1", "C()"),
        ("class M(type):\n    def __call__(cls): return open('a')\nclass C(metaclass=M): pass", "C()"),
        ("import threading\nclass C(threading.Thread): pass", "C()"),
        ("class C:\n    @property\n    def a(self): return print()\nc = C()", "c.a"),
        ("class C:\n    def __getattr__(self, name): return print()", "C().a"),
        ("class C:\n    def __add__(self, other): return print()\nc = C()", "c + 1"),
        ("class C:\n    def __iter__(self): return print()\nc = C()", "[d for d in c]"),
        ("class C:\n    def __str__(self): return print()\nc = C()", "str(c)"),
        ("class C:\n    def get(self, a): return print()\nc = C()", "c.get('a')"),
        ("class C:\n    a = 1\n    def get(self, a): self.a = a\nc = C()", "c.get(2)"),
        ("class C:\n    def __init__(self, f): f()", "C(open)"),
        ("class B:\n    def __init_subclass__(cls): print()", "type('C', (B,), {})"),
        ("import functools\n@functools.cache\ndef f(): return print()", "f()"),
        ("import threading\nlock = threading.Lock()\ndef f():\n    with lock: return 1", "f()"),
        ("from .n import f", "f(1)"),
        ("from .n import *", "f(1)"),
        ("from .n import t", "t.get(1)"),
        ("from dataclasses import *\n@dataclass\nclass C:\n    a: int = field(default_factory=input)", "C()"),
    ],
)  # fmt: skip
def test_it_may_do_anything(before, value):
    tree = {"pkg/n.py": "import requests\nt = requests.table()\ndef f(a): return t.send(a)\n"}
    assert verdict(before, value, tree)


def test_what_gives_something_else_each_time_is_not_compared():
    def entry(value):
        (change,) = report(f"import time\nx = {value}\ndef f(): return x", "x = 1\ndef f(): return x").values
        return change.entry

    assert not entry("[time.time()]").old_lines
    assert entry("[time.gmtime]").old_lines


def test_what_is_imported_in_a_block_is_not_its_own():
    old = "x = 1\ntry:\n    from a import t\n    t.append(1)\n    x = 2\nexcept ImportError: pass\ndef f(): return x"
    assert "`t.append` may do anything" in " ".join(refusals(old, old.replace("(1)", "(2)")))
    assert not refusals(old.replace("t.append(1)", ""), old.replace("t.append(1)", "x = 3"))


FIND = "import importlib\ndef find(a=0):\n    for name in ({}):\n        return importlib.import_module(name)\n"


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("import importlib", "importlib.import_module('json')"),
        (FIND.format("'a', 'b.c'"), "find()"),
        ("def one(): return 1\ndef two(): return 2\ndef f():\n    for g in (one, two):\n        return g()", "f()"),
    ],
)
def test_what_the_source_names_can_be_imported(before, value):
    assert verdict(before, value) == []


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("import importlib, os", "importlib.import_module(os.environ['A'])"),
        ("import importlib", "importlib.import_module('.a', __package__)"),
        ("import importlib", "importlib.import_module('.a')"),
        (FIND.format("'a', a"), "find()"),
        (FIND.format("*a, 'a'"), "find()"),
        (FIND.format(""), "find()"),
        (FIND.format("'a', 'b'").replace("return", "name += 'x'; return"), "find()"),
        (FIND.format("'a', 'b'").replace("(a=0)", "(name)").replace("for name", "for other"), "find('a')"),
        ("def f():\n    for g in (str, print):\n        g()", "f()"),
        ("KEPT = []\ndef f():\n    for kept in (KEPT, []):\n        kept.append(1)", "f()"),
    ],
)
def test_what_a_loop_goes_through_may_do_anything(before, value):
    assert verdict(before, value)


MEMO = "import collections\nKNOWN = {}\nOTHER = collections.OrderedDict()\ndef f(a):\n    KNOWN[a] = 1\n    return a\n"


@pytest.mark.parametrize(
    ("new", "fine"),
    [
        (MEMO, True),
        (MEMO.replace("KNOWN[a]", "OTHER[a]"), False),
        (MEMO.replace("KNOWN[a]", "collections.a"), False),
        (MEMO.replace("def f(a)", "def f(a, KNOWN)"), False),
        (MEMO.replace("KNOWN = {}", "from pkg.o import KNOWN"), False),
        (MEMO.replace("    KNOWN[a]", "    global KNOWN\n    KNOWN"), False),
    ],
)
def test_a_new_module_may_remember(new, fine):
    """What it has made itself nobody else has yet; in a module that is there, it may be anybody's."""
    old = {"pkg/__init__.py": "", "pkg/o.py": "KNOWN = {}", "pkg/m.py": "x = 1\ndef g(): return x\n"}
    changed = {"pkg/m.py": "from pkg.n import f\nx = f(2)\ndef g(): return x\n"}
    found = refusals(old, old | changed | {"pkg/n.py": new})
    assert (not found) is fine, found
    there = old | {"pkg/n.py": new, "pkg/m.py": "from pkg.n import f\nx = 1\ndef g(): return x\n"}
    assert refusals(there, there | changed)
