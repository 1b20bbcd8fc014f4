"""What a release keeps for people to look at is true of the model."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image
from rich.console import Console

from artifacts.bundle import Bundle
from artifacts.errors import BundleError
from artifacts.estimates import log_losses
from artifacts.evidence import Curves
from artifacts.inputs import Column, DateColumn, ImageInput, TableInput
from artifacts.predictor import Predictor
from tests.forgery import forge
from training.data import Dataset, Part, load_dataset
from training.evidence import SHUFFLES, column_importance, curves, gather_evidence
from training.measure import label_shares_baseline
from training.recipe import DataConfig, load_recipe
from training.run import run

ROWS = 300


def number(name: str) -> Column:
    return Column(name=name, low=-1, high=1, typical=0)


def table(spec: TableInput, seed: int = 0) -> Dataset:
    """Rows whose label is the sign of the first value."""
    raw = np.random.default_rng(seed).normal(size=(ROWS, *spec.shape))
    part = Part(raw, (raw[:, 0] > 0).astype(np.int64))
    return Dataset("made", spec, ("no", "yes"), part, part, part)


def by_first(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A model that looks at the first value alone."""
    logits = np.stack([-3 * raw[:, 0], 3 * raw[:, 0]], axis=1).astype(np.float32)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits, exponents / exponents.sum(axis=1, keepdims=True)


def test_only_the_columns_that_a_model_looks_at_matter() -> None:
    parts = ("timestamp", "weekday")
    date = DateColumn(
        name="when", parts=parts, low="2020-01-01", high="2021-01-01", typical="2020-06-01"
    )
    # The first raw value is the date's: its parts are shuffled together.
    dataset = table(TableInput(columns=(date, number("a"), number("b"))))
    found = column_importance(by_first, dataset, 64, 0.5, flops=10)
    assert [entry.column for entry in found] == ["when", "a", "b"]
    first, *others = found
    assert (first.rows, first.shuffles) == (ROWS, SHUFFLES)
    # Shuffled, the sign is right for about half of the rows.
    assert first.accuracy.mean == pytest.approx(0.5, abs=0.05)
    assert 0 < first.log_loss.low < first.log_loss.mean < first.log_loss.high
    for entry in others:
        assert entry.accuracy.mean == entry.log_loss.low == entry.log_loss.high == 0
    assert column_importance(by_first, dataset, 64, 0.5, flops=10) == found


def test_of_many_columns_and_a_large_model_those_that_matter_are_looked_at_closely() -> None:
    asked = 0

    def counting(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal asked
        asked += len(raw)
        return by_first(raw[:, 77:])

    spec = TableInput(columns=tuple(number(f"c{place}") for place in range(100)))
    dataset = table(spec)
    dataset = Dataset(
        "made", spec, ("no", "yes"), *[
            Part(part.raw, (part.raw[:, 77] > 0).astype(np.int64))
            for part in dataset.parts.values()
        ],
    )  # fmt: skip
    # 5,000 answers for each of the two looks; all would be 150,000.
    found = column_importance(counting, dataset, 64, 0.5, flops=30_000_000)
    assert asked < 17_000
    assert len({entry.column for entry in found}) == 100 and found[0].column == "c77"
    assert [entry.shuffles for entry in found] == [SHUFFLES] * 20 + [1] * 80
    assert found[0].rows == 100 and found[-1].rows == 50


def test_mistakes_are_the_most_confident_ones_with_their_cells() -> None:
    dataset = table(TableInput(columns=(number("a"), number("b"))))
    _, probabilities = by_first(-dataset.test.raw)
    # All answers are wrong but those in the middle, which are all but undecided.
    evidence = gather_evidence(
        dataset, probabilities, 0.5, by_first, 64, 10, with_rows=True
    )  # fmt: skip
    assert evidence.mistakes is not None and len(evidence.mistakes) == 12
    order = np.argsort(-np.abs(dataset.test.raw[:, 0]), kind="stable")
    # float32 has no room between the largest probabilities.
    assert {mistake.row for mistake in evidence.mistakes} <= set(order[:40].tolist())
    for mistake in evidence.mistakes:
        raw = dataset.test.raw[mistake.row]
        assert mistake.label != mistake.answer
        assert mistake.cells == {"a": raw[0], "b": raw[1]}
        assert mistake.of_label == probabilities[mistake.row, mistake.label]
    hidden = gather_evidence(dataset, probabilities, 0.5, by_first, 64, 10, with_rows=False)
    assert hidden.mistakes is None and hidden.importance == evidence.importance


def test_large_pictures_are_kept_small_and_small_ones_as_they_are() -> None:
    generator = np.random.default_rng(0)
    for shape, kept in (((3, 300, 150), (64, 128)), ((1, 8, 6), (6, 8))):
        raw = generator.integers(0, 256, (4, *shape), dtype=np.uint8)
        part = Part(raw, np.array([0, 1, 2, 0]))
        spec = ImageInput(channels=shape[0], height=shape[1], width=shape[2])
        dataset = Dataset("made", spec, ("a", "b", "c"), part, part, part)
        probabilities = np.full((4, 3), 0.1, dtype=np.float32)
        probabilities[:, 1] = 0.8
        evidence = gather_evidence(
            dataset, probabilities, 0.5, by_first, 64, 10, with_rows=True
        )  # fmt: skip
        assert evidence.mistakes is not None and evidence.curves is None
        assert [mistake.row for mistake in evidence.mistakes] == [0, 2, 3]
        image = Image.open(io.BytesIO(base64.b64decode(evidence.mistakes[1].picture or "")))
        assert image.size == kept
        if shape[0] == 1:
            np.testing.assert_array_equal(np.asarray(image), raw[2, 0])


def test_a_thinned_curve_keeps_its_ends_and_its_area() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    labels = (generator.random(5000) < 0.2).astype(np.int64)
    second = (0.3 * labels + generator.random(5000) / 2).astype(np.float32)
    found = curves(np.stack([1 - second, second], axis=1), labels)
    assert found is not None and len(found.roc) <= 201 and len(found.precision_recall) <= 201
    assert found.roc[0] == (0, 0) and found.roc[-1] == (1, 1)
    x, y = np.array(found.roc).T
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, second), abs=0.005)
    recall, precision = np.array(found.precision_recall).T
    assert recall[0] == 1 and precision[0] == pytest.approx(0.2, abs=0.02)
    assert curves(np.full((4, 2), 0.5, dtype=np.float32), np.zeros(4, dtype=np.int64)) is None


def test_the_baseline_knows_the_shares_of_the_training_part_alone() -> None:
    train, test = np.array([0] * 6 + [1] * 3 + [2]), np.array([0, 0, 0, 1, 2])
    found = label_shares_baseline(train, test, 3)
    assert (found.rows, found.accuracy.value) == (5, 0.6)
    shares = np.tile(np.array([0.6, 0.3, 0.1], dtype=np.float32), (5, 1))
    assert found.log_loss.value == pytest.approx(log_losses(shares, test).mean())
    assert found.accuracy.low < 0.6 < found.accuracy.high


def test_evidence_is_of_the_test_part(digits: Predictor, cancer: Predictor) -> None:
    part = load_dataset(DataConfig(source="digits")).test
    evidence = digits.bundle.evidence()
    assert evidence is not None and evidence.mistakes
    answers = digits.predict(part.raw)
    wrong = set(np.flatnonzero(answers.index != part.labels).tolist())
    assert {mistake.row for mistake in evidence.mistakes} <= wrong
    assert len(evidence.mistakes) == min(12, len(wrong))
    given = [mistake.probability for mistake in evidence.mistakes]
    assert given == sorted(given, reverse=True)
    for mistake in evidence.mistakes:
        assert (mistake.label, mistake.answer) == (
            part.labels[mistake.row], answers.index[mistake.row],
        )  # fmt: skip
        assert mistake.probability == pytest.approx(answers.probabilities[mistake.row].max(), 1e-3)
    table = cancer.bundle.evidence()
    assert table is not None and table.curves is not None
    assert {entry.column for entry in table.importance} == {
        column.name for column in cancer.manifest.input.columns
    }
    # The thinned curve has the area that the manifest says.
    x, y = np.array(table.curves.roc).T
    area = float(np.trapezoid(y, x))
    auc = cancer.manifest.metrics["test"].auc
    assert auc is not None and area == pytest.approx(auc.value, abs=0.01)


def test_evidence_that_is_not_what_it_should_be_is_refused(
    bundle: Bundle, cancer: Predictor, tmp_path: Path
) -> None:
    whole = json.loads(bundle.read("evidence.json"))
    mistake = whole["mistakes"][0]
    curves = Curves(roc=((0, 0), (1, 1)), precision_recall=((1, 1),)).model_dump()
    png = "iVBORw0KGgoAAAANSUhEUgABAAAAAQAACAAAAAA="
    cases = {
        "Invalid JSON": b"{",
        "Input should be a valid": {**whole, "mistakes": 5},
        "expected labels below 10": {**whole, "mistakes": [{**mistake, "answer": 10}]},
        "curves: they are for two labels": {**whole, "curves": curves},
        "picture: expected a PNG": {**whole, "mistakes": [{**mistake, "picture": "R0lGODlh"}]},
        "picture: not base64": {**whole, "mistakes": [{**mistake, "picture": "<b>"}]},
        "128 pixels a side": {**whole, "mistakes": [{**mistake, "picture": png}]},
        "no column 'x' in the manifest": {**whole, "mistakes": [{**mistake, "cells": {"x": 1}}]},
        "Extra inputs": {**whole, "script": "x"},
        "at most 12 items": {**whole, "mistakes": [mistake] * 13},
        "not a row of image input": {**whole, "mistakes": [{**mistake, "picture": None}]},
    }
    for number, (message, spoiled) in enumerate(cases.items()):
        payload = spoiled if isinstance(spoiled, bytes) else json.dumps(spoiled).encode()
        forged = forge(bundle, tmp_path / f"case{number}", evidence_json=payload)
        with pytest.raises(BundleError, match=rf"evidence\.json: .*{re.escape(message)}"):
            forged.evidence()
    forged = forge(bundle, tmp_path / "large", evidence_json=b" " * (8 * 2**20 + 1))
    with pytest.raises(BundleError, match="expected at most 8388608 bytes"):
        forged.evidence()
    forged = forge(bundle, tmp_path / "parity", parity_json=b"[]")
    with pytest.raises(BundleError, match=r"parity\.json: "):
        forged.parity()


def test_no_real_row_is_kept_where_data_may_not_leave(tmp_path: Path) -> None:
    """The cells, in every form that they have in a page, a file of JSON or an array."""
    generator = np.random.default_rng(0)
    secret = generator.random(300).round(9)
    label = np.where(secret + 0.2 * generator.random(300) > 0.6, "yes", "no")
    file = tmp_path / "secret.csv"
    pyarrow.csv.write_csv(pa.table({"secret": secret, "label": label}), file)
    overrides = ["export.golden=synthetic", "train.epochs=2", "model.kind=mlp", "model.hidden=[4]"]
    recipe = load_recipe("table", overrides, name="secret", data=str(file), target="label")
    bundle = run(
        recipe, tmp_path / "store", promote=False, console=Console(quiet=True), preflight=False
    )
    assert bundle is not None
    evidence = bundle.evidence()
    assert evidence is not None and evidence.mistakes is None and evidence.importance
    page = bundle.read("report.html")
    assert b"may not leave" in page and b"A made-up row" in page
    # The range and the median are in the manifest, as its docstring says.
    (column,) = bundle.manifest.input.columns
    assert isinstance(column, Column)
    known = {column.low, column.high, column.typical}
    rows = [value for value in secret.tolist() if value not in known]
    assert len(rows) > 290
    for name in ("evidence.json", "report.html", "golden.npz", "parity.json"):
        content = bundle.read(name)
        assert not any(np.float64(value).tobytes() in content for value in rows), name
        assert not any(f"{value:.6g}".encode() in content for value in rows), name
