"""A scoring job's figures beside true labels: those of all rows at once, however they come."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from artifacts.arrow import class_names
from artifacts.errors import DataError
from artifacts.estimates import log_losses
from artifacts.manifest import Estimate, Metrics
from serving.scoring.decay import compare
from serving.scoring.ranking import Ranking
from serving.scoring.target import TargetTally
from serving.scoring.true_labels import MISSING, UNKNOWN, true_labels
from training.calibration import calibration_figures
from training.columns import read_labels
from training.metrics import classification_metrics

# Each in a bin of its own, whatever the number of labels.
APART = (0.0, 1e-30, 1e-6, 2**-24, 0.01, 0.125, 0.3, 0.5, 0.7, 0.99, 1 - 1e-6, 1 - 2**-24, 1.0)


def named(labels: int) -> tuple[str, ...]:
    return tuple(f"label {place}" for place in range(labels))


def drawn(
    seed: int, rows: int, labels: int, sharpness: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float32, and labels drawn from them before they were sharpened.

    shift: of the first label's logit, so that the others become rare.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (rows, labels))
    logits[:, 0] += shift
    true = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    powers = np.exp(sharpness * (logits - logits.max(axis=1, keepdims=True)))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), true


def tally_of(probabilities: np.ndarray, true: np.ndarray, threshold: float = 0.5) -> TargetTally:
    tally = TargetTally(named(probabilities.shape[1]), threshold)
    tally.add(probabilities, true)
    return tally


def state(tally: TargetTally) -> dict[str, list[Any]]:
    return {name: array.tolist() for name, array in tally.to_arrays().items()}


def near(estimate: Estimate, tolerance: float) -> Any:
    return pytest.approx((estimate.value, estimate.low, estimate.high), abs=tolerance)


def numbers(estimate: Estimate | None) -> tuple[float, float, float]:
    assert estimate is not None
    return estimate.value, estimate.low, estimate.high


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 60),
    labels=st.sampled_from([2, 3, 100]),
    sharpness=st.sampled_from([0.0, 1.0, 300.0]),
    digits=st.sampled_from([1, 9]),
    present=st.integers(1, 100),
    threshold=st.sampled_from([0.5, 0.2, 0.9]),
)
def test_the_figures_are_those_that_training_has(
    seed: int,
    rows: int,
    labels: int,
    sharpness: float,
    digits: int,
    present: int,
    threshold: float,
) -> None:
    probabilities, true = drawn(seed, rows, labels, sharpness)
    probabilities = probabilities.round(digits)
    true %= min(present, labels)
    threshold = threshold if labels == 2 else 0.5
    tally = tally_of(probabilities, true, threshold)
    found = tally.metrics()
    expected = classification_metrics(probabilities, true, named(labels), threshold)
    assert found is not None
    curves = {"auc", "average_precision", "log_loss"}
    assert found.model_dump(exclude=curves) == expected.model_dump(exclude=curves)
    assert numbers(found.log_loss) == near(expected.log_loss, 1e-6)
    assert (found.auc is None) == (expected.auc is None)
    if found.auc is not None and expected.auc is not None:
        within = tally.auc_within()
        assert within is not None
        off = abs(found.auc.value - expected.auc.value)
        # torchmetrics computes in float32.
        assert off <= (0 if digits == 1 else within) + 1e-5
    assert (found.average_precision is None) == (expected.average_precision is None)
    if digits == 1 and found.average_precision and expected.average_precision:
        assert numbers(found.average_precision) == near(expected.average_precision, 1e-5)
    calibration = tally.calibration()
    wanted = calibration_figures(probabilities, true, keep_bins=True)
    assert calibration is not None
    assert calibration.ece == pytest.approx(wanted.ece, abs=1e-8)
    assert numbers(calibration.brier) == near(wanted.brier, 1e-6)
    for one, other in zip(calibration.bins, wanted.bins, strict=True):
        assert (one.rows, one.accuracy) == (other.rows, other.accuracy)
        assert one.confidence == (other.confidence and pytest.approx(other.confidence, abs=1e-9))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.sampled_from(APART), min_size=3, max_size=3), st.integers(0, 2)),
        min_size=1,
        max_size=50,
    ),
    labels=st.sampled_from([2, 3]),
)
def test_curves_of_probabilities_that_come_often_are_exact_and_ties_count_half(
    rows: list[tuple[list[float], int]], labels: int
) -> None:
    probabilities = np.array([scores for scores, _ in rows], dtype=np.float32)[:, :labels]
    true = np.array([label for _, label in rows]) % labels
    ranking = Ranking(labels)
    ranking.add(probabilities, true)
    areas = [
        roc_auc_score(true == label, probabilities[:, label])
        for label in ((1,) if labels == 2 else range(labels))
        if 0 < (true == label).sum() < len(true)
    ]
    area = ranking.area()
    if len(areas) < (1 if labels == 2 else labels):
        assert area is None and ranking.auc_within() is None
    else:
        assert area is not None and area.value == pytest.approx(np.mean(areas), abs=1e-12)
    precision = ranking.average_precision()
    if labels == 3 or not (true == 1).any():
        assert precision is None
    else:
        expected = average_precision_score(true == 1, probabilities[:, 1])
        assert precision is not None and precision.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sharpness", [0.01, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("shift", [0.0, 6.0, -6.0])
def test_areas_of_two_labels_are_within_one_in_ten_thousand(sharpness: float, shift: float) -> None:
    probabilities, true = drawn(0, 50_000, 2, sharpness, shift)
    metrics = tally_of(probabilities, true).metrics()
    assert metrics is not None
    scores = probabilities[:, 1]
    assert numbers(metrics.auc)[0] == pytest.approx(roc_auc_score(true, scores), abs=1e-4)
    precision = numbers(metrics.average_precision)[0]
    expected = average_precision_score(true, scores)
    assert precision == pytest.approx(expected, abs=2e-3 if sharpness < 0.1 else 1e-4)


@pytest.mark.parametrize(("labels", "rows"), [(10, 20_000), (100, 20_000), (1000, 10_000)])
def test_areas_of_many_labels_are_within_one_in_ten_thousand(labels: int, rows: int) -> None:
    probabilities, true = drawn(1, rows, labels, 0.7)
    true[:labels] = np.arange(labels)
    metrics = tally_of(probabilities, true).metrics()
    assert metrics is not None
    exact = np.mean([one_against_the_rest(probabilities[:, k], true == k) for k in range(labels)])
    assert numbers(metrics.auc)[0] == pytest.approx(exact, abs=1e-4)
    assert (metrics.confusion is None) == (labels == 1000)


def one_against_the_rest(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mann and Whitney's U as a share of its largest value."""
    ordered = np.sort(scores[~positive])
    own = scores[positive]
    below = np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")
    return float(below.mean() / 2 / len(ordered))


@given(st.lists(st.floats(0, 1, width=32), min_size=2), st.sampled_from([2, 100, 1000, 40_000]))
def test_bins_are_in_the_order_of_the_probabilities(values: list[float], labels: int) -> None:
    ranking = Ranking(labels)
    scores = np.sort(np.array([0, *values, 1], dtype=np.float32))
    places = ranking.places(scores)
    last = ranking._all.shape[1] - 1
    assert places[0] == 0 and places[-1] == last
    assert (np.diff(places) >= 0).all()
    # What is in one bin is within a part of a doubling of p, or of 1 - p.
    ratio = 1 + 2.0**-ranking.bits
    for one, other, same in zip(scores, scores[1:], np.diff(places) == 0, strict=False):
        if same and one >= np.finfo(np.float32).tiny:
            tails = (one, other) if other <= 0.5 else (1 - other, 1 - one)
            assert tails[0] == tails[1] or tails[1] <= ratio * tails[0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 200),
    labels=st.sampled_from([2, 3, 201]),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    sharpness=st.sampled_from([0.5, 30.0]),
)
def test_chunks_in_any_order_merged_or_added_are_all_at_once(
    seed: int, rows: int, labels: int, cuts: list[int], sharpness: float
) -> None:
    generator = np.random.default_rng(seed)
    probabilities, true = drawn(seed, rows, labels, sharpness)
    true = np.where(generator.random(rows) < 0.1, generator.integers(-2, 0, rows), true)
    whole = tally_of(probabilities, true)
    order = generator.permutation(rows)
    added, merged = TargetTally(named(labels)), TargetTally(named(labels))
    for start, end in itertools.pairwise([0, *sorted(min(cut, rows) for cut in cuts), rows]):
        part = order[start:end]
        added.add(probabilities[part], true[part])
        merged.merge(tally_of(probabilities[part], true[part]))
    for other in (added, merged):
        assert state(other) == state(whole)
        assert other.metrics() == whole.metrics()
        assert other.calibration() == whole.calibration()


def test_confidences_finer_than_their_unit_are_added_in_any_order_too() -> None:
    probabilities, true = drawn(0, 60, 1000, 0.01)
    one, other = (TargetTally(named(1000)) for _ in range(2))
    for row in range(60):
        one.add(probabilities[row : row + 1], true[row : row + 1])
    other.add(probabilities, true)
    assert one.calibration() == other.calibration()


@pytest.mark.parametrize("labels", [2, 5, 201])
def test_a_tally_written_and_read_is_the_same(labels: int, tmp_path: Path) -> None:
    probabilities, true = drawn(0, 3000, labels)
    true[::10], true[::11] = MISSING, UNKNOWN
    tally = TargetTally(named(labels), 0.3 if labels == 2 else 0.5)
    tally.add(probabilities, true, {"other \ud800": int((true == UNKNOWN).sum())})
    np.savez_compressed(tmp_path / "tally.npz", **tally.to_arrays())
    with np.load(tmp_path / "tally.npz", allow_pickle=False) as arrays:
        again = TargetTally.from_arrays(arrays)
    assert state(again) == state(tally)
    assert again.metrics() == tally.metrics() and again.calibration() == tally.calibration()
    assert (again.unlabelled, again.unknown) == (tally.unlabelled, tally.unknown)
    assert again.unknown_names() == tally.unknown_names() == {"other \ud800": tally.unknown}
    again.merge(tally)
    assert again.rows == 2 * tally.rows


def test_a_tally_of_another_format_is_refused() -> None:
    arrays = TargetTally(named(2)).to_arrays()
    about = json.loads(arrays["about"].tobytes()) | {"format": 2}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with pytest.raises(DataError, match="expected format 1, found 2"):
        TargetTally.from_arrays(arrays)


def test_figures_of_a_trillion_rows_are_those_of_their_thousandth() -> None:
    probabilities, true = drawn(3, 1000, 3)
    tally = tally_of(probabilities, true)
    few = tally.metrics()
    for _ in range(30):
        tally.merge(TargetTally.from_arrays(tally.to_arrays()))
    many = tally.metrics()
    assert few is not None and many is not None and many.rows == 1000 << 30
    assert many.accuracy.value == few.accuracy.value and many.log_loss.value == few.log_loss.value
    assert numbers(many.auc)[0] == pytest.approx(numbers(few.auc)[0], abs=1e-12)
    half = few.log_loss.high - few.log_loss.value
    wanted = half * math.sqrt(999 / (many.rows - 1))
    assert many.log_loss.high - many.log_loss.value == pytest.approx(wanted, rel=1e-3)


def test_the_mean_loss_is_exact_to_the_twelfth_digit() -> None:
    probabilities, true = drawn(4, 20_000, 4, 10.0)
    metrics = tally_of(probabilities, true).metrics()
    assert metrics is not None
    exact = math.fsum(log_losses(probabilities, true)) / len(true)
    assert metrics.log_loss.value == pytest.approx(exact, rel=1e-12)


def test_rows_without_a_label_that_the_model_knows_are_counted_apart() -> None:
    probabilities, true = drawn(5, 300, 3)
    mixed = true.copy()
    mixed[:20], mixed[20:50] = MISSING, UNKNOWN
    probabilities[60:70, 1] = np.nan
    probabilities[:5, 2] = np.inf
    tally = TargetTally(named(3))
    tally.add(probabilities, mixed, {"bird": 20, "fish": 10})
    assert (tally.unlabelled, tally.unknown, tally.undefined, tally.rows) == (20, 30, 10, 240)
    assert tally.unknown_names(1) == {"bird": 20}
    used = np.r_[50:60, 70:300]
    assert tally.metrics() == tally_of(probabilities[used], true[used]).metrics()
    nothing = TargetTally(named(3))
    nothing.add(probabilities[:50], mixed[:50])
    assert nothing.metrics() is None and nothing.calibration() is None


def test_of_very_many_unknown_labels_the_same_are_kept_in_any_order() -> None:
    names = [f"{'x' * 90 if number % 2 else ''}{number:05}" for number in range(5000)]
    counts = {name: 1 + number % 7 for number, name in enumerate(names)}
    tallies = []
    for seed in (0, 1):
        tally = TargetTally(named(2))
        for chunk in np.random.default_rng(seed).permutation(names).reshape(10, -1).tolist():
            one = TargetTally(named(2))
            one.add(*drawn(0, 0, 2), {name: counts[name] for name in chunk})
            tally.merge(one)
        tallies.append(tally)
    assert state(tallies[0])["about"] == state(tallies[1])["about"]
    first = [name for name in sorted(names)[:1000] if counts[name] == 7][:5]
    assert tallies[0].unknown_names() == dict.fromkeys(first, 7)


def test_memory_is_bounded_for_many_labels() -> None:
    for labels in (2, 10, 100, 1000):
        ranking = Ranking(labels)
        assert ranking._all.nbytes + ranking._own.nbytes <= 64 * 2**20
        tally = tally_of(*drawn(0, 100, labels))
        assert sum(array.nbytes for array in tally.to_arrays().values()) < 3 * 2**20


TWO, DIGITS = ("false", "true"), ("0", "1", "2.5")
COLUMNS = [
    (pa.array([0, 1, None, 7], pa.int8()), DIGITS),
    (pa.array([0, 1, None, 7], pa.uint64()), DIGITS),
    (pa.array([0.0, 1.0, math.nan, 7.0, 2.5, None]), DIGITS),
    (pa.array(np.array([0, 1, np.nan, 7, 2.5], np.float16)), DIGITS),
    (pa.array([0, 1, None, 7, 2.5], pa.float32()), DIGITS),
    (pa.array([Decimal("0.00"), Decimal("1.00"), None, Decimal("7.00"), Decimal("2.50")]), DIGITS),
    (pa.array(["0", " 1 ", " ", "7.0", "7", "7", "2.50", "1.0", "n/a", "1e0"]), DIGITS),
    (pa.nulls(2), DIGITS),
    (pa.array(["0", "1", None, "7", "2.5"], pa.large_string()), DIGITS),
    (pa.array(["0", "1", None, "7", "1"]).dictionary_encode(), DIGITS),
    (pa.chunked_array([["0", "1"], ["?", "7"], ["1"]]), DIGITS),
    (
        pa.chunked_array(
            [pa.array(["0", "1"]).dictionary_encode(), pa.array(["?", "7"]).dictionary_encode()]
        ),
        DIGITS,
    ),
    (pa.array([False, True, None]), TWO),
    (pa.array(["FALSE", "True ", "none", "maybe"]), TWO),
]
MEANT = {
    None: MISSING, "nan": MISSING, "": MISSING, "n/a": MISSING, "?": MISSING, "none": MISSING,
    "0": 0, "0.0": 0, "0.00": 0, "1": 1, "1.0": 1, "1.00": 1, "1e0": 1, "2.5": 2, "2.50": 2,
    "7": UNKNOWN, "7.0": UNKNOWN, "7.00": UNKNOWN, "false": 0, "true": 1, "maybe": UNKNOWN,
}  # fmt: skip


@pytest.mark.parametrize(("column", "labels"), COLUMNS)
def test_a_label_of_any_type_is_the_label_of_its_text(
    column: pa.Array | pa.ChunkedArray, labels: tuple[str, ...]
) -> None:
    cells = column.to_pylist()
    found, unknown = true_labels(column, labels)
    wanted = [MEANT[cell if cell is None else str(cell).strip().lower()] for cell in cells]
    assert found.tolist() == wanted and found.dtype == np.int64
    name = "maybe" if labels == TWO else "7"
    assert unknown == ({name: wanted.count(UNKNOWN)} if UNKNOWN in wanted else {})


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(st.text(max_size=3) | st.sampled_from(["1", "1.0", " 1", "True", "true"])),
        st.lists(st.integers(-5, 5)),
        st.lists(st.booleans()),
        st.lists(st.sampled_from([np.float32(0.1), np.float32(2), np.float32(-0.0)])),
    )
)
def test_the_rows_that_were_trained_on_have_the_labels_they_were_trained_with(
    cells: list[Any],
) -> None:
    table = pa.table({"y": pa.array(cells)})
    try:
        expected, labels = read_labels(table, "y")
    except DataError:
        return
    found, unknown = true_labels(table.column("y"), labels)
    assert found.tolist() == expected.tolist() and unknown == {}


def test_a_label_is_the_same_from_a_file_of_single_precision_and_from_text() -> None:
    table = pa.table({"y": pa.array([0.1, 0.2], pa.float32())})
    assert read_labels(table, "y")[1] == ("0.1", "0.2")
    assert true_labels(pa.array(["0.10", "0.2"]), ("0.1", "0.2"))[0].tolist() == [0, 1]


def test_a_class_whose_name_says_missing_or_looks_like_a_number_is_found_by_its_name() -> None:
    labels = ("none", "007", "1.0", "True", "3", "3.0")
    cells = pa.array(["none", " none", "007", "1.0", "1", "True", "true", "3.0", "3", "3.00", ""])
    found, unknown = true_labels(cells, labels)
    assert found.tolist() == [0, 0, 1, 2, 2, 3, 3, 5, 4, 4, MISSING]
    assert unknown == {}
    assert true_labels(pa.array([None, "none"]), labels)[0].tolist() == [MISSING, 0]
    assert true_labels(pa.array(["2"]), ("2.0", "2.00", "4"))[0].tolist() == [UNKNOWN]


def test_numbers_stand_for_the_names_that_the_file_says(tmp_path: Path) -> None:
    feature = {"info": {"features": {"label": {"names": ["cat", "dog", "emu"]}}}}
    schema = pa.schema(
        [("label", pa.int64()), ("other", pa.int64())],
        metadata={"huggingface": json.dumps(feature)},
    )
    table = pa.table({"label": [0, 2, 1, -1, 3, None], "other": [0] * 6}, schema=schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pq.ParquetFile(tmp_path / "rows.parquet") as file:
        batch = next(file.iter_batches())
    names = class_names(batch.schema, "label")
    assert names == ("cat", "dog", "emu") and class_names(batch.schema, "other") is None
    found, unknown = true_labels(batch.column("label"), ("dog", "cat"), names)
    assert found.tolist() == [1, UNKNOWN, 0, MISSING, UNKNOWN, MISSING]
    assert unknown == {"emu": 1, "3": 1}
    assert class_names(pa.schema([("label", pa.int64())]), "label") is None
    with pytest.raises(DataError, match="huggingface metadata is damaged"):
        class_names(schema.with_metadata({"huggingface": "{"}), "label")


@pytest.mark.parametrize("cells", [[b"a"], [[1]], [{"a": 1}]])
def test_a_column_that_holds_no_labels_is_refused(cells: list[Any]) -> None:
    with pytest.raises(DataError, match="expected labels that are texts, numbers or booleans"):
        true_labels(pa.array(cells), TWO)
    with pytest.raises(DataError, match=r"booleans, found timestamp\[us\]"):
        true_labels(pa.array([0], pa.timestamp("us")), TWO)


def test_rows_of_another_world_are_found_worse_in_every_figure() -> None:
    then = tally_of(*drawn(0, 3000, 3)).metrics()
    probabilities, true = drawn(1, 20_000, 3)
    strange = np.random.default_rng(2).random(20_000) < 0.3
    now = tally_of(probabilities, np.where(strange, (true + 1) % 3, true)).metrics()
    assert now is not None and then is not None
    found = compare(now, then)
    assert json.loads(json.dumps(found)) == found
    assert found["decayed"] and found["text"] == "worse than at release: accuracy, AUC, log loss"
    for name, sign in (("accuracy", -1), ("AUC", -1), ("log loss", 1)):
        figure = found["figures"][name]
        assert figure["decayed"] and ": worse (" in figure["text"]
        assert sign * figure["difference"]["value"] > 0
        value = figure["now"]["value"] - figure["then"]["value"]
        assert figure["difference"]["value"] == pytest.approx(value)
    # And the other way round it has become better.
    back = compare(then, now)
    assert not back["decayed"] and back["text"] == "no figure is worse"
    assert all(": better (" in figure["text"] for figure in back["figures"].values())


@pytest.mark.parametrize("labels", [2, 5])
def test_the_same_world_is_found_worse_only_by_chance(labels: int) -> None:
    tallies = [tally_of(*drawn(seed, 600, labels)).metrics() for seed in range(200)]
    found = [compare(*pair) for pair in zip(tallies[::2], tallies[1::2], strict=True)]
    for name in ("accuracy", "AUC", "log loss"):
        # 2.5% of 100 is 2.5; more than 8 come once in a thousand times.
        assert sum(entry["figures"][name]["decayed"] for entry in found) <= 8


def test_a_figure_that_is_not_defined_is_not_compared() -> None:
    probabilities, true = drawn(0, 100, 2)
    then = tally_of(probabilities, true).metrics()
    now = tally_of(probabilities, np.zeros(100, dtype=np.int64)).metrics()
    assert now is not None and then is not None and now.auc is None
    for pair, when in (((now, then), "now"), ((then, now), "at release")):
        figure = compare(*pair)["figures"]["AUC"]
        assert figure["text"] == f"AUC: not compared, as it is not defined {when}"
        assert figure["difference"] is None and not figure["decayed"]
    assert Metrics.model_validate(json.loads(now.model_dump_json())) == now
