"""What the machine can do: one process a core, one thread each, nothing but the model or decoding.

All has been read, and turned into what the work takes, before the clock runs.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq

from artifacts.inputs import ImageInput
from artifacts.pixels import decode_images

_WAIT_S = 600.0
_PICTURES = 64
_ROWS = 512

# What it is called, how many items it does, and doing them.
Task = tuple[Any, int, Callable[[], None]]


@dataclass(frozen=True)
class Share:
    """What one of several processes does."""

    number: int
    processes: int

    def of(self, items: int) -> slice:
        """Its own of so many."""
        ends = (items * at // self.processes for at in (self.number, self.number + 1))
        return slice(*ends)


def inference(
    model: Path, rows: Path, batch_sizes: Sequence[int], *, processes: int, device: str = "cpu"
) -> dict[int, float]:
    """Rows a second of ONNX Runtime with nothing around it, for each batch size.

    model: model.onnx; rows: .npy of its raw input, [N, *input shape] but for an image's single
    channel. On cuda without TF32, the copies to and from the device included.
    """
    return _together(_infer, (model, rows, tuple(batch_sizes), device), processes)


def decoding(folder: Path, spec: ImageInput, *, processes: int) -> float:
    """Pictures a second of `decode_images`, of a folder's files."""
    return _together(_decode, (folder, spec), processes)["decoding"]


def reading(file: Path, *, processes: int) -> float:
    """Rows a second of pyarrow's reading of `pixels`, of a Parquet file of many row groups."""
    return _together(_read, (file,), processes)["reading"]


def _infer(
    model: Path, rows: Path, batch_sizes: tuple[int, ...], device: str, share: Share
) -> Iterator[Task]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        onnxruntime.preload_dlls()
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit(f"expected a session on CUDA, found {session.get_providers()[0]}")
    (source,) = session.get_inputs()
    held = np.load(rows, mmap_mode="r")
    held = np.array(held[share.of(len(held))])
    held = held.reshape(len(held), *source.shape[1:])

    def run(size: int, stop: int) -> None:
        for start in range(0, stop, size):
            session.run(["probabilities"], {source.name: held[start : min(start + size, stop)]})

    for size in batch_sizes:
        run(size, min(len(held), 2 * size))
        yield size, len(held), lambda size=size: run(size, len(held))


def _read(file: Path, share: Share) -> Iterator[Task]:
    opened = pq.ParquetFile(file, pre_buffer=False)
    groups = range(opened.num_row_groups)[share.of(opened.num_row_groups)]
    rows = sum(opened.metadata.row_group(group).num_rows for group in groups)

    def run() -> None:
        for _ in opened.iter_batches(
            batch_size=_ROWS, row_groups=groups, columns=["pixels"], use_threads=False
        ):
            pass

    yield "reading", rows, run


def _decode(folder: Path, spec: ImageInput, share: Share) -> Iterator[Task]:
    files = sorted(folder.iterdir())
    encoded = [file.read_bytes() for file in files[share.of(len(files))]]

    def run(pictures: list[bytes]) -> None:
        for start in range(0, len(pictures), _PICTURES):
            decode_images(pictures[start : start + _PICTURES], spec)

    run(encoded[:_PICTURES])
    yield "decoding", len(encoded), lambda: run(encoded)


def _together(
    prepare: Callable[..., Iterator[Task]], arguments: tuple[Any, ...], processes: int
) -> dict[Any, float]:
    """Items a second of all processes, for each of the tasks, which all begin at once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(
            target=_work, args=(prepare, arguments, Share(number, processes), barrier, results)
        )
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    found: list[dict[Any, float]] = [results.get(timeout=_WAIT_S) for _ in workers]
    for worker in workers:
        worker.join()
    return {name: sum(rates[name] for rates in found) for name in found[0]}


def _work(
    prepare: Callable[..., Iterator[Task]],
    arguments: tuple[Any, ...],
    share: Share,
    barrier: Barrier,
    results: Queue,
) -> None:
    rates = {}
    for name, count, run in prepare(*arguments, share):
        barrier.wait(timeout=_WAIT_S)
        began = time.perf_counter()
        run()
        rates[name] = count / (time.perf_counter() - began)
    results.put(rates)
