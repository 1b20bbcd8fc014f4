"""A bundle and a store in a few lines of text."""

from __future__ import annotations

from pathlib import Path

from artifacts.bundle import Bundle, read_manifest
from artifacts.cells import ColumnSpec
from artifacts.configs import describe_network
from artifacts.errors import BundleError
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.manifest import Manifest, Study
from artifacts.references import list_bundles, promoted_version

_MOST_COLUMNS = 30
_LONGEST_VALUES = 60


def summary_lines(bundle: Bundle) -> list[str]:
    """What a person wants to know of a bundle first."""
    manifest = bundle.manifest
    columns = column_lines(manifest.input)
    takes = f"{len(columns)} columns" if columns else describe_input(manifest.input)
    lines = [
        manifest.reference,
        f"  path       {bundle.path}",
        f"  created    {manifest.created}",
        f"  task       {manifest.task}: {', '.join(manifest.labels)}",
        f"  input      {takes}",
        *(f"  column     {line}" for line in columns),
        f"  network    {describe_network(manifest.network)}, {manifest.parameters:,} parameters",
        f"  data       {manifest.data.source}, fingerprint {manifest.data.fingerprint[:16]}",
        *(f"  note       {note}" for note in manifest.data.notes),
    ]
    measured = dict(manifest.metrics)
    if manifest.baseline is not None:
        measured["no model"] = manifest.baseline
    for part, metrics in measured.items():
        shown = "  ".join(
            f"{name} {figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
            for name, figure in metrics.headline.items()
        )
        lines.append(f"  {part:<11}{shown}  n = {metrics.rows}")
    lines += _fit_lines(manifest)
    if manifest.study is not None:
        lines += [f"  study      {line}" for line in study_lines(manifest.study)]
    for file, parity in manifest.parity.items():
        lines.append(
            f"  parity     {file}: largest difference {parity.max_abs_diff:.2g}, "
            f"{parity.label_disagreements} other labels in {parity.rows} answers"
        )
    for file, speed in manifest.speed.formats.items() if manifest.speed is not None else ():
        lines.append(
            f"  speed      {file}: {speed.alone:,.0f} answers/s one by one, {speed.batched:,.0f} "
            f"in batches of {speed.batch_size}, on one CPU thread"
        )
    for file, info in sorted(manifest.files.items()):
        lines.append(f"  file       {file:<14}{info.size:>12,} bytes  sha256 {info.sha256[:16]}")
    return lines


def _fit_lines(manifest: Manifest) -> list[str]:
    """Calibration, threshold and verdict, as far as the manifest has them."""
    lines = []
    if manifest.calibration is not None and manifest.calibration.note is not None:
        lines.append(f"  calibrated no: {manifest.calibration.note}")
    elif manifest.calibration is not None:
        before, after = manifest.calibration.before["test"], manifest.calibration.after["test"]
        lines.append(
            f"  calibrated temperature {manifest.temperature:.4g}; of the test part: ECE "
            f"{before.ece:.4f} -> {after.ece:.4f}, log loss {before.log_loss.value:.4f} -> "
            f"{after.log_loss.value:.4f}, Brier score {before.brier.value:.4f} -> "
            f"{after.brier.value:.4f}"
        )
    if manifest.threshold != 0.5:
        lines.append(
            f"  threshold  {manifest.labels[1]} where its probability is above "
            f"{manifest.threshold:g}"
        )
    if manifest.verdict is not None:
        lines.append(f"  verdict    {manifest.verdict.text}")
        lines += [f"  to try     {line}" for line in manifest.verdict.advice]
    return lines


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
    names = max(len(column.name) for column in spec.columns)
    found = [values_text(column) for column in spec.columns]
    widest = max(map(len, found))
    return [
        f"{column.name:<{names}}  {column.type:<8}  {values:<{widest}}  "
        f"missing: {'answered' if column.missing == 'fill' else 'refused'}"
        for column, values in zip(spec.columns, found, strict=True)
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


def list_lines(store: Path) -> list[str]:
    """The store, one line a version, newest first within a name; * marks the promoted one."""
    lines = []
    for name, versions in list_bundles(store).items():
        promoted = promoted_version(store, name)
        for version in versions:
            mark = "*" if version == promoted else " "
            try:
                manifest = read_manifest(store / name / version)
            except BundleError as error:
                lines.append(f"{mark} {name}@{version}  unreadable: {error}")
                continue
            line = f"{mark} {manifest.reference}  {manifest.created}"
            if "test" in manifest.metrics:
                line += f"  test accuracy {manifest.metrics['test'].accuracy.value:.4f}"
            lines.append(line)
    return lines or [f"no bundles in {store}; train one: parityline train digits"]
