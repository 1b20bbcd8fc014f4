"""Promise 1: no format is released that does not answer as the eager model does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from artifacts.backends import open_export, open_onnx, open_torchscript, run_module
from artifacts.bundle import Bundle
from artifacts.configs import (
    CnnNetwork,
    LinearNetwork,
    MlpNetwork,
    ResnetNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.errors import BundleError, ParityError
from artifacts.manifest import ONNX, STATE_DICT
from artifacts.networks import DeployedClassifier
from artifacts.parity import compare
from artifacts.predictor import Predictor
from artifacts.vetting import ALLOWED_OPERATORS
from tests.models import (
    BGR_STEPS,
    IMAGE,
    IMAGE_STEPS,
    MIXED,
    MIXED_STEPS,
    ODD_PICTURE,
    PHOTO,
    PICTURE,
    PICTURE_STEPS,
    TABLE,
    TABLE_STEPS,
    quiet,
    random_model,
    rows_of,
    small_export,
)
from training.export import export_model
from training.gate import edge_inputs, open_formats, parity_gate, summary

CASES = [
    (IMAGE, IMAGE_STEPS, MlpNetwork(hidden=(33, 7)), 10),
    (IMAGE, IMAGE_STEPS, LinearNetwork(), 3),
    (IMAGE, IMAGE_STEPS, MlpNetwork(hidden=(16,), activation="gelu", batch_norm=False), 2),
    (TABLE, TABLE_STEPS, MlpNetwork(hidden=(20, 9), activation="silu"), 2),
    (TABLE, TABLE_STEPS, MlpNetwork(hidden=(12,), activation="tanh", dropout=0.0), 4),
    (TABLE, TABLE_STEPS, LinearNetwork(), 2),
    (MIXED, MIXED_STEPS, TableNetwork(hidden=(24, 17), members=5), 3),
    (MIXED, MIXED_STEPS, TableNetwork(hidden=(9,), members=3, activation="gelu"), 2),
    (PICTURE, PICTURE_STEPS, CnnNetwork(channels=(5, 8), depth=1), 4),
    (PICTURE, PICTURE_STEPS, CnnNetwork(channels=(6,), pooling="max", activation="silu"), 2),
    (ODD_PICTURE, PICTURE_STEPS, CnnNetwork(channels=(5,), depth=1), 4),
    (PICTURE, PICTURE_STEPS, ResnetNetwork(channels=(4, 6, 9), pairs=(1, 1)), 3),
    (PHOTO, BGR_STEPS, TorchvisionNetwork(kind="torchvision:squeezenet1_1"), 2),
    (PHOTO, BGR_STEPS, TorchvisionNetwork(kind="torchvision:resnet18"), 3),
]


@pytest.mark.parametrize(("spec", "steps", "network", "classes"), CASES)
def test_every_kind_of_model_passes_the_gate_in_all_formats(
    spec, steps, network, classes: int
) -> None:
    model = random_model(spec, steps, network, classes)
    name = "images" if spec.kind == "image" else "cells"
    exported = export_model(model, rows_of(spec, 16), name)
    # Of torchvision's networks a row is a hundredth of a second.
    count, largest = (40, 32) if spec is PHOTO else (150, 100)
    held_out = rows_of(spec, count, seed=1)
    formats = open_formats(exported.files)
    report = parity_gate(run_module(model, "cpu"), formats, [held_out], spec, largest, quiet)
    assert set(report.formats) == {"model.onnx", "model.ts", "model.pt2"}
    for by_size in report.formats.values():
        assert list(by_size) == ["1", "2", "7", "64", str(largest)]
        assert all(entry.rows == count + 64 for entry in by_size.values())
    assert summary(report)["model.onnx"].rows == 5 * (count + 64)
    opened = onnx.load_from_string(exported.files[ONNX])
    assert [entry.version for entry in opened.opset_import] == [exported.onnx_opset]
    assert [value.name for value in opened.graph.input] == [name]
    assert opened.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in opened.graph.output] == ["logits", "probabilities"]


def gated(files: dict[str, bytes], model: DeployedClassifier) -> None:
    parity_gate(
        run_module(model, "cpu"), open_formats(files), [rows_of(IMAGE, 70)], IMAGE, 64, quiet
    )


def test_a_format_that_answers_differently_is_named_with_row_and_values() -> None:
    model, good = small_export(MlpNetwork(hidden=(8,)))
    gated(good, model)
    other = random_model(IMAGE, IMAGE_STEPS, MlpNetwork(hidden=(8,)), 3, seed=1)
    wrong = export_model(other, rows_of(IMAGE, 4), "images").files
    for name in ("model.onnx", "model.ts", "model.pt2"):
        with pytest.raises(
            ParityError, match=rf"^{name} differs .* batch size 1: held-out row 0: expected"
        ):
            gated({**good, name: wrong[name]}, model)


def test_one_weight_off_by_a_hundredth_is_caught() -> None:
    model, files = small_export(MlpNetwork(hidden=(8,), batch_norm=False))
    proto = onnx.load_from_string(files[ONNX])
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [3])
    changed = numpy_helper.to_array(bias) + np.array([0, 0.01, 0], dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), bias.name))
    with pytest.raises(ParityError, match=r"model\.onnx differs"):
        gated({**files, ONNX: proto.SerializeToString()}, model)


def test_a_format_that_is_wrong_at_one_batch_size_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, files = small_export(MlpNetwork(hidden=(8,)))

    def open_skewed(payload: bytes, device: str):
        right = open_torchscript(payload, device)

        def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, probabilities = right(raw)
            return logits + (0.1 if len(raw) == 7 else 0.0), probabilities

        return run

    monkeypatch.setattr("training.gate.open_torchscript", open_skewed)
    with pytest.raises(ParityError, match=r"model\.ts differs from eager at batch size 7"):
        gated(files, model)


@pytest.mark.parametrize(
    ("skew", "when", "message"),
    [
        (0.1, lambda raw: (raw == 255).all(), r"model\.onnx differs from eager"),
        # Within the tolerance, but not the same bits.
        (
            1e-5,
            lambda raw: len(raw) == 512,
            r"answers depend on the batch: .* batch sizes 512, at 1",
        ),
    ],
)
def test_edge_inputs_and_full_batches_are_compared_in_every_check(
    monkeypatch: pytest.MonkeyPatch, skew: float, when: Callable, message: str
) -> None:
    model, files = small_export(LinearNetwork())

    def open_skewed(payload: bytes, device: str):
        right = open_onnx(payload, device)

        def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, probabilities = right(raw)
            return logits + np.float32(skew if when(raw) else 0.0), probabilities

        return run

    monkeypatch.setattr("training.gate.open_onnx", open_skewed)
    with pytest.raises(ParityError, match=message):
        parity_gate(
            run_module(model, "cpu"), open_formats(files), [rows_of(IMAGE, 9)], IMAGE, 512, quiet
        )


def test_the_largest_batch_is_full_however_few_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, files = small_export(LinearNetwork())
    seen: set[int] = set()

    def open_watched(payload: bytes, device: str):
        right = open_onnx(payload, device)

        def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            seen.add(len(raw))
            return right(raw)

        return run

    monkeypatch.setattr("training.gate.open_onnx", open_watched)
    report = parity_gate(
        run_module(model, "cpu"), open_formats(files), [rows_of(IMAGE, 9)], IMAGE, 512, quiet
    )
    assert {1, 2, 7, 64, 512} <= seen
    assert report.formats["model.onnx"]["512"].rows == 9 + 512


def test_an_operator_that_no_network_of_ours_needs_is_refused() -> None:
    model = random_model(IMAGE, IMAGE_STEPS, MlpNetwork(hidden=(8,)), 3)
    model.network[3] = nn.Mish()
    files = export_model(model, rows_of(IMAGE, 4), "images").files
    for name, opener in (("model.ts", open_torchscript), ("model.pt2", open_export)):
        with pytest.raises(BundleError, match=rf"{name}: cannot load it: it holds .*mish"):
            opener(files[name], "cpu")


def test_an_operation_whose_bits_depend_on_the_batch_is_not_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("artifacts.vetting.ALLOWED_OPERATORS", {*ALLOWED_OPERATORS, "mish"})
    model = random_model(IMAGE, IMAGE_STEPS, MlpNetwork(hidden=(33, 20)), 10)
    for index, layer in enumerate(model.network):
        if isinstance(layer, nn.ReLU):
            model.network[index] = nn.Mish()
    files = export_model(model, rows_of(IMAGE, 4), "images").files
    with pytest.raises(
        ParityError, match=r"model\.onnx: answers depend on the batch: held-out row \d+"
    ):
        parity_gate(
            run_module(model, "cpu"), open_formats(files), [rows_of(IMAGE, 500)], IMAGE, 256, quiet
        )


def test_a_model_that_answers_no_number_is_not_released() -> None:
    model = random_model(TABLE, TABLE_STEPS[:2], LinearNetwork(), 2)
    files = export_model(model, rows_of(TABLE, 4), "cells").files
    with pytest.raises(ParityError, match="edge input .*: logits are not finite"):
        parity_gate(
            run_module(model, "cpu"), open_formats(files), [rows_of(TABLE, 70)], TABLE, 64, quiet
        )


def answers(logits: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(logits, dtype=np.float64)
    exponents = np.exp(array - array.max(axis=1, keepdims=True))
    return array, exponents / exponents.sum(axis=1, keepdims=True)


@given(
    logits=st.lists(st.floats(-50, 50), min_size=3, max_size=3),
    factor=st.floats(-0.9, 0.9),
    beyond=st.floats(1.5, 100),
)
def test_what_is_within_tolerance_agrees_and_what_is_beyond_does_not(
    logits: list[float], factor: float, beyond: float
) -> None:
    allowed = 1e-4 + 1e-3 * np.abs(np.array(logits))
    ordered = np.sort(logits)
    expected = answers([logits])
    if ordered[2] - ordered[1] > 2 * allowed.max():
        assert not compare(expected, answers([logits + factor * allowed]), "cpu").failures
    moved = np.array(logits)
    moved[0] += beyond * allowed[0]
    result = compare(expected, answers([moved]), "cpu")
    assert len(result.failures) == 1
    assert result.max_abs_diff == pytest.approx(beyond * allowed[0], rel=1e-6)


def test_a_flipped_label_and_no_number_never_agree() -> None:
    expected = answers([[1.0, 0.999, -3.0]])
    # Margin 1e-3 and tolerance 1.1e-3: a tie, which may fall either way.
    assert not compare(expected, answers([[0.9995, 0.9996, -3.0]]), "cpu").failures
    decided = answers([[1.0, 0.998, -3.0]])
    flipped = compare(decided, answers([[0.99895, 0.99905, -3.0]]), "cpu")
    assert flipped.label_disagreements == 1 and flipped.failures
    for bad in (np.nan, np.inf):
        logits, probabilities = answers([[1.0, 0.0, 0.0]])
        spoiled = logits.copy()
        spoiled[0, 2] = bad
        assert compare((logits, probabilities), (spoiled, probabilities), "cpu").failures
        assert compare((logits, probabilities), (logits, probabilities * bad), "cpu").failures
        # An infinite logit is allowed an infinite difference, unless it is refused itself.
        assert compare((spoiled, probabilities), (logits, probabilities), "cpu").failures
        assert compare((spoiled, probabilities), (spoiled, probabilities), "cpu").failures


def test_edge_inputs_are_the_ranges_ends_and_beyond() -> None:
    images = edge_inputs(IMAGE)
    assert images.dtype == np.uint8 and images.shape == (64, 1, 6, 5)
    assert (images[0] == 0).all() and (images[1] == 255).all()
    table = edge_inputs(TABLE)
    assert np.isnan(table[:, 1]).any() and not np.isnan(table[:, [0, 2]]).any()
    assert np.abs(table[~np.isnan(table)]).max() > 1e300
    np.testing.assert_array_equal(table, edge_inputs(TABLE))


def test_the_state_dict_is_the_networks_alone(digits: Predictor) -> None:
    bundle: Bundle = digits.bundle
    weights = torch.load(io.BytesIO(bundle.read(STATE_DICT)), weights_only=True, map_location="cpu")
    assert all(key[0].isdigit() for key in weights)


def test_the_onnx_file_holds_no_metadata() -> None:
    _, files = small_export(MlpNetwork(hidden=(8,)))
    proto = onnx.load_from_string(files[ONNX])
    graph = proto.graph
    items = [
        proto,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *proto.functions,
    ]
    assert not any(item.metadata_props or item.doc_string for item in items)


def test_the_histogram_counts_every_answer_once(digits: Predictor) -> None:
    parity = digits.bundle.parity()
    assert parity.histogram is not None
    for name, counts in parity.histogram.counts.items():
        summary = digits.manifest.parity[name]
        assert sum(counts) == summary.rows
        highest = max(place for place, count in enumerate(counts) if count)
        edges = (0.0, *parity.histogram.edges, np.inf)
        assert edges[highest] <= summary.max_abs_diff < edges[highest + 1]
