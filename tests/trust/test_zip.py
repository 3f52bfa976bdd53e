"""Zips that were made to show one thing to one reader and another to the next."""

import hashlib
import io
import struct
import warnings
import zipfile

import pytest
from tests.archive.test_format import ARCHIVE, DATA, members, refusal

from livepatch.archive import format, seal
from livepatch.core.model import LivepatchError

pytestmark = pytest.mark.once

SIGNED = seal.with_signature(DATA, b"a signature")
EVIL = b"import os\n"


def remade(data=SIGNED, **changes):
    """The same members, with other attributes of `new/p/m.py` in the zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in sorted(members(data).items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            if name == "new/p/m.py":
                for key, value in changes.items():
                    setattr(info, key, value)
            file.writestr(info, content)
    return buffer.getvalue()


def between(data=SIGNED):
    """Something lies between two members, which the directory at the end does not mention."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = file.infolist()
        place, start = infos[1].header_offset, file.start_dir
    hole = b"PK\3\4" + EVIL
    moved = bytearray(data[:place] + hole + data[place:])
    at = start + len(hole)
    for info in infos:
        assert moved[at : at + 4] == b"PK\1\2"
        if info.header_offset >= place:
            struct.pack_into("<L", moved, at + 42, info.header_offset + len(hole))
        at += 46 + len(info.orig_filename.encode())
    struct.pack_into("<L", moved, at + 16, start + len(hole))
    return bytes(moved)


def before(data=SIGNED):
    return EVIL + data


def commented(data=SIGNED):
    with zipfile.ZipFile(buffer := io.BytesIO(data), "a") as file:
        file.comment = b"read me"
    return buffer.getvalue()


def compressed(data=SIGNED):
    return remade(data, compress_type=zipfile.ZIP_DEFLATED)


def later(data=SIGNED):
    return remade(data, date_time=(2000, 1, 1, 0, 0, 0))


def extra(data=SIGNED):
    """An extra field, in which some readers find another name for the member (0x7075)."""
    name = b"new/p/evil.py"
    field = b"\1" + struct.pack("<L", 0) + name
    return remade(data, extra=struct.pack("<HH", 0x7075, len(field)) + field)


def backwards(data=SIGNED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in sorted(members(data).items(), reverse=True):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            file.writestr(info, content)
    return buffer.getvalue()


@pytest.mark.parametrize("trick", [between, before, commented, compressed, later, extra, backwards])
def test_a_signed_archive_is_exactly_what_livepatch_writes(trick):
    """Whatever else is in the file: there would be no end of it."""
    assert seal.opened(SIGNED)[1] == b"a signature"
    with pytest.raises(LivepatchError) as caught:
        seal.opened(trick())
    assert caught.value.symbol == "ENOEXEC"


@pytest.mark.parametrize("trick", [between, before, compressed, later, extra, backwards])
def test_the_tricks_are_ones(trick):
    """A naive reader takes them, so that the members alone would prove nothing."""
    assert members(trick()) == members(SIGNED)


def test_the_same_bytes_on_every_python():
    """Or what was signed under one of them would be refused under another."""
    digest = hashlib.sha256(format.pack({"a": b"1", "ä/b": b"2", "SIGNATURE": b""})).hexdigest()
    assert digest == "ec0a77353bc4587a7f0171c55c9eaf161c32438a4bd48f10ee4875f93775e2ae"


def test_the_signed_text():
    text = seal.text_of(SIGNED).decode().splitlines()
    assert text == [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(members(DATA).items())]
    assert seal.text_of(DATA) == seal.text_of(SIGNED)


def test_links_are_refused():
    for kind in (0o120777, 0o020666, 0o040755, 0o010644):  # a link, a device, a directory, a pipe
        assert "is a link or another thing" in str(refusal(remade(DATA, external_attr=kind << 16)))


def test_a_comment_is_refused():
    assert "it has a comment" in str(refusal(commented(DATA)))


@pytest.mark.parametrize(
    "name", ["new/x\n.py", "new/x\x1b[2J.py", "new/\u202eyp.x", "../x", "/x", "new/../x", "new\\x"]
)
def test_names_that_deceive_are_refused(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO(DATA)
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr(name, "")
    sentence = str(refusal(buffer.getvalue()))
    assert "contains the path" in sentence
    assert sentence.isprintable()


def test_a_name_that_ends_early_for_some():
    """Readers written in C see `new/p/m.py`, and zipfile cuts it off, too."""
    data = DATA.replace(b"new/p/new.py", b"new/p/n\0x.py")
    assert data != DATA
    assert "contains the path" in str(refusal(data))


def test_an_encrypted_member_is_refused():
    data = bytearray(DATA)
    with zipfile.ZipFile(io.BytesIO(DATA)) as file:
        at = file.start_dir
    struct.pack_into("<H", data, at + 8, 1)
    assert refusal(bytes(data)).symbol == "ENOEXEC"


def test_a_second_directory():
    """Two archives, one behind the other: readers from the front and from the end see different ones."""
    other = format.write(ARCHIVE).replace(b"hooks", b"hooks")
    assert seal.text_of(DATA + other) == seal.text_of(other)
    with pytest.raises(LivepatchError):
        seal.opened(SIGNED + SIGNED)


def test_a_bomb_in_the_signature():
    buffer = io.BytesIO(DATA)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("SIGNATURE", b"\0" * (65 << 20))
    assert "more than 64 MiB" in str(refusal(buffer.getvalue()))
