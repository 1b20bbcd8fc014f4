"""The step that encodes tables, against another implementation of what its description says."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from artifacts.preprocess import Preprocess
from artifacts.steps import CategoryEncoding, Encode, NumberEncoding

TINY = float(np.finfo(np.float64).tiny)
EXTREMES = [0.0, -0.0, 1e308, -1e308, np.finfo(np.float64).max, 5e-324, -TINY, 1e-310, 1e30, -1e30]
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def encodings(draw: st.DrawFn) -> NumberEncoding | CategoryEncoding:
    if draw(st.booleans()):
        values = draw(st.lists(st.integers(-1, 5), min_size=1, max_size=5, unique=True))
        return CategoryEncoding(values=tuple(values))
    edges = draw(
        st.lists(st.integers(-50, 50), max_size=5, unique=True).filter(lambda e: len(e) != 1)
    )
    return NumberEncoding(
        fill=draw(finite),
        center=draw(finite),
        scale=draw(st.floats(1e-6, 1e6)),
        edges=tuple(sorted(edge / 7 for edge in edges)),
        indicator=draw(st.booleans()),
    )


def expected_row(step: Encode, row: list[float]) -> np.ndarray:
    """One row, as the docstrings of `artifacts.steps` say it, in long double."""
    scaled, bins, indicators, categories = [], [], [], []
    for entry, value in zip(step.inputs, row, strict=True):
        missing = np.isnan(value)
        if isinstance(entry, CategoryEncoding):
            index = -1 if missing else value
            categories += [float(index == wanted) for wanted in entry.values]
            continue
        x = np.longdouble(entry.fill if missing else value)
        z = (x - np.longdouble(entry.center)) / np.longdouble(entry.scale)
        scaled.append(z / np.sqrt(1 + (z / step.limit) ** 2))
        own = []
        for low, high in zip(entry.edges[:-1], entry.edges[1:], strict=True):
            through = (x - np.longdouble(low)) / (np.longdouble(high) - np.longdouble(low))
            own.append(min(max(through, 0), 1))
        bins += own + [0] * (step.bins - len(own))
        if entry.indicator:
            indicators.append(float(missing))
    return np.array([*scaled, *bins, *indicators, *categories], dtype=np.float64)


@given(
    inputs=st.lists(encodings(), min_size=1, max_size=5),
    limit=st.floats(0.5, 10),
    data=st.data(),
)
def test_a_table_is_encoded_as_its_description_says(
    inputs: list[NumberEncoding | CategoryEncoding], limit: float, data: st.DataObject
) -> None:
    step = Encode(limit=limit, inputs=tuple(inputs))
    cell = st.sampled_from(EXTREMES) | finite | st.integers(0, 7).map(float) | st.just(float("nan"))
    row = st.lists(cell, min_size=len(inputs), max_size=len(inputs))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    raw = torch.tensor(rows, dtype=torch.float64)
    encoded = Preprocess((step,), (len(inputs),))(raw)
    assert encoded.dtype == torch.float32 and encoded.shape == (len(rows), step.width)
    found = encoded.numpy().astype(np.float64)
    assert np.isfinite(found).all()
    expected = np.array([expected_row(step, row) for row in rows])
    # float32 at the end; wild numbers are cut at a million deviations first.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    at = step.width - sum(len(e.values) for e in inputs if isinstance(e, CategoryEncoding))
    np.testing.assert_array_equal(found[:, at:], expected[:, at:])


def test_missing_and_unseen_categories_have_their_own_rows() -> None:
    encode = Preprocess((Encode(inputs=(CategoryEncoding(values=(-1, 0, 1)),)),), (1,))
    raw = torch.tensor([[float("nan")], [0.0], [1.0], [2.0]], dtype=torch.float64)
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert encode(raw).tolist() == expected
