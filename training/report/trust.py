"""How it learned, what its probabilities are worth, and two labels at every threshold."""

from __future__ import annotations

from artifacts.evidence import Evidence
from artifacts.manifest import CalibrationFigures, Manifest
from training.report.charts import (
    FEW_ROWS,
    learning_curves,
    precision_recall_chart,
    reliability_diagram,
    roc_chart,
)
from training.report.figures import (
    Heading,
    Section,
    between,
    decimal,
    estimate_cell,
    label,
    number_cell,
    percent,
    row,
    section,
    table,
)
from training.report.markup import Child, element, join
from training.report.quality import confusion_of

# Of the mean probability less the share that is right: what is next to nothing.
_NEAR = 0.005


def learning(manifest: Manifest) -> Section | None:
    """The section about the training: its curves and the verdict on them."""
    curves: Child = None
    if manifest.history and manifest.kept_epoch is not None:
        drawn = learning_curves(manifest.history, manifest.kept_epoch)
        curves = element("div", drawn, class_="pair")
    verdict = manifest.verdict
    if verdict is None and curves is None:
        return None
    end = "" if verdict is None or verdict.text.endswith("?") else "."
    said = verdict and element("p", verdict.text[:1].upper() + verdict.text[1:], end)
    advice = None
    if verdict is not None and verdict.advice:
        tried = [element("li", element("code", line)) for line in verdict.advice]
        advice = join(
            element("p", "To try, each with ", element("code", "--set"), ":"), element("ul", tried)
        )
    note = curves and element(
        "p",
        "Figures of the training part were measured while it was trained on, with augmentation and "
        "dropout, so they may lie below those of the validation part.",
        class_="note",
    )
    return section("learning", "How it learned", said, advice, curves, note)


def calibration(manifest: Manifest) -> Section | None:
    """The section about probabilities: the reliability diagram before and after calibration."""
    found = manifest.calibration
    if found is None:
        return None
    head: list[Heading] = ["part", ("calibration", "text")]
    head += ["ECE", "log loss", "Brier score"]
    rows = []
    for name in found.after:
        for when, figures in (("before", found.before.get(name)), ("after", found.after[name])):
            if figures is not None:
                rows.append(
                    row(
                        name, element("td", when), number_cell(f"{figures.ece:.4f}"),
                        estimate_cell(figures.log_loss), estimate_cell(figures.brier),
                    )
                )  # fmt: skip
    caption = (
        "ECE, the expected calibration error: how far a probability lies from the share that is "
        "right, on average. Log loss in nats; Brier score from 0 to 2. 95% intervals."
    )
    done = (
        f"The logits are divided by {manifest.temperature:.4g}, which suits the validation part "
        "best, inside the exported graph."
        if found.note is None
        else f"The logits are left as they are: {found.note}."
    )
    diagram: Child = None
    words = None
    before, after = found.before.get("test"), found.after.get("test")
    if before is not None and after is not None and after.bins and before.bins:
        words = _reliability_words(before, after)
        chart, key = reliability_diagram(before.bins, after.bins, words)
        diagram = element("div", chart, key)
    return section(
        "calibration",
        "What its probabilities are worth",
        element("div", diagram, element("div", element("p", done), words and element("p", words)),
                class_="pair"),
        table(head, rows, caption),
    )  # fmt: skip


def _reliability_words(before: CalibrationFigures, after: CalibrationFigures) -> str:
    known = [
        (entry.rows, entry.confidence, entry.accuracy)
        for entry in after.bins
        if entry.confidence is not None and entry.accuracy is not None
    ]
    total = sum(rows for rows, _, _ in known)
    over = sum(rows * (confidence - right) for rows, confidence, right in known) / max(1, total)
    if abs(over) < _NEAR:
        said = "neither too high nor too low"
    else:
        said = f"{100 * abs(over):.1f} points too {'high' if over > 0 else 'low'}"
    return (
        f"Test rows in 15 bins by the answer's probability; larger dots are more rows, and bins of "
        f"fewer than {FEW_ROWS} are left out. On the dotted line a probability is the share that "
        f"is right. Probabilities are on average "
        f"{said}; the expected calibration error is {after.ece:.4f}, {before.ece:.4f} before."
    )


def thresholds(manifest: Manifest, evidence: Evidence | None) -> Section | None:
    """The section about two labels at every threshold: ROC and precision against recall."""
    test = manifest.metrics.get("test")
    if evidence is None or evidence.curves is None or test is None:
        return None
    matrix = confusion_of(manifest)
    roc_point = pr_point = None
    share = 0.0
    name = label(manifest.labels[1])
    at: Child = None
    if matrix is not None:
        (right_no, false_yes), (_, right_yes) = matrix.tolist()
        no, yes = matrix.sum(axis=1).tolist()
        share = yes / max(1, yes + no)
        if no and yes:
            roc_point = (false_yes / no, right_yes / yes)
            if right_yes + false_yes:
                pr_point = (right_yes / yes, right_yes / (right_yes + false_yes))
            found, taken = percent(right_yes / yes), percent(1 - right_no / no)
            at = join(
                f"Served at threshold {manifest.threshold:g} (the dot): of the rows that are ",
                element("q", name), f", {found} are found; of the others, {taken} are ",
                "taken for it.",
            )  # fmt: skip
    areas = []
    if test.auc is not None:
        areas.append(f"area {decimal(test.auc.value)} [{between(test.auc, shares=False)}]; "
                     "dotted: chance, 0.5")  # fmt: skip
    roc = roc_chart(evidence.curves, f"ROC: {'; '.join(areas) or 'at every threshold'}.", roc_point)
    average = test.average_precision
    words = "Precision against recall" + (
        f": average precision {decimal(average.value)} [{between(average, shares=False)}]; dotted: "
        f"the label's share, {decimal(share)}."
        if average is not None
        else "."
    )
    recall = precision_recall_chart(evidence.curves, words, pr_point, share)
    return section(
        "thresholds",
        "At other thresholds",
        element(
            "p", "How well ", element("q", name), " is told from ",
            element("q", label(manifest.labels[0])), " whichever threshold is set. ", at,
        ),
        element("div", roc, recall, class_="pair"),
    )  # fmt: skip
