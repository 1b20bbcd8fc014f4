"""The front door: Parityline's command line. Each command is a few lines into one room."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal, Optional

import typer
from rich.console import Console

from artifacts.devices import BackendName, DeviceChoice
from artifacts.errors import ParitylineError, Stopped
from serving.scoring.command import score
from training.report.command import report

app = typer.Typer(
    name="parityline",
    help="Labelled data to a served classifier, and proof that what is served was trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
)

# What typer exits with after Ctrl-C.
_INTERRUPTED = 130

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A path, NAME@VERSION, or NAME (its promoted one).")
]
BackendOption = Annotated[BackendName, typer.Option("--backend", help="What runs the model.")]
DeviceOption = Annotated[
    DeviceChoice, typer.Option("--device", help="auto: CUDA where there is one.")
]
RecipeArgument = Annotated[str, typer.Argument(help="A built-in recipe, or a .toml file.")]
DataOption = Annotated[
    Optional[str], typer.Option("--data", help="The file or folder that holds the data.")
]
TargetOption = Annotated[
    Optional[str], typer.Option("--target", help="A table's column that holds the labels.")
]
NameOption = Annotated[
    Optional[str], typer.Option("--name", help="The bundle's name; by default the recipe's.")
]
SetOption = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read.")
]
PromoteOption = Annotated[
    bool, typer.Option("--promote/--no-promote", help="Make NAME stand for the new version.")
]
TrackOption = Annotated[
    Optional[bool],
    typer.Option(
        "--track/--no-track",
        help="Record it in MLflow; by default where that is installed.",
        show_default=False,
    ),
]
SamplerChoice = Literal["tpe", "random", "grid"]
PrunerChoice = Literal["hyperband", "median", "none"]


@app.command()
def recipes() -> None:
    """Built-in recipes and data sets, one line each.

    Example: `parityline recipes`
    """
    from training.recipe import builtin_recipes

    known = builtin_recipes()
    width = max(map(len, known))
    for name, recipe in known.items():
        _print(f"{name:<{width}}  {recipe.summary}")


@app.command()
def train(
    recipe: RecipeArgument,
    data: DataOption = None,
    target: TargetOption = None,
    name: NameOption = None,
    set_: SetOption = None,
    skip_bad: SkipBadOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of this recipe.")
    ] = False,
    promote: PromoteOption = True,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight",
            help="See first, in seconds, whether it can be trained at all.",
        ),
    ] = True,
    track: TrackOption = None,
) -> None:
    """Train a recipe, prove its exports against it, and release the bundle.

    Example: `parityline train table --data customers.csv --target churned --name churn`
    """
    from artifacts.references import store_path

    with _extra("train"):
        from training.interrupts import Interrupted
        from training.recipe import load_recipe
        from training.run import run
        from training.tracking import wanted

    console = _console()
    resolved = load_recipe(
        recipe, set_ or [], name=name, data=data, target=target, skip_bad=skip_bad
    )
    try:
        run(
            resolved, store_path(), promote=promote, console=console, resume=resume,
            preflight=preflight, track=wanted(track),
        )  # fmt: skip
    except Interrupted as interrupted:
        raise Stopped(
            f"{interrupted}; nothing was left half-written: the same command with --resume goes on",
            interrupted.exit_status,
        ) from None


@app.command()
def tune(
    recipe: RecipeArgument,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="How many the study is to have in all.")
    ] = 100,
    timeout: Annotated[
        Optional[float],
        typer.Option("--timeout", metavar="SECONDS", min=1, help="End the search after so long."),
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option(
            "--workers", min=1, max=1024, help="Processes; by default one a core or CUDA device."
        ),
    ] = None,
    sampler: Annotated[
        SamplerChoice, typer.Option("--sampler", help="What proposes the next trial.")
    ] = "tpe",
    pruner: Annotated[
        PrunerChoice, typer.Option("--pruner", help="What ends trials that fall behind.")
    ] = "hyperband",
    storage: Annotated[
        Optional[str],
        typer.Option(
            "--storage",
            metavar="URL",
            help="A journal file, or postgresql://... for several machines.",
        ),
    ] = None,
    study: Annotated[
        Optional[str], typer.Option("--study", help="Its name; by default the recipe's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study, or work on one with others.")
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=0,
            help="Seeds on which the best recipe and the one as it is are compared.",
        ),
    ] = 5,
    top: Annotated[
        int,
        typer.Option(
            "--top", min=1, max=16, help="Average up to so many networks, where that is better."
        ),
    ] = 1,
    together: Annotated[
        Optional[int],
        typer.Option(
            "--together",
            min=1,
            max=4096,
            help="How many small networks a worker trains at once; by default what is fastest.",
        ),
    ] = None,
    data: DataOption = None,
    target: TargetOption = None,
    name: NameOption = None,
    set_: SetOption = None,
    skip_bad: SkipBadOption = False,
    promote: PromoteOption = True,
    track: TrackOption = None,
) -> None:
    """Search a recipe's space, see whether that has helped, and release the winner.

    Example: `parityline tune fashion-mnist --trials 60 --workers 4 --timeout 3600`
    """
    from artifacts.references import store_path

    with _extra("train"):
        from training.interrupts import Interrupted
        from training.recipe import load_recipe
        from training.tracking import wanted
    with _extra("tune"):
        from training.tuning.tune import Options
        from training.tuning.tune import tune as tune_recipe

    resolved = load_recipe(
        recipe, set_ or [], name=name, data=data, target=target, skip_bad=skip_bad
    )
    options = Options(
        trials=trials, timeout_s=timeout, workers=workers, sampler=sampler, pruner=pruner,
        storage=storage, study=study, repeats=repeats, top=top, together=together,
    )  # fmt: skip
    try:
        tune_recipe(
            resolved, store_path(), options, promote=promote, console=_console(), resume=resume,
            track=wanted(track),
        )  # fmt: skip
    except Interrupted as interrupted:
        raise Stopped(
            f"{interrupted}; no ended trial is lost: the same command with --resume goes on",
            interrupted.exit_status,
        ) from None


@app.command()
def verify(
    bundle: BundleArgument, backend: BackendOption = "onnx", device: DeviceOption = "auto"
) -> None:
    """Check every file's digest, and the golden rows on a backend and device.

    Example: `parityline verify digits --backend torchscript`
    """
    from artifacts import open_bundle

    predictor = open_bundle(bundle, backend=backend, device=device)
    manifest, checked = predictor.manifest, predictor.checked
    _print(f"{manifest.reference}: {len(manifest.files)} files are as released")
    _print(
        f"{predictor.backend} on {predictor.device}: {checked.rows} golden rows agree with the "
        f"trained model, largest difference of logits {checked.max_abs_diff:.2g}"
    )


@app.command()
def show(bundle: BundleArgument) -> None:
    """What a bundle is: its manifest in short.

    Example: `parityline show digits`
    """
    from artifacts.references import open_reference, store_path
    from artifacts.summary import summary_lines

    for line in summary_lines(open_reference(store_path(), bundle)):
        _print(line)


@app.command()
def promote(
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The new meaning.")],
) -> None:
    """Make NAME stand for one of its versions, after verifying it as `verify` does.

    Example: `parityline promote digits@0123456789ab`
    """
    from artifacts import open_bundle
    from artifacts.references import promote as promote_bundle
    from artifacts.references import store_path

    if "@" in reference:
        open_bundle(reference, device="cpu")
    promote_bundle(store_path(), reference)
    name, _, version = reference.partition("@")
    _print(f"{name} now means {version}")


@app.command("list")
def list_() -> None:
    """The bundles in the store; the promoted version of each name is marked.

    Example: `parityline list`
    """
    from artifacts.references import store_path
    from artifacts.summary import list_lines

    for line in list_lines(store_path()):
        _print(line)


@app.command()
def serve(
    bundle: Annotated[
        Optional[str],
        typer.Argument(metavar="[BUNDLE]", help="By default $PARITYLINE_BUNDLE or the only name."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 3000,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    backend: Annotated[
        Optional[BackendName], typer.Option(help="By default $PARITYLINE_BACKEND, or onnx.")
    ] = None,
    device: Annotated[
        Optional[DeviceChoice], typer.Option(help="By default $PARITYLINE_DEVICE, or auto.")
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option(min=1, help="Processes; by default one for each core, or CUDA device."),
    ] = None,
    watch: Annotated[
        Optional[float],
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Look so often for a newly promoted version; by default on SIGHUP alone.",
        ),
    ] = None,
    tokens: Annotated[
        Optional[str],
        typer.Option(metavar="FILE", help="Ask for one of the bearer tokens in it, one a line."),
    ] = None,
    grace: Annotated[
        Optional[float],
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="From SIGTERM, when /readyz says no, until connections are refused.",
        ),
    ] = None,
) -> None:
    """Serve a bundle over HTTP: the same service as `bentoml serve`.

    Example: `parityline serve digits --port 3000`
    """
    with _extra("serve"):
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


@app.command()
def build(
    bundle: BundleArgument,
    backend: BackendOption = "onnx",
    device: DeviceOption = "auto",
    name: Annotated[
        Optional[str], typer.Option("--name", help="The Bento's name; by default the bundle's.")
    ] = None,
    output: Annotated[
        Optional[str], typer.Option("--output", metavar="FILE.bento", help="Write it there too.")
    ] = None,
) -> None:
    """Pack the service and one bundle as a Bento, with only what serving that needs.

    Example: `parityline build digits --device cpu`
    """
    from pathlib import Path

    with _extra("serve"):
        from serving.packing import build as build_bento

    bento = build_bento(
        bundle, backend=backend, device=device, name=name, output=Path(output) if output else None
    )
    _print(f"built: {bento.tag}, {bento.file_size / 1e6:.1f} MB ({bento.path})")
    _print(f"next: bentoml serve {bento.tag}, or bentoml containerize {bento.tag}")


@app.command()
def push(
    bundle: BundleArgument,
    tag: Annotated[
        Optional[str],
        typer.Option("--tag", metavar="NAME:VERSION", help="By default the bundle's own."),
    ] = None,
) -> None:
    """Copy a bundle into BentoML's model store, as plain files.

    Example: `parityline push digits`
    """
    from artifacts.references import open_reference, store_path

    with _extra("serve"):
        from serving.model_store import push as push_bundle

    pushed, new = push_bundle(open_reference(store_path(), bundle), tag)
    _print(f"pushed: {pushed}" if new else f"{pushed} is there already, and as released")


@app.command()
def pull(
    tag: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="In BentoML's model store.")],
    promote: Annotated[bool, typer.Option("--promote", help="Make its name stand for it.")] = False,
) -> None:
    """Copy a pushed bundle from BentoML's model store into the store, verified.

    Example: `parityline pull digits --promote`
    """
    from artifacts.references import store_path

    with _extra("serve"):
        from serving.model_store import pull as pull_bundle

    pulled = pull_bundle(tag, store_path(), promote=promote)
    _print(f"pulled: {pulled.manifest.reference} ({pulled.path})")
    if promote:
        _print(f"promoted: {pulled.manifest.name} now means this version")


app.command()(score)
app.command()(report)


class _extra:
    """Turns a missing package of an extra into one line that says how to install it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise ParitylineError(
                f"{error.name} is not installed: pip install 'parityline[{self.name}]'"
            ) from error


def _console(*, stderr: bool = False) -> Console:
    # What stands between colons in a path or a message is no name of a picture.
    return Console(stderr=stderr, emoji=False)


def _print(line: str) -> None:
    _console().print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1."""
    # BentoML tells its makers of what it is used for, unless this says no.
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    try:
        app()
    except Stopped as stopped:
        _console(stderr=True).print(str(stopped), highlight=False, markup=False, soft_wrap=True)
        sys.exit(stopped.exit_status)
    except ParitylineError as error:
        _console(stderr=True).print(
            f"error: {error}", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _console(stderr=True).print("interrupted; nothing was left half-written")
        raise


if __name__ == "__main__":
    main()
