"""Strict mode: whether an archive must be signed to be let in, and by whom.

    /etc/livepatch/config.toml         strict = true           of the machine: no user can relax it or add a signer
    /etc/livepatch/allowed_signers     refuse_start = true
    ~/.config/livepatch/...            the same, of one user; signers of the machine count, too
    LIVEPATCH_ALLOWED_SIGNERS=FILE     of one process, as its environment was when livepatch came into it

The agent asks before it looks at what came, and the command before it sends anything; each reads the files that it
sees, so that a container has its own. The agent is the one that counts: whatever speaks to it, and what is installed,
goes through it. Who can write none of these files cannot get an archive in that is not signed.

Anything that cannot be understood, read or believed refuses: a policy that is not known may be a strict one.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from livepatch.archive import owned
from livepatch.core.model import LivepatchError

if TYPE_CHECKING:
    from livepatch.archive.openssh import Signer

SYSTEM = "/etc/livepatch"
CONFIG, SIGNERS = "config.toml", "allowed_signers"
VARIABLE = "LIVEPATCH_ALLOWED_SIGNERS"
_LIMIT = 1 << 20

#: As it was when livepatch was imported: what a program does to its environment later does not relax anything.
_named = os.environ.get(VARIABLE)


class Policy(NamedTuple):
    """What holds for this process. `said` is the file or the variable that made it strict."""

    strict: bool
    refuse_start: bool
    signers: tuple[str, ...]
    said: str


def policy() -> Policy:
    """What holds now. Raises LivepatchError (EINVAL, EACCES) for a file that cannot be understood or believed."""
    machine, folder = _settings(SYSTEM), owned.users("XDG_CONFIG_HOME", "~/.config")
    signers: tuple[str, ...] = (f"{SYSTEM}/{SIGNERS}",)
    refuse = machine.get("refuse_start", False)
    if machine.get("strict"):
        return Policy(True, refuse, signers, f"{SYSTEM}/{CONFIG}")
    own = _settings(folder) if folder is not None else {}
    refuse = refuse or own.get("refuse_start", False)
    if _named:
        return Policy(True, refuse, (_named,), VARIABLE)
    signers = (f"{folder}/{SIGNERS}", *signers) if folder is not None else signers
    if own.get("strict"):
        return Policy(True, refuse, signers, f"{folder}/{CONFIG}")
    return Policy(False, False, signers, "")


def signer(data: bytes, files: tuple[str, ...]) -> Signer:
    """Who has signed an archive, of those who are allowed in these files.

    Raises LivepatchError: ENODATA (it is not signed), ENOKEY (by none of them), EKEYREJECTED (it was altered), ENOPKG
    (that cannot be verified here), and what a file that cannot be believed raises.
    """
    from livepatch.archive import openssh, seal

    text, signature = seal.opened(data)
    found = [content for path in files if (content := owned.read_path(path, _LIMIT)) is not None]
    if not found:
        raise LivepatchError(errno.ENOKEY, f"Nobody may sign archives: there is no {' and no '.join(files)}.")
    return openssh.verify(text, signature, b"\n".join(found))


def require(data: bytes, file: str) -> None:
    """Raise LivepatchError (EKEYREJECTED) unless a patch file may be let in."""
    try:
        rules = policy()
    except LivepatchError as error:
        raise LivepatchError(errno.EKEYREJECTED, str(error)) from None
    if not rules.strict:
        return
    try:
        if data[:2] != b"PK":
            sentence = "A file written by hand cannot be signed; build an archive, if need be with hooks."
            raise LivepatchError(errno.ENODATA, sentence)
        signer(data, rules.signers)
    except LivepatchError as error:
        sentence = f"{rules.said} says strict, and {file} is refused: {error}"
        raise LivepatchError(errno.EKEYREJECTED, sentence) from None


def _settings(folder: str) -> dict[str, Any]:
    path = f"{folder}/{CONFIG}"
    content = owned.read_path(path, _LIMIT)
    if content is None:
        return {}
    import tomllib  # most have no such file

    try:
        found = tomllib.loads(content.decode())
    except ValueError as error:
        raise LivepatchError(errno.EINVAL, f"{path} is not TOML, so that nothing is let in: {error}.") from None
    for key, value in found.items():
        if key not in ("strict", "refuse_start") or not isinstance(value, bool):
            sentence = f"{path} has {key} = {value!r}, and knows only strict and refuse_start, true or false."
            raise LivepatchError(errno.EINVAL, sentence)
    return found
