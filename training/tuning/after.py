"""After the search: has it helped, on several seeds and on the test part; whom to average."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from artifacts.manifest import DataInfo, Estimate, Study
from training.data import Dataset
from training.recipe import Recipe
from training.run import say
from training.tuning.compare import FIGURES, difference, is_better, released_probabilities
from training.tuning.ensemble import choose_ensemble
from training.tuning.plan import Plan, trained_content
from training.tuning.results import RunResult, read_result
from training.tuning.space import describe_space
from training.tuning.storage import MOST_RETRIES
from training.tuning.study import DEFAULT, counts, default_trial, recipe_of_trial
from training.tuning.workers import Workers

_WAIT_S = 1.0
# What a figure is called in a sentence.
_WORDS = {"accuracy": "accuracy", "log_loss": "log loss", "auc": "AUC"}


@dataclass(frozen=True)
class Winner:
    """What is released: the best trial's recipe, or the recipe as it is. study: for the manifest.

    lines: what the comparison came to, in words.
    """

    recipe: Recipe
    study: Study
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One network of an ensemble. trial: its number."""

    trial: int
    recipe: Recipe
    result: RunResult


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    seed: int
    keep_weights: bool = False


class After:
    """What happens to a study's best trials. order: the completed trials, the best one first."""

    def __init__(
        self, plan: Plan, study: optuna.Study, order: Sequence[FrozenTrial], dataset: Dataset,
        info: DataInfo, workers: tuple[int, int], console: Console,
    ) -> None:  # fmt: skip
        """workers: how many processes, and how many CUDA devices they share."""
        self._plan, self._study, self._order = plan, study, order
        self._dataset, self._info = dataset, info
        self._count, self._devices = workers
        self._console = console

    def compare(self, repeats: int) -> Winner:
        """The best trial's recipe beside the recipe as it is, each with so many seeds.

        Whose mean objective on the validation part is better wins; the test part only tells how
        much that is.
        """
        best, recipe = self._order[0], self._plan.recipe
        if DEFAULT in best.user_attrs:
            line = "no better: the recipe as it is has been the best of all trials"
            say(self._console, f"compare: {line}")
            return self._winner(best, (line,))
        if repeats < 1:
            return self._winner(best, ())
        # Not the search's own seeds, for which the best trial was chosen.
        first = recipe.train.seed + recipe.tune.seeds
        seeds = range(first, first + repeats)
        tuned, default = (
            [_Job(each, seed) for seed in seeds]
            for each in (recipe_of_trial(self._plan, best), recipe)
        )
        say(
            self._console,
            f"compare: trial {best.number} and the recipe as it is, {repeats} "
            f"seed{'s' * (repeats > 1)} each",
        )
        results = self._run([job for pair in zip(tuned, default, strict=True) for job in pair])
        # In turns, so that both are equally far when it is interrupted.
        sides = [[found for found in results[side::2] if found is not None] for side in (0, 1)]
        if not all(sides):
            which = "trial's recipe" if not sides[0] else "recipe as it is"
            lines = [f"no seed of the {which} has come to its end, so they are not compared"]
            default_wins = not sides[0] and bool(sides[1])
        else:
            lines, default_wins = self._compare(*sides)
        for line in lines:
            say(self._console, f"compare: {line}")
        found = None if not all(sides) else self._difference(*sides, "accuracy")
        kept = sides[1][0].value if default_wins else None
        return self._winner(best, tuple(lines), kept=kept, repeats=repeats, difference=found)

    def _compare(self, tuned: list[RunResult], default: list[RunResult]) -> tuple[list[str], bool]:
        objective = self._plan.recipe.tune.objective
        sign = 1 if FIGURES[objective] else -1
        means = [float(np.mean([run.value for run in side])) for side in (tuned, default)]
        default_wins = sign * means[0] <= sign * means[1]
        lines = [
            f"validation {_WORDS[objective]} {means[0]:.4f}{_spread(tuned)} tuned, "
            f"{means[1]:.4f}{_spread(default)} as it is"
        ]
        for figure in dict.fromkeys(("accuracy", objective)):
            found = self._difference(tuned, default, figure)
            if found is None:
                continue
            better = is_better(found, figure)
            verdict = {True: "better", False: "worse", None: "no difference that is certain"}
            lines.append(
                f"test {_WORDS[figure]}: tuned less as it is {found.value:+.4f} "
                f"[{found.low:+.4f}, {found.high:+.4f}] (95%): {verdict[better]}"
            )
        if default_wins:
            lines.append(
                "no better: the recipe as it is does no worse on the validation part, and is kept"
            )
        return lines, default_wins

    def _difference(
        self, tuned: list[RunResult], default: list[RunResult], figure: str
    ) -> Estimate | None:
        calibrate = self._plan.recipe.export.calibrate
        validation = self._dataset.validation.labels
        sides = [
            [
                released_probabilities(
                    run.validation_logits, validation, run.test_logits, calibrate
                )
                for run in side
            ]
            for side in (tuned, default)
        ]
        return difference(*sides, self._dataset.test.labels, figure)

    def members(self, winner: Winner, top: int) -> list[Member]:
        """Of the winner and the best trials beside it those whose mean logits measure better.

        [] where the winner alone is best, on the validation part.
        """
        if top < 2:
            return []
        first = winner.study.trial
        others = [trial for trial in self._order if trial.number != first][: top - 1]
        numbers = [first, *(trial.number for trial in others)]
        recipes = [winner.recipe, *(recipe_of_trial(self._plan, trial) for trial in others)]
        jobs = [_Job(recipe, recipe.train.seed, keep_weights=True) for recipe in recipes]
        found = [
            Member(number, job.recipe, result)
            for number, job, result in zip(numbers, jobs, self._run(jobs), strict=True)
            if result is not None and _same_input(job.recipe, winner.recipe)
        ]
        if len(found) < 2 or found[0].trial != first:
            say(self._console, "ensemble: there are no two networks that take the same input")
            return []
        chosen = choose_ensemble(
            [member.result.validation_logits for member in found],
            self._dataset.validation.labels, self._plan.recipe.tune.objective,
        )  # fmt: skip
        if len(chosen) < 2:
            say(self._console, f"ensemble: none of the best {len(found)} is better than one alone")
            return []
        trials = ", ".join(str(found[index].trial) for index in chosen)
        say(self._console, f"ensemble: the mean of trials {trials} is better than one alone")
        return [found[index] for index in chosen]

    def _run(self, jobs: Sequence[_Job]) -> list[RunResult | None]:
        """What each came to, None where it failed; what was done before is not done again."""
        files = [self._file(job) for job in jobs]
        left = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.exists()]
        if left:
            with Workers(self._plan, min(self._count, len(left)), self._devices) as workers:
                self._work(workers, left)
        return [read_result(file) for file in files]

    def _work(self, workers: Workers, left: list[tuple[_Job, Path]]) -> None:
        waiting, running, ended = list(left), dict[int, tuple[_Job, Path]](), 0
        deaths = Counter[Path]()
        while ended < len(left):
            for index in workers.idle()[: len(waiting)]:
                running[index] = job, file = waiting.pop(0)
                command = {
                    "do": "measure", "recipe": job.recipe.model_dump(mode="json"),
                    "seed": job.seed, "file": str(file), "keep_weights": job.keep_weights,
                }  # fmt: skip
                workers.send(index, command)
            for index, event in workers.events(_WAIT_S):
                if event["event"] == "measured":
                    ended += 1
                    job, _ = running.pop(index)
                    if event["reason"]:
                        say(self._console, f"compare: seed {job.seed} failed: {event['reason']}")
                elif event["event"] == "died" and index in running:
                    job, file = running.pop(index)
                    deaths[file] += 1
                    if deaths[file] <= MOST_RETRIES:
                        waiting.append((job, file))
                    else:
                        ended += 1
                        why = f"its worker ended with {event['status']} ({deaths[file]} times)"
                        say(self._console, f"compare: seed {job.seed} failed: {why}")

    def _file(self, job: _Job) -> Path:
        content = json.dumps(trained_content(job.recipe))
        text = f"{self._info.fingerprint} {self._plan.recipe.tune.objective} {content}"
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        weights = "-weights" if job.keep_weights else ""
        return self._plan.folder / "results" / f"{key}-seed-{job.seed}{weights}.pt"

    def _winner(
        self, best: FrozenTrial, lines: Iterable[str], *, kept: float | None = None,
        repeats: int = 0, difference: Estimate | None = None,
    ) -> Winner:  # fmt: skip
        """kept: the objective of the recipe as it is, where that is what is released."""
        plan, found = self._plan, counts(self._study)
        released, value = best, best.value
        if kept is not None:
            released = default_trial(self._study)
            # Its own trial may have failed, or not have ended when the time was over.
            value = kept if released.value is None else released.value
        assert value is not None
        recipe = recipe_of_trial(plan, released)
        study = Study(
            name=plan.study,
            objective=plan.recipe.tune.objective,
            space=tuple(describe_space(plan.recipe.tune.space)),
            sampler=plan.sampler,
            pruner=plan.pruner,
            trials={
                "complete": found.complete, "pruned": found.pruned, "failed": found.failed
            },
            best_trial=best.number,
            trial=released.number,
            value=value,
            params=released.params,
            unchanged=DEFAULT in released.user_attrs,
            repeats=repeats,
            difference=difference,
        )  # fmt: skip
        return Winner(recipe, study, tuple(lines))


def _same_input(recipe: Recipe, other: Recipe) -> bool:
    """Whether both networks stand behind the same preprocessing."""
    bins = [getattr(each.model, "bins", None) for each in (recipe, other)]
    return recipe.data == other.data and bins[0] == bins[1]


def _spread(runs: list[RunResult]) -> str:
    """The standard deviation over the seeds; "" of a single one."""
    values = [run.value for run in runs]
    return f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
