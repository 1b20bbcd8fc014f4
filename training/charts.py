"""The report's charts, as SVG inside the page."""

from __future__ import annotations

from collections.abc import Sequence

from artifacts.manifest import Epoch, ReliabilityBin


def learning_curves(history: Sequence[Epoch], kept_epoch: int) -> str:
    """Training and validation loss by epoch, with the epoch whose weights are kept."""
    width, height, left, top = 640, 260, 50, 15
    lines = {
        "training loss": ([record.train_loss for record in history], "var(--a)", ""),
        "validation loss": ([r.validation_loss for r in history], "var(--b)", "6 3"),
    }
    largest = max(max(values) for values, _, _ in lines.values()) or 1.0
    span = max(1, len(history) - 1)

    def point(epoch: int, value: float) -> str:
        x = left + (width - left - 20) * (epoch - 1) / span
        y = top + (height - top - 40) * (1 - value / largest)
        return f"{x:.1f},{y:.1f}"

    body, legend = "", left + 20
    for name, (values, colour, dash) in lines.items():
        points = " ".join(point(epoch, value) for epoch, value in enumerate(values, start=1))
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        body += f'<polyline points="{points}" fill="none" {stroke}/>'
        body += f'<line x1="{legend}" x2="{legend + 30}" y1="{height - 8}" y2="{height - 8}" '
        body += f'{stroke}/><text x="{legend + 36}" y="{height - 4}">{name}</text>'
        legend += 180
    x, _ = point(kept_epoch, 0).split(",")
    body += f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - 40}" stroke="currentColor" '
    body += f'stroke-dasharray="2 4"/><text x="{x}" y="{height - 26}" '
    # At the right edge the words would leave the picture.
    anchor = "end" if kept_epoch > len(history) / 2 else "start"
    body += f'text-anchor="{anchor}">epoch {kept_epoch}</text>'
    body += f'<text x="4" y="{top + 8}">{largest:.2f}</text><text x="4" y="{height - 40}">0</text>'
    last = history[-1]
    alt = (
        f"Loss by epoch: training ends at {last.train_loss:.4f}, validation at "
        f"{last.validation_loss:.4f}; the weights of epoch {kept_epoch} are kept."
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="100%" role="img" '
        f'aria-label="{alt}">{body}</svg><figcaption>{alt}</figcaption></figure>'
    )


def reliability_diagram(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], description: str
) -> str:
    """Accuracy against mean confidence in each bin, before and after; circles grow with the rows.

    description: what it shows, in words, for those who cannot see it.
    """
    size, left, top = 320, 45, 10
    width, height = left + size + 20, top + size + 62

    def place(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + size * confidence, top + size * (1 - accuracy)

    (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
    body = (
        f'<rect x="{x1}" y="{y2}" width="{size}" height="{size}" fill="none" stroke="var(--line)"/>'
    )
    body += f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor" '
    body += 'stroke-dasharray="2 4"/>'
    for index, (name, bins, colour, dash) in enumerate(
        (("before", before, "var(--b)", "6 3"), ("after", after, "var(--a)", ""))
    ):
        rows = sum(entry.rows for entry in bins)
        points = [
            (*place(entry.confidence, entry.accuracy), entry.rows / rows)
            for entry in bins
            if entry.confidence is not None and entry.accuracy is not None
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        body += f'<polyline points="{line}" fill="none" {stroke}/>'
        body += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 8 * share**0.5:.1f}" fill="{colour}" '
            'fill-opacity="0.5"/>'
            for x, y, share in points
        )
        legend, y = left + 20 + 130 * index, height - 8
        body += f'<line x1="{legend}" x2="{legend + 30}" y1="{y}" y2="{y}" {stroke}/>'
        body += f'<text x="{legend + 36}" y="{y + 4}">{name}</text>'
    for value in (0, 0.5, 1):
        x, y = place(value, value)
        body += f'<text x="{x}" y="{top + size + 16}" text-anchor="middle">{value:g}</text>'
        body += f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    body += (
        f'<text x="{left + size / 2}" y="{top + size + 34}" text-anchor="middle">confidence</text>'
    )
    body += (
        f'<text transform="translate(12 {top + size / 2}) rotate(-90)" '
        'text-anchor="middle">accuracy</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{description}">{body}</svg><figcaption>{description}</figcaption></figure>'
    )
