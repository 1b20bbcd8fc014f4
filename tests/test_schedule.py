"""The rate and the momentum of each step, against torch's own schedulers."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from artifacts.errors import DataError
from training.optim import make_optimizers, set_rates
from training.recipe import TrainConfig, load_recipe
from training.schedule import Schedule, resolve_schedule


def rates_of(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    assert config.epochs != "auto"
    schedule = Schedule(config, steps_per_epoch)
    return [schedule.at(step)[0] for step in range(config.epochs * steps_per_epoch)]


@given(
    epochs=st.integers(1, 20),
    per_epoch=st.integers(1, 30),
    warmup=st.floats(0, 3),
    schedule=st.sampled_from(["cosine", "linear", "constant", "plateau"]),
)
def test_the_rate_rises_to_its_peak_and_never_above_it(
    epochs: int, per_epoch: int, warmup: float, schedule: str
) -> None:
    config = TrainConfig(epochs=epochs, lr=0.1, warmup=warmup, schedule=schedule)
    rates = rates_of(config, per_epoch)
    assert all(0 <= rate <= 0.1 for rate in rates)
    peak = round(warmup * per_epoch)
    rising = rates[:peak]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if peak < len(rates):
        assert rates[peak] == pytest.approx(0.1)
    if schedule in ("cosine", "linear") and len(rates) - peak > 10:
        assert rates[-1] < 0.1 * 0.1


def test_a_linear_schedule_is_a_line_to_zero() -> None:
    schedule = Schedule(TrainConfig(epochs=5, lr=0.1, warmup=1, schedule="linear"), 10)
    rates = [schedule.at(step)[0] for step in range(51)]
    np.testing.assert_allclose(rates[:11], [*np.arange(1, 11) / 100, 0.1])
    np.testing.assert_allclose(rates[10:], np.linspace(0.1, 0, 41), atol=1e-12)


def test_the_rates_of_released_recipes_are_the_same_to_the_bit() -> None:
    # The order of these operations decides the last bit, and the bit the released weights.
    lr = 0.003
    for schedule, falling in (
        ("cosine", lambda progress: lr * 0.5 * (1 + math.cos(math.pi * progress))),
        ("linear", lambda progress: lr * (1 - progress)),
        ("constant", lambda progress: lr),
    ):
        config = TrainConfig(epochs=7, lr=lr, warmup=1.3, schedule=schedule)
        expected = [lr * ((step + 1) / 14) for step in range(14)]
        expected += [falling(step / 63) for step in range(63)]
        assert rates_of(config, 11) == expected


@pytest.mark.parametrize(
    ("row_count", "batch_size", "epochs"),
    [(100, 32, 100), (455, 32, 80), (3000, 128, 50), (30_000, 256, 15), (10**6, 256, 15)],
)
def test_a_schedule_that_is_auto_fits_the_rows(
    row_count: int, batch_size: int, epochs: int
) -> None:
    config = TrainConfig(epochs="auto", batch_size="auto", lr=0.5)
    resolved = resolve_schedule(config, row_count)
    assert (resolved.batch_size, resolved.epochs) == (batch_size, epochs)
    assert resolve_schedule(resolved, 7) == resolved and resolved.lr == 0.5
    assert resolve_schedule(TrainConfig(epochs="auto", batch_size=10), 1000).epochs == 15


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "settings"),
    [(10, 7, {}), (7, 13, {"warmup": 2.5}), (2, 5, {"warmup": 2.0})],
)
def test_one_cycle_is_torchs_step_by_step(
    optimizer: str, epochs: int, steps_per_epoch: int, settings: dict[str, Any]
) -> None:
    config = resolve_schedule(
        TrainConfig(
            epochs=epochs, lr=0.2, optimizer=optimizer, schedule="one-cycle", batch_size=8,
            **settings,
        ),
        1000,
    )  # fmt: skip
    total = epochs * steps_per_epoch
    (theirs,) = make_optimizers(nn.Linear(2, 2), config)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=0.2, total_steps=total, pct_start=config.warmup / epochs
    )
    (ours,) = make_optimizers(nn.Linear(2, 2), config)
    schedule = Schedule(config, steps_per_epoch)
    for step in range(total):
        set_rates([ours], *schedule.at(step))
        for mine, group in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(group["lr"], rel=1e-9), step
            moved = "momentum" if optimizer == "sgd" else "betas"
            assert mine[moved] == pytest.approx(group[moved], rel=1e-9), step
        theirs.step()
        if step < total - 1:
            reference.step()


def test_one_cycle_rises_for_three_tenths_of_the_run_unless_the_recipe_says() -> None:
    config = TrainConfig(epochs="auto", batch_size=10, schedule="one-cycle")
    resolved = resolve_schedule(config, 1000)
    assert resolved.warmup == pytest.approx(0.3 * 15)
    assert resolve_schedule(resolved, 7) == resolved
    # Also where it says the other schedules' default.
    for warmup in (2.0, 1.0):
        said = load_recipe("mnist", ["train.schedule=one-cycle", f"train.warmup={warmup}"]).train
        assert resolve_schedule(said, 1000).warmup == warmup
    assert resolve_schedule(TrainConfig(epochs=40), 1000).warmup == 1.0


@given(
    epochs=st.integers(1, 5),
    per_epoch=st.integers(1, 8),
    warmup=st.floats(0, 10),
    step=st.integers(0, 60),
)
def test_one_cycle_stays_in_its_bounds_however_short_the_run(
    epochs: int, per_epoch: int, warmup: float, step: int
) -> None:
    config = TrainConfig(epochs=epochs, lr=0.5, warmup=warmup, schedule="one-cycle")
    rate, momentum = Schedule(config, per_epoch).at(step)
    assert 0.5 / 25e4 * 0.999 <= rate <= 0.5 * (1 + 1e-12)
    assert momentum is not None and 0.85 - 1e-12 <= momentum <= 0.95 + 1e-12


def figures(seed: int, count: int = 60) -> list[float]:
    """A loss that falls, stays and rises."""
    generator = np.random.default_rng(seed)
    return list(1 / (1 + np.arange(count) / 5) + generator.normal(0, 0.03, count).clip(-0.05))


@pytest.mark.parametrize(("factor", "patience"), [(0.1, 4), (0.5, 0), (0.3, 2)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_is_torchs_for_losses_and_for_accuracies(
    mode: str, factor: float, patience: int
) -> None:
    config = TrainConfig(
        epochs=60, lr=0.2, schedule="plateau", plateau_factor=factor, plateau_patience=patience,
        warmup=1.5, patience=0,
    )  # fmt: skip
    reference_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        reference_optimizer, mode, factor=factor, patience=patience, eps=0
    )
    schedule, seen = Schedule(config, 4), []
    # Equal figures are no better; an accuracy comes turned round, as a negative number.
    values = [*figures(1), *[0.01, 0.01 - 5e-7] * 6]
    for epoch, figure in enumerate(values):
        for step in range(4 * epoch, 4 * epoch + 4):
            warm = min(1.0, (step + 1) / 6)
            expected = reference_optimizer.param_groups[0]["lr"] * warm
            assert schedule.at(step) == (pytest.approx(expected, rel=1e-12), None)
        seen.append(schedule.at(1000)[0])
        schedule.after_epoch(figure if mode == "min" else figure - 2)
        reference.step(figure if mode == "min" else 2 - figure)
    assert len(set(seen)) > 3


def test_a_plateau_goes_on_from_its_saved_state_as_if_it_had_never_stopped() -> None:
    config = TrainConfig(lr=0.2, schedule="plateau", plateau_patience=2, patience=0)
    values = figures(2)
    whole, seen = Schedule(config, 4), []
    for figure in values:
        whole.after_epoch(figure)
        seen.append((whole.at(500), whole.state_dict()))
    for stop in range(len(values)):
        first, second = Schedule(config, 4), Schedule(config, 4)
        for figure in values[:stop]:
            first.after_epoch(figure)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for figure, expected in zip(values[stop:], seen[stop:], strict=True):
            second.after_epoch(figure)
            assert (second.at(500), second.state_dict()) == expected
    assert len({rate for (rate, _), _ in seen}) > 2


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "one-cycle"])
def test_every_other_schedule_depends_on_the_step_alone(name: str) -> None:
    config = TrainConfig(epochs=4, schedule=name, plateau_patience=0)
    schedule = Schedule(config, 5)
    for step in (19, 3, 11, 3):
        schedule.after_epoch(7.0)
        assert schedule.at(step) == Schedule(config, 5).at(step)


def test_a_plateau_that_could_never_lower_the_rate_is_refused() -> None:
    message = r"train: .*plateau_patience=4 the rate falls after 5 epochs; .*found 5"
    with pytest.raises(DataError, match=message):
        load_recipe("mnist", ["train.schedule=plateau", "train.patience=5"])
    for patience in (0, 6):
        load_recipe("mnist", ["train.schedule=plateau", f"train.patience={patience}"])
    load_recipe("mnist", ["train.patience=5"])
