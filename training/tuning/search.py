"""The search: workers are given trials until there are enough, and what they say is passed on."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import optuna

from artifacts.manifest import Epoch
from training.tracking import Child, Tracker
from training.tuning.display import SearchDisplay, params_text
from training.tuning.plan import Plan
from training.tuning.stacked import MOST_TOGETHER
from training.tuning.storage import retry_stale
from training.tuning.study import (
    EXHAUSTED_AFTER,
    Counts,
    counts,
    make_sampler,
    ranking,
)
from training.tuning.workers import Workers

# How often it looks for trials of other machines, and for those whose worker is gone.
_LOOK_S = 1.0
_STALE_LOOK_S = 10.0
_MLFLOW_STATES = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}


@dataclass
class Search:
    """One machine's part in a study. trials: how many the study is to have in all."""

    plan: Plan
    study: optuna.Study
    workers: Workers
    trials: int
    deadline: float | None
    display: SearchDisplay
    tracker: Tracker
    _given: dict[int, int] = field(default_factory=dict)  # worker -> how many trials
    _running: dict[int, set[int]] = field(default_factory=dict)  # worker -> its trials
    _records: dict[int, Child] = field(default_factory=dict)  # trial -> its run in MLflow
    _duplicates: int = 0

    def run(self) -> str:
        """Search until one of the limits is reached; which one, in words."""
        self._retry_stale()
        next_look = next_stale_look = 0.0
        while True:
            now = time.monotonic()
            if now >= next_stale_look:
                self._retry_stale()
                next_stale_look = now + _STALE_LOOK_S
            if now >= next_look:
                found = self._show()
                if why := self._over(found, now):
                    return why
                self._give(found)
                next_look = now + _LOOK_S
            for index, event in self.workers.events(max(0.0, next_look - time.monotonic())):
                if self._take(index, event):
                    next_look = 0.0

    def _over(self, found: Counts, now: float) -> str:
        if found.ended >= self.trials and not self._given:
            return f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        if self.deadline is not None and now >= self.deadline:
            return "the time is over"
        if self._given:
            return ""
        if self._exhausted(found) and not found.running:
            return "everything in the space has been tried"
        if self.plan.sampler == "grid" and not found.running and not found.waiting:
            sampler = make_sampler(self.plan, 0)
            assert isinstance(sampler, optuna.samplers.GridSampler)
            if sampler.is_exhausted(self.study):
                return "the whole grid has been tried"
        return ""

    def _exhausted(self, found: Counts) -> bool:
        """Whether nothing new is drawn any more, and nothing waits that is to be tried again."""
        return self._duplicates >= EXHAUSTED_AFTER and not found.waiting

    def _give(self, found: Counts) -> None:
        """Trials for each idle worker, as many as are wanted still."""
        if self._exhausted(found):
            return
        elsewhere = max(0, found.running - sum(map(len, self._running.values())))
        wanted = self.trials - found.ended - elsewhere - sum(self._given.values())
        for index in self.workers.idle():
            most = min(wanted, self.plan.together or MOST_TOGETHER[self.plan.device])
            if most < 1:
                return
            self.workers.send(index, {"do": "trials", "most": most, "in_all": self.trials})
            self._given[index] = most
            wanted -= most

    def _take(self, index: int, event: dict[str, Any]) -> bool:
        """What a worker said; whether it may be time for more trials."""
        match event["event"]:
            case "duplicate":
                self._duplicates += 1
            case "drawn":
                self._given[index] = event["count"]
                return True
            case "began":
                self._duplicates = 0
                self._running.setdefault(index, set()).add(event["number"])
                self._begin(event)
            case "epoch":
                if child := self._records.get(event["number"]):
                    child.epoch(Epoch.model_validate(event["record"]), event["seconds"])
            case "ended":
                self._given[index] -= 1
                self._running[index].discard(event["number"])
                self._end(event)
                return True
            case "died":
                self._die(index, event["status"])
                return True
            case "ready" | "done":
                self._given.pop(index, None)
                return True
        return False

    def _begin(self, event: dict[str, Any]) -> None:
        number = event["number"]
        name = f"trial {number}" + (" (the recipe as it is)" if event["default"] else "")
        self._records[number] = self.tracker.child(
            name, uuid.uuid4().hex, event["params"], {"trial": str(number)}
        )

    def _end(self, event: dict[str, Any]) -> None:
        number, state, value = event["number"], event["state"], event["value"]
        if child := self._records.pop(number, None):
            if value is not None:
                child.metrics({"objective": value})
            child.finish(_MLFLOW_STATES[state], {"state": state, "error": event["reason"] or None})
        found = self._show()
        if best := self._best():
            self.tracker.metrics({"best": best[1]}, found.ended)
        words = {
            "COMPLETE": f"{value:.4f}" if value is not None else "",
            "PRUNED": f"{value:.4f} pruned" if value is not None else "pruned",
            "FAIL": f"failed: {event['reason']}",
        }[state]
        params = params_text(self.study.get_trials(deepcopy=False)[number].params)
        self.display.trial(number, f"{words}  {event['seconds']:.1f} s  {params}")

    def _die(self, index: int, status: str) -> None:
        self._given.pop(index, None)
        for number in sorted(self._running.pop(index, ())):
            if child := self._records.pop(number, None):
                error = f"its worker ended with {status}"
                child.finish("KILLED", {"state": "KILLED", "error": error})
            self.display.say(f"trial {number:>4}  its worker ended with {status}")

    def _retry_stale(self) -> None:
        for number in retry_stale(self.study):
            self.display.say(f"trial {number:>4}  its worker is gone: it is tried again")

    def _show(self) -> Counts:
        found = counts(self.study)
        self.display.update(found, self._best())
        return found

    def _best(self) -> tuple[int, float] | None:
        best = ranking(self.study)[:1]
        return (best[0].number, float(best[0].value or 0)) if best else None
