"""What counts as library code where boundaries are looked for: it decides whether a thread is in an application."""

import site
import threading
from pathlib import Path

import pytest

from livepatch.core.tasks.boundaries import is_library

STDLIB = Path(threading.__file__).parent


@pytest.mark.parametrize("folder", [STDLIB, STDLIB / ".." / STDLIB.name, *map(Path, site.getsitepackages())])
def test_what_is_installed(folder):
    assert is_library(f"{folder}/threading.py")


def test_by_whatever_path_it_was_found(tmp_path):
    """A virtual environment may be on PATH as a relative folder or a link; the code remembers that name."""
    (tmp_path / "link").symlink_to(STDLIB)
    assert is_library(f"{tmp_path}/link/threading.py")


def test_what_is_not(tmp_path):
    for file in (f"{tmp_path}/app.py", f"{STDLIB}x/app.py", "<string>", "<stdin>"):
        assert not is_library(file)
