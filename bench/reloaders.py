"""What others make of the same change: tools that reload the source of a running program, used as they are meant to be.

A module has three functions that call each other. Its file is exchanged, back and forth, while four threads call the
first of them: two by its module, two by a name that they have imported, as most programs do. Each tool is asked to take
the new file in, in an environment of its own that is made when it is needed. Counted are calls that were torn, that is,
that met two versions; and calls that were not all new 20 ms after the tool was done.
"""

from __future__ import annotations

import json
import subprocess
import sys

from .measure import Row
from .tools import environment
from .torn import IN_THREADS

#: The tool, what is installed for it, and how a program asks it to take in `shop`, whose file is new.
_TOOLS = {
    "importlib.reload": ("", "import importlib\ndef take_in(text): importlib.reload(shop)"),
    "IPython's autoreload": (
        "ipython",
        "from importlib import reload\nfrom IPython.extensions.autoreload import superreload\nold = {}\n"
        "def take_in(text): superreload(shop, reload, old)",
    ),
    "jurigged": (
        "jurigged",
        "from jurigged.register import registry\nregistry.prepare('shop')\nfound = registry.get(FILE)\n"
        "def take_in(text): found.refresh()",
    ),
    "livepatch": (
        "",
        "import livepatch as lp\nfrom bench import targets\n"
        "def take_in(text):\n"
        "    if text is new:\n"
        "        lp.enable_patch(patch := targets.patch(OLD, module='shop'), timeout=60)\n"
        "    else:\n"
        "        lp.disable_patch('bench', timeout=60), lp.unload_patch('bench')",
    ),
}

_PROGRAM = """
import json, os, sys, threading, time
FILE, CHANGES, OLD = sys.argv[1], int(sys.argv[2]), sys.argv[3]
new = OLD.replace('"old"', '"new"')
sys.path.insert(0, os.path.dirname(FILE))
sys.dont_write_bytecode = True
open(FILE, "w").write(OLD)
import shop
from shop import f
{tool}
sys.setswitchinterval(2e-5)
stop, settled = False, [None]
calls, torn, stale = [0] * 4, [0] * 4, [0] * 4
def work(me):
    while not stop:
        for x in range(50):
            wanted = settled[0]
            found = shop.f(x) if me % 2 else f(x)
            calls[me] += 1
            torn[me] += len(set(found)) > 1
            if wanted is not None and wanted is settled[0]:
                stale[me] += set(found) != {{wanted}}
threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
for thread in threads: thread.start()
for number in range(CHANGES):
    text = OLD if number % 2 else new
    with open(FILE + ".new", "w") as file: file.write(text)
    os.utime(FILE + ".new", (number * 10, number * 10))
    os.replace(FILE + ".new", FILE)
    take_in(text)
    time.sleep(0.02)
    settled[0] = "old" if number % 2 else "new"
    time.sleep(0.02)
    settled[0] = None
stop = True
for thread in threads: thread.join()
print(json.dumps([sum(calls), sum(torn), sum(stale)]))
"""


def compared(quick: bool) -> list[Row]:
    """A row for each tool."""
    return [_row(name, 20 if quick else 400) for name in _TOOLS]


def _row(name: str, changes: int) -> Row:
    package, tool = _TOOLS[name]
    programs = environment("reloaders", *filter(None, [package]))
    python = programs / "python" if package else sys.executable
    file = programs.parent / "shop.py"
    command = [python, "-c", _PROGRAM.format(tool=tool), str(file), str(changes), IN_THREADS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return Row(f"{changes} changes by {name}", "-", done.stderr.strip().rpartition("\n")[2], None)
    calls, torn, stale = json.loads(done.stdout)
    ours = name == "livepatch"
    return Row(
        f"{changes} changes of three functions by {name}",
        "0 torn, 0 not new" if ours else "-",
        f"{torn:,} torn, {stale:,} not new afterwards, of {calls:,} calls",
        not torn and not stale if ours else None,
    )
