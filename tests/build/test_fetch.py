"""Releases, fetched with pip from an index that is a folder: no network, and nothing of a package is run."""

import io
import tarfile
import zipfile

import pytest

from livepatch.build import from_package
from livepatch.build.fetch import fetch
from livepatch.core.model import LivepatchError

pytestmark = pytest.mark.slow  # pip takes a second or two each


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
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as file:
        for path, content in members.items():
            file.writestr(path, content)
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: {pure}\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")


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
    build = from_package("lp-sample", "1.0", "1.1")
    assert build.distribution == {"name": "lp_sample", "from": "1.0", "to": "1.1"}
    assert build.requires_python == ">=3.8"
    assert sorted(build.old) == ["lp_more.py", "lp_sample/__init__.py"]
    assert [change.name for change in build.report.changes] == ["f"]


def test_a_pure_wheel_is_preferred(index):
    wheel(index, "1", {"lp_sample.py": "pure"})
    wheel(index, "1", {"lp_sample.py": "compiled"}, tag="py3-none-linux_x86_64")
    assert fetch("lp_sample", "1").files == {"lp_sample.py": b"pure"}


def test_a_release_without_a_wheel_is_refused_and_its_setup_is_not_run(index, tmp_path):
    ran = tmp_path / "ran"
    with tarfile.open(index / "lp_sample-1.tar.gz", "w:gz") as file:
        for name, content in {
            "setup.py": f"open({str(ran)!r}, 'w')",
            "PKG-INFO": "Name: lp_sample\nVersion: 1\n",
        }.items():
            info = tarfile.TarInfo(f"lp_sample-1/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content.encode()))
    with pytest.raises(LivepatchError, match=r"No wheel of lp_sample 1 .* use --old and --new"):
        fetch("lp_sample", "1")
    assert not ran.exists()


def test_a_wheel_that_leads_out_of_its_folder_is_refused(index):
    wheel(index, "1", {"../../outside.py": "x"})
    with pytest.raises(LivepatchError, match="contains the path"):
        fetch("lp_sample", "1")


@pytest.mark.parametrize(("name", "version"), [("--index-url=x", "1"), ("a", "-r x"), ("a b", "1"), ("", "")])
def test_strange_names(name, version):
    with pytest.raises(LivepatchError, match="is not the name of a package and a version"):
        fetch(name, version)


@pytest.mark.network
def test_a_real_package():
    build = from_package("idna", "3.6", "3.7")
    assert "check_label" in {change.name for change in build.report.functions}
    assert {change.module for change in build.report.refused} == {"idna.idnadata"}
    assert build.narrowed(exclude=["idna.idnadata"]).archive("idna-3.7")
