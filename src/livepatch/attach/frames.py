"""Who has called what a stopped thread runs, told exactly: the return addresses of its frames.

It is not enough to look through the stack for words that point behind a call: what calls that are over have left there
looks the same, and it lies in the unused parts of frames that are in use. Nor are frame pointers, which C libraries do
not have. But they have what exceptions of C++ and debuggers go by, `.eh_frame` and its index `.eh_frame_hdr`: for each
address in the code, how to find the caller's frame and what the caller had in its registers. Both are mapped in every
process.

The format is DWARF's call frame information with a few encodings of pointers; compilers use little of either. What they
do not use for C is not known here: where it is met, the frames end.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

from .processor import Processor
from .symbols import Image, Maps, Memory

#: More frames than any call of a C library has below the one who called it.
_MOST = 64
#: More than a table of functions has, and than one entry has bytes: memory may hold anything.
_MOST_FUNCTIONS, _LONGEST = 1 << 21, 1 << 16
_ADDRESS = 2**64 - 1

#: How the index is encoded, by every linker: where `.eh_frame` is, how many entries, and what they are relative to.
_INDEX = struct.pack("<4B", 1, 0x1B, 0x03, 0x3B)
#: The pointers of `.eh_frame`, by the lower half of their encoding; the upper half says what they are relative to.
_POINTERS = {0x00: "<Q", 0x03: "<I", 0x04: "<Q", 0x0B: "<i", 0x0C: "<q"}
_RELATIVE_TO_ITSELF = 0x10

#: Instructions that have their operand in the lower bits.
_ADVANCE, _OFFSET, _RESTORE = 1, 2, 3
_ADVANCES = {0x02: "<B", 0x03: "<H", 0x04: "<I"}
_REMEMBER, _BRING_BACK = 0x0A, 0x0B


class _Unknown(Exception):
    """Nothing tells how that frame is left."""


class _Rules:
    """How to leave a frame: it ends `offset` bytes from what is in a register, and from there count the places where
    registers of the caller were saved; None where they are lost.
    """

    def __init__(self, register: int = -1, offset: int = 0, saved: Mapping[int, int | None] | None = None) -> None:
        self.register, self.offset, self.saved = register, offset, dict(saved or {})

    def copy(self) -> _Rules:
        return _Rules(self.register, self.offset, self.saved)


class _Reader:
    """Reads the numbers of one entry."""

    def __init__(self, content: bytes, address: int) -> None:
        self.content = content
        self.address = address
        self.at = 0

    def take(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self.content, self.at)
        self.at += struct.calcsize(layout)
        return int(value)

    def byte(self) -> int:
        return self.take("<B")

    def number(self, *, signed: bool = False) -> int:
        """A LEB128."""
        value = shift = 0
        while shift < 64:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value
        raise _Unknown

    def pointer(self, encoding: int) -> int:
        here = self.address + self.at
        value = self.take(_POINTERS[encoding & 0x0F])
        return (value + here if encoding & 0x70 == _RELATIVE_TO_ITSELF else value) & _ADDRESS

    def skip(self) -> None:
        """Pass over what is given with its size."""
        size = self.number()
        self.at += size

    def more(self) -> bool:
        return self.at < len(self.content)


class _Tables:
    """What a program or library says of its frames. Raises _Unknown if that is nothing."""

    def __init__(self, memory: Memory, image: Image) -> None:
        self._memory = memory
        if image.frames is None:
            raise _Unknown
        self._base = image.frames
        if memory.read(self._base, 4) != _INDEX:
            raise _Unknown
        (count,) = memory.unpack("<I", self._base + 8)
        if count > _MOST_FUNCTIONS:
            raise _Unknown
        self._index = memory.read(self._base + 12, 8 * count)

    def rules(self, pc: int) -> tuple[_Rules, int]:
        """How to leave the frame of code at this address, and which register has the address to which it returns."""
        numbers = range(len(self._index) // 8)
        place = bisect_right(numbers, pc - self._base, key=lambda number: self._indexed(number)[0]) - 1
        if place < 0:
            raise _Unknown
        entry = self._entry(self._base + self._indexed(place)[1])
        origin = entry.address
        common = self._entry(origin - entry.take("<I"))
        common.take("<I")  # that it is one
        version = common.byte()
        end = common.content.index(b"\0", common.at)
        letters = common.content[common.at : end].decode("ascii")
        common.at = end + 1
        unit, factor = common.number(), common.number(signed=True)
        returns = common.byte() if version == 1 else common.number()
        encoding = _meanings(common, letters)
        start = entry.pointer(encoding)
        if not start <= pc < start + entry.pointer(encoding & 0x0F):
            raise _Unknown
        if letters:
            entry.skip()
        first = _Rules()
        _run(common, first, _Rules(), unit, factor, _ADDRESS)
        rules = first.copy()
        _run(entry, rules, first, unit, factor, pc - start)
        return rules, returns

    def _indexed(self, number: int) -> tuple[int, int]:
        """Where some code begins, and where its entry is."""
        start, entry = struct.unpack_from("<ii", self._index, 8 * number)
        return start, entry

    def _entry(self, address: int) -> _Reader:
        (size,) = self._memory.unpack("<I", address)
        if not 0 < size < _LONGEST:
            raise _Unknown
        return _Reader(self._memory.read(address + 4, size), address + 4)


def _meanings(common: _Reader, letters: str) -> int:
    """How the addresses of entries are encoded; the reader goes on to the instructions."""
    encoding = 0
    if not letters:
        return encoding
    if letters[0] != "z":
        raise _Unknown
    size = common.number()
    end = common.at + size
    for letter in letters[1:]:
        if letter == "R":
            encoding = common.byte()
        elif letter == "L":
            common.byte()
        elif letter == "P":
            common.pointer(common.byte())
        elif letter not in "SB":
            raise _Unknown
    common.at = end
    return encoding


def _run(reader: _Reader, rules: _Rules, first: _Rules, unit: int, factor: int, until: int) -> None:
    """Carry out the instructions that concern code up to `until` bytes from the start of the function."""
    place = 0
    remembered: list[_Rules] = []
    while reader.more():
        code = reader.byte()
        high, low = code >> 6, code & 0x3F
        if high == _ADVANCE or code in _ADVANCES:
            step = low if high == _ADVANCE else reader.take(_ADVANCES[code])
            place += step * unit
            if place > until:
                return
        elif high == _OFFSET:
            rules.saved[low] = reader.number() * factor
        elif high == _RESTORE or code == 0x06:
            number = low if high == _RESTORE else reader.number()
            rules.saved.pop(number, None)
            if number in first.saved:
                rules.saved[number] = first.saved[number]
        elif code == _REMEMBER:
            remembered.append(rules.copy())
        elif code == _BRING_BACK:
            back = remembered.pop()
            rules.register, rules.offset, rules.saved = back.register, back.offset, back.saved
        else:
            _set(code, reader, rules, factor)


def _set(code: int, reader: _Reader, rules: _Rules, factor: int) -> None:
    """The instructions that change one rule."""
    match code:
        case 0x00 | 0x2D:  # nothing, and that return addresses are signed from here on
            pass
        case 0x05:
            number = reader.number()
            rules.saved[number] = reader.number() * factor
        case 0x07:  # lost; for the return address, that there is no caller
            rules.saved[reader.number()] = None
        case 0x08:
            rules.saved.pop(reader.number(), None)
        case 0x0C:
            rules.register = reader.number()
            rules.offset = reader.number()
        case 0x0D:
            rules.register = reader.number()
        case 0x0E:
            rules.offset = reader.number()
        case 0x10 | 0x16:  # computed: nothing that we need is
            rules.saved[reader.number()] = None
            reader.skip()
        case 0x11:
            number = reader.number()
            rules.saved[number] = reader.number(signed=True) * factor
        case 0x12:
            rules.register = reader.number()
            rules.offset = reader.number(signed=True) * factor
        case 0x13:
            rules.offset = reader.number(signed=True) * factor
        case 0x2E:
            reader.number()
        case _:
            raise _Unknown


class Frames:
    """Goes through the frames of a stopped thread."""

    def __init__(self, memory: Memory, processor: Processor) -> None:
        self._memory = memory
        self._processor = processor
        self._tables: dict[int, _Tables | None] = {}

    def addresses(self, registers: Any, maps: Maps) -> Iterator[int]:
        """Where the thread is, and where each caller is, the nearest first, as far as can be told."""
        values: dict[int, int] = dict(enumerate(registers.dwarf()))
        pc = inside = registers.pc
        for _ in range(_MOST):
            if not pc:
                return
            yield pc
            try:
                rules, returns = self._rules(inside, maps)
                if rules.register not in values:
                    return
                end = (values[rules.register] + rules.offset) & _ADDRESS
                for number, offset in rules.saved.items():
                    if offset is None:
                        values.pop(number, None)
                    else:
                        (values[number],) = self._memory.unpack("<Q", (end + offset) & _ADDRESS)
            except (_Unknown, ValueError, LookupError, struct.error, OSError):
                return
            values[self._processor.dwarf_sp] = end
            pc = values.get(returns, 0) & self._processor.address_mask
            inside = pc - 1  # the call, which may be the last that its function does

    def _rules(self, pc: int, maps: Maps) -> tuple[_Rules, int]:
        mapping = maps.at(pc)
        if mapping is None or not mapping.executable:
            raise _Unknown
        path = mapping.path
        base = max(found.start for found in maps if found.path == path and found.start <= pc and not found.offset)
        if base not in self._tables:
            try:
                self._tables[base] = _Tables(self._memory, Image(self._memory, base, self._processor.elf_machine))
            except (_Unknown, ValueError, LookupError, struct.error, OSError):
                self._tables[base] = None
        tables = self._tables[base]
        if tables is None:
            raise _Unknown
        return tables.rules(pc)
