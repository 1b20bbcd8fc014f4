"""The top of the page: what it is, how good, where it fails, how to call it, in a minute."""

from __future__ import annotations

import json
from collections.abc import Sequence

from markupsafe import Markup

from artifacts.bundle import Golden
from artifacts.decision import decide
from artifacts.example import curl_line, example_instance
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from training.report.confusion import mixups
from training.report.figures import (
    Section,
    between,
    code,
    counted,
    exponent,
    interval_bar,
    label,
    more,
    percent,
    released,
    rows_noun,
    section,
    short_label,
)
from training.report.markup import Child, element, join
from training.report.quality import majority, worst_first

URL = "http://localhost:3000"
_ROW_FROM_FILE = f"curl {URL}/predict -H 'Content-Type: application/json' -d @ROW.json"
_PICTURE_FROM_FILE = f"curl {URL}/predict/image --data-binary @PICTURE.jpg"
_MOST_NAMED = 12
_LONGEST_INSTANCE = 1500


def header(manifest: Manifest) -> Markup:
    """The name, and what the model answers, in one sentence."""
    shown = manifest.labels[:_MOST_NAMED]
    names = [join(", " if number else "", short_label(name)) for number, name in enumerate(shown)]
    if len(shown) < len(manifest.labels):
        names.append(join(f" and {len(manifest.labels) - len(shown):,} more"))
    rows = manifest.data.rows
    total = sum(rows.values())
    return element(
        "header",
        element("p", "Classifier report", class_="kicker"),
        element("h1", manifest.name),
        element("p", _predicts(manifest), ": ", names, ".", class_="lede"),
        element(
            "p",
            f"Made of {total:,} labelled {rows_noun(manifest)} of ", label(manifest.data.source),
            ". ", element("code", manifest.reference), ", released ", released(manifest), ".",
            class_="ids",
        ),
    )  # fmt: skip


def _predicts(manifest: Manifest) -> Child:
    spec, labels = manifest.input, f"{len(manifest.labels)} labels"
    if isinstance(spec, ImageInput):
        colour = "grayscale" if spec.channels == 1 else "colour"
        size = f"{spec.height} × {spec.width}"
        return f"Predicts which of {labels} a {colour} picture of {size} pixels has"
    data = manifest.recipe.get("data")
    target = data.get("target") if isinstance(data, dict) else None
    columns = counted(len(spec.columns), "column")
    if not isinstance(target, str):
        return f"Predicts which of {labels} a row of {columns} has"
    return join("Predicts ", element("q", label(target)), f" from {columns}, as one of {labels}")


def summary(manifest: Manifest) -> Markup:
    """The figures that matter, as cards."""
    cards = [
        _accuracy(manifest), _beside(manifest), _weakest(manifest), _trust(manifest),
        _formats(manifest), _call(manifest),
    ]  # fmt: skip
    return element(
        "section",
        element("h2", "In short", id="summary-title", class_="hidden"),
        element("div", cards, class_="cards"),
        id="summary",
        aria_labelledby="summary-title",
    )


def _card(title: str, figure: Child, *words: Child, class_: str = "") -> Markup:
    return element(
        "div", element("h3", title), element("p", figure, class_="figure"),
        [element("p", line) for line in words if line], class_=f"card {class_}".strip(),
    )  # fmt: skip


def _accuracy(manifest: Manifest) -> Markup | None:
    test = manifest.metrics.get("test")
    if test is None:
        return None
    right = round(test.accuracy.value * test.rows)
    return _card(
        "Right answers",
        percent(test.accuracy.value),
        interval_bar(test.accuracy, "large"),
        f"{right:,} of {test.rows:,} test {rows_noun(manifest)} that training never saw; "
        f"95% interval {between(test.accuracy, shares=True)}%.",
        class_="first",
    )


def _beside(manifest: Manifest) -> Markup | None:
    test, baseline = manifest.metrics.get("test"), manifest.baseline
    train = manifest.metrics.get("train")
    if test is None:
        return None
    learned = train and (
        f"On the {rows_noun(manifest)} that it learned from: {percent(train.accuracy.value)}, "
        f"{_more_or_less(train.accuracy.value - test.accuracy.value)}."
    )
    if baseline is None:
        return train and _card("On the training part", percent(train.accuracy.value), learned)
    said = join("by answering ", element("q", short_label(majority(manifest))), " each time.")
    return _card("Without a model", percent(baseline.accuracy.value), said, learned)


def _more_or_less(difference: float) -> str:
    """A difference of shares in words."""
    text = f"{100 * abs(difference):.1f}"
    if not float(text):
        return "as on the test part"
    return f"{text} points {'more' if difference > 0 else 'less'} than on the test part"


def _weakest(manifest: Manifest) -> Markup | None:
    test = manifest.metrics.get("test")
    if test is None or not test.per_label:
        return None
    name, figures = worst_first(test)[0]
    if figures.f1 is not None and figures.f1.value == 1:
        return _card("Weakest label", "None", f"No test {rows_noun(manifest, 1)} was missed.")
    pair = next((pair for pair in mixups(manifest) if pair.true == name), None)
    value = figures.f1.value if figures.f1 else 0.0
    recall = figures.recall
    found = (
        recall and f"F1 {value:.2f}; {percent(recall.value)} of its {rows_noun(manifest)} found."
    )
    mixed = pair and join(
        "Most often answered as ", element("q", short_label(pair.answered)),
        f": {pair.count:,} of {figures.support:,}.",
    )  # fmt: skip
    return _card("Weakest label", short_label(name), found, mixed, class_="name")


def _trust(manifest: Manifest) -> Markup | None:
    if manifest.calibration is None or "test" not in manifest.calibration.after:
        return None
    error = manifest.calibration.after["test"].ece
    return _card(
        "Probabilities",
        join(f"{100 * error:.1f}", element("small", " points")),
        "is how far a probability lies from the share that is right, on average.",
    )


def _formats(manifest: Manifest) -> Markup | None:
    if not manifest.parity:
        return None
    others = sum(entry.label_disagreements for entry in manifest.parity.values())
    largest = max(entry.max_abs_diff for entry in manifest.parity.values())
    speed = manifest.speed and manifest.speed.formats.get("model.onnx")
    return _card(
        "Same answers",
        join(str(len(manifest.parity)), element("small", " formats")),
        f"agree with the trained model: largest difference of logits {exponent(largest)}, "
        f"{others} other labels.",
        speed and f"ONNX, one CPU thread: {speed.alone:,.0f} answers/s one by one, "
        f"{speed.batched:,.0f} in batches.",
    )  # fmt: skip


def _call(manifest: Manifest) -> Markup:
    ask = _PICTURE_FROM_FILE if isinstance(manifest.input, ImageInput) else _ROW_FROM_FILE
    lines = f"parityline serve {manifest.reference}\n{ask}"
    return element(
        "div", element("h3", "Call it"), code(lines),
        element("p", element("a", "With a request to copy, and from Python", href="#call")),
        class_="card call",
    )  # fmt: skip


def contents(sections: Sequence[Section]) -> Markup:
    """Links to the sections."""
    links = [element("li", element("a", entry.title, href=f"#{entry.name}")) for entry in sections]
    return element("nav", element("ul", links), aria_label="Contents")


def calling(manifest: Manifest, golden: Golden) -> Section:
    """The section that says how to ask the model, with a row of the bundle."""
    instance = example_instance(manifest, golden)
    whole = json.dumps(instance, ensure_ascii=False)
    is_picture = isinstance(manifest.input, ImageInput)
    answer = int(decide(golden.probabilities[:1], manifest.threshold)[0])
    probability = float(golden.probabilities[0, answer])
    line = curl_line(manifest, golden, URL)
    kind = "A held-out" if (golden.labels >= 0).all() else "A made-up"
    long = len(whole) > _LONGEST_INSTANCE
    folded = None
    if long and is_picture:
        line = _PICTURE_FROM_FILE
    elif long:
        line = _ROW_FROM_FILE
        body = json.dumps({"instances": [instance]}, ensure_ascii=False, indent=1)
        folded = more("ROW.json", code(body))
    return section(
        "call",
        "How to call it",
        element("p", "Serve it:"),
        code(f"parityline serve {manifest.reference}"),
        element("p", "A picture over HTTP:" if "@PICTURE" in line
            else f"{kind} {rows_noun(manifest, 1)} over HTTP:"),
        code(line),
        None
        if "@PICTURE" in line
        else element(
            "p", "It is answered ", element("q", label(manifest.labels[answer])),
            f" with probability {probability:.4f}.",
        ),
        folded,
        element("p", "The same from Python, without the service:"),
        code(_python(manifest, whole, long)),
    )  # fmt: skip


def _python(manifest: Manifest, instance: str, long: bool) -> str:
    imports, row = ["from artifacts import open_bundle"], f"row = {json.loads(instance)!r}"
    if isinstance(manifest.input, ImageInput):
        row = 'picture = open("PICTURE.jpg", "rb").read()'
    elif long:
        imports.insert(0, "import json")
        row = 'row = json.load(open("ROW.json"))["instances"][0]'
    given = "{name: [cell] for name, cell in row.items()}"
    if isinstance(manifest.input, ImageInput):
        given = "[picture]"
    lines = [
        *imports,
        "",
        f'model = open_bundle("{manifest.reference}")',
        row,
        f"answer = model.predict({given})",
        "print(answer.label[0], answer.probabilities[0, answer.index[0]])",
    ]
    return "\n".join(lines)
