"""`parityline tune`: what is typed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from artifacts.errors import Stopped
from artifacts.extras import extra
from artifacts.options import JsonOption
from artifacts.terminal import busy, open_console, say_json
from training.command import (
    DataOption,
    NameOption,
    PromoteOption,
    RecipeArgument,
    SetOption,
    SkipBadOption,
    TargetOption,
    TrackOption,
)

_SEARCH, _AFTER, _STUDY = "Search", "Afterwards", "Study"


def tune(
    recipe: RecipeArgument,
    data: DataOption = None,
    target: TargetOption = None,
    name: NameOption = None,
    set_: SetOption = None,
    skip_bad: SkipBadOption = False,
    trials: Annotated[
        int,
        typer.Option(
            "--trials",
            min=1,
            metavar="N",
            help="How many the study is to have in all.",
            rich_help_panel=_SEARCH,
        ),
    ] = 100,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1,
            help="End the search after so long.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            max=1024,
            metavar="N",
            help="Processes; by default one a core or CUDA device.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid"],
        typer.Option("--sampler", help="What proposes the next trial.", rich_help_panel=_SEARCH),
    ] = "tpe",
    pruner: Annotated[
        Literal["hyperband", "median", "none"],
        typer.Option(
            "--pruner", help="What ends trials that fall behind.", rich_help_panel=_SEARCH
        ),
    ] = "hyperband",
    together: Annotated[
        int | None,
        typer.Option(
            "--together",
            min=1,
            max=4096,
            metavar="N",
            help="Small networks that a worker trains at once; by default what is fastest.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="NAME",
            help="The study's name; by default the recipe's.",
            rich_help_panel=_STUDY,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a study, or work on one with others.",
            rich_help_panel=_STUDY,
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="A journal file, or postgresql://... for several machines.",
            rich_help_panel=_STUDY,
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=0,
            metavar="N",
            help="Seeds on which the best recipe and the one as it is are compared.",
            rich_help_panel=_AFTER,
        ),
    ] = 5,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            min=1,
            max=16,
            metavar="K",
            help="Average up to so many networks, where that is better.",
            rich_help_panel=_AFTER,
        ),
    ] = 1,
    promote: PromoteOption = True,
    track: TrackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for a better recipe, release the winner.

    It is seen on several seeds whether the search has helped; where it has not, the recipe as it is
    is released. Ctrl-C loses no ended trial, and --resume goes on.

    With --json: what `parityline show --json` says of the new bundle; `study` is what was found.

    Examples:
        parityline tune fashion-mnist --trials 60 --workers 4 --timeout 3600
        parityline tune digits --resume --trials 200
    """
    from artifacts.references import store_path

    console = open_console(stderr=as_json)
    with busy(console, "starting"):
        with extra("train"):
            from training.interrupts import Interrupted
            from training.recipe import load_recipe
            from training.tracking import wanted

            resolved = load_recipe(
                recipe, set_ or [], name=name, data=data, target=target, skip_bad=skip_bad
            )
        with extra("tune"):
            from training.tuning.tune import Options
            from training.tuning.tune import tune as tune_recipe

    options = Options(
        trials=trials, timeout_s=timeout, workers=workers, sampler=sampler, pruner=pruner,
        storage=storage, study=study, repeats=repeats, top=top, together=together,
    )  # fmt: skip
    try:
        bundle = tune_recipe(
            resolved, store_path(), options, promote=promote,
            console=console, resume=resume, track=wanted(track),
        )  # fmt: skip
    except Interrupted as interrupted:
        raise Stopped(
            f"{interrupted}; no ended trial is lost: the same command with --resume goes on",
            interrupted.exit_status,
        ) from None
    if as_json:
        from artifacts.facts import bundle_facts

        say_json(bundle_facts(bundle, store_path()))
