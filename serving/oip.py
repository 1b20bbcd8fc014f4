"""The Open Inference Protocol (KServe V2) for one model: requests -> raw input, answers -> bytes.

The REST form with Triton's extensions for binary tensor data and classification; no HTTP here:
the caller passes the body and the value of Inference-Header-Content-Length.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
https://github.com/triton-inference-server/server/tree/main/docs/protocol

The plan of a header is kept: clients send the same one again and again, and then there is nothing
left to do but to read the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np

from artifacts.cells import Cell, ColumnSpec, encode_columns
from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.inputs import Column, ImageInput, TableInput
from artifacts.manifest import Manifest
from serving.oip_plan import Plan, Planner, RequestedOutput, Tensor, shown
from serving.oip_tensors import FLOATS, Bytes, as_element, as_floats, read_binary, read_json

# A header of 100 columns is one of 10 KB.
_KEPT_HEADER_BYTES = 16 * 1024
_KEPT_PLANS = 64


class InferRequest(msgspec.Struct, frozen=True):
    """raw: the graph's input, [N, *input shape], perhaps read-only; id: to be answered with."""

    raw: np.ndarray
    id: str | None
    outputs: tuple[RequestedOutput, ...]


class InferenceProtocol:
    """Decodes requests to, and encodes answers of, one model."""

    def __init__(self, manifest: Manifest, *, max_rows: int) -> None:
        """max_rows: of one request."""
        self.max_rows = max_rows
        self._spec = manifest.input
        self._labels = manifest.labels
        self._threshold = manifest.threshold
        planner = Planner(manifest.input, classes=len(manifest.labels), max_rows=max_rows)
        self._plan = planner.plan
        self._kept_plan = lru_cache(maxsize=_KEPT_PLANS)(planner.plan)
        model = {"model_name": manifest.name, "model_version": manifest.version}
        self._model = msgspec.json.encode(model)[1:-1] + b',"outputs":['
        self._label_elements = [as_element(label) for label in manifest.labels]
        self._label_json = [msgspec.json.encode(label) for label in manifest.labels]

    def decode(self, body: Bytes, header_length: int | None) -> InferRequest:
        """header_length: of the JSON before the binary data; None where the body is all JSON.

        Raise DataError naming the input, or the place in the request, that does not fit.
        """
        if header_length is None:
            plan = self._plan(bytes(body))
            if plan.size:
                raise DataError(
                    "binary_data_size: expected the header Inference-Header-Content-Length with it"
                )
            start = len(body)
        elif not 0 < header_length <= len(body):
            raise DataError(
                f"Inference-Header-Content-Length: expected 1 to {len(body)}, the body's length, "
                f"found {shown(header_length)}"
            )
        else:
            start = header_length
            keep = start <= _KEPT_HEADER_BYTES
            plan = (self._kept_plan if keep else self._plan)(bytes(body[:start]))
            if start + plan.size != len(body):
                raise DataError(
                    f"the body: expected {plan.size} bytes of binary data, as its inputs' "
                    f"binary_data_size say, found {len(body) - start}"
                )
        if isinstance(self._spec, ImageInput):
            raw = _read_images(plan, body, start, self._spec)
        else:
            raw = _read_table(plan, body, start, self._spec)
        return InferRequest(raw, plan.id, plan.outputs)

    def encode(
        self, request: InferRequest, logits: np.ndarray, probabilities: np.ndarray
    ) -> tuple[bytes, int | None]:
        """The response's body and its Inference-Header-Content-Length, None where it is all JSON.

        logits, probabilities: float32 [N, K], finite. In JSON each number is the float32 written
        out as a double, so that parsing it gives the same bits.
        """
        tensors = []
        binary_data = []
        for output in request.outputs:
            if output.name == "label":
                start, data = self._label(output, probabilities)
            else:
                values = logits if output.name == "logits" else probabilities
                start, data = self._numbers(output, values)
            if output.binary:
                tensors.append(b'%b"parameters":{"binary_data_size":%d}}' % (start, len(data)))
                binary_data.append(data)
            else:
                tensors.append(b'%b"data":[%b]}' % (start, data))
        id_ = b"" if request.id is None else b'"id":%b,' % msgspec.json.encode(request.id)
        header = b"{%b%b%b]}" % (id_, self._model, b",".join(tensors))
        if not binary_data:
            return header, None
        return b"".join((header, *binary_data)), len(header)

    def _label(self, output: RequestedOutput, probabilities: np.ndarray) -> tuple[bytes, bytes]:
        """The start of an output's JSON, and its data as bytes or as JSON without brackets."""
        index = decide(probabilities, self._threshold).tolist()
        start = b'{"name":"label","datatype":"BYTES","shape":[%d],' % len(index)
        if output.binary:
            return start, b"".join([self._label_elements[label] for label in index])
        return start, b",".join([self._label_json[label] for label in index])

    def _numbers(self, output: RequestedOutput, values: np.ndarray) -> tuple[bytes, bytes]:
        """`_label` for logits and probabilities, or for their highest classes."""
        name, count = output.name.encode(), output.classification
        if count is not None:
            start = b'{"name":"%b","datatype":"BYTES","shape":[%d,%d],'
            texts = _highest(values, count, self._labels)
            if output.binary:
                data = b"".join([as_element(text) for text in texts])
            else:
                data = msgspec.json.encode(texts)[1:-1]
            return start % (name, len(values), count), data
        start = b'{"name":"%b","datatype":"FP32","shape":[%d,%d],' % (name, *values.shape)
        if output.binary:
            return start, values.tobytes()
        return start, msgspec.json.encode(values.ravel().tolist())[1:-1]


def _read_images(plan: Plan, body: Bytes, start: int, spec: ImageInput) -> np.ndarray:
    """Raw input, uint8 [rows, *spec.shape]; `start`: where the body's binary data begins."""
    (images,) = plan.tensors
    if images.size is None:
        try:
            pixels = read_json("UINT8", images.data, images.shape, nullable=False)
        except DataError as error:
            raise DataError(f"input 'images': {error}") from error
        return np.frombuffer(bytes(pixels), np.uint8).reshape(plan.rows, *spec.shape)
    return np.frombuffer(body, np.uint8, images.size, start).reshape(plan.rows, *spec.shape)


def _read_table(plan: Plan, body: Bytes, start: int, spec: TableInput) -> np.ndarray:
    """Raw input, float64 [rows, the columns' widths]."""
    if plan.one_datatype:
        count = plan.rows * len(plan.tensors)
        matrix = read_binary(plan.one_datatype, body, start, plan.size, count)
        assert isinstance(matrix, np.ndarray)
        table = matrix.reshape(-1, plan.rows).T.astype(np.float64, order="C")
        if np.isfinite(table).all():
            return table
    cells: list[np.ndarray | Sequence[Cell]] = []
    for tensor, column in zip(plan.tensors, spec.columns, strict=True):
        try:
            cells.append(_read_column(tensor, column, body, start))
        except DataError as error:
            raise DataError(f"input {shown(tensor.name)}: {error}") from error
    arrays = [column for column in cells if isinstance(column, np.ndarray)]
    if spec.only_numbers and len(arrays) == len(cells):
        table = np.stack(arrays, axis=1, dtype=np.float64, casting="unsafe")
        if np.isfinite(table).all():
            return table
    raw, bad = encode_columns(cells, spec)
    if bad:
        row = min(bad)
        raise DataError(f"row {row}: {bad[row]}")
    return raw


def _read_column(
    tensor: Tensor, column: ColumnSpec, body: Bytes, start: int
) -> np.ndarray | Sequence[Cell]:
    """One cell a row."""
    if tensor.size is not None:
        rows = tensor.shape[0]
        return read_binary(tensor.datatype, body, start + tensor.offset, tensor.size, rows)
    nullable = column.missing == "fill"
    cells = read_json(tensor.datatype, tensor.data, tensor.shape, nullable=nullable)
    if tensor.datatype in FLOATS:
        return as_floats(cells, tensor.datatype)
    if isinstance(column, Column) and tensor.datatype != "BYTES":
        return np.array(cells, dtype=np.float64)
    return cells


def _highest(values: np.ndarray, count: int, labels: Sequence[str]) -> list[str]:
    """The `count` highest classes of each row as "value:index:label", the first on a tie.

    value: the shortest text that gives the float32 back.
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        f"{value!s}:{index}:{labels[index]}"
        for value, index in zip(
            np.take_along_axis(values, order, axis=1).ravel(), order.ravel().tolist(), strict=True
        )
    ]
