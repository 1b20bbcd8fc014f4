"""Rows of a part -> batches on the device, in a given order.

What fits in memory lies on the device and is indexed there; pictures that do not are decoded
ahead by DataLoader workers. Both give the same batches.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from artifacts.errors import DataError
from training.data import Part


class Batches:
    """The batches of one part. raw: uint8 or float64, labels: int64, both on `device`.

    answered_at_once: how many rows are evaluated together.
    """

    def __init__(self, part: Part, device: torch.device, workers: int | None = None) -> None:
        """workers: processes that decode, for pictures that are not in memory; 0 is this one."""
        self.rows = len(part)
        self.device = device
        # Activations are many times as large as their pictures.
        values = math.prod(part.raw.shape[1:])
        self.answered_at_once = min(1024, max(64, 2**22 // max(1, values)))
        self.labels = torch.from_numpy(part.labels).to(device)
        if isinstance(part.raw, np.ndarray):
            self._raw: Tensor | None = torch.from_numpy(part.raw).to(device)
        else:
            self._raw = None
            self._decoded = _Decoded(part)
            self._workers = (os.cpu_count() or 1) if workers is None else workers

    @property
    def in_memory(self) -> bool:
        """Whether the rows lie on the device, and are not decoded anew each time."""
        return self._raw is not None

    def in_order(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(raw [n, ...], labels [n]) for each batch of row numbers, int64 on CPU."""
        batches = [rows for rows in batches if len(rows)]
        if not batches:
            return
        sizes = [len(rows) for rows in batches]
        on_device = torch.cat(list(batches)).to(self.device, non_blocking=True).split(sizes)
        if self._raw is not None:
            for rows in on_device:
                # Several times faster than indexing with [].
                yield self._raw.index_select(0, rows), self.labels.index_select(0, rows)
            return
        loader = DataLoader(
            self._decoded,
            sampler=_Fixed(batches),
            batch_size=None,
            num_workers=min(self._workers, len(batches)),
            prefetch_factor=2 if self._workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=functools.partial(_begin_worker, os.getpid()),
            # Otherwise it draws from the global one, and dropout differs from that in memory.
            generator=torch.Generator(),
        )
        for rows, raw in zip(on_device, _answers(loader), strict=True):
            if isinstance(raw, str):
                raise DataError(raw)
            yield raw.to(self.device, non_blocking=True), self.labels[rows]

    def all(
        self, batch_size: int, first: int = 0, step: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, or every step-th from the first, in the part's order."""
        return self.in_order(torch.arange(first, self.rows, step).split(batch_size))


def _answers(loader: DataLoader[Tensor | str]) -> Iterator[Tensor | str]:
    try:
        yield from loader
    except RuntimeError as error:
        # torch's words for a worker that was killed, or found its shared memory full.
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that decodes pictures has died ({str(error).splitlines()[0]}): where "
            "memory or shared memory (/dev/shm) is scarce, take fewer data.workers (0: none) or a "
            "smaller train.batch_size"
        ) from error


def _begin_worker(run: int, _number: int) -> None:
    """run: the process id of the run, which may have been killed in the meantime: torch's own
    watch over it begins only now, and would wait for ever.
    """
    if os.getppid() != run:
        os._exit(1)
    # Ctrl-C goes to the whole group of a terminal's processes; the run alone decides on it.
    os.setpgid(0, 0)


class _Decoded(Dataset[Tensor | str]):
    """Its items are whole batches: row numbers -> uint8 [n, C, H, W], or what is wrong.

    Raised in a worker, the reason would come with the worker's traceback around it.
    """

    def __init__(self, part: Part) -> None:
        self._raw = part.raw

    def __getitem__(self, rows: Tensor) -> Tensor | str:
        try:
            return torch.from_numpy(self._raw[rows.numpy()])
        except DataError as error:
            return str(error)


class _Fixed:
    """A sampler that says what it was told."""

    def __init__(self, chunks: Sequence[Tensor]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)
