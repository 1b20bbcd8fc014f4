"""The page in a real browser: what a person does on it, and what the API says to the same."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Route, expect

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from serving.page.examples import choose_examples
from serving.wire import RequestDecoder
from tests.browser import browser as browser
from tests.conftest import Server
from tests.listening import listening
from tests.pages import BREAKING, LONG, mixed, wide
from tests.visiting import asked, drop, is_copied, is_the_apis, prefixed, run_curl, shown

Serve = Callable[[str], Server]
TOKEN = "a-token-of-sixteen"
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a URL; nothing may go to another host, or be said on the console.

    refused: whether requests are to be refused, of which Chromium tells the console.
    """
    problems: list[str] = []
    contexts = []

    def opened(url: str, *, refused: bool = False, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()

        def said(message: Any) -> None:
            if not (refused and "Failed to load resource" in message.text):
                problems.append(f"console: {message.text}")

        def sent(request: Request) -> None:
            if not request.url.startswith((f"{url}/", "blob:", "data:")):
                problems.append(f"request: {request.url}")

        page.on("console", said)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", sent)
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto(f"{url}/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def table(cancer: Predictor) -> Predictor:
    return mixed(cancer)


# One such service at a time: its connections are of one class.
@pytest.fixture
def table_url(table: Predictor) -> Iterator[str]:
    """A service of every type of column."""
    with listening(table) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_an_example_of_pictures_is_answered_as_by_the_api(
    serve: Serve, digits: Predictor, visit: Callable[..., Page]
) -> None:
    page = visit(serve("digits").url)
    expect(page.locator("#answer")).to_contain_text("Draw one, or take a picture")
    thumbnails = page.locator(".thumbnail")
    assert thumbnails.count() == 12
    picture = thumbnails.nth(3)
    request = asked(page, picture.click, "/predict/image")
    expect(picture).to_have_attribute("aria-pressed", "true")
    row = httpx.get(f"{page.url}page/examples/{digits.manifest.version}/3.png").content
    prediction = is_the_apis(page, request, row)
    truth = picture.locator("img").get_attribute("alt").rpartition(" ")[2]
    words = "Right" if prediction["label"] == truth else f"Wrong: its true label is {truth}"
    expect(page.locator(".right, .wrong")).to_have_text(words)
    assert run_curl(page)["predictions"] == [prediction]
    is_copied(page)
    page.get_by_role("link", name="Report").click()
    expect(page).to_have_url(f"{serve('digits').url}/report")
    expect(page.locator("body")).to_contain_text("digits")


def test_a_drawing_is_sent_as_the_model_sees_it(
    serve: Serve, digits: Predictor, visit: Callable[..., Page]
) -> None:
    page = visit(serve("digits").url)
    canvas = page.get_by_role("img", name="Drawing area")
    box = canvas.bounding_box()

    def circle() -> None:
        for step in range(41):
            angle = 2 * np.pi * step / 40
            x = box["x"] + box["width"] * (0.5 + 0.2 * np.sin(angle))
            y = box["y"] + box["height"] * (0.5 - 0.35 * np.cos(angle))
            page.mouse.move(x, y)
            if step == 0:
                page.mouse.down()
        page.mouse.up()

    request = asked(page, circle)
    assert is_the_apis(page, request)["label"] == "0"
    (sent,) = request.post_data_json["instances"]
    seen = page.get_by_role("img", name="as the model sees it").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data]"
    )
    np.testing.assert_array_equal(np.reshape(seen, (8, 8, 4))[:, :, 0], sent)
    # As high as the examples, with nothing in its middle.
    assert max(sent[0]) > 48 and max(sent[7]) > 48 and max(sent[4][3:5]) < 48
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Draw here")).to_be_visible()


def test_pictures_are_dropped_pasted_and_chosen_and_a_bad_one_is_refused_in_the_apis_words(
    serve: Serve, digits: Predictor, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit(serve("digits").url, refused=True)
    zone = page.locator(".drop")
    pngs = [encode_png(row) for row in digits.golden.raw[:2]]
    dropped = asked(
        page, lambda: drop(zone, ("its name's.png", "image/png", pngs[0])), "/predict/image"
    )
    is_the_apis(page, dropped, pngs[0])
    page.locator("#answer summary").first.click()
    command = "curl {}/predict/image --data-binary '@its name'\\''s.png'"
    expect(page.locator("#answer pre").first).to_have_text(command.format(serve("digits").url))
    pasted = asked(
        page,
        lambda: page.evaluate(
            """bytes => {
                const clipboardData = new DataTransfer();
                clipboardData.items.add(new File([new Uint8Array(bytes)], "", {type: "image/png"}));
                document.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
            }""",
            list(pngs[1]),
        ),
        "/predict/image",
    )
    is_the_apis(page, pasted, pngs[1])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    asked(page, lambda: page.set_input_files("input[type=file]", bad), "/predict/image")
    words = httpx.post(f"{serve('digits').url}/predict/image", content=b"no picture").json()
    expect(page.locator(".refusal")).to_contain_text(words["error"])
    expect(page.locator(".refusal")).to_be_focused()
    drop(zone, ("a.png", "image/png", pngs[0]), ("b.png", "image/png", b"none"))
    expect(page.locator("#rows .state")).to_have_text("1 answered, 1 refused.")
    label = digits.predict(digits.golden.raw[:1]).label[0]
    expect(page.locator(".answers tbody tr").first).to_contain_text(f"a.png{label}")
    expect(page.locator(".answers tbody tr").last).to_contain_text(words["error"])


def test_rows_of_every_type_are_answered_as_by_the_api(
    table_url: str, table: Predictor, visit: Callable[..., Page]
) -> None:
    page = visit(table_url)
    decoder = RequestDecoder(table.manifest, max_rows=1, max_pixels=1)
    found = []
    for row in range(len(table.golden.raw)):
        chip = page.locator(".chip").nth(row + 1)
        request = asked(page, chip.click)
        is_the_apis(page, request)
        expect(page.locator(".right, .wrong")).to_have_text("Right")
        found.append(decoder.decode(request.post_data_buffer).raw[0])
    # Through the fields, each is what it was.
    golden = table.golden.raw[choose_examples(table.golden)]
    np.testing.assert_array_equal(found, golden)
    assert run_curl(page)["predictions"][0]["probabilities"] == shown(page)
    changed = asked(page, lambda: (page.fill("text=age", "55.5"), page.press("text=age", "Tab")))
    assert changed.post_data_json["instances"][0]["age"] == 55.5
    is_the_apis(page, changed)
    expect(page.locator(".right, .wrong")).to_have_count(0)
    asked(page, lambda: page.get_by_role("radio", name="missing").check())
    asked(page, lambda: page.get_by_label("city", exact=True).select_option("another ..."))
    other = page.get_by_label("city, another")
    asked(page, lambda: (other.fill("Atlantis"), other.press("Tab")))
    asked(page, lambda: (page.fill("text=since", ""), page.press("text=since", "Tab")))
    last = asked(page, lambda: page.get_by_role("button", name="Predict").click())
    (sent,) = last.post_data_json["instances"]
    assert (sent["member"], sent["city"], sent["since"]) == (None, "Atlantis", None)
    is_the_apis(page, last)


def test_a_bad_cell_is_refused_in_the_apis_words_at_its_field(
    table_url: str, visit: Callable[..., Page]
) -> None:
    page = visit(table_url, refused=True)
    age, predict = page.get_by_label("age"), page.get_by_role("button", name="Predict")
    for text, words in (
        ("abc", "instances[0].age: expected `float`, got `str`"),
        ("", "instances[0].age: expected `float`, got `null`"),
    ):
        age.fill(text)
        asked(page, predict.click)
        expect(page.locator(".refusal .words")).to_have_text(words)
        expect(age).to_have_attribute("aria-invalid", "true")
        expect(age).to_be_focused()
        expect(page.locator("#field-0-words")).to_have_text(words)
    age.fill(" 1e2 ")
    expect(page.get_by_text("outside of training's 18 to 90")).to_be_visible()
    asked(page, predict.click)
    expect(age).not_to_have_attribute("aria-invalid", "true")
    expect(page.locator(".refusal")).to_have_count(0)
    page.get_by_label("city", exact=True).select_option("another ...")
    asked(page, predict.click)
    expect(page.locator(".refusal .words")).to_contain_text("column 'city': the value is missing")
    expect(page.get_by_label("city", exact=True)).to_have_attribute("aria-invalid", "true")


def test_what_a_service_in_trouble_says_is_shown(
    table_url: str, visit: Callable[..., Page]
) -> None:
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
    page.unroute("**/predict")
    asked(page, page.get_by_role("button", name="Try again").click)
    assert len(shown(page)) == 3
    expect(page.locator("#notice")).to_be_empty()

    def swapped(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "model": "other@000000000000"})

    page.route("**/predict", swapped)
    asked(page, predict.click)
    expect(page.locator("#notice")).to_contain_text("now answers with other@000000000000")
    page.unroute("**/predict")


def test_a_csvs_rows_are_answered_and_refused_as_offline(
    table_url: str, table: Predictor, visit: Callable[..., Page], tmp_path: Path
) -> None:
    names = [column.name for column in table.manifest.input.columns]
    good = [
        ["30", "1e3", "TRUE", "Bonn", "code 1", "2021-02-03", "2024-05-01T10:00:00Z"],
        [" 31.5 ", "NA", "0", " 東京 ", "?", "", "2024-05-01"],
        ["+4", "", "", "no, \"such\"\ncity", "code 7", "2021-02-03T04:05", "null"],
    ]  # fmt: skip
    bad = {
        3: (["x", *good[0][1:]], "age"),
        4: (good[0][:-1], "expected 8 cells, found 7"),
        5: (["", *good[0][1:]], "age"),
        6: ([*good[0][:5], "yesterday", "NA"], "column 'since': expected a date"),
        7: ([*good[0][:3], "M\udcfcnchen", *good[0][4:]], "column 'city': expected UTF-8"),
    }
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*names, "label"])
    rows_in = [*good, *(row for row, _ in bad.values())]
    for number, row in enumerate(rows_in):
        writer.writerow([*row, f"id {number}"])
        text.write("\r\n" if number == 1 else "")
    page = visit(table_url, refused=True)
    drop(
        page.locator(".drop"),
        ("rows.csv", "text/csv", text.getvalue().encode("utf-8", "surrogateescape")),
    )
    expect(page.locator("#rows .state")).to_have_text("3 answered, 5 refused.")
    for number, (_, reason) in bad.items():
        expect(page.locator(".answers tbody tr").nth(number)).to_contain_text(reason)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save all answers as CSV").click()
    assert download.value.suggested_filename == "rows.answers.csv"
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    # What `parityline score` does with a CSV's cells.
    offline = table.predict(dict(zip(names, map(list, zip(*good, strict=True)), strict=True)))
    for number, row in enumerate(rows):
        assert (row["row"], row["input_label"]) == (
            str(number),
            "" if number == 4 else f"id {number}",
        )
        assert [row[name] for name in names[:3]] == rows_in[number][:3]
        if number in bad:
            assert bad[number][1] in row["refused"] and row["label"] == ""
            continue
        assert (row["label"], row["refused"]) == (offline.label[number], "")
        found = [float(row[f"probability_{label}"]) for label in table.manifest.labels]
        np.testing.assert_array_equal(
            np.float32(found), offline.probabilities[number].astype(np.float32)
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,city\n30,Bonn\n", "missing field or column `income <b>net</b>`"),
        ("a,b\n1,2\n", "none of the model's columns is there, found 'a', 'b'"),
        ("age,age,city\n1,2,3\n", "column twice: 'age'"),
        ("age,city\n", "expected rows below the columns' names, found none"),
    ],
)
def test_a_csv_of_other_columns_is_refused(
    table_url: str, visit: Callable[..., Page], text: str, words: str
) -> None:
    page = visit(table_url, refused=True)
    drop(page.locator(".drop"), ("rows.csv", "text/csv", text.encode()))
    expect(page.locator("#rows .refusal")).to_contain_text(words)


def test_hostile_long_and_many_names_break_nothing(
    cancer: Predictor, visit: Callable[..., Page]
) -> None:
    predictor = wide(cancer)
    with listening(predictor) as server:
        for width in (390, 1280):
            url = f"http://127.0.0.1:{server.port}"
            page = visit(url, viewport={"width": width, "height": 800})
            request = asked(page, page.locator(".chip").nth(2).click)
            is_the_apis(page, request)
            bars = page.locator(".bar-label").all_text_contents()
            assert sorted(bars) == sorted(predictor.manifest.labels)
            page.get_by_label("Find one of 300 columns").fill(" STATE 17")
            assert page.locator(".field:visible").count() == 1
            # Nothing is wider than the window.
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], widths
            assert page.locator("img").count() == page.locator("img.asked").count()
            assert page.get_by_text(BREAKING).count() > 0 and page.get_by_text(LONG).count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(
    serve: Serve, table_url: str, visit: Callable[..., Page], scheme: str
) -> None:
    for url in (serve("digits").url, table_url):
        page = visit(url, refused=True, color_scheme=scheme, viewport={"width": 390, "height": 800})
        found = [Axe().run(page)]
        # By keyboard alone: an example, and the request as curl.
        press = functools.partial(page.keyboard.press, "Enter")
        page.locator(".thumbnail, .chip").nth(1).focus()
        asked(page, press, "/predict" if url == table_url else "/predict/image")
        expect(page.get_by_role("status").filter(has_text="%")).to_be_visible()
        page.locator("#answer summary").first.focus()
        press()
        expect(page.locator("#answer pre").first).to_be_visible()
        found.append(Axe().run(page))
        if url == table_url:
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
    digits: Predictor, visit: Callable[..., Page], tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    with listening(digits, tokens=file) as server:
        page = visit(f"http://127.0.0.1:{server.port}", refused=True)
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
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
        with page.expect_download() as download:
            page.get_by_role("link", name="Report").click()
        assert Path(download.value.path()).read_bytes() == digits.bundle.read("report.html")
        page.reload()
        expect(page.locator(".thumbnail")).to_have_count(12)
        assert TOKEN not in page.url
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_label("Token")).to_be_focused()


def test_behind_a_prefix_everything_is_found(digits: Predictor, visit: Callable[..., Page]) -> None:
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
