"""`parityline recipes` and `train`: what is typed, and what is offered while it is typed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from artifacts.errors import Stopped
from artifacts.extras import extra
from artifacts.options import JsonOption
from artifacts.terminal import busy, open_console, say_entries, say_json

_RECIPES = Path(__file__).with_name("recipes")


def _complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    files = sorted(file for file in _RECIPES.glob("*.toml") if file.stem.startswith(incomplete))
    return [(file.stem, tomllib.loads(file.read_text("utf-8"))["summary"]) for file in files]


def _complete_key(incomplete: str) -> list[str]:
    from training.recipe_keys import offered

    return offered(incomplete)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe, or a .toml file.",
        autocompletion=_complete_recipe,
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="The file or folder that holds the data."),
]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="COLUMN", help="A table's column that holds the labels."),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="The bundle's name; by default the recipe's."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, such as train.epochs=5; repeatable.",
        autocompletion=_complete_key,
    ),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be read.")
]
PromoteOption = Annotated[
    bool, typer.Option("--promote/--no-promote", help="Make NAME stand for the new version.")
]
TrackOption = Annotated[
    bool | None,
    typer.Option(
        "--track/--no-track",
        help="Record it in MLflow; by default where that is installed.",
        show_default=False,
    ),
]


def recipes() -> None:
    """List the built-in recipes and data sets.

    Examples:
        parityline recipes
    """
    from training.recipe import builtin_recipes

    say_entries({name: recipe.summary for name, recipe in builtin_recipes().items()})


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
    as_json: JsonOption = False,
) -> None:
    """Train a recipe, prove its exports, release a bundle.

    A bundle is released only where each exported format answers as the trained model does. Ctrl-C
    leaves nothing half-written, and --resume goes on from there.

    With --json: what `parityline show --json` says of the new bundle.

    Examples:
        parityline train digits
        parityline train table --data customers.csv --target churned --name churn
        parityline train images --data FOLDER --set model.kind=cnn --set train.epochs=20
    """
    from artifacts.references import store_path

    console = open_console(stderr=as_json)
    # A mistake in the recipe is said before torch is imported, which takes seconds.
    with busy(console, "starting"), extra("train"):
        from training.interrupts import Interrupted
        from training.recipe import load_recipe

        resolved = load_recipe(
            recipe, set_ or [], name=name, data=data, target=target, skip_bad=skip_bad
        )
        from training.run import run
        from training.tracking import wanted

    try:
        bundle = run(
            resolved, store_path(), promote=promote, console=console, resume=resume,
             preflight=preflight, track=wanted(track),
        )  # fmt: skip
    except Interrupted as interrupted:
        raise Stopped(
            f"{interrupted}; nothing was left half-written: the same command with --resume goes on",
            interrupted.exit_status,
        ) from None
    # Of several processes only the first has one.
    if as_json and bundle is not None:
        from artifacts.facts import bundle_facts

        say_json(bundle_facts(bundle, store_path()))
