"""What is measured after a fit is what is deployed: temperature, threshold, label, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from artifacts.bundle import read_bundle
from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.estimates import log_losses
from artifacts.manifest import ONNX, Manifest
from artifacts.predictor import Predictor, open_predictor
from artifacts.summary import summary_lines
from serving.scoring.answers import AnswerForm, answer_table
from serving.wire import response_encoder
from tests.scored import read_chunks, score_file
from training.data import load_dataset
from training.metrics import classification_metrics
from training.recipe import ExportConfig, load_recipe
from training.report.charts import known_bins
from training.run import run
from training.threshold import choose_threshold

TWO = ("no", "yes")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Breast cancer with a threshold of its own."""
    recipe = load_recipe(
        "breast-cancer",
        ["train.epochs=3", "export.max_batch_size=64", "export.threshold=0.9", "model.hidden=[16]"],
    )
    console = Console(quiet=True)
    bundle = run(recipe, tmp_path_factory.mktemp("store"), promote=False, console=console)
    return open_predictor(bundle, backend="onnx", device="cpu", threads=1)


def test_the_manifests_figures_are_those_of_the_served_answers(tuned: Predictor) -> None:
    manifest, test = tuned.manifest, load_dataset(load_recipe("breast-cancer").data).test
    assert isinstance(test.raw, np.ndarray)
    assert manifest.threshold == 0.9 and manifest.temperature != 1
    _, probabilities = tuned.run(test.raw)
    index = decide(probabilities, 0.9)
    assert (index != probabilities.argmax(axis=1)).any()
    figures = manifest.metrics["test"]
    expected = np.zeros((2, 2), dtype=int)
    np.add.at(expected, (test.labels, index), 1)
    assert figures.confusion == tuple(map(tuple, expected.tolist()))
    assert figures.accuracy.value == (index == test.labels).mean()
    assert figures.per_label[manifest.labels[1]].support == test.labels.sum()
    assert figures.average_precision is not None
    assert manifest.calibration is not None
    loss = log_losses(probabilities, test.labels).mean()
    assert manifest.calibration.after["test"].log_loss.value == pytest.approx(loss, abs=1e-4)
    assert figures.log_loss == manifest.calibration.after["test"].log_loss
    bins = manifest.calibration.after["test"].bins
    assert sum(entry.rows for entry in bins) == figures.rows and len(bins) == 15
    assert manifest.calibration.after["validation"].bins == ()
    before, after = (
        getattr(manifest.calibration, when)["validation"].log_loss.value
        for when in ("before", "after")
    )
    assert after < before


def test_the_temperature_is_inside_every_exported_graph(tuned: Predictor) -> None:
    bundle = read_bundle(tuned.bundle.path)
    for backend in ("onnx", "torchscript", "export", "eager"):
        predictor = open_predictor(bundle, backend=backend, device="cpu", threads=1)
        assert predictor.checked.rows == len(tuned.golden.raw)
    logits = tuned.golden.logits
    network = bundle.manifest.model_copy(update={"temperature": 1.0})
    object.__setattr__(bundle, "manifest", network)
    plain = open_eager(bundle, tuned.golden.raw)
    np.testing.assert_allclose(logits, plain / tuned.manifest.temperature, rtol=1e-5, atol=1e-5)
    assert np.abs(logits - plain).max() > 0.01
    assert ONNX in bundle.manifest.files


def open_eager(bundle: object, raw: np.ndarray) -> np.ndarray:
    from artifacts.backends import open_backend

    return open_backend(bundle, "eager", "cpu", 1)(raw)[0]  # type: ignore[arg-type]


def test_every_way_out_answers_the_label_at_the_threshold(tuned: Predictor, tmp_path: Path) -> None:
    raw = tuned.golden.raw
    columns = [column.name for column in tuned.manifest.input.columns]
    predictions = tuned.predict({name: raw[:, k] for k, name in enumerate(columns)})
    expected = decide(predictions.probabilities, 0.9)
    moved = expected != predictions.probabilities.argmax(axis=1)
    assert moved.any()
    np.testing.assert_array_equal(predictions.index, expected)
    encode = response_encoder(tuned.manifest)
    answers = json.loads(encode(predictions.probabilities, 1))["predictions"]
    assert [answer["index"] for answer in answers] == expected.tolist()
    for answer, row, other in zip(answers, predictions.probabilities, moved, strict=True):
        assert answer["label"] == tuned.manifest.labels[answer["index"]]
        assert answer["probability"] == row[answer["index"]]
        # The probabilities stay in the order of the probabilities.
        assert (answer["label"] in answer["probabilities"]) != other
    np.savez(tmp_path / "rows.npz", x=raw)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in raw.tolist())]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (chunk,) = read_chunks(tmp_path / "rows.csv", tuned.manifest.input)
    table = answer_table(
        tuned.manifest.labels,
        AnswerForm(),
        rows=chunk.rows,
        passed=chunk.passed,
        probabilities=predictions.probabilities,
        index=predictions.index,
    )
    assert table["index"].to_pylist() == expected.tolist()
    summary = score_file(tuned, tmp_path / "rows.csv", tmp_path / "out")
    assert list(summary["label_counts"].values()) == np.bincount(expected, minlength=2).tolist()


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1))
def test_without_a_threshold_the_answer_is_the_first_most_probable(rows: list) -> None:
    probabilities = np.array(rows, dtype=np.float32)
    np.testing.assert_array_equal(decide(probabilities), probabilities.argmax(axis=1))
    np.testing.assert_array_equal(decide(probabilities[:, :2], 0.5), rows_first(probabilities))


def rows_first(probabilities: np.ndarray) -> list[int]:
    return [int(row[1] > row[0]) for row in probabilities]


def test_a_probability_must_exceed_the_threshold_as_it_is_written() -> None:
    second = np.array([0.25, 0.3, np.nextafter(np.float32(0.3), np.float32(0))], dtype=np.float32)
    probabilities = np.stack([1 - second, second], axis=1)
    assert decide(probabilities, 0.25).tolist() == [0, 1, 1]
    # As a double, float32's 0.3 is 0.30000001192...
    assert decide(probabilities, 0.3).tolist() == [0, 1, 0]
    assert decide(probabilities, float(np.float32(0.3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("figure", ["f1", "balanced"])
@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_is_better_than_the_chosen_one(figure: str, seed: int) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    score = f1_score if figure == "f1" else balanced_accuracy_score
    generator = np.random.default_rng(seed)
    labels = (generator.random(150) < 0.2).astype(np.int64)
    second = (0.3 * labels + generator.random(150) / 3).round(2).astype(np.float32)
    probabilities = np.stack([1 - second, second], axis=1)
    config = ExportConfig(threshold=figure)
    threshold = choose_threshold(config, probabilities, labels, TWO)
    best = score(labels, decide(probabilities, threshold))
    for other in np.linspace(0.0025, 0.9975, 200):
        assert score(labels, decide(probabilities, float(other))) <= best + 1e-9
    assert 0 < threshold < 1 and len(str(threshold)) <= 6
    assert best > score(labels, decide(probabilities))


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_chosen() -> None:
    second = np.array([0.1, 0.2, 0.8, 0.9], dtype=np.float32)
    second, labels = np.repeat(second, 5), np.repeat(np.array([0, 0, 1, 1]), 5)
    probabilities = np.stack([1 - second, second], axis=1)
    for figure in ("f1", "balanced"):
        assert choose_threshold(ExportConfig(threshold=figure), probabilities, labels, TWO) == 0.5
    # A row of probability 0 cannot be answered "yes", so that "yes" to all is no choice here.
    certain = np.array([[1, 0], [0.9, 0.1], [0.6, 0.4]], dtype=np.float32)
    certain, labels = np.repeat(certain, 10, axis=0), np.repeat(np.array([1, 1, 0]), 10)
    threshold = choose_threshold(ExportConfig(threshold="f1"), certain, labels, TWO)
    assert 0 < threshold < 0.1


def test_a_threshold_that_cannot_be_is_refused_by_name() -> None:
    flat = np.full((40, 2), 0.5, dtype=np.float32)
    for few in (0, 9):
        labels = (np.arange(40) >= few).astype(np.int64)
        with pytest.raises(DataError, match=rf"export\.threshold: 'f1' .*found {few} of no"):
            choose_threshold(ExportConfig(threshold="f1"), flat, labels, TWO)
    for value in ("0", "1", "1.5", "youden"):
        with pytest.raises(DataError, match=r"export\.threshold: "):
            load_recipe("digits", [f"export.threshold={value}"])


def test_a_threshold_between_more_than_two_labels_is_refused_before_the_training(
    tmp_path: Path,
) -> None:
    recipe = load_recipe("digits", ["export.threshold=f1", "train.lr=1e6"])
    with pytest.raises(DataError, match=r"export\.threshold: expected 0\.5 for 10 labels"):
        run(recipe, tmp_path, promote=False, console=Console(quiet=True))


def test_a_manifest_of_many_labels_has_no_threshold(digits: Predictor) -> None:
    content = digits.manifest.model_dump()
    with pytest.raises(ValueError, match=r"threshold: expected 0\.5 for 10 labels"):
        Manifest.model_validate({**content, "threshold": 0.4})


def test_what_was_measured_is_shown(digits: Predictor, tuned: Predictor) -> None:
    lines = "\n".join(summary_lines(tuned.bundle))
    assert "calibrated temperature" in lines and "where its probability is above 0.9" in lines
    assert "verdict    " in lines and "PR-AUC" in lines
    assert "no model   accuracy 0.62" in lines and "speed      model.onnx: " in lines
    report = tuned.bundle.read("report.html").decode()
    verdict = tuned.manifest.verdict
    assert verdict is not None and verdict.text[1:20] in report
    assert all(line in report for line in verdict.advice)
    # Two learning curves, ROC, precision against recall, and each format's gate; reliability where
    # there are points for it.
    calibration = tuned.manifest.calibration
    assert calibration is not None
    charts = 7 + (len(known_bins(calibration.after["test"].bins)) > 1)
    assert report.count('class="chart"') == charts and "Brier score" in report
    assert "is answered where its probability is above 0.9" in report
    many = digits.bundle.read("report.html").decode()
    assert "PR-AUC" not in many and "is answered where" not in many


def test_calibration_can_be_switched_off() -> None:
    from artifacts.manifest import Epoch
    from artifacts.networks import DeployedClassifier, build_network
    from artifacts.preprocess import Preprocess
    from training.batches import Batches
    from training.encoding import preprocessing
    from training.measure import measure, measured_lines

    recipe = load_recipe("digits", ["export.calibrate=false", "model.kind=linear"])
    dataset = load_dataset(recipe.data)
    steps = preprocessing(dataset, recipe.model)
    torch.manual_seed(0)
    network = build_network(recipe.model, dataset.input.shape, steps, 10)
    model = DeployedClassifier(Preprocess(steps, dataset.input.shape), network, 1.0).eval()
    batches = {name: Batches(part, torch.device("cpu")) for name, part in dataset.parts.items()}
    epoch = Epoch(
        epoch=1, train_loss=2.4, train_accuracy=0.1, validation_loss=2.4,
        validation_accuracy=0.1, lr=0.1,
    )  # fmt: skip
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1})})
    found = measure(model, batches, dataset, recipe, (epoch,), 1)
    assert found.temperature == model.temperature == 1.0
    assert found.calibration.before == found.calibration.after
    assert found.verdict.kind == "underfitting"
    lines = measured_lines(found, dataset.labels)
    assert any("temperature 1, as export.calibrate is false" in line for line in lines)
    on = recipe.model_copy(update={"export": ExportConfig()})
    again = measure(model, batches, dataset, on, (epoch,), 1)
    assert again.temperature == model.temperature != 1.0
    assert again.calibration.before == found.calibration.before


def test_many_labels_leave_no_confusion_matrix() -> None:
    labels = np.arange(402) % 201
    probabilities = np.full((402, 201), 1 / 201, dtype=np.float32)
    assert classification_metrics(probabilities, labels).confusion is None
    assert classification_metrics(probabilities[:, :200], labels % 200).confusion is not None
