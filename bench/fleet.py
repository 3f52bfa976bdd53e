"""What several processes and a signature add to a load from the shell."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from .command import archive, livepatch, seconds, service
from .measure import Row

#: How many processes take part.
_SIZES = (1, 4, 16)


def fleet(quick: bool) -> list[Row]:
    """One load into so many prepared processes that wait, in turns."""
    walls: dict[int, list[float]] = {size: [] for size in _SIZES}
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        file = archive(folder)
        pids = [stack.enter_context(service(folder)) for _ in range(max(_SIZES))]
        for _ in range(3 if quick else 9):
            for size in _SIZES:
                named = [word for pid in pids[:size] for word in ("--pid", pid)]
                walls[size].append(seconds(livepatch("load", file, *named)))
                _undo(named)
    one = statistics.median(walls[1])
    rows = []
    for size in _SIZES[1:]:
        wall = statistics.median(walls[size])
        rows.append(
            Row(
                f"`livepatch load` into {size} prepared processes / into one",
                f"≤ {size}",
                f"{wall / one:.1f} ({wall * 1000:.0f} ms and {one * 1000:.0f} ms)",
                wall / one <= size,
            )
        )
    return rows


def signature(quick: bool) -> list[Row]:
    """One load of an archive that the command and the process verify, and one that nobody does, in turns."""
    plain, verified = [], []
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        file = archive(folder)
        signed = Path(shutil.copy(file, folder / "signed.livepatch"))
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        subprocess.run(livepatch("sign", signed, "--key", key), check=True, stdout=subprocess.DEVNULL)
        signers = folder / "allowed_signers"
        signers.write_text(f"bench {key.with_suffix('.pub').read_text()}")
        strict = {"LIVEPATCH_ALLOWED_SIGNERS": str(signers)}
        open_one = stack.enter_context(service(folder))
        strict_one = stack.enter_context(service(folder, strict))
        for _ in range(3 if quick else 15):
            for pid, chosen, added, found in ((open_one, file, {}, plain), (strict_one, signed, strict, verified)):
                os.environ.update(added)
                try:
                    found.append(seconds(livepatch("load", chosen, "--pid", pid)))
                finally:
                    os.environ.pop("LIVEPATCH_ALLOWED_SIGNERS", None)
                _undo(["--pid", pid])
    more = statistics.median(one - other for one, other in zip(verified, plain, strict=True)) * 1000
    ratio = statistics.median(verified) / statistics.median(plain)
    return [
        Row(
            "`livepatch load` in strict mode, verified by the command and by the process / not in strict mode",
            "-",
            f"{ratio:.2f}, {more:.0f} ms more",
            None,
        )
    ]


def _undo(named: list[object]) -> None:
    subprocess.run(livepatch("disable", "bench", "--unload", *named), check=True, stdout=subprocess.DEVNULL)
