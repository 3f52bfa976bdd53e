"""The patch, built once, and Redis, the broker of the Celery workers: a server of the tests' own on a Unix socket."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers.harness import eventually, patch_from_source


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that changes every function of the application."""
    return patch_from_source(tmp_path_factory.mktemp("patch"))


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """Its address, for both the queue and the results."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Celery is NOT TESTED: install the system's package redis-server.")
    folder = Path(tempfile.mkdtemp(prefix="lp-", dir="/tmp"))
    address = folder / "redis"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", str(address), "--save", "", "--dir", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: address.exists() or process.poll() is not None, "redis-server did not start")
        assert process.poll() is None, (folder / "log").read_text()
        yield f"redis+socket://{address}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
