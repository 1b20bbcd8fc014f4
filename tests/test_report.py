"""`report.html`: what it says is the bundle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts.bundle import Bundle, Golden, read_bundle
from artifacts.errors import BundleError
from artifacts.evidence import ColumnImportance, Evidence, Mistake, Spread
from artifacts.inputs import Column, TableInput
from artifacts.manifest import Estimate, Study
from artifacts.predictor import Predictor
from tests.report_pages import NASTY, Page, loads_nothing, rendered
from training.report.compare import render_comparison
from training.report.figures import decimal, percent, points
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


def test_a_comparison_says_what_is_the_same_and_what_differs(
    digits: Predictor, cancer: Predictor
) -> None:

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
    # Two labels have an area that ten do not have.
    assert "PR-AUC" in other and "PR-AUC" not in seen.text
    with pytest.raises(BundleError, match="expected 2 to 12 bundles"):
        render_comparison([digits.bundle] * 13)


def test_columns_that_were_looked_at_less_closely_stand_apart(cancer: Predictor) -> None:
    bundle = cancer.bundle
    spread = Spread(mean=0.1, low=0.0, high=0.2)
    names = [column.name for column in cancer.manifest.input.columns][:22]
    evidence = Evidence(
        importance=tuple(
            ColumnImportance(
                column=name, accuracy=spread, log_loss=spread,
                rows=100 if place < 20 else 50, shuffles=5 if place < 20 else 1,
            )
            for place, name in enumerate(names)
        )
    )  # fmt: skip
    page = render_report(cancer.manifest, bundle.parity(), bundle.golden(), evidence)
    text = Page(page).text
    closely, _, others = text.partition("The other 2 columns")
    assert "shuffled among 100 test rows, 5 times" in closely
    assert others.startswith("The last 2 are looked at with 50 rows, once.")
    # What matters little is folded away with them, and was looked at as closely as what matters.
    little = Spread(mean=0.0, low=0.0, high=0.0)
    faint = [
        entry.model_copy(update={"log_loss": little}) if place >= 6 else entry
        for place, entry in enumerate(evidence.importance or ())
    ]
    few = Evidence(importance=tuple(faint))
    page = render_report(cancer.manifest, bundle.parity(), bundle.golden(), few)
    assert "The other 16 columnsThe last 2 are looked at with 50 rows, once." in Page(page).text
    # Few columns, all looked at alike, are all in view.
    alike = Evidence(importance=(evidence.importance[0],) * 22)
    page = render_report(cancer.manifest, bundle.parity(), bundle.golden(), alike)
    assert "The other 2 columns" not in Page(page).text


def test_of_a_large_model_it_is_said_which_rows_were_compared_at_which_batch_size(
    digits: Predictor,
) -> None:
    bundle, parity = digits.bundle, digits.bundle.parity()
    largest = str(parity.batch_sizes[-1])
    whole = f"as the trained model does, at batch sizes 1, 2, 7, 64, {largest}. "
    assert whole in Page(rendered(digits)).text
    fewer = {
        name: {
            size: tally.model_copy(update={"rows": tally.rows if size == largest else 320})
            for size, tally in by_size.items()
        }
        for name, by_size in parity.formats.items()
    }
    page = render_report(
        bundle.manifest, parity.model_copy(update={"formats": fewer}), bundle.golden(), None
    )
    said = f"at batch size {largest}; 320 of them at 1, 2, 7, 64 too. "
    assert said in Page(page).text


@pytest.mark.parametrize(
    ("accuracy", "loss", "words"),
    [
        ((0.9, 0.85, 0.95), (0.2, 0.1, 0.3), "The model makes 75.0% fewer mistakes."),
        ((0.6, 0.5, 0.7), (0.2, 0.1, 0.3),
         "The model's answers are not surely better, but its probabilities are better."),
        ((0.3, 0.2, 0.4), (0.2, 0.1, 0.3),
         "The model is right less often, but its probabilities are better."),
        ((0.3, 0.2, 0.4), (0.6, 0.5, 0.7), "The model is right less often."),
    ],
)  # fmt: skip
def test_the_model_is_set_beside_answering_without_one(
    digits: Predictor,
    accuracy: tuple[float, float, float],
    loss: tuple[float, float, float],
    words: str,
) -> None:
    def estimate(value: float, low: float, high: float) -> Estimate:
        return Estimate(value=value, low=low, high=high)

    test = digits.manifest.metrics["test"]
    figures = {"accuracy": estimate(*accuracy), "log_loss": estimate(*loss)}
    without = {"accuracy": estimate(0.6, 0.5, 0.7), "log_loss": estimate(0.6, 0.5, 0.7)}
    manifest = digits.manifest.model_copy(
        update={
            "metrics": {**digits.manifest.metrics, "test": test.model_copy(update=figures)},
            "baseline": test.model_copy(update=without),
        }
    )
    assert f"would be right. {words}" in Page(rendered(digits, manifest)).text


def test_a_commit_with_changes_is_not_taken_for_the_commit(digits: Predictor) -> None:
    manifest = digits.manifest.model_copy(update={"commit": "0123456789" * 4 + "+changes"})
    assert "commit0123456789012345+changes" in Page(rendered(digits, manifest)).text


def test_nothing_counted_and_nothing_timed_still_make_a_report(digits: Predictor) -> None:
    manifest, parity = digits.manifest, digits.bundle.parity()
    assert parity.histogram is not None and manifest.speed is not None
    none = {name: (0,) * len(counts) for name, counts in parity.histogram.counts.items()}
    histogram = parity.histogram.model_copy(update={"counts": none})
    page = render_report(
        manifest.model_copy(update={"speed": manifest.speed.model_copy(update={"formats": {}})}),
        parity.model_copy(update={"histogram": histogram, "formats": {}}),
        digits.golden, None,
    )  # fmt: skip
    loads_nothing(page)
    assert "The same answers in every format" in Page(page).headings
