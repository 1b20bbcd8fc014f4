"""The page of any model in a real browser: for everybody, with a token, in trouble.

What is tried on it: test_page_pictures, test_page_tables.
"""

from __future__ import annotations

import functools
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from artifacts.predictor import Predictor
from tests.browser import browser as browser
from tests.listening import listening
from tests.visiting import Visit, asked, has_focus, prefixed, shown
from tests.visiting import table as table
from tests.visiting import table_url as table_url
from tests.visiting import visit as visit

TOKEN = "a-token-of-sixteen"
# Where everything is on a page.
DRAWN = """[...document.body.querySelectorAll("*")].map(one => {
    const { x, y, width, height } = one.getBoundingClientRect();
    return [one.tagName, x, y + scrollY, width, height];
})"""
# The colour of a text on chosen ground.
HIGHLIGHTED = """(() => {
    document.body.style.color = "HighlightText";
    return getComputedStyle(document.body).color;
})()"""


def test_what_a_service_in_trouble_says_is_shown(table_url: str, visit: Visit) -> None:
    page = visit(table_url, refused=True)
    predict = page.get_by_role("button", name="Predict")
    busy = {"status": 503, "headers": {"Retry-After": "7"}, "json": {"error": "overloaded: x"}}
    page.route("**/predict", lambda route: route.fulfill(**busy))
    predict.click()
    expect(page.locator(".refusal")).to_contain_text("overloaded: x")
    expect(page.locator(".refusal")).to_contain_text("wait 7 s")
    page.unroute("**/predict")
    page.route("**/predict", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".refusal")).to_contain_text("does not answer")
    expect(page.locator(".peek")).to_have_text("No answer")
    page.unroute("**/predict")
    asked(page, page.get_by_role("button", name="Try again").click)
    assert len(shown(page)) == 3
    expect(page.locator("#notice")).to_be_empty()


def test_a_version_that_is_promoted_meanwhile_answers_in_its_own_labels(
    table_url: str, visit: Visit
) -> None:
    page = visit(table_url)
    probabilities = {"stays": 0.5, "a label more": 0.25, "comes": 0.25}
    prediction = {"label": "stays", "index": 2, "probability": 0.5, "probabilities": probabilities}
    answer = {"predictions": [prediction], "model": "other@000000000000"}
    page.route("**/predict", lambda route: route.fulfill(json=answer))
    asked(page, page.get_by_role("button", name="Row 1 labelled stays").click)
    expect(page.locator("#notice")).to_contain_text("now answers with other@000000000000")
    assert shown(page) == probabilities
    expect(page.locator(".answered .bar-label")).to_have_text("stays")
    expect(page.locator(".right, .wrong")).to_have_text("Right")
    page.unroute("**/predict")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["digits", "table"])
def test_everybody_can_use_it(
    request: pytest.FixtureRequest, visit: Visit, kind: str, scheme: str
) -> None:
    with listening(request.getfixturevalue(kind)) as server:
        url = f"http://127.0.0.1:{server.port}"
        page = visit(url, refused=True, color_scheme=scheme, viewport={"width": 390, "height": 800})
        found = [Axe().run(page)]
        # By keyboard alone: an example, and the request as curl.
        press = functools.partial(page.keyboard.press, "Enter")
        page.locator(".thumbnail, .chip").nth(1).focus()
        asked(page, press, "/predict" if kind == "table" else "/predict/image")
        expect(page.get_by_role("status").filter(has_text="%")).to_be_visible()
        # On a phone it is out of sight, but for a line that leads to it.
        page.locator(".peek").focus()
        press()
        has_focus(page.locator("#answer"))
        expect(page.locator("#answer .label")).to_be_in_viewport()
        page.locator("#answer summary").first.focus()
        press()
        expect(page.locator("#answer pre").first).to_be_visible()
        found.append(Axe().run(page))
        if kind == "table":
            page.get_by_label("age").fill("x")
            asked(page, press)
            found.append(Axe().run(page))
        for results in found:
            serious = [
                (violation["id"], node["html"], node["failureSummary"])
                for violation in results.response["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"]
            ]
            assert not serious


def test_a_token_is_asked_for_and_kept_in_the_tab(
    digits: Predictor, visit: Visit, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    with listening(digits, tokens=file) as server:
        page = visit(f"http://127.0.0.1:{server.port}", refused=True)
        field = page.get_by_label("Token")
        has_focus(field)
        assert not Axe().run(page).response["violations"]
        field.fill("пароль")
        field.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("Latin letters")
        field.fill("another-token-of-many")
        field.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("expected Authorization: Bearer")
        field.fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        thumbnail = page.locator(".thumbnail").first
        asked(page, thumbnail.click, "/predict/image")
        assert sum(shown(page).values()) == pytest.approx(1, abs=1e-5)
        assert thumbnail.locator("img").evaluate("image => image.naturalWidth") == 8
        page.locator("#answer summary").first.click()
        line = page.locator("#answer pre").first.text_content()
        assert line.count("Authorization: Bearer $TOKEN") == 2 and TOKEN not in page.content()
        page.reload()
        expect(page.locator(".thumbnail")).to_have_count(12)
        assert TOKEN not in page.url
        page.get_by_role("button", name="Forget the token").click()
        has_focus(page.get_by_label("Token"))


def test_with_a_token_links_show_what_they_lead_to(
    digits: Predictor, visit: Visit, tmp_path: Path
) -> None:
    with listening(digits) as server:
        page = visit(f"http://127.0.0.1:{server.port}")
        page.get_by_role("link", name="Report").click()
        drawn = page.evaluate(DRAWN)
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    with listening(digits, tokens=file) as server:
        url = f"http://127.0.0.1:{server.port}"
        page = visit(url, refused=True)
        # Whoever was sent the link of the report gets there too.
        page.goto(f"{url}/report")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_title("digits: classifier report")
        assert page.evaluate(DRAWN) == drawn
        page.goto(f"{url}/")
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for name, path in (("OpenAPI", "docs.json"), ("Manifest", "model")):
            page.get_by_role("link", name=name, exact=True).click()
            expect(page).to_have_url(f"{url}/{path}")
            expect(page.locator("body")).to_have_text(httpx.get(page.url, headers=bearer).text)
            page.go_back()
        page.get_by_role("link", name="Metrics").click()
        expect(page.locator("pre")).to_contain_text("# TYPE bentoml_service_request_total counter")
        page.reload()
        expect(page.locator("pre")).to_contain_text("# TYPE bentoml_service_request_total counter")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_that_the_reader_has_chosen_leave_what_is_chosen_and_the_bars_to_be_seen(
    table_url: str, visit: Visit, scheme: str
) -> None:
    page = visit(table_url, forced_colors="active", color_scheme=scheme)
    asked(page, page.get_by_role("button", name="Row 1 labelled stays").click)
    ground = "one => getComputedStyle(one).backgroundColor"
    for one, other in (
        (".answered .bar-fill", ".answered .bar"),
        ("[aria-pressed=true]", ".chip[aria-pressed=false]"),
        (".choices input:checked + label", ".choices input:not(:checked) + label"),
    ):
        assert page.locator(one).evaluate(ground) != page.locator(other).first.evaluate(ground)
    # Where it is adjusted, a ground of its own is drawn behind each word.
    for text in (".chip[aria-pressed=true] .chip-name", ".choices input:checked + label"):
        style = page.locator(text).evaluate(
            "one => [getComputedStyle(one).forcedColorAdjust, getComputedStyle(one).color]"
        )
        assert style == ["none", page.evaluate(HIGHLIGHTED)]


def test_behind_a_prefix_everything_is_found(digits: Predictor, visit: Visit) -> None:
    with listening(digits) as server, prefixed(server.port) as url:
        page = visit(url)
        asked(page, page.locator(".thumbnail").first.click, "/models/one/predict/image")
        assert len(shown(page)) == 10
        expect(page.locator("#call")).to_contain_text(f"| curl {url}/predict/image ")
        page.locator("#answer summary").first.click()
        expect(page.locator("#answer pre").first).to_contain_text(f"{url}/page/examples/")
        page.get_by_role("link", name="Report").click()
        expect(page).to_have_url(f"{url}/report")
        expect(page.locator("body")).to_contain_text("digits")
