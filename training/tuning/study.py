"""A study in its storage: begun or gone on with, its next trial, and how far it is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from artifacts.errors import DataError
from artifacts.manifest import DataInfo
from training.recipe import Recipe
from training.tuning.objective import PROGRESS, steps_of
from training.tuning.plan import Plan, differences, identity, trained_content
from training.tuning.space import default_params, distributions, grid, recipe_of, suggest
from training.tuning.stacked import OWN_KEYS, stack_key
from training.tuning.storage import COPY_OF, StudyError

# User attributes of a trial.
DEFAULT, RECIPE_ID, DUPLICATE_OF, REASON = "default", "recipe_id", "duplicate_of", "reason"
_IDENTITY, _RUN_ID = "parityline", "run_id"
# So many trials are drawn at random before TPE has something to go by.
_STARTUP_TRIALS = 10
_MEDIAN_STARTUP, _MEDIAN_WARMUP = 5, PROGRESS // 3
# More duplicates than that in a row: everything in the space has been tried.
EXHAUSTED_AFTER = 200
_TURN = "draw.lock"


@dataclass(frozen=True)
class Counts:
    """How far a study is. Duplicates, and trials that are tried again, are not counted."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def ended(self) -> int:
        """Trials that will not run again."""
        return self.complete + self.pruned + self.failed


def open_study(
    plan: Plan, storage: optuna.storages.BaseStorage, info: DataInfo, *, resume: bool
) -> optuna.Study:
    """The study that `plan` names, begun, or gone on with after `resume`; trial 0 is the recipe.

    Raises StudyError for a study that is there already and not resumed, and for one of another
    space, recipe or data, each difference with both values.
    """
    now = identity(plan.recipe, info)
    names = optuna.get_all_study_names(storage)
    if plan.study in names and not resume:
        there = optuna.load_study(study_name=plan.study, storage=storage)
        trials = counts(there).ended
        raise StudyError(
            f"the study {plan.study!r} is there already, with {trials} trials ended: --resume "
            "goes on with it, --study NAME begins another"
        )
    study = optuna.create_study(
        study_name=plan.study, storage=storage, direction=plan.direction, load_if_exists=True
    )
    known = study.user_attrs.get(_IDENTITY)
    if known is None and study.get_trials(deepcopy=False):
        raise StudyError(f"the study {plan.study!r} in {plan.storage} is not Parityline's")
    if known is None:
        study.set_user_attr(_RUN_ID, uuid.uuid4().hex)
        study.set_user_attr(_IDENTITY, now)
    elif changed := differences(known, now):
        raise StudyError(
            f"--resume: the study {plan.study!r} is another: {changed}. "
            "--study NAME begins another one"
        )
    if not any(DEFAULT in trial.user_attrs for trial in counted(study.get_trials(deepcopy=False))):
        # With its id, so that no other trial of the same recipe comes before it.
        attributes = {DEFAULT: True, RECIPE_ID: _recipe_id(plan.recipe)}
        study.enqueue_trial(default_params(plan.recipe), user_attrs=attributes)
    return study


def run_id(study: optuna.Study) -> str:
    """What names the study in MLflow."""
    return str(study.user_attrs[_RUN_ID])


def make_sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of that number.

    Its seed is that of the recipe with the number, so a resumed study goes on, and does not begin
    again, with what an uninterrupted one draws, and no two machines draw the same.
    """
    text = f"{plan.recipe.train.seed} {number}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if plan.sampler == "grid":
        values = grid(plan.recipe, plan.recipe.tune.space)
        return optuna.samplers.GridSampler(values, seed=plan.recipe.train.seed)
    # Grouped, as trial 0 need not have all parameters, nor those that are conditional on others.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, group=True)


class _OneTrial(optuna.samplers.BaseSampler):
    """What `make_sampler` makes for a trial, once the trial has its number.

    Nothing is done after a trial: Optuna's grid would end `study.optimize` then.
    """

    def __init__(self, plan: Plan, fixed: Mapping[str, Any]) -> None:
        self._plan, self._fixed = plan, dict(fixed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        sampler = make_sampler(self._plan, trial.number)
        if self._fixed:
            sampler = optuna.samplers.PartialFixedSampler(self._fixed, sampler)
        self._sampler = sampler
        sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # fmt: skip
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def make_pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """The pruner, for values at PROGRESS steps of each run of a trial."""
    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(_MEDIAN_STARTUP, _MEDIAN_WARMUP)
    return optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=steps_of(plan.recipe), reduction_factor=3
    )


@dataclass(frozen=True)
class Drawn:
    """A trial to run: its recipe, or why there is none (`reason`), and whose duplicate it is."""

    trial: Trial
    params: dict[str, Any]
    recipe: Recipe | None
    reason: str = ""
    duplicate_of: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is the recipe as it is."""
        return DEFAULT in self.trial.user_attrs


def draw(plan: Plan, study: optuna.Study, fixed: Mapping[str, Any] | None = None) -> Drawn:
    """The study's next trial: what waits in its queue, or what its sampler proposes.

    fixed: parameters that are to have these values.
    """
    study.sampler = _OneTrial(plan, fixed or {})
    trial = study.ask()
    try:
        if DEFAULT in trial.user_attrs:
            known = distributions(plan.recipe.tune.space)
            for name in default_params(plan.recipe):
                _suggest(trial, name, known[name])
            recipe = plan.recipe
        else:
            recipe = recipe_of(plan.recipe, suggest(trial, plan.recipe.tune.space))
    except DataError as error:
        # Tried once too: a space of few choices comes to its end.
        key = _digest(json.dumps(trial.params, sort_keys=True))
        same = _claim(plan, study, trial, key)
        return Drawn(trial, dict(trial.params), None, str(error), same)
    same = _claim(plan, study, trial, _recipe_id(recipe))
    return Drawn(trial, dict(trial.params), recipe, duplicate_of=same)


def draw_alike(
    plan: Plan, study: optuna.Study, first: Drawn, count: int, in_all: int
) -> Iterator[Drawn]:
    """So many more trials, which can be trained together with the first if nothing comes between.

    What must be equal for that is fixed; rates, decay, dropout and the like are proposed anew.
    in_all: so many the study is to have, those of other machines included, and no more. Nothing is
    drawn while trials wait in the queue, and for a grid, whose places are fixed.
    """
    assert first.recipe is not None
    if stack_key(first.recipe) is None or plan.sampler == "grid":
        return
    shape = {name: value for name, value in first.params.items() if name not in OWN_KEYS}
    for _ in range(count):
        if counts(study).waiting or not has_room(study, in_all):
            return
        yield draw(plan, study, shape)


def _recipe_id(recipe: Recipe) -> str:
    """The same for what is trained alike."""
    return _digest(json.dumps(trained_content(recipe)))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _claim(plan: Plan, study: optuna.Study, trial: Trial, key: str) -> int | None:
    """Note a trial's recipe, or which other trial is of the very same; that one's number."""
    # In turn: of two workers that draw the same at once, neither would find the other.
    with (plan.folder / _TURN).open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for other in counted(study.get_trials(deepcopy=False)):
            if other.number != trial.number and other.user_attrs.get(RECIPE_ID) == key:
                trial.set_user_attr(DUPLICATE_OF, other.number)
                return other.number
        trial.set_user_attr(RECIPE_ID, key)
    return None


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, optuna.distributions.IntDistribution):
        trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    else:
        assert isinstance(distribution, optuna.distributions.FloatDistribution)
        trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )


def counts(study: optuna.Study) -> Counts:
    """How far the study is."""
    found: dict[str, int] = {}
    names = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
    for trial in counted(study.get_trials(deepcopy=False)):
        name = names.get(trial.state.name.lower(), trial.state.name.lower())
        found[name] = found.get(name, 0) + 1
    return Counts(**found)


def has_room(study: optuna.Study, in_all: int) -> bool:
    """Whether it has fewer trials than that, so far, that have ended or are at work."""
    found = counts(study)
    return found.ended + found.running < in_all


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that are no duplicates and are not tried again."""
    copied = {trial.system_attrs.get(COPY_OF) for trial in trials}
    return [
        trial
        for trial in trials
        if DUPLICATE_OF not in trial.user_attrs and trial.number not in copied
    ]


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """The completed trials, the best first, the earlier of two equal ones first."""
    trials = [
        trial
        for trial in counted(study.get_trials(deepcopy=False))
        if trial.state == TrialState.COMPLETE
    ]
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(trials, key=lambda trial: (sign * float(trial.value or 0), trial.number))


def default_trial(study: optuna.Study) -> FrozenTrial:
    """The trial of the recipe as it is, however it has ended; the last try of several."""
    known = counted(study.get_trials(deepcopy=False))
    return next(trial for trial in reversed(known) if DEFAULT in trial.user_attrs)


def recipe_of_trial(plan: Plan, trial: FrozenTrial) -> Recipe:
    """The recipe that a trial was of."""
    if DEFAULT in trial.user_attrs:
        return plan.recipe
    replay: Any = optuna.trial.FixedTrial(trial.params)
    return recipe_of(plan.recipe, suggest(replay, plan.recipe.tune.space))
