"""Promise 2: one answer for a row whatever batch it is in, and as precise as its cells."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.backends import open_onnx
from artifacts.configs import LinearNetwork, MlpNetwork
from artifacts.manifest import ONNX
from artifacts.networks import DeployedClassifier
from artifacts.parity import one_answer, run_in_batches
from artifacts.steps import Normalize
from tests.models import IMAGE, IMAGE_STEPS, TABLE, random_model, rows_of
from training.export import export_model


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    activation=st.sampled_from(["relu", "leaky_relu", "gelu", "silu", "tanh"]),
    classes=st.integers(2, 17),
    batch_norm=st.booleans(),
    sizes=st.lists(st.integers(1, 200), min_size=2, max_size=4, unique=True),
)
def test_a_row_has_the_same_bits_in_every_batch(
    hidden: list[int], activation: str, classes: int, batch_norm: bool, sizes: list[int]
) -> None:
    """Promise 2, for every network that a recipe can describe, in ONNX Runtime on CPU."""
    network = MlpNetwork(hidden=tuple(hidden), activation=activation, batch_norm=batch_norm)
    model = random_model(IMAGE, IMAGE_STEPS, network, classes)
    onnx_model = open_onnx(export_onnx_alone(model), "cpu")
    raw = rows_of(IMAGE, 200)
    assert one_answer(onnx_model, raw, tuple(sizes)) is None
    shuffled = np.random.default_rng(1).permutation(200)
    first = run_in_batches(onnx_model, raw, sizes[0])[1]
    second = run_in_batches(onnx_model, raw[shuffled], sizes[1])[1]
    np.testing.assert_array_equal(first[shuffled], second)


def export_onnx_alone(model: DeployedClassifier) -> bytes:
    return export_model(model, rows_of(IMAGE, 4), "images").files[ONNX]


def test_large_cells_keep_their_precision() -> None:
    """Cells are float64 until they are standardised: in float32, 1e9 + 1 is 1e9."""
    model = random_model(TABLE, (Normalize(mean=(0, 1e9, 0), std=(1, 1, 1)),), LinearNetwork(), 2)
    run = open_onnx(export_model(model, rows_of(TABLE, 4), "cells").files[ONNX], "cpu")
    logits, _ = run(np.array([[0, 1e9, 0], [0, 1e9 + 1, 0]], dtype=np.float64))
    assert abs(logits[0, 1] - logits[1, 1]) > 1e-3
