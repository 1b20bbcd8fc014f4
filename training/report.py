"""`report.html` and `parity.json`: what a person, and a program, read about a bundle."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from artifacts.configs import describe_network
from artifacts.manifest import Calibration, Estimate, Manifest, Metrics, Study, Verdict
from artifacts.summary import describe_input, study_lines
from training.charts import learning_curves, reliability_diagram

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


def render_report(manifest: Manifest, parity: dict[str, Any]) -> str:
    """One self-contained page of what the manifest and the gate's report say.

    It holds no time of day and no path: the same training gives the same page.
    """
    title = html.escape(f"{manifest.name}: classifier report")
    rows = manifest.data.rows
    test = manifest.metrics["test"]
    assert manifest.verdict and manifest.calibration and manifest.kept_epoch
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
Network: {describe_network(manifest.network)}, {manifest.parameters:,} parameters; input:
{html.escape(describe_input(manifest.input))}.</p>
{f"<p>Of the data:</p><ul>{notes}</ul>" if notes else ""}
<h2>Verdict</h2>{_verdict(manifest.verdict)}
<h2>How good it is</h2>{_metrics(manifest)}
<h2>Learning curves</h2>{learning_curves(manifest.history, manifest.kept_epoch)}
<h2>Calibration</h2>{_calibration(manifest.calibration, manifest.temperature)}
<h2>Each label</h2>{_labels(test)}
<h2>Confusion matrix</h2>{_confusion(test, manifest.labels)}
<h2>Parity gate</h2>
<p>Every format against the trained model on {parity["held_out_rows"]} held-out rows and
{parity["edge_rows"]} edge inputs; allowed: {html.escape(parity["tolerance"])}.
{html.escape(parity["one_answer"].capitalize())}.</p>{gate}
<h2>How it was made</h2>{_study(manifest.study)}<pre>{html.escape(recipe)}</pre>
<p>Seed {manifest.seed}; data fingerprint <code>{manifest.data.fingerprint}</code>;
{html.escape(", ".join(f"{k} {v}" for k, v in manifest.packages.items()))}.</p>
</body></html>
"""


def _study(study: Study | None) -> str:
    if study is None:
        return ""
    found = "".join(f"<li>{html.escape(line)}</li>" for line in study_lines(study))
    space = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in study.space)
    return f"<p>By a study:</p><ul>{found}</ul><p>It searched:</p><ul>{space}</ul>"


def _verdict(verdict: Verdict) -> str:
    tried = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in verdict.advice)
    return f"<p>{html.escape(verdict.text.capitalize())}.</p>" + (
        f"<p>To try, each with <code>--set</code>:</p><ul>{tried}</ul>" if tried else ""
    )


def _metrics(manifest: Manifest) -> str:
    parts = manifest.metrics
    ranked = any(part.average_precision for part in parts.values())
    head = ["part", "rows", "accuracy [95%]", "AUC [95%]"]
    head += [*(["PR-AUC [95%]"] if ranked else []), "log loss [95%]"]
    body = []
    for name, part in parts.items():
        row = [name, f"{part.rows}", _interval(part.accuracy), _interval(part.auc)]
        row += [_interval(part.average_precision)] if ranked else []
        body.append([*row, _interval(part.log_loss)])
    table = _table(head, body)
    if manifest.threshold == 0.5:
        return table
    return (
        f"{table}<p>{html.escape(manifest.labels[1])} is answered where its probability is above "
        f"{manifest.threshold:g}.</p>"
    )


def _calibration(calibration: Calibration, temperature: float) -> str:
    figures = [
        (name, when, figures)
        for name in calibration.after
        for when, figures in (
            ("before", calibration.before[name]), ("after", calibration.after[name])
        )
    ]  # fmt: skip
    table = _table(
        ["part", "", "ECE", "log loss [95%]", "Brier score [95%]"],
        [
            [name, when, f"{f.ece:.4f}", _interval(f.log_loss), _interval(f.brier)]
            for name, when, f in figures
        ],
    )
    before, after = calibration.before["test"], calibration.after["test"]
    said = (
        f"The logits are divided by {temperature:.4g}, chosen on the validation part."
        if calibration.note is None
        else f"The logits are left as they are: {html.escape(calibration.note)}."
    )
    diagram = reliability_diagram(
        before.bins,
        after.bins,
        f"Rows of the test part in 15 bins by the most probable label's probability: how often it "
        f"is right. On the dotted line both are equal; expected calibration error {before.ece:.4f} "
        f"before, {after.ece:.4f} after.",
    )
    return f"<p>{said}</p>{table}{diagram}"


def _labels(test: Metrics) -> str:
    return _table(
        ["label", "rows", "precision [95%]", "recall [95%]", "F1 [95%]"],
        [
            [name, f"{f.support}", _interval(f.precision), _interval(f.recall), _interval(f.f1)]
            for name, f in test.per_label.items()
        ],
    )


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _table(head: list[str], body: list[list[str]]) -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"


def _confusion(test: Metrics, labels: Sequence[str]) -> str:
    if test.confusion is None:
        return f"<p>Left out: {len(labels)} labels are too many.</p>"
    head = "<th>true \\ answered</th>" + "".join(f"<th>{html.escape(name)}</th>" for name in labels)
    largest = max(1, max(map(max, test.confusion)))
    body = ""
    for name, counts in zip(labels, test.confusion, strict=True):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--a) '
            f'{round(60 * count / largest)}%, transparent)">{count}</td>'
            for count in counts
        )
        body += f"<tr><th>{html.escape(name)}</th>{cells}</tr>"
    return (
        '<figure><table class="confusion"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
        "<figcaption>Rows of the test part, counted.</figcaption></figure>"
    )
