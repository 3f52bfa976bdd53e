"""What the file that a process executes says of itself, whatever it is called.

A Python that was copied to another name, or linked into a program, has no `python3.X` in its maps. A free-threaded
one is installed as `python3.13t` and, the same file, as `python3.13`. And musl's dynamic linker may be a link to its
`libc.so`, so that only the name of the latter is mapped.

The interpreter keeps what debuggers need in a section of its own, `.PyRuntime` (3.10 and newer). Since 3.13 that begins
with the version and whether there is a GIL; before, the version is in the symbol `Py_Version` (3.11 and newer).

The file may be anybody's, and root reads it: nothing in it is believed to be in order, and no table is read without
end.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

_PT_INTERP = 3
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11

#: The most that is read of one table, in bytes: a CPython's symbols take less than half of it.
_MOST = 1 << 22


class Program(NamedTuple):
    """An executable. `python` is the version of the CPython in it as "3.X" (with "t" if free-threaded), None if there
    is none, or none that says so.
    """

    python: str | None = None
    musl: bool = False


#: By device, inode, size and time of change: most processes execute what others do.
_known: dict[tuple[int, ...], Program] = {}


def of(thread: int) -> Program:
    """That which a process (or a thread) executes; of one that cannot be read nothing is known."""
    try:
        file = os.open(f"/proc/{thread}/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Program()
    try:
        found = os.fstat(file)
        key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        if key not in _known:
            if len(_known) >= 1000:
                _known.clear()
            _known[key] = _read(file)
        return _known[key]
    finally:
        os.close(file)


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def _read(file: int) -> Program:
    try:
        header = _bytes(file, 0, 64)
        if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian: no other is served
            return Program()
        return Program(_python(file, header), b"/ld-musl-" in _interpreter(file, header))
    except (OSError, struct.error, ValueError, IndexError):
        return Program()


def _bytes(file: int, offset: int, size: int) -> bytes:
    return os.pread(file, min(size, _MOST), offset) if offset < 1 << 62 else b""


def _interpreter(file: int, header: bytes) -> bytes:
    """The dynamic linker that it asks for."""
    (start,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    table = _bytes(file, start, size * count)
    for number in range(count):
        kind, _flags, offset, _address, _physical, stored = struct.unpack_from("<IIQQQQ", table, size * number)
        if kind == _PT_INTERP:
            return _bytes(file, offset, min(stored, 4096))
    return b""


def _python(file: int, header: bytes) -> str | None:
    (start,) = struct.unpack_from("<Q", header, 40)
    size, count, names = struct.unpack_from("<HHH", header, 58)
    table = _bytes(file, start, size * count)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", table, size * number)) for number in range(count)]
    if not sections:
        return None
    text = _bytes(file, sections[names].offset, sections[names].size)
    runtime = next((one for one in sections if text.startswith(b".PyRuntime\0", one.name)), None)
    if runtime is None:
        return None
    cookie, number, free_threaded = struct.unpack("<8sQQ", _bytes(file, runtime.offset, 24))
    if cookie == b"xdebugpy":
        return _version(number) + ("t" if free_threaded else "")
    return _from_symbols(file, sections)


def _from_symbols(file: int, sections: list[_Section]) -> str | None:
    found = False
    tables = [section for section in sections if section.kind in (_SHT_SYMTAB, _SHT_DYNSYM)]
    for section in tables[:2]:  # a program has one of each
        strings = sections[section.link]
        text = _bytes(file, strings.offset, strings.size)
        table = _bytes(file, section.offset, section.size)
        for name, _info, _other, where, value, _size in struct.iter_unpack("<IBBHQQ", table[: len(table) // 24 * 24]):
            if where and text.startswith(b"Py_Version\0", name):
                holder = sections[where]
                (number,) = struct.unpack("<Q", _bytes(file, value - holder.address + holder.offset, 8))
                return _version(number)
            found = found or text.startswith(b"Py_GetVersion\0", name)
    return "3.10" if found else None  # which has the section, and not that symbol


def _version(number: int) -> str:
    """That of a number of the form 0x030D00F0."""
    return f"{number >> 24 & 0xFF}.{number >> 16 & 0xFF}"
