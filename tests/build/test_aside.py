"""What cannot be carried in modules for tests and documentation is no reason to refuse the rest."""

import pytest
from tests.build.kit import report, said

OLD, NEW = "class C(int): pass\ndef f(): return 1\n", "print('refused')\nclass C(str): pass\ndef f(): return 2\n"


@pytest.mark.parametrize(
    "path",
    [
        "pkg/tests/m.py",
        "pkg/docs/conf.py",
        "pkg/qa/m.py",
        "pkg/test_m.py",
        "pkg/sub/testing/__init__.py",
        "pkg/pytest_plugin.py",
        "pkg/migrations/0002_more.py",
    ],
)
def test_a_module_that_no_service_imports(path):
    tree = {"pkg/a.py": "def g(): return 1", path: OLD}
    found = report(tree, {"pkg/a.py": "def g(): return 2", path: NEW})
    assert not found.refused
    assert [change.name for change in found.functions] == ["g"]
    assert found.absent == [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")]
    assert any("`print('refused')` is run once" in change.reason for change in found.set_aside)


@pytest.mark.parametrize(
    "user",
    [
        "import pkg.tests.m",
        "from pkg.tests import m",
        "from .tests.m import f",
        "def late():\n    from pkg.tests import m",
    ],
)
def test_a_module_that_others_import(user):
    tree = {"pkg/a.py": user, "pkg/tests/m.py": OLD}
    assert report(tree, tree | {"pkg/tests/m.py": NEW}).refused


def test_being_imported_by_other_tests_does_not_count():
    tree = {"pkg/tests/a.py": "import pkg.tests.m", "pkg/tests/m.py": OLD}
    assert not report(tree, tree | {"pkg/tests/m.py": NEW}).refused


def test_a_module_of_a_service_is_refused():
    assert report({"pkg/a.py": OLD}, {"pkg/a.py": NEW}).refused


def test_what_can_be_carried_in_such_a_module_is():
    tree = {"pkg/tests/m.py": OLD}
    assert said(tree, {"pkg/tests/m.py": OLD.replace("return 1", "return 2")}) == {"carried": ["f"]}


def test_how_a_program_starts_is_not_carried():
    """The `__main__` of a package is never imported: what it does when it is run, it has done where it runs."""
    tree = {"pkg/a.py": "def run(x=1): print(1)", "pkg/__main__.py": "from pkg.a import run\nrun()\ndef f(): return 1"}
    start = "from pkg.a import run\ndef f(): return 2\nif __name__ == '__main__':\n    run(2)"
    found = report(tree, {"pkg/a.py": "def run(x=1): print(2)", "pkg/__main__.py": start})
    assert not found.refused
    assert not found.absent
    assert [change.key for change in found.functions] == ["pkg.__main__:f", "pkg.a:run"]
    assert any("the start of a program" in note.reason and "`run()` is gone" in note.reason for note in found.notes)


def test_what_cannot_be_carried_in_a_program():
    tree = {"pkg/a.py": "def g(): return 1", "pkg/__main__.py": OLD}
    new = {"pkg/a.py": "def g(): return 2", "pkg/__main__.py": NEW}
    found = report(tree, new)
    assert not found.refused
    assert found.absent == ["pkg.__main__"]
    user = {"pkg/b.py": "from pkg.__main__ import f"}
    assert report(tree | user, new | user).refused
    assert report({"__main__.py": OLD}, {"__main__.py": NEW}).refused, "who knows what that is"


TEMPLATE = "import os\nos.environ['HOME'] = '__HOME__'\n"
FILLED = "import os\nos.environ['HOME'] = __HOME__\n"
MAKER = "def make(text): return text.replace('__HOME__', {})"


def test_a_template_is_no_module():
    """It is read and filled in, and cannot be imported: nothing binds what it names."""
    tree = {"pkg/a.py": MAKER.format("'/'"), "pkg/tpl.py": TEMPLATE}
    found = report(tree, {"pkg/a.py": MAKER.format("repr('/')"), "pkg/tpl.py": FILLED})
    assert not found.refused
    assert [change.key for change in found.functions] == ["pkg.a:make"]
    assert found.absent == ["pkg.tpl"]
    assert any("nothing binds __HOME__" in change.reason for change in found.set_aside)


@pytest.mark.parametrize(
    "new",
    [
        "__HOME__ = '/'\n" + FILLED,
        FILLED + "def __HOME__(): pass",
        FILLED + "def set_home():\n    global __HOME__\n    __HOME__ = 1",
        "from os.path import *\n" + FILLED,
        "globals().update(__HOME__='/')\n" + FILLED,
        "import builtins\nbuiltins.__HOME__ = '/'\n" + FILLED,
        "import sys\nvars(sys.modules[__name__])['__HOME__'] = '/'\n" + FILLED,
        "import os\nos.environ['HOME'] = os.sep or __HOME__",
        "import os\nos.environ['HOME'] = os.sep if os.name else __HOME__",
        "import os\nos.environ['HOME'] = (lambda: __HOME__) and 'x'",
        "import os\ntry:\n    os.environ['HOME'] = __HOME__\nexcept NameError: pass",
        "import os\nif os.name == 'nt':\n    os.environ['HOME'] = __HOME__",
        "import os\nos.environ['HOME'] = _('home')",
        "import os\nos.environ['HOME'] = __file__ + __name__",
    ],
)
def test_what_may_be_imported_is_no_template(new):
    tree = {"pkg/a.py": MAKER.format("'/'"), "pkg/tpl.py": TEMPLATE}
    assert report(tree, tree | {"pkg/tpl.py": new}).refused


@pytest.mark.parametrize("user", ["import pkg.tpl", "def late():\n    from . import tpl", "from .tpl import os"])
def test_a_template_that_somebody_imports(user):
    tree = {"pkg/a.py": user, "pkg/b.py": MAKER.format("'/'"), "pkg/tpl.py": TEMPLATE}
    assert report(tree, tree | {"pkg/tpl.py": FILLED}).refused


def test_a_template_that_somebody_gives_its_names():
    tree = {"pkg/a.py": "import builtins\nsetattr(builtins, '__HOME__', '/')", "pkg/tpl.py": TEMPLATE}
    assert report(tree, tree | {"pkg/tpl.py": FILLED}).refused


def test_a_name_that_nobody_fills_in_is_a_mistake():
    tree = {"pkg/a.py": "def g(): return 1", "pkg/tpl.py": TEMPLATE}
    assert report(tree, tree | {"pkg/tpl.py": FILLED}).refused
