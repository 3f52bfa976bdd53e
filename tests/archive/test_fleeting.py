"""A class that was used in one call and is set up first now: each world uses it in its own way."""

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace

HOLD = """
def hold(gate):
    first = words("a b,c")
    gate()
    return first{}, words("a b,c")
"""
OLD = """
def words(text): return Lexer().read(text)

class Lexer:
    @staticmethod
    def read(text): return text.split()
"""
NEW = """
def words(text): return Lexer.default().read(text)

class Lexer:
    _default = None
    @classmethod
    def default(cls):
        if cls._default is None:
            cls._default = cls()
            cls._default.set_up()
        return cls._default
    def set_up(self):
        self.by = []
        self.by.append(",")
    def read(self, text): return text.split(self.by[0])
"""


def test_instances_that_are_set_up_first(package, worker):
    package.have({M: OLD + HOLD.format("")})
    m = package.load()
    kept, before = m.Lexer(), (namespace(m), namespace(m.Lexer))
    patch = package.bind({M: NEW + HOLD.format(" + []")})

    def look():
        return m.words("a b,c")

    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.hold, look)
    old, new = ["a", "b,c"], ["a b", "c"]
    assert (held, entered) == ((old, old), new)
    assert (held_new, left) == ((new, new), old)
    assert kept.read("a b") == ["a", "b"]
    assert (namespace(m), namespace(m.Lexer)) == before


def test_who_has_kept_one_has_what_the_new_release_would_give_him(package):
    package.have({M: OLD})
    m = package.load()
    kept = m.Lexer()
    patch = package.bind({M: NEW})
    enabled(patch)
    for lexer in (kept, m.Lexer()):
        with pytest.raises(AttributeError):
            lexer.read("a,b")
        lexer.set_up()
        assert lexer.read("a,b") == ["a", "b"]
    disabled(patch)
    assert kept.read("a b") == ["a", "b"]


LAZY = """
_shared = None
class C:
    _made = None
    other = None
    def get(self):
        global _shared
        if _shared is None: _shared = C._made = {}
        return _shared
"""


def test_what_new_code_has_put_in_the_place_of_an_addition_goes_with_it(package):
    package.have({M: "class C:\n    def get(self): return 1\n"})
    m = package.load()
    before = namespace(m), namespace(m.C)
    patch = package.bind({M: LAZY})
    for _ in range(2):
        enabled(patch)
        assert m.C().get() is m._shared is m.C._made
        disabled(patch)
        assert (namespace(m), namespace(m.C)) == before
    enabled(patch)
    somebody = m.C.other = object()
    disabled(patch)
    assert m.C.other is somebody
    assert "_made" not in vars(m.C)
