"""Models for looking at their page: a table of every type of column, and hostile names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from artifacts.bundle import Golden
from artifacts.cells import encode_columns
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, TableInput
from artifacts.predictor import Predictor

BREAKING = "</script><img src=x onerror=alert(1)> & \"quoted\" 'too'"
LONG = "Überlängenetikettenbezeichnung 顧客は解約する可能性があります " * 3

_MIXED = TableInput(
    columns=(
        Column(name="age", low=18, high=90, typical=37.0),
        Column(name="income <b>net</b>", missing="fill", low=0, high=1e5, typical=2e4),
        BooleanColumn(name="member", missing="fill", typical=True),
        CategoryColumn(name="city", categories=("Bonn", "東京", "<i>"), typical="Bonn"),
        CategoryColumn(
            name="code",
            missing="fill",
            categories=tuple(f"code {number}" for number in range(90)),
            typical="code 1",
        ),
        DateColumn(
            name="since", missing="fill", parts=("timestamp", "weekday"),
            low="2020-01-01", high="2024-12-31", typical="2022-05-01",
        ),
        DateColumn(
            name="seen", missing="fill", parts=("timestamp", "hour"),
            low="2024-01-01T00:00:00", high="2024-12-31T23:59:59", typical="2024-05-01T12:30:00",
        ),
    )
)  # fmt: skip
_MIXED_ROWS = [
    [30, 51.5, 19, 44],
    [100.0, None, 90000, 1e5],
    [True, False, None, True],
    ["Bonn", "東京", "<i>", "somewhere else"],
    ["code 1", None, "code 89", "code 4"],
    ["2020-02-29", None, "2024-12-31", "2022-01-01"],
    ["2024-05-01T12:30:00", "2024-05-02T12:30:01.123456", None, "2024-01-01"],
]


def linear(predictor: Predictor, spec: TableInput, labels: tuple[str, ...], raw: np.ndarray):
    """The predictor of a linear model with these columns and labels, of these golden rows."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(raw.shape[1], len(labels)))

    def model(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = np.nan_to_num(rows) / (1 + np.abs(np.nan_to_num(rows)))
        logits = (scaled @ weights).astype(np.float32)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits, exponents / exponents.sum(axis=1, keepdims=True)

    logits, probabilities = model(raw)
    golden = Golden(raw, logits, probabilities, probabilities.argmax(axis=1))
    task = "binary" if len(labels) == 2 else "multiclass"
    manifest = predictor.manifest.model_copy(
        update={"input": spec, "labels": labels, "task": task, "profile": ()}
    )
    bundle = replace(predictor.bundle, manifest=manifest)
    return replace(predictor, bundle=bundle, golden=golden, model=model)


def mixed(predictor: Predictor) -> Predictor:
    """Every type of column; three labels, of which one would be markup, and one is long."""
    raw, bad = encode_columns(_MIXED_ROWS, _MIXED)
    assert not bad
    return linear(predictor, _MIXED, ("stays", BREAKING, LONG), raw)


def wide(predictor: Predictor) -> Predictor:
    """300 columns and 100 labels."""
    numbers = [Column(name=f"sensor {n}", low=-1, high=1, typical=0) for n in range(280)]
    states = [
        CategoryColumn(name=f"state {n} {BREAKING}", categories=("on", "off"), typical="on")
        for n in range(20)
    ]
    spec = TableInput(columns=(*numbers, *states))
    generator = np.random.default_rng(1)
    raw = np.concatenate(
        [generator.normal(size=(40, 280)), generator.integers(0, 2, (40, 20))], axis=1
    )
    labels = tuple(f"{BREAKING if n % 2 else LONG} {n}" for n in range(100))
    return linear(predictor, spec, labels, raw)
