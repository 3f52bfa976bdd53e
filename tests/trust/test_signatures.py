"""`livepatch sign` and `verify`: what is covered, and whose word counts."""

import json
import subprocess

import pytest
from tests.trust.kit import needs_ssh

from livepatch.archive import format, seal

pytestmark = [needs_ssh, pytest.mark.once]


@pytest.fixture
def signed(lp, machine, key):
    file = machine.archive()
    assert lp("sign", file, "--key", key.path).status == 0
    return file


@pytest.fixture
def signers(machine, key):
    path = machine.root / "signers"
    path.write_text(f"# who may\n{key.line()}\n")
    return path


def test_who_has_signed(lp, signed, signers):
    done = lp("verify", signed, "--allowed-signers", signers)
    assert done.status == 0
    assert done.out.startswith(f"'fix' in {signed} is signed by maker@shop, key SHA256:")
    assert lp("verify", signed, "--allowed-signers", signers, "--json").json["signer"] == "maker@shop"
    assert "has a signature" in lp("info", signed).out
    assert lp("info", signed, "--json").json["signed"] is True


def test_a_signature_changes_nothing_else(machine, signed):
    unsigned = machine.archive("fix")  # written anew, in its place
    again = format.read(unsigned.read_bytes())
    unsigned.write_bytes(seal.with_signature(unsigned.read_bytes(), b"x"))
    assert format.read(unsigned.read_bytes()) == again


def test_it_can_be_made_and_checked_by_hand(machine, signed, signers, tmp_path):
    """What is signed is what sha256sum prints: nothing of livepatch is needed to check it."""
    subprocess.run(["python3", "-m", "zipfile", "-e", str(signed), str(tmp_path / "out")], check=True)
    (tmp_path / "out" / "SIGNATURE").rename(tmp_path / "sig")
    names = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    command = ["sha256sum", *map(str, names)]
    text = subprocess.run(command, cwd=tmp_path / "out", check=True, capture_output=True).stdout
    assert text == seal.text_of(signed.read_bytes())
    command = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-n",
        "livepatch",
        "-I",
        "maker@shop",
        "-f",
        signers,
        "-s",
        tmp_path / "sig",
    ]
    assert subprocess.run(command, input=text, capture_output=True).returncode == 0


def test_signing_again_replaces_the_signature(lp, signed, signers, other_key):
    assert lp("sign", signed, "--key", other_key.path).status == 0
    assert lp("verify", signed, "--allowed-signers", signers).status == 1
    signers.write_text(f"{other_key.line()}\n")
    assert lp("verify", signed, "--allowed-signers", signers).status == 0


def test_an_unsigned_one(lp, machine, signers):
    done = lp("verify", machine.archive(), "--allowed-signers", signers)
    assert (done.status, done.err) == (1, "livepatch: The archive is not signed; `livepatch sign` does that.\n")


@pytest.mark.parametrize("member", ["manifest.json", "old/shop.py", "new/shop.py", "hooks.py"])
def test_every_member_is_covered(lp, signed, signers, member):
    members = format.unpack(signed.read_bytes())
    if member == "manifest.json":
        members[member] = members[member].replace(b'"name": "fix"', b'"name": "fux"')
    else:
        members[member] = members.get(member, b"import livepatch\n__livepatch__ = {}\n") + b"# and more\n"
    signed.write_bytes(format.pack(members))
    format.read(signed.read_bytes())  # for those who do not ask it is a good archive
    done = lp("verify", signed, "--allowed-signers", signers)
    assert done.status == 1
    assert "it was altered" in done.err


@pytest.mark.parametrize("member", ["hooks.py"])
def test_a_member_that_was_left_out_is_missed(lp, machine, key, signers, member):
    hooks = b"import livepatch\n__livepatch__ = {'shop': livepatch.Callbacks()}\n"
    file = machine.archive(hooks=hooks)
    assert lp("sign", file, "--key", key.path).status == 0
    members = format.unpack(file.read_bytes())
    del members[member]
    file.write_bytes(format.pack(members))
    assert "it was altered" in lp("verify", file, "--allowed-signers", signers).err


@pytest.mark.parametrize(
    "signature", [b"", b"x", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"]
)
def test_a_signature_that_is_none(lp, machine, signers, signature):
    file = machine.archive()
    file.write_bytes(seal.with_signature(file.read_bytes(), signature))
    done = lp("verify", file, "--allowed-signers", signers)
    assert done.status == 1
    assert "it was altered" in done.err


def test_a_signature_for_something_else(lp, machine, key, signers):
    """The same key signs mails and commits."""
    file = machine.archive()
    command = ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(key.path)]
    made = subprocess.run(command, input=seal.text_of(file.read_bytes()), capture_output=True, check=True)
    file.write_bytes(seal.with_signature(file.read_bytes(), made.stdout))
    assert lp("verify", file, "--allowed-signers", signers).status == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('namespaces="git"', "not permitted for use in signature namespace"),
        ('valid-before="20200101"', "key has expired"),
        ('valid-after="20990101"', "not yet valid"),
        ("nonsense", "bad options"),
    ],
)
def test_what_the_list_of_signers_says_counts(lp, signed, signers, key, options, words):
    signers.write_text(f"{key.line(options)}\n")
    done = lp("verify", signed, "--allowed-signers", signers)
    assert done.status == 1
    assert words in done.err


def test_a_key_with_limits_that_are_kept(lp, signed, signers, key):
    signers.write_text(key.line('namespaces="git,livepatch",valid-after="20200101"') + "\n")
    assert lp("verify", signed, "--allowed-signers", signers).status == 0


def test_whom_verify_asks_by_itself(lp, machine, signed, key, other_key):
    done = lp("verify", signed)
    assert done.status == 1
    assert "Nobody may sign archives: there is no " in done.err
    (machine.config / "allowed_signers").write_text(f"{key.line()}\n")
    assert lp("verify", signed).status == 0
    # The machine is strict: then the user's own list does not count.
    machine.strict(machine.etc, other_key.line())
    assert lp("verify", signed).status == 1
    machine.strict(machine.etc, key.line())
    assert lp("verify", signed).status == 0


def test_a_list_in_other_hands_is_not_believed(lp, machine, signed, key):
    path = machine.config / "allowed_signers"
    path.write_text(f"{key.line()}\n")
    path.chmod(0o666)
    assert f"{path} can be written to by other users" in lp("verify", signed).err
    path.chmod(0o644)
    machine.config.chmod(0o777)
    assert f"{machine.config} can be written to by other users" in lp("verify", signed).err
    machine.config.chmod(0o755)
    path.rename(machine.root / "elsewhere")
    path.symlink_to(machine.root / "elsewhere")
    assert f"{path} cannot be read" in lp("verify", signed).err


def test_a_key_that_cannot_sign(lp, machine, signers):
    file = machine.archive()
    before = file.read_bytes()
    done = lp("sign", file, "--key", signers)
    assert done.status == 1
    assert done.err.startswith(f"livepatch: {file} was not signed: ")
    assert file.read_bytes() == before
    assert [path.name for path in machine.root.iterdir() if path.name.startswith(".")] == []


def test_what_is_no_archive_is_not_signed(lp, machine, key):
    file = machine.root / "fix.py"
    file.write_text("__livepatch__ = None\n")
    assert "not a valid patch archive" in lp("sign", file, "--key", key.path).err
    file.write_bytes(format.pack({"manifest.json": b"{}"}))
    assert lp("sign", file, "--key", key.path).status == 1


def test_without_ssh_keygen(lp, machine, signed, signers, monkeypatch):
    monkeypatch.setattr("livepatch.archive.openssh.FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    done = lp("verify", signed, "--allowed-signers", signers)
    assert done.status == 1
    assert "ssh-keygen, which is not there; install OpenSSH's client" in done.err
    assert "ssh-keygen is not there" in lp("sign", signed, "--key", signers).err


def test_the_manifest_says_what_is_signed(signed):
    """The name that an operator sees is the signed one, not that of the file."""
    assert json.loads(format.unpack(signed.read_bytes())["manifest.json"])["name"] == "fix"
