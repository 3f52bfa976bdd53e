"""`livepatch build --report` and `--skeleton`: what is written, when, and what is not."""

import ast
import errno
import os
import subprocess
import sys

import pytest
from tests.build.test_page import Page

OLD = "LIMIT = 1\ndef f(): return LIMIT\n"
NEW = "LIMIT = 2\ndef f(): return LIMIT + 1\n"
REFUSED = OLD + "print('imported')\n"
CLASS = "class C:\n    def __init__(self): pass\n    def f(self): return 1\n"
ASKS = "class C:\n    def __init__(self):\n        self.x = ask()\n    def f(self): return self.x\n"


@pytest.fixture
def build(lp, trees, tmp_path):
    """Build from two sources of one module; `made` are the files that there are afterwards."""

    def built(old, new, *more):
        before, after = trees(old, new, "m")
        return lp("build", "-o", tmp_path / "fix.livepatch", "--old", before, "--new", after, *more)

    return built


@pytest.fixture
def made(tmp_path):
    return lambda: sorted(path.name for path in tmp_path.iterdir() if path.name not in ("old", "new"))


def test_a_report_beside_the_archive(build, made, tmp_path):
    done = build(OLD, NEW, "--report", tmp_path / "fix.html")
    assert (done.status, done.err) == (0, "")
    assert made() == ["fix.html", "fix.livepatch"]
    assert f"The report is in {tmp_path / 'fix.html'}.\n'fix' is in {tmp_path / 'fix.livepatch'}.\n" in done.out
    html = (tmp_path / "fix.html").read_bytes()
    assert "The patch is in fix.livepatch: 2 changes in 1 module." in Page(html.decode()).text
    build(OLD, NEW, "--report", tmp_path / "fix.html")
    assert (tmp_path / "fix.html").read_bytes() == html
    assert str(tmp_path).encode() not in html


@pytest.mark.parametrize(("old", "new"), [(OLD, REFUSED), (OLD, OLD + "# more\n"), (OLD, "def f(: pass\n")])
def test_a_report_where_there_is_no_archive(build, made, tmp_path, old, new):
    done = build(old, new, "--report", tmp_path / "fix.html")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "no archive was written" in done.err
    assert made() == ["fix.html"]
    assert "There is no archive" in Page((tmp_path / "fix.html").read_text()).text


def test_the_json_has_what_the_page_has(build, tmp_path):
    done = build(OLD, REFUSED.replace("= 1", "= 2"), "--json", "--report", tmp_path / "fix.html")
    assert done.status == 1
    assert (done.json["file"], done.json["page"], done.json["skeleton"]) == (None, str(tmp_path / "fix.html"), None)
    (value,) = done.json["report"]["value"]
    assert (value["name"], value["old"], value["new"], value["consistent"]) == ("LIMIT", [1, 1], [1, 1], True)
    (refused,) = done.json["report"]["refused"]
    assert (refused["old"], refused["new"], refused["consistent"]) == (None, [3, 3], None)
    assert "--exclude" in refused["hint"]
    done = build(CLASS, ASKS, "--json")
    assert ast.parse(done.json["skeleton"])


def test_what_is_not_consistent_is_said(build):
    done = build("__version__ = '1'\n" + OLD, "__version__ = '2'\n" + NEW)
    assert done.status == 0
    assert "Without consistency, and only at completion unless it says otherwise: m.py:1\n" in done.out
    assert "Without consistency" not in build(OLD, NEW).out


def test_a_skeleton_from_refusal_to_archive(build, made, tmp_path):
    skeleton = tmp_path / "hooks.py"
    done = build(CLASS, ASKS)
    assert "--skeleton FILE writes them" in done.out
    done = build(CLASS, ASKS, "--skeleton", skeleton)
    assert (done.status, made()) == (1, ["hooks.py"])
    assert f"The hooks to fill in are in {skeleton}.\n" in done.out
    text = skeleton.read_text()
    unfilled = build(CLASS, ASKS, "--hooks", skeleton)
    assert (unfilled.status, made()) == (1, ["hooks.py"])
    assert "it reads the attribute 'x'" in unfilled.out
    skeleton.write_text(text.replace("raise NotImplementedError", "return "))
    filled = build(CLASS, ASKS, "--hooks", skeleton)
    assert (filled.status, made()) == (0, ["fix.livepatch", "hooks.py"])
    assert "--skeleton" not in filled.out


def test_a_skeleton_is_written_over_nothing(build, made, tmp_path):
    skeleton = tmp_path / "hooks.py"
    skeleton.write_text("mine")
    done = build(CLASS, ASKS, "--skeleton", skeleton, "--report", tmp_path / "r.html")
    assert (done.status, done.out) == (1, "")
    assert done.err == f"livepatch: {skeleton} exists, and may have been filled in; name a new file for the skeleton.\n"
    assert (skeleton.read_text(), made()) == ("mine", ["hooks.py"])


def test_no_skeleton_where_hooks_cannot_help(build, made, tmp_path):
    for new in (NEW, REFUSED):
        done = build(OLD, new, "--skeleton", tmp_path / "hooks.py")
        assert "No hooks are asked for.\n" in done.out
        assert "hooks.py" not in made()


@pytest.mark.parametrize(
    "options",
    [
        ("--report", "fix.livepatch"),
        ("--skeleton", "fix.livepatch"),
        ("--report", "a.html", "--skeleton", "old/../a.html"),
        ("--hooks", "h.py", "--report", "h.py"),
        ("--base", "h.py", "--report", "h.py"),
        ("--hooks", "h.py", "--skeleton", "link.py"),
    ],
)
def test_no_file_twice(build, made, tmp_path, options):
    (tmp_path / "h.py").write_text("__livepatch__ = {}")
    (tmp_path / "link.py").symlink_to(tmp_path / "h.py")
    done = build(OLD, NEW, *(word if word.startswith("-") else tmp_path / word for word in options))
    assert (done.status, done.out) == (2, "")
    assert "which is another file of this build" in done.err
    assert made() == ["h.py", "link.py"]
    assert (tmp_path / "h.py").read_text() == "__livepatch__ = {}"


@pytest.mark.parametrize("option", ["--report", "--skeleton"])
def test_a_folder_that_is_not_there(build, made, tmp_path, option):
    """Neither is written then, nor the archive."""
    old, new = (OLD, NEW) if option == "--report" else (CLASS, ASKS)
    done = build(old, new, option, tmp_path / "nowhere" / "x", "--json")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "No such file or directory" in done.err
    assert done.json["error"]["symbol"] == "ENOENT"
    assert made() == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_is_full(build, made, tmp_path, monkeypatch, failing):
    """All is written or nothing, and what was there before stays."""
    (tmp_path / "fix.html").write_text("earlier")
    left = [failing]

    def sync(descriptor):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    done = build(OLD, NEW, "--report", tmp_path / "fix.html")
    assert done.status == 1
    assert done.err.endswith(": No space left on device.\n")
    assert made() == ["fix.html"]
    assert (tmp_path / "fix.html").read_text() == "earlier"


def test_a_device_stays_one(lp, trees, tmp_path):
    """`-o /dev/null`, for who wants to see the report only, is written to and not replaced."""
    device = tmp_path / "device"
    os.mkfifo(device)
    reader = subprocess.Popen([sys.executable, "-c", f"print(len(open({str(device)!r}, 'rb').read()))"], stdout=-1)
    old, new = trees(OLD, NEW, "m")
    done = lp("build", "-o", device, "--old", old, "--new", new, "--report", tmp_path / "r.html")
    assert done.status == 0
    assert int(reader.communicate()[0]) > 500
    assert device.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "new", "old", "r.html"]
