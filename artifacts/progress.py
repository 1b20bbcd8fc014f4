"""Progress on a terminal: one line that moves, and is gone at its end."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table

# Short of the edge: Ctrl-C is shown as ^C behind it, and a line that wraps is not erased whole.
_MARGIN = 3
_NARROW = 72


class OneLine(Progress):
    """A rich progress display as wide as the terminal, but for a margin; `bar` takes what is left.

    Columns are made by `text` and `bar`, or are rich's.
    """

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        # Asked for while it is made.
        self._terminal = console
        super().__init__(*columns, console=console, transient=True)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Rich's table of them, of that width."""
        table = super().make_tasks_table(tasks)
        table.width = max(1, self._terminal.width - _MARGIN)
        return table


def is_narrow(console: Console) -> bool:
    """Whether there is room for no more than what matters most."""
    return console.width < _NARROW


def text(template: str) -> TextColumn:
    """Words that are cut off rather than wrapped."""
    return TextColumn(template, table_column=Column(no_wrap=True, overflow="ellipsis"))


def bar() -> BarColumn:
    """What is left of the line, and the first to go."""
    return BarColumn(bar_width=None, table_column=Column(ratio=1))
