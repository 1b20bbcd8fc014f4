"""Statistics of a training part as preprocessing steps, whatever the numbers are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from artifacts.configs import CnnNetwork
from artifacts.errors import DataError
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.preprocess import Preprocess
from artifacts.steps import Encode, Normalize, NumberEncoding, Reorder, Scale
from training.data import Dataset, Part
from training.encoding import preprocessing, quantile_edges, table_encoding
from training.recipe import PixelsConfig

NUMBER = Column(name="n", missing="fill", low=0, high=1, typical=0)
any_float = st.floats(allow_nan=False, allow_infinity=False)
rounded = st.floats(-5, 5).map(lambda value: round(value, 1))


def encode(values: Any, bins: int = 8) -> tuple[Encode, NumberEncoding]:
    raw = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    step = table_encoding(TableInput(columns=(NUMBER,)), raw, bins)
    (entry,) = step.inputs
    assert isinstance(entry, NumberEncoding)
    return step, entry


@settings(deadline=None)
@given(
    values=hnp.arrays(np.float64, st.integers(1, 300), elements=any_float | rounded),
    bins=st.integers(0, 20),
)
def test_edges_rise_from_the_least_to_the_largest_value(values: np.ndarray, bins: int) -> None:
    edges = quantile_edges(values, bins)
    different = np.unique(values)
    if bins == 0 or len(different) == 1:
        assert edges == ()
        return
    assert all(low < high for low, high in itertools.pairwise(edges))
    assert 2 <= len(edges) <= bins + 1 and set(edges) <= set(values)
    assert edges[0] == values.min() and edges[-1] == values.max()
    if len(different) <= bins + 1:
        assert edges == tuple(different)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), bins=st.integers(16, 64), share=st.floats(0, 0.95))
def test_a_value_of_many_rows_leaves_the_bins_to_the_others(
    seed: int, bins: int, share: float
) -> None:
    generator = np.random.default_rng(seed)
    others = generator.normal(size=2000)
    spike = np.full(round(2000 * share / (1 - share)), others[0])
    edges = quantile_edges(generator.permutation([*others, *spike]), bins)
    assert len(edges) - 1 >= 0.8 * bins
    counts = np.histogram(others, edges)[0]
    assert counts.max() <= 2 * 2000 / bins + 2


def test_without_spikes_all_bins_hold_as_many_rows() -> None:
    values = np.random.default_rng(0).lognormal(sigma=3, size=6400)
    counts = np.histogram(values, quantile_edges(values, 64))[0]
    assert len(counts) == 64 and counts.min() >= 99 and counts.max() <= 101


@settings(deadline=None)
@given(
    values=hnp.arrays(
        np.float64, st.integers(1, 40), elements=any_float | rounded | st.just(math.nan)
    ).filter(lambda values: not np.isnan(values).all()),
    bins=st.integers(0, 12),
)
@example(values=np.array([1.7e308, -1.7e308, 1e308, -1e308]), bins=2)
@example(values=np.array([5e-324, 0.0, 1e-323]), bins=2)
def test_any_column_of_numbers_gives_a_finite_step_and_finite_answers(
    values: np.ndarray, bins: int
) -> None:
    step, entry = encode(values, bins)
    assert np.isfinite([entry.fill, entry.center, entry.scale, *entry.edges]).all()
    assert entry.indicator == bool(np.isnan(values).any())
    raw = torch.tensor([*values, math.nan, 1.7e308, -1.7e308, 0.0], dtype=torch.float64)
    assert torch.isfinite(Preprocess((step,), (1,))(raw[:, None])).all()


@pytest.mark.parametrize("size", [1e300, 1.0, 1e-300])
def test_the_scale_is_that_of_the_values_at_every_magnitude(size: float) -> None:
    values = np.random.default_rng(0).normal(size=2001) * size
    _, entry = encode(values)
    assert entry.scale == pytest.approx(size, rel=0.1)
    assert entry.fill == entry.center == np.median(values)


def test_a_column_whose_quarters_are_equal_has_half_its_range_as_scale() -> None:
    assert encode([0.0] * 90 + [4.0] * 10)[1].scale == 2.0
    constant = encode([0.1 + 0.2] * 50 + [0.3] * 50)[1]
    assert constant.scale == 1.0
    assert encode([7.0] * 9)[1].scale == 1.0 and encode([7.0] * 9)[1].edges == ()


def test_categories_are_those_that_training_rows_have() -> None:
    spec = TableInput(
        columns=(
            CategoryColumn(name="c", missing="fill", categories=("a", "b"), typical="a"),
            BooleanColumn(name="b", missing="fill", typical=True),
        )
    )
    # 2.0 is a rare text; nobody of these is "b".
    raw = np.array([[0.0, 1.0], [2.0, 0.0], [math.nan, 1.0], [0.0, 0.0]])
    step = table_encoding(spec, raw, 8)
    assert [entry.values for entry in step.inputs] == [(-1, 0, 2), (0, 1)]
    unseen = torch.tensor([[1.0, math.nan]], dtype=torch.float64)
    assert Preprocess((step,), (2,))(unseen).abs().sum() == 0


def test_the_parts_of_a_date_share_one_indicator() -> None:
    date = DateColumn(
        name="d", missing="fill", parts=("timestamp", "year", "weekday"), low="", high="",
        typical="",
    )  # fmt: skip
    raw = np.array([[1e9, 2001, 3], [math.nan] * 3, [2e9, 2033, 2], [1.5e9, 2017, 4]])
    step = table_encoding(TableInput(columns=(date,)), raw, 4)
    assert [entry.indicator for entry in step.inputs] == [True, False, False]
    assert step.width == 3 * (1 + step.bins) + 1


def pictures(channels: int, value: int = 51) -> Dataset:
    raw = np.full((6, channels, 4, 4), value, dtype=np.uint8)
    part = Part(raw, np.arange(6) % 2)
    spec = ImageInput(channels=channels, height=4, width=4)
    return Dataset("made", spec, ("a", "b"), part, part, part)


def test_pixels_of_one_value_keep_a_scale_of_one() -> None:
    scale, normalize = preprocessing(pictures(3), CnnNetwork())
    assert scale == Scale(factor=1 / 255)
    assert isinstance(normalize, Normalize)
    assert normalize.mean == pytest.approx((0.2,) * 3) and normalize.std == (1.0,) * 3


def test_pixels_are_what_the_recipe_says() -> None:
    mean, std = (104.0, 117.0, 123.0), (1.0, 2.0, 3.0)
    config = PixelsConfig(order="bgr", factor=1.0, mean=mean, std=std)
    steps = preprocessing(pictures(3), CnnNetwork(), config)
    assert steps == (
        Reorder(channels=(2, 1, 0)), Scale(factor=1.0), Normalize(mean=mean, std=std)
    )  # fmt: skip
    raw = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    found = Preprocess(steps, (3, 1, 1))(raw).flatten().tolist()
    assert found == pytest.approx([30 - 104, (20 - 117) / 2, (10 - 123) / 3])


@pytest.mark.parametrize(
    ("channels", "config", "message"),
    [
        (1, {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "mean and std of 1 channels, found 3 and 3"),
        (3, {"mean": (0.5,) * 3, "std": (0.5,)}, "mean and std of 3 channels, found 3 and 1"),
        (1, {"mean": (0.5,), "std": (0.5,), "order": "bgr"}, "bgr is for pictures of 3 channels"),
    ],
)
def test_pixels_of_other_channels_are_refused(
    channels: int, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.pixels: .*{message}"):
        preprocessing(pictures(channels), CnnNetwork(), PixelsConfig(**config))
