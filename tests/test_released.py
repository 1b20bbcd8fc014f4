"""Bundles released by every schema version so far, to be opened for ever.

A fixture is never made again: when this fails, the code has closed what users have released.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts.example import example_instance
from artifacts.manifest import BUNDLE_FILES, EVIDENCE, content_sha256
from artifacts.pixels import encode_png
from artifacts.predictor import open_bundle
from serving.openapi import openapi_document
from serving.wire import RequestDecoder

RELEASED = sorted((Path(__file__).parent / "fixtures" / "released").iterdir())


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
@pytest.mark.parametrize("backend", ["onnx", "torchscript", "export", "eager"])
def test_a_released_bundle_still_answers_as_it_did(path: Path, backend: str) -> None:
    predictor = open_bundle(str(path), backend=backend, device="cpu")
    assert predictor.checked.rows == len(predictor.golden.raw) > 50
    assert predictor.checked.max_abs_diff < 1e-4
    answer = predictor.predict(predictor.golden.raw)
    assert (answer.index == predictor.golden.probabilities.argmax(axis=1)).all()
    # Its golden rows are its whole test part, so the manifest's figure must come out again.
    figures = predictor.manifest.metrics["test"]
    assert figures.rows == len(predictor.golden.raw)
    assert (answer.index == predictor.golden.labels).mean() == figures.accuracy.value


def test_the_first_released_bundle_is_read_whole() -> None:
    path = RELEASED[0]
    assert path.name == "schema-1-mlp"
    predictor = open_bundle(str(path), device="cpu")
    manifest = predictor.manifest
    assert manifest.reference == "released-fixture@d83c415b47ba"
    assert set(manifest.files) == set(BUNDLE_FILES) - {EVIDENCE}
    assert (manifest.task, manifest.labels) == ("multiclass", tuple("0123456789"))
    assert manifest.network.kind == "mlp" and manifest.network.hidden == (8,)
    assert manifest.recipe["train"]["epochs"] == 20
    assert manifest.recipe["train"]["device"] == "cpu"
    assert manifest.recipe["train"]["threads"] == 1
    # It is served, too: pictures in, the same pixels to the model.
    decoder = RequestDecoder(manifest, max_rows=10, max_pixels=10**6)
    instance = example_instance(manifest, predictor.golden)
    request = decoder.decode(f'{{"instances": [{{"b64": "{instance["b64"]}"}}]}}'.encode())
    np.testing.assert_array_equal(request.raw[0], predictor.golden.raw[0])
    answer = predictor.predict([encode_png(predictor.golden.raw[0])])
    np.testing.assert_array_equal(answer.logits, predictor.run(predictor.golden.raw[:1])[0])
    assert openapi_document(manifest, predictor.golden)["info"]["title"] == manifest.reference


def test_the_content_hash_is_of_the_json_as_it_stands() -> None:
    content = {"b": 1.5, "a": ["é"], "version": "x", "created": "y", "commit": None}
    # sha256 of {"a":["\u00e9"],"b":1.5}: how it is computed can never change.
    expected = "f4038eecfd227ba1c7f99c78c62cab6294d4a868767689049f0e0a3fa172e733"
    assert content_sha256(content) == expected
