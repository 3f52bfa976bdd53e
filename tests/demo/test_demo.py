"""The demo keeps its promises: a real server, a real release, real load, and back."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1200)]


def test_the_demo_keeps_its_promises():
    """It measures by itself, and ends with 0 only if every promise held."""
    pytest.importorskip("rich")
    command = [sys.executable, "-m", "livepatch", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[\d,]+ answered, 0 failed", done.stdout)
    assert "works, then refused, then works" in done.stdout
    assert re.search(r"(\d+) of \1 are open since the beginning", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
