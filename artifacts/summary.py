"""A bundle and a store in a few lines of text; see `artifacts.tables` for a terminal's."""

from __future__ import annotations

from typing import Any

from artifacts.bundle import Bundle
from artifacts.cells import ColumnSpec
from artifacts.configs import describe_network
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.manifest import Manifest, Metrics, Study

_MOST_COLUMNS = 30
_LONGEST_VALUES = 60


Facts = list[tuple[str, str]]


def summary_lines(bundle: Bundle) -> list[str]:
    """What a person wants to know of a bundle first."""
    manifest = bundle.manifest
    facts = [*about(bundle), *figures(manifest), *fit(manifest), *files(manifest)]
    return [manifest.reference, *(f"  {what:<10} {text}" for what, text in facts)]


def about(bundle: Bundle) -> Facts:
    """What it is, and what it was made of."""
    manifest = bundle.manifest
    columns = column_lines(manifest.input)
    takes = f"{len(columns)} columns" if columns else describe_input(manifest.input)
    return [
        ("path", str(bundle.path)),
        ("created", manifest.created),
        ("task", f"{manifest.task}, {len(manifest.labels)} labels: {', '.join(manifest.labels)}"),
        ("input", takes),
        *(("column", line) for line in columns),
        (
            "network",
            f"{describe_network(manifest.network)}, {manifest.parameters:,} parameters",
        ),
        ("data", f"{manifest.data.source}, fingerprint {manifest.data.fingerprint[:16]}"),
        *(("note", note) for note in manifest.data.notes),
    ]


def figures(manifest: Manifest) -> Facts:
    """Each part's metrics with their 95% intervals."""
    found = []
    for part, metrics in measured(manifest).items():
        shown = "  ".join(
            f"{name} {figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
            for name, figure in metrics.headline.items()
        )
        found.append((part, f"{shown}  n = {metrics.rows}"))
    return found


def measured(manifest: Manifest) -> dict[str, Metrics]:
    """The metrics by part, and those of answering without a model."""
    without = {} if manifest.baseline is None else {"no model": manifest.baseline}
    return {**manifest.metrics, **without}


def fit(manifest: Manifest) -> Facts:
    """Calibration, threshold, verdict and study, as far as the manifest has them."""
    found = []
    if manifest.calibration is not None and manifest.calibration.note is not None:
        found.append(("calibrated", f"no: {manifest.calibration.note}"))
    elif manifest.calibration is not None:
        before, after = manifest.calibration.before["test"], manifest.calibration.after["test"]
        text = (
            f"temperature {manifest.temperature:.4g}; of the test part: ECE "
            f"{before.ece:.4f} -> {after.ece:.4f}, log loss {before.log_loss.value:.4f} -> "
            f"{after.log_loss.value:.4f}, Brier score {before.brier.value:.4f} -> "
            f"{after.brier.value:.4f}"
        )
        found.append(("calibrated", text))
    if manifest.threshold != 0.5:
        text = f"{manifest.labels[1]} where its probability is above {manifest.threshold:g}"
        found.append(("threshold", text))
    if manifest.verdict is not None:
        found.append(("verdict", manifest.verdict.text))
        found += [("to try", line) for line in manifest.verdict.advice]
    if manifest.study is not None:
        found += [("study", line) for line in study_lines(manifest.study)]
    return found


def files(manifest: Manifest) -> Facts:
    """How near each format is to the trained model and how fast, and what every file must be."""
    near = [
        (
            "parity",
            f"{file}: largest difference {parity.max_abs_diff:.2g}, "
            f"{parity.label_disagreements} other labels in {parity.rows} answers",
        )
        for file, parity in manifest.parity.items()
    ]
    fast = [
        (
            "speed",
            f"{file}: {speed.alone:,.0f} answers/s one by one, {speed.batched:,.0f} in batches of "
            f"{speed.batch_size}, on one CPU thread",
        )
        for file, speed in (manifest.speed.formats if manifest.speed else {}).items()
    ]
    return [*near, *fast] + [
        ("file", f"{file:<14}{info.size:>12,} bytes  sha256 {info.sha256[:16]}")
        for file, info in sorted(manifest.files.items())
    ]


def study_lines(study: Study) -> list[str]:
    """The search that found a model, and what it brought."""
    ended = ", ".join(f"{count} {state}" for state, count in study.trials.items())
    which = "the recipe as it is" if study.unchanged else f"trial {study.trial}"
    lines = [
        f"{study.name}: {sum(study.trials.values())} trials ({ended}) by {study.sampler}, pruner "
        f"{study.pruner}; {which} had {study.objective} {study.value:.4f} on the validation part"
    ]
    if study.params and not study.unchanged:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in study.params.items())
        lines.append(f"it set {shown}")
    if study.members:
        lines.append(f"averaged: trials {', '.join(map(str, study.members))}")
    if study.difference is not None:
        found = study.difference
        lines.append(
            f"test accuracy, trial {study.best_trial} less the recipe as it is, {study.repeats} "
            f"seeds each: {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        )
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_input(spec: ImageInput | TableInput) -> str:
    """In a few words what a model takes: the pictures' size, or the columns with their types."""
    if isinstance(spec, ImageInput):
        colour = "grayscale" if spec.channels == 1 else "RGB"
        return f"{colour} pictures of {spec.height} x {spec.width} pixels"
    count = f"{len(spec.columns)} column{'' if len(spec.columns) == 1 else 's'}"
    shown = spec.columns[:_MOST_COLUMNS]
    more = f" and {len(spec.columns) - len(shown)} more" if len(spec.columns) > len(shown) else ""
    if spec.only_numbers:
        return f"{count} of numbers: {', '.join(column.name for column in shown)}{more}"
    return f"{count}: {', '.join(f'{c.name} ({_type_text(c)})' for c in shown)}{more}"


def _type_text(column: ColumnSpec) -> str:
    if not isinstance(column, CategoryColumn):
        return column.type
    count = len(column.categories)
    return f"{count} categor{'y' if count == 1 else 'ies'}"


def column_lines(spec: ImageInput | TableInput) -> list[str]:
    """A table's columns with type, range or categories, and what becomes of a missing cell."""
    if isinstance(spec, ImageInput) or len(spec.columns) > _MOST_COLUMNS:
        return []
    rows = column_rows(spec)
    names, widest = (max(len(row[place]) for row in rows) for place in (0, 2))
    return [
        f"{name:<{names}}  {kind:<8}  {values:<{widest}}  missing: {missing}"
        for name, kind, values, missing in rows
    ]


def column_rows(spec: TableInput) -> list[tuple[str, str, str, str]]:
    """Each column's name, type, range or categories, and what becomes of a missing cell."""
    return [
        (c.name, c.type, values_text(c), "answered" if c.missing == "fill" else "refused")
        for c in spec.columns
    ]


def values_text(column: ColumnSpec) -> str:
    """What a column held in training: its range, or its categories as far as they fit a line."""
    if isinstance(column, Column):
        return f"{column.low:g} to {column.high:g}"
    if isinstance(column, BooleanColumn):
        return "true or false"
    if isinstance(column, DateColumn):
        return f"{column.low} to {column.high}"
    text = f"{_type_text(column)}: {', '.join(column.categories)}"
    return text if len(text) <= _LONGEST_VALUES else f"{text[: _LONGEST_VALUES - 3]}..."


def list_lines(entries: list[dict[str, Any]]) -> list[str]:
    """What `artifacts.facts.list_facts` has found, a line each; * marks a promoted version."""
    lines = []
    for entry in entries:
        line = f"{'*' if entry['promoted'] else ' '} {entry['reference']}"
        if "error" in entry:
            lines.append(f"{line}  unreadable: {entry['error']}")
            continue
        line += f"  {entry['created']}"
        if entry["test"] is not None:
            line += f"  test accuracy {entry['test']['accuracy']['value']:.4f}"
        lines.append(line)
    return lines
