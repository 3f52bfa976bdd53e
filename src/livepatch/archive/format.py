"""What a `.livepatch` file is: a zip with `manifest.json` and two versions of every changed module.

    manifest.json         what the patch is, and per module which functions it changes
    old/jinja2/filters.py the source that the patch was built from: proof, when it is loaded, that it fits
    new/jinja2/filters.py the source with the change
    hooks.py              callbacks, if the author wrote any; `byhand` says what must be in it

Code travels as source, because only the interpreter that will run it can compile it. The manifest names what
changes; it does not repeat it.

The same content always gives the same bytes: members sorted, one fixed time, one mode, and stored rather than
compressed, since zlib's output differs between its versions. Reading never writes to disk and takes nothing
from the file on trust: it is all in memory, limited in size, and every member must be one that is expected.
"""

from __future__ import annotations

import errno
import io
import json
import posixpath
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from livepatch.core.model import LivepatchError

FORMAT = 1
MANIFEST = "manifest.json"
HOOKS = "hooks.py"
SIZE_LIMIT = 64 * 1024 * 1024  # bytes of all members together, unpacked
MEMBER_LIMIT = 10_000

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can express


@dataclass(frozen=True)
class FunctionEntry:
    """A function whose code the patch replaces.

    `sympos` and `new_sympos` are positions among the definitions of that name in the old and the new source,
    0 where the name is unique; `line` is in the new source. A `conditional` function is defined below an `if`
    or a `try` and need not exist in every process.
    """

    name: str
    line: int
    reason: str
    sympos: int = 0
    new_sympos: int = 0
    conditional: bool = False


@dataclass(frozen=True)
class AddedEntry:
    """A statement of the new source that is run before the transition: `kind` is function, method, class,
    import, name or attribute; `name` is what it binds, `C.name` in a class."""

    name: str
    kind: str
    line: int


@dataclass(frozen=True)
class RemovedEntry:
    """A member of a class that the new source lacks. It stays, so nothing inherited may lie beneath it."""

    name: str
    line: int


@dataclass(frozen=True)
class ConstantEntry:
    """A module constant that changes at completion, without consistency, because no code reads it.

    With `origin` set, this module imported the name from that one, and follows it.
    """

    name: str
    line: int
    origin: str = ""


@dataclass(frozen=True)
class ObjectEntry:
    """What the patch does to one module."""

    module: str
    path: str
    functions: tuple[FunctionEntry, ...] = ()
    added: tuple[AddedEntry, ...] = ()
    removed: tuple[RemovedEntry, ...] = ()
    at_completion: tuple[ConstantEntry, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What the patch is.

    `distribution` names the package whose two releases it was built from, with the keys name, from and to. It
    and `requires_python` are for information: the comparison of code decides. `states` is reserved.
    """

    name: str
    version: str = ""
    description: str = ""
    replace: bool = False
    consistency: str = "stack"
    states: tuple[Any, ...] = ()
    requires_python: str | None = None
    distribution: Mapping[str, str] | None = None
    objects: tuple[ObjectEntry, ...] = ()


@dataclass(frozen=True)
class Archive:
    """A patch archive in memory; `old` and `new` map a module's path to its source, as bytes; so are the hooks."""

    manifest: Manifest
    old: Mapping[str, bytes] = field(repr=False)
    new: Mapping[str, bytes] = field(repr=False)
    hooks: bytes | None = field(default=None, repr=False)


def write(archive: Archive) -> bytes:
    """The archive as a file's content."""
    document = {"format": FORMAT, **asdict(archive.manifest)}
    members = {MANIFEST: json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"}
    members |= {"old/" + path: source for path, source in archive.old.items()}
    members |= {"new/" + path: source for path, source in archive.new.items()}
    if archive.hooks is not None:
        members[HOOKS] = archive.hooks
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            file.writestr(info, members[name])
    return buffer.getvalue()


def read(data: bytes) -> Archive:
    """The archive in a file's content.

    Raises LivepatchError: ENOEXEC for what is not a valid archive, EPROTONOSUPPORT for a newer format.
    """
    members = _members(data)
    if MANIFEST not in members:
        raise _broken(f"it has no {MANIFEST}; a patch archive is made by `livepatch build`")
    manifest = _manifest(members.pop(MANIFEST))
    hooks = members.pop(HOOKS, None)
    sources: dict[str, dict[str, bytes]] = {"old": {}, "new": {}}
    for name, content in members.items():
        version, _, path = name.partition("/")
        if version not in sources or not path:
            raise _broken(f"it contains {name!r}, which this version of livepatch does not know")
        sources[version][path] = content
    expected = {entry.path for entry in manifest.objects}
    for version, found in sources.items():
        for path in sorted(expected ^ set(found)):
            what = "lacks" if path in expected else "has a needless"
            raise _broken(f"it {what} {version}/{path}")
    return Archive(manifest, sources["old"], sources["new"], hooks)


def _broken(why: str) -> LivepatchError:
    return LivepatchError(errno.ENOEXEC, f"This is not a valid patch archive: {why}.")


def _members(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            _check_members(infos)
            return {info.filename: file.read(info) for info in infos}
    except LivepatchError:
        raise
    # zipfile, struct and zlib each have their own way to say that a file is damaged.
    except Exception as error:
        raise _broken(f"it is damaged, or no zip at all ({error})") from None


def _check_members(infos: list[zipfile.ZipInfo]) -> None:
    if len(infos) > MEMBER_LIMIT:
        raise _broken(f"it has {len(infos)} members, and {MEMBER_LIMIT} are allowed")
    # Reading a member stops at the size stated here, so the limit holds for a file that lies about it too.
    if sum(info.file_size for info in infos) > SIZE_LIMIT:
        raise _broken(f"it unpacks to more than {SIZE_LIMIT >> 20} MiB")
    seen = set()
    for info in infos:
        name = info.filename
        if name in seen:
            raise _broken(f"it contains {name!r} twice")
        seen.add(name)
        if not safe_path(name):
            raise _broken(f"it contains the path {name!r}")


def safe_path(path: str) -> bool:
    """Whether a path from a file stays inside a folder and is written in one way only."""
    if path.startswith(("/", "..")) or "\\" in path or ":" in path:
        return False
    return posixpath.normpath(path) == path


def _manifest(content: bytes) -> Manifest:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise _broken(f"its {MANIFEST} is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise _broken(f"its {MANIFEST} does not say which format it has")
    if document["format"] != FORMAT:
        raise LivepatchError(
            errno.EPROTONOSUPPORT,
            f"The patch archive has format {document['format']}, and this livepatch reads format {FORMAT}: "
            f"{'update livepatch' if document['format'] > FORMAT else 'build it again'}.",
        )
    del document["format"]
    entries = [_object(item) for item in _list(document.get("objects"), "objects")]
    document["objects"] = tuple(entries)
    document["states"] = tuple(_list(document.get("states", []), "states"))
    distribution = document.get("distribution")
    if distribution is not None and not (
        isinstance(distribution, dict)
        and distribution.keys() == {"name", "from", "to"}
        and all(isinstance(value, str) for value in distribution.values())
    ):
        raise _broken(f"its {MANIFEST} says {distribution!r} for 'distribution'")
    manifest = _build(Manifest, document)
    check_name(manifest.name)
    for key in ("module", "path"):
        names = [getattr(entry, key) for entry in entries]
        if len(set(names)) != len(names):
            raise _broken(f"its {MANIFEST} lists a {key} twice")
    return manifest


def check_name(name: str) -> None:
    """Raise LivepatchError (EINVAL) for what cannot be the name of a patch: it is also shown as a path."""
    if not name or not name.isprintable() or len(name) > 200 or set(name) & set("/<>"):
        raise LivepatchError(errno.EINVAL, f"A patch cannot have the name {name!r}.")


def _object(item: Any) -> ObjectEntry:
    if not isinstance(item, dict):
        raise _broken(f"its {MANIFEST} has an object that is no mapping")
    parts: dict[str, type[Any]] = {
        "functions": FunctionEntry,
        "added": AddedEntry,
        "removed": RemovedEntry,
        "at_completion": ConstantEntry,
    }
    built = dict(item)
    for key, cls in parts.items():
        built[key] = tuple(_build(cls, part) for part in _list(item.get(key, []), key))
    built["notes"] = tuple(_list(item.get("notes", []), "notes"))
    return _build(ObjectEntry, built)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _broken(f"its {MANIFEST} has {what!r} that is no list")
    return value


_T = TypeVar("_T")
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, type(None)),
}


def _build(cls: type[_T], item: Any) -> _T:
    """One of the dataclasses above from its JSON form; every value must have the type declared there."""
    if not isinstance(item, dict):
        raise _broken(f"its {MANIFEST} has something else where {cls.__name__} is expected")
    declared = {entry.name: str(entry.type) for entry in fields(cls)}  # type: ignore[arg-type]
    for key, value in item.items():
        if key not in declared:
            raise _broken(f"its {MANIFEST} contains {key!r}, which this version of livepatch does not know")
        wanted = _TYPES.get(declared[key])
        if wanted is not None and type(value) not in wanted:
            raise _broken(f"its {MANIFEST} says {value!r} for {key!r}")
    try:
        return cls(**item)
    except TypeError:
        missing = ", ".join(sorted(declared.keys() - item.keys()))
        raise _broken(f"its {MANIFEST} lacks some of: {missing}") from None
