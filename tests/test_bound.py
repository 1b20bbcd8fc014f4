"""Bound sessions, with their buffers on the CPU: what CUDA does with graphs is for `-m gpu`."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts.backends import open_backend
from artifacts.bound import LARGEST, BoundSession, faster
from artifacts.manifest import ONNX
from artifacts.predictor import Predictor


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_a_batch_that_is_filled_up_has_the_plain_sessions_bits(
    name: str, request: pytest.FixtureRequest
) -> None:
    import onnxruntime

    predictor: Predictor = request.getfixturevalue(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(predictor.bundle.read(ONNX), options)
    bound = BoundSession(session, "cpu")
    raw = predictor.golden.raw
    answers = [(rows, *bound(raw[:rows])) for rows in (1, 2, 3, 7, 8, 33, LARGEST, 5, 1)]
    for rows, logits, probabilities in answers:
        expected = predictor.model(raw[:rows])
        np.testing.assert_array_equal(logits, expected[0])
        np.testing.assert_array_equal(probabilities, expected[1])


def test_for_each_size_the_faster_one_answers() -> None:
    import time

    called: list[str] = []

    def run_of(name: str, slow_above: int):
        def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            called.append(name)
            time.sleep(0.003 if len(raw) > slow_above else 0)
            return raw, raw

        return run

    chosen = faster(run_of("plain", 0), run_of("bound", 8), np.zeros((1, 2)))
    for rows, expected in ((1, "bound"), (8, "bound"), (LARGEST + 1, "plain")):
        called.clear()
        chosen(np.zeros((rows, 2)))
        assert called == [expected]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_graphs_on_cuda_answer_within_the_tolerance(
    name: str, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    model = open_backend(predictor.bundle, "onnx", "cuda", 1)
    for rows in (1, 2, 3, 8, 33, LARGEST, 100):
        raw = predictor.golden.raw[:rows]
        np.testing.assert_allclose(model(raw)[0], predictor.model(raw)[0], rtol=1e-3, atol=1e-3)
