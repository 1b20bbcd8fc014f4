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
_TIMEOUT, _TIMEOUT_S = "PARITYLINE_RANK_TIMEOUT", 600
# The same while one reads data, which may take hours.
_PATIENCE_S = 7 * 24 * 3600
# How often the processes ask one another whether to stop or to save, in seconds.
_AGREE_EVERY_S = 0.5


class RankError(ParitylineError):
    """Another process of the run has failed."""


class Ranks:
    """This process among those of the run; alone, nothing here costs or does anything.

    rank: its number, from 0; world: how many there are. patient: the group in which they `meet`.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, patient: dist.ProcessGroup | None = None
    ) -> None:
        self.rank = rank
        self.world = world
        self._patient = patient
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

    def meet(self) -> None:
        """Wait for all, however long they take; one that has ended is noticed at once."""
        if self.world > 1:
            with explained():
                dist.all_reduce(torch.zeros(1), group=self._patient)

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
        wanted = self.sum(torch.tensor([float(stop), float(save), seconds]))
        per_step = max(float(wanted[2]) / self.world / self._steps_between, 1e-6)
        self._steps_between = self._steps_left = max(1, min(1000, int(_AGREE_EVERY_S / per_step)))
        self._agreed_at = time.monotonic()
        return bool(wanted[0] > 0), bool(wanted[1] > 0)

    def same(self, values: dict[str, Any]) -> None:
        """Raise DataError, with their names, where the processes have other values."""
        for rank, others in enumerate(self.gather(values)):
            different = [
                f"{name}: {values.get(name)!r} in rank {self.rank}, {others.get(name)!r} in "
                f"rank {rank}"
                for name in {**values, **others}
                if values.get(name) != others.get(name)
            ]
            if different:
                raise DataError(f"the processes of this run differ in {'; '.join(different)}")


ALONE = Ranks()


def is_first_rank() -> bool:
    """Whether this process writes and speaks, known before it has joined the others."""
    return _world() == 1 or os.environ["RANK"] == "0"


def is_first_of_machine() -> bool:
    """Whether this is the first process of its machine."""
    return _world() == 1 or _local_rank() == 0


def processes_of_machine() -> int:
    """How many processes of the run share this machine, as torchrun says."""
    return 1 if _world() == 1 else _number("LOCAL_WORLD_SIZE", 1, 1)


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, joined over gloo; CUDA tensors go over NCCL.

    device: "cpu" or "cuda"; on CUDA each process takes the device of its local rank.
    Without torchrun's variables in the environment: this process alone.
    PARITYLINE_RANK_TIMEOUT: seconds to wait for a process that hangs, by default 600.
    Raises DataError for variables that say nothing, and RankError where the others do not come.
    """
    world = _world()
    if world == 1:
        yield ALONE
        return
    rank, local = _number("RANK", 0), _local_rank()
    timeout_s = _number(_TIMEOUT, 1, _TIMEOUT_S)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise DataError(f"{name}: expected it beside RANK, as torchrun sets it, found none")
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise DataError(
                f"rank {rank}: expected a CUDA device for each process of this machine, found "
                f"{torch.cuda.device_count()} for local rank {local}: fewer --nproc-per-node, or "
                "train.device=cpu"
            )
        torch.cuda.set_device(local)
    with explained():
        dist.init_process_group(
            # What is on CPU, such as whether to stop, need not wait for the device.
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    done = False
    try:
        with explained():
            patience = datetime.timedelta(seconds=_PATIENCE_S)
            patient = dist.new_group(backend="gloo", timeout=patience)
        yield Ranks(rank, world, patient)
        done = True
    finally:
        # After a failure NCCL would wait for those who are gone; torch aborts it at exit.
        if done or device != "cuda":
            dist.destroy_process_group()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """RankError in place of what torch raises where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        if not isinstance(error, dist.DistError) and "gloo" not in reason.lower():
            raise
        raise RankError(
            f"rank {os.environ.get('RANK', '0')}: another process of this run has ended, or has "
            f"not answered for {_TIMEOUT}={os.environ.get(_TIMEOUT, _TIMEOUT_S)} s: its own "
            "message says why, if it has one. The same command with --resume goes on from the last "
            f"checkpoint. (torch: {reason.partition('. This is')[0]})"
        ) from error


def _world() -> int:
    return _number("WORLD_SIZE", 1, 1) if "RANK" in os.environ else 1


def _local_rank() -> int:
    return _number("LOCAL_RANK", 0, 0)


def _number(name: str, least: int, default: int | None = None) -> int:
    """An environment variable, a whole number."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < least:
        raise DataError(f"{name}: expected a whole number from {least}, found {text!r}")
    return int(text)
