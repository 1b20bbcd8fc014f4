"""Two recipes on the same rows: what the interval holds, and what is made of it afterwards."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from rich.console import Console

from artifacts.manifest import Estimate
from tests.tuned import Here, plan_of, quick_recipe, search
from training.data import Dataset, load_dataset
from training.tuning import after as after_module
from training.tuning.after import After
from training.tuning.compare import FIGURES, difference, is_better, released_probabilities
from training.tuning.plan import Plan
from training.tuning.results import RunResult, read_result, write_result
from training.tuning.storage import MOST_RETRIES, StudyError
from training.tuning.study import ranking

SEEDS, ROWS = 5, 150


def of_chances(right: np.ndarray) -> list[np.ndarray]:
    """Of answers, bool [seeds, rows], to rows of class 1: probabilities of two classes."""
    chosen = np.where(right, 0.9, 0.1).astype(np.float32)
    return [np.stack([1 - each, each], axis=1) for each in chosen]


def experiment(
    generator: np.random.Generator, seeds: int, rows: int, own: float, luck: float, noise: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two recipes of the same accuracy in the long run.

    Rows are hard for both recipes, and for each by itself (own); seeds are lucky or not (luck), and
    row and seed do something together (noise).
    """
    hard = generator.normal(0, 1.0, rows)
    sides = []
    for _ in range(2):
        scores = generator.normal(0, own, rows) + generator.normal(0, luck, (seeds, 1))
        sides.append(
            of_chances(1.0 + hard + scores + generator.normal(0, noise, (seeds, rows)) > 0)
        )
    return sides[0], sides[1]


# What decides: the seeds, the rows, or what they do together.
@pytest.mark.parametrize(
    ("seeds", "rows", "own", "luck", "noise"),
    [(5, 150, 0.5, 0.4, 0.7), (4, 80, 0.8, 0.1, 1.0), (3, 60, 0.6, 0.1, 1.2)],
)
@pytest.mark.parametrize("figure", ["accuracy", "log_loss"])
def test_the_interval_holds_the_true_difference_about_95_times_of_100(
    figure: str, seeds: int, rows: int, own: float, luck: float, noise: float
) -> None:
    generator = np.random.default_rng(0)
    labels = np.ones(rows, dtype=np.int64)
    held = 0
    for _ in range(800):
        sides = experiment(generator, seeds, rows, own, luck, noise)
        found = difference(*sides, labels, figure)
        assert found is not None
        held += found.low <= 0 <= found.high
    # Three standard errors of a share of 800.
    assert 0.927 < held / 800 < 0.975


@pytest.mark.parametrize("figure", list(FIGURES))
def test_the_difference_the_other_way_round_is_its_negative(figure: str) -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, ROWS)
    sides = []
    for shift in (0.4, 0.0):
        scores = generator.normal(labels * (1 + shift), 1.0, (SEEDS, ROWS))
        chosen = (1 / (1 + np.exp(-scores))).astype(np.float32)
        sides.append([np.stack([1 - each, each], axis=1) for each in chosen])
    one, other = (difference(*pair, labels, figure) for pair in (sides, sides[::-1]))
    assert one is not None and other is not None and one.value != 0
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.low < one.value < one.high
    # A seed alone has no spread of seeds, and other numbers of seeds may be compared.
    assert difference(sides[0][:1], sides[1], labels, figure) is not None


def test_without_rows_of_every_label_there_is_no_auc_and_no_difference_of_it() -> None:
    labels = np.ones(20, dtype=np.int64)
    side = of_chances(np.ones((2, 20), dtype=bool))
    assert difference(side, side, labels, "auc") is None
    same = difference(side, side, labels, "accuracy")
    assert same == Estimate(value=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize(("figure", "sign"), [("accuracy", 1), ("auc", 1), ("log_loss", -1)])
def test_better_is_more_but_for_the_loss(figure: str, sign: int) -> None:
    assert is_better(Estimate(value=0.2, low=0.1, high=0.3), figure) is (sign > 0)
    assert is_better(Estimate(value=-0.2, low=-0.3, high=-0.1), figure) is (sign < 0)
    assert is_better(Estimate(value=0.1, low=-0.1, high=0.3), figure) is None


def test_released_probabilities_are_calibrated_on_the_validation_part_where_asked() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 3, 400)
    # Right two times of three, and much too sure of it.
    answered = np.where(generator.random(400) < 2 / 3, labels, (labels + 1) % 3)
    logits = (10 * np.eye(3)[answered]).astype(np.float32)
    raw = released_probabilities(logits, labels, logits, False)
    calibrated = released_probabilities(logits, labels, logits, True)
    assert raw.max(axis=1).mean() > 0.99
    assert calibrated.max(axis=1).mean() == pytest.approx(2 / 3, abs=0.05)


@dataclasses.dataclass
class Finished:
    """A study that has been searched, and what happens to its best trials."""

    plan: Plan
    study: optuna.Study
    dataset: Dataset
    console: Console

    def after(self, workers: int = 1) -> After:
        return After(
            self.plan, self.study, ranking(self.study), self.dataset, self.dataset.info(),
            (workers, 0), self.console,
        )  # fmt: skip

    def files(self) -> list[Path]:
        return sorted((self.plan.folder / "results").iterdir())

    @property
    def said(self) -> str:
        return self.console.file.getvalue()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after_module, "Workers", Here)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whose recipe, as it is, hardly learns, but for what the search finds."""
    recipe = quick_recipe(
        '{"train.lr"=[1e-5,0.03,0.1,0.2]}', "train.lr=1e-5", "tune.objective=log_loss"
    )
    plan = plan_of(recipe, tmp_path_factory.mktemp("study"))
    study, _ = search(plan, 4)
    return Finished(plan, study, load_dataset(recipe.data), Console(file=io.StringIO(), width=300))


@pytest.fixture
def finished(searched: Finished, tmp_path: Path) -> Finished:
    """It, with its results in a folder of the test's own."""
    return dataclasses.replace(
        searched, plan=searched.plan.model_copy(update={"folder": tmp_path, "storage": str(
            searched.plan.folder / "journal.log"
        )}), console=Console(file=io.StringIO(), width=300),
    )  # fmt: skip


def test_the_better_recipe_is_released_with_how_much_better_it_is(finished: Finished) -> None:
    winner = finished.after().compare(3)
    best = ranking(finished.study)[0]
    assert winner.recipe.train.lr == best.params["train.lr"] > 1e-5
    about = winner.study
    assert (about.trial, about.best_trial, about.unchanged) == (best.number, best.number, False)
    assert about.value == best.value and about.repeats == 3
    assert about.difference is not None and about.difference.value > 0.1
    assert [line.split(":")[0] for line in winner.lines[1:]] == ["test accuracy", "test log loss"]
    assert winner.lines[1].endswith("better") and winner.lines[2].endswith("better")
    # Its figure is that of the networks' own answers on the test part.
    sides = [[], []]
    for file in finished.files():
        result = read_result(file)
        assert result is not None
        probabilities = released_probabilities(
            result.validation_logits, finished.dataset.validation.labels, result.test_logits, True
        )
        right = (probabilities.argmax(axis=1) == finished.dataset.test.labels).mean()
        sides[result.value < 2].append(float(right))
    assert about.difference.value == pytest.approx(np.mean(sides[1]) - np.mean(sides[0]))


def test_results_that_are_there_are_not_computed_again(finished: Finished) -> None:
    first = finished.after().compare(2)
    before = {file: file.stat().st_mtime_ns for file in finished.files()}
    assert len(before) == 4
    # With a share of the machine for another number of workers.
    data = finished.plan.recipe.data.model_copy(update={"memory_mb": 99, "workers": 3})
    recipe = finished.plan.recipe.model_copy(update={"data": data})
    shared = dataclasses.replace(finished, plan=finished.plan.model_copy(update={"recipe": recipe}))
    again = shared.after(workers=2).compare(2)
    assert again.study == first.study and again.lines == first.lines
    assert {file: file.stat().st_mtime_ns for file in finished.files()} == before
    # Of more seeds only those that are new.
    finished.after().compare(3)
    assert len(finished.files()) == 6
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("content", [b"", b"no result", None])
def test_a_damaged_result_is_named(content: bytes | None, finished: Finished) -> None:
    finished.after().compare(1)
    file = finished.files()[0]
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    with pytest.raises(StudyError, match=rf"{file}: damaged \(.*\); remove it"):
        finished.after().compare(1)


def with_values(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tuned: Sequence[float],
    default: Sequence[float],
) -> After:  # fmt: skip
    """Trainings that come to these validation figures, where there are any."""
    after = finished.after()
    result = RunResult(
        0.0, *(np.eye(10, dtype=np.float32)[part.labels] for part in
        (finished.dataset.validation, finished.dataset.test)), (), 1, None,
    )  # fmt: skip

    def runs(jobs: Sequence[object]) -> list[RunResult | None]:
        assert [job.seed for job in jobs] == [1, 1, 2, 2]
        assert {job.recipe.train.lr for job in jobs[1::2]} == {1e-5}
        return [
            None if np.isnan(value) else dataclasses.replace(result, value=value)
            for pair in zip(tuned, default, strict=True)
            for value in pair
        ]

    monkeypatch.setattr(after, "_run", runs)
    return after


NONE = float("nan")


@pytest.mark.parametrize(
    ("tuned", "default", "kept"),
    [
        # The objective is the log loss: less is better, and a tie is no improvement.
        ((1.0, 2.0), (1.1, 2.1), False),
        ((1.0, 2.0), (0.9, 2.0), True),
        ((1.0, 2.0), (1.5, 1.5), True),
        # One seed of two is enough; of none there is nothing to compare.
        ((1.0, NONE), (1.1, 0.5), True),
        ((NONE, NONE), (1.1, 0.5), True),
        ((1.0, 0.5), (NONE, NONE), False),
        ((NONE, NONE), (NONE, NONE), False),
    ],
)
def test_the_recipe_as_it_is_is_kept_where_it_does_no_worse(
    tuned: Sequence[float], default: Sequence[float], kept: bool, finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    winner = with_values(finished, monkeypatch, tuned, default).compare(2)
    best = ranking(finished.study)[0]
    assert winner.study.unchanged is kept
    assert winner.recipe.train.lr == (1e-5 if kept else best.params["train.lr"])
    assert winner.study.trial == (0 if kept else best.number)
    assert winner.study.best_trial == best.number
    both = not (np.isnan(tuned).all() or np.isnan(default).all())
    assert (winner.study.difference is not None) is both
    assert ("they are not compared" in finished.said) is not both
    assert ("the recipe as it is does no worse" in finished.said) is (kept and both)


def test_where_the_recipe_as_it_is_was_best_there_is_nothing_to_compare(tmp_path: Path) -> None:
    recipe = quick_recipe('{"train.lr"=[0.05,1e-6]}', "train.lr=0.05")
    study, _ = search(plan_of(recipe, tmp_path), 2)
    console = Console(file=io.StringIO(), width=300)
    after = Finished(plan_of(recipe, tmp_path), study, load_dataset(recipe.data), console).after()
    winner = after.compare(3)
    assert winner.study.unchanged and winner.recipe == recipe and winner.study.trial == 0
    assert not (tmp_path / "results").exists()
    assert "the recipe as it is has been the best of all trials" in console.file.getvalue()


class Mortal(Here):
    """Workers that die of each training of the recipe as it is, and of the first of any other."""

    def events(self, wait_s: float):
        for index, event in super().events(wait_s):
            if event["event"] == "measured":
                rate = self.told[-1][1]["recipe"]["train"]["lr"]
                file = Path(event["file"])
                deaths.append(rate)
                if rate == 1e-5 or deaths.count(rate) == 1:
                    file.unlink()
                    event = {"event": "died", "status": "signal SIGKILL"}
                    self._said.clear()
                    self._busy.discard(index)
            yield index, event


deaths: list[float] = []


def test_a_training_whose_worker_dies_is_tried_again_but_not_for_ever(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after_module, "Workers", Mortal)
    deaths.clear()
    winner = finished.after().compare(1)
    assert deaths.count(1e-5) == MOST_RETRIES + 1 and len(deaths) == MOST_RETRIES + 3
    assert not winner.study.unchanged
    assert "seed 1 failed: its worker ended with signal SIGKILL (3 times)" in finished.said
    assert "no seed of the recipe as it is has come to its end" in finished.said


def test_a_training_that_fails_is_said_and_left_out(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(
        '{"train.lr"=[1e-5,0.03,0.1,0.2]}', "train.lr=1e30", "tune.objective=log_loss",
        "model.batch_norm=false", "train.optimizer=sgd",
    )  # fmt: skip
    plan = finished.plan.model_copy(update={"recipe": recipe})
    winner = dataclasses.replace(finished, plan=plan).after().compare(1)
    assert "compare: seed 1 failed: diverged: the loss became" in finished.said
    assert not winner.study.unchanged and winner.study.difference is None


def test_a_result_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = RunResult(0.5, np.zeros((2, 3)), np.ones((2, 3)), (), 1, None)
    file = tmp_path / "results" / "x.pt"
    assert read_result(file) is None

    def no_room(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        with pytest.raises(OSError, match="No space left"):
            write_result(file, result)
    assert list(file.parent.iterdir()) == []
    write_result(file, result)
    found = read_result(file)
    assert found is not None and found.value == 0.5 and (found.test_logits == 1).all()
