"""The file: a chain that shows what was done to it, whoever writes at the same time, whatever interrupts them."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from livepatch.core.model import LivepatchError
from livepatch.observe import audit

WRITER = """
import sys
from livepatch.observe import audit
for number in range(int(sys.argv[2])):
    audit.append(sys.argv[1], {"writer": sys.argv[3], "number": number, "padding": "x" * (number % 7 * 1000)})
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "audit.jsonl"


def written(file, count=5):
    for number in range(count):
        audit.append(str(file), {"number": number})
    return file.read_bytes().splitlines(keepends=True)


def problems(file):
    return [line.problem for line in audit.read(str(file)) if line.problem]


def test_it_begins_with_nothing_and_each_follows_the_one_before(file):
    written(file)
    assert problems(file) == []
    lines = audit.read(str(file))
    assert [line.record["number"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.record["prev"] for line in lines] == [audit.BEGINNING, *(line.hash for line in lines[:-1])]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_changed_byte_is_found_wherever_it_is(file):
    lines = written(file)
    whole = b"".join(lines)
    last = len(whole) - len(lines[-1])
    for at in range(0, last, 3):
        if whole[at : at + 1] == b"\n":
            continue
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert problems(file), whole[at - 5 : at + 5]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:2] + lines[3:], id="removed"),
        pytest.param(lambda lines: lines[1:], id="the first removed"),
        pytest.param(lambda lines: lines[:2] + [lines[1]] + lines[2:], id="repeated"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], id="in another order"),
        pytest.param(
            lambda lines: [lines[0], lines[1].replace(b'"number":1', b'"number":7'), *lines[2:]], id="changed"
        ),
        pytest.param(lambda lines: [*lines[:3], b'{"number":9,"prev":"0"}\n', *lines[3:]], id="put in"),
        pytest.param(lambda lines: [*lines[:3], b"\n", *lines[3:]], id="an empty line"),
    ],
)
def test_what_was_done_to_it_is_found(file, change):
    file.write_bytes(b"".join(change(written(file))))
    assert problems(file)


def test_what_was_cut_off_at_the_end_is_found_by_who_has_kept_a_hash(file, lp):
    lines = written(file)
    head = lp("audit", "--verify", "--file", file, "--json").json["head"]
    assert lp("audit", "--verify", "--file", file, "--contains", head).status == 0
    written(file, 1)
    assert lp("audit", "--verify", "--file", file, "--contains", head).status == 0  # it has only grown
    file.write_bytes(b"".join(lines[:-1]))
    assert lp("audit", "--verify", "--file", file).status == 0  # the chain alone cannot tell
    done = lp("audit", "--verify", "--file", file, "--contains", head)
    assert done.status == 1
    assert f"no record has the hash {head}" in done.err


def test_several_write_at_a_time(file):
    """Without the lock two would follow the same line."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), "40", str(number)]) for number in range(6)]
    assert [writer.wait(120) for writer in writers] == [0] * 6
    assert problems(file) == []
    found = [(line.record["writer"], line.record["number"]) for line in audit.read(str(file))]
    assert len(found) == len(set(found)) == 240
    for writer in map(str, range(6)):
        assert [number for who, number in found if who == writer] == [*range(40)]


def test_what_an_interrupted_write_left_is_told_and_stays(file):
    lines = written(file, 3)
    with file.open("ab") as torn:
        torn.write(b'{"number":3,"pr')
    written(file, 2)
    assert file.read_bytes().startswith(b"".join(lines) + b'{"number":3,"pr\n')
    assert problems(file) == ["line 4 is no record: it was changed, or its writing was cut off"]


def test_a_full_disk_leaves_no_half_of_a_line(file):
    lines = written(file, 3)
    script = """
import resource, signal, sys
from livepatch.observe import audit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    audit.append(sys.argv[1], {"number": 3, "padding": "x" * 1000})
except OSError as error:
    print(error)
"""
    room = len(b"".join(lines)) + 100  # for a part of it
    done = subprocess.run([sys.executable, "-c", script, str(file), str(room)], capture_output=True, text=True)
    assert done.stdout.startswith(str(file)), done.stderr
    assert file.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "writable"])
def test_a_file_that_is_not_to_be_believed_is_not_written_to(tmp_path, what):
    file, other = tmp_path / "audit.jsonl", tmp_path / "other"
    other.write_text("")
    if what == "link":
        file.symlink_to(other)
    elif what == "fifo":
        os.mkfifo(file, 0o600)
    elif what == "folder":
        file.mkdir()
    else:
        file.write_text("")
        file.chmod(0o666)
    with pytest.raises(LivepatchError) as refused:
        audit.append(str(file), {})
    assert str(file) in str(refused.value)
    assert other.read_text() == ""


def test_who_keeps_the_file_locked_holds_nobody_up_for_ever(file, monkeypatch):
    monkeypatch.setattr(audit, "_PATIENCE", 0.1)
    written(file, 1)
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LivepatchError) as refused:
            audit.append(str(file), {})
    assert refused.value.errno == errno.ETIMEDOUT


def test_a_record_that_waited_while_the_file_was_rotated_goes_into_the_new_one(file):
    written(file, 1)
    waits = threading.Thread(target=lambda: audit.append(str(file), {"number": "new"}))
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits.start()
        while not _waits_for(file):
            time.sleep(0.01)
        file.rename(file.with_suffix(".1"))
    waits.join()
    assert len(file.with_suffix(".1").read_text().splitlines()) == 1
    assert json.loads(file.read_text()) == {"number": "new", "prev": audit.BEGINNING}


def _waits_for(file):
    """Somebody of this process has the file open for writing."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == str(file) and _flags(number) & os.O_APPEND:
                return True
        except OSError:
            continue
    return False


def _flags(number):
    with open(f"/proc/self/fdinfo/{number}") as info:
        return int(dict(line.split(":", 1) for line in info)["flags"], 8)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("LIVEPATCH_AUDIT")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert audit.path() == "/var/log/livepatch/audit.jsonl"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert audit.path() == f"{tmp_path}/livepatch/audit.jsonl"
    monkeypatch.setenv("LIVEPATCH_AUDIT", "relative")
    with pytest.raises(LivepatchError, match="must be an absolute path"):
        audit.path()
    monkeypatch.setenv("LIVEPATCH_AUDIT", "none")
    assert audit.path() is None
