"""`parityline tune` as a whole, from the recipe to the bundle; its workers within this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import parityline
from artifacts.bundle import Bundle
from artifacts.references import list_bundles
from tests.tuned import QUICK, RATES, Here, quick_recipe
from training.calibration import probabilities_at
from training.metrics import classification_metrics
from training.recipe import Recipe
from training.tuning import after, tune
from training.tuning.storage import StudyError, open_storage, quiet_optuna
from training.tuning.study import counts, optuna, ranking
from training.tuning.tune import Options

SMALL = "export.max_batch_size=64"


@pytest.fixture(autouse=True, scope="module")
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (tune, after):
            patch.setattr(module, "Workers", Here)
        yield


@dataclass
class Tuned:
    """What a study came to. said: its lines."""

    store: Path
    bundle: Bundle
    said: list[str]

    @property
    def folder(self) -> Path:
        return self.store / ".tuning" / "digits"

    @property
    def study(self) -> optuna.Study:
        with quiet_optuna():
            return optuna.load_study(study_name="digits", storage=open_storage(None, self.folder))

    def results(self) -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (self.folder / "results").iterdir()}


def tuned(recipe: Recipe, store: Path, **options: Any) -> Tuned:
    resume = options.pop("resume", False)
    console = Console(file=io.StringIO(), width=300)
    settings = {"trials": 5, "workers": 2, "repeats": 2, "pruner": "none", **options}
    bundle = tune.tune(
        recipe, store, Options(**settings), promote=True, console=console, resume=resume
    )
    return Tuned(store, bundle, console.file.getvalue().splitlines())


RECIPE = quick_recipe(RATES, "train.lr=0.001", "tune.objective=log_loss", SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A study whose recipe, as it is, hardly learns."""
    return tuned(RECIPE, tmp_path_factory.mktemp("tuned"))


def test_the_bundle_says_of_which_study_and_trial_it_is(whole: Tuned) -> None:
    manifest, study = whole.bundle.manifest, whole.study
    best = ranking(study)[0]
    about = manifest.study
    assert about is not None
    assert (about.name, about.objective, about.sampler, about.pruner) == (
        "digits", "log_loss", "tpe", "none",
    )  # fmt: skip
    assert about.space == ("train.lr: 0.001 to 0.1 (log)",)
    assert about.trials == {"complete": 5, "pruned": 0, "failed": 0}
    assert (about.trial, about.value, about.params) == (best.number, best.value, best.params)
    assert manifest.recipe["train"]["lr"] == best.params["train.lr"] != 0.001
    assert about.repeats == 2 and about.difference is not None
    # A run of the whole machine's, as `parityline train` of the recipe would be.
    assert manifest.recipe["data"]["memory_mb"] is None
    page = (whole.folder / "study.html").read_text()
    assert f"trial {best.number}: {best.value:.4f}" in page


def test_show_tells_of_the_study(
    whole: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = command(["show", "digits"], whole.store, monkeypatch, capsys)
    assert status == 0
    about = whole.bundle.manifest.study
    assert about is not None
    found = [line.split(maxsplit=1)[1] for line in said.splitlines() if "  study " in line]
    assert found[0] == (
        f"digits: 5 trials (5 complete, 0 pruned, 0 failed) by tpe, pruner none; trial "
        f"{about.trial} had log_loss {about.value:.4f} on the validation part"
    )
    assert found[1].startswith("it set train.lr=0.0")
    assert f"trial {about.trial} less the recipe as it is, 2 seeds each: +0." in found[2]


def test_a_resumed_study_does_nothing_again_but_the_release(whole: Tuned) -> None:
    before, trials = whole.results(), whole.study.get_trials()
    assert len(before) == 4
    again = tuned(RECIPE, whole.store, resume=True, workers=1)
    assert whole.results() == before
    assert [t.number for t in whole.study.get_trials()] == [t.number for t in trials]
    assert again.bundle.manifest.study == whole.bundle.manifest.study
    weights = "state_dict.pt"
    assert again.bundle.manifest.files[weights] == whole.bundle.manifest.files[weights]
    assert any(line.startswith("study: it has its 5 trials already") for line in again.said)


def test_those_that_are_worth_it_are_averaged(
    whole: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[np.ndarray]] = []

    def first_and_third(logits: Sequence[np.ndarray], *_: object) -> tuple[int, ...]:
        asked.append(logits)
        return (0, 2)

    monkeypatch.setattr(after, "choose_ensemble", first_and_third)
    manifest = tuned(RECIPE, whole.store, resume=True, top=4).bundle.manifest
    (logits,) = asked
    assert len(logits) == 4
    order = ranking(whole.study)
    assert manifest.study is not None
    assert manifest.study.members == (order[0].number, order[2].number)
    assert manifest.recipe["model"]["kind"] == "ensemble"
    assert len(manifest.recipe["model"]["members"]) == 2
    # What is released answers the mean of their logits.
    labels = tune.load_dataset(RECIPE.data).validation.labels
    probabilities = probabilities_at((logits[0] + logits[2]) / 2, 1.0)
    expected = classification_metrics(probabilities, labels).log_loss.value
    released = manifest.metrics["validation"].log_loss.value
    assert released == pytest.approx(expected, abs=1e-5)
    assert released != pytest.approx(classification_metrics(
        probabilities_at(logits[0], 1.0), labels
    ).log_loss.value, abs=1e-3)  # fmt: skip


def test_where_none_is_better_than_one_alone_that_one_is_released(
    whole: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after, "choose_ensemble", lambda *_: (0,))
    released = tuned(RECIPE, whole.store, resume=True, top=4)
    manifest = released.bundle.manifest
    assert manifest.study is not None and manifest.study.members == ()
    assert manifest.recipe["model"]["kind"] == "mlp"
    assert "ensemble: none of the best 4 is better than one alone" in released.said


def test_where_every_trial_fails_the_reasons_are_told(tmp_path: Path) -> None:
    recipe = quick_recipe(
        '{"train.lr"=[1e30,1e31],"train.schedule"=["cosine","plateau"]}', "train.lr=1e30",
        "model.batch_norm=false", "train.optimizer=sgd", "train.patience=3",
    )  # fmt: skip
    with pytest.raises(StudyError) as error:
        tuned(recipe, tmp_path, trials=4)
    first, *reasons = str(error.value).split("\n  ")
    assert first == "no trial of the study 'digits' has completed"
    assert len(reasons) == 4 and reasons[0].startswith("trial 0: ")
    assert any("diverged: the loss became" in reason for reason in reasons)
    assert all("diverged" in reason or "train: " in reason for reason in reasons)
    assert list_bundles(tmp_path) == {}


def command(
    arguments: list[str], store: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:  # fmt: skip
    """`parityline` with these: its exit status, and what it said."""
    monkeypatch.setenv("PARITYLINE_STORE", str(store))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["parityline", *arguments])
    with pytest.raises(SystemExit) as stop:
        parityline.main()
    said = capsys.readouterr()
    return stop.value.code or 0, said.out, said.err


def sets(*changes: str) -> list[str]:
    return [part for change in (*QUICK, *changes) for part in ("--set", change)]


RATED = sets(f"tune.space={RATES}")


def no_data(*_: object) -> None:
    raise AssertionError("the data is read")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (sets('tune.space={"train.lrr"=[0.1]}'), "unknown key train.lrr; allowed: epochs"),
        (sets('tune.space={"train.lr"={low=0.2,high=0.1}}'),
         "expected low at most high, found low = 0.2 and high = 0.1"),
        (sets('tune.space={"train.lr"=[]}'), "expected at least one choice, found none"),
        (sets('tune.space={"data.seed"=[1,2]}'), "data.seed: a study must not change it"),
        (sets("tune.space={}"), "[tune.space] is empty: say what the study may change"),
        ([*RATED, "--sampler=grid"],
         "train.lr: expected a step or choices, found a range of any number"),
        ([*RATED, "--study=a/b"], "--study: expected 1 to 64 letters"),
        ([*RATED, "--storage=sqlite:///x.db"],
         "SQLite is no good for several workers"),
        ([*RATED, "--storage=postgresql://u:secret@127.0.0.1:1/x"],
         "storage postgresql://127.0.0.1:1/x cannot be used: "),
        ([*RATED, "--storage=nowhere/journal.log"], "no study can lie here"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_the_data_is_read(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(tune, "load_dataset", no_data)
    status, said, error = command(["tune", "digits", *arguments], tmp_path, monkeypatch, capsys)
    assert status == 1
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert "secret" not in said + error


def test_a_study_that_is_there_and_one_that_is_another_are_refused(
    whole: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["train.lr=0.001", "tune.objective=log_loss", SMALL]
    for change, options, named in (
        (f"tune.space={RATES}", [], "the study 'digits' is there already, with 5 trials ended"),
        ('tune.space={"train.lr"={low=1e-3,high=0.2,log=true}}', ["--resume"],
         "tune.space.train.lr.high: 0.1 then, 0.2 now"),
        ("data.seed=1", ["--resume"], "data.seed: 0 then, 1 now"),
    ):  # fmt: skip
        arguments = ["tune", "digits", *sets(f"tune.space={RATES}", *same, change), *options]
        status, _, error = command(arguments, whole.store, monkeypatch, capsys)
        assert status == 1 and error.count("\n") == 1 and named in error
    assert counts(whole.study).ended == 5


def test_no_worker_begins_where_the_study_cannot(
    whole: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise AssertionError("a worker begins")

    monkeypatch.setattr(tune, "Workers", none)
    with pytest.raises(StudyError, match="is there already"):
        tuned(RECIPE, whole.store, trials=9)


def test_the_whole_study_is_said_line_by_line(whole: Tuned) -> None:
    said = "\n".join(whole.said)
    for part in (
        "space: train.lr: 0.001 to 0.1 (log)",
        "search: tpe, pruner none, log_loss",
        "workers: 2 on cpu",
        "study: 5 trials: 5 completed, 0 pruned, 0 failed",
        "best: train.lr=0.0",
        "compare: validation log loss ",
        "compare: test log loss: tuned less as it is -",
        f"released: {whole.bundle.manifest.reference}",
    ):
        assert part in said
    released = json.loads((whole.bundle.path / "manifest.json").read_text())
    assert released["study"]["name"] == "digits"


def test_folds_that_cannot_be_are_refused_before_there_is_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", "digits", *RATED, *sets("tune.folds=50")]
    status, _, error = command(arguments, tmp_path, monkeypatch, capsys)
    assert status == 1 and "tune.folds: expected at least 50 rows of each class" in error
    storage = open_storage(None, tmp_path / tune.FOLDER / "digits")
    assert optuna.get_all_study_names(storage) == []
