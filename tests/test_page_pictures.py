"""Trying a model of pictures in a real browser: held-out ones, drawings, files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from playwright.sync_api import expect

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from tests.browser import browser as browser
from tests.conftest import Server
from tests.visiting import (
    Visit,
    asked,
    drop,
    drop_from_disk,
    has_focus,
    is_copied,
    is_the_apis,
    run_curl,
)
from tests.visiting import visit as visit

Serve = Callable[[str], Server]


def test_an_example_of_pictures_is_answered_as_by_the_api(
    serve: Serve, digits: Predictor, visit: Visit
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
    serve: Serve, digits: Predictor, visit: Visit
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


def test_a_second_finger_draws_nothing_and_a_touch_that_is_taken_away_ends_a_line(
    serve: Serve, visit: Visit
) -> None:
    page = visit(serve("digits").url, has_touch=True)
    canvas = page.get_by_role("img", name="Drawing area")
    session = page.context.new_cdp_session(page)

    def line(last: str, other: bool = False) -> None:
        """From top to bottom; other: a second finger comes after the first."""
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()

        def finger(x: float, y: float, number: int = 0) -> dict[str, float]:
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            return {**place, "id": number}

        others = [finger(0.9, 0.9, 1)] if other else []
        touches = [("touchStart", [finger(0.3, 0.1)])]
        touches += [("touchStart", [finger(0.3, 0.1), *others])] if other else []
        touches += [("touchMove", [finger(0.5, y / 10), *others]) for y in range(2, 10)]
        for kind, points in [*touches, (last, [])]:
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    sent = []
    for act in (
        functools.partial(line, "touchEnd"),
        functools.partial(line, "touchEnd", other=True),
        functools.partial(line, "touchCancel"),
    ):
        sent.append(asked(page, act).post_data_json)
        page.get_by_role("button", name="Clear").click()
    assert sent[0] == sent[1] == sent[2]


def test_pictures_are_dropped_pasted_and_chosen_and_a_bad_one_is_refused_in_the_apis_words(
    serve: Serve, digits: Predictor, visit: Visit, tmp_path: Path
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
    has_focus(page.locator(".refusal"))
    name = f"{'a_long_name_' * 8}a.png"
    drop(zone, (name, "image/png", pngs[0]), ("b.png", "image/png", b"none"))
    expect(page.locator("#rows .state")).to_have_text("1 answered, 1 refused.")
    label = digits.predict(digits.golden.raw[:1]).label[0]
    expect(page.locator(".answers tbody tr").first).to_contain_text(f"a.png{label}")
    expect(page.locator(".answers tbody tr").last).to_contain_text(words["error"])
    expect(page.locator(".answers img").first).to_be_visible()
    expect(page.locator(".answers img").last).to_be_hidden()
    # A long name leaves the answer in sight, on a phone too.
    page.set_viewport_size({"width": 390, "height": 800})
    region, answer = page.locator(".scroll").first, page.locator(".answers td.number").first
    right = "element => element.getBoundingClientRect().right"
    assert answer.evaluate(right) <= region.evaluate(right)


def test_a_folder_is_no_silent_service(serve: Serve, visit: Visit, tmp_path: Path) -> None:
    page = visit(serve("digits").url, refused=True)
    drop_from_disk(page.locator(".drop"), tmp_path)
    expect(page.locator(".refusal")).to_contain_text("This file is not taken")
    expect(page.locator(".refusal")).to_contain_text("it is a folder, or has changed since")
