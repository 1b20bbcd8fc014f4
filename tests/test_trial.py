"""One trial: what it is measured by, on which rows, and how it ends, alone or among others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from artifacts.errors import DataError
from tests.tuned import Here, plan_of, quick_recipe, search
from training.data import Dataset, load_dataset
from training.evaluation import probabilities_of
from training.metrics import classification_metrics
from training.recipe import Recipe
from training.tuning import objective, worker
from training.tuning.objective import PROGRESS, Ground, Training, fold, trial_value, with_seed
from training.tuning.study import REASON, ranking

HOPELESS = 1e-9
# Each kind of end: some complete, one learns nothing and is pruned, one diverges.
ENDS = (
    '{"train.lr"=[0.03,0.1,1e-9,1e30],'
    '"train.weight_decay"={low=1e-5,high=1e-1,log=true}}'
)  # fmt: skip


class PrunesTheHopeless(optuna.pruners.BasePruner):
    """Whoever has the rate that learns nothing, at once."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.params["train.lr"] == HOPELESS


def value_of(recipe: Recipe, ground: Ground | None = None) -> float:
    ground = ground or Ground(recipe.tune.folds, "cpu")
    return trial_value(recipe, ground, lambda *_: None, lambda *_: None)


def reported(recipe: Recipe) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    ground = Ground(recipe.tune.folds, "cpu")
    trial_value(recipe, ground, lambda *point: found.append(point), lambda *_: None)
    return found


@pytest.mark.parametrize("figure", ["accuracy", "log_loss", "auc"])
def test_the_objective_is_the_figure_of_the_weights_that_are_kept(figure: str) -> None:
    # Such a rate that the best epoch is not the last one.
    changes = (
        "train.lr=0.3",
        "train.epochs=6",
        "train.schedule=constant",
        f"tune.objective={figure}",
    )
    recipe = quick_recipe("{}", *changes, base="breast-cancer")
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"keep": "best", "ema": 0.0})}
    )
    split = Ground(1, "cpu").whole(recipe)
    training = Training(recipe, split, "cpu")
    fitted = training.run()
    assert fitted.kept_epoch < 6 and len(training.values) == 6
    probabilities = probabilities_of(training.model.eval(), split.validation)
    metrics = classification_metrics(probabilities, split.dataset.validation.labels)
    expected = getattr(metrics, figure).value
    assert training.value == pytest.approx(expected, abs=1e-6)
    # As if it had ended there.
    assert training.values[fitted.kept_epoch - 1] == training.value
    assert value_of(recipe) == training.value


@pytest.mark.parametrize(
    ("figure", "sign"), [("accuracy", -1), ("log_loss", 1), ("auc", -1)]
)  # fmt: skip
def test_the_best_trial_is_the_one_with_the_best_objective(
    figure: str, sign: int, tmp_path: Path
) -> None:
    recipe = quick_recipe('{"train.lr"=[1e-4,1e-2,1e-1]}', f"tune.objective={figure}")
    study, _ = search(plan_of(recipe, tmp_path), 3)
    values = [trial.value for trial in ranking(study)]
    assert values == sorted(values, key=lambda value: sign * value) and len(set(values)) == 3
    assert study.best_trial.number == ranking(study)[0].number
    # The rate at which nothing is learnt is the worst.
    assert ranking(study)[-1].params["train.lr"] == 1e-4


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(1, [9]), (2, [4, 9]), (5, [1, 3, 5, 7, 9]), (20, list(range(1, 10)))],
)
def test_progress_is_reported_at_shares_of_the_trials_own_epochs(
    epochs: int, steps: list[int]
) -> None:
    recipe = quick_recipe("{}", f"train.epochs={epochs}", "train.patience=0")
    assert [step for step, _ in reported(recipe)] == steps


def test_what_is_reported_goes_on_over_the_folds_and_is_their_mean() -> None:
    recipe = quick_recipe("{}", "tune.folds=3", "train.epochs=2")
    points = reported(recipe)
    assert [step for step, _ in points] == [4, 9, 13, 18, 22, 27]
    ends = []
    for split in Ground(3, "cpu").splits(recipe):
        training = Training(recipe, split, "cpu")
        training.run()
        ends.append(training.value)
    assert len(set(ends)) > 1
    means = [float(np.mean(ends[:count])) for count in (1, 2, 3)]
    assert [value for _, value in points[1::2]] == means
    assert value_of(recipe) == means[-1]


def test_each_row_is_validated_once_over_the_folds_and_the_test_part_never() -> None:
    dataset = load_dataset(quick_recipe("{}").data)
    folds = fold(dataset, 3, 0)

    def rows(*parts: object) -> list[bytes]:
        return sorted(row.tobytes() for part in parts for row in part.raw)

    both = rows(dataset.train, dataset.validation)
    assert rows(*(each.validation for each in folds)) == both
    for each in folds:
        assert rows(each.train, each.validation) == both
        counts = np.bincount(each.validation.labels, minlength=10)
        whole = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
        assert np.abs(counts - whole / 3).max() < 1
    with pytest.raises(DataError, match=r"tune\.folds: expected at least 50 rows of each class"):
        fold(dataset, 50, 0)


def test_seeds_are_other_trainings_of_the_same_split() -> None:
    recipe = quick_recipe("{}", "tune.seeds=2", "tune.objective=log_loss")
    single = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"seeds": 1})})
    ground = Ground(1, "cpu")
    each = [value_of(with_seed(single, seed), ground) for seed in (0, 1)]
    assert each[0] != each[1]
    assert value_of(recipe, ground) == float(np.mean(each))


class Forbidden:
    """A part of the data whose every use is an error."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the test part is asked for its {name}")

    def __len__(self) -> int:
        raise AssertionError("the test part is counted")


@pytest.mark.parametrize("changes", [["tune.folds=1"], ["tune.folds=3"], ["tune.seeds=2"]])
def test_no_trial_reads_the_test_part(
    changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe('{"train.lr"=[0.01,0.02,0.05,0.1]}', "train.epochs=1", *changes)
    plan = plan_of(recipe, tmp_path, together=3)
    whole = load_dataset(recipe.data)
    closed = dataclasses.replace(whole, test=Forbidden())
    with pytest.raises(AssertionError, match="the test part"):
        len(closed.test)

    def closed_data(_config: object) -> Dataset:
        return closed

    monkeypatch.setattr(objective, "load_dataset", closed_data)
    study, _ = search(plan, 4)
    assert [trial.state for trial in ranking(study)] == [TrialState.COMPLETE] * 4


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[FrozenTrial]]:
    """The same 14 trials, by how many were trained together."""
    recipe = quick_recipe(
        ENDS, "train.lr=1e-9", "train.epochs=9", "train.optimizer=sgd", "model.batch_norm=false",
        "tune.objective=log_loss",
    )  # fmt: skip
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "make_pruner", lambda _plan: PrunesTheHopeless())
        for together in (1, 4):
            folder = tmp_path_factory.mktemp(f"together-{together}")
            study, _ = search(plan_of(recipe, folder, together=together), 14)
            found[together] = study.get_trials(deepcopy=False)
    return found


def test_trials_together_are_the_trials_one_by_one(ends: dict[int, list[FrozenTrial]]) -> None:
    assert len(ends[1]) == len(ends[4]) == 14
    values = 0
    for alone, among in zip(ends[1], ends[4], strict=True):
        assert alone.params == among.params and alone.state == among.state
        assert list(alone.intermediate_values) == list(among.intermediate_values)
        if alone.value is not None:
            values += 1
            assert among.value == pytest.approx(alone.value, abs=1e-3)
    assert values >= 5


def test_each_of_a_group_ends_for_itself(ends: dict[int, list[FrozenTrial]]) -> None:
    for trials in ends.values():
        states = {trial.state for trial in trials}
        assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
        for trial in trials[1:]:
            lr = trial.params["train.lr"]
            if lr == 1e30:
                assert trial.state == TrialState.FAIL
                assert "diverged: the loss became" in trial.user_attrs[REASON]
            elif lr == HOPELESS:
                assert trial.state == TrialState.PRUNED and list(trial.intermediate_values) == [1]
            else:
                assert trial.state == TrialState.COMPLETE
                assert trial.value == trial.intermediate_values[PROGRESS]


def test_the_recipe_as_it_is_is_trial_0_and_is_never_pruned(
    ends: dict[int, list[FrozenTrial]],
) -> None:
    for trials in ends.values():
        assert trials[0].params == {"train.lr": HOPELESS, "train.weight_decay": 0.02}
        assert trials[0].state == TrialState.COMPLETE
        assert trials[0].value == trials[0].intermediate_values[PROGRESS]


def test_a_hopeless_trial_is_ended_before_its_last_epoch(tmp_path: Path) -> None:
    recipe = quick_recipe(
        '{"train.lr"={low=1e-9,high=1e-1,log=true}}', "train.epochs=9", "tune.objective=log_loss"
    )
    rates = [{"train.lr": lr} for lr in (0.02, 0.03, 0.04, 0.05, HOPELESS)]
    study, _ = search(plan_of(recipe, tmp_path, pruner="median"), 6, before=rates)
    *good, hopeless = study.get_trials(deepcopy=False)
    assert [trial.state for trial in good] == [TrialState.COMPLETE] * 5
    assert hopeless.state == TrialState.PRUNED
    assert 1 <= hopeless.last_step < PROGRESS


def test_trials_of_a_group_are_known_to_live_while_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_alike = worker.draw_alike
    alive: list[bool] = []

    def watched(*arguments: object) -> object:
        before = [arguments[2]]
        for drawn in drawn_alike(*arguments):
            begun = here.workers[0]._heartbeats._begun
            alive.append({each.trial._trial_id for each in before} <= begun)
            before.append(drawn)
            yield drawn

    monkeypatch.setattr(worker, "draw_alike", watched)
    plan = plan_of(quick_recipe(), tmp_path, together=3)
    search(plan, 1)
    with Here(plan, 1) as here:
        assert [event["event"] for _, event in here.events(0)] == ["ready"]
        here.send(0, {"do": "trials", "most": 3, "in_all": 9})
    assert alive == [True, True]
    assert not here.workers[0]._heartbeats._begun


def test_what_is_too_much_memory_for_all_is_trained_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def too_much(networks: list[object], *_: object, **__: object) -> object:
        asked.append(len(networks))
        raise MemoryError

    monkeypatch.setattr(worker, "fit_stacked", too_much)
    study, _ = search(plan_of(quick_recipe(), tmp_path, together=3), 4)
    assert max(asked) == 3
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 4


def test_another_fault_of_a_group_is_the_reason_of_each_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("shapes\nand more")

    monkeypatch.setattr(worker, "fit_stacked", broken)
    study, _ = search(plan_of(quick_recipe(), tmp_path, together=3), 4)
    failed = [trial for trial in study.get_trials() if trial.state == TrialState.FAIL]
    assert len(failed) == 3
    assert {trial.user_attrs[REASON] for trial in failed} == {"RuntimeError: shapes"}
