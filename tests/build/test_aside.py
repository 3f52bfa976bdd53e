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
