"""From a report to an archive: narrowing, order, and the same bytes every time."""

import errno
import json

import pytest
from tests.build.kit import FATES, files

from livepatch.archive import format
from livepatch.build import Build, Report, compare
from livepatch.core.model import LivepatchError

OLD = {
    "p/__init__.py": "from .util import helper\n__version__ = '1'",
    "p/util.py": "def helper(): return 1",
    "p/core.py": "from .util import helper\ndef run(): return helper()\nLIMIT = open('1')\ndef check(): return LIMIT",
}
NEW = {
    "p/__init__.py": "from .util import helper\n__version__ = '2'",
    "p/util.py": "import re\nPATTERN = re.compile('x')\ndef helper(): return PATTERN\ndef more(): return helper()",
    "p/core.py": "from .util import helper, more\ndef run(): return more()\n"
    "LIMIT = open('2')\ndef check(): return LIMIT",
}


def build(old=OLD, new=NEW):
    before, after = files(old), files(new)
    return Build(compare(before, after), before, after)


def names(report, fate):
    return [change.key for change in report.of(fate)]


def test_a_refusal_means_no_archive():
    with pytest.raises(LivepatchError, match=r"cannot carry everything: p/core.py:3: constant LIMIT") as refusal:
        build().archive("fix")
    assert refusal.value.errno == errno.EINVAL


def test_no_effect_means_no_archive():
    with pytest.raises(LivepatchError, match="Nothing changes") as refusal:
        build(OLD, OLD | {"p/util.py": "# comment\n" + OLD["p/util.py"]}).archive("fix")
    assert refusal.value.errno == errno.ENODATA


@pytest.mark.parametrize("name", ["", "a/b", "<x>", "a\nb", "x" * 300])
def test_strange_names_are_refused(name):
    with pytest.raises(LivepatchError, match="cannot have the name"):
        build().narrowed(exclude=["p.core:LIMIT"]).archive(name)


def test_the_archive():
    made = build().narrowed(exclude=["p.core:LIMIT"])
    archive = format.read(made.archive("fix", description="It fixes."))
    assert archive.manifest.name == "fix"
    assert archive.manifest.description == "It fixes."
    assert archive.new["p/util.py"] == NEW["p/util.py"].encode()
    assert archive.old["p/core.py"] == OLD["p/core.py"].encode()
    # What others import from comes first.
    assert [entry.module for entry in archive.manifest.objects] == ["p", "p.util", "p.core"]
    core = archive.manifest.objects[2]
    assert [f.name for f in core.functions] == ["run"]
    assert [a.name for a in core.added] == ["more"]
    (note,) = core.notes
    assert note.startswith("p/core.py:3: constant LIMIT: left out on request (refused: its value changed")


def test_the_same_bytes_every_time():
    narrowed = build().narrowed(exclude=["p.core:LIMIT"])
    reversed_trees = build(dict(reversed(OLD.items())), dict(reversed(NEW.items())))
    assert narrowed.archive("fix") == reversed_trees.narrowed(exclude=["p.core:LIMIT"]).archive("fix")


def test_modules_that_import_from_each_other():
    old = {"a.py": "import b\ndef f(): pass", "b.py": "import a\ndef g(): pass"}
    new = {
        "a.py": "import b\nfrom b import y\nx = 1\ndef f(): return y",
        "b.py": "import a\nfrom a import x\ny = 1\ndef g(): return x",
    }
    archive = format.read(build(old, new).archive("fix"))
    assert [entry.module for entry in archive.manifest.objects] == ["a", "b"]


def test_only_brings_along_what_is_needed():
    report = build().narrowed(only=["p.core:run"]).report
    assert names(report, "carried") == ["p.core:run"]
    assert names(report, "added") == ["p.core:more", "p.util:more"]
    assert names(report, "left out") == [
        "p:__version__",
        "p.core:LIMIT",
        "p.util:re",
        "p.util:PATTERN",
        "p.util:helper",
    ]
    assert not report.refused


def test_leaving_out_what_is_needed_is_refused():
    report = build().narrowed(exclude=["p.core:LIMIT", "p.util:PATTERN"]).report
    assert [str(c) for c in report.refused] == [
        "p/util.py:3: function helper: it uses p.util:PATTERN, which was left out"
    ]
    report = build().narrowed(only=["p.core"], exclude=["*:more", "*:LIMIT"]).report
    assert names(report, "refused") == ["p.core:run"]


@pytest.mark.parametrize("glob", ["p.core", "p.c*", "p/core.py", "p.core:*"])
def test_globs(glob):
    report = build().narrowed(exclude=[glob]).report
    assert not [c for c in report.of("carried", "added", "refused") if c.module == "p.core"]
    assert names(report, "left out") == ["p.core:more", "p.core:run", "p.core:LIMIT"]


def test_what_follows_a_constant_is_left_out_with_it():
    old = {"p/__init__.py": "from .v import __version__", "p/v.py": "__version__ = '1'\ndef f(): pass"}
    made = build(old, old | {"p/v.py": "__version__ = '2'\ndef f(): return 1"})
    report = made.narrowed(exclude=["p.v:__version__"]).report
    assert names(report, "left out") == ["p:__version__", "p.v:__version__"]
    assert report.modules == ["p.v"]


def test_methods_and_the_names_that_they_need():
    old = "class C:\n    def a(self): pass\n    def z(self): pass"
    new = "class C:\n    def a(self): return self.b()\n    def b(self): return 1\n    def z(self): return 1"
    made = build({"m.py": old}, {"m.py": new})
    assert names(made.narrowed(only=["m:C.a"]).report, "added") == ["m:C.b"]
    assert names(made.narrowed(only=["m:C.z"]).report, "added") == []
    assert names(made.narrowed(exclude=["m:C.b"]).report, "refused") == ["m:C.a"]


def test_json():
    document = json.loads(json.dumps(build().report.to_json()))
    assert tuple(document) == FATES
    assert document["refused"][0] == {
        "fate": "refused",
        "module": "p.core",
        "name": "LIMIT",
        "file": "p/core.py",
        "line": 3,
        "kind": "constant",
        "reason": "its value changed, and `open` may do anything, and it is read by check (p/core.py:4)",
        "hint": "restart the process for this, or leave it out: --exclude 'p.core:LIMIT'",
        "consistent": None,
    }


def test_an_empty_report():
    assert Report().changes_nothing
    assert Report().modules == []
