"""What only a CUDA device can show; run by hand there: pytest -m gpu -n 0."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.bundle import Bundle
from artifacts.predictor import Predictor, open_bundle
from training.recipe import Recipe

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


@pytest.mark.parametrize("options", [[], ["train.precision=float16"], ["train.optimizer=muon"]])
def test_a_run_that_is_stopped_on_cuda_goes_on_there(options: list[str], tmp_path: Path) -> None:
    from rich.console import Console

    import training.fit as loop
    from training.interrupts import Interrupted
    from training.recipe import load_recipe
    from training.run import run

    overrides = ["train.epochs=6", "train.patience=0", "train.device=cuda", *options]
    recipe = load_recipe("digits", overrides)
    quiet = Console(quiet=True)
    whole = run(recipe, tmp_path / "whole", promote=False, console=quiet)
    evaluate, calls = loop.evaluate, iter(range(100))

    def stop_in_the_third_epoch(*arguments: Any) -> tuple[float, float]:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", stop_in_the_third_epoch)
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "stopped", promote=False, console=quiet)
    resumed = run(recipe, tmp_path / "stopped", promote=False, console=quiet, resume=True)
    for ours, theirs in zip(resumed.manifest.history, whole.manifest.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.02)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=0.05)


def test_streamed_pictures_train_on_cuda_as_those_in_memory(tmp_path: Path) -> None:
    from tests.killing import STREAMED, pictures
    from training.recipe import load_recipe

    pictures(tmp_path / "pictures")
    losses = []
    for memory_mb in (1, 1000):
        overrides = [*STREAMED, f"data.memory_mb={memory_mb}", "train.device=cuda"]
        recipe = load_recipe("images", overrides, data=str(tmp_path / "pictures"))
        store = tmp_path / str(memory_mb)
        bundle = run_quietly(recipe, store)
        losses.append([record.train_loss for record in bundle.manifest.history])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def run_quietly(recipe: Recipe, store: Path) -> Bundle:
    from rich.console import Console

    from training.run import run

    bundle = run(recipe, store, promote=False, console=Console(quiet=True))
    assert bundle is not None
    return bundle
