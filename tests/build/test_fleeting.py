"""Attributes that new instances do not have at first either, where the old release keeps no instance."""

import pytest
from tests.build.kit import refusals, report

FLEETING = """
def words(text): return Lexer().read(text)

class Lexer:
    @staticmethod
    def read(text): return text.split()
    def more(self): return self.read("a")
"""
SET_UP = """
def words(text): return Lexer.default().read(text)

class Lexer:
    @classmethod
    def default(cls):
        lexer = cls()
        lexer.set_up()
        return lexer
    def set_up(self):
        self.clear()
        self.by.append("b")
    def clear(self): self.by = []
    def read(self, text): return text.split(self.by[0])
    def more(self): return self.read("a")
"""


def test_what_no_instance_has_at_first_where_the_old_release_keeps_none():
    found = report(FLEETING, SET_UP)
    assert not found.refused
    assert "the old release keeps no instance" in " ".join(note.reason for note in found.notes)


@pytest.mark.parametrize(
    ("where", "before", "after"),
    [
        # An instance may be kept, or be used by others.
        ("both", "", "KEPT = Lexer()\n"),
        ("both", "", "def g(): return Lexer()\n"),
        ("both", "", "def g(): x = Lexer(); return x.read('a')\n"),
        ("both", "", "def g(x): return isinstance(x, Lexer)\n"),
        ("both", "", "def g(m): return getattr(m, 'Lexer')\n"),
        ("both", "", "class D(Lexer): pass\n"),
        ("both", "", "make = Lexer\n"),
        ("both", "", "def g(lexer): return lexer.more()\n"),
        ("old", 'self.read("a")', "self"),
        ("old", 'self.read("a")', "LIST.append(self)"),
        ("old", 'self.read("a")', "self.read"),
        ("old", 'self.read("a")', "[self.read(i) for i in self]"),
        ("old", 'self.read("a")', "lambda: self.read(1)"),
        ("old", 'return self.read("a")', "yield self.read(1)"),
        ("old", "@staticmethod\n    def read(text)", "@classmethod\n    def read(cls, text)"),
        ("old", "class Lexer:", "class Lexer(Base):"),
        # Somebody else makes them, or calls by himself what sets it.
        ("old", "Lexer().read(text)", "text"),
        ("new", "Lexer.default().read(text)", "Lexer().read(text)"),
        # A method that instances had before sets it, or others do.
        ("new", "def more(self): return", "def more(self): self.clear(); return"),
        ("new", "def more(self): return", "def more(self): self.by = ask(); return"),
        ("new", "class Lexer:", "def g(x): x.by = ask()\n\nclass Lexer:"),
        ("new", "def clear(self):", "def __init__(self, by): self.by = by\n    def clear(self):"),
    ],
)
def test_an_instance_that_lacks_it_may_be_met(where, before, after):
    def changed(source):
        return source.replace(before, after) if before else source + "\n" + after

    old = changed(FLEETING) if where in ("both", "old") else FLEETING
    new = changed(SET_UP) if where in ("both", "new") else SET_UP
    assert (old, new) != (FLEETING, SET_UP)
    assert any("'by', which the old Lexer never sets" in refusal for refusal in refusals(old, new))
