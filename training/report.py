"""`report.html` and `parity.json`: what a person, and a program, read about a bundle."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts.manifest import Epoch, Estimate, Manifest
from artifacts.summary import describe_input
from training.fit import Fit

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --a: #0072b2; --b: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
figure { margin: 1rem 0; overflow-x: auto } figcaption { color: GrayText }
pre { background: var(--soft); padding: 1rem; overflow-x: auto }
.confusion td { text-align: center } svg text { fill: currentColor; font-size: 12px }
"""


def encode_parity(report: dict[str, Any]) -> bytes:
    """The gate's report as the bytes of `parity.json`."""
    return (json.dumps(report, indent=2) + "\n").encode()


def render_report(
    manifest: Manifest, fitted: Fit, parity: dict[str, Any], confusion: np.ndarray
) -> str:
    """One self-contained page. confusion: int64 [K, K] of the test part, rows are true classes.

    It holds no time of day and no path: the same training gives the same page.
    """
    title = html.escape(f"{manifest.name}: classifier report")
    rows = manifest.data.rows
    gap = manifest.metrics["train"].accuracy.value - manifest.metrics["test"].accuracy.value
    metrics = _table(
        ["part", "rows", "accuracy [95%]", "AUC [95%]", "log loss [95%]"],
        [
            [
                name, f"{m.rows}", _interval(m.accuracy),
                "" if m.auc is None else _interval(m.auc), _interval(m.log_loss),
            ]
            for name, m in manifest.metrics.items()
        ],
    )  # fmt: skip
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in manifest.data.notes)
    gate = _table(
        ["format", "batch size", "rows", "largest difference of logits", "other labels"],
        [
            [name, size, str(r["rows"]), f"{r['max_abs_diff']:.2g}", str(r["label_disagreements"])]
            for name, by_size in parity["formats"].items()
            for size, r in by_size.items()
        ],
    )
    recipe = json.dumps(
        {key: manifest.recipe[key] for key in ("model", "transfer", "train", "export")}, indent=2
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(manifest.name)}</h1>
<p>A {manifest.task} classifier of {len(manifest.labels)} labels:
{html.escape(", ".join(manifest.labels))}. Trained on {rows["train"]} rows of
{html.escape(manifest.data.source)}, chosen on {rows["validation"]}, tested once on {rows["test"]}.
Network: {manifest.network.kind}, {manifest.parameters:,} parameters; input:
{html.escape(describe_input(manifest.input))}.</p>
{f"<p>Of the data:</p><ul>{notes}</ul>" if notes else ""}
<h2>How good it is</h2>{metrics}
<p>Accuracy on the training part is {abs(gap) * 100:.1f} points
{"above" if gap >= 0 else "below"} that on the test part.</p>
<h2>Learning curves</h2>{_curves(fitted.history, fitted.kept_epoch)}
<h2>Confusion matrix</h2>{_confusion(confusion, manifest.labels)}
<h2>Parity gate</h2>
<p>Every format against the trained model on {parity["held_out_rows"]} held-out rows and
{parity["edge_rows"]} edge inputs; allowed: {html.escape(parity["tolerance"])}.
{html.escape(parity["one_answer"].capitalize())}.</p>{gate}
<h2>How it was made</h2><pre>{html.escape(recipe)}</pre>
<p>Seed {manifest.seed}; data fingerprint <code>{manifest.data.fingerprint}</code>;
{html.escape(", ".join(f"{k} {v}" for k, v in manifest.packages.items()))}.</p>
</body></html>
"""


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _table(head: list[str], body: list[list[str]]) -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"


def _confusion(confusion: np.ndarray, labels: Sequence[str]) -> str:
    head = "<th>true \\ predicted</th>" + "".join(
        f"<th>{html.escape(name)}</th>" for name in labels
    )
    largest = max(1, int(confusion.max()))
    body = ""
    for name, counts in zip(labels, confusion, strict=True):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--a) '
            f'{round(60 * count / largest)}%, transparent)">{count}</td>'
            for count in counts.tolist()
        )
        body += f"<tr><th>{html.escape(name)}</th>{cells}</tr>"
    return (
        '<figure><table class="confusion"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
        "<figcaption>Rows of the test part, counted.</figcaption></figure>"
    )


def _curves(history: Sequence[Epoch], best_epoch: int) -> str:
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
    x, _ = point(best_epoch, 0).split(",")
    body += f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - 40}" stroke="currentColor" '
    body += f'stroke-dasharray="2 4"/><text x="{x}" y="{height - 26}">epoch {best_epoch}</text>'
    body += f'<text x="4" y="{top + 8}">{largest:.2f}</text><text x="4" y="{height - 40}">0</text>'
    last = history[-1]
    alt = (
        f"Loss by epoch: training ends at {last.train_loss:.4f}, validation at "
        f"{last.validation_loss:.4f}; the weights of epoch {best_epoch} are kept."
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="100%" role="img" '
        f'aria-label="{alt}">{body}</svg><figcaption>{alt}</figcaption></figure>'
    )
