"""`report.html`: what it says is the bundle's, whatever is in the bundle's texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.bundle import Bundle, Golden, read_bundle
from artifacts.errors import BundleError
from artifacts.evidence import (
    ColumnImportance,
    Curves,
    Evidence,
    Mistake,
    Spread,
)
from artifacts.inputs import Column, TableInput
from artifacts.manifest import Estimate, Study
from artifacts.predictor import Predictor
from tests.browser import browser  # noqa: F401
from tests.forgery import files_of, forge
from tests.report_pages import NASTY, Page, loads_nothing, renamed, rendered
from training.report.figures import decimal, percent, points
from training.report.markup import element
from training.report.page import render_report, report_of

RELEASED = Path(__file__).parent / "fixtures" / "released" / "schema-1-mlp"


def test_a_rebuilt_report_is_the_bundles_own_byte_for_byte(
    digits: Predictor, cancer: Predictor
) -> None:
    for predictor in (digits, cancer):
        assert report_of(predictor.bundle) == predictor.bundle.read("report.html")


def test_a_report_loads_nothing_and_is_small(digits: Predictor, cancer: Predictor) -> None:
    for predictor in (digits, cancer):
        page = rendered(predictor)
        assert len(page) < 300_000
        loads_nothing(page)
        # Tags that are closed in the order in which they were opened.
        assert page.count(b"<section") == page.count(b"</section>")


def test_the_figures_are_the_manifests(digits: Predictor, cancer: Predictor) -> None:
    for predictor in (digits, cancer):
        manifest, text = predictor.manifest, Page(rendered(predictor)).text
        assert manifest.baseline is not None and manifest.speed is not None
        for part in (*manifest.metrics.values(), manifest.baseline):
            assert percent(part.accuracy.value) in text
            assert decimal(part.log_loss.value) in text
            assert f"{100 * part.accuracy.low:.1f}\u2013{100 * part.accuracy.high:.1f}" in text
        for figures in manifest.metrics["test"].per_label.values():
            assert figures.f1 is not None and decimal(figures.f1.value) in text
        assert manifest.calibration is not None and manifest.verdict is not None
        assert f"{manifest.calibration.after['test'].ece:.4f}" in text
        assert points(manifest.verdict.gap.value) in text
        assert manifest.verdict.text[1:] in text
        for entry in manifest.speed.formats.values():
            assert f"{entry.alone:,.0f}" in text and f"{entry.batched:,.0f}" in text
        for words in (manifest.reference, manifest.data.fingerprint[:16], "parityline serve"):
            assert words in text


def test_the_call_that_is_shown_gives_the_answer_that_is_said(
    cancer: Predictor, use_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Page(rendered(cancer))
    start = page.text.index("from artifacts import open_bundle")
    end = page.text.index("The data", start)
    exec(page.text[start:end], {})
    name, probability = capsys.readouterr().out.split()
    said = f"It is answered {name} with probability {float(probability):.4f}."
    assert said in page.text


def test_a_section_is_there_where_the_bundle_has_something_for_it(
    digits: Predictor, cancer: Predictor
) -> None:
    pictures, table = Page(rendered(digits)), Page(rendered(cancer))
    for heading in ("At other thresholds", "What its answers depend on"):
        assert heading in table.headings and heading not in pictures.headings
    assert "Its most confident mistakes" in pictures.headings
    evidence = digits.bundle.evidence()
    assert evidence is not None and evidence.mistakes
    assert pictures.tags.count("img") == len(evidence.mistakes)
    # Every picture and chart has its words.
    assert pictures.tags.count("img") == sum(name == "alt" for name, _ in pictures.attributes)
    drawn = [value for name, value in table.attributes if (name, value) == ("class", "chart")]
    assert len(drawn) == sum(value == "img" for name, value in table.attributes if name == "role")


@pytest.mark.parametrize("name", [NASTY, "</td></table><h1>", "'\"><img src=x onerror=y>"])
def test_labels_with_html_are_escaped(digits: Predictor, name: str) -> None:
    page = rendered(digits, renamed(digits.manifest, "1", name))
    loads_nothing(page)
    harmless = renamed(digits.manifest, "1", "x" * len(name))
    plain, seen = Page(rendered(digits, harmless)), Page(page)
    assert seen.tags == plain.tags
    assert name in seen.text


def test_columns_and_cells_with_html_are_escaped(cancer: Predictor) -> None:
    manifest = renamed(cancer.manifest, "mean radius", NASTY)
    first = manifest.input.columns[1].name
    evidence = Evidence(
        mistakes=(
            Mistake(row=1, label=0, answer=1, probability=0.9, of_label=0.1,
                    cells={NASTY: NASTY, first: None}),
        ),
        importance=(
            ColumnImportance(
                column=NASTY, accuracy=Spread(mean=0.1, low=0, high=0.2),
                log_loss=Spread(mean=0.1, low=0, high=0.2), rows=10, shuffles=5,
            ),
        ),
    )  # fmt: skip
    note = "skipped <i>a</i>.png: not a picture"
    manifest = manifest.model_copy(
        update={"data": manifest.data.model_copy(update={"notes": (note,), "source": NASTY})}
    )
    golden = cancer.golden
    page = render_report(manifest, cancer.bundle.parity(), golden, evidence)
    loads_nothing(page)
    seen = Page(page)
    assert seen.text.count(NASTY) >= 4 and note in seen.text and "missing" in seen.text


MARKUP = st.sampled_from(["<b>", "</p>", "<!--", "&lt;", "&", '"', "'", ">", "<script>", "]]>"])
TEXTS = st.lists(
    MARKUP | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5), max_size=6
).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, attribute=TEXTS, nested=st.lists(TEXTS, max_size=3))
def test_any_text_comes_out_of_an_element_as_it_went_in(
    text: str, attribute: str, nested: list[str]
) -> None:
    page = element("p", text, nested, element("b", text), title=attribute)
    seen = Page(str(page).encode())
    assert seen.tags == ["p", "b"]
    assert seen.text == text + "".join(nested) + text
    assert seen.attributes == [("title", attribute)]


def test_a_hundred_labels_and_three_hundred_columns_make_a_small_page(cancer: Predictor) -> None:
    manifest, bundle = cancer.manifest, cancer.bundle
    generator = np.random.default_rng(0)
    labels = tuple(f"{NASTY} {number}" for number in range(100))
    names = [f"{NASTY} {number}" for number in range(300)]
    columns = tuple(Column(name=name, low=0, high=1, typical=0.5) for name in names)
    test = manifest.metrics["test"]
    figures = next(iter(test.per_label.values()))
    confusion = generator.integers(0, 5, (100, 100)) + 50 * np.eye(100, dtype=int)
    wide = test.model_copy(
        update={
            "rows": int(confusion.sum()),
            "per_label": dict.fromkeys(labels, figures),
            "confusion": tuple(map(tuple, confusion.tolist())),
            "average_precision": None,
        }
    )
    changed = manifest.model_copy(
        update={
            "task": "multiclass", "labels": labels, "input": TableInput(columns=columns),
            "profile": (), "metrics": {**manifest.metrics, "test": wide},
            "data": manifest.data.model_copy(update={"label_counts": dict.fromkeys(labels, 9)}),
        }
    )  # fmt: skip
    spread = Spread(mean=0.1, low=0.0, high=0.2)
    evidence = Evidence(
        mistakes=tuple(
            Mistake(row=row, label=row, answer=row + 1, probability=0.9, of_label=0.1,
                    cells=dict.fromkeys(names[:24], 0.5))
            for row in range(12)
        ),
        importance=tuple(
            ColumnImportance(column=name, accuracy=spread, log_loss=spread, rows=100, shuffles=5)
            for name in names
        ),
    )  # fmt: skip
    probabilities = np.full((2, 100), 0.01, dtype=np.float32)
    golden = Golden(np.zeros((2, 300)), probabilities, probabilities, np.zeros(2, dtype=np.int64))
    page = render_report(changed, bundle.parity(), golden, evidence)
    assert len(page) < 2_000_000
    loads_nothing(page)
    text = Page(page).text
    assert "The other 85 labels" in text and "The other 280 columns" in text
    assert "100 labels down" in "".join(value for _, value in Page(page).attributes)
    assert "ROW.json" in text


def test_the_study_that_found_a_model_is_told(digits: Predictor) -> None:
    study = Study(
        name="search <1>", objective="accuracy", space=("train.lr: 1e-5 to <i>0.1</i>",),
        sampler="tpe", pruner="median", trials={"complete": 7}, best_trial=3, trial=3, value=0.98,
        params={"train.lr": 0.01}, repeats=5, difference=Estimate(value=0.01, low=0.0, high=0.02),
    )  # fmt: skip
    page = rendered(digits, digits.manifest.model_copy(update={"study": study}))
    text = Page(page).text
    for words in ("search <1>: 7 trials (7 complete)", "train.lr: 1e-5 to <i>0.1</i>", "+0.0100"):
        assert words in text


def test_a_bundle_without_evidence_still_makes_a_report() -> None:
    bundle = read_bundle(RELEASED)
    assert bundle.evidence() is None and bundle.parity().histogram is None
    seen = Page(report_of(bundle))
    assert "How good it is" in seen.headings and "How to call it" in seen.headings
    for heading in (
        "Its most confident mistakes", "What its probabilities are worth", "What is mixed up",
    ):  # fmt: skip
        assert heading not in seen.headings


def test_evidence_that_is_not_what_it_should_be_is_refused(
    bundle: Bundle, cancer: Predictor, tmp_path: Path
) -> None:
    whole = json.loads(bundle.read("evidence.json"))
    mistake = whole["mistakes"][0]
    curves = Curves(roc=((0, 0), (1, 1)), precision_recall=((1, 1),)).model_dump()
    png = "iVBORw0KGgoAAAANSUhEUgABAAAAAQAACAAAAAA="
    cases = {
        "Invalid JSON": b"{",
        "Input should be a valid": {**whole, "mistakes": 5},
        "expected labels below 10": {**whole, "mistakes": [{**mistake, "answer": 10}]},
        "curves: they are for two labels": {**whole, "curves": curves},
        "picture: expected a PNG": {**whole, "mistakes": [{**mistake, "picture": "R0lGODlh"}]},
        "picture: not base64": {**whole, "mistakes": [{**mistake, "picture": "<b>"}]},
        "128 pixels a side": {**whole, "mistakes": [{**mistake, "picture": png}]},
        "no column 'x' in the manifest": {**whole, "mistakes": [{**mistake, "cells": {"x": 1}}]},
        "Extra inputs": {**whole, "script": "x"},
        "at most 12 items": {**whole, "mistakes": [mistake] * 13},
        "not a row of image input": {**whole, "mistakes": [{**mistake, "picture": None}]},
    }
    for number, (message, spoiled) in enumerate(cases.items()):
        payload = spoiled if isinstance(spoiled, bytes) else json.dumps(spoiled).encode()
        forged = forge(bundle, tmp_path / f"case{number}", evidence_json=payload)
        with pytest.raises(BundleError, match=rf"evidence\.json: .*{re.escape(message)}"):
            forged.evidence()
    forged = forge(bundle, tmp_path / "large", evidence_json=b" " * (8 * 2**20 + 1))
    with pytest.raises(BundleError, match="expected at most 8388608 bytes"):
        forged.evidence()
    forged = forge(bundle, tmp_path / "parity", parity_json=b"[]")
    with pytest.raises(BundleError, match=r"parity\.json: "):
        forged.parity()


def test_evidence_is_of_the_test_part(digits: Predictor, cancer: Predictor) -> None:
    from training.data import load_dataset
    from training.recipe import DataConfig

    part = load_dataset(DataConfig(source="digits")).test
    evidence = digits.bundle.evidence()
    assert evidence is not None and evidence.mistakes
    answers = digits.predict(part.raw)
    wrong = set(np.flatnonzero(answers.index != part.labels).tolist())
    assert {mistake.row for mistake in evidence.mistakes} <= wrong
    assert len(evidence.mistakes) == min(12, len(wrong))
    given = [mistake.probability for mistake in evidence.mistakes]
    assert given == sorted(given, reverse=True)
    for mistake in evidence.mistakes:
        assert (mistake.label, mistake.answer) == (
            part.labels[mistake.row], answers.index[mistake.row],
        )  # fmt: skip
        assert mistake.probability == pytest.approx(answers.probabilities[mistake.row].max(), 1e-3)
    table = cancer.bundle.evidence()
    assert table is not None and table.curves is not None
    assert {entry.column for entry in table.importance} == {
        column.name for column in cancer.manifest.input.columns
    }
    # The thinned curve has the area that the manifest says.
    x, y = np.array(table.curves.roc).T
    area = float(np.trapezoid(y, x))
    auc = cancer.manifest.metrics["test"].auc
    assert auc is not None and area == pytest.approx(auc.value, abs=0.01)


def test_the_histogram_counts_every_answer_once(digits: Predictor) -> None:
    parity = digits.bundle.parity()
    assert parity.histogram is not None
    for name, counts in parity.histogram.counts.items():
        summary = digits.manifest.parity[name]
        assert sum(counts) == summary.rows
        highest = max(place for place, count in enumerate(counts) if count)
        edges = (0.0, *parity.histogram.edges, np.inf)
        assert edges[highest] <= summary.max_abs_diff < edges[highest + 1]


def test_speeds_and_their_report_leave_the_version_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    from artifacts.bundle import write_bundle

    manifest, files = bundle.manifest, files_of(bundle)
    assert manifest.speed is not None
    slower = {
        name: entry.model_copy(update={"alone": entry.alone / 2})
        for name, entry in manifest.speed.formats.items()
    }
    other = manifest.model_copy(
        update={"speed": manifest.speed.model_copy(update={"formats": slower})}
    )
    del files["report.html"]
    written = write_bundle(
        tmp_path / "slower", other, files,
        lambda made: render_report(made, bundle.parity(), bundle.golden(), bundle.evidence()),
    )  # fmt: skip
    assert written.manifest.version == manifest.version
    assert written.read("report.html") != bundle.read("report.html")
    assert report_of(written) == written.read("report.html")
    # What is there already is kept, with its own speeds and its own report.
    again = write_bundle(tmp_path / "slower", manifest, files, lambda _: b"another")
    assert again == written and read_bundle(again.path).manifest.speed == other.speed
    # The report is still checked, and everything else is still covered.
    (written.path / "report.html").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"report\.html: expected"):
        read_bundle(written.path)
    changed = write_bundle(tmp_path / "changed", other, {**files, "parity.json": b"{}"})
    assert changed.manifest.version != manifest.version


def test_a_manifest_without_speeds_covers_its_report() -> None:
    from artifacts.manifest import content_sha256

    content = json.loads((RELEASED / "manifest.json").read_text())
    assert "speed" not in content
    spoiled = json.loads(json.dumps(content))
    spoiled["files"]["report.html"]["sha256"] = "0" * 64
    assert content_sha256(spoiled) != content_sha256(content)
    content["speed"] = spoiled["speed"] = None
    assert content_sha256(spoiled) == content_sha256(content)


def test_a_comparison_says_what_is_the_same_and_what_differs(
    digits: Predictor, cancer: Predictor
) -> None:
    from training.report.compare import render_comparison

    manifest = digits.manifest
    recipe = {**manifest.recipe, "train": {**manifest.recipe["train"], "lr": 0.123}}
    test = manifest.metrics["test"]
    better = test.model_copy(update={"accuracy": Estimate(value=0.999, low=0.99, high=1.0)})
    twin = Bundle(
        digits.bundle.path,
        manifest.model_copy(update={"recipe": recipe, "name": "twin", "metrics": {"test": better}}),
    )
    page = render_comparison([digits.bundle, twin])
    loads_nothing(page)
    seen = Page(page)
    assert "test parts are the same rows" in seen.text
    assert "train.lr" in seen.text and "0.123" in seen.text and "train.epochs" not in seen.text
    assert points(0.999 - test.accuracy.value) in seen.text
    other = Page(render_comparison([digits.bundle, cancer.bundle])).text
    assert "Not the same data" in other and "Not the same labels" in other
    with pytest.raises(BundleError, match="expected 2 to 12 bundles"):
        render_comparison([digits.bundle] * 13)


def test_no_real_row_is_kept_where_data_may_not_leave(tmp_path: Path) -> None:
    """The cells, in every form that they have in a page, a file of JSON or an array."""
    import pyarrow as pa
    import pyarrow.csv
    from rich.console import Console

    from training.recipe import load_recipe
    from training.run import run

    generator = np.random.default_rng(0)
    secret = generator.random(300).round(9)
    label = np.where(secret + 0.2 * generator.random(300) > 0.6, "yes", "no")
    file = tmp_path / "secret.csv"
    pyarrow.csv.write_csv(pa.table({"secret": secret, "label": label}), file)
    overrides = ["export.golden=synthetic", "train.epochs=2", "model.kind=mlp", "model.hidden=[4]"]
    recipe = load_recipe("table", overrides, name="secret", data=str(file), target="label")
    bundle = run(
        recipe, tmp_path / "store", promote=False, console=Console(quiet=True), preflight=False
    )
    assert bundle is not None
    evidence = bundle.evidence()
    assert evidence is not None and evidence.mistakes is None and evidence.importance
    page = bundle.read("report.html")
    assert b"may not leave" in page and b"A made-up row" in page
    # The range and the median are in the manifest, as its docstring says.
    (column,) = bundle.manifest.input.columns
    assert isinstance(column, Column)
    known = {column.low, column.high, column.typical}
    rows = [value for value in secret.tolist() if value not in known]
    assert len(rows) > 290
    for name in ("evidence.json", "report.html", "golden.npz", "parity.json"):
        content = bundle.read(name)
        assert not any(np.float64(value).tobytes() in content for value in rows), name
        assert not any(f"{value:.6g}".encode() in content for value in rows), name


@pytest.mark.parametrize("name", ["digits", "cancer"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_everybody_can_read_a_report(
    browser,  # noqa: F811
    name: str,
    width: int,
    scheme: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """axe-core finds nothing, and nothing is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    predictor = request.getfixturevalue(name)
    manifest = renamed(predictor.manifest, "1" if name == "digits" else "benign", NASTY)
    file = tmp_path / "report.html"
    file.write_bytes(rendered(predictor, manifest))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        page.goto(file.as_uri())
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        page.close()
