"""What a report draws and sets: nothing is cut off, and what it leaves out it says in words."""

from __future__ import annotations

import numpy as np

from artifacts.manifest import CalibrationFigures, Estimate, Manifest, ReliabilityBin
from artifacts.predictor import Predictor
from tests.report_pages import Page, renamed, rendered
from training.report.charts import learning_curves, reliability_diagram
from training.report.figures import between, code, decimal, exponent, label, percent


def bins(*known: tuple[int, float, float]) -> tuple[ReliabilityBin, ...]:
    """15 bins of equal width with these rows, mean confidences and shares that are right."""
    made = [ReliabilityBin(rows=0)] * 15
    for rows, confidence, accuracy in known:
        made[int(confidence * 15)] = ReliabilityBin(
            rows=rows, confidence=confidence, accuracy=accuracy
        )
    return tuple(made)


def calibrated(
    manifest: Manifest, before: tuple[ReliabilityBin, ...], after: tuple[ReliabilityBin, ...]
) -> Manifest:
    """A manifest whose test part has these bins."""
    found = manifest.calibration
    assert found is not None

    def figures(part: CalibrationFigures, its: tuple[ReliabilityBin, ...]) -> CalibrationFigures:
        return part.model_copy(update={"bins": its})

    return manifest.model_copy(
        update={
            "calibration": found.model_copy(
                update={
                    "before": {**found.before, "test": figures(found.before["test"], before)},
                    "after": {**found.after, "test": figures(found.after["test"], after)},
                }
            )
        }
    )


def test_an_interval_has_as_many_places_as_its_figure() -> None:
    for value, low, high, figure, interval in (
        (0.0732, 0.025, 0.1213, "0.0732", "0.0250 to 0.1213"),
        (0.00227, 0.00164, 0.0029, "0.00227", "0.00164 to 0.00290"),
        (0.183, 0.0593, 0.306, "0.183", "0.059 to 0.306"),
        (2.3026, 2.301, 2.304, "2.303", "2.301 to 2.304"),
        (0.1, 0.0, 1.0, "0.100", "0.000 to 1.000"),
        (0.0, 0.0, 0.012, "0", "0.0000 to 0.0120"),
        (0.00002, 0.00001, 0.00012, "2.0e-05", "0.000010 to 0.000120"),
    ):
        estimate = Estimate(value=value, low=low, high=high)
        assert (decimal(value), between(estimate, shares=False)) == (figure, interval)


def test_a_diagram_is_drawn_of_more_points_than_one(digits: Predictor) -> None:
    few = bins((3, 0.4, 1.0), (340, 0.998, 0.99))
    many = bins((30, 0.55, 0.6), (300, 0.95, 0.99))
    drawn = "15 bins by the answer's probability"
    for before in (few, many):
        assert drawn in Page(rendered(digits, calibrated(digits.manifest, before, many))).text
        text = Page(rendered(digits, calibrated(digits.manifest, before, few))).text
        assert drawn not in text and "too few for a diagram" in text
    assert "340 of 343 test pictures have nearly the same probability" in text
    assert "0.998 on average, and 99.0% of them are right" in text
    alone = bins((340, 0.998, 0.99))
    text = Page(rendered(digits, calibrated(digits.manifest, many, alone))).text
    assert "All 340 test pictures have nearly" in text and "The others" not in text
    none = bins((3, 0.4, 1.0))
    text = Page(rendered(digits, calibrated(digits.manifest, none, none))).text
    assert "too few test pictures to draw a diagram" in text


def test_a_reliability_diagram_begins_below_its_points() -> None:
    for lowest, first in ((0.1, "0"), (0.55, "0.4"), (0.85, "0.8")):
        known = bins((30, lowest, 1.0), (300, 0.999, 0.99))
        chart, key = reliability_diagram(known, bins((30, 0.9, 1.0), (300, 0.999, 1.0)), "words")
        assert key is not None and "circle" in key
        page = Page(str(chart).encode())
        # At the corner, on both axes.
        assert page.words.count(first) == 2
        assert min(float(word) for word in page.words if word[:1].isdigit()) == float(first)
        places = [
            float(place)
            for name, value in page.attributes
            if name == "points"
            for pair in value.split()
            for place in pair.split(",")
        ]
        assert min(places) > 0 and max(places) < 380


def test_labels_that_are_short_stand_over_the_columns_of_the_matrix(cancer: Predictor) -> None:
    short = Page(rendered(cancer))
    assert ("class", "confusion") in short.attributes and ("class", "key") not in short.attributes
    long = Page(rendered(cancer, renamed(cancer.manifest, "benign", "not a malignant tumour")))
    assert ("class", "confusion keyed") in long.attributes and ("class", "key") in long.attributes


def test_a_loss_beyond_all_measure_is_drawn_on_a_logarithmic_axis(digits: Predictor) -> None:
    history = digits.manifest.history
    assert history is not None
    tame, _ = learning_curves(history, 1)
    assert "logarithmic" not in tame and "circle" not in tame
    wild = (history[0].model_copy(update={"validation_loss": 354_321.0}), *history[1:])
    chart, _ = learning_curves(wild, 1)
    page = Page(str(chart).encode())
    assert "loss (nats), logarithmic" in page.words and {"1e5", "1e6"} & set(page.words)
    assert max(len(word) for word in page.words if word[:1].isdigit()) <= 5
    heights = [
        float(pair.split(",")[1])
        for name, value in page.attributes
        if name == "points"
        for pair in value.split()
    ]
    assert min(heights) >= 10 and max(heights) <= 250 - 38


def test_a_share_that_is_not_none_or_all_does_not_read_as_either() -> None:
    for share, text in (
        (0, "0%"), (1, "100%"), (1e-9, "<0.001%"), (1 - 1e-9, ">99.999%"), (0.00042, "0.04%"),
        (0.99996, "99.996%"), (0.5, "50.0%"),
    ):  # fmt: skip
        assert percent(share) == text


def test_one_pair_of_labels_is_not_called_pairs(digits: Predictor) -> None:
    manifest = digits.manifest
    test = manifest.metrics["test"]
    for others, words in ((1, "1 more pair, with 1 picture in all."), (2, "2 more pairs, with 2")):
        confusion = np.eye(10, dtype=int)
        places = [(row, column) for row in range(10) for column in range(10) if row != column]
        for row, column in places[: 15 + others]:
            confusion[row, column] = 1
        counted = test.model_copy(update={"confusion": tuple(map(tuple, confusion.tolist()))})
        changed = manifest.model_copy(update={"metrics": {**manifest.metrics, "test": counted}})
        assert words in Page(rendered(digits, changed)).text


def test_a_long_name_goes_on_below_after_its_underscores() -> None:
    page = Page(str(label("english_springer_<b>")).encode())
    assert (page.text, page.tags) == ("english_springer_<b>", ["bdi", "wbr", "wbr"])


def test_a_name_that_is_written_from_right_to_left_does_not_turn_the_code_around_it() -> None:
    text = """row = {'عدد': 0.315, "b": '<b>', "it's": "أ"}"""
    page = Page(str(code(text)).encode())
    assert page.text == text and page.tags == ["pre", "bdi", "bdi"]
    assert "'عدد'" in page.words and '"أ"' in page.words


def test_a_line_does_not_end_within_a_number() -> None:
    assert [exponent(value) for value in (0, 3.8e-06, 1.5e9)] == ["0", "3.8e\u221206", "1.5e+09"]
