"""The manual, from the very text that `--help` shows: as a page for man(1), and as Markdown for the documentation site.

`pages` reads click's own data: what each command says of itself, and of each of its options. What `--help` does not say
(exit statuses, files, the environment) is `TAIL`, for both.

The page is in the macros of man(7), and of them only in what every formatter knows.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from livepatch import __version__

#: What formatters would take for something else, or show as a typographic sign that no shell knows, see groff_char(7).
_SPECIAL = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}
)

#: A paragraph: plain text, or lines that stay as they are.
Paragraph = tuple[bool, str]

TAIL: dict[str, list[tuple[str, str]]] = {
    "Exit status": [
        ("0", "Done."),
        ("1", "Refused, and nothing was changed, unless it says so."),
        ("2", "The command line makes no sense."),
        ("3", "It stalled: the last lines, and `stalled` of --json, say what was done about it."),
        ("4", "There is no such process, or no access to it."),
        ("130", "Interrupted."),
    ],
    "Files": [
        ("/var/lib/livepatch/, ~/.local/share/livepatch/", "Installed patches, of the machine and of a user."),
        ("/etc/livepatch/config.toml, ~/.config/livepatch/config.toml", "Strict mode."),
        ("/etc/livepatch/allowed_signers, ~/.config/livepatch/allowed_signers", "Who may sign, then."),
        ("/tmp/livepatch-UID/PID.sock", "The socket of an agent; in /dev/shm if /tmp takes none."),
    ],
    "Environment": [
        ("LIVEPATCH_ALLOWED_SIGNERS", "A file of allowed signers; a process that has it is in strict mode."),
        ("LIVEPATCH_DEBUG", "If it is not 0, errors come with a traceback."),
    ],
}


@dataclass(frozen=True)
class Page:
    """What is said of one command."""

    name: str  # with `livepatch` before it
    usage: str
    summary: str
    description: list[Paragraph]
    options: list[tuple[str, str]]


def pages() -> Iterator[Page]:
    """`livepatch` itself, then each command."""
    from .app import livepatch

    context = click.Context(livepatch, info_name="livepatch", **livepatch.context_settings)
    yield _page(livepatch, context)
    for name in livepatch.list_commands(context):
        command = livepatch.get_command(context, name)
        assert command is not None
        yield _page(command, click.Context(command, info_name=name, parent=context, **command.context_settings))


def _page(command: click.Command, context: click.Context) -> Page:
    description = list(_paragraphs(command.help or ""))
    summary = description[0][1]
    options = (option for option in command.get_params(context) if isinstance(option, click.Option))
    records = (option.get_help_record(context) for option in options)
    return Page(
        context.command_path,
        " ".join([context.command_path, *command.collect_usage_pieces(context)]),
        re.split(r"(?<=\w)\.(?:\s|$)", summary)[0],
        description,
        [record for record in records if record is not None],
    )


def _paragraphs(text: str) -> Iterator[Paragraph]:
    r"""Those of a help text; a \b before one says that its lines stay."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        kept = block.startswith("\b")
        lines = block.lstrip("\b").strip("\n")
        yield kept, lines if kept else " ".join(lines.split())


# -- man(7) ------------------------------------------------------------------------------------------------------


def roff() -> str:
    """The whole manual as one page."""
    whole, *commands = pages()
    made = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))  # as packagers have it
    lines = [
        f'.TH LIVEPATCH 1 "{time.strftime("%Y-%m-%d", made)}" "livepatch {__version__}" "User Commands"',
        ".SH NAME",
        rf"livepatch \- {_lower(_escaped(whole.summary))}",
        ".SH SYNOPSIS",
        ".nf",
        *(rf"\fB{_escaped(page.name)}\fR{_escaped(page.usage.removeprefix(page.name))}" for page in commands),
        ".fi",
        ".SH DESCRIPTION",
        *_roff_body(whole),
        ".SH COMMANDS",
    ]
    for page in commands:
        lines += [f'.SS "{_escaped(page.usage)}"', *_roff_body(page)]
    for title, entries in TAIL.items():
        lines += [f'.SH "{title.upper()}"', *_roff_list(entries)]
    return "\n".join(lines) + "\n"


def _roff_body(page: Page) -> Iterator[str]:
    for number, (kept, text) in enumerate(page.description):
        if number:
            yield ".PP"
        if kept:
            yield from (".nf", *map(_text, text.split("\n")), ".fi")
        else:
            yield _text(text)
    yield from _roff_list(page.options)


def _roff_list(entries: list[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in entries:
        yield from (".TP", rf"\fB{_escaped(term)}\fR", _text(meaning))


def _text(text: str) -> str:
    """A line of text; what is in backticks is bold."""
    pieces = re.split(r"`([^`]+)`", text)  # every other one is between backticks
    line = "".join(
        rf"\fB{_escaped(piece)}\fR" if number % 2 else _escaped(piece) for number, piece in enumerate(pieces)
    )
    return rf"\&{line}" if line[:1] in (".", "'") else line


def _escaped(text: str) -> str:
    return text.translate(_SPECIAL)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# -- Markdown ----------------------------------------------------------------------------------------------------


def markdown() -> str:
    """The same for the documentation site."""
    lines = []
    for page in list(pages())[1:]:
        lines += [f"## {page.name}", "", f"    {page.usage}", ""]
        for kept, text in page.description:
            lines += [*([f"    {line}" for line in text.split("\n")] if kept else [_plain(text)]), ""]
        lines += _table(("Option", "Meaning"), page.options)
    for title, entries in TAIL.items():
        lines += [f"## {title}", "", *_table(("", ""), entries)]
    return "\n".join(lines)


def _table(heads: tuple[str, str], entries: list[tuple[str, str]]) -> list[str]:
    rows = [f"| `{_cell(term)}` | {_plain(_cell(meaning))} |" for term, meaning in entries]
    return [f"| {heads[0]} | {heads[1]} |", "|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    """Text in which nothing is meant as Markdown but backticks."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(piece if piece[:1] == "`" else re.sub(r"([*_<\[])", r"\\\1", piece) for piece in pieces)


# -- the command ---------------------------------------------------------------------------------------------------


@click.command("man")
def man_command() -> int:
    """Show the manual: everything that --help says, as one page.

    \b
      livepatch man > /usr/local/share/man/man1/livepatch.1      for `man livepatch`

    On a terminal man(1) shows it; elsewhere it is printed as man(1) takes it.
    """
    page = roff()
    if sys.stdout.isatty() and shutil.which("man"):
        return subprocess.run(["man", "-l", "-"], input=page.encode(), check=False).returncode
    click.echo(page, nl=False)
    return 0
