"""A run in progress: everything that its next step depends on, to be saved and loaded."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from artifacts.manifest import Epoch
from training.schedule import Schedule

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """Where a run is, between two of its steps.

    averaged: the network whose weights are measured and kept; `network` itself without EMA.
    epoch: the one in progress, from 1, with `batches` of it done. loss_sum, correct: over those,
    and the rows of this process. order: what shuffles; order_at_start: its state when the epoch
    began. best: the lowest figures yet, of best_epoch. kept: the weights to keep, of kept_epoch;
    None where those are the last ones.
    """

    network: nn.Module
    averaged: nn.Module
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule
    scaler: torch.amp.GradScaler
    order: torch.Generator
    loss_sum: Tensor
    correct: Tensor
    epoch: int = 1
    batches: int = 0
    step: int = 0
    gradient_norm: float | None = None
    history: list[Epoch] = field(default_factory=list)
    best: tuple[float, float] = (math.inf, math.inf)
    best_epoch: int = 0
    kept_epoch: int = 0
    kept: Weights | None = None
    finished: bool = False

    def __post_init__(self) -> None:
        self.order_at_start = self.order.get_state()

    def begin_epoch(self, rows: int) -> Tensor:
        """The epoch's order of so many rows, int64; the same again after a resume in its midst."""
        self.order.set_state(self.order_at_start)
        return torch.randperm(rows, generator=self.order)

    def end_epoch(self) -> None:
        """The next one begins."""
        self.order_at_start = self.order.get_state()
        self.epoch += 1
        self.batches = 0
        self.loss_sum.zero_()
        self.correct.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and lists and dicts of them; not copied. Without random states."""
        return {
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is self.network else self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "order_at_start": self.order_at_start,
            "epoch": self.epoch,
            "batches": self.batches,
            "step": self.step,
            "gradient_norm": self.gradient_norm,
            "history": [record.model_dump() for record in self.history],
            "best": list(self.best),
            "best_epoch": self.best_epoch,
            "kept_epoch": self.kept_epoch,
            "kept": self.kept,
            "finished": self.finished,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `saved` was, but for its random states and sums."""
        self.network.load_state_dict(saved["network"])
        if saved["averaged"] is not None:
            self.averaged.load_state_dict(saved["averaged"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        self.order_at_start = saved["order_at_start"].cpu()
        self.epoch, self.batches, self.step = saved["epoch"], saved["batches"], saved["step"]
        self.gradient_norm = saved["gradient_norm"]
        self.history = [Epoch.model_validate(record) for record in saved["history"]]
        self.best = (saved["best"][0], saved["best"][1])
        self.best_epoch, self.kept_epoch = saved["best_epoch"], saved["kept_epoch"]
        self.kept, self.finished = saved["kept"], saved["finished"]

    def process_state(self) -> dict[str, Any]:
        """What each process has of its own: its random states, and the epoch's sums so far."""
        python = random.getstate()
        # Nothing of ours draws from Python's and NumPy's, but a library under it may.
        numpy: Any = np.random.get_state(legacy=False)
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.loss_sum.is_cuda else None,
            "python": [python[0], list(python[1]), python[2]],
            "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
            # Another process reads them, and has not this one's device.
            "loss_sum": self.loss_sum.cpu(),
            "correct": self.correct.cpu(),
        }

    def load_process_state(self, saved: dict[str, Any]) -> None:
        """Continue with the random states and sums of `process_state`."""
        torch.set_rng_state(saved["torch"].cpu())
        if saved["cuda"] is not None and self.loss_sum.is_cuda:
            torch.cuda.set_rng_state(saved["cuda"].cpu())
        version, words, gauss = saved["python"]
        random.setstate((version, tuple(words), gauss))
        key = np.array(saved["numpy"]["state"]["key"], dtype=np.uint32)
        np.random.set_state({**saved["numpy"], "state": {**saved["numpy"]["state"], "key": key}})
        self.loss_sum.copy_(saved["loss_sum"])
        self.correct.copy_(saved["correct"])
