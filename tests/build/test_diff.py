"""Unified diffs, as people and tools write them."""

import difflib
import shutil
import subprocess

import pytest

from livepatch.build import from_diff
from livepatch.build.diff import apply
from livepatch.core.model import LivepatchError

OLD = "".join(f"line {n}\n" for n in range(1, 31))
NEW = OLD.replace("line 3\n", "line three\n").replace("line 20\n", "").replace("line 28\n", "line 28\nmore\n")


def unified(old, new, name="p/m.py", prefixes=("a/", "b/"), context=3):
    lines = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), prefixes[0] + name, prefixes[1] + name, n=context
    )
    text = ""
    for line in lines:
        text += line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
    return text


def applied(diff, old=OLD, name="p/m.py"):
    return {path: content.decode() for path, content in apply(diff, {name: old.encode()}).items()}


@pytest.mark.parametrize("context", [0, 1, 3, 10])
def test_hunks(context):
    assert applied(unified(OLD, NEW, context=context)) == {"p/m.py": NEW}


@pytest.mark.parametrize(
    "prefixes", [("a/", "b/"), ("", ""), ("old-1.0/", "new-1.0/"), ("somewhere/else/old/", "somewhere/else/new/")]
)
def test_leading_folders_are_taken_off_as_needed(prefixes):
    assert applied(unified(OLD, NEW, prefixes=prefixes)) == {"p/m.py": NEW}


@pytest.mark.parametrize(("old", "new"), [("a\nb", "a\nc"), ("a\nb", "a\nb\n"), ("a\nb\n", "a\nb"), ("a", "")])
def test_missing_line_ends(old, new):
    assert applied(unified(old, new), old) == {"p/m.py": new}


def test_a_hunk_may_have_moved():
    assert applied(unified(OLD, NEW), "new first line\n" * 5 + OLD) == {"p/m.py": "new first line\n" * 5 + NEW}


def test_dos_line_ends_stay():
    old, new = OLD.replace("\n", "\r\n"), NEW.replace("\n", "\r\n")
    assert applied(unified(OLD, NEW), old) == {"p/m.py": new}


GIT_DIFF = """\
diff --git a/gone.py b/gone.py
deleted file mode 100644
index 1..0
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-x
diff --git a/new.py b/new.py
new file mode 100644
--- /dev/null
+++ b/new.py
@@ -0,0 +1,2 @@
+a
+b
diff --git a/from.py b/to.py
similarity index 100%
rename from from.py
rename to to.py
diff --git a/c.py b/d.py
similarity index 50%
rename from c.py
rename to d.py
--- a/c.py
+++ b/d.py
@@ -1 +1 @@
-c
+d
diff --git a/mode.py b/mode.py
old mode 100644
new mode 100755
"""


def test_new_gone_and_renamed_files():
    old = {"gone.py": b"x\n", "from.py": b"f\n", "c.py": b"c\n", "mode.py": b""}
    assert apply(GIT_DIFF, old) == {"new.py": b"a\nb\n", "to.py": b"f\n", "d.py": b"d\n", "mode.py": b""}


@pytest.mark.parametrize(
    ("diff", "reason"),
    [
        ("", "no unified diff"),
        ("hello\nworld\n", "no unified diff"),
        (unified(OLD, NEW, "other.py"), "line 1 changes a/other.py, which is not in the source tree"),
        (unified(OLD.replace("line 4", "line IV"), NEW), "p/m.py:1: the lines that it changes are not there (line 3"),
        (unified(OLD, NEW)[:60], "cut off"),
        ("--- a/p/m.py\n+++ b/p/m.py\n@@ nonsense @@\n", "line 3 is no valid hunk header"),
        ("@@ -1 +1 @@\n-a\n+b\n", "no file was named"),
        ("--- a/p/m.py\n+++ b/p/m.py\n@@ -1,2 +1,2 @@\n line 1\nwhat\n", "line 5 is not part of a hunk"),
        ("--- /dev/null\n+++ b/../../etc/x.py\n@@ -0,0 +1 @@\n+x\n", "outside of the source tree"),
        ("--- /dev/null\n+++ /etc/x.py\n@@ -0,0 +1 @@\n+x\n", "outside of the source tree"),
        ("--- /dev/null\n+++ b/p/m.py\n@@ -0,0 +1 @@\n+x\n", "exists already"),
        ("diff --git a/x b/x\nBinary files a/x and b/x differ\n", "binary"),
    ],
)
def test_what_does_not_apply_is_refused_with_its_place(diff, reason):
    with pytest.raises(LivepatchError) as refusal:
        applied(diff)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("The diff does not apply: ")


def test_a_build_from_a_diff(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "m.py").write_text("def f():\n    return 1\n")
    build = from_diff("--- p/m.py\n+++ p/m.py\n@@ -2 +2 @@\n-    return 1\n+    return 2\n", tmp_path)
    assert [change.name for change in build.report.functions] == ["f"]
    assert build.new.python["p/m.py"] == b"def f():\n    return 2\n"
    assert (tmp_path / "p" / "m.py").read_text() == "def f():\n    return 1\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_git_writes(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x", "-c", "core.autocrlf=false", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    old = {"a b.py": "x\n", "m.py": OLD, "gone.py": "y\n", "from.py": OLD, "end.py": "no end"}
    new = {"a b.py": "y\n", "m.py": NEW, "new.py": "z\n", "to.py": NEW, "end.py": "no end\n"}
    git("init", "-q")
    for version in (old, new):
        for name in old.keys() - version.keys():
            (tmp_path / name).unlink()
        for name, content in version.items():
            (tmp_path / name).write_text(content)
        git("add", "-A")
        if version is old:
            git("commit", "-qm", "old")
    diff = git("diff", "--cached", "-M")
    assert "rename from" in diff
    assert apply(diff, {k: v.encode() for k, v in old.items()}) == {k: v.encode() for k, v in new.items()}
