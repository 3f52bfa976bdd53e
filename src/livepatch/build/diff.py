"""Applying a unified diff to a source tree in memory.

Git's extended headers are understood: new and deleted files, renames, copies. A hunk may have moved, but its
context and its removed lines must be there to the letter; nothing is guessed beyond that.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from livepatch.build.sources import Files
from livepatch.core.model import LivepatchError

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NOTHING = "/dev/null"


@dataclass
class _Hunk:
    line: int  # in the diff
    start: int  # 1-based, in the old file
    old: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)


@dataclass
class _FilePatch:
    line: int
    old: str = ""
    new: str = ""
    renamed: bool = False
    hunks: list[_Hunk] = field(default_factory=list)


def apply(diff: str, files: Files) -> dict[str, bytes]:
    """The tree with the diff applied.

    Raises LivepatchError (EINVAL) naming file and line if it does not apply.
    """
    result = dict(files)
    patches = list(_parse(diff))
    if not patches:
        raise _refusal("there is no unified diff in it")
    for patch in patches:
        old, new = _find(patch.old, files), _find(patch.new, files)
        if patch.new == _NOTHING:
            result.pop(_known(old, patch), None)
        elif patch.old == _NOTHING:
            name = _strip(patch.new)
            if name in files:
                raise _refusal(f"line {patch.line} makes {name}, which exists already")
            result[name] = _apply_hunks(patch.hunks, b"", name)
        else:
            name = _known(old, patch)
            content = _apply_hunks(patch.hunks, files[name], name) if patch.hunks else files[name]
            if patch.renamed:
                result.pop(name, None)
                name = _strip_like(patch.new, patch.old, name)
            else:
                name = new or name
            result[name] = content
    return result


def _refusal(reason: str) -> LivepatchError:
    return LivepatchError(errno.EINVAL, f"The diff does not apply: {reason}.")


def _strip(name: str) -> str:
    """A new file's path: without the prefix that git puts before it."""
    path = name[2:] if name.startswith(("a/", "b/")) else name
    if path.startswith("/") or ".." in path.split("/"):
        raise _refusal(f"{name} is outside of the source tree")
    return path


def _strip_like(name: str, sibling: str, stripped: str) -> str:
    """The path of a renamed file, with as many leading folders taken off as its old name needed."""
    taken_off = sibling.count("/") - stripped.count("/")
    return _strip("/".join(name.split("/")[taken_off:]))


def _find(name: str, files: Files) -> str | None:
    """The file that a name in a diff means: with as few leading folders taken off as possible."""
    parts = name.split("/")
    return next((path for n in range(len(parts)) if (path := "/".join(parts[n:])) in files), None)


def _known(path: str | None, patch: _FilePatch) -> str:
    if path is None:
        raise _refusal(f"line {patch.line} changes {patch.old}, which is not in the source tree")
    return path


def _apply_hunks(hunks: list[_Hunk], content: bytes, name: str) -> bytes:
    lines = content.splitlines(keepends=True)
    ending = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
    result: list[bytes] = []
    done = 0  # lines of the old file that are in the result
    for hunk in hunks:
        wanted = max(hunk.start - 1, 0) if hunk.old else hunk.start
        at = _locate(hunk.old, lines, wanted, done)
        if at is None:
            raise _refusal(
                f"{name}:{hunk.start}: the lines that it changes are not there (line {hunk.line} of the diff)"
            )
        result += lines[done:at]
        result += [line.rstrip(b"\r\n") + ending if line.endswith(b"\n") else line for line in hunk.new]
        done = at + len(hunk.old)
    return b"".join([*result, *lines[done:]])


def _locate(wanted: list[bytes], lines: list[bytes], at: int, first: int) -> int | None:
    """Where these lines are, as near to `at` as possible and not before `first`; line ends do not count."""
    text = [line.rstrip(b"\r\n") for line in wanted]
    last = len(lines) - len(wanted)
    for offset in range(len(lines) + 1):
        for position in (at + offset, at - offset):
            there = lines[position : position + len(text)]
            if first <= position <= last and [line.rstrip(b"\r\n") for line in there] == text:
                return position
    return None


def _parse(diff: str) -> Iterator[_FilePatch]:
    # Not splitlines(): a form feed inside a source line does not end it.
    lines = diff.split("\n")
    patch: _FilePatch | None = None
    number = 0
    while number < len(lines):
        line = lines[number].rstrip("\r")
        number += 1
        if line.startswith("diff --git "):
            if patch is not None and (patch.hunks or patch.renamed):
                yield patch
            patch = None
        elif line.startswith(("rename from ", "rename to ")):
            patch = patch or _FilePatch(number, renamed=True)
            patch.renamed = True
            setattr(patch, "old" if line.startswith("rename from") else "new", line.split(" ", 2)[2])
        elif line.startswith(("GIT binary patch", "Binary files ")):
            raise _refusal(f"line {number} is about a binary file, and only source can be patched")
        elif line.startswith("--- ") and number < len(lines) and lines[number].startswith("+++ "):
            if patch is not None and patch.hunks:
                yield patch
                patch = None
            renamed = patch is not None and patch.renamed
            patch = _FilePatch(number, _file_name(line), _file_name(lines[number]), renamed)
            number += 1
        elif line.startswith("@@ "):
            if patch is None:
                raise _refusal(f"line {number} begins a hunk, and no file was named before")
            number = _parse_hunk(lines, number, patch)
    if patch is not None and (patch.hunks or patch.renamed):
        yield patch


def _file_name(line: str) -> str:
    return line[4:].split("\t")[0].strip().strip('"')


def _parse_hunk(lines: list[str], number: int, patch: _FilePatch) -> int:
    """Read the hunk whose header is the line before; return the number of the line after it."""
    match = _HUNK.match(lines[number - 1])
    if match is None:
        raise _refusal(f"line {number} is no valid hunk header")
    old, new = (int(count) if count is not None else 1 for count in match.group(2, 4))
    hunk = _Hunk(number, int(match.group(1)))
    while old > 0 or new > 0:
        if number >= len(lines):
            raise _refusal("it is cut off in the middle of a hunk")
        line = lines[number]
        number += 1
        mark, text = line[:1] or " ", line[1:].encode() + b"\n"
        if mark not in " -+" and mark != "\r":
            raise _refusal(f"line {number} is not part of a hunk, but the hunk is not over")
        if mark in " -\r":
            hunk.old.append(text)
            old -= 1
        if mark in " +\r":
            hunk.new.append(text)
            new -= 1
        if number < len(lines) and lines[number].startswith("\\"):  # no newline at end of file
            number += 1
            for side in (hunk.old if mark in " -" else None, hunk.new if mark in " +" else None):
                if side:
                    side[-1] = side[-1].rstrip(b"\r\n")
    patch.hunks.append(hunk)
    return number
