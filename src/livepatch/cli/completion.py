"""What a shell is told when the user presses Tab, and the scripts that make a shell ask.

The mechanism is click's: the script in the shell runs `livepatch` with `_LIVEPATCH_COMPLETE` set, and click finds out
what belongs where. The scripts are our own, `shells/livepatch.*`, since click's know neither files by their ending, nor
commands, nor what bash shows beside a value. Each line of an answer is a type, a value and perhaps a help, with tabs
between; types are those of click, `suffix` (files that end so, and folders) and `command`.

Whatever goes wrong, the answer is nothing: a shell in the middle of a line is no place for a sentence.
"""

from __future__ import annotations

import importlib.resources
import os
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

SHELLS = ("bash", "zsh", "fish")


class _Shell(ShellComplete):
    """All three shells hand over the line up to the cursor."""

    source_template = ""

    def source(self) -> str:
        return (importlib.resources.files(__package__) / "shells" / f"livepatch.{self.name}").read_text("utf-8")

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        incomplete = words.pop() if words and not line[-1].isspace() else ""
        # An option that still lacks its value would keep click from reading the words before it.
        if words and words[-1].startswith("-") and "=" not in words[-1] and not incomplete.startswith("-"):
            incomplete = f"{words.pop()}={incomplete}"
        return words, incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        words = item.type, str(item.value), item.help or ""
        return "\t".join("".join(letter if letter.isprintable() else " " for letter in word) for word in words)

    def complete(self) -> str:
        try:
            return super().complete()
        except Exception:
            return ""


class _Bash(_Shell):
    name = "bash"


class _Zsh(_Shell):
    name = "zsh"


class _Fish(_Shell):
    name = "fish"


for _shell in (_Bash, _Zsh, _Fish):
    add_completion_class(_shell)


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> int:
    """Print the script that completes livepatch's command lines in a shell.

    Options and commands, processes with their command lines, the names of patches that are loaded there or installed,
    and the files that a command takes. No process is touched: agents that are there are asked what they have.

    \b
      bash  eval "$(livepatch completion bash)"         in ~/.bashrc
      zsh   eval "$(livepatch completion zsh)"          in ~/.zshrc, after compinit
      fish  livepatch completion fish | source          in ~/.config/fish/config.fish
    """
    click.echo(_script(shell), nl=False)
    return 0


def _script(shell: str) -> str:
    return next(each for each in (_Bash, _Zsh, _Fish) if each.name == shell)(click.Group(), {}, "", "").source()
