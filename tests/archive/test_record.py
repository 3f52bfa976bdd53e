"""Plain data in the target: dataclasses for whoever asks, and hardly anything to import for a load."""

import copy
import dataclasses
import io
import pickle
import subprocess
import sys
import zipfile

import pytest

from livepatch.archive import format
from livepatch.archive.format import AddedEntry, Archive, FunctionEntry, Manifest, ObjectEntry, RemovedEntry
from livepatch.archive.record import Record

ENTRY = FunctionEntry("f", 3, "why", conditional=True, anew=("a",))


def test_it_is_what_a_dataclass_would_be():
    names = [field.name for field in dataclasses.fields(FunctionEntry)]
    same = dataclasses.make_dataclass("FunctionEntry", names, frozen=True)
    twin = same(**{name: getattr(ENTRY, name) for name in names})
    assert repr(ENTRY) == repr(twin)
    assert hash(ENTRY) == hash(twin)
    assert dataclasses.asdict(ENTRY) == dataclasses.asdict(twin)
    assert dataclasses.replace(ENTRY, line=4) == FunctionEntry("f", 4, "why", 0, 0, True, ("a",))
    manifest = Manifest("x", objects=(ObjectEntry("m", "m.py", functions=(ENTRY,)),))
    assert dataclasses.asdict(manifest)["objects"][0]["functions"][0]["anew"] == ("a",)
    assert [field.default for field in dataclasses.fields(RemovedEntry)] == [dataclasses.MISSING] * 2


def test_two_of_different_kinds_are_different():
    class One(Record):
        name: str

    class Other(Record):
        name: str

    assert One("x") == One("x")
    assert One("x") != Other("x")
    assert len({One("x"), One(name="x"), One("y")}) == 2
    assert One("x") != ("x",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AddedEntry("x"),
        lambda: AddedEntry("x", "y", 1, "z", "more"),
        lambda: AddedEntry("x", "y", 1, name="again"),
        lambda: AddedEntry("x", "y", line=1, unknown=2),
    ],
)
def test_what_does_not_fit_its_fields_is_a_type_error(make):
    with pytest.raises(TypeError, match="AddedEntry"):
        make()


def test_nothing_of_it_changes():
    with pytest.raises(AttributeError):
        ENTRY.line = 4
    with pytest.raises(AttributeError):
        del ENTRY.line
    with pytest.raises(AttributeError):
        ENTRY.other = 4
    assert copy.deepcopy(ENTRY) == pickle.loads(pickle.dumps(ENTRY)) == ENTRY


def test_an_archive_is_the_bytes_that_zipfile_makes():
    """Signatures of earlier releases are on those bytes."""
    members = {"manifest.json": b"{}\n", "old/a.py": b"", "new/\u00e4.py": b"x" * 70_000, "new/a b.py": b"\xff\0"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            file.writestr(info, members[name])
    assert format.pack(members) == buffer.getvalue()
    assert format.unpack(buffer.getvalue()) == members


def test_what_is_not_exactly_ours_is_read_by_zipfile_with_all_its_checks():
    """Whoever reads from the front only is told another content than who goes by the list at the end."""
    data = format.pack({"manifest.json": b"one"})
    for forged in (data.replace(b"one", b"two"), b"x" + data, data + b"x", data.replace(b"PK\1\2", b"PK\1\3")):
        with pytest.raises(format.LivepatchError, match="not a valid patch archive"):
            format.read(forged)
    twice = format.pack({"manifest.json": b"one"})[:-22] + format.pack({"manifest.json": b"two"})
    with pytest.raises(format.LivepatchError):
        format.read(twice)


@pytest.mark.parametrize("name", ["../x", "/x", "old/./x", "a\nb"])
def test_paths_that_lead_elsewhere_are_refused_in_an_archive_like_ours(name):
    with pytest.raises(format.LivepatchError, match="contains the path"):
        format.unpack(format.pack({"manifest.json": b"{}", name: b""}))


def test_the_first_load_imports_little():
    """In a busy process each of its steps waits for the interpreter; `zipfile` and `dataclasses` were half of them."""
    archive = Archive(
        Manifest("fix", objects=(ObjectEntry("service", "service.py", functions=(FunctionEntry("f", 1, "changed"),)),)),
        {"service.py": b"def f():\n    return 1\n"},
        {"service.py": b"def f():\n    return 2\n"},
    )
    script = (
        "import sys, types\n"
        "known = set(sys.modules)\n"
        "import livepatch\n"
        "from livepatch.agent import patchfile\n"
        "module = sys.modules['service'] = types.ModuleType('service')\n"
        "exec(compile('def f():\\n    return 1\\n', 'service.py', 'exec'), module.__dict__)\n"
        f"livepatch.enable_patch(patchfile.read({format.write(archive)!r}, 'fix.livepatch'))\n"
        "large = {'zipfile', 'dataclasses', 'inspect', 'pathlib', 'shutil'}\n"
        "print(module.f(), sorted(large & (set(sys.modules) - known)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2 []\n", "")
