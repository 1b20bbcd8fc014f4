"""What a run says while it runs: a line that moves on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TimeRemainingColumn

from artifacts.manifest import Epoch
from artifacts.progress import OneLine, bar, is_narrow, text
from artifacts.terminal import moves


@contextmanager
def epoch_display(console: Console, epochs: int) -> Iterator[Callable[[Epoch, float], None]]:
    """A function to call after each epoch."""
    if not moves(console):

        def print_line(record: Epoch, seconds: float) -> None:
            console.print(
                f"epoch {record.epoch:>3}/{epochs}  loss {record.train_loss:.4f} / validation "
                f"{record.validation_loss:.4f}  accuracy {record.train_accuracy:.4f} / "
                f"{record.validation_accuracy:.4f}  {seconds:.2f} s",
                highlight=False,
                soft_wrap=True,
            )

        yield print_line
        return
    columns = (
        text("epoch {task.completed:.0f}/{task.total:.0f}"),
        bar(),
        text("{task.description}"),
        TimeRemainingColumn(compact=True),
    )
    with OneLine(*columns, console=console) as progress:
        task = progress.add_task("", total=epochs)

        def show(record: Epoch, seconds: float) -> None:
            progress.update(
                task, completed=record.epoch, description=_figures(record, is_narrow(console))
            )

        yield show


def _figures(record: Epoch, narrow: bool) -> str:
    """Of the training part, then of the validation part; of this alone where it is narrow."""
    if narrow:
        return f"validation accuracy {record.validation_accuracy:.4f}"
    return (
        f"loss {record.train_loss:.4f} / {record.validation_loss:.4f}  "
        f"accuracy {record.train_accuracy:.4f} / {record.validation_accuracy:.4f}"
    )
