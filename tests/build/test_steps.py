"""Several sources in one patch, copies below another package, and patches that go on from earlier ones."""

import errno

import pytest
from tests.build.kit import files

from livepatch.archive import format
from livepatch.archive.byhand import RESULT
from livepatch.build import from_step
from livepatch.build.sources import Tree
from livepatch.build.steps import Step, together
from livepatch.build.vendored import rewritten
from livepatch.core.model import LivepatchError


def step(old, new, name="", versions=("1", "2")):
    distributions = ({"name": name, "from": versions[0], "to": versions[1]},) if name else ()
    return Step(Tree.sort(files(old)), Tree.sort(files(new)), distributions, version=versions[1])


def keys(report, *fates):
    return [change.key for change in report.of(*(fates or ("carried", "added", "at completion", "refused")))]


def refusal(action, *arguments):
    with pytest.raises(LivepatchError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.errno == errno.EINVAL
    return str(caught.value)


# Several sources.

LOW = {"low.py": "def f(): return 1"}, {"low.py": "def f(): return g()\ndef g(): return 2"}
HIGH = (
    {"high/__init__.py": "import low\ndef h(): return low.f()"},
    {"high/__init__.py": "import low\nfrom low import g\ndef h(): return g()"},
)


def test_two_packages_in_one_patch():
    build = from_step(together([step(*HIGH, "high", ("5", "6")), step(*LOW, "low")]))
    assert keys(build.report) == ["high:g", "high:h", "low:f", "low:g"]
    archive = format.read(build.archive("both"))
    assert [entry.module for entry in archive.manifest.objects] == ["low", "high"], "g is there before it is imported"
    assert [d["name"] for d in archive.manifest.distributions] == ["high", "low"]
    assert archive.manifest.version == ""


def test_a_constant_of_one_package_that_the_other_reads():
    old = step({"low.py": "LIMIT = 1"}, {"low.py": "LIMIT = 2"})
    other = step(
        {"high.py": "import low\ndef f(): return low.LIMIT"}, {"high.py": "import low\ndef f(): return low.LIMIT"}
    )
    assert "high.py" in str(from_step(together([old, other])).report.changes[0])


def test_files_that_several_packages_have():
    common = {"ns/__init__.py": "x = 1"}
    together([step(LOW[0] | common, LOW[1] | common), step(HIGH[0] | common, HIGH[1] | common)])
    one = step(common, {"ns/__init__.py": "x = 2"})
    assert together([step(common, common), one]).new.python["ns/__init__.py"] == b"x = 2"
    assert together([one, one]).new.python["ns/__init__.py"] == b"x = 2"
    other = step(common, {"ns/__init__.py": "x = 3"})
    assert "have the file ns/__init__.py, and it changes in both" in refusal(together, [one, other])


# Vendored copies.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a", "from v.w import a"),
        ("import a as b", "from v.w import a as b"),
        ("import a.b", "import v.w.a.b; from v.w import a"),
        ("import a.b as c", "import v.w.a.b as c"),
        ("import os, a, sys", "import os; from v.w import a; import sys"),
        ("from a import b, c as d", "from v.w.a import b, c as d"),
        ("from a.b import *", "from v.w.a.b import *"),
        ("from . import a\nfrom .a import b\nimport ab, b.a\nfrom ab import a\n", None),
        ("if x:\n é = 1; import a  # y\n b('import a')\n", "if x:\n é = 1; from v.w import a  # y\n b('import a')\n"),
        ("from a import (  # one\n    b,\n    c,  # two\n)  # three\nx = 1\n",
         "from v.w.a import b, c \\\n \\\n \\\n  # three\nx = 1\n"),
        ("\ufeffimport a\n", "\ufefffrom v.w import a\n"),
        ("import a\r\nx = 1\r\n", "from v.w import a\r\nx = 1\r\n"),
        ("import a(", None),
    ],
)  # fmt: skip
def test_imports_are_rewritten_where_they_stand(source, expected):
    found = rewritten(source.encode(), "v.w", {"a"}).decode()
    assert found == (source if expected is None else expected)
    if not source.endswith("("):
        compile(found.encode(), "", "exec")


def test_a_vendored_copy():
    build = from_step(together([step(*HIGH, "high"), step(*LOW, "low")]).vendored("app._vendor"))
    archive = format.read(build.archive("both"))
    assert [entry.module for entry in archive.manifest.objects] == ["app._vendor.low", "app._vendor.high"]
    assert archive.new["app/_vendor/high/__init__.py"].startswith(b"from app._vendor import low\nfrom app._vendor.low")
    assert archive.manifest.distributions == ()
    assert archive.manifest.description == "high 1 -> 2, low 1 -> 2, vendored in app._vendor."


def test_a_new_import_of_a_package_that_may_be_vendored_too():
    pair = {"m.py": "import os\ndef f(): return 1"}, {"m.py": "import os, idna\nimport sys\ndef f(): return idna"}
    (found,) = from_step(step(*pair).vendored("v")).report.refused
    assert str(found) == (
        "v/m.py:1: import idna: the new import of idna: it is not known whether that is vendored in v, too"
    )
    assert found.hint == "if it is: --vendored-with idna"
    build = from_step(step(*pair).vendored("v", ["idna"]))
    assert not build.report.refused
    assert b"from v import idna" in build.new.python["v/m.py"]


@pytest.mark.parametrize("prefix", ["", "a-b", "a..b", ".a", "a/b"])
def test_a_prefix_that_is_no_name(prefix):
    assert "is not the name of a package, such as pip._vendor." in refusal(step(*LOW).vendored, prefix)


# Cumulative patches.

A = "def f(): return 1\ndef g(): return 1\nLIMIT = 1\ndef h(): return LIMIT"
B = A.replace("def f(): return 1", "def f(): return new()\ndef new(): return 2")
C = B.replace("def g(): return 1", "def g(): return 3")


def archive(old, new, name="first", base=(), hooks=None, **options):
    build = from_step(step({"p/m.py": old}, {"p/m.py": new}, "p"), base).narrowed(**options)
    return format.read(build.archive(name, hooks=hooks))


def carried(made):
    return [(e.module, [f.name for f in e.functions], [a.name for a in e.added]) for e in made.manifest.objects]


def test_a_step_that_goes_on_where_the_earlier_patch_ended():
    first = archive(A, B)
    second = archive(B, C, "second", [first])
    assert second.manifest.replace
    assert carried(second) == [("p.m", ["f", "g"], ["new"])]
    assert (second.old, second.new) == (first.old, {"p/m.py": C.encode()})
    assert second == archive(A, C, "second", [first]), "from the beginning it is the same"
    third = archive(C, C.replace("3", "4"), "third", [second])
    assert carried(third) == [("p.m", ["f", "g"], ["new"])]
    assert third.old == first.old


def test_other_modules_are_carried_on():
    first = archive(A, B)
    other = step({"q.py": "def z(): return 1"}, {"q.py": "def z(): return 2"}, "q", ("7", "8"))
    made = format.read(from_step(other, [first]).archive("second"))
    assert carried(made) == [("p.m", ["f"], ["new"]), ("q", ["z"], [])]
    assert [(d["name"], d["from"], d["to"]) for d in made.manifest.distributions] == [("p", "1", "2"), ("q", "7", "8")]
    untouched = step({"p/m.py": A, "q.py": "def z(): return 1"}, {"p/m.py": A, "q.py": "def z(): return 2"})
    assert carried(format.read(from_step(untouched, [first]).archive("second"))) == carried(made)


def test_archives_alone_can_be_joined():
    first = archive(A, B)
    other = format.read(from_step(step({"q.py": "def z(): return 1"}, {"q.py": "def z(): return 2"})).archive("other"))
    made = format.read(from_step(together([]), [first, other]).archive("all"))
    assert carried(made) == [("p.m", ["f"], ["new"]), ("q", ["z"], [])]
    assert made.manifest.replace


def test_what_the_earlier_patch_left_out_stays_out():
    changed = B.replace("LIMIT = 1", "LIMIT = 2")
    first = archive(A, changed, exclude=["p.m:LIMIT", "p.m:h"])
    made = format.read(from_step(together([]), [first]).archive("second"))
    assert carried(made) == [("p.m", ["f"], ["new"])]


def test_what_would_be_taken_back_is_refused():
    first = archive(A, B)
    build = from_step(step({"p/m.py": A}, {"p/m.py": A.replace("def g(): return 1", "def g(): return 3")}), [first])
    assert keys(build.report, "refused") == ["p.m:f", "p.m:new"]
    assert "the earlier patch 'first' carries it, and this one would take it back" in str(build.report.refused[0])
    assert keys(build.narrowed(exclude=["p.m:f", "p.m:new"]).report) == ["p.m:g"]


def test_a_step_that_begins_elsewhere_is_refused():
    first = archive(A, B)
    other = step({"p/m.py": A + "\n# of a vendor"}, {"p/m.py": C})
    assert refusal(from_step, other, [first]) == (
        "p/m.py is neither as the earlier patch 'first' found it nor as it left it, so that is no base for it."
    )


def test_callbacks_are_not_lost_silently():
    hooks = f"{RESULT} = {{}}\n".encode()
    first = archive(A, B, hooks=hooks)
    with pytest.raises(LivepatchError, match="The earlier patch 'first' brings callbacks, which cannot be merged"):
        archive(B, C, "second", [first])
    assert archive(B, C, "second", [first], hooks=hooks).hooks == hooks
