"""What a run says while it runs: a progress bar on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from artifacts.manifest import Epoch


@contextmanager
def epoch_display(console: Console, epochs: int) -> Iterator[Callable[[Epoch, float], None]]:
    """A function to call after each epoch."""
    if not console.is_terminal:

        def print_line(record: Epoch, seconds: float) -> None:
            line = f"epoch {record.epoch:>3}/{epochs}  {_figures(record)}  {seconds:.2f} s"
            console.print(line, highlight=False)

        yield print_line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=epochs)

        def show(record: Epoch, seconds: float) -> None:
            progress.update(task, completed=record.epoch, description=_figures(record))

        yield show


def _figures(record: Epoch) -> str:
    return (
        f"loss {record.train_loss:.4f} / validation {record.validation_loss:.4f}  "
        f"accuracy {record.train_accuracy:.4f} / {record.validation_accuracy:.4f}"
    )
