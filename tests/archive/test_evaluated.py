"""What statements of modules and class bodies make is made once more: both worlds, and the way back."""

import textwrap

from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal

import livepatch as lp

LOOK = """
def look(): return ({0})
def hold(gate=lambda: None):
    first = ({0})
    gate()
    return first, ({0})
"""


def there_and_back(package, worker, old, new, expression, was, now):
    """Both worlds during the transition, and all as before it afterwards, attribute by attribute."""
    old, new = (textwrap.dedent(text) + LOOK.format(expression) for text in (old, new))
    package.have({M: old})
    m = package.load()
    places = [m, *(value for value in vars(m).values() if isinstance(value, type) and value.__module__ == m.__name__)]
    before = [namespace(place) for place in places]
    patch = package.bind({M: new})
    assert m.look() == was
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.hold, m.look)
    assert (held, entered) == ((was, was), now)
    assert held_new == (now, now)
    assert left == was
    for place, names in zip(places, before, strict=True):
        assert namespace(place).keys() == names.keys()
        assert all(vars(place)[name] is value for name, value in names.items())
    assert m.look() == was
    return m


def test_a_class_body_with_a_loop(package, worker):
    old = """
        import re
        class C:
            levels = {"a": "x", "b": "y"}
            tokens = {}
            for name, pattern in levels.items():
                tokens[name] = {"root": [re.escape(pattern), 1]}
    """
    look = '{name: rules["root"][1] for name, rules in C().tokens.items()}, C.name'

    new = old.replace(", 1]}", ', 2]}\n            tokens["c"] = {"root": ["z", 3]}')
    there_and_back(package, worker, old, new, look, ({"a": 1, "b": 1}, "b"), ({"a": 2, "b": 2, "c": 3}, "b"))


def test_a_statement_of_a_class_body_that_is_gone(package, worker):
    old = """
        class C:
            table = {}
            for name in "ab": table[name] = 1
            table.update(c=2)
    """
    new = old.replace("            table.update(c=2)\n", "")
    there_and_back(package, worker, old, new, "C.table", {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 1})


def test_a_function_that_only_the_class_body_calls(package, worker):
    old = """
        WORD = "a"
        class C:
            def rules(end):
                def callback(self): return [WORD, end]
                return {"x": callback, "y": WORD}
            tokens = {"z": 1}
            tokens.update(rules(1))
    """
    new = """
        WORD = "b"
        class C:
            def rules(end):
                return {"x": lambda self: [end], "y": WORD * 2}
            tokens = {"z": 1}
            tokens.update(rules(1))
    """
    look = "C.tokens['x'](None), C.tokens['y'], C.tokens['z']"
    there_and_back(package, worker, old, new, look, (["a", 1], "a", 1), ([1], "bb", 1))


def test_a_constant_that_such_a_function_reads(package, worker):
    old = """
        WORD = "a"
        class C:
            def rules(): return [WORD]
            tokens = {"x": rules()}
    """
    there_and_back(package, worker, old, old.replace('"a"', '"b"'), "C.tokens", {"x": ["a"]}, {"x": ["b"]})


def test_what_somebody_added_to_a_table_of_a_class_is_not_lost(package):
    old = "class C:\n    t = {}\n    for x in 'ab': t[x] = 1\ndef look(): return C.t\n"
    package.have({M: old})
    m = package.load()
    m.C.t["c"] = 2
    patch = package.bind({M: old.replace("= 1", "= 2")})
    assert "was changed after the module had been imported" in refusal(lp.enable_patch, patch)
    assert m.look() == {"a": 1, "b": 1, "c": 2}


def test_values_of_classes_and_functions_of_the_trees(package, worker):
    old = """
        import time
        from typing import NamedTuple
        class P(NamedTuple):
            a: int
            b: int = 2
        class Rule:
            def __init__(self, n):
                self.n = n
                self._set()
            def _set(self): self.made = [self.n]
            @property
            def twice(self): return [self.n, self.n]
        def make(n): return Rule(n).twice
        P1 = tuple.__new__(P, (1, 2))
        RULE = Rule(1)
        LIST = make(1)
        START = time.monotonic() * 0 + 1
    """
    new = old.replace("(1, 2)", "(3, 4)").replace("Rule(1)", "Rule(3)").replace("make(1)", "make(3)")
    new = new.replace("* 0 + 1", "* 0 + 3")
    there_and_back(
        package, worker, old, new, "(P1, RULE.made, LIST, START)", ((1, 2), [1], [1, 1], 1), ((3, 4), [3], [3, 3], 3)
    )


def test_enabled_for_good_the_class_has_plain_values(package):
    old = "class C:\n    t = {}\n    for x in 'ab': t[x] = 1\ndef look(): return C.t\n"
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: old.replace("'ab'", "'abc'")})
    enabled(patch)
    assert vars(m.C)["t"] == {"a": 1, "b": 1, "c": 1}
    assert vars(m.C)["x"] == "c"
    disabled(patch)
    assert (vars(m.C)["t"], vars(m.C)["x"]) == ({"a": 1, "b": 1}, "b")


def test_statements_that_try_to_import(package, worker):
    """A name that no branch binds here is not there before, nor afterwards."""
    old = """
        ENCODING = "gzip"
        try:
            import lp_no_such_module as _unused
        except ImportError:
            pass
        else:
            ENCODING += ",no"
    """
    new = """
        ENCODING = "gzip"
        try:
            from json import lp_no_such_name as _unused
            ENCODING += ",no"
        except ImportError:
            try:
                import json as _other
                ENCODING += ",json"
            except ImportError:
                pass
    """
    there_and_back(package, worker, old, new, "ENCODING", "gzip", "gzip,json")


def test_imports_that_become_conditional(package, worker):
    old = "from datetime import datetime, timedelta\n"
    new = """
        try:
            from datetime import lp_no_such_name as UTC, datetime, timedelta
            utc_now = datetime.now(UTC)
        except ImportError:
            from datetime import datetime, timedelta, timezone
            utc_now = datetime.now(timezone.utc)
            UTC = timezone.utc
    """
    old += "LIMIT = timedelta(1)\nZONE = None\n"
    new += "        LIMIT = timedelta(2)\n        ZONE = UTC\n"
    there_and_back(package, worker, old, new, "(LIMIT.days, str(ZONE))", (1, "None"), (2, "UTC"))


def test_an_import_takes_the_place_of_a_value(package, worker):
    old = """
        DIGITS = "0123"
        ALL = ["x" + digit for digit in DIGITS]
    """
    new = """
        from string import digits as DIGITS, hexdigits
        ALL = ["x" + digit for digit in DIGITS]
    """
    there_and_back(package, worker, old, new, "DIGITS, len(ALL)", ("0123", 4), ("0123456789", 10))


def test_a_value_takes_the_place_of_an_import(package, worker):
    old = "from string import digits as DIGITS\n"
    there_and_back(package, worker, old, "DIGITS = '01'\n", "DIGITS", "0123456789", "01")


def test_somebody_has_changed_what_is_imported_now(package):
    package.have({M: "DIGITS = '0123'\ndef f(): return DIGITS\n"})
    m = package.load()
    m.DIGITS = "mine"
    patch = package.bind({M: "from string import digits as DIGITS\ndef f(): return DIGITS\n"})
    assert "it was changed after the module had been imported" in refusal(lp.enable_patch, patch)
    assert m.f() == "mine"


def test_new_code_uses_what_is_new_in_a_module_that_it_has(package):
    """The names of modules say nothing about who needs whom."""
    package.have(
        {"lp_pkg/a.py": "from . import z\nimport lp_pkg.z as other\n", "lp_pkg/z.py": "", M: "from . import a, z\n"}
    )
    new_a = """
        from . import z
        import lp_pkg.z as other
        @z.mark
        def f(): return 1
        class C(other.Base): pass
    """
    new_z = """
        def mark(function):
            function.marked = True
            return function
        class Base: base = 2
    """
    m = package.load()
    patch = package.bind({"lp_pkg/a.py": new_a, "lp_pkg/z.py": new_z})
    enabled(patch)
    assert (m.a.f(), m.a.f.marked, m.a.C.base) == (1, True, 2)
    disabled(patch)
    assert not {"f", "C"} & vars(m.a).keys()
    assert not {"mark", "Base"} & vars(m.z).keys()
