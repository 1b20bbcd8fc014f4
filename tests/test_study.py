"""The search of a study: how many trials, which ones, when it ends, and what it refuses."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from tests.tuned import RATES, Here, begun, plan_of, quick_recipe, search
from training.data import load_dataset
from training.tracking import tracking
from training.tuning import search as search_module
from training.tuning import study as study_module
from training.tuning.display import SearchDisplay
from training.tuning.plan import Plan
from training.tuning.search import Search
from training.tuning.space import default_params, recipe_of
from training.tuning.storage import StudyError, open_storage, quiet_optuna, requeue
from training.tuning.study import DEFAULT, REASON, counted, counts, draw, open_study

# 8 combinations: half diverge, and of two of each half the recipe takes one only.
FAILING = (
    '{"train.lr"=[0.01,1e30],"train.schedule"=["cosine","plateau"],"train.patience"=[20,3]}'
)  # fmt: skip
WITHOUT_NORM = ("model.batch_norm=false", "train.optimizer=sgd")
GRID = '{"train.lr"=[0.01,0.02,0.05],"model.hidden"=[[8],[4,4]]}'


def ended(study: optuna.Study) -> list[FrozenTrial]:
    return counted(study.get_trials(deepcopy=False))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many duplicates are enough."""
    monkeypatch.setattr(search_module, "EXHAUSTED_AFTER", 50)


@pytest.fixture(scope="module")
def exhausted(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, str, str]:
    """A study of all of FAILING by two workers, how it ended, and what was said."""
    console, folder = Console(file=io.StringIO(), width=300), tmp_path_factory.mktemp("study")
    plan = plan_of(quick_recipe(FAILING, *WITHOUT_NORM), folder, together=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "EXHAUSTED_AFTER", 50)
        study, why = search(plan, 100, workers=2, console=console)
    return study, why, console.file.getvalue()


def test_a_small_space_is_tried_once_each_and_then_the_search_ends(
    exhausted: tuple[optuna.Study, str, str],
) -> None:
    study, why, _ = exhausted
    assert why == "everything in the space has been tried"
    trials = ended(study)
    assert len(trials) == len({str(trial.params) for trial in trials}) == 8
    assert trials[0].number == 0 and trials[0].user_attrs[DEFAULT]
    assert trials[0].params == {
        "train.lr": 0.01, "train.schedule": "cosine", "train.patience": 20,
    }  # fmt: skip


def test_a_trial_that_fails_keeps_its_reason_and_the_study_goes_on(
    exhausted: tuple[optuna.Study, str, str],
) -> None:
    for trial in ended(exhausted[0]):
        reason = trial.user_attrs.get(REASON, "")
        if trial.params["train.schedule"] == "plateau" and trial.params["train.patience"] == 3:
            assert trial.state == TrialState.FAIL and "expected patience above" in reason
        elif trial.params["train.lr"] == 1e30:
            assert trial.state == TrialState.FAIL and "diverged: the loss became" in reason
        else:
            assert trial.state == TrialState.COMPLETE and not reason
    found = counts(exhausted[0])
    assert (found.complete, found.failed, found.ended) == (3, 5, 8)


def test_off_a_terminal_each_trial_is_a_line_with_how_far_the_study_is(
    exhausted: tuple[optuna.Study, str, str],
) -> None:
    study, _, said = exhausted
    lines = said.splitlines()
    assert len(lines) == 8
    form = re.compile(
        r"trial +(\d+)  (0\.\d{4}|failed: .+?)  \d+\.\d s  train\.lr=.*"
        r"  \[best (0\.\d{4}) \(trial (\d+)\), (\d+) done, 0 pruned, (\d+) failed, "
        r"about (\d+ min )?\d+ s left\]"
    )
    found = [form.fullmatch(line) for line in lines]
    assert all(found), lines
    assert [match[1] for match in found] == [str(trial.number) for trial in ended(study)]
    assert [match[0].count("failed: ") for match in found] == [
        trial.state == TrialState.FAIL for trial in ended(study)
    ]
    # The other worker's trial may have ended too.
    numbers = [int(match[5]) + int(match[6]) for match in found]
    assert numbers == sorted(numbers) and numbers[0] in (1, 2) and numbers[-1] == 8
    best = max(trial.value for trial in ended(study) if trial.value is not None)
    assert found[-1][3] == f"{best:.4f}"


@pytest.mark.parametrize("together", [1, 3, None])
def test_there_are_just_as_many_trials_as_are_wanted(together: int | None, tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(RATES, "train.epochs=1"), tmp_path, together=together)
    study, why = search(plan, 11, workers=2)
    assert why == "11 trials"
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 11
    with Here(plan, 2) as here:
        console = Console(quiet=True)
        display = SearchDisplay(console, 11, None)
        Search(plan, study, here, 11, None, display, tracking(False, console)).run()
        assert here.told == []


def test_a_grid_is_gone_through_once_and_then_ends(tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(GRID, "train.epochs=1"), tmp_path, sampler="grid")
    study, why = search(plan, 100, workers=2)
    assert why == "the whole grid has been tried"
    tried = Counter(str(sorted(trial.params.items())) for trial in ended(study))
    assert len(tried) == 6 and set(tried.values()) == {1}
    number = len(study.get_trials())
    study, why = search(plan, 100, resume=True)
    assert why == "the whole grid has been tried" and len(study.get_trials()) == number


class Silent(Here):
    """Workers that do nothing yet."""

    def _do(self, index: int, commands: object) -> None:
        if commands:
            self._busy.add(index)


def test_what_one_worker_cannot_train_together_goes_to_the_other(tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(), tmp_path, together=4)
    study, console = begun(plan), Console(quiet=True)
    with Silent(plan, 2) as workers:
        display = SearchDisplay(console, 4, None)
        search = Search(plan, study, workers, 4, None, display, tracking(False, console))
        search._give(counts(study))
        assert [(index, command["most"]) for index, command in workers.told] == [(0, 4)]
        assert search._take(0, {"event": "drawn", "count": 1})
        search._give(counts(study))
        assert [(index, command["most"]) for index, command in workers.told[1:]] == [(1, 3)]


def test_a_group_grows_no_larger_than_what_other_machines_leave(tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(RATES, "train.epochs=1"), tmp_path, together=4)
    study, _ = search(plan, 2)
    command = {"do": "trials", "most": 4, "in_all": 4}
    with Here(plan, 1) as here:
        list(here.events(0))
        # Another machine has just begun one.
        study.ask()
        here.send(0, command)
        assert [event["event"] for _, event in here.events(0)].count("ended") == 1
        here.send(0, command)
        assert [event["event"] for _, event in here.events(0)] == ["drawn", "done"]
    assert counts(study).ended == 3


def drawn(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(trial.number, trial.params, trial.value) for trial in study.get_trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_draws_the_same_trials_and_a_resumed_study_goes_on_with_them(
    sampler: str, tmp_path: Path
) -> None:
    recipe = quick_recipe(RATES, "train.epochs=1", "tune.objective=log_loss")

    def plan(name: str) -> Plan:
        return plan_of(recipe, tmp_path / name, sampler=sampler, together=1)

    whole, _ = search(plan("whole"), 14)
    again, _ = search(plan("again"), 14)
    search(plan("parts"), 12)
    parts, _ = search(plan("parts"), 14, resume=True)
    assert drawn(whole) == drawn(again) == drawn(parts)
    assert len({trial.params["train.lr"] for trial in whole.get_trials()}) == 14


def test_another_number_of_workers_or_amount_of_memory_is_not_another_recipe(
    few: None, tmp_path: Path
) -> None:
    space = '{"train.lr"=[0.01,0.02]}'
    search(plan_of(quick_recipe(space), tmp_path), 9)
    study, why = search(
        plan_of(quick_recipe(space, "data.workers=3", "data.memory_mb=77"), tmp_path), 9,
        resume=True,
    )  # fmt: skip
    assert why == "everything in the space has been tried" and counts(study).ended == 2


def test_two_workers_that_draw_the_same_at_once_run_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(quick_recipe('{"train.lr"=[0.01,0.02]}'), tmp_path)

    def slowly(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        time.sleep(0.1)
        return counted(trials)

    found: list[study_module.Drawn] = []
    with quiet_optuna():
        study = begun(plan)
        for _ in range(2):
            study.enqueue_trial({"train.lr": 0.02})
        assert draw(plan, study).is_default
        monkeypatch.setattr(study_module, "counted", slowly)

        def draw_one() -> None:
            storage = open_storage(None, tmp_path)
            own = optuna.load_study(study_name="s", storage=storage)
            found.append(draw(plan, own))

        threads = [threading.Thread(target=draw_one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(each.trial.number for each in found) == [1, 2]
    assert [each.duplicate_of for each in found].count(None) == 1


def test_what_draws_the_recipe_as_it_is_is_its_duplicate_even_before_it_has_begun(
    tmp_path: Path,
) -> None:
    plan = plan_of(quick_recipe('{"train.lr"=[0.01,0.02]}'), tmp_path)
    with quiet_optuna():
        study = begun(plan)
        # Trial 0 is taken by another worker, which has said nothing of it yet.
        assert study.ask().number == 0
        study.enqueue_trial({"train.lr": 0.01})
        assert draw(plan, study).duplicate_of == 0
        # Of one that is tried again the copy counts, which waits.
        requeue(study, 0, "interrupted")
        copy = draw(plan, study)
    assert copy.is_default and copy.duplicate_of is None and copy.recipe == plan.recipe


def test_a_search_waits_for_what_is_tried_again_before_it_says_that_all_was_tried(
    few: None, tmp_path: Path
) -> None:
    plan = plan_of(quick_recipe('{"train.lr"=[0.01,0.02]}'), tmp_path)
    study, _ = search(plan, 9)
    console = Console(quiet=True)
    with quiet_optuna(), Here(plan, 1) as workers:
        display = SearchDisplay(console, 9, None)
        again = Search(plan, study, workers, 9, None, display, tracking(False, console))
        assert [event["event"] for _, event in workers.events(0)] == ["ready"]
        again._duplicates = 50
        study.enqueue_trial({"train.lr": 0.02})
        assert again._over(counts(study), 0.0) == ""
        study.ask()
        assert again._over(counts(study), 0.0) == ""
        requeue(study, study.get_trials()[-1].number, "interrupted")
        again._give(counts(study))
        assert len(workers.told) == 1


def opened(plan: Plan, fingerprint: str | None = None, *, resume: bool) -> optuna.Study:
    info = load_dataset(plan.recipe.data).info()
    if fingerprint is not None:
        info = info.model_copy(update={"fingerprint": fingerprint})
    storage = open_storage(plan.storage, plan.folder)
    return open_study(plan, storage, info, resume=resume)


def test_a_study_that_is_there_is_gone_on_with_only_when_that_is_asked_for(tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(RATES, "train.epochs=1"), tmp_path)
    search(plan, 2)
    with pytest.raises(StudyError, match=r"'s' is there already, with 2 trials ended: --resume"):
        opened(plan, resume=False)
    assert len(opened(plan, resume=True).get_trials()) == 2


@pytest.mark.parametrize(
    ("changes", "fingerprint", "named"),
    [
        (['tune.space={"train.lr"={low=0.5,high=0.6}}'], None,
         r"tune\.space\.train\.lr\.high: 0\.1 then, 0\.6 now"),
        (["train.epochs=2"], None, r"train\.epochs: 3 then, 2 now"),
        (["tune.objective=log_loss"], None, "tune.objective: 'accuracy' then, 'log_loss' now"),
        ([], "abc", "the data's fingerprint: '[0-9a-f]{64}' then, 'abc' now"),
    ],
)  # fmt: skip
def test_another_space_recipe_or_data_is_no_resume(
    changes: list[str], fingerprint: str | None, named: str, tmp_path: Path
) -> None:
    opened(plan_of(quick_recipe(), tmp_path), resume=False)
    other = plan_of(quick_recipe(RATES, *changes), tmp_path)
    with pytest.raises(StudyError, match=named):
        opened(other, fingerprint, resume=True)
    # What is no part of what is searched may change.
    allowed = quick_recipe(RATES, "data.workers=2", "export.calibrate=false")
    assert len(opened(plan_of(allowed, tmp_path), resume=True).get_trials()) == 1


def test_a_study_of_another_programs_is_refused(tmp_path: Path) -> None:
    plan = plan_of(quick_recipe(), tmp_path)
    with quiet_optuna():
        foreign = optuna.create_study(study_name="s", storage=open_storage(None, tmp_path))
        foreign.ask()
        with pytest.raises(StudyError, match="is not Parityline's"):
            opened(plan, resume=True)


def test_trial_0_has_the_parameters_that_the_space_has_and_is_of_the_recipe_itself(
    tmp_path: Path,
) -> None:
    # The recipe's rate lies in the space, its weight decay, 0.02, does not.
    space = '{"train.lr"={low=1e-3,high=1e-1},"train.weight_decay"={low=0.1,high=0.2}}'
    plan = plan_of(quick_recipe(space), tmp_path)
    with quiet_optuna():
        first = draw(plan, begun(plan))
    assert first.is_default and first.recipe == plan.recipe
    assert first.params == {"train.lr": 0.01} == default_params(plan.recipe)
    assert recipe_of(plan.recipe, first.params).train == plan.recipe.train
