"""The training loop.

Rows are indexed in shuffled batches, changed at random where the recipe says so, and go through
the very preprocessing that is exported. Between two steps a run can be saved, and continued to
the bit; several processes (`ranks`) share each step's rows and take the same steps.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from artifacts.errors import DataError
from artifacts.manifest import Epoch
from training.augment import augment_pixels, cut_out, mix
from training.average import WeightAverage
from training.batch_norm import restore_batch_norm, synchronise_batch_norm
from training.batches import Batches
from training.checkpoints import Checkpoints
from training.divergence import check_epoch, check_finite, gradient_norm, is_finite
from training.evaluation import evaluate
from training.interrupts import Interrupted, Interrupts
from training.losses import class_weights, loss_of, predicted_class
from training.optim import make_optimizers, set_rates
from training.precision import autocast, loss_scaler
from training.ranks import ALONE, Ranks
from training.recipe import AugmentConfig, TrainConfig
from training.schedule import Schedule
from training.state import TrainingState

# The loss and the gradient's norm are looked at every so many steps: each look waits for the
# device.
_LOOK_EVERY = 50
# Far apart, so that no two processes draw the same dropout masks.
_SEED_STRIDE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Fit:
    """What a run found; the network then holds the weights of `kept_epoch`."""

    history: tuple[Epoch, ...]
    kept_epoch: int
    stopped_early: bool


@dataclass(frozen=True)
class Backbone:
    """The part of a network that came with weights of its own.

    head: the names of the network's other parameters, which train from the start.
    freeze_epochs: how long the backbone stays as it is. lr: its rate, as a share of the head's.
    """

    head: frozenset[str]
    freeze_epochs: int
    lr: float


def fit(
    network: nn.Module,
    preprocess: nn.Module,
    train: Batches,
    validation: Batches,
    config: TrainConfig,
    show: Callable[[Epoch, float], None],
    backbone: Backbone | None = None,
    *,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    resume: dict[str, Any] | None = None,
    interrupts: Interrupts | None = None,
    examine: Callable[[nn.Module], None] | None = None,
) -> Fit:
    """Train `network` in place and leave it, in eval mode, with the weights that config.keep names.

    network: float32 [N, ...] -> logits [N, K], [N, 1] for two classes, or while training
    [N, members, ...] of either; on the batches' device. preprocess: raw [N, ...] -> float32; on
    the same device. show: called after each epoch, with its seconds; what it raises ends the run.
    examine: called before it with the network whose weights were measured, in eval mode.
    checkpoints: where the run is saved from time to time; the first rank's. resume: what one of
    them held, to go on from; the first rank's.
    interrupts: after a signal the run is saved and Interrupted is raised.
    The order of rows, the augmentation and the dropout masks depend on config.seed and the number
    of processes alone. Raises DataError when the loss is no longer finite.
    """
    device = train.device
    batch_size, used = rows_of_an_epoch(train, config, ranks)
    torch.manual_seed((config.seed + ranks.rank * _SEED_STRIDE) % 2**63)
    state = _begin(network, config, backbone, math.ceil(used / batch_size), device)
    weights = class_weights(train.labels, config)
    cast = autocast(network, config, device)
    average = WeightAverage(state.averaged, network) if config.ema else None
    synchronise_batch_norm(network, ranks)
    saved = ranks.broadcast(resume)
    if saved is not None:
        state.load_state_dict(saved["state"])
        state.load_process_state(saved["processes"][ranks.rank])
    forward: nn.Module | None = None
    data_parallel: DistributedDataParallel | None = None

    def after_step() -> None:
        """Save, and stop, where it is time to."""
        received = None if interrupts is None else interrupts.received
        due = checkpoints is not None and checkpoints.due()
        if state.finished:
            # The last time that they ask one another.
            stop, save = any(ranks.gather(received)), True
        else:
            stop, save = ranks.agree(received is not None, due)
        if stop or save:
            _save(state, checkpoints, ranks)
        if stop:
            # The signal came to any of the processes.
            raise Interrupted(next(found for found in ranks.gather(received) if found))

    with contextlib.nullcontext() if interrupts is None else interrupts.deferred():
        while not state.finished:
            began = time.perf_counter()
            network.train()
            frozen = backbone is not None and state.epoch <= backbone.freeze_epochs
            if backbone is not None:
                _set_frozen(network, backbone, frozen=frozen)
            if frozen:
                # Batch norm that is not trained keeps its statistics too.
                _frozen_to_eval(network)
            if forward is None or (backbone and state.epoch == backbone.freeze_epochs + 1):
                forward, data_parallel = _parallel_and_compiled(network, config, ranks)
            shuffled = state.begin_epoch(train.rows)[:used]
            steps = shuffled.split(batch_size)
            left = steps[state.batches :]
            mine = [piece for rows in left for piece in ranks.share(rows, config.accumulate)]
            stream = train.in_order(mine)
            lr = 0.0
            for rows in left:
                lr, momentum = state.schedule.at(state.step)
                set_rates(state.optimizers, lr, momentum)
                for optimizer in state.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                total = len(rows) if weights is None else weights[train.labels[rows]].sum()
                step_loss: Tensor | None = None
                for piece in range(config.accumulate):
                    raw, labels = next(stream)
                    inputs, partner, share = batch_inputs(raw, preprocess, config.augment)
                    waits = data_parallel is not None and piece < config.accumulate - 1
                    with data_parallel.no_sync() if waits else contextlib.nullcontext():
                        with cast():
                            logits = forward(inputs)
                        loss = loss_of(logits, labels, config.label_smoothing, weights, total)
                        if partner is not None:
                            other = loss_of(
                                logits, labels[partner], config.label_smoothing, weights, total
                            )
                            loss = share * loss + (1 - share) * other
                        # The processes' gradients are averaged, their losses to be summed.
                        scaled = loss if ranks.world == 1 else loss * ranks.world
                        state.scaler.scale(scaled).backward()
                    found = loss.detach()
                    step_loss = found if step_loss is None else step_loss + found
                    state.correct += (predicted_class(logits.detach()) == labels).sum()
                look = state.step % _LOOK_EVERY == 0 or rows is left[-1]
                norm = gradient_norm(state, config) if look or config.clip_norm else None
                for optimizer in state.optimizers:
                    state.scaler.step(optimizer)
                state.scaler.update()
                assert step_loss is not None
                state.loss_sum.add_(step_loss, alpha=len(rows))
                if look:
                    check_finite(state, ranks.sum(step_loss), norm, lr, len(steps), config)
                state.step += 1
                state.batches += 1
                if average is not None:
                    average.move(min(config.ema, state.step / (state.step + 9)))
                if rows is not left[-1]:
                    after_step()

            with cast():
                validation_loss, validation_accuracy = evaluate(
                    state.averaged, preprocess, validation, ranks
                )
            sums = ranks.sum(torch.stack([state.loss_sum, state.correct.double()])).tolist()
            train_loss, train_accuracy = sums[0] / used, sums[1] / used
            check_epoch(state, train_loss, validation_loss, lr, config)
            record = Epoch(
                epoch=state.epoch,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                lr=lr,
                gradient_norm=state.gradient_norm,
            )
            state.history.append(record)
            if note_epoch(state, record, config) and config.keep == "best":
                state.kept = copy.deepcopy(state.averaged.state_dict())
            if examine is not None:
                examine(state.averaged)
            show(record, time.perf_counter() - began)
            state.end_epoch()
            after_step()

    restore_batch_norm(network)
    network.load_state_dict(state.kept or state.averaged.state_dict())
    network.eval()
    stopped_early = len(state.history) < int(config.epochs)
    return Fit(tuple(state.history), state.kept_epoch, stopped_early)


def rows_of_an_epoch(train: Batches, config: TrainConfig, ranks: Ranks) -> tuple[int, int]:
    """Rows of a step, and of an epoch: a last step with too few rows is left out.

    A lone row has no batch statistics; the shuffle gives what is left out its turn in another
    epoch. Raises DataError where there are too few rows.
    """
    assert config.batch_size != "auto"
    least = 2 * ranks.world * config.accumulate
    if config.batch_size < least:
        raise DataError(
            f"train.batch_size: expected at least {least} for {ranks.world} processes and "
            f"train.accumulate={config.accumulate}, found {config.batch_size}"
        )
    left_over = train.rows % config.batch_size
    used = train.rows - left_over if left_over < least else train.rows
    if used < 2:
        raise DataError(f"training needs at least {least} rows, found {train.rows}")
    return config.batch_size, used


def _begin(
    network: nn.Module,
    config: TrainConfig,
    backbone: Backbone | None,
    steps_per_epoch: int,
    device: torch.device,
) -> TrainingState:
    averaged = network
    if config.ema:
        averaged = copy.deepcopy(network).requires_grad_(False)
    if backbone is None:
        optimizers = make_optimizers(network, config)
    else:
        optimizers = make_optimizers(network, config, backbone.head, backbone.lr)
    return TrainingState(
        network=network,
        averaged=averaged,
        optimizers=optimizers,
        schedule=Schedule(config, steps_per_epoch),
        scaler=loss_scaler(network, config, device),
        order=torch.Generator().manual_seed(config.seed),
        loss_sum=torch.zeros((), dtype=torch.float64, device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
    )


def _save(state: TrainingState, checkpoints: Checkpoints | None, ranks: Ranks) -> None:
    if not is_finite(state.network):
        return  # it has diverged, which the next look will say
    processes = ranks.gather(state.process_state())
    if checkpoints is not None:
        checkpoints.write(
            {"state": state.state_dict(), "processes": processes},
            epoch=state.epoch,
            batch=state.batches,
        )


def _parallel_and_compiled(
    network: nn.Module, config: TrainConfig, ranks: Ranks
) -> tuple[nn.Module, DistributedDataParallel | None]:
    """What a step calls, and the part of it that averages the gradients of all processes."""
    data_parallel = None
    forward = network
    if ranks.world > 1:
        # Buffers are alike already: batch norm's statistics are those of all rows.
        forward = data_parallel = DistributedDataParallel(network)
        data_parallel.broadcast_buffers = False  # as an argument torch 2.14 renamed it
    if config.compile:
        forward = torch.compile(forward)
    return forward, data_parallel


def monitored(record: Epoch, config: TrainConfig) -> tuple[float, float]:
    """What makes one epoch better than another: the lower pair is the better one."""
    figures = (record.validation_loss, -record.validation_accuracy)
    return figures if config.monitor == "loss" else (figures[1], figures[0])


def note_epoch(state: TrainingState, record: Epoch, config: TrainConfig) -> bool:
    """Whether it is the best one yet; the state then says what to keep and whether to go on.

    The weights themselves are the caller's to copy.
    """
    figures = monitored(record, config)
    better = figures < state.best
    if better:
        state.best, state.best_epoch = figures, record.epoch
    if better or config.keep == "last":
        state.kept_epoch = record.epoch
    state.schedule.after_epoch(figures[0])
    waited = record.epoch - state.best_epoch
    state.finished = record.epoch == config.epochs or 0 < config.patience <= waited
    return better


def batch_inputs(
    raw: Tensor, preprocess: nn.Module, config: AugmentConfig
) -> tuple[Tensor, Tensor | None, float]:
    """Network input of one training batch, and what `mix` says of it."""
    pictures = raw.ndim == 4
    inputs = preprocess(augment_pixels(raw, config) if pictures else raw)
    if pictures and config.cutout:
        inputs = cut_out(inputs, config.cutout)
    if pictures:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if config.mixup or (config.cutmix and pictures):
        return mix(inputs, config)
    return inputs, None, 1.0


def _set_frozen(network: nn.Module, backbone: Backbone, *, frozen: bool) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in backbone.head or not frozen)


def _frozen_to_eval(network: nn.Module) -> None:
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
