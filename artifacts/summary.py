"""A bundle and a store in a few lines of text."""

from __future__ import annotations

from pathlib import Path

from artifacts.bundle import Bundle, read_manifest
from artifacts.cells import ColumnSpec
from artifacts.errors import BundleError
from artifacts.inputs import BooleanColumn, CategoryColumn, DateColumn, ImageInput, TableInput
from artifacts.references import list_bundles, promoted_version


def summary_lines(bundle: Bundle) -> list[str]:
    """What a person wants to know of a bundle first."""
    manifest = bundle.manifest
    spec = manifest.input
    if spec.kind == "image":
        colour = "grayscale" if spec.channels == 1 else "RGB"
        takes = f"{colour} pictures, {spec.height} x {spec.width}"
    else:
        takes = f"{len(spec.columns)} columns: {', '.join(c.name for c in spec.columns)}"
    lines = [
        manifest.reference,
        f"  path       {bundle.path}",
        f"  created    {manifest.created}",
        f"  task       {manifest.task}: {', '.join(manifest.labels)}",
        f"  input      {takes}",
        f"  network    {manifest.network.kind}, {manifest.parameters:,} parameters",
        f"  data       {manifest.data.source}, fingerprint {manifest.data.fingerprint[:16]}",
    ]
    for part, metrics in manifest.metrics.items():
        accuracy, loss = metrics.accuracy, metrics.log_loss
        lines.append(
            f"  {part:<11}accuracy {accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}]"
            f"  log loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}]  n = {metrics.rows}"
        )
    for file, parity in manifest.parity.items():
        lines.append(
            f"  parity     {file}: largest difference {parity.max_abs_diff:.2g}, "
            f"{parity.label_disagreements} other labels in {parity.rows} answers"
        )
    for file, info in sorted(manifest.files.items()):
        lines.append(f"  file       {file:<14}{info.size:>12,} bytes  sha256 {info.sha256[:16]}")
    return lines


def input_lines(spec: ImageInput | TableInput) -> list[str]:
    """What a model takes, for pictures one line, for tables one for each column."""
    if isinstance(spec, ImageInput):
        colour = "grayscale" if spec.channels == 1 else "RGB"
        return [f"{colour} pictures, {spec.height} x {spec.width}"]
    return [_column_line(column) for column in spec.columns]


def _column_line(column: ColumnSpec) -> str:
    if isinstance(column, CategoryColumn):
        shown = ", ".join(column.categories[:6])
        more = len(column.categories) - 6
        what = shown + (f" and {more} more" if more > 0 else "")
    elif isinstance(column, BooleanColumn):
        what = "true or false"
    elif isinstance(column, DateColumn):
        what = f"{column.low} to {column.high}"
    else:
        what = f"{column.low:g} to {column.high:g}"
    missing = "missing cells answered" if column.missing == "fill" else "never missing"
    return f"column {column.name!r}: {column.type}, {what}; {missing}"


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
