"""Named tuples that are written otherwise: which are the same, and which are not."""

import pytest
from tests.build.kit import said

IMPORTS = "import collections, typing\nfrom typing import NamedTuple\n"
CALL = 'X = collections.namedtuple("X", ["a", "b"])\n'
CLASS = 'class X(typing.NamedTuple):\n    """What it is."""\n    a: int\n    b: str\n'


@pytest.mark.parametrize(
    "other",
    [
        CLASS,
        CLASS.replace("typing.", ""),
        'X = collections.namedtuple("X", "a, b")\n',
        'X = NamedTuple("X", [("a", int), ("b", str)])\n',
    ],
)
def test_the_same_tuple(other):
    for old, new in ((CALL, other), (other, CALL)):
        tail = "def f(): return X(1, 2)\n"
        found = said(IMPORTS + old + tail, IMPORTS + new + tail)
        assert found.keys() == {"note"}
        assert "X" in found["note"]


@pytest.mark.parametrize(
    "new",
    [
        CLASS.replace("b:", "c:"),
        CLASS.replace("b: str", "b: str = ''"),
        CLASS.replace("    a: int\n    b: str\n", "    b: str\n    a: int\n"),
        CLASS + "    def f(self): return 1\n",
        CLASS.replace("typing.NamedTuple", "typing.NamedTuple, Mixin"),
        CLASS.replace("typing.NamedTuple", "other.NamedTuple"),
        "@deco\n" + CLASS,
        "if len(''):\n    class X(typing.NamedTuple):\n        a: int\n        b: str\n",
    ],
)
def test_another_class(new):
    assert "X" in said(IMPORTS + CALL, IMPORTS + new)["refused"]


def test_another_tuple_is_a_value():
    found = said(IMPORTS + CALL + "def f(): return X", IMPORTS + CALL.replace('"b"', '"c"') + "def f(): return X")
    assert found["value"] == ["X"]
    found = said(
        IMPORTS + CALL + "def f(): return X", IMPORTS + CALL.replace("])", "], rename=True)") + "def f(): return X"
    )
    assert found["value"] == ["X"]
