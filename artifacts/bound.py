"""ONNX Runtime with its inputs and outputs bound: on CUDA, one recorded graph for each batch size.

A small network on CUDA spends most of its time on launching kernels one by one. Recorded as a CUDA
graph they are launched together, which asks for buffers that stay where they are and shapes that
stay as they are: a batch is filled up to the next power of two with rows of zeros, whose answers
are thrown away. Where that is no faster than the plain session, the plain one answers.
See ONNX Runtime's documentation on I/O binding and on the CUDA provider's enable_cuda_graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# While a graph is recorded, whatever another thread asks of the device would spoil it.
ALONE_ON_CUDA = threading.Lock()

# Of larger batches the kernels take longer than their launches.
LARGEST = 64
_SIZES = (1, 8, LARGEST)
_OUTPUTS = ("logits", "probabilities")
_REPEATS = 10


class BoundSession:
    """A session with one set of buffers for each power of two; a call fills those that fit."""

    def __init__(self, session: Any, device: str) -> None:
        """session: of an exported model; device: "cuda" or "cpu", where the buffers are."""
        self._session = session
        self._device = device
        self._input = session.get_inputs()[0].name
        self._labels = session.get_outputs()[0].shape[1]
        self._bound: dict[int, tuple[Any, Any, list[Any]]] = {}

    def __call__(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """raw: [N, *input shape], 1 <= N <= LARGEST -> logits, probabilities, float32 [N, K]."""
        size = 1 << (len(raw) - 1).bit_length()
        if size not in self._bound:
            with ALONE_ON_CUDA:
                self._bound[size] = self._bind(size, raw)
        binding, buffer, outputs = self._bound[size]
        filled = np.zeros((size, *raw.shape[1:]), dtype=raw.dtype)
        filled[: len(raw)] = raw
        with ALONE_ON_CUDA:
            buffer.update_inplace(filled)
            self._session.run_with_iobinding(binding, _options(size))
            # On a CPU an output's array is the buffer itself, which the next call overwrites.
            logits, probabilities = (np.array(output.numpy()[: len(raw)]) for output in outputs)
        return logits, probabilities

    def _bind(self, size: int, raw: np.ndarray) -> tuple[Any, Any, list[Any]]:
        from onnxruntime import OrtValue

        def buffer(shape: list[int], dtype: Any) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, 0)

        values = buffer([size, *raw.shape[1:]], raw.dtype.type)
        outputs = [buffer([size, self._labels], np.float32) for _ in _OUTPUTS]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, values)
        for name, value in zip(_OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding, values, outputs


def faster(plain: Run, bound: Run, row: np.ndarray) -> Run:
    """For batches of up to LARGEST rows the one that is faster here, for larger ones the plain.

    row: raw input [1, ...] to measure with. The first runs of each are not counted: graphs are
    recorded and buffers made in them.
    """
    best: list[tuple[int, Run]] = []
    for size in _SIZES:
        batch = np.repeat(row, size, axis=0)
        seconds = {run: _seconds(run, batch) for run in (plain, bound)}
        best.append((size, min(seconds, key=lambda run: seconds[run])))

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return next((run for size, run in best if len(raw) <= size), plain)(raw)

    return run


def _options(size: int) -> Any:
    from onnxruntime import RunOptions

    options = RunOptions()
    # Each shape has a graph of its own.
    options.add_run_config_entry("gpu_graph_id", str(size))
    return options


def _seconds(run: Run, batch: np.ndarray) -> float:
    for _ in range(3):
        run(batch)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - began)
    return sorted(times)[_REPEATS // 2]
