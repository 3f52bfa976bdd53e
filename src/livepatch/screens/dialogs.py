"""What `top` asks before it changes a process."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class Confirm(ModalScreen[bool]):
    """A question with what there is to know for it; only a clear yes is one."""

    BINDINGS = [Binding("y", "answer(True)"), Binding("n,escape,q", "answer(False)")]
    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical {
        width: 90%; max-width: 96; height: auto; max-height: 90%;
        border: round $warning; border-title-color: $warning; background: $surface; padding: 1 2;
    }
    Confirm VerticalScroll { height: auto; max-height: 14; margin-bottom: 1; }
    Confirm #buttons { height: auto; align-horizontal: right; margin-top: 1; }
    Confirm Button { margin-left: 2; }
    """

    def __init__(self, title: str, about: RenderableType | None, question: str) -> None:
        super().__init__()
        self._title = title
        self._about = about
        self._question = question

    def compose(self) -> ComposeResult:
        box = Vertical()
        box.border_title = Text(self._title)
        with box:
            if self._about is not None:
                with VerticalScroll(can_focus=False):
                    yield Static(self._about)
            yield Static(Text(self._question, style="bold"), id="question")
            with Horizontal(id="buttons"):
                yield Button("No (n)", id="no")
                yield Button("Yes (y)", id="yes", variant="warning")

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
