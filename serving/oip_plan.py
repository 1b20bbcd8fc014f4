"""An inference request's JSON header -> a plan that fits the model, before any data is read.

Knows names, shapes, datatypes, sizes and parameters; `serving.oip` reads the data by the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from artifacts.cells import ColumnSpec
from artifacts.errors import DataError
from artifacts.inputs import ImageInput, InputSpec, TableInput
from serving.oip_tensors import DATATYPES, NUMBERS, explain, item_size

OUTPUTS = ("logits", "probabilities", "label")
_NO_DATA = msgspec.Raw()


class RequestedOutput(msgspec.Struct, frozen=True):
    """One output to answer; classification: how many of the highest classes, None for the tensor.

    binary: behind the JSON, as binary data.
    """

    name: str
    binary: bool
    classification: int | None = None


class Tensor(msgspec.Struct, frozen=True):
    """An input that fits the model. offset, size: of its binary data; size None: it is `data`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int | None
    data: msgspec.Raw


class Plan(msgspec.Struct, frozen=True):
    """A checked header. tensors: in the model's order; size: of all binary data, in bytes.

    one_datatype: of columns that lie one behind another in the model's order as binary numbers of
    this one datatype, None where they do not.
    """

    id: str | None
    outputs: tuple[RequestedOutput, ...]
    rows: int
    tensors: tuple[Tensor, ...]
    size: int
    one_datatype: str | None


# What a request may hold, as far as it is looked at: the protocol lets others pass.
class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: Any = None
    shared_memory_byte_size: Any = None
    shared_memory_offset: Any = None


_NO_PARAMETERS = _InputParameters()


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: Any = None
    shared_memory_byte_size: Any = None
    shared_memory_offset: Any = None


class _Parameters(msgspec.Struct):
    binary_data_output: bool = False
    sequence_id: Any = None
    sequence_start: Any = None
    sequence_end: Any = None


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: _InputParameters | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Header(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


class Planner:
    """Makes plans for one model."""

    def __init__(self, spec: InputSpec, *, classes: int, max_rows: int) -> None:
        """classes: how many labels there are; max_rows: of one request."""
        self._classes = classes
        self._max_rows = max_rows
        self._decoder = msgspec.json.Decoder(_Header)
        if isinstance(spec, ImageInput):
            self._positions = {"images": 0}
            self._datatypes = [frozenset({"UINT8"})]
            self._tails: list[tuple[int, ...]] = [spec.shape]
            if spec.channels == 1:
                self._tails += [spec.shape[1:], (spec.height * spec.width,)]
        else:
            self._positions = {column.name: index for index, column in enumerate(spec.columns)}
            self._datatypes = [datatypes_of(column) for column in spec.columns]
            self._tails = [(), (1,)]
        self._only_numbers = isinstance(spec, TableInput) and spec.only_numbers
        self._all_outputs = {
            binary: tuple(RequestedOutput(name, binary) for name in OUTPUTS)
            for binary in (False, True)
        }

    def plan(self, header: bytes) -> Plan:
        """Raise DataError naming the input, output or place that does not fit."""
        try:
            request = self._decoder.decode(header)
        except msgspec.ValidationError as error:
            raise DataError(explain(error, "the request")) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the request is not JSON: {error}") from error
        parameters = request.parameters or _Parameters()
        if parameters.sequence_id or parameters.sequence_start or parameters.sequence_end:
            raise DataError("sequence_id: this model has no sequences, each request is on its own")
        tensors, size, in_order = self._tensors(request.inputs)
        one_datatype = None
        if in_order and self._only_numbers:
            kinds = {tensor.datatype for tensor in tensors}
            if len(kinds) == 1 and all(tensor.size is not None for tensor in tensors):
                one_datatype = kinds.pop() if kinds <= NUMBERS else None
        return Plan(
            id=request.id,
            outputs=self._outputs(request.outputs, parameters.binary_data_output),
            rows=tensors[0].shape[0],
            tensors=tensors,
            size=size,
            one_datatype=one_datatype,
        )

    def _tensors(self, inputs: Sequence[_Input]) -> tuple[tuple[Tensor, ...], int, bool]:
        """Each of the model's inputs, the size of all binary data, whether they came in order."""
        placed: dict[int, Tensor] = {}
        offset = 0
        rows: int | None = None
        for given in inputs:
            position = self._positions.get(given.name)
            try:
                if position is None:
                    raise DataError(f"not known; expected {_names(list(self._positions))}")
                if position in placed:
                    raise DataError("expected once, found twice")
                tensor = self._tensor(given, position, offset, rows)
            except DataError as error:
                raise DataError(f"input {shown(given.name)}: {error}") from error
            rows = tensor.shape[0]
            offset += tensor.size or 0
            placed[position] = tensor
        missing = [name for name, position in self._positions.items() if position not in placed]
        if missing:
            raise DataError(f"missing input: {_names(missing)}")
        positions = range(len(self._positions))
        return tuple(placed[at] for at in positions), offset, list(placed) == list(positions)

    def _tensor(self, given: _Input, position: int, offset: int, rows: int | None) -> Tensor:
        """`given`, as the model takes it. rows: of the inputs before it, None for the first."""
        shape, datatype = given.shape, given.datatype
        if datatype not in self._datatypes[position]:
            expected = ", ".join(sorted(self._datatypes[position]))
            raise DataError(f"expected datatype {expected}, found {shown(datatype)}")
        if not shape or shape[1:] not in self._tails:
            expected = " or ".join(_shape_text(("N", *tail)) for tail in self._tails)
            raise DataError(f"expected shape {expected}, found {_shape_text(shape)}")
        if not 1 <= shape[0] <= self._max_rows:
            raise DataError(f"expected 1 to {self._max_rows} rows, found {shown(shape[0])}")
        if rows is not None and shape[0] != rows:
            raise DataError(f"expected {rows} rows, as in the inputs before, found {shape[0]}")
        parameters = given.parameters or _NO_PARAMETERS
        _refuse_shared_memory(parameters)
        size = parameters.binary_data_size
        if (size is None) == (given.data is _NO_DATA):
            found = "neither" if size is None else "both"
            raise DataError(f"expected data or binary_data_size, found {found}")
        if size is not None:
            _check_size(size, datatype, shape)
        return Tensor(given.name, datatype, shape, offset, size, given.data)

    def _outputs(
        self, asked: Sequence[_Output] | None, binary_default: bool
    ) -> tuple[RequestedOutput, ...]:
        if not asked:
            return self._all_outputs[binary_default]
        outputs: dict[str, RequestedOutput] = {}
        for output in asked:
            try:
                if output.name in outputs:
                    raise DataError("expected once, found twice")
                outputs[output.name] = self._output(output, binary_default)
            except DataError as error:
                raise DataError(f"output {shown(output.name)}: {error}") from error
        return tuple(outputs.values())

    def _output(self, asked: _Output, binary_default: bool) -> RequestedOutput:
        if asked.name not in OUTPUTS:
            raise DataError(f"not known; expected {_names(OUTPUTS)}")
        parameters = asked.parameters or _OutputParameters()
        _refuse_shared_memory(parameters)
        count = parameters.classification
        if count is not None and asked.name == "label":
            raise DataError("classification is for logits and probabilities")
        if count is not None and not 1 <= count <= self._classes:
            raise DataError(
                f"expected a classification of 1 to {self._classes} labels, found {shown(count)}"
            )
        binary = binary_default if parameters.binary_data is None else parameters.binary_data
        return RequestedOutput(asked.name, binary, count)


def datatypes_of(column: ColumnSpec) -> frozenset[str]:
    """What a column's cells may come as; `artifacts.cells` reads the rest of it."""
    if column.type == "date":
        return frozenset({"BYTES"})
    return DATATYPES - {"BOOL"} if column.type == "number" else DATATYPES


def shown(value: str | int) -> str:
    """A request's own words or numbers for a message, cut short where they are long."""
    # Python writes no int of thousands of digits.
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _check_size(size: int, datatype: str, shape: tuple[int, ...]) -> None:
    item = item_size(datatype)
    if item is None and size < 0:
        raise DataError(f"expected a binary_data_size of at least 0, found {shown(size)}")
    if item is not None and size != item * math.prod(shape):
        raise DataError(
            f"expected a binary_data_size of {item * math.prod(shape)} for {_shape_text(shape)} of "
            f"{datatype}, found {shown(size)}"
        )


def _refuse_shared_memory(parameters: _InputParameters | _OutputParameters) -> None:
    if (
        parameters.shared_memory_region is not None
        or parameters.shared_memory_byte_size is not None
        or parameters.shared_memory_offset is not None
    ):
        raise DataError("shared memory is not offered; send the data in the request")


def _shape_text(shape: Sequence[int | str]) -> str:
    sizes = [size if isinstance(size, str) else shown(size) for size in shape[:6]]
    return f"[{', '.join(sizes + ['...'] * (len(shape) > 6))}]"


def _names(names: Sequence[str]) -> str:
    text = ", ".join(shown(name) for name in names[:5])
    return text + (f" and {len(names) - 5} more" if len(names) > 5 else "")
