"""Two revisions of a git repository, read with the `git` program.

Nothing is checked out and no filter, hook or configured program is run: files are read from the object database, as
they were committed. Nor is anything fetched: what a partial clone lacks is refused.
"""

from __future__ import annotations

import errno
import os
import posixpath
import subprocess
from collections.abc import Iterable
from pathlib import Path

from livepatch.build.sources import Files
from livepatch.core.model import LivepatchError

_SYMLINK = "120000"
_FILES = ("100644", "100755", "100664", _SYMLINK)
#: What would lead git to another repository than that of the folder.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def revisions(span: str, directory: str | os.PathLike[str]) -> tuple[Files, Files, str]:
    """The files of `REV1..REV2` below a folder of a repository, and how REV2 is called.

    As git has it, a revision that is left out is HEAD. Raises LivepatchError: EINVAL for what is no such range,
    ENOENT for a revision or folder that is not there, ENOSYS without git.
    """
    first, dots, second = span.partition("..")
    if not dots or second.startswith("."):
        raise LivepatchError(errno.EINVAL, f"{span!r} is not a range of revisions; write REV1..REV2.")
    repository = _Repository(Path(directory))
    commits = [repository.commit(revision or "HEAD") for revision in (first, second)]
    listed = [repository.listing(commit) for commit in commits]
    wanted = {blob for listing in listed for path, blob in listing.items() if path.endswith(".py")}
    sources = repository.contents(sorted(wanted))
    # What is no Python source is only compared: the id of a blob stands for it.
    old, new = ({path: sources.get(blob, blob.encode()) for path, blob in listing.items()} for listing in listed)
    return old, new, repository.describe(commits[1])


class _Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inside = self._git("rev-parse", "--show-prefix").decode(errors="replace").strip().rstrip("/")

    def commit(self, revision: str) -> str:
        try:
            found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
        except LivepatchError:
            raise LivepatchError(
                errno.ENOENT, f"The repository of {self.folder} has no revision {revision!r}."
            ) from None
        return found.decode().strip()

    def describe(self, commit: str) -> str:
        return self._git("describe", "--tags", "--always", "--abbrev=12", commit).decode(errors="replace").strip()

    def listing(self, commit: str) -> dict[str, str]:
        """Path relative to the folder -> blob. A link stands for the file that it leads to, if that is there."""
        try:
            lines = self._git("ls-tree", "-r", "-z", "--full-tree", f"{commit}:{self.inside}").split(b"\0")
        except LivepatchError:
            raise LivepatchError(errno.ENOENT, f"{self.inside} is no folder in revision {commit[:12]}.") from None
        found: dict[str, str] = {}
        links: dict[str, str] = {}
        for line in filter(None, lines):
            head, _, path = line.partition(b"\t")
            mode, _, blob = head.decode().split()
            if mode in _FILES:
                (links if mode == _SYMLINK else found)[os.fsdecode(path)] = blob
        leads_to = self.contents(sorted(set(links.values())))
        for link, blob in links.items():
            target = posixpath.normpath(posixpath.join(posixpath.dirname(link), os.fsdecode(leads_to[blob])))
            if target in found:
                found[link] = found[target]
        return found

    def contents(self, blobs: Iterable[str]) -> dict[str, bytes]:
        """Blob -> content."""
        wanted = list(blobs)
        answer = self._git("cat-file", "--batch", given="".join(f"{blob}\n" for blob in wanted).encode())
        found = {}
        at = 0
        for blob in wanted:
            end = answer.index(b"\n", at)
            size = answer[at:end].rpartition(b" ")[2]
            if not size.isdigit():
                raise LivepatchError(errno.ENOENT, f"The repository of {self.folder} lacks a file; fetch it first.")
            found[blob] = answer[end + 1 : end + 1 + int(size)]
            at = end + 1 + int(size) + 1
        return found

    def _git(self, *arguments: str, given: bytes = b"") -> bytes:
        """What git answers. Raises LivepatchError with its complaint."""
        environment = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
        # A partial clone would fetch what is missing: by this setting no way of transport is allowed.
        command = ["git", "-C", str(self.folder), "-c", "protocol.allow=never", *arguments]
        try:
            done = subprocess.run(command, input=given, capture_output=True, check=False, env=environment)
        except FileNotFoundError:
            raise LivepatchError(errno.ENOSYS, "Reading a repository needs the program `git`; install it.") from None
        if done.returncode:
            complaint = (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[0]
            raise LivepatchError(errno.EINVAL, f"git cannot read {self.folder}: {complaint.removeprefix('fatal: ')}.")
        return done.stdout
