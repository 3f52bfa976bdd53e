"""The hooks that a build asks for, as a file to fill in, and that a file which is not filled in does not count."""

import ast

import pytest
from tests.build.kit import files

from livepatch.archive import byhand
from livepatch.build import from_step
from livepatch.build.skeleton import skeleton
from livepatch.build.sources import Tree
from livepatch.build.steps import Step

OLD = {
    "shop/prices.py": """\
        class Basket:
            def __init__(self, items):
                # these are the items
                self.items = items
            def total(self): return 1
        class Shelf:
            def total(self): return 1
        def outside(x): return 1
        """,
    "shop/other.py": """\
        class Basket:
            def __init__(self): pass
            def total(self): return 1
        """,
}
NEW = {
    "shop/prices.py": """\
        class Basket:
            def __init__(self, items):
                # these are the items
                self.items = items
                self.limit = ask()
                self.class_ = ask()
                self.__own = ask(1)
            def total(self): return self.limit + self.__own
        class Shelf:
            def later(self):
                self.limit2 = ask()
            def total(self): return self.limit2
        def outside(x): return x.class_
        """,
    "shop/other.py": """\
        class Basket:
            def __init__(self): self.limit = ask()
            def total(self): return self.limit
        """,
}
KEYS = {
    *("shop.prices:Basket.limit", "shop.prices:Basket.class_", "shop.prices:Basket.__own"),
    *("shop.prices:Shelf.limit2", "shop.other:Basket.limit"),
}


def built(old=OLD, new=NEW):
    return from_step(Step(Tree.sort(files(old)), Tree.sort(files(new))))


def test_it_is_python_that_names_everything():
    text = skeleton(built())
    compile(text, "skeleton", "exec")
    names = {}
    exec(text, names)
    given = names[byhand.ATTRIBUTES]
    assert given.keys() == KEYS
    assert len(set(given.values())) == len(KEYS)
    for key, function in given.items():
        attribute = key.rpartition(".")[2]
        with pytest.raises(NotImplementedError, match=f"^say what {attribute} is for an instance made before$"):
            function(object())
    for line in (
        "# Read by Basket.total (shop/prices.py:8)",
        "# Read by outside (shop/prices.py:13)",
        "# shop.prices:Basket",
        "# old, shop/prices.py:2",
        "#         # these are the items",
        "#         self.__own = ask(1)",
        "# old, shop/prices.py: it has no constructor of its own",
        "#     def later(self):",
    ):
        assert line in text.splitlines()
    assert text.count("# new, shop/prices.py:2") == 1
    assert max(map(len, text.splitlines())) <= 120
    byhand.check_hooks(text.encode())


def test_unfilled_it_counts_for_nothing_and_filled_in_for_what_is_filled():
    build = built()
    text = skeleton(build)
    assert build.hooked(text.encode()).report.refused == build.report.refused
    filled = text.replace('raise NotImplementedError("say what limit2 is', 'return len("').encode()
    rest = skeleton(build.hooked(filled))
    assert byhand.attributes_of(filled) == {"shop.prices:Shelf.limit2"}
    assert {key for key in KEYS if f'"{key}"' in rest} == KEYS - {"shop.prices:Shelf.limit2"}
    done = text.replace("raise NotImplementedError", "return ").encode()
    assert build.hooked(done).report.refused == []
    assert skeleton(build.hooked(done)) == ""


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        ("def f(x): raise NotImplementedError", False),
        ("def f(x):\n    '''What it is.'''\n    # later\n    raise NotImplementedError('x') from None", False),
        ("def f(x): ...", False),
        ("def f(x):\n    '''What it is.'''", True),  # it says None
        ("def f(x): pass", True),
        ("f = lambda x: 1", True),
        ("def f(x):\n    if x.y: raise NotImplementedError\n    return 1", True),
        ("def f(x): raise AttributeError('limit')", True),
        ("from elsewhere import f", True),
    ],
)
def test_what_counts_as_filled_in(function, counts):
    content = f"{function}\n{byhand.ATTRIBUTES} = {{'m:C.x': f}}\n".encode()
    assert byhand.attributes_of(content) == ({"m:C.x"} if counts else set())


def test_the_example_of_a_refusal_is_no_answer():
    (change, *_) = built().report.refused
    example = change.hint.partition("--hooks: ")[2]
    ast.parse(example)
    assert byhand.attributes_of(example.encode()) == set()
    assert len(byhand.attributes_of(example.replace("...", "0").encode())) == 1


def test_nothing_to_ask():
    assert skeleton(built({"m.py": "def f(): return 1\n"}, {"m.py": "def f(): return 2\n"})) == ""
    assert skeleton(built({"m.py": "print(1)\n"}, {"m.py": "print(2)\n"})) == ""
    assert skeleton(built().narrowed(exclude=["*"])) == ""


@pytest.mark.parametrize("odd", ["\x0c", "\u2028", "\u202e", "\x85"])
def test_what_is_quoted_from_the_source_stays_a_comment(odd):
    text = f"# {odd}import lp_never # {odd}\n                self.items = items"
    old, new = ({path: s.replace("self.items = items", text) for path, s in tree.items()} for tree in (OLD, NEW))
    found = skeleton(built(old, new))
    body = ast.parse(found).body
    assert [type(node).__name__ for node in body if not isinstance(node, ast.FunctionDef)] == ["Expr", "Assign"]
    assert "import lp_never" in found
    assert odd not in found
