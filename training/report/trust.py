"""How it learned, what its probabilities are worth, and two labels at every threshold."""

from __future__ import annotations

from artifacts.evidence import Evidence
from artifacts.manifest import CalibrationFigures, Manifest
from training.report.charts import (
    FEW_ROWS,
    known_bins,
    learning_curves,
    precision_recall_chart,
    reliability_diagram,
    roc_chart,
)
from training.report.confusion import confusion_of
from training.report.figures import (
    Section,
    between,
    decimal,
    estimate_cell,
    number_cell,
    percent,
    row,
    rows_noun,
    section,
    short_label,
    table,
)
from training.report.markup import Child, element, join

# Of the mean probability less the share that is right: what is next to nothing.
_NEAR = 0.005
# One point makes no diagram.
_FEWEST_POINTS = 2


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
        "dropout, so they may be worse than those of the validation part.",
        class_="note",
    )
    return section("learning", "How it learned", said, advice, curves, note)


def calibration(manifest: Manifest) -> Section | None:
    """The section about probabilities: the reliability diagram before and after calibration."""
    found = manifest.calibration
    if found is None:
        return None
    head = ["part, calibration", "ECE", "log loss", "Brier score"]
    rows = []
    for name in found.after:
        stages = [("before", found.before.get(name)), ("after", found.after[name])]
        if stages[0][1] == stages[1][1]:
            stages = [("as it is", found.after[name])]
        for when, figures in stages:
            if figures is not None:
                rows.append(
                    row(
                        f"{name}, {when}", number_cell(f"{figures.ece:.4f}"),
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
    shown: list[Child] = [element("p", done)]
    before, after = found.before.get("test"), found.after.get("test")
    if before is not None and after is not None and after.bins and before.bins:
        shown = _reliability(before, after, shown[0], rows_noun(manifest))
    return section(
        "calibration",
        "What its probabilities are worth",
        shown,
        table(head, rows, caption),
    )  # fmt: skip


def _reliability(
    before: CalibrationFigures, after: CalibrationFigures, done: Child, noun: str
) -> list[Child]:
    """What was done and what came of it, beside the diagram where there are points for one."""
    if len(known_bins(after.bins)) < _FEWEST_POINTS:
        return [done, element("p", _sure_words(after, noun), _error(before, after))]
    words = _diagram_words(noun) + _error(before, after)
    diagram = element("div", *reliability_diagram(before.bins, after.bins, words))
    return [element("div", diagram, element("div", done, element("p", words)), class_="pair")]


def _diagram_words(noun: str) -> str:
    return (
        f"Test {noun} in 15 bins by the answer's probability; larger dots are more {noun}, and "
        f"bins of fewer than {FEW_ROWS} are left out. On the dotted line a probability is the "
        "share that is right."
    )


def _sure_words(figures: CalibrationFigures, noun: str) -> str:
    """What there is to say where hardly more than one bin has rows to speak of."""
    known = known_bins(figures.bins)
    if not known:
        return f"There are too few test {noun} to draw a diagram of their probabilities."
    confidence, accuracy, rows = max(known, key=lambda entry: entry[2])
    total = sum(entry.rows for entry in figures.bins)
    which, others = f"All {total:,}", ""
    if rows < total:
        which, others = f"{rows:,} of {total:,}", " The others are too few for a diagram."
    return (
        f"{which} test {noun} have nearly the same probability: the answer's is "
        f"{decimal(confidence)} on average, and {percent(accuracy)} of them are right.{others}"
    )


def _error(before: CalibrationFigures, after: CalibrationFigures) -> str:
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
    earlier = "" if before == after else f", {before.ece:.4f} before"
    return (
        f" Probabilities are on average {said}; the expected calibration error is "
        f"{after.ece:.4f}{earlier}."
    )


def thresholds(manifest: Manifest, evidence: Evidence | None) -> Section | None:
    """The section about two labels at every threshold: ROC and precision against recall."""
    test = manifest.metrics.get("test")
    if evidence is None or evidence.curves is None or test is None:
        return None
    matrix = confusion_of(manifest)
    roc_point = pr_point = None
    share = 0.0
    name = short_label(manifest.labels[1])
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
            element("q", short_label(manifest.labels[0])), " whichever threshold is set. ", at,
        ),
        element("div", roc, recall, class_="pair"),
    )  # fmt: skip
