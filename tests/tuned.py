"""Studies of tiny networks for the tests: their recipes, and workers within this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import optuna
from rich.console import Console

from training.data import load_dataset
from training.interrupts import Interrupts
from training.recipe import Recipe, load_recipe
from training.tracking import tracking
from training.tuning import worker as worker_module
from training.tuning.display import SearchDisplay
from training.tuning.plan import Plan
from training.tuning.search import Search
from training.tuning.storage import Heartbeats, open_storage, quiet_optuna
from training.tuning.study import open_study
from training.tuning.worker import Worker
from training.tuning.workers import Workers

QUICK = [
    "data.limit=200", "model.hidden=[8]", "model.dropout=0", "train.epochs=3", "train.lr=0.01",
    "tune.objective=accuracy", "tune.folds=1",
]  # fmt: skip
RATES = '{"train.lr"={low=1e-3,high=1e-1,log=true}}'


def quick_recipe(space: str = RATES, *overrides: str, base: str = "digits") -> Recipe:
    """A recipe of a second or less, whose study changes this."""
    return load_recipe(base, [*QUICK, f"tune.space={space}", *overrides])


def plan_of(recipe: Recipe, folder: Path, **settings: Any) -> Plan:
    """Of the study "s" in the folder; without a pruner where none is given."""
    settings = {"pruner": "none", "sampler": "random", **settings}
    return Plan(recipe=recipe, study="s", folder=folder, device="cpu", **settings)


def begun(plan: Plan, *, resume: bool = False) -> optuna.Study:
    """The plan's study."""
    storage = open_storage(plan.storage, plan.folder)
    return open_study(plan, storage, load_dataset(plan.recipe.data).info(), resume=resume)


class Here(Workers):
    """Workers that are no processes: what one is told to do is done before it is heard of.

    told: the commands, as (worker, command).
    """

    told: list[tuple[int, dict[str, Any]]]

    def __init__(self, plan: Plan, count: int, _devices: int = 0) -> None:
        self._plan, self._count = plan, count
        self._said: deque[tuple[int, dict[str, Any]]] = deque()
        self._busy: set[int] = set()
        self._stack = ExitStack()
        self.told = []

    def __enter__(self) -> Here:
        self._stack.enter_context(quiet_optuna())
        self.workers = []
        for index in range(self._count):
            storage = open_storage(self._plan.storage, self._plan.folder)
            heartbeats = self._stack.enter_context(Heartbeats(storage))
            self.workers.append(Worker(self._plan, Interrupts(), storage, heartbeats))
            self._do(index, ())
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stack.close()

    def idle(self) -> list[int]:
        return [index for index in range(self._count) if index not in self._busy]

    def send(self, index: int, command: dict[str, Any]) -> None:
        assert index not in self._busy
        self.told.append((index, command))
        self._do(index, (command,))

    def events(self, wait_s: float) -> Iterator[tuple[int, dict[str, Any]]]:
        while self._said:
            index, event = self._said.popleft()
            if event["event"] in ("ready", "done"):
                self._busy.discard(index)
            yield index, event

    def _do(self, index: int, commands: Sequence[dict[str, Any]]) -> None:
        self._busy.add(index)

        def tell(event: str, **content: Any) -> None:
            # A worker is ready once.
            if not (commands and event == "ready"):
                self._said.append((index, {"event": event, **content}))

        with patch.object(worker_module, "tell", tell):
            self.workers[index].work(iter(commands))


def search(
    plan: Plan, trials: int, *, workers: int = 1, console: Console | None = None,
    resume: bool = False, before: Sequence[dict[str, Any]] = (),
) -> tuple[optuna.Study, str]:  # fmt: skip
    """Search within this process; the study, and which limit was reached.

    before: parameters of trials to begin with, after the recipe as it is.
    """
    console = console or Console(quiet=True)
    with quiet_optuna(), Here(plan, 0):
        study = begun(plan, resume=resume)
    with Here(plan, workers) as here, SearchDisplay(console, trials, None) as display:
        for params in before:
            study.enqueue_trial(params)
        why = Search(plan, study, here, trials, None, display, tracking(False, console)).run()
    return study, why
