"""Reading a service's answers."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np

from artifacts.predictor import Predictor
from tests.conftest import Server

Serve = Callable[[str], Server]


def probabilities_in(response: httpx.Response, predictor: Predictor) -> np.ndarray:
    """The answer's probabilities as float32, which a double written out in full gives back."""
    assert response.status_code == 200, response.text
    labels = predictor.manifest.labels
    rows = [
        [prediction["probabilities"][label] for label in labels]
        for prediction in response.json()["predictions"]
    ]
    doubles = np.array(rows, dtype=np.float64)
    singles = doubles.astype(np.float32)
    np.testing.assert_array_equal(singles.astype(np.float64), doubles)
    return singles


def rows_of(predictor: Predictor, raw: np.ndarray) -> list[dict[str, float]]:
    names = [column.name for column in predictor.manifest.input.columns]
    return [dict(zip(names, row, strict=True)) for row in raw.tolist()]
