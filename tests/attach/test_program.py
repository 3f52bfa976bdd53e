"""What an executable says of itself, with the facts of the real ones: the section, what it begins with, the symbols.

The programs here are `sleep` with a section table appended, which nobody but us reads.
"""

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import eventually

from livepatch.attach import entry, processes, program, way

SLEEP = Path(shutil.which("sleep")).resolve()

#: What the section begins with: Debian's 3.14.8 and 3.15.0, pyenv's 3.13.0, a build of 3.13.15 with --disable-gil.
BEGINS = [
    ("3.13", 0x030D00F0, 0),
    ("3.13t", 0x030D0FF0, 1),
    ("3.14", 0x030E08F0, 0),
    ("3.15", 0x030F00F0, 0),
]


def section(name, kind=1, offset=0, size=0, link=0, address=0):
    return struct.pack("<IIQQQQIIQQ", name, kind, 0, address, offset, size, link, 0, 1, 0)


def with_sections(runtime, symbols=(), name=b".PyRuntime"):
    """`sleep`, with this in the section, and these symbols by name, each with its value."""
    made = bytearray(SLEEP.read_bytes())
    made += bytes(-len(made) % 8)

    def put(data):
        made.extend(data + bytes(-len(data) % 8))
        return len(made) - len(data) - (-len(data) % 8), len(data)

    at = put(runtime)
    strings, table, values = b"\0", bytes(24), b""
    for symbol, value in dict(symbols).items():
        table += struct.pack("<IBBHQQ", len(strings), 0x11, 0, 4, 0x7000 + len(values), 8)
        strings, values = strings + symbol + b"\0", values + struct.pack("<Q", value)
    names = b"\0" + name + b"\0"
    parts = [
        section(0, 0),
        section(1, 1, *at),
        section(0, 11, *put(table), link=3),
        section(0, 3, *put(strings)),
        section(0, 1, *put(values), address=0x7000),
        section(0, 3, *put(names)),
    ]
    start, _ = put(b"".join(parts))
    struct.pack_into("<Q", made, 40, start)
    struct.pack_into("<HHH", made, 58, 64, len(parts), len(parts) - 1)
    return bytes(made)


@pytest.fixture
def started(tmp_path):
    running = []

    def start(content, name="service", *arguments):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o755)
        running.append(subprocess.Popen([path, *(arguments or ["1000"])]))
        eventually(
            lambda: Path(f"/proc/{running[-1].pid}/cmdline").read_bytes().startswith(bytes(path))
        )  # all is mapped
        return running[-1].pid

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("python", "number", "free_threaded"), BEGINS)
@pytest.mark.parametrize("name", ["service", "python3.13"])
def test_the_section_says_it(started, python, number, free_threaded, name):
    pid = started(with_sections(struct.pack("<8sQQ", b"xdebugpy", number, free_threaded)), name)
    assert processes.require_python(pid).python == python
    if free_threaded:
        with pytest.raises(way.NoWay) as error:
            way.into(processes.require_python(pid))
        assert error.value.short == "free-threaded"


@pytest.mark.parametrize(
    ("python", "symbols"),
    [
        ("3.10", {b"Py_GetVersion": 0}),
        ("3.11", {b"Py_GetVersion": 0, b"Py_Version": 0x030B02F0}),
        ("3.12", {b"Py_Version": 0x030C01F0, b"Py_GetVersion": 0}),
        (None, {}),
    ],
)
def test_the_symbols_say_it(started, python, symbols):
    assert processes.examine(started(with_sections(bytes(64), symbols))).python == python


def test_another_program_says_nothing(started):
    assert processes.examine(started(with_sections(b"xdebugpy" + bytes(16), name=b".data"))).python is None
    assert processes.examine(started(SLEEP.read_bytes(), "other")).python is None


def test_a_linker_of_musl_that_is_a_link(started, tmp_path):
    """So it is where musl installs itself: what is mapped is called `libc.so`."""
    content = bytearray(SLEEP.read_bytes())
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    (at,) = (table + size * n for n in range(count) if struct.unpack_from("<I", content, table + size * n)[0] == 3)
    offset, stored = struct.unpack_from("<Q", content, at + 8)[0], struct.unpack_from("<Q", content, at + 32)[0]
    link = tmp_path / "ld-musl-x86_64.so.1"
    link.symlink_to(content[offset : offset + stored - 1].decode())
    path = bytes(link) + b"\0"
    struct.pack_into("<Q", content, at + 8, len(content))
    struct.pack_into("<QQ", content, at + 32, len(path), len(path))
    found = processes.require_python(started(content + path, "python3.13"))
    assert found.musl
    assert b"ld-musl" not in Path(f"/proc/{found.pid}/maps").read_bytes()
    with pytest.raises(way.NoWay) as error:
        way.into(found)
    assert error.value.short == "musl"


def test_a_broken_file_says_nothing(tmp_path):
    """It may be anybody's."""
    whole = with_sections(struct.pack("<8sQQ", b"xdebugpy", 0x030D00F0, 0), {b"Py_Version": 0x030B02F0})
    chance = random.Random(1)
    path = tmp_path / "program"
    for _ in range(300):
        broken = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
        for _ in range(chance.randrange(20)):
            broken[
                chance.choice((chance.randrange(64), chance.randrange(len(whole) - 600, len(whole)))) % len(broken)
            ] = chance.randrange(256)
        path.write_bytes(broken)
        with path.open("rb") as file:
            assert isinstance(program._read(file.fileno()), program.Program)


def with_an_interpreter_inside():
    """Real Pythons that need no libpython, as Debian's."""
    names = getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"
    for path in {os.path.realpath(name) for name in names}:
        if os.path.exists(path):
            with open(path, "rb") as file:
                if (found := program._read(file.fileno()).python) and not found.endswith("t"):
                    yield path, found


def test_a_real_one_under_another_name(started, tmp_path):
    """Nothing else that is mapped tells that it is one."""
    for path, python in with_an_interpreter_inside():
        script = tmp_path / "script.py"
        script.write_text("import time\nwhile True: time.sleep(0.01)\n")
        prefix = subprocess.run(
            [path, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
        )
        os.environ["PYTHONHOME"] = prefix.stdout.strip()
        try:
            pid = started(Path(path).read_bytes(), f"service-{python}", "-S", str(script))
        finally:
            del os.environ["PYTHONHOME"]
        eventually(lambda pid=pid: processes.require_python(pid).python == python)
        with entry.attach(pid, timeout=60) as client:
            assert client.hello["python"].startswith(python)
