"""The learning rate and the momentum over a run, and how long a run is."""

from __future__ import annotations

import math

from training.recipe import TrainConfig

# Of the one-cycle schedule, as torch.optim.lr_scheduler.OneCycleLR has them: the share of the run
# in which the rate rises, its start and its end as shares of the peak, and the momentum where the
# rate is low and where it is high.
_RISE = 0.3
_START = 1 / 25
_END = _START / 1e4
_MOMENTUM = (0.95, 0.85)
# How much better, relatively, a figure must be to count as better (torch's ReduceLROnPlateau).
_BETTER = 1e-4


def resolve_schedule(config: TrainConfig, rows: int) -> TrainConfig:
    """The config with epochs and batch size as numbers, fitted to so many rows where "auto".

    Where the recipe says no warm-up, the one-cycle schedule's is 0.3 of the epochs.
    """
    batch_size, epochs = config.batch_size, config.epochs
    if batch_size == "auto":
        batch_size = min(256, max(32, 2 ** round(math.log2(max(1, rows / 30)))))
    if epochs == "auto":
        epochs = min(100, max(15, round(1200 / math.ceil(rows / batch_size))))
    update = {"batch_size": batch_size, "epochs": epochs}
    if config.schedule == "one-cycle" and "warmup" not in config.model_fields_set:
        update["warmup"] = _RISE * epochs
    return config.model_copy(update=update)


class Schedule:
    """The learning rate and the momentum of each step of a run.

    All but the plateau's is a function of the step alone, so a resumed run needs no state for it.
    "cosine" (Loshchilov and Hutter 2017, without restarts), "linear", "constant" and "plateau"
    start with a linear warm-up (Goyal et al. 2017). "one-cycle" is that of Smith and Topin 2019
    with cosines, its warm-up the way up. "plateau" is torch's ReduceLROnPlateau.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        assert config.epochs != "auto"
        self._config = config
        self._total = config.epochs * steps_per_epoch
        self._warmup = config.warmup * steps_per_epoch
        self._scale, self._best, self._bad_epochs = 1.0, math.inf, 0

    def at(self, step: int) -> tuple[float, float | None]:
        """The rate and the momentum of a step, counted from 0; None: the optimizer's own."""
        if self._config.schedule == "one-cycle":
            rate, momentum = _one_cycle(min(step, self._total - 1), self._warmup, self._total)
            return self._config.lr * rate, momentum
        return self._warmed_up(step) * self._scale, None

    def after_epoch(self, figure: float) -> None:
        """What an epoch's validation came to, lower is better; only "plateau" reads it.

        After more than plateau_patience epochs without a better one the rate is multiplied by
        plateau_factor.
        """
        if self._config.schedule != "plateau":
            return
        # Also right for negative figures, such as an accuracy turned round.
        if figure < self._best * (1 - math.copysign(_BETTER, self._best)):
            self._best, self._bad_epochs = figure, 0
            return
        self._bad_epochs += 1
        if self._bad_epochs > self._config.plateau_patience:
            self._scale *= self._config.plateau_factor
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, float]:
        """What the plateau has seen, as plain numbers; "best" is infinite before an epoch."""
        return {"scale": self._scale, "best": self._best, "bad_epochs": self._bad_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._scale, self._best = state["scale"], state["best"]
        self._bad_epochs = int(state["bad_epochs"])

    def _warmed_up(self, step: int) -> float:
        config, warmup = self._config, round(self._warmup)
        if step < warmup:
            return config.lr * ((step + 1) / warmup)
        if config.schedule in ("constant", "plateau"):
            return config.lr
        progress = min(1.0, (step - warmup) / max(1, self._total - warmup))
        if config.schedule == "linear":
            return config.lr * (1 - progress)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(step: int, rise: float, total: int) -> tuple[float, float]:
    """The rate as a share of its peak, and the momentum; rise, total: in steps."""
    top = max(0.0, rise - 1)
    low, high = _MOMENTUM
    if step <= top:
        progress = step / top if top else 1.0
        return _cosine(_START, 1.0, progress), _cosine(low, high, progress)
    progress = (step - top) / (total - 1 - top)
    return _cosine(1.0, _END, progress), _cosine(high, low, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
