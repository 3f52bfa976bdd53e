"""Make the pictures of every screen, in docs/pictures/ and docs/demo.svg, from real runs.

usage: ./run pictures [NAME...]

A small shop runs in two processes, with a patch that one of its threads holds up for ever. The commands run on a
terminal of their own, which is emulated, so that a bar is seen as it stands and not as the strokes that drew it; `top`
gives its own picture. `demo` needs the package index; it is made when it is named, not otherwise. `report` is a page,
and needs Chromium or Chrome to be looked at.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES = DOCS / "pictures"
COLUMNS, LINES = 100, 400
#: Seconds after which a command that does not get to where its picture is taken is a failure.
PATIENCE = 300.0

SHOP = """\
import asyncio
import threading
import time

import livepatch


def price(order):
    time.sleep(0.002)
    return order * 1.19


def send_invoice(queue):
    queue.wait()


async def order_page(number):
    await asyncio.sleep(3600)


def sell():
    while True:
        price(100)


async def serve():
    pages = [asyncio.create_task(order_page(n), name=f"page {n}") for n in range(6)]
    await asyncio.gather(*pages)


for number in range(2):
    threading.Thread(target=sell, name=f"seller {number}", daemon=True).start()
threading.Thread(target=lambda: asyncio.run(serve()), name="web", daemon=True).start()
invoices = threading.Thread(target=send_invoice, args=[threading.Event()], name="mailer", daemon=True)
invoices.start()
livepatch.start_agent()
print("open", flush=True)
while True:
    time.sleep(1)
"""

#: Two patches: one that takes effect at once, and one that has to wait.
QUICK = """\
import livepatch as lp


def price(order):
    return round(order * 1.19, 2)


funcs = [lp.Func("price", price)]
__livepatch__ = lp.Patch("", [lp.Object(None, funcs)], version="1.1", description="Prices are rounded.")
"""
SLOW = """\
import livepatch as lp


def send_invoice(queue):
    return "sent"


async def order_page(number):
    return number


funcs = [lp.Func("send_invoice", send_invoice), lp.Func("order_page", order_page)]
__livepatch__ = lp.Patch("", [lp.Object(None, funcs)], version="1.2", description="Invoices are sent once.")
"""


def main(names: list[str]) -> None:
    functions = (ps, check, load, loads, status, tasks, stall, force, top, report)
    known = {function.__name__: function for function in functions}
    unknown = set(names) - {*known, "demo"}
    if unknown:
        sys.exit(f"There is no picture {', '.join(sorted(unknown))}; choose from {', '.join([*known, 'demo'])}.")
    PICTURES.mkdir(exist_ok=True)
    for name in names or known:
        if name == "demo":
            demo()
            continue
        with tempfile.TemporaryDirectory(prefix="shop-") as folder, shops(Path(folder)) as pids:
            known[name](pids)
        print(f"made docs/pictures/{name}")


# -- the pictures ----------------------------------------------------------------------------------------


def ps(pids: list[int]) -> None:
    livepatch("load", "rounding.py", "--pid", pids[0])
    _stall(pids[1])
    command = ["python", "-c", "input()", "worker"]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as worker:
        time.sleep(1.0)  # it is an interpreter by then
        # Other Pythons of this machine are nobody's business.
        ours = [*map(str, pids), str(worker.pid)]
        record("ps", "livepatch ps", shown=lambda line: line.split()[0] in ("PID", *ours))
        worker.kill()


def check(pids: list[int]) -> None:
    record("check", f"livepatch check invoices.py --pid {pids[0]} --watch 2")


def load(pids: list[int]) -> None:
    record("load", f"livepatch load invoices.py --pid {pids[0]}", until=lambda text: _seconds(text) >= 4)


def loads(pids: list[int]) -> None:
    livepatch("load", "rounding.py", "--pid", pids[0])
    command = f"livepatch load invoices.py --pid {pids[0]} --pid {pids[1]}"
    record("loads", command, until=lambda text: _seconds(text) >= 4 and text.count("waiting for these tasks") == 2)


def status(pids: list[int]) -> None:
    livepatch("load", "rounding.py", "--pid", pids[0])
    _stall(pids[0])
    record("status", f"livepatch status --pid {pids[0]}")


def tasks(pids: list[int]) -> None:
    _stall(pids[0])
    record("tasks", f"livepatch tasks --pid {pids[0]}")


def stall(pids: list[int]) -> None:
    record("stall", f"livepatch load invoices.py --pid {pids[0]} --timeout 3")


def force(pids: list[int]) -> None:
    _stall(pids[0])
    record("force", f"livepatch force invoices --pid {pids[0]}", until=lambda text: "Do it?" in text)


def top(pids: list[int]) -> None:
    """Three pictures: the screen, what it asks before it forces, and what before it acts on all that are marked."""
    from livepatch.fleet.selection import Selection
    from livepatch.screens.host import Host
    from livepatch.screens.top import Top

    livepatch("load", "rounding.py", "--pid", pids[0])
    livepatch("load", "rounding.py", "--pid", pids[1])
    _stall(pids[0])

    async def show() -> None:
        host = Host(Selection(pids=tuple(pids)))
        app = Top(host)
        try:
            async with app.run_test(size=(COLUMNS, 34)) as pilot:
                deadline = time.monotonic() + PATIENCE
                while not (len(app._views) == 2 and app.view and app.view.blocking and app.view.log):
                    if time.monotonic() > deadline:
                        sys.exit("top did not show the transition.")
                    await pilot.press("home")
                    await pilot.pause(0.1)
                await pilot.pause(1.0)
                save("top", app.export_screenshot(title="livepatch top"))
                await pilot.press("f")
                await pilot.pause(1.0)
                save("top-force", app.export_screenshot(title="livepatch top"))
                await pilot.press("n", "home", "space", "space", "home", "tab", "up")
                await pilot.pause(1.0)
                await pilot.press("d")
                await pilot.pause(1.0)
                save("top-marked", app.export_screenshot(title="livepatch top"))
        finally:
            host.close()

    asyncio.run(show())


def report(pids: list[int]) -> None:
    """The page about a load of two processes that had to be taken back, in a browser that fetches nothing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no browser is there, so docs/pictures/report.png stays as it is")
        return
    both = [word for pid in pids for word in ("--pid", pid)]
    livepatch("load", "invoices.py", *both, "--timeout", "3", "--report", "report.html")
    page = Path("report.html").resolve()
    size, target = "--window-size=1100,1250", PICTURES / "report.png"
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={page.parent}/browser",
    ]
    command = [browser, *quiet, size, f"--screenshot={target}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


def demo() -> None:
    """The picture in the README: all that `livepatch demo` prints."""
    screen = run([*LIVEPATCH, "demo"], columns=132)
    draw(screen, "./run demo", DOCS / "demo.svg", 132)
    print("made docs/demo.svg")


# -- how they are made -----------------------------------------------------------------------------------

LIVEPATCH = [sys.executable, "-m", "livepatch"]


@contextmanager
def shops(folder: Path) -> Iterator[list[int]]:
    """Two shops that are open, in a folder with the patches for them, which is where we are then."""
    for name, text in (("shop.py", SHOP), ("rounding.py", QUICK), ("invoices.py", SLOW)):
        (folder / name).write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = ["python", "shop.py"]
    processes = [
        subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE, env=environment) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"open\n":
                sys.exit("the shop did not open.")
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        os.chdir(before)


def livepatch(*arguments: object) -> None:
    """A command whose words are not shown."""
    done = subprocess.run([*LIVEPATCH, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)


def _stall(pid: int) -> None:
    livepatch("load", "invoices.py", "--pid", pid, "--timeout", "3", "--on-stall", "keep")


def _seconds(text: str) -> int:
    """How long the bar has been waiting."""
    found = re.search(r"(\d+) of 30 s", text)
    return int(found[1]) if found else 0


def record(
    name: str,
    command: str,
    *,
    until: Callable[[str], bool] | None = None,
    shown: Callable[[str], bool] = lambda line: True,
) -> None:
    """Run a command line of livepatch and make a picture of it: at its end, or at an instant before that."""
    screen = run([*LIVEPATCH, *command.split()[1:]], until=until)
    draw(screen, command, PICTURES / f"{name}.svg", COLUMNS, shown)


def run(command: list[str], *, until: Callable[[str], bool] | None = None, columns: int = COLUMNS) -> pyte.Screen:
    """What a terminal shows when the command has ended, or at the first instant that is wanted."""
    screen = pyte.Screen(columns, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(columns))
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(terminal, 65536)
            except OSError:  # it has ended
                data = b""
            stream.feed(data)
            if (until is None and not data) or (until is not None and until("\n".join(screen.display))):
                return screen
            if not data:
                break
        sys.exit(f"{' '.join(command)} did not come to its picture.")
    finally:
        os.kill(child, signal.SIGTERM)
        os.close(terminal)
        os.waitpid(child, 0)


def draw(
    screen: pyte.Screen, command: str, path: Path, columns: int, shown: Callable[[str], bool] = lambda line: True
) -> None:
    """A picture of what is on the terminal, below the command as typed."""
    lines = [line(screen, number) for number, text in enumerate(screen.display) if not text.strip() or shown(text)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    for each in lines:
        console.print(each, soft_wrap=True)
    target = path.stem if path.parent == PICTURES else None
    svg = console.export_svg(title=command.partition(" --")[0])
    save(target, svg) if target else path.write_text(clean(svg))


def line(screen: pyte.Screen, number: int) -> Text:
    """One line of the terminal, with its colors."""
    found = Text()
    cells = screen.buffer[number]
    for column in range(screen.columns):
        cell = cells[column]
        found.append(
            cell.data, Style(color=color(cell.fg), bgcolor=color(cell.bg), bold=cell.bold, italic=cell.italics)
        )
    found.rstrip()
    return found


def color(name: str) -> Color | None:
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return Color.parse(f"#{name}")
    return Color.parse({"brown": "yellow"}.get(name, name).replace("bright", "bright_"))


def save(name: str, svg: str) -> None:
    (PICTURES / f"{name}.svg").write_text(clean(svg))


def clean(svg: str) -> str:
    """Without fonts that would be fetched from elsewhere, and names that are others in every run."""
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "Menlo, Consolas, DejaVu Sans Mono"
    )
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


if __name__ == "__main__":
    main(sys.argv[1:])
