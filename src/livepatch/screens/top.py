"""The screen of `livepatch top`: the processes of the host, and of one of them its patches, who is in the way, and the
log.

What it shows is what `host` knows at that moment; it is looked at a few times a second, and nothing here ever waits for
a process. It brings no agent into any: only processes that have one are spoken to.

A process may call itself, its tasks and its patches whatever it likes. So all of that is `Text`; strings would be read
as Textual's markup.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Log, Static

from . import draw, words
from .dialogs import Confirm
from .group import Shown, named
from .host import Host
from .watch import SILENT, YES, Order, View

#: Seconds between two looks at what the host knows.
_GLANCE = 0.2
#: How many places where tasks wait are shown before force is confirmed.
_PLACES = 4
#: How much of a command line is shown; some hold a whole program.
_COMMAND = 300


class Top(App[None]):
    """The screen. `unprepared` shows processes without an agent, too; a key changes that."""

    TITLE = "livepatch top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 1; padding: 0 1; background: $panel; color: $text; }
    #processes { height: 2fr; min-height: 5; overflow-x: hidden; }
    #patches { height: auto; min-height: 5; max-height: 8; overflow-x: hidden; }
    #waiting { height: 3fr; min-height: 5; padding: 0 1; }
    #log { height: 2fr; min-height: 4; padding: 0 1; overflow-x: hidden; }
    #processes, #patches, #waiting, #log {
        border: round $primary; background: $background; border-title-color: $text; scrollbar-size: 1 1;
        scrollbar-background: $background; scrollbar-color: $primary;
    }
    #processes:focus, #patches:focus, #waiting:focus, #log:focus { border: round $accent; }
    """
    BINDINGS = [
        Binding("d", "disable", "Disable"),
        Binding("r", "reverse", "Reverse"),
        Binding("f", "force", "Force"),
        Binding("u", "unload", "Unload"),
        Binding("space", "mark", "Mark"),
        Binding("t", "mark_tree", "Tree"),
        Binding("escape", "unmark", "Unmark", show=False),
        Binding("a", "unprepared", "All Pythons"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, host: Host, *, unprepared: bool = False) -> None:
        super().__init__()
        self.host = host
        self.unprepared = unprepared
        self._views: dict[str, View] = {}
        self._cells: dict[str, tuple[str, ...]] = {}
        self._patches: dict[str, tuple[str, ...]] = {}
        self._marked: set[int] = set()
        self._shown: View | None = None
        self._lines: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield DataTable[Text](id="processes", cursor_type="row")
        yield DataTable[Text](id="patches", cursor_type="row")
        with VerticalScroll(id="waiting"):
            yield Static(id="blockers")
        yield Log(id="log")
        yield Footer()

    def on_mount(self) -> None:
        processes, patches = self._table("#processes"), self._table("#patches")
        for column in ("PID", "PYTHON", "AGENT", "PATCHES", "LEFT", "COMMAND"):
            processes.add_column(column, key=column, width=len(column))
        for column in ("PATCH", "VERSION", "STATE", "TASKS MOVED", "FOR", "FUNCTIONS"):
            patches.add_column(column, key=column, width=len(column))
        self.query_one("#processes").border_title = "processes"
        self.query_one("#log").border_title = "log"
        processes.focus()
        self.refresh_views()
        self.set_interval(_GLANCE, self._glance)

    # -- what is shown -----------------------------------------------------------------------------

    def _glance(self) -> None:
        with suppress(NoMatches):  # the parts go one after another when the screen is closed
            self.refresh_views()

    def refresh_views(self) -> None:
        """Show what is known now."""
        while self.host.notices:
            sentence, good = self.host.notices.popleft()
            self.notify(sentence, severity="information" if good else "warning", timeout=10, markup=False)
        views = self.host.views(unprepared=self.unprepared)
        self._views = {str(view.pid): view for view in views}
        self._marked &= {view.pid for view in views}
        self.query_one("#summary", Static).update(_summary(views, len(self._marked)))
        rows = {key: _row(view, marked=view.pid in self._marked) for key, view in self._views.items()}
        table, first = self._table("#processes"), not self._cells
        _fill(table, self._cells, rows)
        self._cells = rows
        if first:
            table.move_cursor(row=next((at for at, view in enumerate(views) if view.changing), 0))
        self._show_details()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.id == "processes":
            with suppress(NoMatches):
                self._show_details()

    def _show_details(self) -> None:
        view = self.view
        self.host.choose(view.pid if view else None)  # also if it is the same: it may have come anew
        if view is self._shown:
            return
        self._shown = view
        patches = {patch["name"]: _patch_row(patch) for patch in view.patches} if view else {}
        table = self._table("#patches")
        if _fill(table, self._patches, patches) and view:
            changing = view.changing
            at = list(patches).index(changing["name"]) if changing else len(patches) - 1
            table.move_cursor(row=max(at, 0))
        self._patches = patches
        table.border_title = _about(view)
        waiting = self.query_one("#waiting")
        waiting.border_title = "in the way" if view and view.blocking else "details"
        self.query_one("#blockers", Static).update(_details(view))
        self._write_log(view.log if view else ())

    def _write_log(self, lines: tuple[str, ...]) -> None:
        log, known = self.query_one(Log), len(self._lines)
        if known and lines[:known] == self._lines:
            log.write_lines(lines[known:])
        elif lines != self._lines:
            log.clear()
            log.write_lines(lines)
        self._lines = lines

    # -- what is meant -----------------------------------------------------------------------------

    @property
    def view(self) -> View | None:
        """The process under the cursor."""
        key = _chosen(self._table("#processes"), self._cells)
        return self._views.get(key) if key is not None else None

    @property
    def patch(self) -> dict[str, Any] | None:
        """The patch under the cursor."""
        name = _chosen(self._table("#patches"), self._patches)
        return next((patch for patch in self.view.patches if patch["name"] == name), None) if self.view else None

    def _table(self, name: str) -> DataTable[Text]:
        table: DataTable[Text] = self.query_one(name, DataTable)
        return table

    # -- what is done ------------------------------------------------------------------------------

    def action_unprepared(self) -> None:
        """Show or hide the processes that have no agent."""
        self.unprepared = not self.unprepared
        self.refresh_views()

    def action_mark(self) -> None:
        """Mark the process under the cursor, or mark it no more, and go on to the next."""
        if self.view is not None:
            self._marked ^= {self.view.pid}
            table = self._table("#processes")
            table.move_cursor(row=table.cursor_row + 1)
            self.refresh_views()

    def action_mark_tree(self) -> None:
        """Mark the process under the cursor and all that descend from it, as far as they have an agent."""
        if self.view is not None:
            below = self.host.descend(self.view.pid)
            self._marked |= {view.pid for view in self._views.values() if view.pid in below and view.agent == YES}
            self.refresh_views()

    def action_unmark(self) -> None:
        """Mark nothing any more."""
        self._marked.clear()
        self.refresh_views()

    def action_disable(self) -> None:
        if self._marked:
            self._disable_all()
            return
        view, patch = self._addressed(), self.patch
        if view is None:
            return
        if patch is None:
            self._say(f"Process {view.pid} has no patch.")
        elif patch["transition"] and patch["enabled"]:
            self.action_reverse()
        elif not patch["enabled"]:
            self._say(f"'{patch['name']}' is {words.state_of(patch)} already.")
        else:
            name = patch["name"]
            order = _disabling(name)
            self._confirm(view, order, "disable", None, f"Take '{name}' back in process {view.pid}?")

    def action_reverse(self) -> None:
        if self._marked:
            self._reverse_all()
            return
        found = self._in_transition()
        if found is None:
            return
        view, changing = found
        name, enabled = changing["name"], changing["enabled"]
        order, stays = _reversing(name, enabled=enabled)
        question = f"Reverse the transition of '{name}' in process {view.pid}, so that it is {stays} in the end?"
        self._confirm(view, order, "reverse", None, question)

    def action_force(self) -> None:
        if self._marked:
            self._force_all()
            return
        found = self._in_transition()
        if found is None:
            return
        view, changing = found
        name, enabled = changing["name"], changing["enabled"]
        said = f"{changing['left']} of {changing['total']} tasks of process {view.pid} are still in code that '{name}'"
        about = Group(Text(f"{said} changes:"), draw.blockers(view.blocking, most=_PLACES))
        order = _forcing(name, enabled=enabled)
        self._confirm(view, order, "force", about, words.consequence(name, enabled=enabled) + " Do it?")

    def action_unload(self) -> None:
        if self._marked:
            self._unload_all()
            return
        view, patch = self._addressed(), self.patch
        if view is None:
            return
        if patch is None:
            self._say(f"Process {view.pid} has no patch.")
        elif patch["enabled"] or patch["transition"]:
            self._say(f"'{patch['name']}' is in use; d disables it.")
        else:
            name = patch["name"]
            order = _unloading(name)
            self._confirm(view, order, "unload", None, f"Forget '{name}' in process {view.pid}?")

    # -- the same in all that are marked -------------------------------------------------------------

    def _disable_all(self) -> None:
        views, patch = self._all_addressed(), self.patch
        if views is None:
            return
        if patch is None:
            self._say("Put the cursor on a process that has the patch that is to be disabled.")
            return
        name = patch["name"]
        shown = {pid: state for pid, state in _states(views, name).items() if state[0]}
        if not shown:
            self._say(f"'{name}' is enabled in none of the marked processes.")
            return
        order = _disabling(name)
        self._confirm_all(shown, order, "disable", None, f"Take '{name}' back in {named(list(shown))}?")

    def _reverse_all(self) -> None:
        if (found := self._all_changing()) is None:
            return
        name, enabled, shown, _ = found
        order, stays = _reversing(name, enabled=enabled)
        where = named(list(shown))
        question = f"Reverse the transition of '{name}' in {where}, so that it is {stays} in the end?"
        self._confirm_all(shown, order, "reverse", None, question)

    def _force_all(self) -> None:
        if (found := self._all_changing()) is None:
            return
        name, enabled, shown, views = found
        left = sum(view.changing["left"] for view in views if view.changing)
        about = Text("\n".join(f"{_left(view)} are still in code that '{name}' changes." for view in views))
        order = _forcing(name, enabled=enabled)
        said = words.consequence(name, enabled=enabled, left=left, processes=len(views))
        self._confirm_all(shown, order, "force", about, f"{said} Do it?")

    def _unload_all(self) -> None:
        views, patch = self._all_addressed(), self.patch
        if views is None:
            return
        if patch is None:
            self._say("Put the cursor on a process that has the patch that is to be forgotten.")
            return
        name = patch["name"]
        shown = _states(views, name)
        used = [pid for pid, state in shown.items() if any(state)]
        if used or not shown:
            self._say(f"'{name}' is in use in {named(used)}; d disables it." if used else f"Nobody has '{name}'.")
            return
        order = _unloading(name)
        self._confirm_all(shown, order, "unload", None, f"Forget '{name}' in {named(list(shown))}?")

    def _all_addressed(self) -> list[View] | None:
        """Those that are marked, if all of them can be told something; else it is said why not."""
        views = [view for view in self._views.values() if view.pid in self._marked]
        for view in views:
            if view.agent != YES:
                why = "does not answer" if view.agent == SILENT else "has no agent"
                self._say(f"Process {view.pid} {why}, so nothing is done in the others either; space unmarks it.")
                return None
        return views

    def _all_changing(self) -> tuple[str, bool, Shown, list[View]] | None:
        """The patch in transition, in which direction, in which of the marked processes."""
        views = self._all_addressed()
        if views is None:
            return None
        changing = [view for view in views if view.changing]
        goals = {(view.changing["name"], view.changing["enabled"]) for view in changing if view.changing}
        if len(goals) == 1:
            name, enabled = goals.pop()
            return name, enabled, _states(changing, name), changing
        self._say(
            "The marked processes are in different transitions; mark those of one kind."
            if goals
            else "No transition runs in the marked processes."
        )
        return None

    def _confirm_all(self, shown: Shown, order: Order, title: str, about: RenderableType | None, question: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.host.give_all(order, shown)

        self.push_screen(Confirm(title, about, question), answered)

    # -- who is told, and who is asked first ---------------------------------------------------------

    def _addressed(self) -> View | None:
        """The process under the cursor, if it can be told something; else it is said why not."""
        view = self.view
        if view is None:
            self._say("There is no process with an agent; `livepatch attach PID` brings one in.")
        elif view.agent == YES:
            return view
        elif view.agent == SILENT:
            self._say(f"Process {view.pid} does not answer, so it can be told nothing.")
        else:
            self._say(f"Process {view.pid} has no agent to be told; `livepatch attach {view.pid}` brings one in.")
        return None

    def _in_transition(self) -> tuple[View, dict[str, Any]] | None:
        """The same, with its patch that is in transition."""
        view = self._addressed()
        if view is None:
            return None
        if view.changing is None:
            self._say(f"No transition runs in process {view.pid}.")
            return None
        return view, view.changing

    def _confirm(self, view: View, order: Order, title: str, about: RenderableType | None, question: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.host.give(view.pid, order)

        self.push_screen(Confirm(title, about, question), answered)

    def _say(self, sentence: str) -> None:
        self.notify(sentence, severity="warning", markup=False)


# -- what is told, to one or to several ----------------------------------------------------------------


def _disabling(name: str) -> Order:
    return Order("write_enabled", name, True, False, f"'{name}' is being disabled.", "0")


def _reversing(name: str, *, enabled: bool) -> tuple[Order, str]:
    """And what the patch is in the end."""
    goes, stays = ("taken back", "disabled") if enabled else ("kept", "enabled")
    return Order("write_enabled", name, enabled, True, f"'{name}' is being {goes}.", "0" if enabled else "1"), stays


def _forcing(name: str, *, enabled: bool) -> Order:
    return Order("force", name, enabled, True, f"the remaining tasks of '{name}' were forced.")


def _unloading(name: str) -> Order:
    return Order("unload", name, False, False, f"'{name}' is unloaded.")


# -- tables --------------------------------------------------------------------------------------------


def _fill(table: DataTable[Text], before: dict[str, tuple[str, ...]], rows: dict[str, tuple[str, ...]]) -> bool:
    """Have the table show these rows, with the cursor where it was. Whether other rows have come.

    The columns are made wide enough here: the table itself would measure them when it is idle, and a line that is
    painted before that stays cut off until something else in it changes.
    """
    for at, each in enumerate(table.ordered_columns):
        each.width = max([len(str(each.key.value)), *(cell_len(cells[at]) for cells in rows.values())])
    if list(before) == list(rows):
        columns = list(table.columns)
        for key, cells in rows.items():
            for column, old, new in zip(columns, before[key], cells, strict=True):
                if old != new:
                    table.update_cell(key, column, _cell(new), update_width=True)
        return False
    chosen, row = _chosen(table, before), table.cursor_row
    table.clear()
    for name, cells in rows.items():
        table.add_row(*map(_cell, cells), key=name)
    table.move_cursor(row=list(rows).index(chosen) if chosen in rows else row)
    return True


def _chosen(table: DataTable[Text], rows: dict[str, tuple[str, ...]]) -> str | None:
    """The key of the row under the cursor."""
    return list(rows)[table.cursor_row] if 0 <= table.cursor_row < len(rows) else None


def _cell(word: str) -> Text:
    return Text(word, style=draw.style_of(word), no_wrap=True)


def _states(views: list[View], name: str) -> dict[int, tuple[bool, bool]]:
    """Of each process that has the patch, whether it is enabled there, and in transition."""
    return {
        view.pid: (patch["enabled"], patch["transition"])
        for view in views
        for patch in view.patches
        if patch["name"] == name
    }


def _left(view: View) -> str:
    changing = view.changing or {"left": 0, "total": 0}
    return f"{changing['left']} of {changing['total']} tasks of process {view.pid}"


def _row(view: View, *, marked: bool) -> tuple[str, ...]:
    states = ((patch["name"], words.state_of(patch)) for patch in view.patches)
    patches = ", ".join(name if state == "enabled" else f"{name} {state}" for name, state in states)
    left = str(view.changing["left"]) if view.changing else "-"
    pid = f"{view.pid} *" if marked else str(view.pid)
    return pid, view.python, view.agent, patches or "-", left, view.command


def _patch_row(patch: dict[str, Any]) -> tuple[str, ...]:
    moving = patch["transition"]
    moved = f"{patch['total'] - patch['left']}/{patch['total']}, {patch['left']} left" if moving else "-"
    functions = ", ".join(
        f"{obj['name']}: {', '.join(words.functions_of(obj)) or 'no function'}" for obj in patch["objects"]
    )
    return (
        patch["name"],
        patch["version"] or "-",
        words.standing(patch),
        moved,
        f"{patch['seconds']:.0f} s" if moving else "-",
        functions,
    )


def _summary(views: list[View], marked: int) -> Text:
    prepared = [view for view in views if view.answered is not None or view.agent in (YES, SILENT)]
    changing = sum(view.changing is not None for view in prepared)
    silent = sum(view.agent == SILENT for view in prepared)
    enabled = sum(patch["enabled"] and not patch["transition"] for view in prepared for patch in view.patches)
    said = Text.assemble(("livepatch top ", "bold"), f"  {_count(len(prepared), 'process', 'processes')} with an agent")
    said.append(f"   {_count(enabled, 'patch', 'patches')} enabled")
    said.append(f"   {changing} in transition", style="bold yellow" if changing else "")
    if marked:
        said.append(f"   {marked} marked", style="bold")
    if silent:
        said.append(f"   {silent} without an answer", style="bold red")
    return said


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _about(view: View | None) -> Text:
    if view is None:
        return Text("no process")
    started = f", started {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(view.started))}" if view.started else ""
    return Text(f"process {view.pid}, Python {view.python}{started}")


def _details(view: View | None) -> RenderableType:
    """Who is in the way; and of a process that cannot be asked, why."""
    if view is None:
        return Text("No process has an agent. `livepatch run -- COMMAND` starts one with it; a shows all Pythons.")
    command = view.command if len(view.command) <= _COMMAND else view.command[: _COMMAND - 1] + "…"
    parts: list[RenderableType] = [Text(command, style="dim")]
    if view.error:
        parts.append(Text(view.error, style="red"))
    if view.agent == SILENT and view.answered is not None:
        at = time.strftime("%H:%M:%S", time.localtime(time.time() - (time.monotonic() - view.answered)))
        parts.append(Text(f"What is shown of it is as it was at {at}.", style="red"))
    if view.blocking:
        parts.append(draw.blockers(view.blocking, stacks=True))
    parts += [Text(f"'{each['name']}': {each['description']}") for each in view.patches if each["description"]]
    return Group(*parts)
