"""New classes that are noted when they are made: who has taken all that was noted before lacks them."""

import pytest
from tests.build.kit import refusals, report

META = """
known = []
class Meta(type):
    def __new__(cls, name, bases, attrs):
        made = super().__new__(cls, name, bases, attrs)
        known.append(made)
        return made
"""
BASE = "class Base(metaclass=Meta): pass\n"
BY_CALL = "class Base: pass\nBase = Meta('Base', (Base,), {})\n"
SUBCLASS = """
known = {}
class Base:
    def __init_subclass__(cls, **options):
        known[cls.__name__] = cls
"""
ALL = "def settings(): return {one.__name__: one() for one in known}\n"
VALUES = "def settings(): return list(known.values())\n"
LOOP = "def settings():\n    for one in sorted(known): yield one\n"
ONE = "def setting(name): return known[name] if name in known else None\n"
NEW = "class Added(Base): pass\n"


@pytest.mark.parametrize("made", [META + BASE, META + BY_CALL, SUBCLASS])
@pytest.mark.parametrize("takes", [ALL, VALUES, LOOP])
def test_what_was_made_of_all_of_them_would_lack_it(made, takes):
    (found,) = refusals(made + takes, made + takes + NEW)
    name = "__init_subclass__" if made is SUBCLASS else "__new__"
    assert f"class Added: `{name}` notes it in known, and what settings has made of that before lacks it" in found


def test_so_it_is_with_those_of_another_module():
    old = {
        "p/__init__.py": "",
        "p/a.py": META + BASE,
        "p/b.py": f"from p.a import known\n{ALL}",
        "p/c.py": "from p.a import Base\n",
    }
    (found,) = refusals(old, {**old, "p/c.py": old["p/c.py"] + NEW})
    assert "what settings has made of that before lacks it" in found


@pytest.mark.parametrize("made", [META + BASE, META + BY_CALL, SUBCLASS])
def test_who_looks_for_one_when_it_is_needed_finds_it(made):
    assert [change.name for change in report(made + ONE, made + ONE + NEW).added] == ["Added"]


def test_a_base_that_notes_its_instances_is_another_matter():
    base = "known = []\nclass Base:\n    def __init__(self): known.append(self)\n"
    assert [change.name for change in report(base + ALL, base + ALL + NEW).added] == ["Added"]
