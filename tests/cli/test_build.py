"""`livepatch build`: the ways to name two versions, alone and together, and what it says when they will not do."""

import shutil
import subprocess
import textwrap
import zipfile

import pytest

OLD = "def f(): return 1\n"
NEW = "def f(): return 2\n"


@pytest.fixture
def tree(tmp_path):
    """Write files into a folder of that name."""

    def write(name, files):
        for path, content in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(content))
        return tmp_path / name

    return write


@pytest.fixture
def build(lp, tmp_path):
    def command(*arguments):
        return lp("build", "-o", tmp_path / "fix.livepatch", *arguments)

    yield command
    assert not list(tmp_path.glob("*.part"))


def modules(lp, tmp_path):
    return [entry["module"] for entry in lp("info", "--json", tmp_path / "fix.livepatch").json["objects"]]


def test_several_sources_in_one_patch(build, lp, tree, tmp_path):
    pairs = []
    for name in ("a", "b"):
        pairs += ["--old", tree(f"{name}1", {f"{name}.py": OLD}), "--new", tree(f"{name}2", {f"{name}.py": NEW})]
    assert build(*pairs).status == 0
    assert modules(lp, tmp_path) == ["a", "b"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository(build, lp, tree, tmp_path, monkeypatch):
    folder = tree("repository", {"sub/a.py": OLD})
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "1"]):
        subprocess.run([*git, *command], check=True)
    tree("repository", {"sub/a.py": NEW})
    subprocess.run([*git, "commit", "-qam", "2"], check=True)
    assert build("--git", "HEAD~1..HEAD", "--src", folder / "sub").status == 0
    assert modules(lp, tmp_path) == ["a"]
    monkeypatch.chdir(folder)
    assert build("--git", "HEAD~1..").status == 0
    assert modules(lp, tmp_path) == ["sub.a"]
    done = build("--git", "v7..HEAD")
    assert (done.status, done.err) == (1, "livepatch: The repository of . has no revision 'v7'.\n")


def test_a_wheel_and_a_vendored_copy(build, lp, tree, tmp_path):
    for version, content in (("1", OLD), ("2", NEW)):
        with zipfile.ZipFile(tmp_path / f"a-{version}-py3-none-any.whl", "w") as file:
            file.writestr("a.py", content)
            file.writestr(f"a-{version}.dist-info/METADATA", f"Name: a\nVersion: {version}\n")
    pair = "--old", tmp_path / "a-1-py3-none-any.whl", "--new", tmp_path / "a-2-py3-none-any.whl"
    done = build(*pair)
    assert done.status == 0
    assert "a 1 -> 2" in done.out
    assert build(*pair, "--vendored-in", "pip._vendor").status == 0
    assert modules(lp, tmp_path) == ["pip._vendor.a"]
    assert "a 1 -> 2, vendored in pip._vendor." in lp("info", tmp_path / "fix.livepatch").out


def test_a_base(build, lp, tree, tmp_path):
    assert build("--old", tree("a1", {"a.py": OLD}), "--new", tree("a2", {"a.py": NEW})).status == 0
    first = tmp_path / "first.livepatch"
    (tmp_path / "fix.livepatch").rename(first)
    pair = "--old", tree("b1", {"b.py": OLD}), "--new", tree("b2", {"b.py": NEW})
    assert build(*pair, "--base", first).status == 0
    assert modules(lp, tmp_path) == ["a", "b"]
    assert "replaces all patches" in lp("info", tmp_path / "fix.livepatch").out
    assert build("--base", first).status == 0
    assert modules(lp, tmp_path) == ["a"]
    done = build("--base", tree("text", {"x": "no archive"}) / "x")
    assert done.status == 1
    assert "This is not a valid patch archive" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--old", "."),
        ("--old", ".", "--new", ".", "--new", "."),
        ("--src", "."),
        ("--diff", "{file}"),
        ("--package", "a", "--from", "1"),
        ("--old", ".", "--new", ".", "--src", "."),
        ("--old", ".", "--new", ".", "--vendored-with", "x"),
        ("a==1",),
        ("a==1..",),
        ("a>=1..2",),
        ("a",),
    ],
)
def test_what_does_not_name_two_versions(build, tree, arguments):
    file = tree("files", {"file": ""}) / "file"
    done = build(*(argument.format(file=file) for argument in arguments))
    assert done.status == 2
    assert "Error: " in done.err


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("a==1.0..1.0.0", "1.0 and 1.0.0 are the same release of a."),
        ("a==1.0 .. nonsense", "'nonsense' is not a version; they look like 2.31.0, 1.0rc1 or 1.0+local."),
        ("a==1...2", "'1.' is not a version; they look like 2.31.0, 1.0rc1 or 1.0+local."),
        ("-==1..2", "'-' is not the name of a package."),
    ],
)
def test_releases_that_there_cannot_be(build, spec, sentence):
    done = build("--", spec)
    assert (done.status, done.err) == (1, f"livepatch: {sentence}\n")


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (OLD, "# -*- coding: utf-8 -*-\n" + OLD, "Nothing changes for a running process"),
        (OLD, '"""Now documented."""\n' + OLD, "Nothing changes for a running process"),
        (OLD, "def f() -> int: return 1\n", "Nothing changes for a running process"),
        (OLD, "def f(: return 2\n", "a.py:1 cannot compile the new version: invalid syntax"),
        (OLD, OLD + "def g():\n    return (\n", "a.py:3 cannot compile the new version: '(' was never closed"),
        (OLD, "def f():\n    yield 1\nreturn 2", "a.py:3 cannot compile the new version: 'return' outside function"),
        ("print 1\n", OLD, "a.py:1 cannot compile the old version"),
        (OLD, OLD + "x = '\0'\n", "a.py cannot compile the new version: source code string cannot contain null bytes"),
        (OLD, "# coding: no-such\n" + NEW, "a.py cannot compile the new version: unknown encoding: no-such"),
    ],
)
def test_no_effect_and_no_python(build, tree, tmp_path, old, new, shown):
    done = build("--old", tree("1", {"a.py": old}), "--new", tree("2", {"a.py": new}))
    assert done.status == 1
    found = done.out + done.err  # the table may be wrapped
    assert [word for word in shown.split() if word not in found] == []
    assert not (tmp_path / "fix.livepatch").exists()
