"""What can be found wrong in a second or two, before a run that takes hours.

It works on copies: the network, its modes and torch's random numbers stay as they were.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from artifacts.ensembles import TableEnsemble
from artifacts.errors import DataError
from training.batches import Batches
from training.fit import Backbone
from training.losses import loss_of
from training.memorize import RATES, STEPS, Memorized, independent_rows, memorize
from training.precision import autocast
from training.recipe import TrainConfig
from training.row_checks import (
    MISFITS,
    check_finite,
    check_labels,
    first_line,
    form,
    preprocessed,
    value_range,
)

_MEMORIZED_ROWS = 8
_GRADIENT_BATCHES = 4
# Of the loss at the start, in nats above ln(classes), and as a multiple of it: `_check_loss`.
_HIGHEST, _HIGHEST_UNSCALED, _UNSCALED = 60.0, 10.0, 20.0
_ANYWAY = "--no-preflight trains all the same"

_Cast = Callable[[], AbstractContextManager[object]]


def preflight(
    network: nn.Module,
    preprocess: nn.Module,
    train: Batches,
    num_classes: int,
    config: TrainConfig,
    backbone: Backbone | None = None,
    *,
    seconds: float = 2.0,
) -> str:
    """Check labels, input, network and gradients, and that it learns 8 rows; say what was found.

    network, preprocess, config, backbone: what `fit` is going to get. Labels: 0 to num_classes - 1.
    seconds: how long it may learn the 8 rows; what takes longer is said, and is no failure.
    Raises DataError, in one line with the numbers, where something is broken.
    """
    # torch imports it with the first optimizer, for seconds that are the training's, not these.
    import torch._dynamo

    began = time.perf_counter()
    check_labels(train.labels, num_classes)
    devices = [train.device] if train.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        trial = copy_without_dropout(network)
        cast = autocast(network, config, train.device)
        batches = _batches(preprocess, train, config)
        raw, inputs, labels = next(batches)
        check_finite(preprocess, train, raw)
        logits = _logits(trial, inputs, cast)
        _check_outputs(logits, len(labels), num_classes)
        loss = loss_of(logits, labels)
        _check_loss(loss.item(), num_classes, inputs, trial, fresh=backbone is None)
        _check_gradients(trial, loss, batches, _trained(network, config, backbone), cast)
        rows = independent_rows(inputs, labels, _MEMORIZED_ROWS).to(train.device)
        if len(rows) < 2:
            raise DataError(
                f"preflight: expected rows that differ, found {len(inputs)} of "
                f"{len(labels.unique())} classes that are alike after preprocessing "
                f"({value_range(inputs)}): see whether these are the data that were meant"
            )
        inputs, labels = inputs[rows], labels[rows]
        found = memorize(copy_without_dropout(network), inputs, labels, cast, seconds)
    if found.failed:
        raise DataError(_not_memorized(found, inputs))
    return (
        f"preflight: {_memorized(found)}; loss at the start {loss.item():.2f} "
        f"(ln {num_classes} = {math.log(num_classes):.2f}); {time.perf_counter() - began:.1f} s"
    )


def copy_without_dropout(network: nn.Module) -> nn.Module:
    """A copy in train mode, all of it trainable, in which nothing is dropped at random."""
    trial = copy.deepcopy(network).train().requires_grad_(True)
    for module in trial.modules():
        # torch's Dropout, and torchvision's StochasticDepth.
        if isinstance(getattr(module, "p", None), float):
            module.eval()
        if isinstance(module, TableEnsemble):
            module.category_dropout = 0.0
    return trial


def class_by_class(labels: Tensor, seed: int) -> Tensor:
    """All row numbers, shuffled, one of each class in turn for as long as it has rows; on CPU."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    classes, by_class = labels.cpu()[shuffled].sort(stable=True)
    counts = torch.bincount(classes)
    turn = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes]
    return shuffled[by_class[(turn * len(counts) + classes).argsort()]]


def _batches(
    preprocess: nn.Module, train: Batches, config: TrainConfig
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(raw, network input, labels) of a few batches, with the first rows again where all are few.

    64 rows a batch; of large pictures 8, and no more than training takes.
    """
    assert config.batch_size != "auto"
    size = max(8, train.answered_at_once // 16)
    if size < 16:
        size = min(size, config.batch_size)
    size = min(size, train.rows)
    order = class_by_class(train.labels, config.seed).repeat(_GRADIENT_BATCHES)
    for rows in order[: _GRADIENT_BATCHES * size].split(size):
        # One at a time: pictures that are decoded are so only when they are needed.
        ((raw, labels),) = train.in_order([rows])
        inputs = preprocessed(preprocess, raw)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        yield raw, inputs, labels


def _logits(network: nn.Module, inputs: Tensor, cast: _Cast) -> Tensor:
    try:
        with cast():
            logits: Tensor = network(inputs)
    except MISFITS as error:
        raise DataError(
            f"preflight: the network cannot take preprocessed input, {form(inputs)}: "
            f"{first_line(error)}"
        ) from error
    return logits


def _check_outputs(logits: Tensor, rows: int, num_classes: int) -> None:
    widths = (1, 2) if num_classes == 2 else (num_classes,)
    if logits.ndim not in (2, 3) or len(logits) != rows or logits.shape[-1] not in widths:
        raise DataError(
            f"preflight: expected logits [{rows}, {' or '.join(map(str, widths))}] for "
            f"{num_classes} classes, found {form(logits)}"
        )


def _check_loss(
    loss: float, num_classes: int, inputs: Tensor, network: nn.Module, *, fresh: bool
) -> None:
    """The loss before any step, in nats, is near ln(classes), or at least no sign of a fault.

    Seen with fresh weights, in nats above ln(classes): -0.2 to 0.7 for Parityline's networks on
    real data, residual ones 2 to 5; on noise, of 42 of torchvision's, most -0.2 to 0.5,
    EfficientNet up to 4, Inception 11, MNASNet 25 (large weights in its last layer). Pixels of 0
    to 255: 11 to 380 for linear and MLP (ReLU, GELU) without batch norm; with it, or tanh, nothing
    of the kind. So the bound is wide, and lower where input is far from unit variance, for which
    fresh weights are drawn.
    """
    if not math.isfinite(loss):
        broken = [
            name
            for name, value in network.state_dict().items()
            if value.is_floating_point() and not value.isfinite().all()
        ]
        where = (
            f"not finite are {_some(broken)}" if broken else f"the input has {value_range(inputs)}"
        )
        raise DataError(f"preflight: the loss at the start is {loss}: {where}")
    expected = math.log(num_classes)
    size = inputs.square().mean().sqrt().item()
    unscaled = fresh and size > _UNSCALED
    highest = expected * _HIGHEST_UNSCALED if unscaled else expected + _HIGHEST
    if loss > highest:
        hint = "try another model.init or model.batch_norm=true"
        if unscaled:
            hint = "scale it to about mean 0 and standard deviation 1 (data.pixels)"
        raise DataError(
            f"preflight: the loss at the start is {loss:.4g}, expected about ln {num_classes} = "
            f"{expected:.2f} and at most {highest:.4g}; the network's input has "
            f"{value_range(inputs)}: {hint}; {_ANYWAY}"
        )


def _trained(network: nn.Module, config: TrainConfig, backbone: Backbone | None) -> list[str]:
    """The names of the parameters that training is going to change."""
    assert config.epochs != "auto"
    if backbone is None:
        return [name for name, value in network.named_parameters() if value.requires_grad]
    only_head = backbone.freeze_epochs >= config.epochs
    names = [name for name, _ in network.named_parameters()]
    return [name for name in names if name in backbone.head or not only_head]


def _check_gradients(
    network: nn.Module,
    loss: Tensor,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    trained: list[str],
    cast: _Cast,
) -> None:
    """Every parameter in `trained` gets a finite gradient, and not of zeros alone every time.

    After a step in between: behind a head that starts at zero (torchvision's vision transformers)
    nothing gets any at first. A bias before a norm has none by nature: zeros are allowed to what
    has one dimension, where its module's other parameters get some.
    network: changed here.
    """
    parameters = {name: network.get_parameter(name) for name in trained}
    optimizer = torch.optim.Adam(network.parameters())
    silent = set(trained)
    for step in range(1, _GRADIENT_BATCHES + 1):
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
        unreached = [name for name, value in parameters.items() if value.grad is None]
        if unreached:
            raise DataError(
                f"preflight: no gradient reaches {len(unreached)} of {len(trained)} parameters: "
                f"{_some(unreached)}: the loss does not depend on them, a layer is unused or "
                f"detached; {_ANYWAY}"
            )
        gradients = {n: value.grad for n, value in parameters.items() if value.grad is not None}
        wild = [name for name, value in gradients.items() if not value.isfinite().all()]
        if wild:
            raise DataError(
                f"preflight: the gradient of {len(wild)} of {len(trained)} parameters is not "
                f"finite: {_some(wild)}; the loss was {loss.item():.4g}"
            )
        silent = {name for name in silent if not gradients[name].any()}
        dead = [name for name in trained if name in silent and not _excused(name, silent, network)]
        if not dead:
            return
        if step < _GRADIENT_BATCHES:
            optimizer.step()
            _, inputs, labels = next(batches)
            loss = loss_of(_logits(network, inputs, cast), labels)
    raise DataError(
        f"preflight: the gradient of {len(dead)} of {len(trained)} parameters is zero on "
        f"{_GRADIENT_BATCHES} batches of {len(labels)} rows: {_some(dead)}: what is behind them "
        "never answers (units that are dead, such as ReLU below zero for every row), or what is "
        f"before them gives nothing but zeros; {_ANYWAY}"
    )


def _excused(name: str, silent: set[str], network: nn.Module) -> bool:
    """Whether a parameter of one dimension has a sibling that gets a gradient."""
    if network.get_parameter(name).ndim > 1:
        return False
    prefix = name[: name.rfind(".") + 1]
    siblings = network.get_submodule(prefix.rstrip(".")).named_parameters(recurse=False)
    return any(prefix + sibling not in silent for sibling, _ in siblings)


def _memorized(found: Memorized) -> str:
    steps = "1 step" if found.steps == 1 else f"{found.steps} steps"
    if found.learned:
        return f"{found.right} of {found.rows} rows learned in {steps}"
    losses = f"loss of {found.rows} rows {found.start:.2f} -> {found.end:.2f}"
    if found.finished:
        return f"{losses} in {steps}, {found.right} right"
    verdict = "still falling" if found.end < 0.9 * found.start else "no verdict"
    return f"{losses} in {steps}, when its time was over: {verdict}"


def _not_memorized(found: Memorized, inputs: Tensor) -> str:
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    apart = (inputs - inputs[:1]).abs().max().item()
    if found.spread < 1e-3 * max(1.0, found.start):
        why = (
            f"its logits for them differ by {found.spread:.2g} at most, while its input differs "
            f"by {apart:.3g}: the network is cut off from its input"
        )
    else:
        why = (
            f"its logits for them differ by {found.spread:.2g}, its input by {apart:.3g}: too "
            "little of the input comes through, or the network cannot be trained as it starts "
            "(model.init, model.batch_norm)"
        )
    return (
        f"preflight: {found.rows} rows cannot be learned by heart: loss {found.start:.3g} -> "
        f"{found.end:.3g} after {STEPS} steps of Adam, the best of the rates {rates} (expected "
        f"near 0; the same answer for every row gives {found.alike:.3g}); {why}; {_ANYWAY}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
