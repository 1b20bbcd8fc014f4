"""What only a CUDA device can show; run by hand there: pytest -m gpu -n 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts.predictor import Predictor, open_bundle

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "export", "eager"])
def test_every_backend_agrees_on_cuda(use_store: Path, digits: Predictor, backend: str) -> None:
    predictor = open_bundle("digits", backend=backend, device="cuda")
    assert predictor.device == "cuda"
    logits, probabilities = predictor.run(digits.golden.raw)
    allowed = 1e-3 + 1e-3 * np.abs(digits.golden.logits)
    assert (np.abs(logits - digits.golden.logits) <= allowed).all()
    np.testing.assert_allclose(probabilities, digits.golden.probabilities, atol=1e-3)


def test_training_on_cuda_passes_the_gate_on_cpu(tmp_path: Path) -> None:
    from rich.console import Console

    from training.recipe import load_recipe
    from training.run import run

    recipe = load_recipe("digits", ["train.epochs=10", "train.device=cuda"])
    bundle = run(recipe, tmp_path, promote=True, console=Console(quiet=True))
    assert bundle.manifest.recipe["train"]["device"] == "cuda"
    assert bundle.manifest.metrics["test"].accuracy.value > 0.9
