"""What the columns of the training part looked like, as a table model's manifest says it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.inputs import TableInput
from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from artifacts.profile import Bins, ColumnProfile, check_profile, column_profiles
from tests.profiled import COLOUR, SIZE, SPEC, TABLES, counted


@given(raw=TABLES)
def test_shares_sum_to_one(raw: np.ndarray) -> None:
    for column in column_profiles(raw, SPEC):
        for bins in column.bins:
            assert sum(bins.shares) + column.missing == pytest.approx(1, abs=1e-5)
            assert sum(share > 0 for share in bins.shares) <= 10


@given(raw=TABLES, seed=st.integers(0, 99))
def test_the_order_of_the_rows_changes_no_byte_of_a_profile(raw: np.ndarray, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(raw)
    written = [column.model_dump_json() for column in column_profiles(raw, SPEC)]
    assert written == [column.model_dump_json() for column in column_profiles(shuffled, SPEC)]
    read = tuple(ColumnProfile.model_validate_json(text) for text in written)
    assert read == column_profiles(raw, SPEC)


def test_a_profile_of_many_columns_is_small() -> None:
    raw = np.random.default_rng(4).normal(size=(1000, 300))
    columns = tuple(SIZE.model_copy(update={"name": f"column {i}"}) for i in range(300))
    profile = column_profiles(raw, TableInput(columns=columns))
    text = json.dumps([column.model_dump(mode="json") for column in profile], indent=2)
    assert len(text) < 300 * 1024


def test_a_trained_table_knows_its_columns(cancer: Predictor) -> None:
    manifest = cancer.manifest
    assert [column.name for column in manifest.profile] == [
        column.name for column in manifest.input.columns
    ]
    for column, profile in zip(manifest.input.columns, manifest.profile, strict=True):
        assert profile.rows == manifest.data.rows["train"]
        assert (profile.bins[0].low, profile.bins[0].high) == (column.low, column.high)
    golden = cancer.golden.raw
    figures = counted(manifest.profile, manifest.input, golden).figures()
    assert all(column["verdict"] == "stable" for column in figures.values())
    assert np.mean([column["psi"] for column in figures.values()]) < 0.15
    # In another unit they are not the same column.
    figures = counted(manifest.profile, manifest.input, golden * 10).figures()
    assert all(column["verdict"] == "shifted" for column in figures.values())


def test_a_profile_of_other_columns_is_refused(cancer: Predictor) -> None:
    content = cancer.manifest.model_dump(mode="json")
    first = content["profile"][0]
    picture = {"kind": "image", "channels": 1, "height": 8, "width": 8}
    of_a_picture = {"input": picture, "preprocessing": []}
    shares = [{**first["bins"][0], "shares": [1.0]}]
    half = [{**first["bins"][0], "high": None}]
    backwards = [{**first["bins"][0], "edges": first["bins"][0]["edges"][::-1]}]
    for change, message in (
        ({"profile": content["profile"][1:]}, "profile: expected the columns"),
        (of_a_picture, "profile: it is for table input"),
        ({"profile": [{**first, "bins": shares}, *content["profile"][1:]]}, "found .1."),
        ({"profile": [{**first, "bins": half}, *content["profile"][1:]]}, "both low and high"),
        ({"profile": [{**first, "bins": backwards}, *content["profile"][1:]]}, "ascending edges"),
        ({"profile": [{**first, "bins": first["bins"] * 2}, *content["profile"][1:]]}, "1 distr"),
    ):
        with pytest.raises(ValueError, match=message):
            Manifest.model_validate({**content, **change})


@pytest.mark.parametrize("kept", [(0, 3), (0, 1, 2)])
def test_a_profile_keeps_only_categories_that_there_are(kept: tuple[int, ...]) -> None:
    spec = TableInput(columns=(COLOUR,))
    bins = Bins(kept=kept, shares=(0.2,) * (len(kept) + 2))
    profile = ColumnProfile(name=COLOUR.name, rows=10, missing=0, bins=(bins,))
    with pytest.raises(ValueError, match="column 'colour': kept: expected some of its indices"):
        check_profile((profile,), spec)
