"""What people do in a mount: ordinary shell commands, with the kernel's answers."""

import errno
import os
import re

import pytest
from tests.agent.targets import eventually


def ask(service):
    service.say("ask")
    return service.hear()


def gone(mount, service):
    return eventually(lambda: not os.path.exists(mount.path / f"{service.pid}/livepatch/fix"))


def test_ls_looks_like_the_kernels(mount, patched):
    listed = mount.sh(f"ls -lR {patched.pid}/livepatch")
    sections = dict(re.findall(r"^(\S.*):\ntotal 0\n((?:.+\n)*)", listed, re.MULTILINE))
    user = f" {os.geteuid()} "
    patch = f"{patched.pid}/livepatch/fix"
    assert {
        path.removeprefix(f"{patched.pid}/livepatch"): [
            (line.split()[0], line.split()[-1]) for line in text.splitlines()
        ]
        for path, text in sections.items()
    } == {
        "": [("drwxr-xr-x", "fix")],
        "/fix": [
            ("-rw-r--r--", "enabled"),
            ("--w-------", "force"),
            ("drwxr-xr-x", "not.imported"),
            ("-r--r--r--", "replace"),
            ("-r--r--r--", "stack_order"),
            ("-r--r--r--", "transition"),
            ("drwxr-xr-x", "vmlinux"),
        ],
        "/fix/not.imported": [
            ("drwxr-xr-x", "Class.method,2"),
            ("drwxr-xr-x", "outer.<locals>.inner,1"),
            ("-r--r--r--", "patched"),
        ],
        "/fix/not.imported/Class.method,2": [],
        "/fix/not.imported/outer.<locals>.inner,1": [],
        "/fix/vmlinux": [("drwxr-xr-x", "answer,1"), ("-r--r--r--", "patched"), ("drwxr-xr-x", "slow,1")],
        "/fix/vmlinux/answer,1": [],
        "/fix/vmlinux/slow,1": [],
    }
    assert mount.sh(f"stat -c ' %u ' {patch} {patch}/enabled").split("\n")[:2] == [user, user]
    assert mount.sh(f"stat -c %s {patch}/enabled {patch}/force") == "4096\n4096\n"
    assert mount.sh(f"ls -l {patched.pid}/task/{patched.pid}").split()[2::9] == [
        "-r--r--r--",
        "-r--------",
        "-r--------",
    ]


def test_values(mount, patched):
    patch = f"{patched.pid}/livepatch/fix"
    assert mount.sh(f"cd {patch}; cat enabled transition replace stack_order") == "1\n0\n0\n1\n"
    assert mount.sh(f"cat {patch}/*/patched") == "0\n1\n", "the module is not imported, the program is there"


def test_every_way_to_read_a_file(mount, patched, tmp_path):
    file = f"{patched.pid}/livepatch/fix/enabled"
    for command in (
        "cat F",
        "cat < F",
        "head -c 10 F",
        "tail -n 1 F",
        "tail -c 2 F",
        "dd if=F bs=1 2>/dev/null",
        "dd if=F bs=4096 2>/dev/null",
        "sed p -n F",
        "grep . F",
        "cp F $TMP/copy && cat $TMP/copy",
        "cat F > $TMP/copy && cat $TMP/copy",
        "read value < F; echo $value",
        "sort F",
    ):
        assert mount.sh(command.replace("F", file).replace("$TMP", str(tmp_path))) == "1\n", command


def test_find(mount, patched):
    found = mount.sh(f"find {patched.pid}/livepatch -name '*,[0-9]' -type d | sort").split()
    assert [path.rpartition("/")[2] for path in found] == [
        "Class.method,2",
        "outer.<locals>.inner,1",
        "answer,1",
        "slow,1",
    ]
    assert mount.sh(f"find {patched.pid}/livepatch -type f -writable | sort").split() == [
        f"{patched.pid}/livepatch/fix/{name}" for name in ("enabled", "force")
    ]
    everywhere = f"find . -path './{patched.pid}/*' -name transition 2>&- || true"  # other processes end meanwhile
    assert mount.sh(everywhere) == f"./{patched.pid}/livepatch/fix/transition\n"


def test_echo_0_disables(mount, patched):
    assert ask(patched) == "new"
    mount.sh(f"echo 0 > {patched.pid}/livepatch/fix/enabled")
    assert gone(mount, patched)
    assert ask(patched) == "old"
    assert mount.sh(f"ls {patched.pid}/livepatch") == ""
    assert "No such file or directory" in mount.sh(f"cat {patched.pid}/livepatch/fix/enabled", status=1)


@pytest.mark.parametrize(
    "command",
    ["echo 0 > F", "echo 0 >> F", "echo 0 | tee F", "printf 0 > F", "printf n > F", "printf 0 | dd of=F 2>/dev/null"],
)
def test_every_way_to_write_a_file(mount, patched, command):
    mount.sh(command.replace("F", f"{patched.pid}/livepatch/fix/enabled"))
    assert gone(mount, patched)


def test_what_the_shell_says_to_a_refused_write(mount, patched, bash):
    folder = f"cd {patched.pid}/livepatch/fix; "
    for refused in ("echo 1 > enabled", "echo x > enabled", "echo > enabled", "echo 1 > force", "echo > force"):
        assert "Invalid argument" in mount.sh(folder + refused, status=1, shell=bash), refused
    for accepted in (": > enabled", "echo 0 > force", "printf '' | tee enabled force", "truncate -s 0 enabled"):
        assert mount.sh(folder + accepted) == ""
    assert mount.sh(folder + "cat enabled") == "1\n"


def test_modes_decide_for_root_as_well(mount, patched):
    folder = f"cd {patched.pid}/livepatch/fix; "
    assert "Permission denied" in mount.sh(folder + "cat force", status=1)
    for name in ("transition", "replace", "stack_order", "vmlinux/patched"):
        assert "ermission denied" in mount.sh(folder + f"exec 3> {name}", status=2)
        mount.sh(folder + f"test -w {name}", status=1)
        mount.sh(folder + f"test -r {name}")
    mount.sh(folder + "test -w enabled && test -r enabled && test -w force && test -d vmlinux && test ! -x enabled")
    mount.sh(folder + "test -r force", status=1)
    assert "ermission denied" in mount.sh(f"exec 3> {patched.pid}/task/{patched.pid}/patch_state", status=2)


def test_directories_are_no_files_and_nothing_is_made_or_removed(mount, patched):
    folder = f"cd {patched.pid}/livepatch/fix; "
    assert "Is a directory" in mount.sh(folder + "cat vmlinux", status=1)
    assert "Not a directory" in mount.sh(folder + "cat enabled/x", status=1)
    assert "No such file or directory" in mount.sh(folder + "cat nothing", status=1)
    assert "Permission denied" in mount.sh(folder + "touch nothing", status=1)
    for command in ("mkdir x", "rm -f enabled", "rmdir vmlinux", "mv enabled x", "ln -s a b", "chmod 777 enabled"):
        assert "Operation not permitted" in mount.sh(folder + command, status=1), command
    for path in ("x", "0", "1x", "99999999999", "4294967295", "+1", "01", "1"):
        assert "No such file or directory" in mount.sh(f"ls {path}", status=2), path


def test_who_blocks(mount, in_transition):
    process = in_transition.pid
    assert mount.sh(f"cat {process}/livepatch/fix/transition") == "1\n"
    (blocker,) = mount.sh(f"grep -l '^0$' {process}/task/*/patch_state").split()
    task = os.path.dirname(blocker)
    assert mount.sh(f"cat {task}/comm") == "worker\n"
    assert re.search(r"^slow \(.*:\d+\)$", mount.sh(f"cat {task}/stack"), re.MULTILINE)
    assert mount.sh(f"cat {process}/task/{process}/patch_state") == "1\n"
    in_transition.say("leave")
    eventually(lambda: mount.sh(f"cat {process}/livepatch/fix/transition") == "0\n")
    # The answer may be a few of its own durations old, and a thread may end after the shell has read its name.
    eventually(lambda: set(mount.sh(f"cat {process}/task/*/patch_state 2>/dev/null; true").split()) == {"-1"})


def test_reverse_as_often_as_one_likes(mount, in_transition):
    in_transition.say("enter")
    assert in_transition.hear() == "inside", "a thread is in the new code, too"
    folder = f"cd {in_transition.pid}/livepatch/fix; "
    for value in "01010":
        mount.sh(folder + f"echo {value} > enabled")
        assert mount.sh(folder + "cat enabled transition") == f"{value}\n1\n"
    in_transition.say("leave")
    assert gone(mount, in_transition)
    assert ask(in_transition) == "old"


def test_force(mount, in_transition):
    folder = f"cd {in_transition.pid}/livepatch/fix; "
    mount.sh(folder + "echo 0 > force")
    assert mount.sh(folder + "cat transition") == "1\n"
    mount.sh(folder + "echo 1 > force")
    eventually(lambda: mount.sh(folder + "cat transition") == "0\n")
    assert ask(in_transition) == "new"


def test_a_file_that_is_read_on_shows_what_was_there_when_its_beginning_was_read(mount, in_transition):
    with open(mount.path / f"{in_transition.pid}/livepatch/fix/transition", "rb", buffering=0) as file:
        assert file.read(1) == b"1"
        in_transition.say("leave")
        eventually(lambda: os.pread(file.fileno(), 1, 0) == b"0")
        assert file.read() == b"\n"
    folder = mount.path / f"{in_transition.pid}/livepatch/fix"
    with open(folder / "enabled", "rb", buffering=0) as file:
        mount.sh(f"echo 0 > {folder}/enabled")
        assert gone(mount, in_transition)
        with pytest.raises(OSError) as caught:
            file.read()
        assert caught.value.errno == errno.ENOENT
