"""The file: the same bytes every time, and nothing in it is taken on trust."""

import dataclasses
import errno
import io
import json
import random
import warnings
import zipfile

import pytest

from livepatch.archive import format
from livepatch.archive.format import (
    AddedEntry,
    Archive,
    CacheEntry,
    ConstantEntry,
    FunctionEntry,
    Manifest,
    ModuleEntry,
    ObjectEntry,
    RemovedEntry,
)
from livepatch.core.model import LivepatchError

ARCHIVE = Archive(
    Manifest(
        "fix",
        version="1.1",
        description="Größer",
        requires_python=">=3.8",
        distributions=({"name": "p", "from": "1.0", "to": "1.1"},),
        objects=(
            ObjectEntry(
                "p.m",
                "p/m.py",
                functions=(FunctionEntry("C.f", 12, "body", sympos=1, new_sympos=2, conditional=True),),
                added=(AddedEntry("g", "function", 3),),
                removed=(RemovedEntry("C.h", 4),),
                at_completion=(ConstantEntry("__version__", 1, "p:__version__"),),
                notes=("a note",),
            ),
            ObjectEntry("p", "p/__init__.py"),
        ),
        modules=(ModuleEntry("p.new", "p/new.py", ("p.m:C",)),),
    ),
    {"p/m.py": b"old", "p/__init__.py": b""},
    {"p/m.py": b"new", "p/__init__.py": b"x", "p/new.py": b"y"},
)
DATA = format.write(ARCHIVE)


def members(data=DATA):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(contents):
    """A zip of (name, content) pairs, however strange."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in contents:
            file.writestr(name, content)
    return buffer.getvalue()


def with_manifest(**changes):
    """The archive with other things in its manifest; None takes one away."""
    document = json.loads(members()["manifest.json"]) | changes
    document = {key: value for key, value in document.items() if value is not None}
    return zipped((members() | {"manifest.json": json.dumps(document)}).items())


def refusal(data):
    with pytest.raises(LivepatchError) as caught:
        format.read(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return caught.value


def test_what_was_written_is_read():
    assert format.read(DATA) == ARCHIVE
    assert format.read(format.write(Archive(Manifest("x"), {}, {}))) == Archive(Manifest("x"), {}, {})


def test_the_same_bytes_every_time():
    backwards = Archive(ARCHIVE.manifest, dict(reversed(ARCHIVE.old.items())), dict(reversed(ARCHIVE.new.items())))
    assert format.write(backwards) == DATA


def test_it_is_a_plain_zip():
    new = ["new/p/__init__.py", "new/p/m.py", "new/p/new.py"]
    assert list(members()) == ["manifest.json", *new, "old/p/__init__.py", "old/p/m.py"]
    document = json.loads(members()["manifest.json"])
    assert document["format"] == 1
    assert document["objects"][0]["functions"][0]["name"] == "C.f"


def test_compression_makes_no_difference_to_the_reader():
    assert format.read(zipped(members().items())) == ARCHIVE


@pytest.mark.parametrize("data", [b"", b"PK", b"#!/bin/sh\n", DATA[:100], DATA[:-10], DATA[100:], b"x" * 1000])
def test_damaged_files(data):
    error = refusal(data)
    assert error.errno == errno.ENOEXEC
    assert str(error).startswith("This is not a valid patch archive: ")


def test_every_cut_and_every_changed_byte_is_either_noticed_or_harmless():
    for length in range(0, len(DATA), 37):
        refusal(DATA[:length])
    choose = random.Random(0)
    for _ in range(300):
        damaged = bytearray(DATA)
        damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        try:
            found = format.read(bytes(damaged))
        except LivepatchError:
            continue
        assert found == ARCHIVE


def test_a_foreign_zip():
    assert "it has no manifest.json" in str(refusal(zipped([("hello.txt", "x")])))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "old/../../x", "old//x", "old/./x", "C:/x", "old\\x", "old/", "new/x/"],
)
def test_paths_that_lead_elsewhere(name):
    error = refusal(zipped([*members().items(), (name, "x")]))
    assert "contains the path" in str(error) or "does not know" in str(error)


def test_a_member_twice():
    assert "'new/p/m.py' twice" in str(refusal(zipped([*members().items(), ("new/p/m.py", "evil")])))


@pytest.mark.parametrize("name", ["hooks.pyc", "old", "other/x.py"])
def test_unknown_members(name):
    assert "does not know" in str(refusal(zipped([*members().items(), (name, "x")])))


def test_needless_and_missing_members():
    assert "a needless new/x.py" in str(refusal(zipped([*members().items(), ("new/x.py", "x")])))
    del (some := members())["old/p/m.py"]
    assert "lacks old/p/m.py" in str(refusal(zipped(some.items())))


def test_a_bomb():
    assert "more than 64 MiB" in str(refusal(zipped([*members().items(), ("new/x.py", b"\0" * (64 << 20))])))
    lies = zipped([*members().items(), ("new/x.py", b"\0" * (1 << 20))])
    size = (1 << 20).to_bytes(4, "little")
    assert lies.count(size) >= 2
    assert refusal(lies.replace(size, (10).to_bytes(4, "little"))).errno == errno.ENOEXEC


def test_many_members():
    assert "10000 are allowed" in str(refusal(zipped((f"new/{n}.py", "") for n in range(10_001))))


@pytest.mark.parametrize("number", [2, 99])
def test_a_newer_format(number):
    error = refusal(with_manifest(format=number))
    assert error.errno == errno.EPROTONOSUPPORT
    assert str(error) == (
        f"The patch archive has format {number}, and this livepatch reads format 1: update livepatch."
    )


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"\xff", b'{"format": "1"}', b'{"format": true', b"[" * 100_000]
)
def test_a_manifest_that_is_none(content):
    assert refusal(zipped((members() | {"manifest.json": content}).items())).errno == errno.ENOEXEC


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"name": 1},
        {"replace": "yes"},
        {"unknown": 1},
        {"objects": None},
        {"objects": {}},
        {"objects": [1]},
        {"objects": [{"module": "p"}]},
        {"objects": [{"module": "p", "path": "p.py", "functions": [{"name": "f"}]}]},
        {"objects": [{"module": "p", "path": "p.py", "functions": 1}]},
        {"objects": [{"module": "p", "path": ["p.py"]}]},
        {"objects": [{"module": "p", "path": "p.py", "functions": [{"name": "f", "line": True, "reason": ""}]}]},
        {"objects": [{"module": "p", "path": "p.py"}, {"module": "p", "path": "q.py"}]},
        {"objects": [{"module": "p", "path": "p.py"}, {"module": "q", "path": "p.py"}]},
        {"states": 1},
        {"distributions": [{"name": "x"}]},
        {"distributions": {}},
        {"distributions": [{"name": 1, "from": "", "to": ""}]},
    ],
)
def test_a_manifest_that_says_strange_things(changes):
    assert refusal(with_manifest(**changes)).errno == errno.ENOEXEC


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "<x>"])
def test_a_patch_with_a_strange_name(name):
    assert "cannot have the name" in str(refusal(with_manifest(name=name)))


def test_entries_are_plain_data():
    """What goes into the manifest must survive JSON, so every field is of a type that does."""
    for cls in (FunctionEntry, AddedEntry, RemovedEntry, ConstantEntry, CacheEntry):
        plain = {"str", "int", "bool", "tuple[int, ...]", "tuple[str, ...]"}
        assert {field.type for field in dataclasses.fields(cls)} <= plain
