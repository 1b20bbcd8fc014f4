"""A study's record in MLflow: one run with one nested in it for each trial."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.conftest import ROOT
from tests.tracked import POINT, rows, tell_of_a_trial
from training import tracking
from training.mlflow_writer import Writer
from training.tracking import Tracker


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, where MLflow's default store is; no variable of MLflow's is set."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # A busy machine may take longer than a study would wait.
    monkeypatch.setattr(tracking, "WAIT_S", dict.fromkeys(tracking.WAIT_S, 120.0))


@pytest.fixture
def tracker() -> Tracker:
    return tracking.tracking(True, Console(quiet=True))


# A study that is killed while its second trial runs.
KILLED_STUDY = """
import os, signal
from rich.console import Console
from tests.tracked import POINT
from training.tracking import Tracker
tracker = Tracker(True, Console(quiet=True))
tracker.start("digits", {"train": {"lr": 0.25}}, {}, "5d", command="tune")
first = tracker.child("trial 0", "a", {"train.lr": 0.25}, {"number": "0"})
first.epoch(POINT, 0.5)
first.finish("FINISHED", {})
second = tracker.child("trial 1", "b", {"train.lr": 0.5}, {"number": "1"})
for epoch in (1, 2):
    second.epoch(POINT.model_copy(update={"epoch": epoch}), 0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
READ = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
def told(run):
    names = run.data.metrics
    curves = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {
        "name": run.info.run_name, "status": run.info.status, "params": run.data.params,
        "id": run.info.run_id, "tags": run.data.tags,
        "curves": {name: [[p.step, p.value] for p in points] for name, points in curves.items()},
        "files": [file.path for file in client.list_artifacts(run.info.run_id, "page")],
    }
print(json.dumps({run.data.tags["parityline.run_id"]: told(run) for run in runs}))
"""


def states_in_the_end() -> dict[str, str]:
    """By the runs' names, once none is running."""
    deadline, found = time.monotonic() + 100, {}
    while not found or "RUNNING" in found.values():
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
        # The tables are not there yet.
        with suppress(sqlite3.OperationalError):
            found = dict(rows("select name, status from runs"))
    return found


def test_a_study_holds_its_trials_also_when_it_is_killed_and_goes_on(
    tracker: Tracker,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def output(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    output(KILLED_STUDY)
    assert states_in_the_end() == {"digits": "KILLED", "trial 0": "FINISHED", "trial 1": "KILLED"}

    Path("study.html").write_text("the page")
    with tracker:
        tracker.start("digits", {"train": {"lr": 0.25}}, {}, "5d", resumed=True, command="tune")
        assert tracker._pipe is not None
        writer = tracker._pipe.process
        tell_of_a_trial(tracker, "b")
        tracker.child("trial 2", "c", {}, {}).epoch(POINT)
    assert writer.wait(timeout=10) == 0
    runs = json.loads(output(READ))
    states = {"5d": "FINISHED", "a": "FINISHED", "b": "FAILED", "c": "KILLED"}
    assert {name: run["status"] for name, run in runs.items()} == states
    study, trial = runs["5d"], runs["b"]
    assert "mlflow.parentRunId" not in study["tags"]
    for name in ("a", "b", "c"):
        assert runs[name]["tags"]["mlflow.parentRunId"] == study["id"]
    assert study["params"] == {"train.lr": "0.25"} and study["files"] == ["page/study.html"]
    assert study["curves"] == {"best": [[1, 0.875]]}
    assert study["tags"]["parityline.sampler"] == "tpe"
    assert study["tags"]["mlflow.source.name"] == "parityline tune"
    assert trial["params"] == {"train.lr": "0.5", "model.hidden.0": "8"}
    expected = {"number": "1", "device": "cpu", "reason": "no rows"}
    assert {name: trial["tags"][f"parityline.{name}"] for name in expected} == expected
    assert trial["curves"]["validation/loss"] == [[1, 0.25], [2, 0.25], [3, 0.25]]
    assert trial["curves"]["value"] == [[0, 0.75]] and trial["curves"]["seconds"][2] == [3, 0.5]


class Client:
    """Instead of MLflow's: notes what it is told, and fails for the runs of these names."""

    tracking_uri = ""

    def __init__(self, failing: set[str], fail: Callable[[], None]) -> None:
        self.failing, self.fail = failing, fail
        self.told: list[tuple[str, ...]] = []

    def create_run(self, *_: object, run_name: str, **__: object) -> SimpleNamespace:
        self.note("run", run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def search_runs(self, *_: object) -> list[SimpleNamespace]:
        return []

    def set_terminated(self, run_id: str, state: str, _time_ms: int) -> None:
        self.note("end", run_id, state)

    def note(self, what: str, name: str, *state: str) -> None:
        self.told.append((what, name, *state))
        if name in self.failing:
            self.fail()
            raise ConnectionError(f"{name} is refused")


def writer_of_trials(client: Client, number: int) -> Writer:
    """One that has been told of a study of so many trials, the last of which still runs."""
    writer = Writer(client=client, experiment_id="0")
    for name in (None, *map(str, range(number))):
        start = {"name": name or "study", "run_id": name, "tags": {}, "params": {}}
        writer.take({"kind": "start", "run": name, "resumed": False, "time_ms": 0, **start})
    for name in range(number - 1):
        writer.take({"kind": "end", "run": str(name), "state": "FINISHED", "time_ms": 0})
    return writer


def test_a_trial_that_is_refused_holds_up_no_other() -> None:
    client = Client({"1"}, lambda: None)
    writer = writer_of_trials(client, 4)
    with pytest.raises(ConnectionError, match="1 is refused"):
        writer.send()
    assert client.told == [
        ("run", "study"), ("run", "0"), ("end", "0", "FINISHED"),
        ("run", "1"), ("run", "2"), ("end", "2", "FINISHED"), ("run", "3"),
    ]  # fmt: skip
    # What is complete is forgotten; it alone is tried again.
    assert list(writer.runs) == [None, "1", "3"]
    client.told.clear()
    with pytest.raises(ConnectionError):
        writer.send()
    assert client.told == [("run", "1")]


def test_a_dead_server_costs_a_round_a_bounded_time_however_many_trials_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def wait_in_vain() -> None:
        clock[0] += 10.0

    client = Client(set(map(str, range(100))), wait_in_vain)
    writer = writer_of_trials(client, 100)
    with pytest.raises(ConnectionError, match="0 is refused"):
        writer.send()
    assert clock[0] == 20.0
    assert len(writer.runs) == 101


def test_trials_begin_after_their_study_and_end_before_it() -> None:
    client = Client({"study"}, lambda: None)
    writer = writer_of_trials(client, 2)
    with pytest.raises(ConnectionError, match="study is refused"):
        writer.send()
    assert client.told == [("run", "study")]
    client.failing = set()
    client.told.clear()
    writer.take({"kind": "end", "state": "FINISHED", "time_ms": 0})
    writer.take({"kind": "tags", "run": "unknown", "tags": {"a": "b"}})
    writer.send()
    assert client.told == [
        ("run", "study"), ("run", "0"), ("end", "0", "FINISHED"),
        ("run", "1"), ("end", "1", "KILLED"), ("end", "study", "FINISHED"),
    ]  # fmt: skip


def test_a_fast_study_of_500_trials_is_kept_whole_while_the_writer_hangs(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAIT_S", {"FINISHED": 0.0})
    with tracker:
        tracker.start("n", {}, {})
        assert tracker._pipe is not None
        writer = tracker._pipe.process
        writer.send_signal(signal.SIGSTOP)
        for number in range(500):
            trial = tracker.child(f"trial {number}", f"{number:032x}", {"train.lr": 0.1}, {})
            for _ in range(50):
                trial.epoch(POINT, 0.123456789)
            trial.finish("FINISHED", {})
        assert tracker._pipe.lost == 0
    writer.kill()
    writer.wait(timeout=10)
