"""Releases, fetched with pip from an index that is a folder: no network, and nothing of a package is run."""

import io
import tarfile
import zipfile

import pytest

from livepatch.build import from_package, from_trees
from livepatch.build.fetch import check, fetch
from livepatch.core.model import LivepatchError

#: pip takes a second or two each.
slow = pytest.mark.slow


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of releases, and pip configured to look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wheel(folder, version, members, name="lp_sample", tag="py3-none-any", requires=">=3.8"):
    info = f"{name}-{version}.dist-info"
    pure = str(tag.endswith("any")).lower()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {requires}\n"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: {pure}\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def sdist(folder, version, members, name="lp_sample", root=None):
    root = f"{name}-{version}/" if root is None else root
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\nRequires-Python: >=3.9\n"
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for member, content in {"PKG-INFO": metadata, **members}.items():
            info = tarfile.TarInfo(root + member)
            info.size = len(content.encode())
            file.addfile(info, io.BytesIO(content.encode()))
    return path


def refusal(action, *arguments):
    with pytest.raises(LivepatchError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@slow
def test_two_releases(index):
    for version in ("1.0", "1.1"):
        wheel(
            index,
            version,
            {
                "lp_sample/__init__.py": f"def f(): return {version}",
                f"lp_sample-{version}.data/purelib/lp_more.py": "x = 1",
                f"lp_sample-{version}.data/scripts/tool": version,
            },
        )
    build = from_package("LP.sample", "1.0", "1.1.0")
    assert build.distributions == ({"name": "lp_sample", "from": "1.0", "to": "1.1"},)
    assert build.version == "1.1"
    assert build.requires_python == ">=3.8"
    assert build.old.module_names() == {"lp_more", "lp_sample"}
    assert [change.name for change in build.report.changes] == ["f"]


@slow
def test_a_pure_wheel_is_preferred(index):
    wheel(index, "1", {"lp_sample.py": "pure"})
    wheel(index, "1", {"lp_sample.py": "compiled"}, tag="py3-none-linux_x86_64")
    assert fetch("lp_sample", "1").files == {"lp_sample.py": b"pure"}


@slow
def test_of_a_release_without_a_wheel_the_sources_are_taken_and_its_setup_is_not_run(index, tmp_path):
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')"
    backend = "[build-system]\nrequires = []\nbuild-backend = 'setup'\nbackend-path = ['.']\n"
    for version, build_files in {"1.0": {}, "1.1": {"pyproject.toml": backend}}.items():
        members = {"setup.py": setup, **build_files, "src/lp_sample.py": f"def f(): return {version}"}
        sdist(index, version, members)
    build = from_package("lp_sample", "1.0", "1.1")
    assert build.distributions == ({"name": "lp-sample", "from": "1.0", "to": "1.1"},)
    assert build.requires_python == ">=3.9"
    assert [change.name for change in build.report.functions] == ["f"]
    assert not ran.exists()


@slow
def test_no_such_release(index):
    assert "lp-sample 1 was not found on the package index (" in refusal(fetch, "lp-sample", "1")


@slow
def test_local_versions_and_pre_releases(index):
    for version in ("1.0rc1", "1.0+ours.2"):
        wheel(index, version, {"lp_sample.py": version})
        assert fetch("lp-sample", version).version == version


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--index-url=x", "1"), "'--index-url=x' is not the name of a package."),
        (("a b", "1"), "'a b' is not the name of a package."),
        (("", "1"), "'' is not the name of a package."),
        (("a", "-r x"), "'-r x' is not a version; they look like 2.31.0, 1.0rc1 or 1.0+local."),
        (("a", "1.x"), "'1.x' is not a version; they look like 2.31.0, 1.0rc1 or 1.0+local."),
        (("a", "1.0", "1.0.0"), "1.0 and 1.0.0 are the same release of a."),
        (("a", "1.0rc1", "1.0.RC.1"), "1.0rc1 and 1.0.RC.1 are the same release of a."),
    ],
)
def test_strange_names_and_versions(arguments, sentence):
    assert refusal(check, *arguments) == sentence


def test_releases_that_differ_only_in_what_pep_440_tells_apart():
    check("a", "1.0", "1.0+local")
    check("a", "1.0", "1!1.0")
    check("a", "1.0.post1", "1.0rc1")


def test_wheels_and_sdists_as_files(tmp_path):
    members = {"lp_sample/__init__.py": "def f(): return 1", "lp_sample/data.txt": "1", "lp_sample/util.py": "x = 1"}
    newer = {**members, "lp_sample/__init__.py": "def f(): return 2"}
    project = {"pyproject.toml": "", "tests/test_f.py": "", **members}
    old = wheel(tmp_path, "1.0", members), sdist(tmp_path, "1.0", project)
    new = wheel(tmp_path, "1.1", newer), sdist(tmp_path, "1.1", project | newer)
    for before in old:
        for after in new:
            build = from_trees(before, after)
            assert [change.name for change in build.report.changes if change.fate != "note"] == ["f"]
            assert [distribution["to"] for distribution in build.distributions] == ["1.1"]
    folder = tmp_path / "folder"
    (folder / "lp_sample").mkdir(parents=True)
    for path, content in members.items():
        (folder / path).write_text(content)
    mixed = from_trees(folder, new[0])
    assert [change.key for change in mixed.report.changes] == ["lp_sample:f"]
    assert not mixed.distributions


@pytest.mark.parametrize("path", ["../../outside.py", "/etc/x.py", "a/../../b.py", "a\\b.py", "C:/x.py"])
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path, path):
    good = wheel(tmp_path, "0", {"a.py": ""})
    assert refusal(from_trees, good, wheel(tmp_path, "1", {path: "x"})) == (
        f"lp_sample-1-py3-none-any.whl contains the path {path!r}."
    )
    assert "contains the path" in refusal(
        from_trees, good, sdist(tmp_path, "1", {path: "x"}, root="" if path[0] == "/" else "p/")
    )


def test_links_in_a_source_distribution_lead_nowhere_else(tmp_path):
    path = tmp_path / "lp_sample-1.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("lp_sample-1/lp_sample.py")
        info.size = 5
        file.addfile(info, io.BytesIO(b"x = 1"))
        for name, kind, target in (
            ("inside.py", tarfile.SYMTYPE, "lp_sample.py"),
            ("same.py", tarfile.LNKTYPE, "lp_sample-1/lp_sample.py"),
            ("outside.py", tarfile.SYMTYPE, "../../../../etc/passwd"),
            ("absolute.py", tarfile.SYMTYPE, "/etc/passwd"),
            ("device.py", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo("lp_sample-1/" + name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    python = from_trees(path, path).old.python
    assert python == dict.fromkeys(("inside.py", "lp_sample.py", "same.py"), b"x = 1")


def damaged(tmp_path):
    whole = wheel(tmp_path, "1", {"a.py": "x" * 500}).read_bytes()
    source = sdist(tmp_path, "1", {"a.py": "x"}).read_bytes()
    yield "cut-1.whl", whole[:-40]
    yield "changed-1.whl", whole.replace(b"xxxx", b"xxxy", 1)
    yield "nothing-1.whl", b""
    yield "cut-1.tar.gz", source[:-20]
    yield "text-1.tar.gz", b"not an archive"
    yield "text-1.zip", b"not an archive"


def test_damaged_archives(tmp_path):
    good = wheel(tmp_path, "0", {"a.py": ""})
    for name, content in damaged(tmp_path):
        (tmp_path / name).write_bytes(content)
        assert refusal(from_trees, tmp_path / name, good).startswith(f"{name} is damaged: ")


def test_files_that_are_no_release(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert "a.txt is neither a folder nor a wheel (.whl) nor a" in refusal(from_trees, tmp_path / "a.txt", tmp_path)
    loose = sdist(tmp_path, "1", {"a.py": ""}, root="")
    assert "its files are not in one folder" in refusal(from_trees, loose, loose)


@pytest.mark.network
def test_a_real_package():
    build = from_package("idna", "3.6", "3.7")
    assert "check_label" in {change.name for change in build.report.functions}
    assert build.archive("idna-3.7")
