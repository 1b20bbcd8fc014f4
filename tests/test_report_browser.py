"""A report in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import browser  # noqa: F401
from tests.report_pages import NASTY, renamed, rendered


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
