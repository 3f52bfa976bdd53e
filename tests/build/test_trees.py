"""Whole trees: which files count, under which names, and what is said of the others."""

import errno

import pytest
from tests.build.kit import files, refusals, report, said

from livepatch.build import compare, from_trees
from livepatch.build.sources import CLASS, FUNCTION, Tree, module_name, read_tree
from livepatch.build.world import may_reach
from livepatch.core.model import LivepatchError


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("m.py", "m"),
        ("p/__init__.py", "p"),
        ("p/q/m.py", "p.q.m"),
        ("p/_ext.cpython-311-x86_64-linux-gnu.so", "p._ext"),
        ("p/migrations/0001_initial.py", "p.migrations.0001_initial"),
    ],
)
def test_module_names(path, name):
    assert module_name(path) == name


def python_of(*paths):
    return sorted(Tree.sort(dict.fromkeys(paths, b"")).python)


def test_an_installed_tree_is_importable_from_its_root():
    paths = ["m.py", "p/__init__.py", "p/tests/t.py", "q/deep/m.py", "tests/t.py"]
    assert python_of(*paths, "p-1.0.dist-info/METADATA", "p/__pycache__/m.py", "bin/tool") == paths


def test_a_project_has_tests_and_tools_beside_its_packages():
    paths = ["pyproject.toml", "setup.py", "tests/t.py", "docs/conf.py", "p/__init__.py", "p/tests/t.py", "single.py"]
    assert python_of(*paths) == ["p/__init__.py", "p/tests/t.py", "single.py"]


def test_a_src_layout():
    assert python_of("setup.cfg", "src/p/m.py", "tests/t.py") == ["p/m.py"]
    assert python_of("setup.cfg", "src/__init__.py", "src/m.py") == ["src/__init__.py", "src/m.py"]
    assert python_of("src/p/m.py") == ["src/p/m.py"]


def test_a_project_with_a_source_folder_has_nothing_else():
    assert python_of("pyproject.toml", "src/p/m.py", "q/__init__.py", "demo.py") == ["p/m.py"]
    assert python_of("pyproject.toml", "lib/p/__init__.py", "maint/x.py") == ["p/__init__.py"]


def test_namespace_packages():
    assert python_of("ns/p/m.py", "ns/q.py") == ["ns/p/m.py", "ns/q.py"]
    assert python_of("setup.py", "ns/p/__init__.py", "demos/x.py", "ns/q.py") == ["ns/p/__init__.py", "ns/q.py"]
    assert python_of("setup.py", "ns/p/m.py") == ["ns/p/m.py"]


def test_a_tree_without_python_is_refused(tmp_path):
    (tmp_path / "README").write_text("")
    with pytest.raises(LivepatchError, match="no importable Python source in the two versions"):
        from_trees(tmp_path, tmp_path)


def test_a_tree_that_is_a_package_is_refused():
    with pytest.raises(LivepatchError, match="give the directory that contains it") as refusal:
        compare(files({"__init__.py": ""}), files({"__init__.py": ""}))
    assert refusal.value.errno == errno.EINVAL


def test_differences_outside_of_the_packages_are_counted():
    old = {"pyproject.toml": "1", "tests/a.py": "1", "tests/b.py": "1", "p/m.py": ""}
    found = report(old, {"pyproject.toml": "2", "tests/a.py": "2", "p/m.py": ""})
    assert [(c.file, c.reason[0]) for c in found.notes] == [("pyproject.toml", "1"), ("tests", "2")]


def test_other_files_in_a_package():
    found = report({"p/data.json": "1", "p/m.pyi": "1", "p/gone.txt": ""}, {"p/data.json": "2", "p/m.pyi": "2"})
    assert [(c.file, c.fate) for c in found.changes] == [("p/data.json", "note"), ("p/gone.txt", "note")]


@pytest.mark.parametrize("name", ["_ext.cpython-311-x86_64-linux-gnu.so", "_ext.pyx", "_ext.c"])
def test_compiled_parts_are_refused_by_name(name):
    (change,) = report({f"p/{name}": "1"}, {f"p/{name}": "2"}).refused
    assert change.module == "p._ext"
    assert "--exclude 'p._ext'" in change.hint


@pytest.mark.parametrize(
    ("source", "generated"), [("_ext.pyx", "_ext.c"), ("_ext.c", "_ext.so"), ("_ext.pyx", "_ext.so")]
)
def test_what_was_compiled_anew_from_the_same_source_is_noted(source, generated):
    old = {f"p/{source}": "1", f"p/{generated}": "1"}
    assert said(old, old | {f"p/{generated}": "2"}) == {"note": [""]}
    assert refusals(old, old | {f"p/{source}": "2", f"p/{generated}": "2"})


def test_a_module_beside_a_package_of_its_name_is_a_leftover():
    """Wheels are built in folders that have been used before; Python imports the package."""
    old = {"p/__init__.py": "", "p/m/__init__.py": "def f(): return 1", "p/m/a.py": ""}
    new = old | {"p/m/__init__.py": "def f(): return 2", "p/m.py": "def f(): return 3"}
    for one, other in ((old, new), (new, old)):
        found = report(one, other)
        assert not found.refused
        assert [(c.module, c.name) for c in found.functions] == [("p.m", "f")]
    assert "it was a module and is now a package" in " ".join(
        refusals({"p/m.py": "def f(): return 1"}, {"p/m/__init__.py": "def f(): return 2"})
    )


def test_new_and_gone_modules():
    found = report({"p/m.py": "", "p/gone.py": ""}, {"p/m.py": "", "p/new.py": ""})
    assert [(c.module, c.fate) for c in found.changes] == [("p.gone", "note"), ("p.new", "note")]


@pytest.mark.parametrize(
    "use",
    [
        "import p.new",
        "from . import new",
        "from .new import f",
        "from p import new as n",
        "def h():\n    from .new import f",
    ],
)
def test_a_new_module_that_is_needed_is_brought(use):
    found = report({"p/m.py": "def g(): pass"}, {"p/m.py": "def g(): pass\n" + use, "p/new.py": "f = 1"})
    assert "p/new.py: a new module, imported by" in " ".join(map(str, found.added))


def test_what_is_not_python_is_refused_if_it_changed():
    (refusal,) = refusals({"p/m.py": "print 1"}, {"p/m.py": "print 2"})
    assert refusal.startswith("p/m.py:1: this Python cannot compile the old version: ")
    assert not refusals({"p/bad.py": "print 1", "p/m.py": "x = 1"}, {"p/bad.py": "print 1", "p/m.py": "x = 2"})
    assert refusals({"p/m.py": "x = 1"}, {"p/m.py": "x = '\0'"})


def test_what_is_nested_too_deeply_is_refused():
    for depth in (1_500, 20_000):
        deep = "x = " + "+".join(["a"] * depth)
        (refusal,) = refusals(f"def f():\n    {deep}", f"def f():\n    {deep} + 1")
        assert "nested too deeply" in refusal or "cannot compile" in refusal
    deep = "x = " + "+".join(["a"] * 700)
    tree = {"p/m.py": "a = 1", "p/n.py": f"from p.m import a\n{deep}"}
    assert "p/n.py, perhaps" in refusals(tree, tree | {"p/m.py": "a = 2"})[0]


def test_a_difference_that_no_rule_claims_is_refused(monkeypatch):
    from livepatch.build import findings

    monkeypatch.setattr(findings.Findings, "claim", lambda self, *statements: None)
    found = refusals(
        "def f(): return 1\nclass C:\n    def m(self): return 1",
        "def f(): return 2\nclass C:\n    def m(self): return 2",
    )
    assert found == [
        "pkg/m.py:1: this difference is not understood",
        "pkg/m.py:3: this difference is not understood",
    ]


def test_trees_on_disk(tmp_path):
    for version in ("1", "2"):
        package = tmp_path / version / "p"
        package.mkdir(parents=True)
        (package / "m.py").write_text(f"def f(): return {version}")
        (package / "data").write_text(version)
        (package / "m.pyc").write_text(version)
        (tmp_path / version / ".git").mkdir()
        (tmp_path / version / ".git" / "x.py").write_text(version)
    build = from_trees(tmp_path / "1", tmp_path / "2")
    assert [(c.file, c.fate) for c in build.report.changes] == [("p/data", "note"), ("p/m.py", "carried")]
    assert sorted(read_tree(tmp_path / "1")) == ["p/data", "p/m.py"]


def test_a_tree_that_is_not_there(tmp_path):
    with pytest.raises(LivepatchError, match="is not a directory"):
        from_trees(tmp_path / "none", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LivepatchError, match="is neither a folder nor a wheel"):
        from_trees(tmp_path, tmp_path / "file")


def test_a_ruler_of_hashes_after_a_word_is_read_in_one_go():
    ruler = f"# the class {'#' * 200}\n# from {'#' * 200}\n# def {'#' * 200}\n".encode()
    tree = Tree({"pkg/m.py": ruler + b"class \\\n C: pass\n"}, {}, {}, {})
    assert list(tree.mentioning("C", CLASS)) == ["pkg/m.py"]
    assert list(tree.mentioning("the", FUNCTION)) == []
    assert not may_reach("pkg.other", "pkg/m.py", ruler)
