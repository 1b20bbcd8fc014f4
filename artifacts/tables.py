"""A bundle and a store on a terminal, as wide as it is; `artifacts.summary` has the plain lines.

A reference is never cut or wrapped where it fits: people copy it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from artifacts import summary
from artifacts.bundle import Bundle
from artifacts.inputs import TableInput
from artifacts.manifest import Estimate, Manifest, Metrics
from artifacts.terminal import printable

# What a narrow terminal does without, the least first.
_DISPENSABLE = ("input", "labels", "log loss", "AUC", "95%", "created (UTC)")
_MOST_COLUMNS = 40
_MOST_LINES = 4
_LONGEST_NAME = 32
_KEY = 10


def print_list(console: Console, entries: list[dict[str, Any]]) -> None:
    """The versions in a store, by `artifacts.facts.list_facts`, in as many columns as fit."""
    readable = [entry for entry in entries if "error" not in entry]
    if readable:
        _print_readable(console, readable)
    for entry in entries:
        if "error" in entry:
            line = f"{entry['reference']}  unreadable: {printable(entry['error'])}"
            console.print(Text(line, style="red"), soft_wrap=True)
    if any(entry["promoted"] for entry in entries):
        console.print(Text("* promoted: the version that NAME alone stands for", style="dim"))


def _print_readable(console: Console, entries: list[dict[str, Any]]) -> None:
    for number in range(len(_DISPENSABLE) + 1):
        table = _list_table(entries, _DISPENSABLE[:number])
        if _fits(console, table):
            console.print(table)
            return
    for line in summary.list_lines(entries):
        console.print(Text(line), soft_wrap=True)


def _list_table(entries: list[dict[str, Any]], without: tuple[str, ...]) -> Table:
    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "bundle": lambda entry: entry["reference"],
        "created (UTC)": lambda entry: when(entry["created"]),
        "test accuracy": lambda entry: _value(entry, "accuracy"),
        "95%": lambda entry: _interval_of(entry, "accuracy"),
        "AUC": lambda entry: _value(entry, "auc"),
        "log loss": lambda entry: _value(entry, "log_loss"),
        "labels": lambda entry: str(entry["labels"]),
        "input": lambda entry: entry["input"].partition(":")[0],
    }
    shown = {name: cell for name, cell in cells.items() if name not in without}
    table = _table("", *shown, right={"test accuracy", "AUC", "log loss", "labels"})
    for entry in entries:
        row = [Text(printable(cell(entry))) for cell in shown.values()]
        row[0].stylize("bold" if entry["promoted"] else "")
        table.add_row(Text("*" if entry["promoted"] else " ", style="green"), *row)
    return table


def _value(entry: dict[str, Any], figure: str) -> str:
    found = entry["test"] and entry["test"].get(figure)
    return f"{found['value']:.4f}" if found else ""


def _interval_of(entry: dict[str, Any], figure: str) -> str:
    found = entry["test"] and entry["test"].get(figure)
    return f"[{found['low']:.3f}, {found['high']:.3f}]" if found else ""


def print_bundle(console: Console, bundle: Bundle) -> None:
    """What `artifacts.summary.summary_lines` says, as tables."""
    manifest = bundle.manifest
    console.print(Text(manifest.reference, style="bold"), soft_wrap=True)
    about = {"created": f"{when(manifest.created)} UTC"}
    _print_facts(
        console,
        [(what, about.get(what, text)) for what, text in summary.about(bundle) if what != "column"],
    )
    console.print()
    print_metrics(console, summary.measured(manifest))
    fit = summary.fit(manifest)
    if fit:
        console.print()
        _print_facts(console, fit)
    if isinstance(manifest.input, TableInput):
        console.print()
        _print_columns(console, manifest.input)
    console.print()
    _print_formats(console, manifest)
    console.print()
    console.print(_files_table(manifest))


def _print_facts(console: Console, facts: summary.Facts) -> None:
    width = max(20, console.width - _KEY - 2)
    last = ""
    for what, text in facts:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=_KEY, no_wrap=True)
        grid.add_column(overflow="fold")
        label = Text("" if what == last else what, style="cyan")
        if what == "path":
            # To be copied: never broken into lines of its own.
            console.print(label + Text(" " * (_KEY + 2 - len(what)) + text), soft_wrap=True)
        else:
            grid.add_row(label, Text(_cut(printable(text), width * _MOST_LINES)))
            console.print(grid)
        last = what


def print_metrics(console: Console, metrics: Mapping[str, Metrics]) -> None:
    """Each part's figures with 95% intervals: parts side by side, or below one another."""
    beside = _table("[95%]", *(f"{part}, n = {m.rows}" for part, m in metrics.items()))
    names = list(dict.fromkeys(name for m in metrics.values() for name in m.headline))
    for name in names:
        figures = [m.headline.get(name) for m in metrics.values()]
        beside.add_row(name, *("" if f is None else _figure(f) for f in figures))
    if _fits(console, beside):
        console.print(beside)
        return
    below = _table("part", "rows", "figure", "95% interval", right={"rows"})
    for part, found in metrics.items():
        start = (part, str(found.rows))
        for name, figure in found.headline.items():
            below.add_row(*start, name, _figure(figure))
            start = ("", "")
    console.print(below)


def _figure(figure: Estimate) -> Text:
    return Text.assemble(f"{figure.value:.4f}", (f" [{figure.low:.3f}, {figure.high:.3f}]", "dim"))


def _print_columns(console: Console, spec: TableInput) -> None:
    rows = summary.column_rows(spec)
    table = _table("column", "type", "values", "missing")
    # The one that is wrapped where there is little room.
    table.columns[2].no_wrap = False
    for name, kind, values, missing in rows[:_MOST_COLUMNS]:
        cells = _cut(printable(name), _LONGEST_NAME), kind, printable(values), missing
        table.add_row(*map(Text, cells))
    console.print(table)
    if more := len(rows[_MOST_COLUMNS:]):
        console.print(Text(f"and {more} more; --json has them all", style="dim"))


def _print_formats(console: Console, manifest: Manifest) -> None:
    """How near each is to the trained model, and how fast: side by side, or below one another."""
    near = {
        file: (f"{found.max_abs_diff:.2g}", str(found.label_disagreements), f"{found.rows:,}")
        for file, found in manifest.parity.items()
    }
    fast = {
        file: (f"{speed.alone:,.0f}", f"{speed.batched:,.0f}")
        for file, speed in (manifest.speed.formats if manifest.speed else {}).items()
    }
    counted = ("largest diff.", "other labels", "answers")
    timed = ("rows/s alone", "in batches") if fast else ()
    beside = _table("parity", *counted, *timed, right={*counted, *timed})
    for file, cells in near.items():
        beside.add_row(file, *cells, *fast.get(file, ()))
    if _fits(console, beside) or not fast:
        console.print(beside)
        return
    console.print(_beside_files("parity", counted, near))
    console.print()
    console.print(_beside_files("speed", timed, fast))


def _beside_files(
    heading: str, columns: tuple[str, ...], rows: Mapping[str, tuple[str, ...]]
) -> Table:
    table = _table(heading, *columns, right={*columns})
    for file, cells in rows.items():
        table.add_row(file, *cells)
    return table


def _files_table(manifest: Manifest) -> Table:
    table = _table("file", "bytes", "sha256", right={"bytes"})
    for file, info in sorted(manifest.files.items()):
        table.add_row(file, f"{info.size:,}", Text(info.sha256[:16], style="dim"))
    return table


def _table(*headings: str, right: set[str] = frozenset()) -> Table:  # type: ignore[assignment]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    for heading in headings:
        table.add_column(
            Text(heading), no_wrap=True, justify="right" if heading in right else "left"
        )
    return table


def _fits(console: Console, table: Table) -> bool:
    # Measured as wide as it would like to be, not as it is allowed to.
    options = console.options.update(max_width=10_000)
    return Measurement.get(console, options, table).maximum <= console.width


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."


def when(created: str) -> str:
    """A manifest's time to the minute, in UTC; what is no time, as it stands."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M}"
    except ValueError:
        return created
