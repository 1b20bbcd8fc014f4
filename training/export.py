"""Eager model -> the three formats that are served, as bytes without a word of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from artifacts.errors import ParityError
from artifacts.manifest import EXPORT, ONNX, STATE_DICT, TORCHSCRIPT
from artifacts.networks import DeployedClassifier

_OUTPUTS = ["logits", "probabilities"]
_BATCH = "batch"
_SERIALIZATION_ID = ".data/serialization_id"


@dataclass(frozen=True)
class Exported:
    """The bytes of each file, and the opset that the ONNX file really has."""

    files: dict[str, bytes]
    onnx_opset: int


def export_model(model: DeployedClassifier, example: np.ndarray, input_name: str) -> Exported:
    """Export a model in eval mode, on CPU, for any batch size.

    example: raw input [N, ...], N >= 2 (a batch of one would be taken for a constant).
    input_name: the name of the one input in every format.
    Raises ParityError when a format cannot be made or is not one self-contained file.
    """
    assert len(example) >= 2 and not model.training
    raw = torch.from_numpy(example)
    with _quiet(), _attention_in_full():
        program = torch.export.export(
            model, (raw,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        for node in program.graph.nodes:
            # Paths of source files, which are nobody's business and differ between machines.
            node.meta.pop("stack_trace", None)
        exported = io.BytesIO()
        torch.export.save(program, exported)
        traced = io.BytesIO()
        torch.jit.save(torch.jit.trace(model, (raw,)), traced)
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[input_name],
            output_names=_OUTPUTS,
            external_data=False,
            verbose=False,
        )
    assert onnx_program is not None
    proto = onnx_program.model_proto
    _pool_globally(proto.graph)
    _tidy(proto)
    weights = io.BytesIO()
    torch.save(model.network.state_dict(), weights)
    return Exported(
        files={
            STATE_DICT: weights.getvalue(),
            ONNX: proto.SerializeToString(deterministic=True),
            TORCHSCRIPT: _without_debug_files(traced.getvalue()),
            EXPORT: exported.getvalue(),
        },
        onnx_opset=next(entry.version for entry in proto.opset_import if not entry.domain),
    )


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Global average pooling as one operator, not as a mean over height and width: the bits of
    ONNX Runtime's mean depend on where in memory a row lies, and so on the batch.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or ranks.get(node.input[0]) != 4:
            continue
        axes = constants.get(node.input[1])
        kept = all(item.i == 1 for item in node.attribute if item.name == "keepdims")
        if axes is None or not kept:
            continue
        if {int(axis) % 4 for axis in onnx.numpy_helper.to_array(axes)} == {2, 3}:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def _tidy(proto: onnx.ModelProto) -> None:
    """Check the ONNX model, name its batch dimension, drop source paths from its metadata."""
    onnx.checker.check_model(proto, full_check=True)
    outside = [
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    if outside:
        raise ParityError(f"{ONNX}: expected one self-contained file, {outside} lie outside it")
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    graph = proto.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_param = _BATCH
        del value.metadata_props[:]
    for item in [*graph.node, *graph.initializer, *proto.functions, graph, proto]:
        del item.metadata_props[:]
        item.doc_string = ""


def _without_debug_files(payload: bytes) -> bytes:
    """A TorchScript archive without its source maps, which hold the paths of source files.

    torch's serialization_id is computed over these too; here over what is left.
    """
    output, left = io.BytesIO(), hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(payload)) as source, zipfile.ZipFile(output, "w") as target:
        for entry in source.infolist():
            if entry.filename.endswith((".debug_pkl", _SERIALIZATION_ID)):
                continue
            data = source.read(entry)
            left.update(f"{entry.filename} {len(data)}\n".encode() + data)
            target.writestr(zipfile.ZipInfo(entry.filename), data)
        folder = source.namelist()[0].partition("/")[0]
        number = f"{int(left.hexdigest()[:32], 16):040d}"
        target.writestr(zipfile.ZipInfo(f"{folder}/{_SERIALIZATION_ID}"), number)
    return output.getvalue()


@contextlib.contextmanager
def _attention_in_full() -> Iterator[None]:
    """Without torch's fused attention, which it takes only where no gradients are asked for: the
    tracer's two runs would differ, and no exporter knows it.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # torch.jit's FutureWarning, tracer warnings, onnxscript's deprecations.
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
