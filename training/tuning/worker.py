"""A worker of a study: a process that runs one trial after another, as it is told on stdin.

`training.tuning.workers` starts it: JSON lines in (the plan, then commands), JSON lines out (what
came of them). It has one thread on CPU, or a CUDA device of its own, and its own connection to the
study's storage.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
import torch._dynamo  # the first optimizer would import it, at the cost of the first trial
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from artifacts.errors import DataError, ParitylineError
from artifacts.manifest import Epoch
from training.evaluation import logits_of
from training.interrupts import Interrupted, Interrupts, catch_interrupts
from training.precision import compiled
from training.recipe import Recipe
from training.transfer import with_backbone_defaults
from training.tuning.objective import Ground, Training, steps_of, trial_value, with_seed
from training.tuning.plan import Plan
from training.tuning.results import RunResult, write_result
from training.tuning.stacked import fit_stacked, pays, stack_key
from training.tuning.storage import Heartbeats, open_storage, quiet_optuna, requeue
from training.tuning.study import REASON, Drawn, draw, draw_alike, has_room, make_pruner

# A process whose CUDA context is broken fails every trial after; another one takes its place.
BROKEN = 3
_REASON_LENGTH = 500
# How soon a worker that waits for a command notices a signal.
_LOOK_S = 0.5


class Pruned(Exception):
    """The pruner has seen enough of a trial."""


@dataclass
class Running:
    """A trial at work. value: the last that was reported."""

    drawn: Drawn
    value: float | None = None
    ended: bool = False
    began: float = field(default_factory=time.perf_counter)

    @property
    def number(self) -> int:
        """The trial's."""
        return self.drawn.trial.number


class Worker:
    """One process's connection to the study."""

    def __init__(
        self, plan: Plan, interrupts: Interrupts, storage: BaseStorage, heartbeats: Heartbeats
    ) -> None:
        self.plan = plan
        self._interrupts = interrupts
        self._parent = os.getppid()
        self._study = optuna.load_study(
            study_name=plan.study, storage=storage, pruner=make_pruner(plan)
        )
        self._ground = Ground(plan.recipe.tune.folds, plan.device)
        self._heartbeats = heartbeats

    def work(self, commands: Iterator[dict[str, Any]]) -> None:
        """Read the data, then do as told."""
        self._ground.splits(with_backbone_defaults(self.plan.recipe))
        tell("ready")
        for command in commands:
            if command["do"] == "trials":
                self.trials(command["most"], command["in_all"])
            else:
                self.measure(
                    Recipe.model_validate(command["recipe"]), command["seed"],
                    Path(command["file"]), keep_weights=command["keep_weights"],
                )  # fmt: skip
            tell("done")

    def trials(self, most: int, in_all: int) -> None:
        """Run the study's next trial, or up to so many that can be trained together.

        in_all: none where the study has so many already, those of other machines included. What was
        drawn and is not run, because it is a duplicate, is told too.
        """
        group = []
        for drawn in self._draw(most, in_all):
            # At once: drawing the others may take longer than a silent trial counts as alive.
            self._heartbeats.begin(drawn.trial._trial_id)
            if not self._is_duplicate(drawn):
                group.append(drawn)
        tell("drawn", count=len(group))
        running = [self._begin(drawn) for drawn in group]
        try:
            for alike in _alike(running):
                if len(alike) == 1:
                    self._run_alone(alike[0])
                else:
                    self._run_together(alike)
        except Interrupted as interrupted:
            for each in running:
                if not each.ended:
                    requeue(self._study, each.number, str(interrupted))
            raise
        finally:
            for each in running:
                self._heartbeats.end(each.drawn.trial._trial_id)

    def _draw(self, most: int, in_all: int) -> Iterator[Drawn]:
        if not has_room(self._study, in_all):
            return
        first = draw(self.plan, self._study)
        yield first
        recipe = first.recipe
        if most == 1 or recipe is None or first.is_default or first.duplicate_of is not None:
            return
        split = self._ground.splits(with_backbone_defaults(recipe))
        if len(split) > 1 or recipe.tune.seeds > 1 or not split[0].train.in_memory:
            return
        train, inputs = split[0].train, math.prod(split[0].dataset.input.shape)
        wanted = self.plan.together or pays(recipe, train.rows, inputs, train.device)
        more = min(most, wanted) - 1
        yield from draw_alike(self.plan, self._study, first, more, in_all)

    def _begin(self, drawn: Drawn) -> Running:
        trial = drawn.trial
        tell("began", number=trial.number, params=drawn.params, default=drawn.is_default)
        return Running(drawn)

    def _run_alone(self, running: Running) -> None:
        recipe = running.drawn.recipe
        try:
            if recipe is None:
                raise DataError(running.drawn.reason)
            report, show = self._following(running)
            with compiled():
                value = trial_value(recipe, self._ground, report, show, self._interrupts)
            self._end(running, TrialState.COMPLETE, value)
        except Pruned:
            self._end(running, TrialState.PRUNED)
        # A trial is a boundary: whatever goes wrong in it is its result.
        except Exception as error:  # noqa: BLE001
            self._fail([running], error)

    def _run_together(self, group: list[Running]) -> None:
        trainings: list[Training] = []
        try:
            for running in group:
                recipe = running.drawn.recipe
                assert recipe is not None
                recipe = with_backbone_defaults(recipe)
                (split,) = self._ground.splits(recipe)
                report, show = self._following(running)
                trainings.append(Training(recipe, split, self.plan.device, None, report, show))

            def goes_on(index: int, record: Epoch, seconds: float) -> bool:
                try:
                    trainings[index].epoch(record, seconds)
                except Pruned:
                    self._end(group[index], TrialState.PRUNED)
                    return False
                return True

            found = fit_stacked(
                [training.model.network for training in trainings],
                trainings[0].model.preprocess, split.train, split.validation,
                [training.config for training in trainings], goes_on,
                examine=lambda index, network: trainings[index].examine(network),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001
            left = [running for running in group if not running.ended]
            if not isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
                self._fail(left, error)
                return
            # What is too much for all together may be little for each.
            trainings.clear()
            if self.plan.device == "cuda":
                torch.cuda.empty_cache()
            for running in left:
                self._run_alone(running)
            return
        for running, training, result in zip(group, trainings, found, strict=True):
            if isinstance(result, DataError):
                self._fail([running], result)
            elif result is not None:
                self._end(running, TrialState.COMPLETE, training.value)

    def _following(
        self, running: Running
    ) -> tuple[Callable[[int, float], None], Callable[[Epoch, float], None]]:
        """What is to be done with a trial's progress, and with each of its epochs."""
        trial, last = running.drawn.trial, steps_of(self.plan.recipe)

        def report(step: int, value: float) -> None:
            trial.report(value, step)
            running.value = value
            # The recipe as it is is what the others are measured against. A trial that has come to
            # its end is complete, though Hyperband's last rung lies there.
            if not running.drawn.is_default and step < last and trial.should_prune():
                raise Pruned

        def show(record: Epoch, seconds: float) -> None:
            tell("epoch", number=trial.number, record=record.model_dump(), seconds=seconds)
            self._interrupts.check()
            if os.getppid() != self._parent:
                raise Interrupted(signal.SIGTERM)

        return report, show

    def _end(
        self, running: Running, state: TrialState, value: float | None = None, reason: str = ""
    ) -> None:
        """Tell the study, then the one who listens."""
        trial = running.drawn.trial
        if reason:
            trial.set_user_attr(REASON, reason)
        # It is ended already where this process was taken for dead.
        self._study.tell(trial, value, state=state, skip_if_finished=True)
        running.ended = True
        tell(
            "ended", number=trial.number, state=state.name, reason=reason,
            value=running.value if value is None else value,
            seconds=time.perf_counter() - running.began,
        )  # fmt: skip

    def _fail(self, group: list[Running], error: Exception) -> None:
        for running in group:
            running.value = None
            self._end(running, TrialState.FAIL, reason=reason_of(error))
        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
        elif self.plan.device == "cuda" and not isinstance(error, ParitylineError):
            sys.exit(BROKEN)

    def _is_duplicate(self, drawn: Drawn) -> bool:
        if drawn.duplicate_of is None:
            return False
        drawn.trial.set_user_attr(REASON, f"the same recipe as trial {drawn.duplicate_of}")
        self._study.tell(drawn.trial, state=TrialState.FAIL)
        self._heartbeats.end(drawn.trial._trial_id)
        tell("duplicate", number=drawn.trial.number, of=drawn.duplicate_of)
        return True

    def measure(self, recipe: Recipe, seed: int, file: Path, *, keep_weights: bool) -> None:
        """Train the recipe with the seed on all its training rows; write what it answers."""
        reason = ""
        try:
            recipe = with_seed(with_backbone_defaults(recipe), seed)
            split = self._ground.whole(recipe)
            training = Training(recipe, split, self.plan.device)
            with compiled():
                fitted = training.run(self._interrupts)
            model = training.model.eval()
            result = RunResult(
                value=training.value,
                validation_logits=logits_of(model, split.validation),
                test_logits=logits_of(model, self._ground.test(recipe)),
                history=fitted.history,
                kept_epoch=fitted.kept_epoch,
                weights=model.network.state_dict() if keep_weights else None,
            )
            write_result(file, result)
        except Exception as error:  # noqa: BLE001
            reason = reason_of(error)
        tell("measured", file=str(file), reason=reason)


def _alike(running: list[Running]) -> list[list[Running]]:
    """Those that can be trained together, together."""
    groups: dict[object, list[Running]] = {}
    for each in running:
        key = None if each.drawn.recipe is None else stack_key(each.drawn.recipe)
        groups.setdefault(each.number if key is None else key, []).append(each)
    return list(groups.values())


def reason_of(error: BaseException) -> str:
    """Why a trial failed, in one line."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    if not isinstance(error, ParitylineError):
        line = f"{type(error).__name__}: {line}" if lines else line
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate" in line:
        line = f"out of memory: {line}"
    return line[:_REASON_LENGTH]


def tell(event: str, **content: Any) -> None:
    """One line for the process that started this one."""
    try:
        print(json.dumps({"event": event, **content}), flush=True)
    except BrokenPipeError:
        # There is no one to work for.
        raise Interrupted(signal.SIGTERM) from None


def told(interrupts: Interrupts) -> Iterator[dict[str, Any]]:
    """The commands on stdin, until it ends. A signal ends the waiting for one."""
    received = b""
    while True:
        *lines, received = received.split(b"\n")
        for line in lines:
            yield json.loads(line)
        while not select.select([0], [], [], _LOOK_S)[0]:
            interrupts.check()
        found = os.read(0, 2**16)
        if not found:
            return
        received += found


def main() -> None:
    """Work until stdin ends, or a signal comes."""
    # Libraries print to stdout now and then; what is told goes by itself.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        # A signal waits for the end of a step, or of what is being written.
        with quiet_optuna(), catch_interrupts() as interrupts, interrupts.deferred():
            commands = told(interrupts)
            first = next(commands)
            plan = Plan.model_validate(first["plan"])
            storage = open_storage(plan.storage, plan.folder)
            with Heartbeats(storage) as heartbeats:
                worker = Worker(plan, interrupts, storage, heartbeats)
                worker.work(commands)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_status)
    except ParitylineError as error:
        tell("broken", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
