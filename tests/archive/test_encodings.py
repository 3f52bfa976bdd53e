"""Sources that are not plain UTF-8: built, proved, loaded, shown in tracebacks, and taken back."""

import codecs
import inspect
import sys
import zipfile

import pytest
from tests.archive.kit import M, disabled, enabled

from livepatch.archive import fit, format
from livepatch.build import from_trees


def patched(package, old, new):
    """The module as imported from these bytes, and the patch to those."""
    target = package.old / M
    package.have({M: ""})
    target.write_bytes(old)
    live = package.load()
    after = package.root / "new" / M
    after.parent.mkdir(parents=True)
    after.write_bytes(new)
    (package.root / "new" / "lp_pkg" / "__init__.py").write_bytes(b"")
    return live, fit.bind(format.read(from_trees(package.old, package.root / "new").archive("fix")))


OLD = "é = 'é'\ndef f():\n    return é + 'alt' # ß\x0c\ndef g(): return f()\n"
NEW = OLD.replace("alt", "neu€").replace("# ß", "# ß\x0cß")


@pytest.mark.parametrize(
    ("head", "encoding", "newline"),
    [
        ("", "utf-8", "\n"),
        ("", "utf-8", "\r\n"),
        ("", "utf-8", "\r"),
        ("", "utf-8-sig", "\n"),
        ("# -*- coding: iso-8859-15 -*-\n", "iso-8859-15", "\n"),
        ("# vim: set fileencoding=cp1252 :\n", "cp1252", "\r\n"),
    ],
)
def test_encodings_and_ends_of_lines(package, head, encoding, newline):
    old, new = ((head + text).replace("\n", newline).encode(encoding) for text in (OLD, NEW))
    assert encoding != "utf-8-sig" or old.startswith(codecs.BOM_UTF8)
    live, patch = patched(package, old, new)
    enabled(patch)
    assert live.g() == "éneu€"
    assert inspect.getsource(live.f) == "def f():\n    return é + 'neu€' # ß\x0cß\x0c\n"
    disabled(patch)
    assert live.g() == "éalt"


def test_a_change_of_encoding_alone_changes_nothing(package):
    text = "def f(): return 'é'\n"
    package.have({M: ""})
    for folder, content in (("old", text.encode()), ("new", b"# coding: latin-1\n" + text.encode("latin-1"))):
        (package.root / folder / "lp_pkg").mkdir(parents=True, exist_ok=True)
        (package.root / folder / M).write_bytes(content)
    assert from_trees(package.old, package.root / "new").report.changes_nothing


def test_a_name_that_is_spelled_otherwise_in_other_encodings(package):
    """Whoever reads `größe` is found, in whatever encoding the reader is written."""
    package.have({"lp_pkg/a.py": "größe = 1\n", "lp_pkg/b.py": ""})
    reader = "# coding: latin-1\nfrom lp_pkg import a\ndef f(): return a.größe\n"
    (package.old / "lp_pkg" / "b.py").write_bytes(reader.encode("latin-1"))
    new = package.root / "new" / "lp_pkg"
    new.mkdir(parents=True)
    (new / "a.py").write_text("größe = 2\n")
    (new / "b.py").write_bytes(reader.encode("latin-1"))
    report = from_trees(package.old, package.root / "new").report
    assert any("lp_pkg/b.py" in str(change) for change in report.changes)


def test_modules_that_are_imported_from_a_zip(package, monkeypatch):
    trees = [{"lp_pkg/__init__.py": "", M: f"def f(): return {value}\n"} for value in (1, 2)]
    package.have(trees[0])
    carried = package.root / "carried.zip"
    with zipfile.ZipFile(carried, "w") as file:
        for path, content in trees[0].items():
            file.writestr("inside/" + path, content)
    monkeypatch.syspath_prepend(str(carried / "inside"))
    live = package.load()
    assert type(live.__loader__).__name__ == "zipimporter"
    try:
        patch = package.bind(trees[1])
        enabled(patch)
        assert live.f() == 2
        disabled(patch)
        assert live.f() == 1
    finally:
        sys.path_importer_cache.pop(str(carried / "inside"), None)


def test_a_namespace_package(package, monkeypatch):
    """Two folders make one package (PEP 420), and neither has an `__init__.py`."""
    for folder, name in (("one", "a"), ("two", "b")):
        place = package.root / folder / "lp_pkg_ns"
        place.mkdir(parents=True)
        (place / f"{name}.py").write_text("def f(): return 1\n")
        monkeypatch.syspath_prepend(str(package.root / folder))
    live = package.load("lp_pkg_ns.b")
    assert package.load("lp_pkg_ns.a").f() == 1
    new = package.root / "new" / "lp_pkg_ns"
    new.mkdir(parents=True)
    (new / "b.py").write_text("def f(): return 2\n")
    patch = fit.bind(format.read(from_trees(package.root / "two", package.root / "new").archive("fix")))
    enabled(patch)
    assert live.f() == 2
    disabled(patch)
    assert live.f() == 1
