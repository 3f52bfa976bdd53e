"""Real shells in terminals of their own, in which keys are pressed."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE
from tests.cli.conftest import MOMENT

import livepatch

#: How each is started, without anybody's own settings, and what makes it complete `livepatch`.
START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        'bind "set enable-bracketed-paste off"; PS1="ready> "; eval "$({})"',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        'PS1="ready> "; LISTMAX=10000; autoload -Uz compinit; compinit -u -D; unset zle_bracketed_paste; eval "$({})"',
    ),
    "fish": (["fish", "--no-config", "-i"], 'function fish_prompt; echo -n "ready> "; end; {} | source'),
}
_CONTROLS = re.compile(
    r"\x1b\[[0-9;?=>]*[a-zA-Z]|\x1b[()=>][A-Z0-9]?|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0e-\x1f]"
)


class Shell:
    """A shell whose `livepatch` is the one that is tested, in `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        self.name = name
        bin_ = folder / "bin"
        bin_.mkdir()
        source = Path(livepatch.__file__).parent.parent
        patient = f"from livepatch.cli import candidates, main; candidates._PATIENCE = {MOMENT}; main()"
        (bin_ / "livepatch").write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -c "{patient}" "$@"\n')
        (bin_ / "livepatch").chmod(0o755)
        (folder / "home").mkdir()
        command, setup = START[name]
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(folder / "home"), "TERM": "xterm"}
            os.execvpe(command[0], command, {**environment, "COLUMNS": "200", "LINES": "50", "LC_ALL": "C.UTF-8"})
        self._seen = ""
        self._count = 0
        self.run(setup.format(f"livepatch completion {name}"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)

    def press(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def run(self, line: str) -> str:
        """What is on the screen when the line has been carried out, and the shell edits the next one: before, some keys
        are the terminal's own, and the shell never sees them.
        """
        self._count += 1
        sum_ = "(math {}+0)" if self.name == "fish" else "$(({}+0))"  # not what is typed, but what is said
        self.press(f"{line}\recho over{sum_.format(self._count)}\r")
        shown = self._until(f"over{self._count}")
        self._until("ready>")
        return shown

    def completed(self, line: str, last: str) -> list[str]:
        """The words of a line after Tab. What is typed into the middle of a completion may end it: so first the last
        word is to be seen, if it comes to be what it should; it need not be drawn in one piece.
        """
        self.press(f"{line}\t")
        self._look(last, PATIENCE)
        self.press("\x01printf '[%s]' \r")
        shown = self.run("")
        return re.findall(r"\[([^\]]*)\]", shown.rpartition("[livepatch]")[2])

    def listed(self, line: str, among: str) -> str:
        """What is shown when the shell lists what there is; `among` it should be this."""
        if self.name == "fish":  # it shows a menu, and takes that away again
            return self.run(f"complete -C '{line}'")
        self.press(line + {"bash": "\x1b?", "zsh": "\x04"}[self.name])  # Tab would first insert what all have in common
        self._look(among, PATIENCE)
        return self.run("\x15")

    def _until(self, text: str) -> str:
        assert self._look(text, PATIENCE), f"{self.name} did not come to {text!r}: {self._seen!r}"
        shown, _, self._seen = self._seen.partition(text)
        return shown

    def _look(self, text: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            if not select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))[0]:
                return False
            self._seen += _CONTROLS.sub("", os.read(self.terminal, 65536).decode(errors="replace"))
        return True
