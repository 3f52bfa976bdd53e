"""Another user on the same machine, who may write to `/tmp` as everybody may.

The tests give each other's processes and folders users of their own, so they need root, and can run side by side.
"""

import os
import random
import shutil
import stat

import pytest
from tests.agent.targets import Line, Target
from tests.trust.kit import ON_THIS_MACHINE, asked, is_root

from livepatch.attach.client import Client, NotPrepared
from livepatch.core.model import LivepatchError

pytestmark = [
    pytest.mark.skipif(not is_root(), reason="other users are NOT TESTED: that needs root"),
    pytest.mark.once,
]

BECOMES = """
    import os, socket, livepatch.agent.methods, livepatch.archive.fit, livepatch.archive.openssh
    os.environ["HOME"] = "/nowhere"
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
"""

#: What tries to speak to an agent, and tells what it hears.
ATTACKER = (
    BECOMES
    + """
    def heard(path):
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            try:
                line.connect(path)
                line.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "hello"}\\n')
                return len(line.recv(1000))
            except OSError as error:
                return type(error).__name__
    while (path := hear()): say(heard(path))
"""
)


@pytest.fixture
def victim():
    """A user whose socket directory is not there yet, and is gone afterwards; the next one is an attacker's."""
    uid = random.SystemRandom().randrange(20_000, 60_000, 2)  # others may be testing on this machine, too
    directory = f"/tmp/livepatch-{uid}"
    assert not os.path.lexists(directory)
    yield uid
    if os.path.islink(directory):
        os.unlink(directory)
    shutil.rmtree(directory, ignore_errors=True)


def running(script, uid):
    return Target(script, arguments=(str(uid),))


AGENT = BECOMES + "    import livepatch as lp\n    say(lp.start_agent())\n    hear()\n"


def test_nobody_else_gets_in(victim):
    with running(AGENT, victim) as target, running(ATTACKER, victim + 1) as attacker:
        path = target.hear()
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        assert asked(attacker, path) == "PermissionError"
        with Line(path) as line:  # root
            assert line.call("hello")["result"]["uid"] == victim


def test_also_if_somebody_opens_the_directory_later(victim):
    """The directory keeps others out, and the kernel's word on who connects does where it does not."""
    with running(AGENT, victim) as target, running(ATTACKER, victim + 1) as attacker:
        path = target.hear()
        os.chmod(os.path.dirname(path), 0o777)
        os.chmod(path, 0o777)
        assert asked(attacker, path) in ("0", "ConnectionResetError", "BrokenPipeError")
        with Line(path) as line:
            assert line.call("list")["result"] == []


@pytest.mark.parametrize("planted", ["a directory", "an open directory of ours", "a link", "a file"])
def test_who_was_first_gets_no_socket_of_ours(victim, planted, tmp_path):
    """The name is known beforehand, and `/tmp` is everybody's."""
    directory = f"/tmp/livepatch-{victim}"
    if planted == "a link":
        os.mkdir(tmp_path / "theirs", 0o700)
        os.chown(tmp_path / "theirs", victim, victim)
        os.symlink(tmp_path / "theirs", directory)
    elif planted == "a file":
        open(directory, "w").close()
    else:
        os.mkdir(directory)
        os.chmod(directory, 0o777)
        os.chown(directory, victim + (planted == "a directory"), -1)
    script = (
        BECOMES
        + """
    import livepatch as lp
    try: lp.start_agent()
    except lp.LivepatchError as error: say(error)
    say("goes on")
    hear()
    """
    )
    try:
        with running(script, victim) as target:
            assert target.hear().endswith("; remove it, then start the agent again.")
            assert target.hear() == "goes on"
            assert planted in ("a file", "a link") or os.listdir(directory) == []
            with pytest.raises(LivepatchError):
                Client(target.pid)
    finally:
        if planted == "a file":
            os.unlink(directory)


def test_a_socket_that_leads_to_somebody_elses_process(victim):
    """Root is asked to patch the attacker's process, and would patch another: the kernel says who listens."""
    script = (
        BECOMES
        + """
    path = f"/tmp/livepatch-{os.geteuid()}"
    os.mkdir(path, 0o700)
    say("ready")
    os.symlink(hear(), f"{path}/{os.getpid()}.sock")
    say("planted")
    hear()
    """
    )
    with Target("import livepatch as lp; say(lp.start_agent()); hear()") as roots, running(script, victim) as attacker:
        path = roots.hear()
        attacker.hear()
        assert asked(attacker, path) == "planted"
        with pytest.raises(NotPrepared):
            Client(attacker.pid)


def test_installed_patches_of_another_user_do_not_count(victim, machine):
    """A service of root whose HOME is a user's, as sudo may leave it."""
    file = machine.archive()
    place = machine.data / "0001-fix.livepatch"
    place.write_bytes(file.read_bytes())
    os.chown(machine.data, victim, victim)
    with machine.service() as target:
        assert asked(target) == "old"
        assert f"{machine.data} belongs to user {victim}, and neither to root nor to user 0" in asked(target, "log")
    os.chown(machine.data, 0, 0)
    os.chown(place, victim, victim)
    with machine.service() as target:
        assert asked(target) == "old"
        assert f"{place} belongs to user {victim}" in asked(target, "log")


def test_rules_that_a_user_may_not_read_let_nothing_in(victim, machine):
    """The machine may be strict, and this user cannot know."""
    (machine.etc / "config.toml").write_text("strict = true\n")
    (machine.etc / "config.toml").chmod(0o600)
    for folder in (machine.etc, *machine.etc.parents):
        if str(folder) == "/tmp":
            break
        folder.chmod(0o755)
    script = (
        ON_THIS_MACHINE
        + BECOMES
        + """
    from livepatch.core.model import LivepatchError
    try: policy.require(b"PK", "fix.livepatch")
    except LivepatchError as error: say(error)
    """
    )
    with Target(script, arguments=(str(victim),), env=machine.env) as target:
        assert target.hear() == f"{machine.etc}/config.toml cannot be read: Permission denied."
