"""`parityline serve`, `build`, `push` and `pull`: what is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifacts.completion import complete_bundle
from artifacts.devices import BackendName, DeviceChoice
from artifacts.extras import extra
from artifacts.options import BackendOption, BundleArgument, DeviceOption
from artifacts.terminal import say


def serve(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE",
            help="By default $PARITYLINE_BUNDLE, or the store's only name.",
            autocompletion=complete_bundle,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", min=1, max=65535, metavar="PORT", help="The port to listen on."),
    ] = 3000,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    backend: Annotated[
        BackendName | None, typer.Option(help="By default $PARITYLINE_BACKEND, or onnx.")
    ] = None,
    device: Annotated[
        DeviceChoice | None, typer.Option(help="By default $PARITYLINE_DEVICE, or auto.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Processes; by default one for each core, or CUDA device."
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Look so often for a newly promoted version; by default on SIGHUP alone.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Ask for one of the bearer tokens in it, one a line."),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="From SIGTERM, when /readyz says no, until connections are refused.",
        ),
    ] = None,
) -> None:
    """Serve a bundle over HTTP, on this machine.

    The same service as `bentoml serve`. It verifies the bundle and replays its golden rows before
    it is ready.

    Examples:
        parityline serve digits --port 3000
        parityline serve digits --host 0.0.0.0 --tokens tokens.txt
    """
    with extra("serve"):
        from serving.launch import launch

        launch(
            host=host,
            port=port,
            chosen={
                "bundle": bundle,
                "backend": backend,
                "device": device,
                "workers": workers,
                "watch_s": watch,
                "tokens": tokens,
                "grace_s": grace,
            },
        )


def build(
    bundle: BundleArgument,
    backend: BackendOption = "onnx",
    device: DeviceOption = "auto",
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The Bento's name; by default the bundle's."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE.bento", help="Write it there too.")
    ] = None,
) -> None:
    """Pack a bundle and its service as a Bento.

    With only what serving that bundle on that backend and device needs.

    Examples:
        parityline build digits --device cpu
        parityline build digits --output digits.bento
    """
    with extra("serve"):
        from serving.packing import build as build_bento

    bento = build_bento(
        bundle, backend=backend, device=device, name=name, output=Path(output) if output else None
    )
    say(f"built: {bento.tag}, {bento.file_size / 1e6:.1f} MB ({bento.path})")
    say(f"next: bentoml serve {bento.tag}, or bentoml containerize {bento.tag}")


def push(
    bundle: BundleArgument,
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="NAME:VERSION", help="By default the bundle's own."),
    ] = None,
) -> None:
    """Copy a bundle into BentoML's model store.

    As plain files, which `parityline pull` and `bentoml models` take from there.

    Examples:
        parityline push digits
    """
    from artifacts.references import open_reference, store_path

    with extra("serve"):
        from serving.model_store import push as push_bundle

    pushed, new = push_bundle(open_reference(store_path(), bundle), tag)
    say(f"pushed: {pushed}" if new else f"{pushed} is there already, and as released")


def pull(
    tag: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="In BentoML's model store.")],
    promote: Annotated[bool, typer.Option("--promote", help="Make its name stand for it.")] = False,
) -> None:
    """Copy a bundle back from BentoML's model store.

    Every digest is checked before it appears in the store.

    Examples:
        parityline pull digits --promote
    """
    from artifacts.references import store_path

    with extra("serve"):
        from serving.model_store import pull as pull_bundle

    pulled = pull_bundle(tag, store_path(), promote=promote)
    say(f"pulled: {pulled.manifest.reference} ({pulled.path})")
    if promote:
        say(f"promoted: {pulled.manifest.name} now means this version")
