"""What is signed of an archive, and where the signature is.

The signed text is a line for every member but `SIGNATURE`, sorted by name: the SHA-256 of its content in hexadecimal,
two spaces, its name. That is what `sha256sum` prints, so that a signature can be made and checked with nothing but
unzip, sha256sum and ssh-keygen. The signature is OpenSSH's (`ssh-keygen -Y sign`, namespace `livepatch`), armored, in
the member `SIGNATURE`. Whatever is in the archive is covered, its name and its version included; the name of the file
is not.

The list says what members hold, not how the zip is put together, and two readers may see different members in a zip
that was made for it: by data between them, headers that contradict the directory, a second directory. So a signed
archive must be, byte by byte, what livepatch writes for the members that it found. Then there is nothing else in it to
be seen.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping

from livepatch.archive.format import SIGNATURE, broken, pack, read, unpack
from livepatch.core.model import LivepatchError

#: What the signature is for; one that the same key made for git or for mail does not count.
NAMESPACE = "livepatch"


def text_of(data: bytes) -> bytes:
    """The text to be signed, of an archive that is signed already or not. Raises LivepatchError as `read` does."""
    read(data)
    return _text(unpack(data))


def with_signature(data: bytes, signature: bytes) -> bytes:
    """The archive with this signature, in place of another one if it has one."""
    return pack({**unpack(data), SIGNATURE: signature})


def opened(data: bytes) -> tuple[bytes, bytes]:
    """The signed text of an archive, and its signature, which is yet to be verified.

    Raises LivepatchError: ENODATA if it is not signed, ENOEXEC if it is not an archive in exactly the form that
    livepatch writes.
    """
    members = unpack(data)
    if SIGNATURE not in members:
        raise LivepatchError(errno.ENODATA, "The archive is not signed; `livepatch sign` does that.")
    if pack(members) != data:
        raise broken("it is signed, but there is something in the file besides its members")
    read(data)
    return _text(members), members[SIGNATURE]


def is_signed(data: bytes) -> bool:
    """Whether there is a signature, good or not."""
    return SIGNATURE in unpack(data)


def _text(members: Mapping[str, bytes]) -> bytes:
    names = sorted(members.keys() - {SIGNATURE})
    return "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in names).encode()
