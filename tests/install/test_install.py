"""`livepatch install`, `uninstall` and `list --installed`: files, and nothing half done."""

import os

import pytest
from tests.trust.kit import needs_ssh

pytestmark = pytest.mark.once


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_from_install_to_uninstall(lp, machine):
    file = machine.archive(version="1.1")
    done = lp("install", file, "--user")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"'fix' is installed as {machine.data}/0001-fix.livepatch.\n"
    assert (machine.data / "0001-fix.livepatch").read_bytes() == file.read_bytes()
    assert (machine.data / "0001-fix.livepatch").stat().st_mode & 0o777 == 0o644
    assert lp("install", machine.archive("two"), "--system").status == 0
    assert names(machine.var) == ["0001-two.livepatch"]
    listed = lp("list", "--installed")
    assert [line.split()[0] for line in listed.out.splitlines()] == [
        "PATCH",
        "two",
        "fix",
    ]
    assert [entry["name"] for entry in lp("list", "--installed", "--json").json] == ["two", "fix"]
    assert lp("uninstall", "fix", "--user").status == 0
    assert names(machine.data) == []
    assert lp("uninstall", "two", "--system").status == 0
    assert lp("list", "--installed") == (0, "No patch is installed.\n", "")


def test_where_it_goes_by_itself(lp, machine, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "var/0001-fix" in lp("install", machine.archive()).out
    monkeypatch.undo()


def test_they_keep_the_order_in_which_they_were_installed(lp, machine):
    for name in ("zero", "alpha", "last"):
        lp("install", machine.archive(name), "--user")
    assert names(machine.data) == ["0001-zero.livepatch", "0002-alpha.livepatch", "0003-last.livepatch"]
    lp("uninstall", "alpha", "--user")
    lp("install", machine.archive("alpha"), "--user")
    assert names(machine.data) == ["0001-zero.livepatch", "0003-last.livepatch", "0004-alpha.livepatch"]


def test_a_new_version_takes_the_place_of_the_old_one(lp, machine):
    lp("install", machine.archive("fix", version="1.1"), "--user")
    lp("install", machine.archive("other"), "--user")
    done = lp("install", machine.archive("fix", version="1.10"), "--user")
    assert "0001-fix.livepatch, in the place of version 1.1." in done.out
    assert names(machine.data) == ["0001-fix.livepatch", "0002-other.livepatch"]
    lp("install", machine.archive("plain"), "--user")
    assert lp("install", machine.archive("plain"), "--user").out.endswith(", in the place of the one that was there.\n")


def test_an_older_version_over_a_newer_one(lp, machine):
    lp("install", machine.archive("fix", version="1.10"), "--user")
    kept = (machine.data / "0001-fix.livepatch").read_bytes()
    older = machine.archive("fix", version="1.9")
    done = lp("install", older, "--user")
    assert done.status == 1
    assert f"'fix' 1.10 is installed, and {older} has the older 1.9; say --downgrade if that is meant." in done.err
    assert (machine.data / "0001-fix.livepatch").read_bytes() == kept
    assert lp("install", older, "--user", "--downgrade").status == 0


def test_what_the_file_is_called_does_not_matter(lp, machine):
    """An old one under a new name is still the old one."""
    lp("install", machine.archive("fix", version="2"), "--user")
    renamed = machine.archive("fix", version="1").rename(machine.root / "harmless.livepatch")
    assert "has the older 1" in lp("install", renamed, "--user").err
    assert names(machine.data) == ["0001-fix.livepatch"]


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"no zip at all"])
def test_what_is_no_archive_is_not_installed(lp, machine, content):
    file = machine.root / "bad.livepatch"
    file.write_bytes(content)
    done = lp("install", file, "--user")
    assert (done.status, done.out) == (1, "")
    assert "not a valid patch archive" in done.err
    assert names(machine.data) == []


def test_a_strange_name(lp, machine):
    assert lp("install", machine.archive("a strange, grässlich *one*"), "--user").status == 0
    (name,) = names(machine.data)
    assert name.isascii()
    assert lp("list", "--installed", "--json").json[0]["name"] == "a strange, grässlich *one*"
    assert lp("uninstall", "a strange, grässlich *one*", "--user").status == 0


def test_what_is_not_installed(lp, machine):
    done = lp("uninstall", "nothing", "--user")
    assert done.status == 1
    assert "No patch 'nothing' is installed in " in done.err
    machine.data.rmdir()
    assert "No patch is installed: there is no " in lp("uninstall", "nothing", "--user").err


def test_uninstall_finds_it(lp, machine, monkeypatch):
    """Root installs for all, and may have installed one for itself."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lp("install", machine.archive("mine"), "--user")
    lp("install", machine.archive("both"), "--user")
    assert lp("uninstall", "mine").status == 0
    assert names(machine.data) == ["0002-both.livepatch"]
    lp("install", machine.archive("both"), "--system")
    assert lp("uninstall", "both").status == 0
    assert (names(machine.var), names(machine.data)) == ([], ["0002-both.livepatch"])
    assert lp("uninstall", "both").status == 0
    assert names(machine.data) == []
    assert lp("uninstall", "both").status == 1
    monkeypatch.undo()


def test_files_that_do_not_count_are_listed_as_such(lp, machine):
    lp("install", machine.archive("good"), "--user")
    lp("install", machine.archive("open"), "--user")
    (machine.data / "0002-open.livepatch").chmod(0o666)
    (machine.data / "0003-cut.livepatch").write_bytes(machine.archive().read_bytes()[:-9])
    (machine.data / "0004-link.livepatch").symlink_to(machine.archive())
    (machine.data / ".0005.livepatch").write_bytes(b"being written")
    (machine.data / "README").write_text("hello")
    done = lp("list", "--installed")
    assert done.status == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["PATCH", "good"]
    words = ["can be written to by other users", "not a valid patch archive", "cannot be read"]
    assert len(done.err.splitlines()) == 3
    assert all(word in line for word, line in zip(words, done.err.splitlines(), strict=True))


def test_a_full_disk_changes_nothing(lp, machine, monkeypatch):
    lp("install", machine.archive("fix", version="1"), "--user")
    before = (machine.data / "0001-fix.livepatch").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = lp("install", machine.archive("fix", version="2"), "--user")
    assert done.status == 1
    assert "No space left on device" in done.err
    assert names(machine.data) == ["0001-fix.livepatch"]
    assert (machine.data / "0001-fix.livepatch").read_bytes() == before


@needs_ssh
def test_in_strict_mode_only_what_is_signed(lp, machine, key):
    machine.strict(machine.config, key.line())
    file = machine.archive()
    assert "says strict, and fix.livepatch is refused" in lp("install", file, "--user").err
    assert names(machine.data) == []
    lp("sign", file, "--key", key.path)
    assert lp("install", file, "--user").status == 0
    assert "maker@shop" in lp("list", "--installed").out
    machine.strict(machine.config)
    assert lp("list", "--installed").status == 1
