"""`parityline report`: what is typed, and what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifacts.completion import complete_bundle
from artifacts.errors import DataError
from artifacts.files import write_file
from artifacts.terminal import say


def report(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE",
            help="One, or several to compare: paths, NAME@VERSION, or NAME.",
            autocompletion=complete_bundle,
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="By default NAME-VERSION.html here."),
    ] = None,
) -> None:
    """Write a bundle's report, or one that compares several.

    Examples:
        parityline report digits
        parityline report digits digits@0123456789ab --out compared.html
    """
    from artifacts.references import open_reference, store_path
    from training.report.compare import render_comparison
    from training.report.page import report_of

    opened = [open_reference(store_path(), reference) for reference in bundles]
    if len(opened) == 1:
        manifest = opened[0].manifest
        page, name = report_of(opened[0]), f"{manifest.name}-{manifest.version}.html"
    else:
        page, name = render_comparison(opened), "comparison.html"
    target = Path(out or name)
    place = target.resolve()
    if place.parent in {bundle.path.resolve() for bundle in opened}:
        raise DataError(f"{target}: a bundle stays as it was released: choose a place outside it")
    if place.exists() and not place.is_file():
        found = "a directory" if place.is_dir() else "something else"
        raise DataError(f"{target}: expected a file, found {found}")
    try:
        write_file(place, page)
    except OSError as error:
        raise DataError(f"{target}: could not be written: {error.strerror}") from error
    say(str(target))
