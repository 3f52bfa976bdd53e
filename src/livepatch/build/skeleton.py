"""The hooks that a refused build asks a person to write, as a file to fill in.

It is complete Python. Every function in it raises NotImplementedError, and as long as one does, a build refuses what it
is for (`byhand.attributes_of`).
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import TYPE_CHECKING

from livepatch.archive import byhand
from livepatch.archive.format import DefaultEntry
from livepatch.build.report import Change

if TYPE_CHECKING:
    from livepatch.build.pack import Build

_HEAD = '''"""What instances that were made before a patch have under attributes that only its new code gives them.

Each function is given an instance when new code reads the attribute of it for the first time, and says what it is.
Write all of them, and build again with --hooks THIS_FILE: what still raises NotImplementedError stays refused.
"""
'''
_CONSTRUCTORS = ("__new__", "__init__", "__post_init__")


def skeleton(build: Build) -> str:
    """The file, empty if there is nothing in the report that hooks could say."""
    asked: dict[str, list[Change]] = {}
    for change in build.report.refused:
        if isinstance(change.entry, DefaultEntry):
            for key in sorted(change.needs):
                asked.setdefault(key, []).append(change)
    if not asked:
        return ""
    lines = [_HEAD]
    names: dict[str, str] = {}
    shown = ""
    for key in sorted(asked):
        module, _, attribute = key.partition(":")
        cls, _, last = attribute.rpartition(".")
        lines.append("")
        if shown != f"{module}:{cls}":
            shown = f"{module}:{cls}"
            lines += _constructors(build, module, cls, [asked[k][0] for k in asked if k.startswith(f"{shown}.")])
        lines += [f"# Read by {change.name} ({_safe(change.file)}:{change.line})" for change in asked[key]]
        names[key] = _name(attribute, set(names.values()))
        lines.append(f"def {names[key]}(instance):")
        lines.append(f'    raise NotImplementedError("say what {last} is for an instance made before")\n')
    lines += ["", f"{byhand.ATTRIBUTES} = {{", *(f'    "{key}": {name},' for key, name in names.items()), "}", ""]
    return "\n".join(lines)


def _constructors(build: Build, module: str, cls: str, asked: list[Change]) -> Iterator[str]:
    """How instances of a class are made, in both versions, as comments."""
    yield f"# {module}:{cls}\n#"
    for new, version in ((False, "old"), (True, "new")):
        path = build.trees[new].path_of(module)
        if path is None:
            continue
        wanted = {f"{cls}.{name}" for name in _CONSTRUCTORS}
        lines = [change.entry.line for change in asked if new and isinstance(change.entry, DefaultEntry)]
        wanted |= {build.sides.around(path, line, new=True) for line in lines}
        spans = {build.sides.definition(path, name, new=new) for name in wanted}
        found = sorted(span for span in spans if span is not None)
        for span in found:
            yield f"# {version}, {_safe(path)}:{span[0]}"
            text = dedent("\n".join(build.sides.lines(path, span, new=new)))
            yield from (f"#     {_safe(line)}".rstrip() for line in text.split("\n"))
        if not found:
            yield f"# {version}, {_safe(path)}: it has no constructor of its own"
        yield "#"


def _name(attribute: str, taken: set[str]) -> str:
    name = re.sub(r"\W", "_", attribute).lower()
    while name in taken or keyword.iskeyword(name) or name == byhand.ATTRIBUTES:
        name += "_"
    return name


def _safe(text: str) -> str:
    """Text that neither ends a comment nor is anything but text."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in text)
