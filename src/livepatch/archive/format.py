"""What a `.livepatch` file is: a zip with `manifest.json` and two versions of every changed module.

    manifest.json         what the patch is, and per module which functions it changes
    old/jinja2/filters.py the source that the patch was built from: proof, when it is loaded, that it fits
    new/jinja2/filters.py the source with the change
    hooks.py              callbacks, if the author wrote any; `byhand` says what must be in it
    SIGNATURE             who vouches for all of that, if anybody does; see `seal`

Code travels as source, because only the interpreter that will run it can compile it. The manifest names what
changes; it does not repeat it.

The same content always gives the same bytes: members sorted, one fixed time, one mode, and stored rather than
compressed, since zlib's output differs between its versions. Reading never writes to disk and takes nothing
from the file on trust: it is all in memory, limited in size, and every member must be one that is expected.
"""

from __future__ import annotations

import binascii
import errno
import io
import json
import posixpath
import stat
import struct
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from livepatch.core.model import LivepatchError

from .record import Record

if TYPE_CHECKING:
    import zipfile

FORMAT = 1
MANIFEST = "manifest.json"
HOOKS = "hooks.py"
SIGNATURE = "SIGNATURE"
SIZE_LIMIT = 64 * 1024 * 1024  # bytes of all members together, unpacked
FILE_LIMIT = 64 * 1024 * 1024  # bytes of the file
MEMBER_LIMIT = 10_000

#: The records of a zip: of a member in front of its content and in the list at the end, and of that list.
_LOCAL, _LISTED, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_MADE_BY = 3 << 8 | 20  # Unix, and the first version of zip that can do what we need
_EPOCH = 1 << 5 | 1  # 1980-01-01, the earliest day that a zip can express
_MODE = 0o644 << 16
_UTF8 = 0x800  # says so of a member's name


class FunctionEntry(Record):
    """A function whose code the patch replaces.

    `sympos` and `new_sympos` are positions among the definitions of that name in the old and the new source,
    0 where the name is unique; `line` is in the new source. A `conditional` function is defined below an `if`
    or a `try` and need not exist in every process. `anew` are parameters whose default means something else now,
    although its source is the same. One that is `retired` has no new version: something else takes its place (a
    `MemberEntry`), who holds it keeps it, and no task moves while in it; or, if it is `onward`, it calls that.
    An `immediate` one changes for everybody at once and holds nobody up; what is nested in it says so for itself.
    """

    name: str
    line: int
    reason: str
    sympos: int = 0
    new_sympos: int = 0
    conditional: bool = False
    anew: tuple[str, ...] = ()
    retired: bool = False
    onward: bool = False
    immediate: bool = False


class AddedEntry(Record):
    """A statement of the new source that is run before the transition: `kind` is function, method, class,
    import, name or attribute; `name` is what it binds, `C.name` in a class.

    Or it is not run, because it has moved: with `origin` set, to `module:name`, the name means what that does.
    """

    name: str
    kind: str
    line: int
    origin: str = ""


class RemovedEntry(Record):
    """A member of a class that the new source lacks. It stays, so nothing inherited may lie beneath it."""

    name: str
    line: int


#: How a value follows: each task sees that of its world; when all tasks have moved; the same, made only then.
BY_WORLD, AT_COMPLETION, MADE_LATE = "by world", "at completion", "made late"
#: Or, since it is new, before the transition: as an attribute of the instances of the owner, which copy all names.
COPIED = "copied"


class ConstantEntry(Record):
    """A name that means another value when the patch is in force: of the module, `C.name` of a class of it, or, as
    `owner` says, `a.b.name` of whatever object `a.b` is.

    `lines` are those of the statements of the new source that make the value, one after the other; where there are
    `old_lines` too, the live value must be what these make. With `origin` set, to `module:name`, this module has
    imported the value from that one, and follows it.
    """

    name: str
    line: int
    origin: str = ""
    lines: tuple[int, ...] = ()
    old_lines: tuple[int, ...] = ()
    how: str = AT_COMPLETION
    owner: str = ""


class CacheEntry(Record):
    """What classes keep that was computed from an attribute on first use, and is to be computed again.

    `cls`, as `module:C`, is the class whose attribute changed; it and its subclasses may have the cache, under `name`.
    `line` is that of the `if` in the new source of this module which computes it where it is missing.
    """

    cls: str
    name: str
    line: int


class DefaultEntry(Record):
    """An attribute `C.name` that instances made by the old release lack; `defaults` says how they get it.

    One that is `hooked` has a function in the hooks. `value` is an expression that the builder has found where it takes
    more than the source of the class to see it: in terms of the instance, `self`, and of the names of the module.
    """

    name: str
    line: int
    hooked: bool = False
    value: str = ""


class MemberEntry(Record):
    """A member of a class, or a function of the module, that is exchanged as a whole; see `members`.

    It `becomes` "new", what the new source has; "valued", the same of a module where its name is among the values that
    change; "gone", what is inherited; "none"; "generated", what the class statement makes by itself; or "converted",
    an attribute of instances that each world sees in its own form. `how` it
    is used: "call" or "read". `flavour` is the kind of what is called, `direct` that nothing is around its function;
    `followers` are names, as `module:name`, under which other modules have imported it. The class of a `conditional`
    one is defined below an `if` or a `try`, so that the live module need not have it.
    """

    name: str
    line: int
    becomes: str
    how: str
    flavour: str = "function"
    direct: bool = False
    followers: tuple[str, ...] = ()
    conditional: bool = False


class BasesEntry(Record):
    """A class that has other bases in the new source; see `bases`."""

    name: str
    line: int


class EnumEntry(Record):
    """A new member `C.name` of an enumeration; see `enums`."""

    name: str
    line: int


class EffectEntry(Record):
    """A statement of the new source that is run for what it does to something else; see `effects`."""

    name: str
    line: int


class BranchEntry(Record):
    """A name that is defined under conditions which changed, or in more or fewer places than before; see `branches`.

    `old_lines` and `lines`, side by side, are those of definitions that correspond, 0 where one has no counterpart;
    `old_around` and `around` those of the statements beside them that may decide, such as imports. If `valued`, the
    conditions name what the patch changes or adds.
    """

    name: str
    line: int
    old_lines: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()
    old_around: tuple[int, ...] = ()
    around: tuple[int, ...] = ()
    valued: bool = False


class ObjectEntry(Record):
    """What the patch does to one module."""

    module: str
    path: str
    functions: tuple[FunctionEntry, ...] = ()
    added: tuple[AddedEntry, ...] = ()
    removed: tuple[RemovedEntry, ...] = ()
    at_completion: tuple[ConstantEntry, ...] = ()
    caches: tuple[CacheEntry, ...] = ()
    defaults: tuple[DefaultEntry, ...] = ()
    members: tuple[MemberEntry, ...] = ()
    bases: tuple[BasesEntry, ...] = ()
    enums: tuple[EnumEntry, ...] = ()
    branches: tuple[BranchEntry, ...] = ()
    effects: tuple[EffectEntry, ...] = ()
    notes: tuple[str, ...] = ()


class ModuleEntry(Record):
    """A module that only the new release has, and the patch brings; see `arrivals`.

    `adopts` are functions, classes and values, as `module:name`, which have moved here and stay the objects they are.
    `follows` are names that it imports, as `alias=module:name`, and that change when the transition is over.
    """

    module: str
    path: str
    adopts: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()


class Manifest(Record):
    """What the patch is.

    `distributions` name the packages whose releases it was built from, each with the keys name, from and to. They
    and `requires_python` are for information: the comparison of code decides. `states` is reserved. `absent` are
    modules that the release changes in a way that the patch does not carry: it refuses to load where one is imported.
    """

    name: str
    version: str = ""
    description: str = ""
    replace: bool = False
    consistency: str = "stack"
    states: tuple[Any, ...] = ()
    requires_python: str | None = None
    distributions: tuple[Mapping[str, str], ...] = ()
    objects: tuple[ObjectEntry, ...] = ()
    absent: tuple[str, ...] = ()
    modules: tuple[ModuleEntry, ...] = ()


class Archive(Record):
    """A patch archive in memory; `old` and `new` map a module's path to its source, as bytes; so are the hooks.

    Of modules that the patch brings there is no old source.
    """

    manifest: Manifest
    old: Mapping[str, bytes]
    new: Mapping[str, bytes]
    hooks: bytes | None = None

    def __repr__(self) -> str:
        return f"Archive(manifest={self.manifest!r})"


def write(archive: Archive) -> bytes:
    """The archive as a file's content."""
    from dataclasses import asdict  # nobody writes archives in a process that is patched

    document = {"format": FORMAT, **asdict(archive.manifest)}
    members = {MANIFEST: json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"}
    members |= {"old/" + path: source for path, source in archive.old.items()}
    members |= {"new/" + path: source for path, source in archive.new.items()}
    if archive.hooks is not None:
        members[HOOKS] = archive.hooks
    return pack(members)


def pack(members: Mapping[str, bytes]) -> bytes:
    """The one way to write these members into a file."""
    packed, listed = bytearray(), bytearray()
    for name in sorted(members):
        content, shown = members[name], name.encode()
        size, checksum = len(content), binascii.crc32(content)
        common = (20, 0 if name.isascii() else _UTF8, 0, 0, _EPOCH, checksum, size, size, len(shown), 0)
        listed += _LISTED.pack(b"PK\1\2", _MADE_BY, *common, 0, 0, 0, _MODE, len(packed)) + shown
        packed += _LOCAL.pack(b"PK\3\4", *common) + shown + content
    end = _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(listed), len(packed), 0)
    return bytes(packed + listed + end)


def read(data: bytes) -> Archive:
    """The archive in a file's content.

    Raises LivepatchError: ENOEXEC for what is not a valid archive, EPROTONOSUPPORT for a newer format.
    """
    members = unpack(data)
    members.pop(SIGNATURE, None)
    if MANIFEST not in members:
        raise broken(f"it has no {MANIFEST}; a patch archive is made by `livepatch build`")
    manifest = _manifest(members.pop(MANIFEST))
    hooks = members.pop(HOOKS, None)
    sources: dict[str, dict[str, bytes]] = {"old": {}, "new": {}}
    for name, content in members.items():
        version, _, path = name.partition("/")
        if version not in sources or not path:
            raise broken(f"it contains {name!r}, which this version of livepatch does not know")
        sources[version][path] = content
    changed = {entry.path for entry in manifest.objects}
    for version, expected in ("old", changed), ("new", changed | {entry.path for entry in manifest.modules}):
        found = sources[version]
        for path in sorted(expected ^ set(found)):
            what = "lacks" if path in expected else "has a needless"
            raise broken(f"it {what} {version}/{path}")
    return Archive(manifest, sources["old"], sources["new"], hooks)


def broken(why: str) -> LivepatchError:
    """What a file is refused with that is no archive as livepatch writes them (ENOEXEC)."""
    return LivepatchError(errno.ENOEXEC, f"This is not a valid patch archive: {why}.")


def unpack(data: bytes) -> dict[str, bytes]:
    """The members by name, the signature among them. Raises LivepatchError (ENOEXEC)."""
    if len(data) <= SIZE_LIMIT and (members := _plain(data)) is not None:
        _check_number(members)
        for name in members:
            _check_path(name, name)
        return members
    import zipfile  # for what others have packed; importing it costs more than all the rest of a load

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            _check_members(infos)
            if file.comment:
                raise broken("it has a comment, and nothing that livepatch writes has")
            return {info.filename: file.read(info) for info in infos}
    except LivepatchError:
        raise
    # zipfile, struct and zlib each have their own way to say that a file is damaged.
    except Exception as error:
        raise broken(f"it is damaged, or no zip at all ({error})") from None


def _plain(data: bytes) -> dict[str, bytes] | None:
    """The members of what `pack` has made, and None for everything else.

    Nothing is taken on trust: it is what it seems to be if packing the members makes the very same bytes.
    """
    members, at = dict[str, bytes](), 0
    try:
        while data.startswith(b"PK\3\4", at):
            *_, size, length, _ = _LOCAL.unpack_from(data, at)
            begin = at + _LOCAL.size + length
            name = data[at + _LOCAL.size : begin].decode()
            at = begin + size
            members[name] = data[begin:at]
        return members if pack(members) == data else None
    except (struct.error, ValueError):
        return None


def _check_number(members: Sized) -> None:
    if len(members) > MEMBER_LIMIT:
        raise broken(f"it has {len(members)} members, and {MEMBER_LIMIT} are allowed")


def _check_path(name: str, written: str) -> None:
    if not safe_path(name) or not name.isprintable() or name != written:
        raise broken(f"it contains the path {written!r}")


def _check_members(infos: list[zipfile.ZipInfo]) -> None:
    _check_number(infos)
    # Reading a member stops at the size stated here, so the limit holds for a file that lies about it too.
    if sum(info.file_size for info in infos) > SIZE_LIMIT:
        raise broken(f"it unpacks to more than {SIZE_LIMIT >> 20} MiB")
    seen = set()
    for info in infos:
        name = info.filename
        if name in seen:
            raise broken(f"it contains {name!r} twice")
        seen.add(name)
        _check_path(name, info.orig_filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise broken(f"{name!r} in it is a link or another thing that is no file")


def safe_path(path: str) -> bool:
    """Whether a path from a file stays inside a folder and is written in one way only."""
    if path.startswith(("/", "..")) or "\\" in path or ":" in path:
        return False
    return posixpath.normpath(path) == path


def _manifest(content: bytes) -> Manifest:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise broken(f"its {MANIFEST} is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise broken(f"its {MANIFEST} does not say which format it has")
    if document["format"] != FORMAT:
        raise LivepatchError(
            errno.EPROTONOSUPPORT,
            f"The patch archive has format {document['format']}, and this livepatch reads format {FORMAT}: "
            f"{'update livepatch' if document['format'] > FORMAT else 'build it again'}.",
        )
    del document["format"]
    entries = [_object(item) for item in _list(document.get("objects"), "objects")]
    modules = [_build(ModuleEntry, item) for item in _list(document.get("modules", []), "modules")]
    document["objects"], document["modules"] = tuple(entries), tuple(modules)
    document["states"] = tuple(_list(document.get("states", []), "states"))
    document["distributions"] = tuple(_list(document.get("distributions", []), "distributions"))
    for distribution in document["distributions"]:
        if not (
            isinstance(distribution, dict)
            and distribution.keys() == {"name", "from", "to"}
            and all(isinstance(value, str) for value in distribution.values())
        ):
            raise broken(f"its {MANIFEST} says {distribution!r} for a distribution")
    manifest = _build(Manifest, document)
    check_name(manifest.name)
    for key in ("module", "path"):
        names = [getattr(entry, key) for entry in (*entries, *modules)]
        if len(set(names)) != len(names):
            raise broken(f"its {MANIFEST} lists a {key} twice")
    return manifest


def refusal(sentence: str) -> LivepatchError:
    """What a patch is refused with that does not fit here, or is not sound (EINVAL)."""
    return LivepatchError(errno.EINVAL, sentence)


def check_name(name: str) -> None:
    """Raise LivepatchError (EINVAL) for what cannot be the name of a patch: it is also shown as a path."""
    if not name or not name.isprintable() or len(name) > 200 or set(name) & set("/<>"):
        raise refusal(f"A patch cannot have the name {name!r}.")


def _object(item: Any) -> ObjectEntry:
    if not isinstance(item, dict):
        raise broken(f"its {MANIFEST} has an object that is no mapping")
    parts: dict[str, type[Record]] = {
        "functions": FunctionEntry,
        "added": AddedEntry,
        "removed": RemovedEntry,
        "at_completion": ConstantEntry,
        "caches": CacheEntry,
        "defaults": DefaultEntry,
        "members": MemberEntry,
        "bases": BasesEntry,
        "enums": EnumEntry,
        "branches": BranchEntry,
        "effects": EffectEntry,
    }
    built: dict[str, Any] = dict(item)
    for key, cls in parts.items():
        built[key] = tuple(_build(cls, part) for part in _list(item.get(key, []), key))
    for function in built["functions"]:
        if function.immediate and function.retired:  # it is there so that somebody waits
            raise broken(f"its {MANIFEST} says that {function.name!r} is immediate, and has no new version")
    built["notes"] = _list(item.get("notes", []), "notes")
    return _build(ObjectEntry, built)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise broken(f"its {MANIFEST} has {what!r} that is no list")
    return value


_T = TypeVar("_T", bound=Record)
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "tuple[int, ...]": (list,),
    "tuple[str, ...]": (list,),
}
_PARTS: dict[str, type] = {"tuple[int, ...]": int, "tuple[str, ...]": str}


def _build(cls: type[_T], item: Any) -> _T:
    """One of the dataclasses above from its JSON form; every value must have the type declared there."""
    if not isinstance(item, dict):
        raise broken(f"its {MANIFEST} has something else where {cls.__name__} is expected")
    declared = cls.declared
    for key, value in item.items():
        if key not in declared:
            raise broken(f"its {MANIFEST} contains {key!r}, which this version of livepatch does not know")
        wanted = _TYPES.get(declared[key])
        if wanted is not None and type(value) not in wanted:
            raise broken(f"its {MANIFEST} says {value!r} for {key!r}")
        if declared[key] in _PARTS and {type(part) for part in value} - {_PARTS[declared[key]]}:
            raise broken(f"its {MANIFEST} says {value!r} for {key!r}")
    try:
        return cls(**{key: tuple(v) if declared[key] in _PARTS else v for key, v in item.items()})
    except TypeError:
        missing = ", ".join(sorted(declared.keys() - item.keys()))
        raise broken(f"its {MANIFEST} lacks some of: {missing}") from None
