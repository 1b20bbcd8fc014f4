"""A report in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.predictor import Predictor
from tests.browser import browser  # noqa: F401
from tests.report_pages import NASTY, renamed, rendered
from training.report.compare import MOST, render_comparison

# Tables of estimates that have to be scrolled.
_WIDER = """[...document.querySelectorAll('.estimates')]
    .map(table => [table.offsetWidth, table.parentElement.clientWidth])
    .filter(([table, box]) => table > box)"""
# Between the margins of a page of A4, in pixels of CSS.
_PAPER = 688


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
        assert page.evaluate(_WIDER) == []
    finally:
        page.close()


def test_as_many_bundles_as_can_be_compared_fit_a_page_of_paper(
    browser,  # noqa: F811
    digits: Predictor,
    cancer: Predictor,
    tmp_path: Path,
) -> None:
    alike, unlike = [digits.bundle] * MOST, [digits.bundle, cancer.bundle] * (MOST // 2)
    file = tmp_path / "comparison.html"
    page = browser.new_page(viewport={"width": _PAPER, "height": 900})
    page.emulate_media(media="print")
    try:
        for bundles in (alike, unlike):
            file.write_bytes(render_comparison(bundles))
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= _PAPER
    finally:
        page.close()
