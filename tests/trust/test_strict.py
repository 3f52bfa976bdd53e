"""Strict mode is kept by the process that the code goes into, whatever that process has done to itself."""

import base64
import errno
import os
import textwrap

import pytest
from tests.agent.targets import Line, Target
from tests.trust.kit import NEW, ON_THIS_MACHINE, asked, is_root, needs_ssh

from livepatch.archive import format, policy, seal
from livepatch.core.model import LivepatchError

pytestmark = [needs_ssh, pytest.mark.once]


@pytest.fixture
def signed(lp, machine, key):
    file = machine.archive()
    assert lp("sign", file, "--key", key.path).status == 0
    return file


def sent(target, file, method="load"):
    """What the agent says to a client that asks nobody before it sends a file."""
    with Line(f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock") as line:
        data = base64.b64encode(file.read_bytes()).decode()
        return line.call(method, file=file.name, data=data)


def refused(reply):
    data = reply["error"]["data"]
    assert data["symbol"] == "EKEYREJECTED", data
    return data["sentence"]


def test_only_what_an_allowed_signer_has_signed(lp, machine, signed, key, other_key):
    machine.strict(machine.etc, key.line())
    unsigned = machine.archive("plain")
    strangers = machine.archive("strangers")
    assert lp("sign", strangers, "--key", other_key.path).status == 0
    with machine.service() as target:
        assert asked(target) == "old"
        for method in ("load", "check"):
            assert "The archive is not signed" in refused(sent(target, unsigned, method))
            assert "is not an allowed signer's" in refused(sent(target, strangers, method))
        assert asked(target) == "old"
        assert sent(target, signed)["result"]["enabled"] is True
        assert asked(target) == "new"


def test_by_hand_is_never_signed(machine, key):
    """And is not executed, either: `check` would."""
    machine.strict(machine.etc, key.line())
    file = machine.root / "fix.py"
    file.write_text(f"open({str(machine.root / 'executed')!r}, 'w')\n")
    with machine.service() as target:
        for method in ("load", "check"):
            assert "written by hand cannot be signed" in refused(sent(target, file, method))
    assert not (machine.root / "executed").exists()


def test_the_command_asks_first(lp, machine, key):
    """By the rules that hold where the command runs; the process may have others."""
    machine.strict(machine.config, key.line())
    with machine.service(XDG_CONFIG_HOME="/nowhere") as target:
        asked(target)
        done = lp("load", machine.archive(), "--pid", target.pid)
        assert done.status == 1
        assert done.err.startswith(f"livepatch: {machine.config}/config.toml says strict, and fix.livepatch is refused")
        assert asked(target) == "old"


def test_from_the_command_line(lp, machine, signed, key):
    machine.strict(machine.etc, key.line())
    with machine.service() as target:
        asked(target)
        assert lp("check", signed, "--pid", target.pid).status == 0
        assert lp("load", signed, "--pid", target.pid).status == 0
        assert asked(target) == "new"
        assert lp("disable", "fix", "--pid", target.pid).status == 0  # taking back needs no signature
        assert asked(target) == "old"


def test_the_users_rules_and_the_machines(machine, signed, key, other_key):
    machine.strict(machine.config, other_key.line())
    with machine.service() as target:
        asked(target)
        assert "config/livepatch/config.toml says strict" in refused(sent(target, signed))
        (machine.etc / "allowed_signers").write_text(key.line() + "\n")  # these count for the user, too
        assert "result" in sent(target, signed)


def test_a_user_cannot_relax_the_machines_rules(machine, signed, key, other_key):
    machine.strict(machine.etc, other_key.line())
    (machine.config / "config.toml").write_text("strict = false\n")
    (machine.config / "allowed_signers").write_text(key.line() + "\n")
    mine = machine.config / "allowed_signers"
    with machine.service(LIVEPATCH_ALLOWED_SIGNERS=str(mine)) as target:
        asked(target)
        assert "etc/config.toml says strict" in refused(sent(target, signed))


def test_one_process_by_its_environment(machine, signed, key, other_key):
    """As it was at the start: a program that clears its environment relaxes nothing."""
    signers = machine.root / "signers"
    signers.write_text(other_key.line() + "\n")
    script = ON_THIS_MACHINE + (
        "    import livepatch as lp\n    os.environ.clear()\n    lp.start_agent()\n    say('ready')\n    hear()"
    )
    with Target(script, env=machine.env | {"LIVEPATCH_ALLOWED_SIGNERS": str(signers)}) as target:
        target.hear()
        assert "LIVEPATCH_ALLOWED_SIGNERS says strict" in refused(sent(target, signed))


#: What programs do to themselves that is about child processes.
UPSET = {
    "children are reaped by the system": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "children are reaped by a handler": """
        import signal
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError: pass
        signal.signal(signal.SIGCHLD, reap)
        def wait():
            while True:
                try: os.waitpid(-1, 0)
                except ChildProcessError: time.sleep(0.001)
        threading.Thread(target=wait, daemon=True).start()
    """,
    "no descriptor is where it should be": "[os.open('/dev/null', 0) for _ in range(50)]",
    "standard descriptors are closed": "keep = os.dup(2); os.close(2)",
    "the path is gone": "os.environ['PATH'] = ''",
    "ssh-keygen is somebody else's": """
        import tempfile
        folder = tempfile.mkdtemp()
        with open(folder + "/ssh-keygen", "w") as file: file.write("#!/bin/sh\\nexit 0\\n")
        os.chmod(folder + "/ssh-keygen", 0o755)
        os.environ["PATH"] = folder
    """,
    "there is no folder to write to": "os.environ['TMPDIR'] = '/nowhere'; os.chdir('/proc')",
    "fork handlers fail": "os.register_at_fork(before=lambda: 1 / 0)",
    "greenlets have replaced everything": "from gevent import monkey; monkey.patch_all()",
    "subprocess is another": "import subprocess; subprocess.Popen = None",
}


@pytest.mark.parametrize("upset", UPSET)
def test_in_programs_that_wait_for_any_child(machine, signed, key, other_key, upset):
    """The exit status of ssh-keygen may be lost, and who takes that for success lets anything in."""
    machine.strict(machine.etc, key.line())
    bad = machine.archive("bad", new=NEW.replace("new", "evil"))
    bad.write_bytes(altered(signed, bad))
    script = (
        textwrap.dedent(ON_THIS_MACHINE)
        + textwrap.dedent(UPSET[upset])
        + textwrap.dedent("""
        sys.path.insert(0, os.environ["TEST_SOURCE"])
        import shop, livepatch as lp
        lp.start_agent()
        say("ready")
        while hear(): say(shop.price())
    """)
    )
    with Target(script, env=machine.env) as target:
        assert target.hear() == "ready"
        refused(sent(target, bad))
        assert asked(target) == "old"
        assert "result" in sent(target, signed)
        assert asked(target) == "new"


def altered(signed, other):
    """The signature of one archive in another one."""
    signature = format.unpack(signed.read_bytes())["SIGNATURE"]
    return seal.with_signature(other.read_bytes(), signature)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("strict = \n", "is not TOML, so that nothing is let in"),
        ("strict = 'yes'\n", "has strict = 'yes', and knows only strict and refuse_start"),
        ("strikt = true\n", "has strikt = True, and knows only"),
        ("\xff", "is not TOML"),
    ],
)
def test_rules_that_cannot_be_understood_let_nothing_in(machine, signed, text, words):
    (machine.etc / "config.toml").write_bytes(text.encode("latin-1"))
    with machine.service() as target:
        asked(target)
        assert words in sent(target, signed)["error"]["data"]["sentence"]
        assert asked(target) == "old"


def test_rules_in_other_hands_let_nothing_in(machine, signed):
    path = machine.etc / "config.toml"
    path.write_text("strict = false\n")
    path.chmod(0o666)
    with machine.service() as target:
        asked(target)
        assert "can be written to by other users" in sent(target, signed)["error"]["data"]["sentence"]
        path.chmod(0o644)
        assert "result" in sent(target, signed)


@pytest.mark.skipif(not is_root(), reason="needs root to give a file away")
def test_rules_of_another_user_let_nothing_in(machine, monkeypatch):
    path = machine.config / "config.toml"
    path.write_text("strict = false\n")
    os.chown(path, 65534, -1)
    with pytest.raises(LivepatchError, match="belongs to user 65534, and neither to root nor to user 0"):
        policy.policy()


def test_without_ssh_keygen_nothing_is_let_in(machine, signed, key):
    machine.strict(machine.etc, key.line())
    script = (
        ON_THIS_MACHINE
        + """
    from livepatch.archive import openssh
    openssh.FOLDERS, os.environ["PATH"] = (), "/nowhere"
    import livepatch as lp
    lp.start_agent()
    say("ready")
    hear()
    """
    )
    with Target(script, env=machine.env) as target:
        target.hear()
        assert "ssh-keygen, which is not there" in refused(sent(target, signed))


def test_the_errno_of_the_kernel(machine, key):
    machine.strict(machine.etc, key.line())
    with pytest.raises(LivepatchError) as caught:
        policy.require(machine.archive().read_bytes(), "fix.livepatch")
    assert caught.value.errno == errno.EKEYREJECTED
    assert "\n" not in str(caught.value)
