"""A vendored copy in a live process: patched if it is what it is taken for, refused if somebody has changed it."""

import sys

import pytest
from tests.archive.conftest import write
from tests.archive.kit import disabled, enabled, refusal

from livepatch.archive import fit, format
from livepatch.build import from_step, steps

OLD = {
    "low.py": "def f(): return 'old'\n",
    "high/__init__.py": "import low\nfrom . import util\n"
    "def h():\n    import low as again\n    return low.f(), again is low\n",
    "high/util.py": "def u(): return 'old'\n",
}
NEW = {
    "low.py": "def f(): return g()\ndef g(): return 'new'\n",
    "high/__init__.py": "import low\nfrom low import g\nfrom . import util\n"
    "def h():\n    import low as again\n    return low.f(), g(), util.u(), again is low\n",
    "high/util.py": "def u(): return 'new'\n",
}
#: What a tool for vendoring makes of the old sources.
VENDORED = {
    "lp_pkg/_vendor/__init__.py": "",
    "lp_pkg/_vendor/low.py": OLD["low.py"],
    "lp_pkg/_vendor/high/__init__.py": OLD["high/__init__.py"].replace("import low", "from lp_pkg._vendor import low"),
    "lp_pkg/_vendor/high/util.py": OLD["high/util.py"],
}


@pytest.fixture
def patch(package):
    write(package.root / "plain-old", OLD)
    write(package.root / "plain-new", NEW)
    step = steps.trees(package.root / "plain-old", package.root / "plain-new").vendored("lp_pkg._vendor")

    def made():
        return fit.bind(format.read(from_step(step).archive("fix")))

    return made


def test_a_copy_is_patched_and_what_it_was_copied_from_is_not(package, patch, monkeypatch):
    package.have(VENDORED)
    monkeypatch.syspath_prepend(str(package.root / "plain-old"))
    live = package.load("lp_pkg._vendor.high")
    before = dict(vars(live))
    made = patch()
    enabled(made)
    assert live.h() == ("new", "new", "new", True)
    assert package.load("low").f() == "old"
    del sys.modules["low"]
    disabled(made)
    assert live.h() == ("old", True)
    assert vars(live) == before


def test_a_copy_that_somebody_changed_is_refused(package, patch):
    changed = VENDORED["lp_pkg/_vendor/low.py"].replace("'old'", "'old, and ours'")
    package.have(VENDORED | {"lp_pkg/_vendor/low.py": changed})
    live = package.load("lp_pkg._vendor.high")
    expected = "The live 'f' in 'lp_pkg._vendor.low' is not the one that the patch was built for."
    assert refusal(patch) == expected
    assert live.h() == ("old, and ours", True)
