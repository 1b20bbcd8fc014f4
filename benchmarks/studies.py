"""One search of a study, timed without what comes before and after it, and its figures in words."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console

from artifacts.devices import cuda_device_count
from training.data import load_dataset
from training.recipe import Recipe
from training.run import device_of
from training.tracking import tracking
from training.tuning.display import SearchDisplay
from training.tuning.objective import with_seed
from training.tuning.plan import Plan, PrunerName, SamplerName
from training.tuning.search import Search
from training.tuning.storage import open_storage, quiet_optuna
from training.tuning.study import DEFAULT, Counts, counts, open_study, ranking
from training.tuning.workers import Workers

ENDLESS = 10**9


@dataclass(frozen=True)
class Found:
    """What a search came to: how many trials have ended, in how many seconds.

    best: of the completed trials that a sampler proposed; best_of_all: with trial 0, the recipe as
    it is; nan where there is none.
    """

    trials: int
    seconds: float
    best: float
    best_of_all: float
    counts: Counts

    @property
    def per_minute(self) -> float:
        """Trials that have ended."""
        return 60 * self.trials / self.seconds


def study(
    recipe: Recipe,
    folder: Path,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    workers: int,
    sampler: SamplerName = "tpe",
    pruner: PrunerName = "hyperband",
    seed: int = 0,
    together: int | None = None,
) -> Found:
    """Search the recipe's space as `parityline tune` does, for so long or for so many trials.

    Its time begins when the first worker has read its data. What is running when the time is over
    is not counted. folder: where the study lies; there is none in it yet.
    """
    recipe, device = with_seed(recipe, seed), device_of(recipe)
    plan = Plan(
        recipe=recipe, study=recipe.name, folder=folder.absolute(), sampler=sampler, pruner=pruner,
        device=device, together=together,
    )  # fmt: skip
    console = Console(quiet=True)
    with quiet_optuna(), tracking(False, console) as tracker:
        info = load_dataset(recipe.data).info()
        opened = open_study(plan, open_storage(None, plan.folder), info, resume=False)
        devices = cuda_device_count() if device == "cuda" else 0
        with Workers(plan, workers, devices) as processes:
            while not processes.idle():
                for _ in processes.events(1.0):
                    pass
            began = time.monotonic()
            deadline = None if seconds is None else began + seconds
            wanted = ENDLESS if trials is None else trials
            with SearchDisplay(console, wanted, deadline) as display:
                Search(plan, opened, processes, wanted, deadline, display, tracker).run()
            return found_in(opened, time.monotonic() - began)


def found_in(study: optuna.Study, seconds: float) -> Found:
    """How far a study has come in so many seconds."""
    order, known = ranking(study), counts(study)
    values = [float(trial.value or 0) for trial in order]
    sampled = [float(trial.value or 0) for trial in order if DEFAULT not in trial.user_attrs]
    return Found(
        known.ended, seconds, max(sampled, default=math.nan), max(values, default=math.nan), known
    )


def tell(name: str, found: Found) -> None:
    """A line for a search that has ended."""
    print(
        f"{name}: {found.trials} trials in {found.seconds:.1f} s, {found.per_minute:.1f} a minute "
        f"({ends([found])} completed, pruned, failed); best {found.best:.4f}, "
        f"{found.best_of_all:.4f} with the recipe as it is",
        flush=True,
    )


def ends(several: Sequence[Found]) -> str:
    """How many of all their trials have completed, been pruned and failed."""
    sums = [
        sum(getattr(each.counts, name) for each in several)
        for name in ("complete", "pruned", "failed")
    ]
    return ", ".join(map(str, sums))


def middle(several: Sequence[Found]) -> float:
    """The median of their trials a minute."""
    return statistics.median(each.per_minute for each in several)


def rate(several: Sequence[Found]) -> str:
    """Trials a minute: the median, and the extremes of more than one."""
    values = [each.per_minute for each in several]
    extremes = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{extremes}"


def figure(values: Sequence[float]) -> str:
    """The mean, and the standard deviation and the extremes of more than one."""
    mean = f"{np.mean(values):.4f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.4f} ({min(values):.4f} to {max(values):.4f})"


def times(repeats: int) -> str:
    """In words."""
    return "once" if repeats == 1 else f"{repeats} times in turns"


def rows(recipe: Recipe) -> str:
    """How many rows a trial of it sees."""
    known = load_dataset(recipe.data).info().rows
    return f"{known['train']:,} rows for training and {known['validation']:,} for validation"
