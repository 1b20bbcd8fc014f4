"""Arguments and options that several commands take, each with its help and its completion."""

from __future__ import annotations

from typing import Annotated

import typer

from artifacts.completion import complete_bundle
from artifacts.devices import BackendName, DeviceChoice

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="A path, NAME@VERSION, or NAME (its promoted version).",
        autocompletion=complete_bundle,
        show_default=False,
    ),
]
BackendOption = Annotated[BackendName, typer.Option("--backend", help="What runs the model.")]
DeviceOption = Annotated[
    DeviceChoice, typer.Option("--device", help="auto: CUDA where there is one.")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout, and all else on stderr.",
    ),
]
