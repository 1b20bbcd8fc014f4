"""`parityline score`: what is typed, and what is shown."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Literal

import typer

from artifacts.devices import BackendName, DeviceChoice, resolve_device
from artifacts.errors import DataError, Stopped
from artifacts.options import BundleArgument, JsonOption
from artifacts.terminal import open_console, say, say_json

_OUTPUT, _MACHINE = "What is written", "Where it runs"


def score(
    bundle: BundleArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders or URLs: Parquet, CSV (.gz too), JSON lines, Arrow, .npz, .npy, "
            "pictures, .tar, .txt (paths of pictures).",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="DIR", help="A folder: new, empty, or of this very job, to go on."
        ),
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="A,B,C",
            help="Columns to write again, '' for none; by default all.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    probabilities: Annotated[
        Literal["all", "top", "none"],
        typer.Option(
            "--probabilities",
            help="Of all labels, of the answer alone, or none.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "all",
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k",
            metavar="K",
            min=0,
            help="Write the K most probable labels too.",
            rich_help_panel=_OUTPUT,
        ),
    ] = 0,
    format_: Annotated[
        Literal["parquet", "csv", "jsonl"],
        typer.Option("--format", help="Of what is written.", rich_help_panel=_OUTPUT),
    ] = "parquet",
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, help="Only so many rows, from the first."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Of a partitioned set, such as 'day>=2026-01-31'; repeatable.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="COLUMN",
            help="A column of known labels: metrics, beside the bundle's.",
        ),
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option(
            "--max-rejects",
            metavar="N",
            min=0,
            help="Exit status 1 where more rows cannot be scored; by default where none can be.",
        ),
    ] = None,
    backend: Annotated[
        BackendName,
        typer.Option("--backend", help="What runs the model.", rich_help_panel=_MACHINE),
    ] = "onnx",
    device: Annotated[
        DeviceChoice,
        typer.Option("--device", help="auto: CUDA where there is one.", rich_help_panel=_MACHINE),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            help="Processes; by default one a core, or a device.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Rows at a time; by default what is fastest.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="This machine, or a Ray cluster.", rich_help_panel=_MACHINE),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Of a Ray cluster that is there.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score files offline, with the answers of the service.

    Each row once, bit for bit as the service answers it. Ended at any moment, the same command
    goes on where it was. Rows that cannot be scored are in `rejected`, with file, row and reason,
    all figures in `summary.json`.

    With --json: that summary, also where rejected rows make the exit status 1.

    Examples:
        parityline score churn day=2026-01-31/*.parquet --out scores --columns id
        parityline score churn customers.csv --out scores --target churned
    """
    from serving.scoring.processes import Started, set_up_arrow, without_collection

    if address is not None and engine != "ray":
        raise DataError("--address: expected --engine ray with it")
    chosen = resolve_device(device)
    # The others begin before this process imports what it needs itself, which takes as long.
    local = inputs if engine == "local" else []
    with closing(Started.of_job(local, bundle, backend, chosen, workers)) as started:
        if engine == "local":
            set_up_arrow()
        with without_collection():
            from artifacts import open_bundle
            from serving.scoring.display import progress_display, summary_lines
            from serving.scoring.job import Options, score
            from serving.scoring.on_ray import ray_engine

            run = ray_engine(address) if engine == "ray" else None
            predictor = open_bundle(bundle, backend=backend, device=chosen)
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
        # Not where the results are told: that may be a file or another program.
        try:
            with progress_display(open_console(stderr=True)) as progress:
                summary = score(
                    predictor, inputs, out, options, progress=progress, engine=run, started=started
                )
        except KeyboardInterrupt:
            raise Stopped("interrupted; the same command goes on where it was", 130) from None
    if as_json:
        say_json(summary)
    else:
        for line in summary_lines(summary, out):
            say(line)
    rejected = summary["rows_rejected"]
    if max_rejects is not None and rejected > max_rejects:
        raise DataError(
            f"--max-rejects: expected at most {max_rejects}, found {rejected}; which and why is in "
            f"{out}/rejected.{format_}"
        )
    if max_rejects is None and rejected and not summary["rows_scored"]:
        raise DataError(
            f"none of {rejected} rows could be scored; why is in {out}/rejected.{format_}"
        )
