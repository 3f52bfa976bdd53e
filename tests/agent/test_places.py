"""The socket directory is ours alone, or there is no socket."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from livepatch.agent import places
from livepatch.core.model import LivepatchError


@pytest.fixture
def directory(tmp_path, monkeypatch):
    path = str(tmp_path / "livepatch-0")
    monkeypatch.setattr(places, "directory_of", lambda uid, base: path)
    return path


def test_it_is_made_for_its_owner_only(directory):
    assert places.ensure_directory() == directory
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert places.ensure_directory() == directory


def test_a_symbolic_link_is_refused(directory, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", directory)
    with pytest.raises(LivepatchError, match="is a symbolic link") as refused:
        places.ensure_directory()
    assert refused.value.errno == errno.EACCES


def test_a_file_is_refused(directory):
    open(directory, "w").close()
    with pytest.raises(LivepatchError, match="is not a directory"):
        places.ensure_directory()


@pytest.mark.parametrize("mode", [0o701, 0o720, 0o755, 0o777])
def test_one_that_others_can_enter_is_refused(directory, mode):
    os.mkdir(directory)
    os.chmod(directory, mode)
    with pytest.raises(LivepatchError, match="is open to other users"):
        places.ensure_directory()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_one_of_another_user_is_refused(directory):
    os.mkdir(directory, 0o700)
    os.chown(directory, 65534, -1)
    with pytest.raises(LivepatchError, match="belongs to user 65534"):
        places.ensure_directory()


def test_what_dead_processes_left_is_cleared_away(directory):
    places.ensure_directory()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/{dead.pid}.sock")
    open(f"{directory}/{dead.pid}.1234.py", "w").close()
    open(f"{directory}/{os.getpid()}.1234.py", "w").close()
    open(f"{directory}/README", "w").close()
    places.clear_leftovers(directory)
    assert sorted(os.listdir(directory)) == sorted([f"{os.getpid()}.1234.py", "README"])


def test_a_socket_on_which_somebody_listens_stays(directory):
    """Its process may live in another pid namespace that shares the directory."""
    places.ensure_directory()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/{dead.pid}.sock")
        listener.listen()
        places.clear_leftovers(directory)
        assert os.listdir(directory) == [f"{dead.pid}.sock"]
