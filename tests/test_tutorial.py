"""The tutorial works when it is pasted into a shell, and prints what its comments say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_can_be_pasted(tmp_path):
    script = "\n".join(blocks("sh"))
    expected = re.findall(r"^tail .*# ([0-9.]+)", script, re.MULTILINE)
    assert len(expected) == 3
    # The shell prints a mark before each value that is looked at, so that they are found among the other output.
    script = re.sub(r"^(tail .*)$", r"echo -n 'LOOKED AT '; \1", script, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^LOOKED AT (.*)$", done.stdout, re.MULTILINE) == [f"{float(x):.2f}" for x in expected]


def test_the_patch_written_by_hand_is_one(tmp_path):
    (tmp_path / "prices.py").write_text("def tax(kind, net):\n return net\ndef total(basket):\n return 0\n")
    program = (
        "import prices, runpy\n"
        "import livepatch as lp\n"
        "patch = runpy.run_path('rounding.py')['__livepatch__']\n"
        "lp.enable_patch(patch, timeout=30)\n"
        "print(prices.total([('books', 1.25)]))\n"
    )
    (source,) = blocks("python")
    (tmp_path / "rounding.py").write_text(source)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2.5\n", done.stderr
