"""Pages that can be pasted into a shell work when they are, and print what their comments say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "looks"),
    [
        ("tutorial.md", 3),
        ("hooks.md", 2),
        ("howto/training.md", 1),
        ("howto/django.md", 3),
        ("howto/fastapi.md", 2),
        ("howto/celery.md", 3),
    ],
)
def test_a_page_can_be_pasted(page, looks, tmp_path):
    script = "\n".join(blocks(page, "sh"))
    expected = re.findall(r"^tail .*     # ([^,\n]*)", script, re.MULTILINE)
    assert len(expected) == looks

    def look(line: re.Match[str]) -> str:
        """Until it is there, as no machine is as fast as the page takes for granted; marked, to be found again."""
        wait = f'until [ $((count += 1)) -gt 600 ] || [ "$(look | head -n 1)" = {shlex.quote(line[2])} ]'
        return f"look() {{ {line[1]}; }}; count=0; {wait}; do sleep 0.1; done; echo -n 'LOOKED AT '; look"

    script = re.sub(r"^(tail .*)     # ([^,\n]*).*$", look, script, flags=re.MULTILINE)
    script = re.sub(
        r"^sleep (\d)$", r"until [ -s output ]; do sleep 0.1; done; sleep \g<1>.5", script, flags=re.MULTILINE
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^LOOKED AT (.*)$", done.stdout, re.MULTILINE) == expected


def test_the_patch_written_by_hand_is_one(tmp_path):
    (tmp_path / "prices.py").write_text("def tax(kind, net):\n return net\ndef total(basket):\n return 0\n")
    program = (
        "import prices, runpy\n"
        "import livepatch as lp\n"
        "patch = runpy.run_path('rounding.py')['__livepatch__']\n"
        "lp.enable_patch(patch, timeout=30)\n"
        "print(prices.total([('books', 1.25)]))\n"
    )
    (source,) = blocks("tutorial.md", "python")
    (tmp_path / "rounding.py").write_text(source)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2.5\n", done.stderr


def test_a_callback_that_goes_through_instances():
    """The one on the page about hooks."""

    class Connection:
        open = 1

    kept = [Connection() for _ in range(3)]
    namespace: dict[str, Any] = {}
    (source,) = blocks("hooks.md", "python")
    exec(source, namespace)
    module = SimpleNamespace(Connection=Connection)
    assert namespace["count"](SimpleNamespace(module=module)) == len(kept)
