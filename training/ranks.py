"""Several processes that train one model, as torchrun starts them; or one alone.

torchrun --nproc-per-node 2 -m training fashion-mnist
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from artifacts.errors import DataError, ParitylineError

# How long one process waits for another, in seconds; one that has ended is noticed at once.
_TIMEOUT_S = 600
# How often the processes ask one another whether to stop or to save, in seconds.
_AGREE_EVERY_S = 0.5


class RankError(ParitylineError):
    """Another process of the run has failed."""


class Ranks:
    """This process among those of the run; alone, nothing here costs or does anything.

    rank: its number, from 0; world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._steps_left = 0
        self._steps_between = 1
        self._agreed_at = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor, pieces: int) -> tuple[Tensor, ...]:
        """This process's pieces of a step's rows: each row is in one piece of one process."""
        mine = slice(self.rank * pieces, (self.rank + 1) * pieces)
        return rows.tensor_split(self.world * pieces)[mine]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.world > 1:
            with explained():
                dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Each process's value, in the order of their ranks."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        with explained():
            dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        if self.world == 1:
            return value
        values = [value]
        with explained():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether all stop, and whether all save, after a step: what any of them wants.

        Asked in each step of each process, answered every so many steps: those that take about
        half a second.
        """
        if self.world == 1:
            return stop, save
        self._steps_left -= 1
        if self._steps_left > 0:
            return False, False
        seconds = time.monotonic() - self._agreed_at
        wanted = torch.tensor([float(stop), float(save), seconds])
        wanted = self.sum(wanted.cuda() if dist.get_backend() == "nccl" else wanted).cpu()
        per_step = max(float(wanted[2]) / self.world / self._steps_between, 1e-6)
        self._steps_between = self._steps_left = max(1, min(1000, int(_AGREE_EVERY_S / per_step)))
        self._agreed_at = time.monotonic()
        return bool(wanted[0] > 0), bool(wanted[1] > 0)

    def same(self, value: Any, what: str) -> None:
        """Raise DataError where the processes do not have the same value."""
        for rank, other in enumerate(self.gather(value)):
            if other != value:
                raise DataError(
                    f"{what} differs between processes: {value!r} in that of rank {self.rank}, "
                    f"{other!r} in that of rank {rank}"
                )


ALONE = Ranks()


def is_first_rank() -> bool:
    """Whether this process writes and speaks, known before it has joined the others."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, joined over NCCL on CUDA and gloo on CPU.

    device: "cpu" or "cuda"; on CUDA each process takes the device of its local rank.
    Without torchrun's variables in the environment: this process alone.
    PARITYLINE_RANK_TIMEOUT: seconds to wait for a process that hangs, by default 600.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout_s = float(os.environ.get("PARITYLINE_RANK_TIMEOUT", _TIMEOUT_S))
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DataError(
                f"rank {rank}: expected a CUDA device for each process of this machine, found "
                f"{torch.cuda.device_count()} for local rank {local}: fewer --nproc-per-node, or "
                "train.device=cpu"
            )
        torch.cuda.set_device(local)
    with explained():
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    try:
        yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """RankError in place of what torch raises where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, dist.DistError) and "gloo" not in reason.lower():
            raise
        raise RankError(
            f"rank {os.environ.get('RANK', '0')}: another process of this run has ended or does "
            f"not answer: its own message says why, if it has one. The same command with --resume "
            f"goes on from the last checkpoint. (torch: {reason.partition('. This is')[0]})"
        ) from error
