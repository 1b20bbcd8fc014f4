"""Whatever is in a bundle's texts, in its report it is text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.evidence import ColumnImportance, Evidence, Mistake, Spread
from artifacts.predictor import Predictor
from tests.report_pages import NASTY, Page, loads_nothing, renamed, rendered
from training.report.markup import element
from training.report.page import render_report


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
