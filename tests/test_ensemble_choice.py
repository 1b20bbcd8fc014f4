"""Which of several networks are worth averaging."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from artifacts.errors import DataError
from training.tuning.ensemble import choose_ensemble


def log_loss_of(logits: Sequence[np.ndarray], labels: np.ndarray) -> float:
    mean = torch.from_numpy(np.mean(logits, axis=0, dtype=np.float64))
    return float(functional.cross_entropy(mean, torch.from_numpy(labels)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), candidates=st.integers(1, 6), classes=st.integers(2, 4))
def test_each_member_chosen_improves_and_none_that_is_left_would(
    seed: int, candidates: int, classes: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, 60)
    truth = 2 * np.eye(classes)[labels]
    logits = [
        (truth + generator.normal(0, 1 + place / 3, truth.shape)).astype(np.float32)
        for place in range(candidates)
    ]
    chosen = choose_ensemble(logits, labels, "log_loss")
    assert chosen[0] == 0 and len(set(chosen)) == len(chosen)
    losses = [log_loss_of([logits[i] for i in chosen[: n + 1]], labels) for n in range(len(chosen))]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == len(losses)
    members = [logits[i] for i in chosen]
    left = [i for i in range(candidates) if i not in chosen]
    assert all(log_loss_of([*members, logits[i]], labels) > losses[-1] - 2e-6 for i in left)
    assert choose_ensemble(logits, labels, "log_loss") == chosen


@pytest.mark.parametrize("objective", ["accuracy", "log_loss", "auc"])
def test_the_candidate_that_helps_most_is_taken_before_those_that_help_less(objective) -> None:
    labels = np.tile([0, 1], 50)
    truth = np.eye(2)[labels]
    # Wrong on 20 rows; its like that is right on 10 of them; one that makes up for all of them and
    # is wrong, less surely, elsewhere.
    best, other = truth.copy(), truth.copy()
    best[:20] = 1 - truth[:20]
    half = best.copy()
    half[:10] = 2 * truth[:10]
    other[:20], other[40:60] = 2 * truth[:20], 0.5 * (1 - truth[40:60])
    logits = [each.astype(np.float32) for each in (best, best, half, other)]
    chosen = choose_ensemble(logits, labels, objective)
    assert chosen[:2] == (0, 3)
    assert choose_ensemble(logits[:2], labels, objective) == (0,)


def test_no_more_are_chosen_than_an_ensemble_can_hold() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 2000)
    truth = np.eye(2)[labels]
    logits = [(truth + generator.normal(0, 3, truth.shape)).astype(np.float32) for _ in range(20)]
    assert len(choose_ensemble(logits, labels, "log_loss")) == 16


def test_candidates_that_answer_no_numbers_are_never_chosen() -> None:
    labels = np.tile([0, 1, 2], 20)
    good = np.eye(3, dtype=np.float32)[labels]
    broken = np.full_like(good, np.nan)
    for objective in ("accuracy", "log_loss", "auc"):
        assert choose_ensemble([good, broken, broken], labels, objective) == (0,)
    assert choose_ensemble([good, broken, 2 * good], labels, "log_loss") == (0, 2)
    # Where nearly all are of the first class, which is what no numbers are taken for.
    often = np.where(np.arange(60) < 50, 0, labels)
    assert choose_ensemble([good, broken], often, "accuracy") == (0,)
    # AUC is of no meaning where a class has no row.
    assert choose_ensemble([good, 2 * good], labels % 2, "auc") == (0,)
    assert choose_ensemble([good, 2 * good], labels, "log_loss") == (0, 1)


@pytest.mark.parametrize("shapes", [[], [(4, 3), (4, 2)], [(4, 3), (5, 3)], [(4,)]])
def test_logits_of_other_shapes_are_refused(shapes: list[tuple[int, ...]]) -> None:
    logits = [np.zeros(shape, dtype=np.float32) for shape in shapes]
    with pytest.raises(DataError, match="the same for each member, found"):
        choose_ensemble(logits, np.zeros(4, dtype=np.int64), "accuracy")
