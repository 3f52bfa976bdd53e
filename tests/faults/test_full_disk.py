"""A disk that is really full, or has room for a part of it only: one sentence, nothing half written, and what was there
before stays. A tmpfs of a few pages in a mount namespace of the test's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import Target
from tests.build.test_fetch import wheel
from tests.cli.conftest import SERVICE
from tests.trust.kit import Key, Machine, needs_ssh

import livepatch
from livepatch.observe import audit

pytestmark = pytest.mark.once

ALONE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
_tried = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
needs_mount = pytest.mark.skipif(
    _tried.returncode != 0, reason="a full disk is NOT TESTED: nothing may be mounted here"
)

#: On a disk of 16 pages: copies `before` there, fills it but for some pages, carries out a command, and tells what is
#: there then, and what the command said.
ON_A_FULL_DISK = """
import errno, json, os, pathlib, shutil, subprocess, sys
disk, room, before, command = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
for source, target in before.items():
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
reserve = pathlib.Path(disk, "reserve")
reserve.write_bytes(b"x" * 4096 * room)
with open(os.path.join(disk, "filler"), "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096): pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
reserve.unlink()
done = subprocess.run(command, capture_output=True, text=True, timeout=300)
found = {str(path.relative_to(disk)): path.read_bytes().hex()
         for path in pathlib.Path(disk).rglob("*") if path.is_file() and path.name != "filler"}
print(json.dumps([done.returncode, done.stdout, done.stderr, found]))
"""
#: More than a page in an archive, however it is compressed.
LARGE = "def price():\n    return 'new'\nTEXT = '" + os.urandom(8000).hex() + "'\n"


class Disk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, room, *command, before=None, env=None):
        """Carry out a command while there is room for so many pages; `before` are files to be copied there first."""
        whole = [sys.executable, "-m", "livepatch", *map(str, command)]
        copied = {str(source): str(self.folder / name) for name, source in (before or {}).items()}
        source = os.path.dirname(os.path.dirname(livepatch.__file__))
        arguments = [str(self.folder), str(room), json.dumps(copied), json.dumps(whole)]
        done = subprocess.run(
            [*ALONE, sys.executable, "-c", ON_A_FULL_DISK, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": source, "LIVEPATCH_AUDIT": "none", **(env or {})},
        )
        assert done.returncode == 0, done.stderr
        status, out, err, found = json.loads(done.stdout)
        return status, out, err, {name: bytes.fromhex(content) for name, content in found.items()}

    def full(self, name):
        return f"livepatch: {self.folder / name}: No space left on device.\n"


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "disk")


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine")


both = pytest.mark.parametrize("room", [0, 1])


@needs_mount
@both
def test_install_keeps_the_old_one(disk, machine, room):
    old = machine.archive(version="1").rename(machine.root / "old.livepatch")
    before = {"livepatch/0001-fix.livepatch": old}
    kept = {"livepatch/0001-fix.livepatch": old.read_bytes()}
    new = machine.archive(new=LARGE, version="2")
    status, out, err, found = disk(room, "install", new, "--user", before=before, env={"XDG_DATA_HOME": disk.folder})
    assert (status, out, err) == (1, "", disk.full("livepatch/0001-fix.livepatch"))
    assert found == kept


@needs_ssh
@needs_mount
@both
def test_sign_keeps_the_unsigned_one(disk, machine, tmp_path, room):
    archive = machine.archive(new=LARGE)
    key = Key(tmp_path, "maker")
    status, out, err, found = disk(
        room, "sign", disk.folder / "fix.livepatch", "--key", key.path, before={"fix.livepatch": archive}
    )
    assert (status, out, err) == (1, "", disk.full("fix.livepatch"))
    assert found == {"fix.livepatch": archive.read_bytes()}


@needs_mount
@both
def test_build_writes_nothing(disk, machine, room):
    """Also if the archive is already there, and only the report does not fit."""
    machine.archive(new=LARGE)
    trees = machine.root / "trees" / "fix"
    earlier = {"fix.livepatch": trees / "old" / "shop.py"}
    source = ["--old", trees / "old", "--new", trees / "new"]
    report = ["--report", disk.folder / "report.html"]
    status, _, err, found = disk(room, "build", "-o", disk.folder / "fix.livepatch", *source, before=earlier)
    assert (status, err) == (1, disk.full("fix.livepatch"))
    assert found == {"fix.livepatch": (trees / "old" / "shop.py").read_bytes()}
    elsewhere = machine.root / "elsewhere.livepatch"
    status, _, err, found = disk(room, "build", "-o", elsewhere, *source, *report)
    assert (status, err) == (1, disk.full("report.html"))
    assert found == {}
    assert not elsewhere.exists()
    assert not list(machine.root.glob(".elsewhere*"))


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 12])
def test_a_release_that_does_not_fit_where_it_is_fetched(disk, tmp_path, room):
    """It is said that there is no room, and not that there is no such release, or that it is damaged: pip leaves a part
    of the file there. Where there is no room at all, Python takes another folder.
    """
    index, made = tmp_path / "index", tmp_path / "fix.livepatch"
    index.mkdir()
    for version in ("1.0", "1.1"):
        data = "".join(f"T{number} = '{os.urandom(8000).hex()}'\n" for number in range(8))
        wheel(index, version, {"lp_sample/__init__.py": f"def f(): return {version}\n{data}"})
    env = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": "/dev/null",
        "TMPDIR": str(disk.folder),
    }
    status, _, err, found = disk(room, "build", "lp-sample==1.0..1.1", "-o", made, env=env)
    assert status == 1
    assert err == (
        f"livepatch: There is no room for lp-sample 1.0 in {disk.folder}; make room there, or name another folder with"
        " TMPDIR.\n"
    )
    assert found == {}
    assert not made.exists()


@needs_mount
@both
def test_a_load_is_done_although_its_report_and_its_record_have_no_room(disk, tmp_path, room):
    """The process must not be left in the middle for that."""
    patch = tmp_path / "fix.py"
    patch.write_text(
        "import livepatch as lp\ndef answer(): return 'new'\n"
        "__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('answer', answer)])])\n"
    )
    report, record = disk.folder / "report.html", disk.folder / "audit.jsonl"
    earlier = {"report.html": patch}
    with Target(SERVICE) as service:
        assert service.hear() == "ready"
        command = ["load", patch, "--pid", service.pid, "--report", report]
        env = {"LIVEPATCH_AUDIT": str(record)}
        status, out, err, found = disk(room, *command, before=earlier, env=env)
        service.say("ask")
        assert (status, service.hear()) == (0, "new"), err
    assert "is loaded into process" in out
    words = err.splitlines()
    assert f"livepatch: The report could not be written: {report}: No space left on device." in words
    assert found["report.html"] == patch.read_bytes()
    if room == 0:
        assert found.get("audit.jsonl", b"") == b""
        assert sum("This is not in the audit record, which cannot be written: " in line for line in words) == 2
    for line in found.get("audit.jsonl", b"").splitlines():
        assert json.loads(line)["prev"]


@needs_mount
def test_the_audit_record_of_a_full_disk_can_be_read(disk, machine):
    file = machine.root / "audit.jsonl"
    for number in range(3):
        audit.append(str(file), {"number": number})
    status, out, err, found = disk(0, "audit", "--verify", "--file", disk.folder / "a", before={"a": file})
    assert (status, err) == (0, "")
    assert "3 records, each follows from the one before" in out
    assert found == {"a": file.read_bytes()}
