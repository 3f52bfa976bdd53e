"""New members of enumerations."""

import pytest
from tests.archive.kit import M, disabled, enabled, refusal
from tests.build.kit import refusals

import livepatch as lp
from livepatch.archive import fit

OLD = """
    import enum
    class Plain(enum.Enum):
        A = 1
        B = enum.auto()
    class Code(enum.IntEnum):
        OK = 200
        def shout(self): return self.name + "!"
    class Text(str, enum.Enum):
        X = "x"
    def f(): return None
"""
NEW = (
    OLD.replace("B = enum.auto()", "B = enum.auto()\n        C = enum.auto()\n        ALSO = 1")
    .replace("OK = 200", "OK = 200\n        GONE = 410")
    .replace('X = "x"', 'X = "x"\n        Y = "y"')
    .replace("return None", "return Plain.C, Code.GONE, Text.Y")
)


def test_members_come_and_go(package):
    package.have({M: OLD})
    m = package.load()
    kinds = m.Plain, m.Code, m.Text
    before, kept = [list(kind.__members__.items()) for kind in kinds], [set(vars(kind)) for kind in kinds]
    patch = package.bind({M: NEW})
    enabled(patch)
    c, gone, y = m.f()
    assert (c.name, c.value, repr(c)) == ("C", 3, "<Plain.C: 3>")
    assert m.Plain(3) is c is m.Plain["C"]
    assert m.Plain.ALSO is m.Plain.A
    assert (gone == 410, isinstance(gone, m.Code), gone.shout(), gone + 1) == (True, True, "GONE!", 411)
    assert (y == "y", m.Text("y") is y) == (True, True)
    assert [list(kind) for kind in kinds] == [[m.Plain.A, m.Plain.B, c], [m.Code.OK, gone], [m.Text.X, y]]
    assert list(m.Plain.__members__) == ["A", "B", "C", "ALSO"]
    disabled(patch)
    assert [list(kind.__members__.items()) for kind in kinds] == before
    assert [set(vars(kind)) for kind in kinds] == kept
    with pytest.raises(ValueError, match="3"):
        m.Plain(3)


def test_old_members_must_stay_as_they_are(package):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: OLD.replace("B = enum.auto()", "C = enum.auto()\n        B = enum.auto()")})
    assert "'Plain.B' would have another value" in refusal(lp.enable_patch, patch)
    assert list(m.Plain.__members__) == ["A", "B"]


def test_a_member_that_is_there_already_is_refused(package):
    package.have({M: OLD})
    m = package.load()
    archive = package.archive({M: NEW})
    m.Code.GONE = 1
    assert "'Code.GONE' exists already" in refusal(fit.bind, archive)


@pytest.mark.parametrize(
    ("head", "new"),
    [
        ("class C(Flag):\n    A = 1", "    B = 2"),
        ("class C(Enum):\n    A = 1\n    def __init__(self, x): pass", "    B = 2"),
        ("class C(Mine, Enum):\n    A = 1", "    B = 2"),
        ("@register\nclass C(Enum):\n    A = 1", "    B = 2"),
        ("class C(Enum):\n    A = 1", "    B = ask()"),
    ],
)
def test_enumerations_that_are_refused(head, new):
    assert refusals(head, f"{head}\n{new}\n")


def test_values_that_change_are_refused():
    assert refusals("class C(Enum):\n    A = 1", "class C(Enum):\n    A = 2")
    assert refusals("class C(Enum):\n    A = 1\n    B = 2", "class C(Enum):\n    A = 1")
