"""Archives that do not fit: one sentence that says what is in the way, and a process that did not change."""

import errno

import pytest
from tests.archive.kit import M, disabled, enabled, namespace, refusal

import livepatch as lp
from livepatch.archive import fit
from livepatch.core.model import LivepatchError


def test_another_version_of_the_function_is_refused(package):
    package.have({M: "def f(): return 1\ndef g(): return 1"})
    archive = package.archive({M: "def f(): return 2\ndef g(): return 1"})
    package.have({M: "def f(): return 3\ndef g(): return 4"})
    package.load()
    assert refusal(fit.bind, archive) == "The live 'f' in 'lp_pkg.m' is not the one that the patch was built for."
    assert refusal(fit.bind, archive, dry=True)


def test_other_differences_do_not_matter(package):
    package.have({M: "def f(): return 1\ndef g(): return 1"})
    archive = package.archive({M: "def f(): return 2\ndef g(): return 1"})
    package.have({M: "# vendor patch\n\n\nX = 1\ndef g(): return 4\ndef f():\n    'doc'\n    return 1"})
    m = package.load()
    patch = fit.bind(archive)
    enabled(patch)
    assert m.f() == 2
    disabled(patch)


@pytest.mark.parametrize("live", ["", "def f(): return 1\ndef keep(): pass\nkeep.f = f\ndef f(): return 1"])
def test_a_missing_or_an_extra_definition_is_refused(package, live):
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    package.have({M: live})
    package.load()
    assert "symbol 'f'" in refusal(fit.bind, archive)


def test_none_of_the_modules_is_imported(package):
    package.have({M: "def f(): return 1", "lp_pkg/n.py": "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2", "lp_pkg/n.py": "def f(): return 2"})
    with pytest.raises(LivepatchError) as caught:
        fit.bind(archive)
    assert caught.value.errno == errno.ENOENT
    assert "lp_pkg.m, lp_pkg.n" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "live", "new", "reason"),
    [
        ("", "def g(): return 1", "def g(): return 2", "'g' exists already in the live module 'lp_pkg.m'"),
        ("", "X = 1", "X = 2", "'X' exists already"),
        ("", "import os as p", "import sys as p", "'p' exists already"),
        ("class C: x = 1", "C = 1", "class C:\n    x = 1\n    def n(self): pass", "'C' is not a class"),
        ("class C: x = 1", "class C: n = 1", "class C:\n    x = 1\n    def n(self): pass", "'C.n' exists already"),
        (
            "class C(dict): x = 1",
            "class B(dict):\n    def n(self): pass\nclass C(B): x = 1",
            "class C(dict):\n    x = 1\n    def n(self): pass",
            "The new 'C.n' in 'lp_pkg.m' would hide from old code what is inherited from 'B'",
        ),
        (
            "class C:\n    x = 1\n    def n(self): pass",
            "class B:\n    def n(self): pass\nclass C(B): x = 1",
            "class C:\n    x = 1",
            "'C.n' in 'lp_pkg.m' is gone in the new version, and the one inherited from 'B' would come to light",
        ),
        ("", "", "X = 1 / 0", "A new statement for 'lp_pkg.m' failed: ZeroDivisionError"),
        ("", "", "class D(Missing): pass", "A new statement for 'lp_pkg.m' failed: NameError"),
        ("", "", "def f(a=missing): return 1", None),
        ("", "", "import lp_nowhere", "`import lp_nowhere` in the new version of 'lp_pkg.m' fails"),
        ("", "", "from os import lp_nothing", "A new statement for 'lp_pkg.m' failed: ImportError"),
    ],
)
def test_what_is_new_must_fit(package, old, live, new, reason):
    function = "\ndef f(): return 1\n"
    package.have({M: old + function})
    archive = package.archive({M: new + function.replace("return 1", "return 2")} if reason else {M: new})
    package.have({M: live + function})
    m = package.load()
    before = namespace(m)
    text = refusal(lambda: lp.enable_patch(fit.bind(archive)))
    assert (reason or "NameError") in text
    assert namespace(m) == before
    assert m.f() == 1
    assert not lp.patches()


def test_a_name_that_the_live_module_lacks_is_refused(package):
    package.have({M: "from .n import *\ndef f(): return 1", "lp_pkg/n.py": "x = 1"})
    package.load()
    archive = package.archive({M: "from .n import *\ndef f(): return missing, len, x"})
    text = refusal(lambda: lp.enable_patch(fit.bind(archive)))
    assert text == "The new 'f' uses 'missing', which 'lp_pkg.m' does not have."


def test_an_import_that_is_done_otherwise_must_give_the_same_object(package):
    old = "try:\n    import lp_none as x\nexcept ImportError:\n    x = None\ndef f(): return x"
    new = old.replace("ImportError", "ModuleNotFoundError")
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: new + ", 1"})
    enabled(patch)
    assert m.f() == (None, 1)
    disabled(patch)
    m.x = 1
    assert "'x' exists already" in refusal(lambda: lp.enable_patch(package.bind({M: new + ", 1"}, "again")))
    assert m.x == 1


def test_source_for_another_python(package):
    package.have({M: "def f(): return 1"})
    archive = package.archive({M: "def f(): return 2"})
    package.load()
    broken = type(archive)(archive.manifest, archive.old, {M: b"def f(): return )"})
    text = refusal(fit.bind, broken)
    assert text.startswith("This Python cannot compile <livepatch fix>/lp_pkg/m.py, line 1")


def test_an_archive_that_contradicts_itself(package):
    package.have({M: "def f(): return 1\nx = 1"})
    archive = package.archive({M: "def f(): return 2\nx = 2\ny = 1"})
    package.load()
    other = type(archive)(archive.manifest, {M: b""}, archive.new)
    assert "names 'f'" in refusal(fit.bind, other)
    other = type(archive)(archive.manifest, archive.old, {M: b"def f(): return 2"})
    assert "but its source" in refusal(fit.bind, other)


def test_a_function_that_was_patched_between_binding_and_enabling(package):
    package.have({M: "def f(): return 1"})
    m = package.load()
    first, second = package.bind({M: "def f(): return 2"}, "first"), package.bind({M: "def f(): return 3"}, "second")
    enabled(first)
    assert "not the one that the patch was built for" in refusal(lp.enable_patch, second)
    disabled(first)
    enabled(second)
    assert m.f() == 3
    disabled(second)
