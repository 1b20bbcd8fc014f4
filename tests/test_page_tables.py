"""Trying a model of tables in a real browser: its form, held-out rows, CSVs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Request, Route, expect

from artifacts.predictor import Predictor
from serving.page.examples import choose_examples
from serving.page.files import STATIC
from serving.scoring.answers import AnswerForm, answer_table
from serving.wire import RequestDecoder
from tests.browser import browser as browser
from tests.listening import listening
from tests.pages import BREAKING, LONG, wide
from tests.visiting import (
    Visit,
    asked,
    drop,
    drop_from_disk,
    has_focus,
    is_the_apis,
    run_curl,
    shown,
)
from tests.visiting import table as table
from tests.visiting import table_url as table_url
from tests.visiting import visit as visit

JAVASCRIPT = "text/javascript"
HEADER, ROW = "age,income <b>net</b>,member,city,code,since,seen\n", "30,,,Bonn,,,\n"


def test_rows_of_every_type_are_answered_as_by_the_api(
    table_url: str, table: Predictor, visit: Visit
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


def test_a_bad_cell_is_refused_in_the_apis_words_at_its_field(table_url: str, visit: Visit) -> None:
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
        has_focus(age)
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


def test_hostile_long_and_many_names_break_nothing(cancer: Predictor, visit: Visit) -> None:
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


def test_a_csvs_rows_are_answered_and_refused_as_offline(
    table_url: str, table: Predictor, visit: Visit, tmp_path: Path
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


def test_of_many_rows_all_refused_ones_are_shown_and_on_a_phone_each_answer_in_sight(
    table_url: str, visit: Visit
) -> None:
    page = visit(table_url, refused=True, viewport={"width": 390, "height": 800})
    text = f"note,{HEADER}" + f"whatever,{ROW}" * 250 + f"the last,{ROW.replace('30', 'x')}"
    drop(page.locator(".drop"), ("rows.csv", "text/csv", text.encode()))
    state = "250 answered, 1 refused. The first 200 answers are shown."
    expect(page.locator("#rows .state")).to_have_text(state)
    rows = page.locator(".answers tbody tr")
    expect(rows).to_have_count(201)
    expect(rows.last).to_contain_text("250age: expected `float`, got `str`the last")
    names = page.locator(".answers th").all_text_contents()
    assert names == ["row", "label", "probability", "note", *HEADER.split(",")[:3]]
    region = page.get_by_role("region", name="rows.csv").bounding_box()
    answer = rows.first.locator(".number").bounding_box()
    assert answer["x"] + answer["width"] <= region["x"] + region["width"]
    # No word is broken.
    lines = rows.first.locator("td", has_text="whatever").evaluate(
        """cell => {
            const text = new Range();
            text.selectNodeContents(cell);
            return text.getClientRects().length;
        }"""
    )
    assert lines == 1


def test_a_csvs_columns_with_names_of_the_answers_are_named_as_offline(
    table_url: str, table: Predictor, visit: Visit
) -> None:
    mine = ["label", "input_label", "probability_stays", "input_input_row", "row", "input_row"]
    offline = answer_table(
        table.manifest.labels,
        AnswerForm(),
        rows=np.arange(1),
        passed=pa.table({name: ["mine"] for name in mine}),
        probabilities=np.zeros((1, 3), dtype=np.float32),
        index=np.zeros(1, dtype=np.int64),
    )
    page = visit(table_url)
    text = f"{','.join(mine)},refused,{HEADER}{','.join(mine)},no,{ROW}"
    drop(page.locator(".drop"), ("rows.csv", "text/csv", text.encode()))
    expect(page.locator("#rows .state")).to_have_text("1 answered.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save all answers as CSV").click()
    with Path(download.value.path()).open(newline="") as file:
        names, row = csv.reader(file)
    # Offline a refused row is in another file.
    model = [column.name for column in table.manifest.input.columns]
    passed, answers = offline.column_names[: len(mine)], offline.column_names[len(mine) :]
    assert names == [*passed, "input_refused", *model, *answers, "refused"]
    assert row[: len(mine) + 1] == [*mine, "no"] and row[-1] == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,city\n30,Bonn\n", "missing field or column `income <b>net</b>`"),
        ("a,b\n1,2\n", "expected 'age', 'income <b>net</b>', 'member', 'city', 'code' ..."),
        ("a,b\n1,2\n", "in the first line, separated by commas, found 'a', 'b'"),
        ("age;city\n30;Bonn\n", "separated by commas, found 'age;city'"),
        ("", "separated by commas, found nothing"),
        ("age,age,city\n1,2,3\n", "column twice: 'age'"),
        ("age,city\n", "expected rows below the columns' names, found none"),
    ],
)
def test_a_csv_of_other_columns_is_refused(
    table_url: str, visit: Visit, text: str, words: str
) -> None:
    page = visit(table_url, refused=True)
    drop(page.locator(".drop"), ("rows.csv", "text/csv", text.encode()))
    expect(page.locator("#rows .refusal")).to_contain_text(words)
    has_focus(page.locator("#rows .refusal"))
    title = page.locator("#rows h3")
    expect(title).to_have_text("rows.csv")
    above, below = title.bounding_box(), page.locator("#rows .refusal").bounding_box()
    assert below["y"] - above["y"] - above["height"] > 4
    expect(page.locator("#rows table")).to_have_count(0)


def test_of_a_csv_that_is_too_long_the_first_rows_are_answered_and_a_folder_is_none(
    table_url: str, visit: Visit, tmp_path: Path
) -> None:
    page = visit(table_url, refused=True)
    # The page's own limit is more than a test should make.
    source = (STATIC / "csv.js").read_text()
    script = source.replace("128 * 2 ** 20", str(len(HEADER + ROW + ROW) + 3))
    assert script != source
    page.route("**/page/csv.js", lambda route: route.fulfill(body=script, content_type=JAVASCRIPT))
    page.reload()
    drop(page.locator(".drop"), ("long.csv", "text/csv", (HEADER + ROW * 9).encode()))
    state = page.locator("#rows .state")
    expect(state).to_contain_text("2 answered. This page takes up to 10,000 rows and")
    drop(page.locator(".drop"), ("endless.csv", "text/csv", b"x" * 9999))
    expect(page.locator("#rows .refusal")).to_contain_text("found nothing")
    drop_from_disk(page.locator(".drop"), tmp_path)
    expect(page.locator("#rows .refusal")).to_contain_text(
        "The file cannot be read: it is a folder"
    )


def test_another_csv_takes_the_place_of_one_that_is_asked_for(table_url: str, visit: Visit) -> None:
    page = visit(table_url)
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/predict", hold_the_first)
    drop(page.locator(".drop"), ("first.csv", "text/csv", (HEADER + ROW * 2000).encode()))
    while not held:
        page.wait_for_timeout(10)
    others = [(name, "text/csv", (HEADER + ROW).encode()) for name in ("second.csv", "third.csv")]
    drop(page.locator(".drop"), *others)
    expect(page.locator("#rows .state")).to_have_text("1 answered. It is the first of 2 files.")
    more: list[Request] = []
    page.on("request", lambda request: more.append(request))
    with page.expect_response("**/predict"):
        held[0].continue_()
    page.wait_for_timeout(100)
    assert not more
    expect(page.locator("#rows h3")).to_have_text("second.csv")
