"""What `parityline score` shows: how far it is, and what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import TimeRemainingColumn

from artifacts.progress import OneLine, bar, is_narrow, text
from artifacts.terminal import moves

_LINE_EVERY_S = 10.0


@contextmanager
def progress_display(console: Console) -> Iterator[Callable[[Any], None]]:
    """A line that moves on a terminal, otherwise a line every ten seconds."""
    if not moves(console):
        printed = time.monotonic()

        def line(progress: Any) -> None:
            nonlocal printed
            if time.monotonic() - printed >= _LINE_EVERY_S:
                printed = time.monotonic()
                console.print(
                    f"{progress.share:4.0%}  {progress.rows:,} rows  "
                    f"{progress.now / progress.seconds:,.0f} rows/s  {progress.rejected} rejected"
                )

        yield line
        return
    columns = (
        bar(),
        text("{task.percentage:.0f}%"),
        text("{task.fields[rows]:,} rows"),
        *([] if is_narrow(console) else [text("{task.fields[rate]:,.0f} rows/s")]),
        text("{task.fields[rejected]:,} rejected"),
        TimeRemainingColumn(compact=True),
    )
    with OneLine(*columns, console=console) as shown:
        task = shown.add_task("", total=1.0, rows=0, rate=0.0, rejected=0)

        def update(progress: Any) -> None:
            shown.update(
                task,
                completed=progress.share,
                rows=progress.rows,
                rate=progress.now / max(progress.seconds, 1e-9),
                rejected=progress.rejected,
            )

        yield update


def summary_lines(summary: dict[str, Any], out: str) -> Iterator[str]:
    yield (
        f"{summary['rows_in']} rows in, {summary['rows_scored']} scored, "
        f"{summary['rows_rejected']} rejected; {summary['model']} on {summary['device']}, "
        f"{summary['seconds']:.1f} s; results in {out}"
    )
    for reason, count in list(summary["reasons"].items())[:3]:
        yield f"rejected {count}: {reason}"
    if summary["target"] is not None:
        yield from _target_lines(summary["target"])
    moved = [
        f"{name} ({figures['psi']:.2f})"
        for name, figures in summary["drift"].items()
        if figures["verdict"] == "shifted"
    ]
    if moved:
        yield f"shifted since training, by population stability index: {', '.join(moved)}"


def _target_lines(target: dict[str, Any]) -> Iterator[str]:
    unknown = ", ".join(map(repr, target["unknown_labels"]))
    yield (
        f"{target['rows']} rows have a known label, {target['unlabelled']} none, "
        f"{target['unknown']} one that the model does not know{unknown and f': {unknown}'}"
    )
    beside = target["beside_release"]
    if beside is not None:
        yield from (figure["text"] for figure in beside["figures"].values())
        yield beside["text"]
    elif target["metrics"] is not None:
        accuracy = target["metrics"]["accuracy"]
        yield (
            f"accuracy {accuracy['value']:.4f}, 95% interval {accuracy['low']:.4f} to "
            f"{accuracy['high']:.4f}; the bundle does not say what it was at release"
        )
