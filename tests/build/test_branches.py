"""Definitions whose conditions changed: what the load can decide, and what it cannot."""

import pytest
from tests.build.kit import refusals, report


@pytest.mark.parametrize(
    ("old", "new", "sides"),
    [
        (
            "if sys.version_info < (3, 9):\n    def f(): pass",
            "if sys.version_info < (3, 8):\n    def f(): pass",
            [(3, 3)],
        ),
        ("def f(): pass", "if os.name == 'nt':\n    def f(): return 1\nelse:\n    def f(): pass", [(2, 5), (0, 3)]),
        (
            "class C:\n    try:\n        import a\n        def f(self): pass\n    except E: pass",
            "class C:\n    try:\n        def f(self): pass\n    except E: pass",
            [(5, 4)],
        ),
        (
            "try:\n    import a\nexcept ImportError:\n    def f(): pass",
            "try:\n    import b\nexcept ImportError:\n    def f(): pass",
            [(5, 5)],
        ),
        ("if HAS:\n    class C: pass\nelse:\n    class C: x = 1", "if not HAS:\n    class C: pass", [(3, 3), (5, 0)]),
    ],
)
def test_the_load_decides(old, new, sides):
    begin = "import os, sys; HAS = True\n"
    found = report(begin + old, begin + new)
    assert not found.refused, [str(change) for change in found.refused]
    branches = [change.entry for change in found.changes if type(change.entry).__name__ == "BranchEntry"]
    assert [list(zip(b.old_lines, b.lines, strict=True)) for b in branches] == [sides]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if unknown:\n    def f(): pass", "if not unknown:\n    def f(): pass"),
        ("if input():\n    def f(): pass", "if not input():\n    def f(): pass"),
        ("if HAS:\n    def f(): pass\ndef set():\n    global HAS\n    HAS = 0", "def f(): pass"),
        ("for x in 'ab':\n    def f(): pass", "for x in 'abc':\n    def f(): pass"),
        ("if HAS:\n    @register\n    def f(): pass", "@register\ndef f(): pass"),
        ("if HAS:\n    def f(): pass", "if HAS:\n    class f: pass"),
        ("try:\n    setup()\n    def f(): pass\nfinally: pass", "try:\n    def f(): pass\nfinally: pass"),
        ("class C:\n    if input():\n        def f(self): pass", "class C:\n    def f(self): pass"),
        (
            "try:\n    import a\nexcept:\n    import c\n    def f(): pass",
            "try:\n    import b\nexcept:\n    import d\n    def f(): pass",
        ),
    ],
)
def test_the_load_cannot_decide(old, new):
    begin = "HAS = True\n"
    tail = "" if "def set" not in old else "\ndef set():\n    global HAS\n    HAS = 0"
    assert refusals(begin + old, begin + new + tail)


def test_a_condition_that_names_something_new():
    """What the patch adds is there only when it is loaded."""
    found = report("def f(): return 1", "import sys\nif sys.version_info > (3, 1):\n    def f(): return 2")
    (branch,) = [change for change in found.changes if type(change.entry).__name__ == "BranchEntry"]
    assert (branch.entry.valued, branch.needs) == (True, {"pkg.m:sys"})


def test_what_stands_beside_an_import_that_changed():
    """Both set the same names in the same way, but whether they do depends on what is imported."""
    old = "HAS = 0\ntry:\n    import a\n    HAS = 1\n    def f(): pass\nexcept ImportError: pass\ndef g(): return HAS"
    found = report(old, old.replace("import a", "import a\n    if a.v < 2: raise ImportError"))
    assert not found.refused, [str(change) for change in found.refused]
    (value,) = found.values
    assert (value.name, value.entry.lines) == ("HAS", (1, 3, 4, 5))
    (branch,) = [change.entry for change in found.changes if type(change.entry).__name__ == "BranchEntry"]
    assert (branch.name, branch.old_around, branch.around) == ("f", (3, 4), (3, 4, 5))


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("x = 1\nif x:\n    def f(): pass", "x = 2\nif x:\n    def f(): pass", ["f"]),
        ("x = 1\nif x:\n    def f(): pass", "x = 1\ny = x\nif y:\n    def f(): pass", ["f"]),
        (
            "x = 1\nif x:\n    class C: pass\nelse:\n    C = 1",
            "x = 2\nif x:\n    class C: pass\nelse:\n    C = 1",
            None,
        ),
        (
            "x = 1\nclass C:\n    if x:\n        def f(self): pass",
            "x = 2\nclass C:\n    if x:\n        def f(self): pass",
            ["C.f"],
        ),
        ("x = 1\nif x:\n    def f(): pass\n    y = 1", "x = 2\nif x:\n    def f(): pass\n    y = 1", ["f"]),
    ],
)
def test_a_value_that_changes_chooses(old, new, names):
    found = report(old, new)
    branches = [change for change in found.changes if type(change.entry).__name__ == "BranchEntry"]
    assert bool(found.refused) is (names is None)
    if names is not None:
        assert [(branch.name, branch.entry.valued) for branch in branches] == [(name, True) for name in names]
        assert all(branch.needs == {"pkg.m:y" if "y = x" in new else "pkg.m:x"} for branch in branches)
