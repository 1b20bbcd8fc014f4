"""The same work without a server: one process for each core, one thread each, nothing but it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from artifacts.bundle import read_bundle
from artifacts.inputs import ImageInput
from artifacts.pixels import decode_image
from artifacts.predictor import open_predictor

# What is answered at once: raw [rows, C, H, W], or some encoded pictures.
Items = list[np.ndarray] | list[list[bytes]]


def rate(bundle: Path, items: Items, *, processes: int, seconds: float) -> float:
    """Items a second of all processes together, each going round the items for so long."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_work, args=(bundle, items, seconds, barrier, rates))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [rates.get(timeout=seconds + 120) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(found)


def _work(bundle: Path, items: Items, seconds: float, barrier: Barrier, rates: Queue) -> None:
    answer = _answerer(bundle)
    answer(items[0])
    barrier.wait(timeout=120)
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        answer(items[done % len(items)])
        done += 1
    rates.put(done / passed)


def _answerer(bundle: Path) -> Callable[[np.ndarray | list[bytes]], np.ndarray]:
    predictor = open_predictor(read_bundle(bundle), backend="onnx", device="cpu", threads=1)
    spec = predictor.manifest.input
    assert isinstance(spec, ImageInput)

    def answer(item: np.ndarray | list[bytes]) -> np.ndarray:
        if isinstance(item, list):
            item = np.stack([decode_image(picture, spec) for picture in item])
        return predictor.model(item)[1]

    return answer
