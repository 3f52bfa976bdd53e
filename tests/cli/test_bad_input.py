"""Whatever is wrong: one sentence that says what and what to do, the right exit status, and a target that is
as it was.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE, Target, eventually

from livepatch.cli.app import run

START = "from livepatch.cli import main; main()"

OLD = """
def greet():
    return "old"
"""
NEW = OLD.replace("old", "new")

#: A prepared service that uses a module of its own, whose source the test writes.
USER = """
    sys.path.insert(0, sys.argv[1])
    if len(sys.argv) > 2: import service
    import livepatch as lp
    lp.start_agent()
    say("ready")
    while hear():
        say(service.greet() if "service" in sys.modules else "-", len(lp.patches()), *lp.dmesg())
"""


@pytest.fixture
def archive(lp, trees, tmp_path):
    """A good patch from "old" to "new"."""
    old, new = trees(OLD, NEW)
    done = lp("build", "-o", tmp_path / "fix.livepatch", "--old", old, "--new", new)
    assert done.status == 0, done.err
    return tmp_path / "fix.livepatch"


@pytest.fixture
def user(tmp_path):
    """Start a service with a module of this source, or without that module."""
    started = []

    def start(source=OLD):
        folder = tmp_path / "live"
        folder.mkdir()
        arguments = (str(folder),)
        if source is not None:
            (folder / "service.py").write_text(source)
            arguments += ("import",)
        target = Target(USER, arguments=arguments)
        started.append(target)
        assert target.hear() == "ready"
        return target

    yield start
    for target in started:
        target.kill()


def asked(target):
    target.say("?")
    return target.hear()


def changed(path, **document):
    """The archive with something else in its manifest."""
    with zipfile.ZipFile(path) as before:
        members = {name: before.read(name) for name in before.namelist()}
    members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), **document}).encode()
    written(path, members)


def written(path, members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as after:
        for name, data in members.items():
            after.writestr(name, data)
    path.write_bytes(content.getvalue())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    written(path, {"hello.txt": b"a zip, but no patch"})


def text(path):
    path.write_text("no zip at all\n")


def newer(path):
    changed(path, format=99)


def escaping(path):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../etc/evil.py", "")


def check_refusal(done, status, words):
    assert done.status == status
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("livepatch: ")
    assert re.search(words, lines[0]), done.err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "not a valid patch archive.*(damaged|truncated)"),
        (empty, "not a valid patch archive"),
        (foreign, "not a valid patch archive.*no manifest.json.*livepatch build"),
        (text, "not a valid patch archive"),
        (newer, "format 99.* format 1.*update livepatch"),
        (escaping, "not a valid patch archive.*contains the path"),
    ],
)
@pytest.mark.parametrize("command", ["load", "check", "info"])
def test_a_broken_archive(lp, archive, user, command, spoil, words):
    spoil(archive)
    target = user()
    check_refusal(lp(command, archive, *(() if command == "info" else ("--pid", target.pid))), 1, words)
    assert asked(target) == "old 0"


@pytest.mark.parametrize("command", ["load", "check"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(None, "service", id="without the module"),
        pytest.param("def greet():\n    return 'other'\n", "greet", id="with another version of the function"),
        pytest.param("def hello():\n    return 'old'\ngreet = hello\n", "greet", id="without the function"),
        pytest.param(NEW, "greet", id="patched on disk already"),
    ],
)
def test_a_process_that_it_does_not_fit(lp, archive, user, command, source, words):
    target = user(source)
    before = asked(target)
    done = lp(command, archive, "--pid", target.pid)
    if command == "check":  # which also tells what it found
        assert done.out.startswith(f"{archive.name} does not fit process {target.pid}. Found there:\n")
        done = done._replace(out="")
    check_refusal(done, 1, words)
    assert asked(target).split()[:2] == before.split()[:2]  # the log may say why


@pytest.mark.parametrize("command", ["load {}", "check {}", "list", "status", "tasks", "dmesg", "disable fix"])
def test_a_pid_that_does_not_exist(lp, archive, command):
    done = lp(*command.format(archive).split(), "--pid", 2**22 + 1)
    check_refusal(done, 4, f"There is no process {2**22 + 1}; `livepatch ps` lists the Python processes")


@pytest.mark.parametrize("command", ["load {}", "list"])
def test_a_process_that_is_no_python(lp, archive, command):
    with subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL) as sleeper:
        try:
            eventually(lambda: Path(f"/proc/{sleeper.pid}/cmdline").read_bytes().startswith(b"sleep"))
            check_refusal(lp(*command.format(archive).split(), "--pid", sleeper.pid), 4, r"\(sleep 1000\) is no Python")
        finally:
            sleeper.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("command", ["load {}", "list", "disable fix"])
def test_a_process_of_another_user(archive, user, tmp_path, command):
    target = user()
    for folder in (archive, *archive.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    with open(tmp_path / "said", "w+") as said:
        child = os.fork()
        if child == 0:
            sys.stderr = said
            os.setgid(65534)
            os.setuid(65534)
            status = run([*command.format(archive).split(), "--pid", str(target.pid)])
            said.flush()
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        said.seek(0)
        sentence = said.read()
    assert sentence == f"livepatch: Process {target.pid} belongs to user 0; run livepatch as that user or as root.\n"
    assert asked(target) == "old 0"


def test_a_process_that_is_not_prepared(lp, archive):
    with Target("say('ready'); hear()", command=[sys.executable, "-X", "disable-remote-debug"]) as target:
        target.hear()
        check_refusal(lp("load", archive, "--pid", target.pid), 4, "remote debugging disabled .*; start it without")
        check_refusal(lp("load", archive, "--pid", target.pid, "--no-attach"), 1, "has no livepatch agent")
        for command in ("disable fix", "enable fix", "force fix --yes", "unload fix", "dmesg --follow"):
            check_refusal(lp(*command.split(), "--pid", target.pid), 1, "has no livepatch agent")


def test_a_process_that_dies_during_the_load(lp, service, tmp_path):
    (tmp_path / "fix.py").write_text("import os\nos._exit(1)\n")
    check_refusal(
        lp("load", tmp_path / "fix.py", "--pid", service.pid), 4, f"Process {service.pid} ended during 'load'"
    )


def test_a_process_that_is_killed_during_the_load(service, tmp_path):
    (tmp_path / "fix.py").write_text("import __main__\n__main__.say('loading')\n__main__.leave.wait()\n")
    loading = subprocess.Popen(
        [sys.executable, "-c", START, "load", str(tmp_path / "fix.py"), "--pid", str(service.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.hear() == "loading"
    service.signal(signal.SIGKILL)
    assert loading.communicate(timeout=PATIENCE) == ("", f"livepatch: Process {service.pid} ended during 'load'.\n")
    assert loading.returncode == 4


def test_two_loads_at_once(lp, occupied, ask, patch):
    """Whichever comes second finds a transition running, and is refused; nothing of it stays."""
    files = [patch(name, "slow", "answer") for name in ("one", "two")]
    loads = [
        subprocess.Popen(
            [sys.executable, "-c", START, "load", str(file), "--pid", str(occupied.pid), "--on-stall", "keep",
             "--timeout", "0.5"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for file in files
    ]  # fmt: skip
    said = sorted((*load.communicate(timeout=PATIENCE), load.returncode) for load in loads)
    assert sorted(status for _, _, status in said) == [1, 3]
    refused = next(err for _, err, status in said if status == 1)
    assert re.fullmatch(r"livepatch: A transition of '(one|two)' is running; .*\n", refused)
    (process,) = lp("list", "--pid", occupied.pid, "--json").json
    assert [patch["transition"] for patch in process["patches"]] == [True]


def test_a_second_load_while_a_transition_runs(lp, occupied, ask, patch):
    pid = ("--pid", occupied.pid)
    assert lp("load", patch("one", "slow"), *pid, "--timeout", 0, "--on-stall", "keep").status == 3
    check_refusal(
        lp("load", patch("two", "answer"), *pid), 1, "A transition of 'one' is running; wait for it or reverse it"
    )
    assert ask() == "old"
    (process,) = lp("list", *pid, "--json").json
    assert [(patch["name"], patch["transition"]) for patch in process["patches"]] == [("one", True)]


def test_a_patch_that_is_loaded_already(lp, service, ask, patch):
    pid, file = ("--pid", service.pid), patch("fix", "answer")
    assert lp("load", file, *pid).status == 0
    check_refusal(lp("load", file, *pid), 1, "is loaded already; disable and unload it first")
    check_refusal(lp("enable", "fix", *pid), 1, "is enabled already")
    check_refusal(lp("unload", "fix", *pid), 1, "is in use; disable it first")
    check_refusal(lp("force", "fix", "--yes", *pid), 1, "is not in transition")
    assert ask() == "new"
    assert lp("disable", "fix", *pid).status == 0
    check_refusal(lp("disable", "fix", *pid), 1, "loaded but disabled")
    check_refusal(lp("enable", "fix", *pid), 1, "Only a running disable can be reversed")
    assert ask() == "old"


@pytest.mark.parametrize(
    ("value", "symbol", "words"),
    [
        ("garbage", "EINVAL", "'garbage' is neither true nor false; write 1 or 0"),
        ("2", "EINVAL", "'2' is neither true nor false"),
        ("1", "EINVAL", "Patch 'fix' is enabled already"),
        ("yes", "EINVAL", "Patch 'fix' is enabled already"),
    ],
)
def test_what_cannot_be_written_to_enabled(lp, service, ask, patch, value, symbol, words):
    from livepatch.attach.client import Client
    from livepatch.core.model import LivepatchError

    assert lp("load", patch("fix", "answer"), "--pid", service.pid).status == 0
    log = lp("dmesg", "--pid", service.pid).out
    with Client(service.pid) as client, pytest.raises(LivepatchError, match=re.escape(words)) as refused:
        client.call("write_enabled", name="fix", value=value)
    assert refused.value.symbol == symbol
    assert ask() == "new"
    assert lp("dmesg", "--pid", service.pid).out == log


def test_a_file_that_is_a_folder_or_unreadable(lp, service, tmp_path):
    assert lp("load", tmp_path, "--pid", service.pid).status == 2
    assert lp("load", tmp_path / "nothing", "--pid", service.pid).status == 2


# -- build ---------------------------------------------------------------------------------------------


def test_a_build_that_changes_nothing_writes_nothing(lp, trees, tmp_path):
    old, new = trees(OLD, '"""Documented."""\n# and commented\n' + OLD)
    done = lp("build", "-o", tmp_path / "fix.livepatch", "--old", old, "--new", new)
    assert done.status == 1
    assert "Nothing changes for a running process" in done.err
    assert not (tmp_path / "fix.livepatch").exists()


def test_a_build_that_cannot_carry_everything_writes_nothing(lp, trees, tmp_path):
    slots = "class C:\n    __slots__ = ('a',)\n"
    old, new = trees(OLD + slots, NEW + slots.replace("'a',", "'a', 'b'"))
    file = tmp_path / "fix.livepatch"
    done = lp("build", "-o", file, "--old", old, "--new", new)
    assert done.status == 1
    assert "REFUSED" in done.out
    assert "1 difference cannot be carried, so no archive was written" in done.err
    assert not file.exists()
    done = lp("build", "-o", file, "--old", old, "--new", new, "--exclude", "service:C*", "--json")
    assert done.status == 0
    assert done.json["file"] == str(file)
    assert [change["name"] for change in done.json["report"]["carried"]] == ["greet"]


def test_a_diff(lp, trees, tmp_path):
    old, _ = trees(OLD, NEW)
    diff = tmp_path / "fix.diff"
    diff.write_text(
        '--- a/service.py\n+++ b/service.py\n@@ -2,2 +2,2 @@\n def greet():\n-    return "old"\n+    return "new"\n'
    )
    done = lp("build", "-o", tmp_path / "fix.livepatch", "--diff", diff, "--src", old)
    assert done.status == 0, done.err
    assert "function greet" in lp("build", "-o", tmp_path / "fix.livepatch", "--diff", diff, "--src", old).out
    diff.write_text(diff.read_text().replace('return "old"', 'return "strange"'))
    check_refusal(lp("build", "-o", tmp_path / "two.livepatch", "--diff", diff, "--src", old), 1, "does not apply")
    diff.write_bytes(b"\xff\xfe\x00")
    check_refusal(lp("build", "-o", tmp_path / "two.livepatch", "--diff", diff, "--src", old), 1, "is no diff")
    assert not (tmp_path / "two.livepatch").exists()


def test_an_archive_that_cannot_be_written(lp, trees, tmp_path):
    old, new = trees(OLD, NEW)
    done = lp("build", "-o", tmp_path / "nowhere" / "fix.livepatch", "--old", old, "--new", new)
    assert done.status == 1
    assert done.err.endswith("No such file or directory.\n")


# -- and the good case, so that the bad ones mean something ----------------------------------------------


def test_the_good_archive(lp, archive, user):
    target = user()
    pid = ("--pid", target.pid)
    assert lp("info", archive).out.splitlines()[0] == "'fix'"
    assert lp("info", archive, "--json").json["objects"][0]["functions"][0]["name"] == "greet"
    done = lp("check", archive, *pid)
    assert (done.status, done.err) == (0, "")
    assert asked(target) == "old 0"
    done = lp("load", archive, *pid)
    assert (done.status, done.err) == (0, "")
    assert asked(target).startswith("new 1 ")
    assert lp("disable", "fix", "--unload", *pid).status == 0
    assert asked(target).startswith("old 0 ")
