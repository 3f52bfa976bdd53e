"""Where a process has the functions of its interpreter, read from its own memory.

The file need not exist any more, need not be reachable from our mount namespace, and may be stripped: what the dynamic
linker works with is mapped in every process. Only an executable without a dynamic symbol table is looked up in the
table that its file has for debuggers.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .processor import Refusal

#: What a C library and the dynamic linker are called, and what the kernel maps.
_C_LIBRARY = re.compile(r"/(libc|libm|libpthread|librt|libdl|ld|ld-linux[^/]*|ld-musl[^/]*)[.-][^/]*$|^\[vdso\]$")

_PT_LOAD, _PT_DYNAMIC, _PT_GNU_EH_FRAME = 1, 2, 0x6474E550
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 4, 5, 6, 10, 0x6FFFFEF5
_SHT_SYMTAB = 2


class Memory:
    """The memory of a process, as long as it runs the program that it runs now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Raises OSError if not all of that is mapped, or the process has ended or runs another program."""
        data = os.pread(self._file, size, address) if address < 1 << 63 else b""
        if len(data) != size:
            raise OSError(errno.EFAULT, f"no memory at {address:#x}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError as `read` does."""
        if os.pwrite(self._file, data, address) != len(data):
            raise OSError(errno.EFAULT, f"no memory at {address:#x}")

    def unpack(self, layout: str, address: int) -> tuple[int, ...]:
        return struct.unpack(layout, self.read(address, struct.calcsize(layout)))


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str

    @property
    def executable(self) -> bool:
        return "x" in self.permissions

    @property
    def c_library(self) -> bool:
        return _C_LIBRARY.search(self.path) is not None

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class Maps:
    """All that is mapped into a process."""

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            self._all = [_mapping(line) for line in lines]
        self._starts = [mapping.start for mapping in self._all]

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._all)

    def at(self, address: int) -> Mapping | None:
        place = bisect_right(self._starts, address) - 1
        return self._all[place] if place >= 0 and address < self._all[place].end else None


def _mapping(line: str) -> Mapping:
    fields = line.rstrip("\n").split(None, 5)
    start, _, end = fields[0].partition("-")
    path = fields[5].removesuffix(" (deleted)") if len(fields) > 5 else ""
    return Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), path)


class Image:
    """A program or library as it is mapped; `base` is where its first page is."""

    def __init__(self, memory: Memory, base: int, machine: int) -> None:
        self._memory = memory
        header = memory.read(base, 64)
        if header[:4] != b"\x7fELF":
            raise ValueError("not an ELF file")
        if header[4] != 2 or struct.unpack_from("<H", header, 18)[0] != machine:
            raise Refusal(
                errno.ENOEXEC,
                f"Process {memory.pid} is a program for another kind of processor (a 32-bit one, perhaps), to which"
                " livepatch cannot attach; start it with `livepatch run -- ...`.",
            )
        (table,) = struct.unpack_from("<Q", header, 32)
        (count,) = struct.unpack_from("<H", header, 56)
        first: int | None = None
        dynamic: tuple[int, int] | None = None
        frames: int | None = None
        for number in range(count):
            kind, _flags, _offset, address, _physical, _stored, size, _align = memory.unpack(
                "<IIQQQQQQ", base + table + 56 * number
            )
            if kind == _PT_LOAD and first is None:
                first = address & ~0xFFF
            elif kind == _PT_DYNAMIC:
                dynamic = address, size
            elif kind == _PT_GNU_EH_FRAME:
                frames = address
        if first is None:
            raise ValueError("nothing to load")
        #: What the addresses in its tables are short of.
        self.bias = base - first
        #: The index of what it says of its frames, see `frames`.
        self.frames = None if frames is None else frames + self.bias
        self._tags = {} if dynamic is None else self._dynamic(dynamic[0] + self.bias, min(dynamic[1], 0x10000))

    def _dynamic(self, address: int, size: int) -> dict[int, int]:
        tags: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<QQ", self._memory.read(address, size // 16 * 16)):
            if tag == 0:
                break
            tags.setdefault(tag, value)
        return tags

    def _table(self, tag: int) -> int | None:
        """The address of a table; some dynamic linkers write it into the tag, others leave what the file says."""
        value = self._tags.get(tag)
        return value if value is None or value >= self.bias > 0 else value + self.bias

    def lookup(self, name: str) -> int | None:
        """The address of an exported symbol."""
        symbols, strings = self._table(_DT_SYMTAB), self._table(_DT_STRTAB)
        if symbols is None or strings is None:
            return None
        wanted = name.encode()
        for number in self._candidates(wanted):
            offset, _info, _other, section, value, _size = self._memory.unpack("<IBBHQQ", symbols + 24 * number)
            if section == 0 or offset + len(wanted) >= self._tags[_DT_STRSZ]:
                continue
            if self._memory.read(strings + offset, len(wanted) + 1) == wanted + b"\0":
                return value + self.bias
        return None

    def _candidates(self, name: bytes) -> Iterator[int]:
        """Numbers of symbols that may have this name."""
        memory = self._memory
        gnu, plain = self._table(_DT_GNU_HASH), self._table(_DT_HASH)
        if gnu is not None:
            value = 5381
            for character in name:
                value = (value * 33 + character) & 0xFFFFFFFF
            buckets, offset, bloom, _shift = memory.unpack("<IIII", gnu)
            table = gnu + 16 + 8 * bloom
            (number,) = memory.unpack("<I", table + 4 * (value % buckets))
            while number >= offset:
                (entry,) = memory.unpack("<I", table + 4 * (buckets + number - offset))
                if entry | 1 == value | 1:
                    yield number
                if entry & 1:
                    break
                number += 1
        elif plain is not None:
            _buckets, count = memory.unpack("<II", plain)
            yield from range(count)


class Python:
    """The interpreter in a process: where its functions are, by name, and what file it is."""

    def __init__(self, path: str, maps: Maps, addresses: dict[str, int]) -> None:
        self.path = path
        self.maps = maps
        self.addresses = addresses

    def owns(self, mapping: Mapping) -> bool:
        """Whether code there is the interpreter's own, or that of a module of its standard library.

        `_ctypes` is not: it calls foreign functions.
        """
        if mapping.path == self.path or mapping.name.startswith("libpython"):
            return True
        return "/lib-dynload/" in mapping.path and not mapping.name.startswith("_ctypes")


def find_python(memory: Memory, machine: int, needed: tuple[str, ...], useful: tuple[str, ...] = ()) -> Python:
    """The interpreter and the addresses of what is `needed`, and of what is `useful` as far as there is any.

    Raises Refusal if there is none, or one that lacks something.
    """
    pid = memory.pid
    maps = Maps(pid)
    executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    bases: dict[str, int] = {}
    for mapping in maps:
        if mapping.path.startswith("/") and mapping.offset == 0 and mapping.permissions[0] == "r":
            bases.setdefault(mapping.path, mapping.start)

    def likelihood(path: str) -> int:
        return 0 if "libpython" in os.path.basename(path) else 1 if path == executable else 2

    for path in sorted(bases, key=likelihood):
        try:
            image = Image(memory, bases[path], machine)
            if (mark := image.lookup(needed[0])) is None:
                continue
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, Refusal) and path == executable:
                raise
            continue
        python = Python(path, maps, {needed[0]: mark})
        for name in needed + useful:
            address = image.lookup(name)
            if address is not None:
                python.addresses[name] = address
        return _complete(python, pid, needed)
    if executable in bases:
        python = Python(executable, maps, {})
        with open(f"/proc/{pid}/exe", "rb") as file:
            bias = Image(memory, bases[executable], machine).bias
            found = _debugging_symbols(file, {name.encode() for name in needed + useful})
        python.addresses = {name: address + bias for name, address in found.items()}
        if needed[0] in python.addresses:
            return _complete(python, pid, needed)
    raise Refusal(
        errno.ENOEXEC,
        f"Process {pid} has no symbols of a Python interpreter, so livepatch cannot attach to it; start it with"
        " `livepatch run -- ...`.",
    )


def _complete(python: Python, pid: int, needed: tuple[str, ...]) -> Python:
    if missing := [name for name in needed if name not in python.addresses]:
        raise Refusal(
            errno.ENOEXEC,
            f"The Python of process {pid} has no {missing[0]}; livepatch can attach to CPython 3.11 or newer.",
        )
    return python


def _debugging_symbols(file: BinaryIO, names: set[bytes]) -> dict[str, int]:
    """Those of these names that the file's complete symbol table has, if it was not stripped."""
    header = file.read(64)
    (table,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    file.seek(table)
    sections = [struct.unpack_from("<IIQQQQIIQQ", file.read(size)) for _ in range(count)]
    found: dict[str, int] = {}
    for section in sections:
        if section[1] != _SHT_SYMTAB:
            continue
        strings = sections[section[6]]
        file.seek(strings[4])
        text = file.read(strings[5])
        file.seek(section[4])
        for offset, _info, _other, where, value, _size in struct.iter_unpack("<IBBHQQ", file.read(section[5])):
            if where and value and (name := text[offset : text.index(b"\0", offset)]) in names:
                found[name.decode()] = value
    return found
