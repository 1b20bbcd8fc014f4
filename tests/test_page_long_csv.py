"""A CSV of more than a browser reads at once is read as a whole."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from artifacts.predictor import Predictor
from tests.browser import browser as browser
from tests.listening import listening
from tests.pages import mixed

# Papa Parse's own piece.
_PIECE = 10 * 2**20


def test_a_character_across_two_pieces_of_a_file_is_read(
    browser: Browser, cancer: Predictor
) -> None:
    predictor = mixed(cancer)
    names = ["age", "income <b>net</b>", "member", "code", "note", "city", "since", "seen"]
    before = f"{','.join(names)}\n30,1,true,code 1,"
    after = ",M\u00fcnchen,2021-02-03,2024-05-01\n"
    # The first of its two bytes is the last of the piece.
    note = _PIECE - 1 - len(before) - after.index("\u00fc")
    with listening(predictor) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator(".drop").evaluate(
            """(zone, [before, note, after]) => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([before + "x".repeat(note) + after], "long.csv"));
                zone.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
            }""",
            [before, note, after],
        )
        expect(page.locator("#rows .state")).to_have_text("1 answered.", timeout=20_000)
