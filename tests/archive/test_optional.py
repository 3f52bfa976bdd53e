"""Imports of what may be missing, in other places than before, in a live process."""

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal

#: A part of Python if it has one, else a package that may be installed, as for urllib3 and zstd.
OLD = """
try:
    from lp_no_such_name import lib

    HAS_LIB = True

    class C:
        def f(self): return 1
except ImportError:
    try:
        import {second} as lib
        _version = tuple(map(str, [lib.__name__]))
        if _version < ("a",):
            raise ImportError("no")
    except (AttributeError, ImportError):
        HAS_LIB = False
    else:
        HAS_LIB = True

        class C:
            def f(self): return 2
def f(): return HAS_LIB, HAS_LIB and C().f()
def hold(gate):
    first = f()
    gate()
    return first, f()
"""
NEW = """
import sys
try:
    if sys.version_info < (3, 1):
        from lp_no_such_name import lib
    else:
        import {first} as lib
except ImportError:
    HAS_LIB = False
else:
    HAS_LIB = True

    class C:
        def f(self): return 2, lib.__name__
def f(): return HAS_LIB, HAS_LIB and C().f(), "new"
def hold(gate):
    first = f()
    gate()
    return first + (), f()
"""


def test_none_of_them_is_there(package, worker):
    package.have({M: OLD.format(second="lp_no_such_second")})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: NEW.format(first="lp_no_such_third")})
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.hold, m.f)
    old, new = (False, False), (False, False, "new")
    assert (held, entered) == ((old, old), new)
    assert (held_new, left) == ((new, new), old)
    assert namespace(m) == before


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("json", "lp_no_such_name", "Another definition of 'C'"),
        ("lp_no_such_name", "json", "Another definition of 'C'"),
        ("json", "re", "'lib' exists already"),
    ],
)
def test_another_of_them_is_there(package, first, second, reason):
    package.have({M: OLD.format(second=second)})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: NEW.format(first=first)})
    assert reason in refusal(enabled, patch)
    assert namespace(m) == before


IMPORTED = """
try:
    import lp_no_such_name as lib
except ImportError:
    import json as lib
def f(): return lib.__name__
"""
FOUND = """
import importlib
def _find():
    found = None
    for name in ("lp_no_such_name", {name!r}):
        if found is None:
            try:
                found = importlib.import_module(name)
            except ImportError:
                pass
    return found
lib = _find()
def f(): return lib.__name__, "new"
"""


def test_a_module_that_a_function_imports(package, worker):
    hold = "def hold(gate):\n    first = f()\n    gate()\n    return first, f()\n"
    package.have({M: IMPORTED + hold})
    m = package.load()
    before = namespace(m)
    for name, imported in (("json", "json"), ("lp_nowhere", None), ("re", "re")):
        new = FOUND.format(name=name).replace("lib.__name__", "lib and lib.__name__")
        patch = package.bind({M: new + hold.replace("return first", "return first + ()")}, name)
        entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.hold, m.f)
        new = (imported, "new")
        assert (held, entered) == (("json", "json"), new)
        assert (held_new, left) == ((new, new), "json")
        assert namespace(m) == before


def test_what_is_not_missing_any_more(package):
    """An emulation for old Pythons goes, as in tornado: who has taken it keeps it."""
    old = """
        try:
            from sys import is_finalizing
        except ImportError:
            def _emulated():
                def is_finalizing(): return False
                return is_finalizing
            is_finalizing = _emulated()
        def f(): return 1
    """
    package.have({M: old})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: "def f(): return 2\n"})
    enabled(patch)
    assert (m.f(), m.is_finalizing) == (2, before["is_finalizing"])
    disabled(patch)
    assert namespace(m) == before


def test_a_named_tuple_stays(package):
    old = 'import collections\nX = collections.namedtuple("X", ["a", "b"])\ndef f(): return X(1, 2)\n'
    new = "import typing\nclass X(typing.NamedTuple):\n    a: int\n    b: int\ndef f(): return X(3, b=4)\n"
    package.have({M: old})
    m = package.load()
    before, made = namespace(m), m.f()
    patch = package.bind({M: new})
    enabled(patch)
    assert (m.f(), type(m.f())) == ((3, 4), type(made))
    disabled(patch)
    assert (m.f(), namespace(m)) == ((1, 2), before)


FEATURES = """
_known = {{}}
def have(name):
    if name not in _known:
        try:
            import {lib}
        except ImportError:
            _known[name] = False
        else:
            _known[name] = True
    return _known[name]
"""


def test_what_a_new_module_remembers(package):
    """Nobody else has what it fills, and it goes with the patch."""
    old = """
        try:
            import json
            HAS = True
        except ImportError:
            HAS = False
        if HAS:
            def f(): return HAS, 1
        else:
            def f(): return HAS, 2
    """
    new = """
        from lp_pkg import features
        HAS = features.have("lib")
        if HAS:
            def f(): return HAS, 3
        else:
            def f(): return HAS, 4
    """
    package.have({M: old})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: new, "lp_pkg/features.py": FEATURES.format(lib="json")})
    enabled(patch)
    assert m.f() == (True, 3)
    disabled(patch)
    assert (m.f(), namespace(m)) == ((True, 1), before)
    other = package.bind({M: new, "lp_pkg/features.py": FEATURES.format(lib="lp_no_such_name")}, "other")
    assert "Another definition of 'f'" in refusal(enabled, other)
    assert (m.f(), namespace(m)) == ((True, 1), before)
