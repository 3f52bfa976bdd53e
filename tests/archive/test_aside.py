"""Modules that a patch does not carry: it does not load where one of them is."""

import importlib.util
import sys
import types

from tests.archive.kit import M, disabled, enabled, refusal

from livepatch.archive import fit


def test_the_patch_refuses_where_the_module_is_loaded(package):
    package.have({M: "def g(): return 1\n", "lp_pkg/tests/__init__.py": "", "lp_pkg/tests/m.py": "class C(int): pass"})
    package.load()
    archive = package.archive({M: "def g(): return 2\n", "lp_pkg/tests/m.py": "class C(str): pass"})
    assert archive.manifest.absent == ("lp_pkg.tests.m",)
    fit.bind(archive)
    package.load("lp_pkg.tests.m")
    assert "'lp_pkg.tests.m' is imported here, and the patch does not carry" in refusal(fit.bind, archive, dry=True)
    del sys.modules["lp_pkg.tests.m"]
    fit.bind(archive)


def test_a_template_stays_a_file(package):
    """What fills it in is patched; where somebody has imported the old one all the same, the patch refuses to load."""
    old = "def g(text): return text.replace('__HOME__', '/')\n"
    package.have({M: old, "lp_pkg/tpl.py": "class C(int): pass\nHOME = '__HOME__'"})
    module = package.load()
    new = {M: old.replace("'/'", "repr('/')"), "lp_pkg/tpl.py": "class C(str): pass\nHOME = __HOME__"}
    archive = package.archive(new)
    assert archive.manifest.absent == ("lp_pkg.tpl",)
    patch = package.bind(new)
    enabled(patch)
    assert module.g("HOME = __HOME__") == "HOME = '/'"
    assert "lp_pkg.tpl" not in sys.modules
    disabled(patch)
    assert module.g("HOME = __HOME__") == "HOME = /"
    package.load("lp_pkg.tpl")
    assert "'lp_pkg.tpl' is imported here, and the patch does not carry" in refusal(fit.bind, archive, dry=True)


def test_the_patch_refuses_where_the_program_runs(package, monkeypatch):
    package.have({M: "def g(): return 1\n", "lp_pkg/__main__.py": "class C(int): pass"})
    package.load()
    archive = package.archive({M: "def g(): return 2\n", "lp_pkg/__main__.py": "class C(str): pass"})
    assert archive.manifest.absent == ("lp_pkg.__main__",)
    fit.bind(archive)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    fit.bind(archive)
    main.__spec__ = importlib.util.spec_from_loader("lp_pkg.__main__", None)  # python -m lp_pkg
    assert "'lp_pkg.__main__' is imported here" in refusal(fit.bind, archive, dry=True)
    main.__spec__ = importlib.util.spec_from_loader("__main__", None)  # python lp_pkg/
    main.__file__ = str(package.old / "lp_pkg" / "__main__.py")
    assert "'lp_pkg.__main__' is imported here" in refusal(fit.bind, archive, dry=True)
    main.__file__ = str(package.old / "other" / "__main__.py")
    fit.bind(archive)


def test_functions_of_a_running_program_are_patched(package):
    package.have({M: "def g(): return 1\n", "lp_pkg/__main__.py": "import sys\ndef f(): return 1\nsys.intern('a')"})
    main = package.load("lp_pkg.__main__")
    patch = package.bind({"lp_pkg/__main__.py": "def f(): return 2"})
    enabled(patch)
    assert main.f() == 2
    disabled(patch)
    assert main.f() == 1
