"""What is drawn on a terminal, where there is color and the width is known. A pipe gets plain lines instead, see
`common.Output`.

80 columns are enough for everything. What an operator needs is never cut off: where a table is too narrow for words
they go on in the next line of the cell, and tasks that are in the way, of which sentences are told, are no table at all
but a list. Those that wait at the same place are told of together: a server has a thousand of them.

Whatever a process says is text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from livepatch.screens.words import functions_of, near, since, standing, where

#: No column up to this width is broken. Of what is left, the last one, which may be a sentence, gets twice the share of
#: the others.
_SHORT = 12
#: Unless these others take no more than this part of the width: then the last one gets what is left.
_MOST = 0.6
#: How many lines a command line may take: some hold a whole program.
_COMMAND_LINES = 2
#: How many of the tasks that wait at the same place are named.
_NAMED = 3
_BAR = 16

_STYLES = {
    "enabled": "green",
    "patched": "green",
    "yes": "green",
    "done": "green",
    "disabled": "dim",
    "unpatched": "yellow",
    "no answer": "bold red",
    "refused": "bold red",
    "ended": "red",
    "left": "bold red",
    "reversed": "yellow",
}


def console(*, stderr: bool = False) -> Console:
    """The terminal."""
    return Console(stderr=stderr, soft_wrap=False, highlight=False)


def style_of(word: str) -> str:
    """The style of a state, if it is one."""
    if word.startswith(("patching", "unpatching")) or "patching (" in word:
        return "bold yellow"
    return _STYLES.get(word.partition(",")[0], "")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Rows in columns, for so many characters. A column `COMMAND` is cut off when it is much too long."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    full = sum(widths) + 2 * len(widths) > width
    before = sum(widths[:-1]) + 2 * len(widths)
    fits = before <= _MOST * width  # all but the last one as they are: it is what is too wide
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), expand=full)
    for column, wide in zip(columns, widths, strict=True):
        last = column == columns[-1]
        share = (2 if last else 1) if full and wide > _SHORT and (last or not fits) else None
        drawn.add_column(column, no_wrap=wide <= _SHORT or (fits and not last), ratio=share, overflow="fold")
    room = width - before if fits else max(20, width - sum(min(wide, 20) + 2 for wide in widths[:-1]) - 2)
    for row in rows:
        cells = [Text(cell, style=style_of(cell)) for cell in row]
        if columns[-1] == "COMMAND" and len(row[-1]) > _COMMAND_LINES * room:
            cells[-1] = Text(row[-1][: _COMMAND_LINES * room - 1] + "…")
        drawn.add_row(*cells)
    return drawn


def patches(found: Sequence[dict[str, Any]]) -> RenderableType:
    """The patches of a process: how each is, and what it changes."""
    states = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("PATCH", "VERSION", "STATE", "TASKS MOVED", "FOR"):
        states.add_column(column, overflow="fold")
    changes = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("PATCH", "MODULE", "FUNCTIONS"):
        changes.add_column(column, overflow="fold")
    about = []
    for patch in found:
        moving = patch["transition"]
        state = standing(patch)
        states.add_row(
            Text(patch["name"], style="bold"),
            Text(patch["version"] or "-"),
            Text(state, style=style_of(state)),
            moved(patch["total"], patch["left"]) if moving else "-",
            f"{patch['seconds']:.1f} s" if moving else "-",
        )
        if patch["description"]:
            about.append(Text(f"'{patch['name']}': {patch['description']}", style="dim"))
        for obj in patch["objects"]:
            module = obj["name"] if obj["patched"] else f"{obj['name']} (not patched)"
            changes.add_row(Text(patch["name"]), Text(module), Text(", ".join(functions_of(obj)) or "no function"))
    return Group(states, *about, "", changes)


def moved(total: int, left: int) -> RenderableType:
    """How many tasks have moved, as a bar and in numbers."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(bar(total, left, _BAR), f"{total - left}/{total}, {left} left")
    return grid


def bar(total: int, left: int, width: int) -> ProgressBar:
    """A bar of the tasks that have moved."""
    return ProgressBar(total=max(total, 1), completed=total - left, width=width, complete_style="yellow")


def blockers(tasks: Iterable[dict[str, Any]], *, most: int | None = None, stacks: bool = False) -> RenderableType:
    """Tasks that are in the way, and what would let each go; those that wait at the same place together, and not more
    than `most` places. With `stacks`, the whole stack of the one that has been there for the longest.
    """
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for task in tasks:
        key = (task["kind"], where(task), near(task["origin"]), task["hint"])
        alike.setdefault(key, []).append(task)
    lines: list[RenderableType] = []
    for (kind, place, origin, hint), group in list(alike.items())[:most]:
        names = ", ".join(task["name"] for task in group[:_NAMED])
        if len(group) > _NAMED:
            names += f" and {len(group) - _NAMED} more"
        said = Text.assemble(("• ", "yellow"), kind, " ", (names, "bold"), " in ", (near(place), "cyan"))
        longest = max(group, key=lambda task: task["seconds"] or 0.0)
        if longest["seconds"] is not None:
            said.append(f" for {since(longest)}", style="yellow")
        lines.append(said)
        if origin != "-":
            lines.append(Padding(Text(f"from {origin}", style="dim"), (0, 0, 0, 4)))
        if hint:
            lines.append(Padding(Text(hint), (0, 0, 0, 4)))
        for frame in longest["stack"] if stacks else ():
            held = frame in longest["blocking"]
            line = Text.assemble(
                (near(frame), "yellow" if held else "dim"), ("  <- in the way" if held else "", "yellow")
            )
            lines.append(Padding(line, (0, 0, 0, 6)))
    if most is not None and len(alike) > most:
        lines.append(Text(f"  and at {len(alike) - most} more places", style="dim"))
    return Group(*lines)


def progress(what: str, total: int, left: int, note: str) -> RenderableType:
    """A line with a bar for what is under way, how far it is, and what else there is to say."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(overflow="fold")
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(what, style="bold"), bar(total, left, _BAR), f"{total - left}/{total} moved, {left} left", note)
    return grid
