"""What "the same answer" means: the tolerance, the comparison, and the self-check on golden rows.

The gate before a release, `parityline verify`, the service's start and the scoring job's start
all use these. Bit-for-bit claims are about ONNX Runtime on CPU with one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from artifacts.backends import Model
from artifacts.bundle import Golden
from artifacts.devices import Device
from artifacts.errors import ParityError

ABSOLUTE = {"cpu": 1e-4, "cuda": 1e-3}
RELATIVE = 1e-3
# softmax is 1/2-Lipschitz in the largest logit difference; 1e-4 leaves room for its own rounding.
PROBABILITY = {"cpu": 1e-4, "cuda": 1e-3}


@dataclass(frozen=True)
class Comparison:
    """Actual answers against expected ones.

    failures: readable lines, the first few, each with row, expected and actual.
    row_diffs: each row's largest difference of logits, float64 [N].
    """

    rows: int
    max_abs_diff: float
    label_disagreements: int
    failures: tuple[str, ...]
    row_diffs: np.ndarray = field(compare=False, repr=False)


def tolerance(expected_logits: np.ndarray, device: Device) -> np.ndarray:
    """How far a logit may be from the expected one: absolute + 1e-3 * |logit|."""
    allowed: np.ndarray = ABSOLUTE[device] + RELATIVE * np.abs(expected_logits)
    return allowed


def compare(
    expected: tuple[np.ndarray, np.ndarray],
    actual: tuple[np.ndarray, np.ndarray],
    device: Device,
    *,
    most_failures: int = 3,
    row_names: Callable[[int], str] = "row {}".format,
) -> Comparison:
    """Compare (logits, probabilities), float32 [N, K] each, row by row.

    A row agrees when every logit is within `tolerance`, every probability is within that of
    softmax, and the top label is the same wherever the expected margin exceeds the tolerance.
    NaN and infinity never agree with anything.
    """
    logits, probabilities = (np.asarray(array, dtype=np.float64) for array in expected)
    found, found_p = (np.asarray(array, dtype=np.float64) for array in actual)
    if found.shape != logits.shape or found_p.shape != probabilities.shape:
        line = f"expected shape {logits.shape}, found {found.shape} and {found_p.shape}"
        everywhere = np.full(len(logits), np.inf)
        return Comparison(len(logits), float("inf"), len(logits), (line,), everywhere)
    allowed = tolerance(logits, device)
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - logits)
    finite = np.isfinite(np.concatenate([logits, probabilities, found, found_p], axis=1))
    close = finite.all(axis=1) & (difference <= allowed).all(axis=1)
    limit = PROBABILITY[device] + RELATIVE * np.abs(logits).max(axis=1) / 2
    close &= (np.abs(found_p - probabilities) <= limit[:, np.newaxis]).all(axis=1)
    top_two = np.argsort(logits, axis=1)[:, -2:]
    margin = np.diff(np.take_along_axis(logits, top_two, axis=1), axis=1)[:, 0]
    decided = margin > np.take_along_axis(allowed, top_two, axis=1).max(axis=1)
    other_label = decided & (found.argmax(axis=1) != logits.argmax(axis=1))
    other_label |= decided & (found_p.argmax(axis=1) != logits.argmax(axis=1))
    bad = np.flatnonzero(~close | other_label)
    failures = tuple(
        f"{row_names(int(row))}: expected logits {_short(logits[row])} probabilities "
        f"{_short(probabilities[row])}, found {_short(found[row])} {_short(found_p[row])}"
        for row in bad[:most_failures]
    )
    if len(bad) > most_failures:
        failures += (f"and {len(bad) - most_failures} more rows",)
    row_diffs = np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(axis=1, initial=0.0)
    return Comparison(
        rows=len(logits),
        max_abs_diff=float(row_diffs.max(initial=0.0)),
        label_disagreements=int(other_label.sum()),
        failures=failures,
        row_diffs=row_diffs,
    )


def self_check(model: Model, golden: Golden, device: Device, batch_size: int) -> Comparison:
    """Replay golden rows on a model as it will really run.

    Raises ParityError naming the rows that disagree with what the eager model answered, or
    saying why the model could not answer them.
    """
    try:
        logits, probabilities = run_in_batches(model, golden.raw, batch_size)
    # ONNX Runtime's and torch's errors share no base; a model that fails here cannot be used.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ParityError(f"the golden rows cannot be run on {device}: {first}") from error
    result = compare((golden.logits, golden.probabilities), (logits, probabilities), device)
    if result.failures:
        raise ParityError(f"golden.npz disagrees on {device}: {'; '.join(result.failures)}")
    return result


def one_answer(model: Model, raw: np.ndarray, batch_sizes: tuple[int, ...]) -> str | None:
    """None where each row has the same bits at all batch sizes; otherwise the first that differs.

    raw: [N, *input shape].
    """
    first: tuple[np.ndarray, np.ndarray] | None = None
    for batch_size in batch_sizes:
        answer = run_in_batches(model, raw, batch_size)
        if first is None:
            first = answer
            continue
        for name, expected, actual in zip(("logits", "probabilities"), first, answer, strict=True):
            differs = np.flatnonzero((expected != actual).any(axis=1))
            if len(differs):
                row = int(differs[0])
                return (
                    f"row {row}: {name} at batch size {batch_sizes[0]} {expected[row].tolist()}, "
                    f"at {batch_size} {actual[row].tolist()} ({len(differs)} rows differ)"
                )
    return None


def run_in_batches(model: Model, raw: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows through the model, at most batch_size at a time: logits, probabilities."""
    answers = [model(raw[start : start + batch_size]) for start in range(0, len(raw), batch_size)]
    return (
        np.concatenate([logits for logits, _ in answers]),
        np.concatenate([probabilities for _, probabilities in answers]),
    )


def _short(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:6])
    return f"[{shown}{', ...' if len(values) > 6 else ''}]"
