"""`parityline tune` in processes: how many trials, killed workers, signals, two machines."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from tests.conftest import ROOT
from tests.postgres import postgres_server
from tests.tuned import QUICK, begun, plan_of, quick_recipe
from training.tracking import tracking
from training.tuning.display import SearchDisplay
from training.tuning.search import Search
from training.tuning.storage import COPY_OF, open_storage, quiet_optuna
from training.tuning.study import DUPLICATE_OF, REASON, RECIPE_ID, counted, counts
from training.tuning.workers import Workers

SPACE = 'tune.space={"train.lr"={low=1e-3,high=1e-1,log=true}}'
# Half a second, in many epochs; one by one, as muon is not trained together.
TRIAL = ["train.epochs=60", "train.patience=0", "train.optimizer=muon", "train.warmup=0"]
# So long that no machine is through before the signal comes.
LONG = [*TRIAL, "train.epochs=300"]


@dataclass
class Front:
    """Where commands are started, without importing everything for each."""

    process: subprocess.Popen[str]
    folder: Path

    def ask(self, **order: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answered, _, _ = select.select([self.process.stdout], [], [], 120)
        answer = self.process.stdout.readline() if answered else ""
        assert answer, (self.folder / "errors").read_text()
        return int(answer)

    def start(self, store: Path, trials: int, *options: str, changes: list[str] = TRIAL) -> int:
        """`parityline tune digits` with two workers; its process id."""
        sets = [part for change in (*QUICK, SPACE, *changes) for part in ("--set", change)]
        arguments = ["digits", f"--trials={trials}", "--workers=2", "--repeats=0", *sets]
        return self.ask(
            arguments=[*arguments, "--pruner=none", *options], folder=str(store),
            log=str(log_of(store)),
        )  # fmt: skip

    def wait(self, process: int) -> int:
        return self.ask(wait=process)


def log_of(store: Path) -> Path:
    return store.with_name(f"{store.name}.log")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], cwd=ROOT, text=True, stderr=errors,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
    with process:
        yield Front(process, folder)
        # What a failed test has left behind.
        for child in workers_of(process.pid):
            kill(child, *workers_of(child))
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


def workers_of(process: int) -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def is_gone(process: int) -> bool:
    """Ended, though perhaps nobody has asked for its status."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def kill(*processes: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], store: Path) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, log_of(store).read_text()
        time.sleep(0.02)
    return found


def study_of(store: Path, url: str | None = None) -> optuna.Study:
    with quiet_optuna():
        storage = open_storage(url, store / ".tuning" / "digits")
        return optuna.load_study(study_name="digits", storage=storage)


def at_work(store: Path) -> list[FrozenTrial]:
    """Trials in their midst, once there is a study."""
    if not (store / ".tuning" / "digits" / "journal.log").exists():
        return []
    with contextlib.suppress(KeyError):
        trials = study_of(store).get_trials(deepcopy=False)
        return [t for t in trials if t.state == TrialState.RUNNING and t.intermediate_values]
    return []


def ended(study: optuna.Study) -> dict[int, tuple[object, ...]]:
    """What is to stay as it is of each trial that ended and is not tried again."""
    return {
        trial.number: (trial.state, trial.value, trial.params, trial.user_attrs.get(RECIPE_ID))
        for trial in counted(study.get_trials())
        if trial.state.is_finished()
    }


def ids(study: optuna.Study) -> Counter[object]:
    return Counter(recipe for *_, recipe in ended(study).values())


def test_two_workers_run_just_the_trials_that_are_wanted(front: Front, tmp_path: Path) -> None:
    store = tmp_path / "store"
    # Trained together where that pays: several to a worker.
    assert front.wait(front.start(store, 9, changes=["train.epochs=2"])) == 0
    study, said = study_of(store), log_of(store).read_text()
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 9
    assert set(ids(study).values()) == {1} and len(ids(study)) == 9
    assert "study: 9 trials: 9 completed, 0 pruned, 0 failed" in said
    lines = [line for line in said.splitlines() if line.startswith("trial ")]
    assert sorted(int(line.split()[1]) for line in lines) == list(range(9))
    # More of them, and nothing that was there is done again.
    before = ended(study)
    assert front.wait(front.start(store, 11, "--resume", changes=["train.epochs=2"])) == 0
    after = ended(study_of(store))
    assert len(after) == 11 and {number: after[number] for number in before} == before
    assert ", going on with 9 trials ended" in log_of(store).read_text()


def test_a_killed_workers_trial_is_tried_again(front: Front, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = front.start(store, 5, changes=LONG)
    wait_for(lambda: at_work(store), store)
    victim = workers_of(process)[0]
    kill(victim)
    assert front.wait(process) == 0
    study, said = study_of(store), log_of(store).read_text()
    assert "its worker ended with signal SIGKILL" in said
    trials = study.get_trials()
    copies = [trial for trial in trials if COPY_OF in trial.system_attrs]
    assert len(copies) == 1
    original = trials[copies[0].system_attrs[COPY_OF]]
    assert original.state == TrialState.FAIL and "its worker died" in original.user_attrs[REASON]
    assert copies[0].params == original.params and copies[0].state == TrialState.COMPLETE
    assert counts(study).complete == 5 and counts(study).ended == 5 == len(ids(study))


def test_all_killed_at_random_moments_no_ended_trial_is_lost_or_done_again(
    front: Front, tmp_path: Path
) -> None:
    generator, store = random.Random(0), tmp_path / "store"
    before: dict[int, tuple[object, ...]] = {}
    for turn in range(5):
        # More than are done in this time.
        process = front.start(store, 200, *(["--resume"] if turn else []))
        if turn == 0:
            wait_for(lambda: at_work(store), store)
        time.sleep(generator.uniform(0.1, 1.2))
        workers = workers_of(process)
        # The supervisor alone, or all at once.
        kill(process, *(workers if turn % 2 else []))
        assert front.wait(process) == -signal.SIGKILL
        wait_for(lambda left=workers: all(map(is_gone, left)), store)
        now = ended(study_of(store))
        assert {number: now[number] for number in before} == before
        before = now
    assert before
    wanted = len(before) + 4
    assert front.wait(front.start(store, wanted, "--resume")) == 0, log_of(store).read_text()
    study = study_of(store)
    now = ended(study)
    assert {number: now[number] for number in before} == before
    assert counts(study).ended == len(now) == wanted
    assert counts(study).running == counts(study).waiting == 0
    assert set(ids(study).values()) == {1}


def test_a_signal_puts_the_running_trials_back_and_resume_goes_on(
    front: Front, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for turn, (number, status) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143))):
        process = front.start(store, 6, *(["--resume"] if turn else []), changes=LONG)
        wait_for(lambda: at_work(store), store)
        workers = workers_of(process)
        assert len(workers) == 2
        began = time.monotonic()
        os.kill(process, number)
        assert front.wait(process) == status
        assert time.monotonic() - began < 10
        assert all(map(is_gone, workers))
        study = study_of(store)
        assert counts(study).running == 0 and counts(study).waiting >= 1
        put_back = [t for t in study.get_trials() if t.state == TrialState.WAITING]
        for trial in put_back:
            original = study.get_trials()[trial.system_attrs[COPY_OF]]
            assert original.user_attrs[REASON].startswith("interrupted by SIG")
            assert original.params == trial.params
        last = log_of(store).read_text().splitlines()[-1]
        assert last.startswith(f"interrupted by {number.name}; no ended trial is lost")
    assert front.wait(front.start(store, 6, "--resume", changes=LONG)) == 0
    found = counts(study_of(store))
    assert (found.complete, found.ended, found.running, found.waiting) == (6, 6, 0, 0)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def test_two_machines_share_a_study_in_postgresql(
    front: Front, postgres: str, tmp_path: Path
) -> None:
    stores = [tmp_path / "one", tmp_path / "two"]
    options = [f"--storage={postgres}"]
    processes = [
        front.start(store, 10, *options, "--resume", changes=["train.epochs=4"]) for store in stores
    ]
    for process in processes:
        assert front.wait(process) == 0, "".join(log_of(store).read_text() for store in stores)
    study = study_of(stores[0], postgres)
    # One for each further machine may begin while the others reach the number.
    assert counts(study).ended in (10, 11) and counts(study).failed == 0
    assert set(ids(study).values()) == {1}
    trials = study.get_trials()
    assert trials[0].user_attrs["default"] and "default" not in trials[-1].user_attrs
    said = [log_of(store).read_text() for store in stores]
    numbers = [
        {int(line.split()[1]) for line in text.splitlines() if line.startswith("trial ")}
        for text in said
    ]
    assert numbers[0].isdisjoint(numbers[1])
    ran = {trial.number for trial in trials if DUPLICATE_OF not in trial.user_attrs}
    assert numbers[0] | numbers[1] == ran
    password = postgres.partition("@")[0].rpartition(":")[2]
    assert not any(password in text for text in said)


def test_a_worker_is_a_process_of_its_own_and_ends_with_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is not forked."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plan = plan_of(quick_recipe(), tmp_path)
    console, display = Console(quiet=True), SearchDisplay(Console(quiet=True), 2, None)
    with quiet_optuna():
        study = begun(plan)
    with quiet_optuna(), Workers(plan, 1, 0) as workers:
        process = workers._workers[0].process
        why = Search(plan, study, workers, 2, None, display, tracking(False, console)).run()
        assert process.poll() is None and process.pid in workers_of(os.getpid())
    assert why == "2 trials" and counts(study).complete == 2
    assert process.returncode == 0
    assert (tmp_path / "worker-0.log").read_text() == ""
