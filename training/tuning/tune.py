"""A study from its recipe to a released bundle: search, comparison on several seeds, release.

parityline tune fashion-mnist --trials 100 --workers 4
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console

from artifacts.bundle import Bundle
from artifacts.devices import cuda_device_count
from artifacts.errors import DataError
from artifacts.manifest import DataInfo
from artifacts.shelves import NAME_PATTERN
from artifacts.summary import describe_input
from artifacts.terminal import busy
from training.data import Dataset, load_dataset
from training.interrupts import catch_interrupts
from training.recipe import Recipe
from training.run import check_writable, device_of, run, say, share_of_machine
from training.tracking import Tracker, tracking
from training.transfer import with_backbone_defaults
from training.tuning.after import After, Winner
from training.tuning.display import SearchDisplay, params_text
from training.tuning.ensemble_release import release_ensemble
from training.tuning.objective import check_folds
from training.tuning.page import study_page, write_page
from training.tuning.plan import Plan, PrunerName, SamplerName
from training.tuning.search import Search
from training.tuning.space import check_space, describe_space, grid
from training.tuning.storage import StudyError, open_storage, quiet_optuna, shown
from training.tuning.study import REASON, counted, counts, open_study, ranking, run_id
from training.tuning.workers import Workers

FOLDER = ".tuning"
_REASONS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `parityline tune` may be told.

    trials: how many the study is to have, those of earlier runs and other machines included.
    timeout_s: of the search. workers: one for each core, or CUDA device, without it.
    repeats: seeds on which the best recipe and the one as it is are compared; 0 for none.
    top: of how many of the best trials an ensemble may be made.
    together: trials of equal shape that a worker trains at once; without it what pays.
    """

    trials: int = 100
    timeout_s: float | None = None
    workers: int | None = None
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "hyperband"
    storage: str | None = None
    study: str | None = None
    repeats: int = 5
    top: int = 1
    together: int | None = None


def tune(
    recipe: Recipe,
    store: Path,
    options: Options,
    *,
    promote: bool,
    console: Console,
    resume: bool = False,
    track: bool = False,
) -> Bundle:
    """Search the recipe's space, see on several seeds whether that has helped, release the winner.

    Trials and what follows lie in STORE/.tuning/STUDY and are not repeated after `resume`.
    Raises StudyError where the study cannot be begun or gone on with, or no trial has completed;
    DataError, DeviceError, BundleError as `run`; Interrupted after SIGINT or SIGTERM.
    """
    began = time.perf_counter()
    if not recipe.tune.space:
        raise DataError(
            f"recipe {recipe.name}: [tune.space] is empty: say what the study may change, such as "
            "--set 'tune.space.\"train.lr\"={low=1e-4,high=1e-1,log=true}'"
        )
    check_space(recipe)
    device = device_of(recipe)
    check_writable(store)
    name = recipe.name if options.study is None else options.study
    if not re.fullmatch(NAME_PATTERN, name):
        raise DataError(
            "--study: expected 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a "
            f"digit, found {name!r}"
        )
    if options.sampler == "grid":
        grid(recipe, recipe.tune.space)
    plan = Plan(
        recipe=recipe, study=name, folder=(store / FOLDER / name).absolute(),
        storage=options.storage, sampler=options.sampler, pruner=options.pruner,
        device=device, together=options.together,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(catch_interrupts())
        stack.enter_context(quiet_optuna())
        tracker = stack.enter_context(tracking(track, console))
        # Before the data is read: what cannot be reached is said at once.
        storage = open_storage(plan.storage, plan.folder)
        with busy(console, "reading the data"):
            dataset = load_dataset(with_backbone_defaults(recipe).data)
        if recipe.tune.folds > 1:
            check_folds(dataset, recipe.tune.folds)
        info = dataset.info()
        study = open_study(plan, storage, info, resume=resume)
        processes = _workers(options.workers, device)
        data = share_of_machine(recipe.data, processes[0] + 1)
        plan = plan.model_copy(update={"recipe": recipe.model_copy(update={"data": data})})
        _introduce(console, plan, dataset, study, *processes)
        _start(tracker, plan, study, info)
        why = _search(plan, study, options, processes, tracker, console)
        say(console, f"study: {why}: {_ends(study)}")
        order = ranking(study)
        if not order:
            raise StudyError(_none_completed(study))
        best = order[0]
        say(console, f"best: trial {best.number}, {plan.recipe.tune.objective} {best.value:.4f}")
        if best.params:
            say(console, f"best: {params_text(best.params, whole=True)}")
        after = After(plan, study, order, dataset, info, processes, console)
        winner = after.compare(options.repeats)
        # From here on it has the machine to itself again.
        found = _as_asked(winner.recipe, recipe)
        members = [
            replace(member, recipe=_as_asked(member.recipe, recipe))
            for member in after.members(winner, options.top)
        ]
        page = plan.folder / "study.html"
        write_page(page, study_page(study, f"Study {name}", _facts(plan, study, winner)))
        say(console, f"study: pictures of it are in {page}")
        tracker.file(page)
        if members:
            bundle = release_ensemble(
                members, winner, dataset, info, store, device, promote=promote, console=console
            )
            tracker.tags({"bundle": bundle.manifest.reference})
    if not members:
        # A run of its own: from here on it is `parityline train` with the winner's recipe.
        released = run(
            found, store, promote=promote, console=console, resume=None if resume else False,
            preflight=False, track=track, study=winner.study,
        )  # fmt: skip
        assert released is not None
        bundle = released
    say(console, f"seconds: {time.perf_counter() - began:.1f}, the study included")
    return bundle


def _as_asked(found: Recipe, asked: Recipe) -> Recipe:
    """A trial's recipe without the share of the machine that its worker had."""
    own = {"memory_mb": asked.data.memory_mb, "workers": asked.data.workers}
    return found.model_copy(update={"data": found.data.model_copy(update=own)})


def _workers(asked: int | None, device: str) -> tuple[int, int]:
    """How many processes, and how many CUDA devices they share."""
    devices = cuda_device_count() if device == "cuda" else 0
    return asked or devices or os.cpu_count() or 1, devices


def _introduce(
    console: Console, plan: Plan, dataset: Dataset, study: optuna.Study, workers: int, devices: int
) -> None:
    recipe = plan.recipe
    rows = ", ".join(f"{len(part)} {name}" for name, part in dataset.parts.items())
    say(console, f"data: {dataset.source}: {rows}; {len(dataset.labels)} classes")
    say(console, f"input: {describe_input(dataset.input)}")
    where = plan.folder if plan.storage is None else shown(plan.storage)
    known = counts(study)
    say(console, f"study: {plan.study} in {where}" + (
        f", going on with {known.ended} trials ended" if known.ended else ""
    ))  # fmt: skip
    for line in describe_space(recipe.tune.space):
        say(console, f"space: {line}")
    per_trial = recipe.tune.folds * recipe.tune.seeds
    of = f", the mean of {per_trial} trainings" if per_trial > 1 else ""
    say(console, f"search: {plan.sampler}, pruner {plan.pruner}, {recipe.tune.objective}{of}")
    units, unit = (devices, "CUDA devices") if devices else (os.cpu_count() or 1, "cores")
    warning = f": more than the {units} {unit} only slow one another down"
    say(console, f"workers: {workers} on {plan.device}{warning if workers > units else ''}")


def _start(tracker: Tracker, plan: Plan, study: optuna.Study, info: DataInfo) -> None:
    content = plan.recipe.model_dump(
        mode="json", exclude={"summary": True, "data": {"path", "test_path", "workers"}}
    )
    tags = {"data_fingerprint": info.fingerprint, "study": plan.study}
    begun = counts(study).ended > 0
    tracker.start(plan.recipe.name, content, tags, run_id(study), resumed=begun, command="tune")


def _search(
    plan: Plan, study: optuna.Study, options: Options, processes: tuple[int, int],
    tracker: Tracker, console: Console,
) -> str:  # fmt: skip
    """Search until one of the limits; which one."""
    left = options.trials - counts(study).ended
    if left < 1:
        return f"it has its {options.trials} trials already"
    with Workers(plan, min(processes[0], left), processes[1]) as workers:
        # The search has its time from here on.
        with busy(console, "workers begin"):
            workers.wait_until_ready()
        deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
        with SearchDisplay(console, options.trials, deadline) as display:
            search = Search(plan, study, workers, options.trials, deadline, display, tracker)
            return search.run()


def _ends(study: optuna.Study) -> str:
    found = counts(study)
    return f"{found.complete} completed, {found.pruned} pruned, {found.failed} failed"


def _none_completed(study: optuna.Study) -> str:
    """Why not a single trial has completed."""
    failed = [
        f"trial {trial.number}: {trial.user_attrs.get(REASON, 'unknown')}"
        for trial in counted(study.get_trials(deepcopy=False))
        if trial.state == TrialState.FAIL
    ]
    if not failed:
        failed = ["none has come to its end: give it more time (--timeout) or shorter trainings"]
    more = len(failed) - _REASONS_SHOWN
    lines = failed[:_REASONS_SHOWN] + [f"and {more} more"] * (more > 0)
    return "\n  ".join([f"no trial of the study {study.study_name!r} has completed", *lines])


def _facts(plan: Plan, study: optuna.Study, winner: Winner) -> list[tuple[str, str]]:
    """What the study's page says above its pictures."""
    released = winner.study
    return [
        ("Recipe", plan.recipe.name),
        ("Objective", f"{released.objective} on the validation part"),
        ("Trials", _ends(study)),
        ("Sampler, pruner", f"{plan.sampler}, {plan.pruner}"),
        ("Best", f"trial {released.trial}: {released.value:.4f}"),
        *(("Comparison", line) for line in winner.lines),
        *(("Space", line) for line in released.space),
    ]
