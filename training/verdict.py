"""The verdict on a fit: underfitting, overfitting or fine, from its curves and its metrics.

The losses and accuracies of the training part in the history were measured while it was trained
on, with augmentation, dropout and label smoothing: they are compared with themselves alone. Train
and test are compared by the metrics of the released model.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifacts.estimates import difference_interval
from artifacts.manifest import Epoch, Metrics, Verdict
from training.advice import against_overfitting, against_underfitting
from training.recipe import Recipe

# Of accuracy: what a gap's whole interval must exceed to count beside a rise of the loss; that and
# the gap to count alone.
_SOME_GAP, _SURE_GAP, _LARGE_GAP = 0.02, 0.05, 0.10
# Of what the labels' frequencies leave open: the same, and how little of it is next to nothing.
_SOME_LOSS, _LARGE_LOSS, _NO_SKILL, _NO_AUC = 0.1, 0.3, 0.05, 0.6
_RISE = 0.05
_STILL_FALLING, _OF_THE_GAIN = 0.2, 0.15
_FITTED = 0.98


@dataclass(frozen=True)
class _Rise:
    """Validation loss at its lowest, and how high it was at the end."""

    epoch: int
    lowest: float
    end: float


def judge(
    history: Sequence[Epoch],
    kept_epoch: int,
    metrics: Mapping[str, Metrics],
    validation_loss_error: float,
    recipe: Recipe,
) -> Verdict:
    """What went well or wrong, and what to try.

    metrics: of "train" and "test", with the figures of each label. validation_loss_error: the
    standard error of the validation loss in the history, in nats.

    Overfitting: validation loss rose from its lowest by more than a standard error (the rule of
    Breiman et al. 1984), 5% and the epochs' own jitter while training loss kept falling, and
    either the kept weights are from then or accuracy on the training part is above that on the
    test part by 2 points beyond the interval; or this gap is 10 points, 5 beyond the interval; or
    the log loss of the training part explains more of the labels' entropy than that of the test
    part, by 0.3 and 0.1 beyond the interval.
    Underfitting: next to nothing was learnt; or there is no gap, less than 98% of the training
    rows are right, and the second half of the epochs brought validation loss down by a fifth, or
    brought 15% of all that was gained over the labels' frequencies.
    """
    train, test = metrics["train"], metrics["test"]
    gap = difference_interval(train.accuracy, test.accuracy)
    entropy = _entropy(train)
    shares = (
        f"{_percent(train)} of the training rows are right and {_percent(test)} of the test rows"
    )
    points = f"a gap of {100 * gap.value:.1f} points [{100 * gap.low:.1f}, {100 * gap.high:.1f}]"

    kept_loss = history[kept_epoch - 1].validation_loss
    lowest = min(record.validation_loss for record in history)
    # It was measured with the kept weights; a loss and its error grow together.
    error = validation_loss_error * lowest / kept_loss if kept_loss else 0.0
    rise = _rise(history, error)
    past = rise is not None and kept_epoch > rise.epoch and _above(kept_loss, lowest, error)
    if rise and (past or gap.low > _SOME_GAP):
        kept = "" if past else f"; the weights of epoch {kept_epoch}, before it rose, are kept"
        return Verdict(
            kind="overfitting",
            gap=gap,
            since_epoch=rise.epoch,
            text=f"overfitting since epoch {rise.epoch}: validation loss rose from "
            f"{rise.lowest:.4f} to {rise.end:.4f} while training loss kept falling{kept}; {shares}",
            advice=against_overfitting(recipe, past=past),
        )
    large_gap = gap.low > _SURE_GAP and gap.value > _LARGE_GAP
    if large_gap or _lost_skill(train, test, entropy):
        text = f"overfitting: {shares}, {points}"
        if not large_gap:
            text = (
                f"overfitting: log loss is {train.log_loss.value:.4f} on the training part and "
                f"{test.log_loss.value:.4f} on the test part"
            )
        return Verdict(
            kind="overfitting", gap=gap, text=text, advice=against_overfitting(recipe, past=False)
        )
    if _learned_nothing(train, entropy):
        return Verdict(
            kind="underfitting",
            gap=gap,
            text="underfitting: the training rows are predicted hardly better than by the labels' "
            "frequencies; do the labels belong to their rows?",
            advice=against_underfitting(recipe, unfinished=False, balanced=_balanced(train)),
        )
    if gap.low <= _SOME_GAP and train.accuracy.value < _FITTED:
        before = _halfway_loss(history, entropy)
        since = "halfway" if len(history) > 1 else "by the labels' frequencies"
        if _still_falling(history, before, entropy, error):
            return Verdict(
                kind="underfitting",
                gap=gap,
                text=f"underfitting: validation loss still fell, from {before:.4f} {since} to "
                f"{history[-1].validation_loss:.4f} at the end; {shares}",
                advice=against_underfitting(recipe, unfinished=True, balanced=_balanced(train)),
            )
    note = ""
    if rise is not None:
        note = (
            f"; validation loss rose after epoch {rise.epoch}, the weights of epoch {kept_epoch} "
            "are kept"
        )
    return Verdict(kind="fine", gap=gap, text=f"fine: {shares}, {points}{note}")


def _rise(history: Sequence[Epoch], error: float) -> _Rise | None:
    losses = [record.validation_loss for record in history]
    if len(losses) < 2:
        return None
    best, last = losses.index(min(losses)), history[-3:]
    end = statistics.median(record.validation_loss for record in last)
    jitter = statistics.median(abs(b - a) for a, b in itertools.pairwise(losses))
    fell = statistics.median(r.train_loss for r in last) < history[best].train_loss
    if fell and _above(end, losses[best], error) and end - losses[best] > 2 * jitter:
        return _Rise(history[best].epoch, losses[best], end)
    return None


def _above(loss: float, lowest: float, error: float) -> bool:
    return loss - lowest > max(error, _RISE * lowest)


def _entropy(train: Metrics) -> float:
    """Of the labels' frequencies in the training part, in nats: the log loss of knowing no more."""
    shares = [figures.support / train.rows for figures in train.per_label.values()]
    return -sum(share * math.log(share) for share in shares if share > 0)


def _balanced(train: Metrics) -> bool:
    """Whether every label has at least half of its fair share of the rows."""
    least = min(figures.support for figures in train.per_label.values())
    return least * len(train.per_label) * 2 >= train.rows


def _lost_skill(train: Metrics, test: Metrics, entropy: float) -> bool:
    """Whether the training part's log loss explains much more of the entropy."""
    more = difference_interval(test.log_loss, train.log_loss)
    return more.low > _SOME_LOSS * entropy and more.value > _LARGE_LOSS * entropy


def _learned_nothing(train: Metrics, entropy: float) -> bool:
    ranks = train.auc is not None and train.auc.low > _NO_AUC
    return not ranks and train.log_loss.value > (1 - _NO_SKILL) * entropy


def _halfway_loss(history: Sequence[Epoch], entropy: float) -> float:
    """Validation loss after half of the epochs; before the first one, that of knowing nothing."""
    half = len(history) // 2
    return history[half - 1].validation_loss if half else entropy


def _still_falling(history: Sequence[Epoch], before: float, entropy: float, error: float) -> bool:
    last = history[-1].validation_loss
    lowest = min(record.validation_loss for record in history)
    fall = before - last
    # A rate that is annealed, or too low, flattens the curve before the model is done.
    much = _STILL_FALLING * last
    if last < entropy:
        much = min(much, _OF_THE_GAIN * (entropy - last))
    return last - lowest <= error and fall > max(error, much)


def _percent(figures: Metrics) -> str:
    return f"{100 * figures.accuracy.value:.1f}%"
