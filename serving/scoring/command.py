"""`parityline score`: what is typed, and what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from artifacts.devices import BackendName, DeviceChoice, resolve_device
from artifacts.errors import DataError

_LINE_EVERY_S = 10.0


def score(
    bundle: Annotated[
        str,
        typer.Argument(metavar="BUNDLE", help="A path, NAME@VERSION, or NAME (its promoted one)."),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders or URLs: Parquet, CSV (.gz too), JSON lines, Arrow, .npz, .npy, "
            "pictures, .tar, .txt (paths of pictures).",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", help="A folder: new, empty, or of this very job, to go on.")
    ],
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Columns to write again: a,b,c, '' for none; default all."),
    ] = None,
    probabilities: Annotated[
        Literal["all", "top", "none"],
        typer.Option("--probabilities", help="Of all labels, of the answer alone, or none."),
    ] = "all",
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Write the K most probable labels too.")
    ] = 0,
    format_: Annotated[
        Literal["parquet", "csv", "jsonl"], typer.Option("--format", help="Of what is written.")
    ] = "parquet",
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Only so many rows, from the first.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Of a partitioned set, e.g. day>=2026-01-31; repeatable."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="A column of known labels: metrics, beside the bundle's."),
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option("--max-rejects", min=0, help="Exit 1 where more rows cannot be scored."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster that is there.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; by default one a core, or a device."),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option("--backend", help="What runs the model.")
    ] = "onnx",
    device: Annotated[
        DeviceChoice, typer.Option("--device", help="auto: CUDA where there is one.")
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows at a time; by default what is fastest."),
    ] = None,
) -> None:
    """Score files offline, each row once, with bit for bit the answers that the service gives.

    Ended at any moment, the same command goes on where it was. Bad rows are in `rejected`, all
    figures in `summary.json`.

    Example: `parityline score churn day=2026-01-31/*.parquet --out scores --columns id`
    """
    from serving.scoring.processes import Started, set_up_arrow

    if address is not None and engine != "ray":
        raise DataError("--address: expected --engine ray with it")
    chosen = resolve_device(device)
    console = Console(emoji=False)
    # The others begin before this process imports what it needs itself, which takes as long.
    local = inputs if engine == "local" else []
    with closing(Started.of_job(local, bundle, backend, chosen, workers)) as started:
        if engine == "local":
            set_up_arrow()
        from artifacts import open_bundle
        from serving.scoring.job import Options, score
        from serving.scoring.on_ray import ray_engine

        options = Options(
            columns=None if columns is None else [name for name in columns.split(",") if name],
            probabilities=probabilities,
            top_k=top_k,
            format=format_,
            limit=limit,
            where=where or (),
            target=target,
            batch_size=batch_size,
            workers=workers,
        )
        run = ray_engine(address) if engine == "ray" else None
        predictor = open_bundle(bundle, backend=backend, device=chosen)
        with _shown(console) as progress:
            summary = score(
                predictor, inputs, out, options, progress=progress, engine=run, started=started
            )
    for line in _lines(summary, out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    rejected = summary["rows_rejected"]
    if max_rejects is not None and rejected > max_rejects:
        raise DataError(f"--max-rejects: expected at most {max_rejects}, found {rejected}")


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, otherwise a line every ten seconds."""
    if not console.is_terminal:
        printed = time.monotonic()

        def line(progress: Any) -> None:
            nonlocal printed
            if time.monotonic() - printed >= _LINE_EVERY_S:
                printed = time.monotonic()
                console.print(
                    f"{progress.share:4.0%}  {progress.rows:,} rows  "
                    f"{progress.now / progress.seconds:,.0f} rows/s  {progress.rejected} rejected",
                    highlight=False,
                )

        yield line
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        TextColumn("{task.fields[rejected]} rejected"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, rows=0, rate=0.0, rejected=0)

        def update(progress: Any) -> None:
            bar.update(
                task,
                completed=progress.share,
                rows=progress.rows,
                rate=progress.now / max(progress.seconds, 1e-9),
                rejected=progress.rejected,
            )

        yield update


def _lines(summary: dict[str, Any], out: str) -> Iterator[str]:
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
