"""How far scored rows have moved from the training part."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

from artifacts.bundle import read_manifest
from artifacts.drift import LEAST_SHARE, DriftCounts
from artifacts.errors import DataError
from artifacts.inputs import CategoryColumn, Column, TableInput
from artifacts.predictor import Predictor
from artifacts.profile import MOST_CATEGORIES, Bins, ColumnProfile, column_profiles
from tests.conftest import ROOT
from tests.profiled import COLOUR, DAY, SEEN, SIZE, SPEC, TABLES, UNKNOWN, counted, moved

MANY = CategoryColumn(name="many", categories=tuple(f"c{i:02}" for i in range(100)), typical="c00")


@given(raw=TABLES)
def test_the_training_rows_have_not_moved(raw: np.ndarray) -> None:
    figures = counted(column_profiles(raw, SPEC), SPEC, raw).figures()
    assert list(figures) == ["member", "size", "colour", "seen"]
    for column in figures.values():
        assert column["psi"] < 1e-9
        assert column["verdict"] == "stable"
        assert column["missing"] == pytest.approx(column["missing_in_training"], rel=1e-5)
    assert figures["size"]["outside"] == 0
    unseen = figures["colour"]
    assert unseen["unseen"] == pytest.approx(unseen["unseen_in_training"], rel=1e-5)


@given(train=TABLES, raw=TABLES)
def test_each_cell_is_counted_where_it_belongs(train: np.ndarray, raw: np.ndarray) -> None:
    profile = column_profiles(train, SPEC)
    found = counted(profile, SPEC, raw).to_json()
    for index, (name, place, bins) in enumerate(_values(profile)):
        is_number = name in {"size", "seen"}
        expected = [0] * (len(bins.shares) + (3 if is_number else 1))
        for value in raw[:, index].tolist():
            if math.isnan(value):
                expected[0] += 1
            elif not is_number:
                expected[1 + int(value)] += 1
            elif bins.low is None or value < bins.low:
                expected[1] += 1
            elif value > bins.high:
                expected[-1] += 1
            else:
                expected[2 + sum(value > edge for edge in bins.edges)] += 1
        assert found[name][place] == expected


def _values(profile: tuple[ColumnProfile, ...]) -> list[tuple[str, int, Bins]]:
    return [
        (column.name, place, bins) for column in profile for place, bins in enumerate(column.bins)
    ]


@given(train=TABLES, one=TABLES, two=TABLES)
def test_counts_add_up_and_are_kept_as_json(
    train: np.ndarray, one: np.ndarray, two: np.ndarray
) -> None:
    profile = column_profiles(train, SPEC)
    whole = counted(profile, SPEC, np.concatenate([one, two]))
    merged = counted(profile, SPEC, one)
    merged.merge(counted(profile, SPEC, two))
    written = json.dumps(merged.to_json())
    read = DriftCounts.from_json(profile, SPEC, json.loads(written))
    assert whole.to_json() == merged.to_json() == read.to_json()
    assert whole.figures() == merged.figures() == read.figures()
    assert read.rows == len(one) + len(two)


def test_more_rows_than_are_counted_at_once_are_all_counted() -> None:
    raw = np.random.default_rng(0).normal(size=(100_000, 3))
    spec = TableInput(columns=tuple(SIZE.model_copy(update={"name": name}) for name in "abc"))
    profile = column_profiles(raw, spec)
    counts = counted(profile, spec, raw)
    assert counts.rows == len(raw)
    # Tenths of them, to the row.
    for column in profile:
        assert set(counts.to_json()[column.name][0][2:-1]) == {10_000}


def test_the_index_is_the_one_of_credit_scoring() -> None:
    figures = moved(COLOUR, np.repeat([0, 1], [50, 50]), np.repeat([0, 1], [90, 10]))
    assert figures["psi"] == pytest.approx(0.4 * math.log(0.9 / 0.5) + -0.4 * math.log(0.1 / 0.5))
    # An empty bin counts as half a row, and of many rows as the least share, on either side.
    for rows, least in ((50, 0.5 / 100), (50_000, LEAST_SHARE)):
        train, now = np.repeat([0, 1], rows), np.repeat([0, 2], rows)
        expected = 2 * (0.5 - least) * math.log(0.5 / least)
        assert moved(COLOUR, train, now)["psi"] == pytest.approx(expected)
    # What is rarer than that on both sides is no drift.
    rare = np.repeat([0, 1], [199_998, 2])
    assert moved(COLOUR, rare, np.zeros(200_000))["psi"] < 1e-8


def test_the_index_grows_with_the_shift() -> None:
    generator = np.random.default_rng(1)
    train = generator.normal(size=20_000)
    found = [
        moved(SIZE, train, generator.normal(shift, size=20_000)) for shift in (0, 0.2, 0.4, 0.7, 3)
    ]
    psi = [figures["psi"] for figures in found]
    assert psi == sorted(psi) and psi[0] < 0.005
    # Of two normal distributions it is close to the square of the shift.
    np.testing.assert_allclose(psi[1:4], [0.04, 0.16, 0.49], rtol=0.15)
    verdicts = [figures["verdict"] for figures in found]
    assert verdicts == ["stable", "stable", "moved", "shifted", "shifted"]
    outside = [figures["outside"] for figures in found]
    assert outside[0] < 0.001 and outside[-1] > 0.1


@pytest.mark.parametrize("now", [4.9, 5.1])
def test_a_constant_column_that_changes_has_shifted(now: float) -> None:
    figures = moved(SIZE, np.full(1000, 5.0), np.repeat([5.0, now], [500, 500]))
    assert figures["outside"] == 0.5
    assert figures["verdict"] == "shifted"
    assert moved(SIZE, np.full(1000, 5.0), np.full(1000, 5.0))["psi"] == 0


def test_what_lies_below_a_frequent_lowest_value_is_not_that_value() -> None:
    train = np.concatenate([np.zeros(600), np.arange(400)])
    now = train.copy()
    now[:300] = -1
    figures = moved(SIZE, train, now)
    assert figures["verdict"] == "shifted" and figures["outside"] == 0.3


@pytest.mark.parametrize("column", [SIZE, COLOUR])
def test_values_that_go_missing_or_come_are_drift(column: Column | CategoryColumn) -> None:
    gone, there = np.full(500, np.nan), np.repeat([0.0, 1.0], [250, 250])
    lost = moved(column, there, gone)
    assert (lost["missing"], lost["missing_in_training"], lost["verdict"]) == (1, 0, "shifted")
    came = moved(column, gone, there)
    assert (came["missing"], came["missing_in_training"], came["verdict"]) == (0, 1, "shifted")
    assert moved(column, gone, gone)["psi"] == 0


def test_categories_that_training_did_not_know_are_drift() -> None:
    train = np.repeat([0.0, 1.0, UNKNOWN], [500, 480, 20])
    figures = moved(COLOUR, train, np.repeat([0.0, 1.0, UNKNOWN], [400, 380, 220]))
    assert (figures["unseen"], figures["unseen_in_training"]) == (0.22, 0.02)
    assert figures["verdict"] == "shifted"


def test_a_date_has_moved_as_far_as_its_worst_part() -> None:
    spec = TableInput(columns=(SEEN,))
    train = np.array([[i * DAY, i % 7] for i in range(700)])
    # The same days, but none at a weekend.
    now = train[train[:, 1] < 5]
    figures = counted(column_profiles(train, spec), spec, now).figures()["seen"]
    assert figures["parts"]["timestamp"] < 0.01
    assert figures["psi"] == figures["parts"]["weekday"] > 0.25
    assert figures["verdict"] == "shifted"


def test_a_large_vocabulary_has_a_small_profile() -> None:
    known = 5000
    column = CategoryColumn(
        name="colour", categories=tuple(f"c{i:04}" for i in range(known)), typical="c0000"
    )
    spec = TableInput(columns=(column,))
    generator = np.random.default_rng(2)
    train = np.minimum(generator.zipf(1.5, size=50_000), known).reshape(-1, 1).astype(np.float64)
    profile = column_profiles(train, spec)
    (bins,) = profile[0].bins
    assert len(bins.shares) == MOST_CATEGORIES + 2 and bins.kept[:3] == (1, 2, 3)
    assert sum(bins.shares) == pytest.approx(1, abs=1e-5)
    assert counted(profile, spec, train).figures()["colour"]["psi"] < 1e-6
    # Half of the rows become a frequent category, one that is rare, and one that is not known.
    for value, place in ((3, 1 + 2), (known - 1, 1 + MOST_CATEGORIES), (known, -1)):
        now = train.copy()
        now[::2] = value
        counts = counted(profile, spec, now)
        assert counts.to_json()["colour"][0][place] >= 25_000
        assert counts.figures()["colour"]["verdict"] == "shifted"


@pytest.mark.parametrize("rows", [1, 20, 50, 200, 1000])
@pytest.mark.parametrize("column", [SIZE, MANY])
def test_few_rows_of_the_same_kind_are_not_drift(
    column: Column | CategoryColumn, rows: int
) -> None:
    generator = np.random.default_rng(3)

    def draw(rows: int) -> np.ndarray:
        if column is SIZE:
            return generator.normal(size=rows)
        return np.minimum(generator.zipf(1.5, size=rows), 100) - 1.0

    train = draw(2000)
    verdicts = [moved(column, train, draw(rows))["verdict"] for _ in range(100)]
    assert verdicts.count("stable") >= 98


def test_few_rows_of_another_kind_are_drift() -> None:
    generator = np.random.default_rng(4)
    train = generator.normal(size=2000)
    verdicts = [moved(SIZE, train, generator.normal(2, size=20))["verdict"] for _ in range(100)]
    assert verdicts.count("shifted") >= 95
    many = np.minimum(generator.zipf(1.5, size=2000), 100) - 1.0
    assert moved(MANY, many, np.full(20, 50.0))["verdict"] == "shifted"


def test_nothing_counted_and_nothing_known_give_no_figures(digits: Predictor) -> None:
    raw = np.zeros((1, 5))
    assert DriftCounts(column_profiles(raw, SPEC), SPEC).figures() == {}
    # Pictures, and bundles from before there were profiles.
    released = read_manifest(ROOT / "tests/fixtures/released/schema-1-mlp")
    for manifest in (digits.manifest, released):
        assert manifest.profile == ()
        counts = DriftCounts(manifest.profile, manifest.input)
        counts.add(np.zeros((2, *manifest.input.shape)))
        assert counts.figures() == {} and counts.to_json() == {} and counts.rows == 0
    assert DriftCounts((), SPEC).figures() == {}


def test_a_record_of_other_columns_or_damaged_is_refused() -> None:
    raw = np.array([[1.0, 0.5, 2.0, 0.0, 3.0]] * 4)
    profile = column_profiles(raw, SPEC)
    record = counted(profile, SPEC, raw).to_json()
    short = {**record, "member": [record["member"][0][:-1]]}
    other = {key: value for key, value in record.items() if key != "size"}
    negative = {**record, "member": [[-1, 1, 4]]}
    uneven = {**record, "member": [[0, 1, 4]]}
    for wrong, message in (
        ([], "expected counts of the columns .* found list"),
        (other, r"expected counts of the columns .* found \['member', 'colour', 'seen'\]"),
        (short, r"column 'member': expected lists of \[3\] counts, found \[\[0, 0\]\]"),
        ({**record, "seen": [record["seen"][0]]}, "column 'seen': expected"),
        ({**record, "member": None}, "column 'member': expected .* found None"),
        (negative, "column 'member': expected"),
        (uneven, r"expected as many rows in each column, found \[4, 5\]"),
    ):
        with pytest.raises(DataError, match=message):
            DriftCounts.from_json(profile, SPEC, wrong)
    another = counted(column_profiles(raw[:1], SPEC), SPEC, raw)
    with pytest.raises(DataError, match="expected counts against the same profile"):
        another.merge(counted(profile, SPEC, raw))
